//! `larder export` and `larder import`: images are carried from one cache to another, whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Ended, Image, MultiArch, Process, Registry, TestMirror, digest_of};

/// Runs a command that is to end well; returns what it says.
async fn told(dir: &Path, arguments: &[&str]) -> String {
    let Ended { status, stdout, log } = Process::order(dir, arguments, &[]).await;
    assert!(status.success(), "{arguments:?}: {log}");
    stdout
}

/// Runs a command that is to fail; returns the one line that says why.
async fn refused(dir: &Path, arguments: &[&str]) -> String {
    let Ended { status, stdout, log } = Process::order(dir, arguments, &[]).await;
    assert_eq!((status.code(), log.lines().count()), (Some(1), 1), "{arguments:?}: {stdout}{log}");
    log.trim_end().strip_prefix("larder: ").unwrap_or_else(|| panic!("{log}")).to_owned()
}

async fn pulled(dir: &Path, upstream: &Registry, arguments: &[&str]) {
    let settings = format!("upstream.\"docker.io\".url={}", upstream.url());
    let ended = Process::order(dir, &[&["pull"], arguments].concat(), &[&settings]).await;
    assert!(ended.status.success(), "{}", ended.log);
}

/// The files of a plain archive, in its order.
fn entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut at) = (Vec::new(), 0);
    let text = |field: &[u8]| String::from_utf8(field.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap();
    while archive[at] != 0 {
        let header = &archive[at..at + 512];
        assert_eq!((text(&header[108..116]), text(&header[136..148])), ("0000000".into(), "00000000000".into()));
        let size = usize::from_str_radix(&text(&header[124..136]), 8).unwrap();
        found.push((text(&header[..100]), archive[at + 512..at + 512 + size].to_vec()));
        at += 512 + size.next_multiple_of(512);
    }
    assert!(archive.len() == at + 1024 && archive[at..].iter().all(|byte| *byte == 0));
    found
}

fn damage(cache: &Path, digest: &str) {
    let hex = &digest["sha256:".len()..];
    let file = cache.join("blobs/sha256").join(&hex[..2]).join(hex);
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
}

// === export ===

#[tokio::test]
async fn an_archive_is_a_layout_that_docker_loads_and_always_the_same() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[70_000, 3_000]).put(&upstream, "library/app", "v1");
    let index = MultiArch::new(2).put(&upstream, "library/multi", "v1");
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pulled(one.path(), &upstream, &["app:v1", "multi:v1", "--platform", "linux/arm64,linux/amd64"]).await;
    for name in ["multi:v1", "app:v1"] {
        pulled(other.path(), &upstream, &[name, "--platform", "all"]).await;
    }
    let said = told(one.path(), &["export", "app:v1", "multi:v1", "-o", "a.tar"]).await;
    told(other.path(), &["export", "--all", "-o", "b.tar"]).await;
    let archive = fs::read(one.path().join("a.tar")).unwrap();
    assert!(archive == fs::read(other.path().join("b.tar")).unwrap(), "the same images give the same bytes");
    let sum = digest_of(&archive);
    assert!(said.contains(&format!("{}  a.tar  ", &sum["sha256:".len()..])), "{said}");

    let all = entries(&archive);
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..3], ["oci-layout", "index.json", "manifest.json"]);
    assert!(names[3..].is_sorted() && names.len() == 3 + 4 + 7);
    let files: BTreeMap<&str, &[u8]> = all.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    for (name, bytes) in all.iter().skip(3) {
        assert_eq!(digest_of(bytes).replace(':', "/"), name["blobs/".len()..]);
    }
    let layout: Value = serde_json::from_slice(files["index.json"]).unwrap();
    assert_eq!(layout["manifests"][1]["digest"], index.digest);
    let called = &layout["manifests"][0]["annotations"];
    assert_eq!(called["io.containerd.image.name"], "docker.io/library/app:v1");
    assert_eq!(called["org.opencontainers.image.ref.name"], "docker.io/library/app:v1");
    let loaded: Value = serde_json::from_slice(files["manifest.json"]).unwrap();
    let app = loaded.as_array().unwrap().iter().find(|image| image["RepoTags"][0] == "docker.io/library/app:v1").unwrap();
    let path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    assert_eq!(app["Config"], path(&image.config.digest));
    assert_eq!(app["Layers"], serde_json::json!([path(&image.layers[0].digest), path(&image.layers[1].digest)]));
    assert_eq!(loaded.as_array().unwrap().len(), 2, "of an index that platform which Docker takes to be meant");
}

