//! OCI image layouts as others write them, where what refers to an image has no name: oras, cosign.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{
    Image, MultiArch, Process, PutImage, Registry, archive, assert_sound, assert_whole, blob_path, digest_of, files, get, larder,
    refused, sealed, told,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The files of a layout, and what its index lists.
#[derive(Default)]
struct Layout {
    files: Vec<(String, Vec<u8>)>,
    listed: Vec<Value>,
}

/// Where the list of what refers to a digest stands.
fn list_tag(digest: &str) -> String {
    digest.replace(':', "-")
}

impl Layout {
    fn of(image: &PutImage) -> Self {
        let mut layout = Self::default();
        image.blobs().for_each(|blob| layout.put(&blob.bytes));
        layout.put(&image.manifest);
        layout
    }

    fn put(&mut self, bytes: &[u8]) {
        let path = blob_path(&digest_of(bytes));
        if self.files.iter().all(|(known, _)| *known != path) {
            self.files.push((path, bytes.to_vec()));
        }
    }

    fn list(&mut self, digest: &str, annotations: &Value) {
        self.listed.push(json!({ "mediaType": MANIFEST, "digest": digest, "size": 1, "annotations": annotations }));
    }

    /// A signature of `subject`, which the index lists without a name; its digest.
    fn refer(&mut self, subject: &str, signature: &str) -> String {
        self.refer_to(subject, signature, true)
    }

    fn refer_to(&mut self, subject: &str, signature: &str, is_whole: bool) -> String {
        let of =
            |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": digest_of(bytes), "size": bytes.len() });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "test/signature",
            "config": of("application/vnd.oci.empty.v1+json", b"{}"), "layers": [of("test/text", signature.as_bytes())],
            "subject": { "mediaType": MANIFEST, "digest": subject, "size": 1 }, "annotations": { "signed": signature },
        });
        let manifest = manifest.to_string();
        self.put(b"{}");
        if is_whole {
            self.put(signature.as_bytes());
        }
        self.put(manifest.as_bytes());
        let digest = digest_of(manifest.as_bytes());
        self.list(&digest, &json!({}));
        digest
    }

    fn write(&self, dir: &Path) {
        let index = json!({ "schemaVersion": 2, "manifests": self.listed }).to_string();
        let mut files: Vec<(&str, &[u8])> = self.files.iter().map(|(path, bytes)| (&**path, &bytes[..])).collect();
        files.push(("index.json", index.as_bytes()));
        std::fs::write(dir.join("layout.tar"), archive(&files)).unwrap();
    }
}

async fn app(seed: u64) -> (Registry, PutImage) {
    let upstream = Registry::start().await;
    let image = Image::new(seed).layers(&[5_000]).put(&upstream, "library/app", "v1");
    (upstream, image)
}

/// The digests of what refers to one, and the artifact type and annotation of the first.
async fn referrers(larder: &Process, digest: &str) -> Vec<String> {
    let list =
        get(larder.url(&format!("/v2/library/app/referrers/{digest}?artifactType=test/signature"))).await.expect(200).json();
    let of = |descriptor: &Value| descriptor["digest"].as_str().unwrap().to_owned();
    list["manifests"].as_array().unwrap().iter().map(of).collect()
}

