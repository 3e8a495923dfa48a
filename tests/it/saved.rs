//! What others have saved comes in by `larder import`: docker save of any age, crane, the storage of a registry, compressed or not.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::{
    Image, MultiArch, Process, Registry, archive, assert_sound, blob_path, changed, digest_of, files, get, larder, noise,
    refused, sealed, sha512_of, told,
};

/// What Docker calls a layer, from 1.10 on for whoever knows no better.
fn id(n: u64) -> String {
    digest_of(format!("layer {n}").as_bytes())["sha256:".len()..].to_owned()
}

fn link(from: &str, to: &str) -> Vec<u8> {
    changed(from, 0, |header| {
        header[156] = b'2';
        header[157..157 + to.len()].copy_from_slice(to.as_bytes());
    })
}

fn files_of(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<(&str, &[u8])> = entries.iter().map(|(path, bytes)| (&**path, &bytes[..])).collect();
    archive(&files)
}

/// One archive of two.
fn joined(one: &[u8], other: &[u8]) -> Vec<u8> {
    [&one[..one.len() - 1024], other].concat()
}

fn write(dir: &Path, archive: &[u8]) {
    fs::write(dir.join("saved.tar"), archive).unwrap();
}

fn is_left_empty(dir: &Path) -> bool {
    ["blobs", "partial", "quarantine"].iter().all(|left| files(&dir.join("cache").join(left)).is_empty())
}

// === docker save, 1.10 to 24 ===

/// Three layers of which the last is the first once more, which Docker writes as a link; in the order of their IDs.
struct Saved {
    layers: [Bytes; 2],
    config: Vec<u8>,
    listed: Vec<u8>,
}

impl Saved {
    fn new(seed: u64) -> Self {
        let layers = [noise(seed, 300_000), noise(seed + 1, 4_000)];
        let [first, second] = [digest_of(&layers[0]), digest_of(&layers[1])];
        let rootfs = json!({ "type": "layers", "diff_ids": [first, second, first] });
        let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs }).to_string();
        let name = format!("{}.json", &digest_of(config.as_bytes())[7..]);
        let paths: Vec<String> = (0..3).map(|n| format!("{}/layer.tar", id(n))).collect();
        let listed = json!([{ "Config": name, "RepoTags": ["mine/app:v1", "mine/app:v2"], "Layers": paths }]).to_string();
        Self { layers, config: config.into(), listed: listed.into() }
    }

    fn archive(&self) -> Vec<u8> {
        let name = format!("{}.json", &digest_of(&self.config)[7..]);
        let mut entries = vec![(name, self.config.clone())];
        for n in 0..2 {
            let id = id(n as u64);
            entries.push((format!("{id}/VERSION"), b"1.0".to_vec()));
            entries.push((format!("{id}/json"), json!({ "id": id }).to_string().into()));
            entries.push((format!("{id}/layer.tar"), self.layers[n].to_vec()));
        }
        entries.push(("manifest.json".into(), self.listed.clone()));
        entries.push(("repositories".into(), json!({ "mine/app": { "v1": id(2), "v2": id(2) } }).to_string().into()));
        // It may stand before what it leads to.
        [link(&format!("{}/layer.tar", id(2)), &format!("../{}/layer.tar", id(0))), files_of(&entries)].concat()
    }
}