#[tokio::test]
async fn an_index_leaves_as_it_was_also_where_a_part_of_it_is_here() {
    let upstream = Registry::start().await;
    let index = MultiArch::new(3).put(&upstream, "library/multi", "v1");
    let dir = tempfile::tempdir().unwrap();
    pulled(dir.path(), &upstream, &["multi:v1", "--platform", "linux/arm64"]).await;
    let said = told(dir.path(), &["export", "multi:v1", "-o", "bundle.tar"]).await;
    assert!(said.contains(", without linux/amd64, which is not here"), "{said}");
    let all = entries(&fs::read(dir.path().join("bundle.tar")).unwrap());
    let bytes = |digest: &str| all.iter().find(|(name, _)| name.ends_with(&digest[7..])).map(|(_, bytes)| bytes.clone());
    assert_eq!(bytes(&index.digest).unwrap(), index.manifest);
    assert_eq!([bytes(&index.images[0].digest).is_some(), bytes(&index.images[1].digest).is_some()], [false, true]);
}

#[tokio::test]
async fn it_goes_to_a_pipe_to_a_directory_and_to_several_files_all_the_same() {
    let upstream = Registry::start().await;
    let image = Image::new(4).layers(&[300_000]).put(&upstream, "library/app", "v1");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    let dir = mirror.cache_dir().parent().unwrap().to_path_buf();
    told(&dir, &["export", "app:v1", "-o", "bundle.tar"]).await;
    let archive = fs::read(dir.join("bundle.tar")).unwrap();
    let said = told(&dir, &["export", "app:v1", "-o", "split.tar", "--split", "100KiB"]).await;
    let parts: Vec<Vec<u8>> = (0..4).filter_map(|n| fs::read(dir.join(format!("split.tar.{n:03}"))).ok()).collect();
    assert!(parts.len() == 3 + usize::from(archive.len() > 300 << 10) && parts[0].len() == 100 << 10, "{said}");
    assert!(parts.concat() == archive);
    fs::create_dir(dir.join("layout")).unwrap();
    told(&dir, &["export", "app:v1", "-o", "layout"]).await;
    for (name, bytes) in entries(&archive) {
        assert!(fs::read(dir.join("layout").join(name)).unwrap() == bytes);
    }
    let said = refused(&dir, &["export", "app:v1", "-o", "layout"]).await;
    assert_eq!(said, "layout: the directory is not empty");
    let program = env!("CARGO_BIN_EXE_larder");
    let cache = format!("cache.dir={}", dir.join("cache").display());
    let piped = tokio::process::Command::new(program).args(["export", "app:v1", "-o", "-", "--set", &cache]).output().await;
    let piped = piped.unwrap();
    assert!(piped.stdout == archive, "{}", String::from_utf8_lossy(&piped.stderr));
    assert!(mirror.holds(&image.digest));
}

#[tokio::test]
async fn what_is_damaged_or_not_here_is_told_of_and_no_file_appears() {
    let upstream = Registry::start().await;
    let image = Image::new(5).layers(&[70_000, 3_000]).put(&upstream, "library/app", "v1");
    let other = Image::new(6).layers(&[70_000]).put(&upstream, "library/other", "v1");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    mirror.get(&other.tag_path("v1")).await.expect(200);
    mirror.kept(&other.digest).await;
    let dir = mirror.cache_dir().parent().unwrap().to_path_buf();
    damage(&mirror.cache_dir(), &image.layers[0].digest);
    let said = refused(&dir, &["export", "app:v1", "-o", "bundle.tar"]).await;
    assert!(said.starts_with(&format!("{}: it is damaged; ", image.layers[0].digest)), "{said}");
    assert!(!mirror.holds(&image.layers[0].digest), "it is set aside");
    let ended = Process::order(&dir, &["export", "none:v1", "other:v1", "-o", "bundle.tar"], &[]).await;
    for line in [
        "none:v1: it is not in the cache; ",
        "is not here; `larder pull docker.io/library/other:v1` brings it",
        "there is nothing to export",
    ] {
        assert!(ended.log.contains(line), "{line}: {}", ended.log);
    }
    let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("bundle")), "{left:?}");
}