#[tokio::test]
async fn what_oras_writes_brings_what_refers_to_its_image_and_what_refers_to_that() {
    let (_upstream, image) = app(1).await;
    let mut layout = Layout::of(&image);
    let first = layout.refer(&image.digest, "first");
    let of_first = layout.refer(&first, "of the first");
    layout.list(&image.digest, &json!({ "org.opencontainers.image.ref.name": "v1" }));
    let second = layout.refer(&image.digest, "second");
    let dir = tempfile::tempdir().unwrap();
    layout.write(dir.path());
    let said = told(dir.path(), &["import", "layout.tar", "--as", "app:v1"]).await;
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("docker.io/library/app:v1  ") && lines.len() == 3, "{said}");
    let larder = sealed(dir.path());
    assert_whole(&larder, &image).await;
    get(larder.url("/v2/library/app/manifests/v1")).await.expect(200);
    assert_eq!(referrers(&larder, &image.digest).await, [first.clone(), second.clone()]);
    assert_eq!(referrers(&larder, &first).await, [of_first.as_str()]);
    assert_eq!(referrers(&larder, &second).await, [""; 0]);
    for (digest, signature) in [(&first, "first"), (&of_first, "of the first"), (&second, "second")] {
        get(larder.url(&format!("/v2/library/app/manifests/{digest}"))).await.expect(200);
        let blob = format!("/v2/library/app/blobs/{}", digest_of(signature.as_bytes()));
        assert_eq!(get(larder.url(&blob)).await.expect(200).body, signature);
    }
    let list = get(larder.url(&format!("/v2/library/app/referrers/{}", image.digest))).await.expect(200).json();
    let described = &list["manifests"][0];
    assert_eq!([&described["artifactType"], &described["annotations"]["signed"]], ["test/signature", "first"]);
    // It leaves as it came.
    told(dir.path(), &["export", "app:v1", "-o", "bundle.tar"]).await;
    let inside = tempfile::tempdir().unwrap();
    told(inside.path(), &["import", dir.path().join("bundle.tar").to_str().unwrap()]).await;
    assert_eq!(referrers(&sealed(inside.path()), &image.digest).await, [first, second]);
    assert_sound(&inside.path().join("cache"));
}

#[tokio::test]
async fn a_later_layout_adds_to_what_refers_to_an_image_and_takes_nothing_away() {
    let (_upstream, image) = app(2).await;
    let dir = tempfile::tempdir().unwrap();
    let mut digests = Vec::new();
    for signature in ["one", "two", "two"] {
        let mut layout = Layout::of(&image);
        layout.list(&image.digest, &json!({ "io.containerd.image.name": "app:v1" }));
        digests.push(layout.refer(&image.digest, signature));
        layout.write(dir.path());
        told(dir.path(), &["import", "layout.tar"]).await;
    }
    digests.dedup();
    assert_eq!(referrers(&sealed(dir.path()), &image.digest).await, digests);
}

#[tokio::test]
async fn what_refers_to_an_image_comes_into_each_repository_that_has_it() {
    let (_upstream, image) = app(3).await;
    let mut layout = Layout::of(&image);
    let signature = layout.refer(&image.digest, "signed");
    for name in ["app:v1", "quay.io/org/copy:v1"] {
        layout.list(&image.digest, &json!({ "io.containerd.image.name": name }));
    }
    let dir = tempfile::tempdir().unwrap();
    layout.write(dir.path());
    told(dir.path(), &["import", "layout.tar"]).await;
    let larder = sealed(dir.path());
    assert_eq!(referrers(&larder, &image.digest).await, [signature.as_str()]);
    get(larder.url(&format!("/v2/quay.io/org/copy/manifests/{signature}"))).await.expect(200);
    get(larder.url(&format!("/v2/quay.io/org/other/manifests/{signature}"))).await.expect(404);
}

#[tokio::test]
async fn what_cosign_saves_has_the_tags_that_cosign_looks_for() {
    let (_upstream, image) = app(4).await;
    let kind = |kind: &str| json!({ "kind": format!("dev.cosignproject.cosign/{kind}") });
    let mut layout = Layout::of(&image);
    layout.list(&image.digest, &kind("image"));
    let mut tagged = Vec::new();
    for (name, ending) in [("sigs", "sig"), ("atts", "att")] {
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "annotations": { "of": name },
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}"), "size": 2 }, "layers": [] });
        let manifest = manifest.to_string();
        layout.put(b"{}");
        layout.put(manifest.as_bytes());
        layout.list(&digest_of(manifest.as_bytes()), &kind(name));
        tagged.push((format!("{}.{ending}", list_tag(&image.digest)), manifest));
    }
    let dir = tempfile::tempdir().unwrap();
    layout.write(dir.path());
    told(dir.path(), &["import", "layout.tar", "--as", "app:v1"]).await;
    let larder = sealed(dir.path());
    assert_whole(&larder, &image).await;
    for (tag, manifest) in tagged {
        assert_eq!(get(larder.url(&format!("/v2/library/app/manifests/{tag}"))).await.expect(200).body, manifest);
    }
}