#[tokio::test]
async fn what_docker_saved_before_25_is_an_image_with_the_layers_that_its_config_names() {
    let saved = Saved::new(1);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &saved.archive());
    let said = told(dir.path(), &["import", "saved.tar"]).await;
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("docker.io/mine/app:v1  ") && lines[0].contains(" in 4 parts, pinned"), "{said}");
    assert!(lines[1].starts_with("docker.io/mine/app:v2  "), "{said}");
    assert_eq!(files(&dir.path().join("cache/partial")).len(), 0);
    assert_sound(&dir.path().join("cache"));
    let larder = sealed(dir.path());
    let manifest = get(larder.url("/v2/mine/app/manifests/v2")).await.expect(200).json();
    let [first, second] = saved.layers.each_ref().map(|layer| digest_of(layer));
    let digests: Vec<&str> =
        manifest["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].as_str().unwrap()).collect();
    assert_eq!(digests, [&first, &second, &first]);
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar");
    assert_eq!((&manifest["layers"][0]["size"], &manifest["config"]["size"]), (&300_000.into(), &saved.config.len().into()));
    assert!(get(larder.url(&format!("/v2/mine/app/blobs/{first}"))).await.expect(200).body == saved.layers[0]);
    // Beside a larder that serves, once more; and where a layer is damaged here.
    let said = told(dir.path(), &["import", "saved.tar"]).await;
    assert!(said.lines().all(|line| line.contains("was here already")), "{said}");
    let file = dir.path().join("cache/blobs/sha256").join(&first[7..9]).join(&first[7..]);
    fs::write(&file, noise(99, 300_000)).unwrap();
    let said = told(dir.path(), &["import", "saved.tar"]).await;
    assert!(said.contains("added 293.0 KiB in 1 parts, 3 were here already"), "{said}");
    assert!(fs::read(&file).unwrap() == saved.layers[0]);
    assert_eq!(files(&dir.path().join("cache/partial")).len(), 0);
}

/// Nothing else says what they should be.
#[tokio::test]
async fn layers_that_the_config_does_not_name_are_refused_and_leave_nothing() {
    let saved = Saved::new(3);
    let dir = tempfile::tempdir().unwrap();
    for n in 0..2 {
        let mut layers = saved.layers.clone();
        layers[n] = noise(50, layers[n].len());
        write(
            dir.path(),
            &Saved { layers: layers.clone(), config: saved.config.clone(), listed: saved.listed.clone() }.archive(),
        );
        let said = refused(dir.path(), &["import", "saved.tar"]).await;
        let says =
            format!("its layer {} is not the one that its config {} names", digest_of(&layers[n]), digest_of(&saved.config));
        assert!(said.ends_with(&says), "{said}");
        assert!(is_left_empty(dir.path()));
    }
}

#[tokio::test]
async fn two_who_import_the_same_of_an_older_docker_at_once_both_have_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &Saved::new(5).archive());
    let _larder = sealed(dir.path());
    let mut imports: Vec<_> = (0..4).map(|_| larder(dir.path(), &["import", "saved.tar"]).spawn().unwrap()).collect();
    let ended = tokio::task::spawn_blocking(move || imports.iter_mut().all(|import| import.wait().unwrap().success()));
    assert!(ended.await.unwrap());
    assert_eq!(files(&dir.path().join("cache/blobs")).len(), 4);
    assert_eq!(files(&dir.path().join("cache/partial")).len(), 0);
    assert_sound(&dir.path().join("cache"));
}

// === docker save, before 1.10 ===

/// What it said of the `n`-th layer, the lowest being 0.
fn described(n: u64) -> Value {
    let mut said = json!({
        "id": id(n), "created": format!("2015-0{}-01T00:00:00Z", n + 1), "docker_version": "1.6.0", "Size": 7,
        "container_config": { "Cmd": ["/bin/sh", "-c", format!("make {n}")] }, "config": { "Cmd": ["/run"], "Env": ["N=1"] },
    });
    if n > 0 {
        said["parent"] = id(n - 1).into();
    }
    said
}

fn old(layers: &[Bytes], more: &[(&str, Value)]) -> Vec<u8> {
    let mut entries = Vec::new();
    for (n, layer) in (0..).zip(layers) {
        entries.push((format!("{}/VERSION", id(n)), b"1.0".to_vec()));
        entries.push((format!("{}/json", id(n)), described(n).to_string().into()));
        entries.push((format!("{}/layer.tar", id(n)), layer.to_vec()));
    }
    entries.extend(more.iter().map(|(path, value)| ((*path).to_owned(), value.to_string().into())));
    files_of(&entries)
}

