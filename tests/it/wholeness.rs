//! What an image needs to be here, by one rule for all orders: of an index one of its manifests, whole.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{
    Image, MultiArch, PATIENCE, Process, PutIndex, Registry, TestMirror, archive, assert_whole, blob_path, entries, refused,
    sealed, told,
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
    assert!(said.ends_with("is not in the archive, and not here"), "{said}");
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
    assert_eq!(said, "multi:v1: none of the manifests that it names is in the archive whole, or here");
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