#[tokio::test]
async fn one_that_refers_to_what_is_elsewhere_is_an_image_that_may_get_a_name() {
    let mut layout = Layout::default();
    let signature = layout.refer(&digest_of(b"elsewhere"), "alone");
    let dir = tempfile::tempdir().unwrap();
    layout.write(dir.path());
    let said = refused(dir.path(), &["import", "layout.tar"]).await;
    assert!(said.ends_with("has no name; --as gives it one"), "{said}");
    assert!(files(&dir.path().join("cache/blobs")).is_empty());
    told(dir.path(), &["import", "layout.tar", "--as", "app:signature"]).await;
    let larder = sealed(dir.path());
    get(larder.url("/v2/library/app/manifests/signature")).await.expect(200);
    get(larder.url(&format!("/v2/library/app/manifests/{signature}"))).await.expect(200);
}

#[tokio::test]
async fn without_its_image_or_its_parts_what_refers_to_one_leaves_nothing() {
    let (_upstream, image) = app(5).await;
    let mut layout = Layout::of(&image);
    layout.list(&image.digest, &json!({}));
    let signature = layout.refer(&image.digest, "signed");
    let dir = tempfile::tempdir().unwrap();
    layout.write(dir.path());
    let ended = Process::order(dir.path(), &["import", "layout.tar"], &[]).await;
    assert_eq!(ended.status.code(), Some(1));
    for says in [
        format!("{}: it has no name; --as gives it one", image.digest),
        format!("{signature}: it refers to {}, which has not come in", image.digest),
    ] {
        assert!(ended.log.contains(&says), "{says}: {}", ended.log);
    }
    assert!(files(&dir.path().join("cache/blobs")).is_empty());

    let mut layout = Layout::of(&image);
    layout.list(&image.digest, &json!({ "io.containerd.image.name": "app:v1" }));
    let lacking = layout.refer_to(&image.digest, "lost", false);
    layout.write(dir.path());
    let said = refused(dir.path(), &["import", "layout.tar"]).await;
    assert_eq!(said, format!("{lacking}: {} is not in the archive, and not here for docker.io/library/app", digest_of(b"lost")));
    let larder = sealed(dir.path());
    assert_whole(&larder, &image).await;
    assert_eq!(referrers(&larder, &image.digest).await, [""; 0]);
    get(larder.url(&format!("/v2/library/app/manifests/{lacking}"))).await.expect(404);
    assert_eq!(files(&dir.path().join("cache/blobs")).len(), 3, "the image's manifest, config and layer");
}

#[tokio::test]
async fn of_an_index_the_parts_that_are_listed_without_names_come_with_it() {
    let upstream = Registry::start().await;
    let index = MultiArch::new(6).put(&upstream, "library/multi", "v1");
    let mut layout = Layout::default();
    for image in &index.images {
        image.blobs().for_each(|blob| layout.put(&blob.bytes));
        layout.put(&image.manifest);
        layout.list(&image.digest, &json!({}));
    }
    layout.put(&index.manifest);
    let signature = layout.refer(&index.images[1].digest, "of a part");
    layout.listed.push(json!({ "mediaType": index.media_type, "digest": index.digest, "size": 1,
        "annotations": { "org.opencontainers.image.ref.name": "v1" } }));
    // And once more, as some list what has a tag.
    layout.listed.push(json!({ "mediaType": index.media_type, "digest": index.digest, "size": 1 }));
    for name in ["multi:v2", "multi"] {
        let dir = tempfile::tempdir().unwrap();
        layout.write(dir.path());
        let said = told(dir.path(), &["import", "layout.tar", "--as", name]).await;
        assert_eq!(said.lines().count(), 2, "{said}");
        let larder = sealed(dir.path());
        let tag = if name == "multi" { "v1" } else { "v2" };
        assert_eq!(get(larder.url(&index.tag_path(tag))).await.expect(200).body, index.manifest);
        for image in &index.images {
            assert_whole(&larder, image).await;
        }
        let referrers =
            get(larder.url(&format!("/v2/library/multi/referrers/{}", index.images[1].digest))).await.expect(200).json();
        assert_eq!(referrers["manifests"][0]["digest"], signature);
    }
}