#[tokio::test]
async fn what_docker_saved_before_1_10_gets_the_config_that_docker_would_make_of_it() {
    let layers = [noise(10, 70_000), noise(11, 1_000), noise(12, 2_000)];
    let names = json!({ "old": { "latest": id(2), "base": id(0) }, "ghcr.io/o/x": { "1": id(2) } });
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &old(&layers, &[("repositories", names)]));
    let said = told(dir.path(), &["import", "saved.tar"]).await;
    for name in ["docker.io/library/old:latest  ", "docker.io/library/old:base  ", "ghcr.io/o/x:1  "] {
        assert!(said.lines().any(|line| line.starts_with(name)), "{said}");
    }
    let larder = sealed(dir.path());
    let manifest = get(larder.url("/v2/library/old/manifests/latest")).await.expect(200).json();
    let digests: Vec<String> = layers.iter().map(|layer| digest_of(layer)).collect();
    let listed: Vec<&Value> = manifest["layers"].as_array().unwrap().iter().map(|layer| &layer["digest"]).collect();
    assert_eq!(listed, digests.iter().collect::<Vec<_>>());
    let config = manifest["config"]["digest"].as_str().unwrap();
    let config = get(larder.url(&format!("/v2/library/old/blobs/{config}"))).await.expect(200).json();
    let history = |n: u64| json!({ "created": described(n)["created"], "created_by": format!("/bin/sh -c make {n}") });
    let expected = json!({
        "architecture": "amd64", "os": "linux", "created": described(2)["created"], "docker_version": "1.6.0",
        "container_config": described(2)["container_config"], "config": described(2)["config"],
        "rootfs": { "type": "layers", "diff_ids": digests }, "history": [history(0), history(1), history(2)],
    });
    assert_eq!(config, expected);
    let manifest = get(larder.url("/v2/library/old/manifests/base")).await.expect(200).json();
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    assert!(get(larder.url(&format!("/v2/library/old/blobs/{}", digests[1]))).await.expect(200).body == layers[1]);
    let said = told(dir.path(), &["import", "saved.tar", "--no-pin"]).await;
    assert!(said.lines().count() == 3 && said.lines().all(|line| line.ends_with("was here already")), "{said}");
}

#[tokio::test]
async fn one_that_was_saved_by_its_id_is_the_uppermost_and_gets_its_name_by_as() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &old(&[noise(13, 1_000), noise(14, 1_000)], &[]));
    let said = refused(dir.path(), &["import", "saved.tar"]).await;
    assert!(said.ends_with("has no name; --as gives it one"), "{said}");
    assert!(is_left_empty(dir.path()));
    let said = told(dir.path(), &["import", "saved.tar", "--as", "mine/old:1"]).await;
    assert!(said.starts_with("docker.io/mine/old:1  ") && said.contains(" in 4 parts"), "{said}");
}

#[tokio::test]
async fn what_is_wrong_with_what_an_older_docker_saved_is_said_in_a_line_and_leaves_nothing() {
    let layers = [noise(15, 5_000), noise(16, 1_000)];
    let named = |id: &str| ("repositories", json!({ "old": { "latest": id } }));
    let layer = |n: u64| format!("{}/layer.tar", id(n));
    let without = |path: &str| {
        let mut entries = vec![("repositories".to_owned(), named(&id(1)).1.to_string().into_bytes())];
        for (n, bytes) in (0..).zip(&layers) {
            entries.push((format!("{}/json", id(n)), described(n).to_string().into()));
            entries.push((layer(n), bytes.to_vec()));
        }
        entries.retain(|(name, _)| name != path);
        files_of(&entries)
    };
    let mut circle = described(0);
    circle["parent"] = id(0).into();
    let circle = [(format!("{}/json", id(0)), circle.to_string().into()), (layer(0), layers[0].to_vec())];
    let saved = Saved::new(20).archive();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&layers[0]).unwrap();
    for (bytes, says) in [
        (without(&layer(0)), format!("\"{}\" is not in it", layer(0))),
        (without(&format!("{}/json", id(0))), format!("\"{}/json\" is not in it", id(0))),
        (old(&layers, &[named(&id(7))]), format!("\"{}\" is not in it", layer(7))),
        (old(&layers, &[named("../../etc/passwd")]), "\"../../etc/passwd/layer.tar\" is not in it".into()),
        (files_of(&circle), "it has no image: ".into()),
        (
            joined(&files_of(&circle), &files_of(&[("repositories".into(), named(&id(0)).1.to_string().into())])),
            "lies on more than 200 layers".into(),
        ),
        ([link(&layer(0), &format!("../{}", layer(0))), saved[512..].to_vec()].concat(), "is not in it".into()),
        (archive(&[(&layer(0), &gz.finish().unwrap())]), "it is compressed, and so no layer that docker save wrote".into()),
        (archive(&[(&layer(0), &layers[0]), ("repositories", b"[]")]), "its repositories does not list images".into()),
        (archive(&[(&format!("{}/json", id(0)), b"{"), (&layer(0), &layers[0])]), "json is no JSON".into()),
        (files_of(&[(layer(0), layers[0].to_vec())]), "it has no image: ".into()),
        (saved[..saved.len() / 2].to_vec(), "it ends in the middle".into()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &bytes);
        let said = refused(dir.path(), &["import", "saved.tar"]).await;
        assert!(said.contains(&says), "{says}: {said}");
        assert!(is_left_empty(dir.path()), "{says}");
    }
}

