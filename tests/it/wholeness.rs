//! What an image needs to be here, by one rule for all orders: of an index one of its manifests, whole.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{
    Image, MultiArch, PATIENCE, Process, PutIndex, Registry, TestMirror, archive, assert_whole, blob_path, digest_of, entries,
    get, noise, refused, sealed, told,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The names of the images in an archive, and the digests of all that is in it.
fn contents(archive: &Path) -> (Vec<String>, Vec<String>) {
    let all = entries(&fs::read(archive).unwrap());
    let index: Value = serde_json::from_slice(&all[1].1).unwrap();
    let name = |image: &Value| image["annotations"]["io.containerd.image.name"].as_str().unwrap().to_owned();
    let digests = all.iter().filter_map(|(path, _)| Some(path.strip_prefix("blobs/")?.replace('/', ":")));
    (index["manifests"].as_array().unwrap().iter().map(name).collect(), digests.collect())
}

/// One with amd64 of an image whole, and of arm64 no more than the manifest.
async fn half(upstream: &Registry) -> (TestMirror, PutIndex) {
    let index = MultiArch::new(1).put(upstream, "library/multi", "v1");
    let mirror = TestMirror::of(upstream).await;
    assert_eq!(mirror.warm("multi:v1", &["linux/amd64"]).await.failed, []);
    mirror.get(&index.images[1].manifest_path()).await.expect(200);
    mirror.kept(&index.images[1].digest).await;
    (mirror, index)
}

#[tokio::test]
async fn a_platform_of_which_a_part_is_here_is_absent_and_told_of() {
    let upstream = Registry::start().await;
    let (mirror, index) = half(&upstream).await;
    let said = told(mirror.dir(), &["export", "multi:v1", "-o", "bundle.tar"]).await;
    assert!(said.contains(", without linux/arm64, which is not here"), "{said}");
    let (_, digests) = contents(&mirror.dir().join("bundle.tar"));
    assert!(digests.contains(&index.images[0].digest) && !digests.contains(&index.images[1].digest));
    let listed: Value = serde_json::from_str(&told(mirror.dir(), &["ls", "multi", "--json"]).await).unwrap();
    assert_eq!(listed["missing"], 0);

    // Inside, what another delivery has left of it is in nobody's way.
    let bundle = mirror.dir().join("bundle.tar");
    let inside = tempfile::tempdir().unwrap();
    let manifest = blob_path(&index.images[1].digest);
    let list =
        json!({ "manifests": [{ "digest": index.images[1].digest, "annotations": { "io.containerd.image.name": "x:1" } }] });
    let stray = archive(&[(&manifest, &index.images[1].manifest), ("index.json", list.to_string().as_bytes())]);
    fs::write(inside.path().join("stray.tar"), stray).unwrap();
    let said = refused(inside.path(), &["import", "stray.tar"]).await;
    assert!(said.ends_with("is not in the archive, and not here for docker.io/library/x"), "{said}");
    let said = told(inside.path(), &["import", bundle.to_str().unwrap()]).await;
    assert!(said.ends_with(", without 1 of the manifests that it names, pinned\n"), "{said}");
    assert_whole(&sealed(inside.path()), &index.images[0]).await;
}

#[tokio::test]
async fn an_index_alone_is_no_image() {
    let upstream = Registry::start().await;
    let index = MultiArch::new(2).put(&upstream, "library/multi", "v1");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&index.tag_path("v1")).await.expect(200);
    mirror.kept(&index.digest).await;
    let ended = Process::order(mirror.dir(), &["export", "multi:v1", "-o", "bundle.tar"], &[]).await;
    let says = "for no platform it is here whole; `larder pull --platform all docker.io/library/multi:v1` brings all";
    assert!(ended.status.code() == Some(1) && ended.log.contains(says), "{}", ended.log);
    let listed: Value = serde_json::from_str(&told(mirror.dir(), &["ls", "multi", "--json"]).await).unwrap();
    assert_eq!(listed["missing"], 2);
    let path = blob_path(&index.digest);
    let list = json!({ "manifests": [{ "digest": index.digest, "annotations": { "io.containerd.image.name": "multi:v1" } }] });
    let bundle = archive(&[(&path, &index.manifest), ("index.json", list.to_string().as_bytes())]);
    let inside = tempfile::tempdir().unwrap();
    fs::write(inside.path().join("bundle.tar"), bundle).unwrap();
    let said = refused(inside.path(), &["import", "bundle.tar"]).await;
    assert_eq!(
        said,
        "multi:v1: none of the manifests that it names is in the archive whole, or here for docker.io/library/multi"
    );
}