#[tokio::test]
async fn a_name_without_a_tag_is_that_of_a_repository_for_the_tags_of_a_layout() {
    let upstream = Registry::start().await;
    let images = [7, 8].map(|seed| Image::new(seed).layers(&[1_000]).put(&upstream, "library/app", "any"));
    let mut layout = Layout::of(&images[0]);
    layout.files.append(&mut Layout::of(&images[1]).files);
    for (image, tag) in images.iter().zip(["a", "b"]) {
        layout.list(&image.digest, &json!({ "org.opencontainers.image.ref.name": tag }));
    }
    let dir = tempfile::tempdir().unwrap();
    layout.write(dir.path());
    let said = refused(dir.path(), &["import", "layout.tar", "--as", "app:v1"]).await;
    assert!(said.contains("it has 2 images, which cannot all be called app:v1"), "{said}");
    told(dir.path(), &["import", "layout.tar", "--as", "app"]).await;
    let larder = sealed(dir.path());
    for (image, tag) in images.iter().zip(["a", "b"]) {
        assert_eq!(get(larder.url(&image.tag_path(tag))).await.expect(200).body, image.manifest);
    }
}

/// As many as there are, each with a signature of its own.
async fn import_at_once(dir: &Path, image: &PutImage, signatures: &[&str]) -> Vec<String> {
    let mut digests = Vec::new();
    let mut imports = Vec::new();
    for signature in signatures {
        let mut layout = Layout::of(image);
        layout.list(&image.digest, &json!({ "io.containerd.image.name": "app:v1" }));
        digests.push(layout.refer(&image.digest, signature));
        let own = dir.join(signature);
        std::fs::create_dir(&own).unwrap();
        layout.write(&own);
        imports.push(larder(dir, &["import", own.join("layout.tar").to_str().unwrap(), "--no-pin"]).spawn().unwrap());
    }
    let ended = tokio::task::spawn_blocking(move || imports.iter_mut().all(|import| import.wait().unwrap().success()));
    assert!(ended.await.unwrap());
    digests.sort();
    digests
}

#[tokio::test]
async fn layouts_that_come_in_at_once_lose_nothing_of_each_other() {
    let (_upstream, image) = app(9).await;
    let dir = tempfile::tempdir().unwrap();
    let larder = sealed(dir.path());
    let digests = import_at_once(dir.path(), &image, &["a", "b", "c", "d", "e", "f", "g", "h"]).await;
    let mut found = referrers(&larder, &image.digest).await;
    found.sort();
    assert_eq!(found, digests);
    // What a list was before is no image by itself.
    let said = told(dir.path(), &["ls"]).await;
    assert_eq!(said.lines().filter(|line| line.contains("library/app")).count(), 2, "{said}");
}

#[tokio::test]
async fn a_list_that_is_pinned_stays_so_and_a_bundle_with_a_shorter_one_takes_nothing_from_it() {
    let (_upstream, image) = app(10).await;
    let dir = tempfile::tempdir().unwrap();
    let import = async |signature: &str, more: &[&str]| {
        let mut layout = Layout::of(&image);
        layout.list(&image.digest, &json!({ "io.containerd.image.name": "app:v1" }));
        let digest = layout.refer(&image.digest, signature);
        layout.write(dir.path());
        told(dir.path(), &[&["import", "layout.tar"], more].concat()).await;
        digest
    };
    let first = import("first", &[]).await;
    told(dir.path(), &["export", "app:v1", "-o", "bundle.tar"]).await;
    let second = import("second", &["--no-pin"]).await;
    let list = format!("docker.io/library/app:{}", list_tag(&image.digest));
    let pinned = async || {
        let said = told(dir.path(), &["ls", "--json"]).await;
        let of_list = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).find(|row| row["image"] == list);
        of_list.unwrap_or_else(|| panic!("{said}"))["pinned"].clone()
    };
    assert_eq!(pinned().await, true);
    told(dir.path(), &["import", "bundle.tar"]).await;
    assert_eq!(pinned().await, true);
    assert_eq!(referrers(&sealed(dir.path()), &image.digest).await, [first, second]);
}