// === others ===

#[tokio::test]
async fn what_crane_writes_has_layers_that_are_compressed() {
    let upstream = Registry::start().await;
    let image = Image::new(30).layers(&[5_000]).put(&upstream, "library/app", "v1");
    let [config, layer] = [image.config.digest.clone(), format!("{}.tar.gz", &image.layers[0].digest[7..])];
    let listed = json!([{ "Config": config, "RepoTags": ["mine/app:v1"], "Layers": [layer] }]).to_string();
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &archive(&[(&config, &image.config.bytes), (&layer, &image.layers[0].bytes), ("manifest.json", listed.as_bytes())]),
    );
    told(dir.path(), &["import", "saved.tar"]).await;
    let larder = sealed(dir.path());
    let manifest = get(larder.url("/v2/mine/app/manifests/v1")).await.expect(200).json();
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
}

#[tokio::test]
async fn an_archive_may_be_compressed_by_gzip_and_for_others_it_is_said_what_to_do() {
    let saved = Saved::new(31).archive();
    let dir = tempfile::tempdir().unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&saved).unwrap();
    let gz = gz.finish().unwrap();
    write(dir.path(), &gz);
    let mut piped = larder(dir.path(), &["import", "-"]).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(&gz).unwrap();
    assert!(piped.wait().unwrap().success());
    let said = told(dir.path(), &["import", "saved.tar"]).await;
    assert!(said.lines().count() == 2 && said.lines().all(|line| line.contains("was here already")), "{said}");
    for (begins, by) in [(&b"\x28\xb5\x2f\xfd\x04\x00"[..], "zstd"), (b"\xfd7zXZ\x00", "xz"), (b"BZh91AY", "bzip2")] {
        write(dir.path(), begins);
        let said = refused(dir.path(), &["import", "saved.tar"]).await;
        let says = format!("it is compressed by {by}; `{by} -dc saved.tar | larder import -` reads it");
        assert!(said.ends_with(&says), "{said}");
    }
}