/// They left as if they were blobs, without what they name.
#[tokio::test]
async fn manifests_that_an_index_does_not_call_manifests_are_some_all_the_same() {
    let upstream = Registry::start().await;
    let images = [3, 4].map(|seed| Image::new(seed).layers(&[2_000]).put_untagged(&upstream, "library/multi"));
    let of = |n: usize| json!({ "digest": images[n].digest, "size": images[n].manifest.len() });
    let mut other = of(1);
    other["mediaType"] = "application/vnd.example+json".into();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [of(0), other] }).to_string();
    upstream.put_manifest("library/multi", Some("v1"), INDEX, index);
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("multi:v1", &["all"]).await.failed, []);
    told(mirror.dir(), &["export", "multi:v1", "-o", "bundle.tar"]).await;
    let (_, digests) = contents(&mirror.dir().join("bundle.tar"));
    for image in &images {
        assert!(image.blobs().all(|blob| digests.contains(&blob.digest)));
    }
}

/// Each was gone through as often as it was named: for years.
#[tokio::test]
async fn however_often_an_index_names_the_same_it_is_looked_at_once() {
    let upstream = Registry::start().await;
    let image = Image::new(5).layers(&[2_000]).put_untagged(&upstream, "library/evil");
    let mut inner = json!({ "digest": image.digest, "size": image.manifest.len() });
    for tag in ["b", "v1"] {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": vec![inner; 5_000] }).to_string();
        let digest = upstream.put_manifest("library/evil", Some(tag), INDEX, index.clone());
        inner = json!({ "digest": digest, "size": index.len() });
    }
    let mirror = TestMirror::of(&upstream).await;
    let pulled = told(mirror.dir(), &["pull", "--pin", "evil:v1", "--platform", "all"]);
    let said = tokio::time::timeout(PATIENCE, pulled).await.unwrap();
    assert!(said.ends_with("pinned\n"), "{said}");
}

#[tokio::test]
async fn what_is_pinned_by_the_digest_of_a_platform_is_shown_and_exported() {
    let upstream = Registry::start().await;
    let index = MultiArch::new(6).put(&upstream, "library/multi", "v1");
    Image::new(7).layers(&[1_000]).put(&upstream, "library/loose", "v1");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("multi:v1", &["all"]).await.failed, []);
    assert_eq!(mirror.warm("loose:v1", &[]).await.failed, []);
    told(mirror.dir(), &["pin", &format!("multi@{}", index.images[0].digest)]).await;
    let listed = told(mirror.dir(), &["ls"]).await;
    let row = listed.lines().find(|line| line.contains(&index.images[0].digest[7..19])).unwrap();
    assert!(row.ends_with("yes"), "{listed}");
    told(mirror.dir(), &["export", "--pinned", "-o", "bundle.tar"]).await;
    let (names, digests) = contents(&mirror.dir().join("bundle.tar"));
    assert_eq!(names, [format!("docker.io/library/multi@{}", index.images[0].digest)]);
    assert!(digests.contains(&index.images[0].digest) && !digests.contains(&index.images[1].digest));
}

#[tokio::test]
async fn a_tag_that_has_moved_since_it_was_pinned_leaves_by_its_name_as_it_was_then() {
    let upstream = Registry::start().await;
    let old = Image::new(8).layers(&[1_000]).put(&upstream, "library/app", "v1");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    told(mirror.dir(), &["pin", "app:v1"]).await;
    let new = Image::new(9).layers(&[1_000]).put(&upstream, "library/app", "v1");
    told(mirror.dir(), &["refresh", "app:v1"]).await;
    assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    told(mirror.dir(), &["export", "--pinned", "-o", "pinned.tar"]).await;
    let (names, digests) = contents(&mirror.dir().join("pinned.tar"));
    assert_eq!(names, ["docker.io/library/app:v1"]);
    assert!(digests.contains(&old.digest) && !digests.contains(&new.digest));
    told(mirror.dir(), &["export", "--all", "-o", "all.tar"]).await;
    let (names, digests) = contents(&mirror.dir().join("all.tar"));
    assert_eq!(names, ["docker.io/library/app:v1".into(), format!("docker.io/library/app@{}", old.digest)]);
    assert!(digests.contains(&old.digest) && digests.contains(&new.digest));
}