#[tokio::test]
async fn digests_of_sha512_are_verified_and_served_and_others_are_not_known() {
    let layer = noise(32, 70_000);
    let config = json!({ "architecture": "amd64", "os": "linux" }).to_string();
    let of = |digest: &str, size: usize, kind: &str| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": of(&sha512_of(config.as_bytes()), config.len(), "config.v1+json"),
        "layers": [of(&sha512_of(&layer), layer.len(), "layer.v1.tar")],
    });
    let manifest = manifest.to_string();
    let bundle = |digest: &str, layer: &[u8], called: &str| {
        let list = json!({ "manifests": [{ "digest": digest, "annotations": { "io.containerd.image.name": called } }] });
        let list = list.to_string();
        let path = |bytes: &[u8]| blob_path(&sha512_of(bytes));
        archive(&[
            (&path(config.as_bytes()), config.as_bytes()),
            (&blob_path(&sha512_of(&noise(32, 70_000))), layer),
            (&path(manifest.as_bytes()), manifest.as_bytes()),
            ("index.json", list.as_bytes()),
        ])
    };
    let digest = sha512_of(manifest.as_bytes());
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &bundle(&digest, &noise(33, 70_000), "app:v1"));
    let said = refused(dir.path(), &["import", "saved.tar"]).await;
    assert!(said.ends_with("its bytes are not those that its name promises"), "{said}");
    write(dir.path(), &bundle(&digest, &layer, "app:v1"));
    told(dir.path(), &["import", "saved.tar"]).await;
    let larder = sealed(dir.path());
    for reference in ["v1", &digest] {
        assert_eq!(get(larder.url(&format!("/v2/library/app/manifests/{reference}"))).await.expect(200).body, manifest);
    }
    assert!(get(larder.url(&format!("/v2/library/app/blobs/{}", sha512_of(&layer)))).await.expect(200).body == layer);
    let ended = Process::order(dir.path(), &["export", "app:v1", "-o", "bundle.tar"], &[]).await;
    assert!(ended.status.code() == Some(1) && ended.log.contains("only what has a sha256 digest is exported"), "{}", ended.log);
    write(dir.path(), &bundle(&format!("blake3:{}", "0".repeat(64)), &layer, "app:v2"));
    let said = refused(dir.path(), &["import", "saved.tar"]).await;
    assert!(said.ends_with("its index.json has a manifest without a digest that larder knows: sha256 or sha512"), "{said}");
}

/// Who pins digests pulls what no tag leads to any more.
#[tokio::test]
async fn of_a_registry_also_what_no_tag_leads_to_comes_but_no_part_of_another_by_itself() {
    let upstream = Registry::start().await;
    let tagged = MultiArch::new(40).put(&upstream, "org/app", "v2");
    let lost = MultiArch::new(41).put(&upstream, "org/app", "v1");
    let alone = Image::new(42).layers(&[2_000]).put_untagged(&upstream, "org/app");
    let elsewhere = tagged.images[0].clone();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("storage/docker/registry/v2");
    let put = |path: String, bytes: &[u8]| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let data = |digest: &str| format!("blobs/sha256/{}/{}/data", &digest[7..9], &digest[7..]);
    let revision = |repository: &str, digest: &str| {
        put(format!("repositories/{repository}/_manifests/revisions/sha256/{}/link", &digest[7..]), digest.as_bytes());
    };
    for image in tagged.images.iter().chain(&lost.images).chain([&alone]) {
        put(data(&image.digest), &image.manifest);
        image.blobs().for_each(|blob| put(data(&blob.digest), &blob.bytes));
        revision("org/app", &image.digest);
    }
    for index in [&tagged, &lost] {
        put(data(&index.digest), &index.manifest);
        revision("org/app", &index.digest);
    }
    revision("org/copy", &elsewhere.digest);
    put("repositories/org/app/_manifests/tags/v2/current/link".into(), tagged.digest.as_bytes());
    let said = told(dir.path(), &["import", "storage", "--as", "quay.io"]).await;
    let names: Vec<&str> = said.lines().map(|line| line.split("  ").next().unwrap()).collect();
    let mut expected = vec![
        "quay.io/org/app:v2".to_owned(),
        format!("quay.io/org/app@{}", lost.digest),
        format!("quay.io/org/app@{}", alone.digest),
        format!("quay.io/org/copy@{}", elsewhere.digest),
    ];
    // The last two come as the directory has them.
    expected[2..].sort();
    let mut sorted = names.clone();
    sorted[2..].sort_unstable();
    assert_eq!(sorted, expected, "{said}");
    let larder = sealed(dir.path());
    for image in lost.images.iter().chain([&alone]) {
        let path = format!("/v2/quay.io/org/app/manifests/{}", image.digest);
        assert_eq!(get(larder.url(&path)).await.expect(200).body, image.manifest);
    }
    get(larder.url(&format!("/v2/quay.io/org/copy/manifests/{}", tagged.images[1].digest))).await.expect(404);
}