/// What was of no algorithm that larder knows was left out, and the rest called whole.
#[tokio::test]
async fn an_image_that_needs_what_larder_cannot_have_is_not_said_to_be_here() {
    let upstream = Registry::start().await;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let config = upstream.put_blob("library/odd", "{}");
    let odd = format!("blake3:{}", "0".repeat(64));
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": { "digest": config, "size": 2 },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": odd, "size": 9 }] });
    let digest = upstream.put_manifest("library/odd", Some("v1"), media_type, manifest.to_string());
    let mirror = TestMirror::of(&upstream).await;
    let url = format!("upstream.\"docker.io\".url={}", upstream.url());
    let says = format!("{digest}: it needs {odd:?}, and larder knows only sha256 and sha512");
    let alone = tempfile::tempdir().unwrap();
    for dir in [mirror.dir(), alone.path()] {
        let ended = Process::order(dir, &["pull", "odd:v1"], &[&url]).await;
        assert!(ended.status.code() == Some(1) && ended.log.ends_with(&format!("odd:v1: {says}\n")), "{}", ended.log);
    }
    let ended = Process::order(mirror.dir(), &["export", "odd:v1", "-o", "bundle.tar"], &[]).await;
    assert!(ended.status.code() == Some(1) && ended.log.contains(&says), "{}", ended.log);
    let list = json!({ "manifests": [{ "digest": digest, "annotations": { "io.containerd.image.name": "odd:v1" } }] });
    let (manifest, config) = ((blob_path(&digest), manifest.to_string()), blob_path(&config));
    let files: [(&str, &[u8]); 3] =
        [(&manifest.0, manifest.1.as_bytes()), (&config, b"{}"), ("index.json", &list.to_string().into_bytes())];
    fs::write(alone.path().join("bundle.tar"), archive(&files)).unwrap();
    assert_eq!(refused(alone.path(), &["import", "bundle.tar"]).await, format!("odd:v1: {says}"));
}

/// It has no other kind of manifest that names its layers otherwise: it was whole without any.
#[tokio::test]
async fn an_image_of_schema_1_is_here_with_its_layers() {
    let upstream = Registry::start().await;
    let layers = [1, 2].map(|seed| noise(seed, 3_000));
    let sums = layers.each_ref().map(|layer| json!({ "blobSum": upstream.put_blob("library/old", layer.clone()) }));
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let manifest = json!({ "schemaVersion": 1, "name": "library/old", "tag": "v1", "architecture": "amd64", "fsLayers": sums,
        "history": [{ "v1Compatibility": "{}" }, { "v1Compatibility": "{}" }], "signatures": [] });
    let manifest = manifest.to_string();
    upstream.put_manifest("library/old", Some("v1"), media_type, manifest.clone());
    let mirror = TestMirror::of(&upstream).await;
    let said = told(mirror.dir(), &["pull", "old:v1", "--platform", "all"]).await;
    assert!(said.contains("in 3 parts"), "{said}");
    told(mirror.dir(), &["export", "old:v1", "-o", "bundle.tar"]).await;
    let inside = tempfile::tempdir().unwrap();
    told(inside.path(), &["import", mirror.dir().join("bundle.tar").to_str().unwrap()]).await;
    let larder = sealed(inside.path());
    let answer = get(larder.url("/v2/library/old/manifests/v1")).await.expect(200);
    assert!(answer.body == manifest && answer.header("content-type") == Some(media_type));
    for layer in layers {
        let path = format!("/v2/library/old/blobs/{}", digest_of(&layer));
        assert!(get(larder.url(&path)).await.expect(200).body == layer);
    }
}
