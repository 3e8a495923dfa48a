//! What is pinned is never evicted.

use std::path::Path;

use larder::store::Operation;
use larder::store::faults::Fault;
use rustix::io::Errno;

use crate::support::{self, Ended, Image, Process, PutImage, Registry, StoppedMirror, TestMirror, assert_booked, get};

const MIB: usize = 1 << 20;

async fn order(mirror: &TestMirror, arguments: &[&str]) -> Ended {
    Process::order(mirror.dir(), arguments, &[]).await
}

async fn told(mirror: &TestMirror, arguments: &[&str]) -> String {
    support::told(mirror.dir(), arguments).await
}

/// One whose cache has room for some 14 MiB.
fn small(upstream: &Registry) -> StoppedMirror {
    TestMirror::builder().upstream("docker.io", upstream).set("cache.max_size = \"16MiB\"").set("cache.min_free = \"0%\"")
}

fn is_whole(mirror: &TestMirror, image: &PutImage) -> bool {
    mirror.holds(&image.digest) && image.blobs().all(|blob| mirror.holds(&blob.digest))
}

/// Pulls images that together are larger than the cache.
async fn crowd(mirror: &TestMirror, upstream: &Registry, seed: u64) {
    for n in 0..10 {
        let image = Image::new(seed + n).layers(&[2 * MIB]).put(upstream, &format!("library/other{seed}"), &n.to_string());
        mirror.pull(&image, &n.to_string()).await;
    }
}

#[tokio::test]
async fn a_pinned_image_outlives_every_crowd_and_a_restart_until_it_is_unpinned() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[3 * MIB]).put(&upstream, "library/app", "v1");
    let mirror = small(&upstream).start().await;
    mirror.pull(&image, "v1").await;
    let said = told(&mirror, &["pin", "app:v1"]).await;
    assert_eq!(said, format!("docker.io/library/app:v1 is pinned ({})\n", &image.digest[7..19]));
    crowd(&mirror, &upstream, 100).await;
    assert!(is_whole(&mirror, &image));
    assert!(told(&mirror, &["ls", "app"]).await.lines().nth(1).unwrap().ends_with("yes"));

    let mirror = mirror.stop().await.start().await;
    crowd(&mirror, &upstream, 200).await;
    assert!(is_whole(&mirror, &image));
    // Nor does it matter that nobody has written an index.
    let mirror = mirror.stop().await.into_killed();
    std::fs::remove_file(mirror.cache_dir().join("index")).unwrap();
    let mirror = mirror.start().await;
    crowd(&mirror, &upstream, 300).await;
    assert!(is_whole(&mirror, &image));
    assert_booked(&mirror).await;

    let said = told(&mirror, &["unpin", "app:v1"]).await;
    assert!(said.starts_with("docker.io/library/app:v1 is not pinned any more"), "{said}");
    crowd(&mirror, &upstream, 400).await;
    assert!(!is_whole(&mirror, &image));
    let again = order(&mirror, &["unpin", "app:v1"]).await;
    assert!(again.status.code() == Some(1) && again.log.contains("it is not pinned"), "{}", again.log);
}

#[tokio::test]
async fn a_pin_is_on_the_disk_when_it_is_told_of() {
    let upstream = Registry::start().await;
    let image = Image::new(2).layers(&[70_000]).put(&upstream, "library/app", "v1");
    let url = format!("upstream.\"docker.io\".url={}", upstream.url());
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&url], &[]);
    get(larder.url(&image.tag_path("v1"))).await.expect(200);
    for blob in image.blobs() {
        get(larder.url(&image.blob_path(blob))).await.expect(200);
    }
    larder.until("larder_cache_blobs", |blobs| blobs == 3).await;
    let digest = format!("app@{}", image.digest);
    for (name, again) in [("app:v1", &digest), (&*digest, &digest)] {
        assert!(Process::order(dir.path(), &["pin", name], &[]).await.status.success(), "{again}");
    }
    larder.kill();
    let records = std::fs::read_to_string(dir.path().join("cache/records")).unwrap();
    let pins: Vec<&str> = records.lines().filter(|line| line.starts_with("pin ")).collect();
    assert_eq!(
        pins,
        [format!("pin docker.io library/app v1 {}", image.digest), format!("pin docker.io library/app {0} {0}", image.digest)]
    );
    let ended = Process::order(dir.path(), &["rm", "app:v1"], &[]).await;
    assert!(ended.log.contains("it is pinned; `larder unpin docker.io/library/app:v1` goes first"), "{}", ended.log);
    // By the digest all its pins are meant.
    assert!(Process::order(dir.path(), &["unpin", &digest], &[]).await.status.success());
    let ended = Process::order(dir.path(), &["rm", &digest], &[]).await;
    assert!(ended.status.success(), "{}", ended.log);
}

#[tokio::test]
async fn a_cache_that_is_full_of_pins_lets_the_rest_pass() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).start().await;
    for n in 0..6 {
        let image = Image::new(n).layers(&[2 * MIB]).put(&upstream, "library/app", &n.to_string());
        mirror.pull(&image, &n.to_string()).await;
        told(&mirror, &["pin", &format!("app:{n}")]).await;
    }
    let other = Image::new(50).layers(&[3 * MIB]).put(&upstream, "library/other", "v1");
    mirror.get(&other.tag_path("v1")).await.expect(200);
    for _ in 0..2 {
        let answer = mirror.get(&other.blob_path(&other.layers[0])).await.expect(200);
        assert!(answer.complete);
        assert_eq!(answer.body, other.layers[0].bytes);
        let status = answer.header("cache-status").unwrap();
        assert!(status.contains("fwd=bypass"), "{status}");
    }
    assert_eq!(upstream.count("GET", &other.layers[0].digest), 2);
    assert!(!mirror.holds(&other.layers[0].digest));
    mirror.upkeep().await;
    for n in 0..6 {
        let image = Image::new(n).layers(&[2 * MIB]).put(&upstream, "library/app", &n.to_string());
        assert!(is_whole(&mirror, &image), "{n}");
    }
    assert_booked(&mirror).await;
}

#[tokio::test]
async fn what_is_damaged_is_fetched_anew_and_pinned_again() {
    let upstream = Registry::start().await;
    let image = Image::new(3).layers(&[MIB]).put(&upstream, "library/app", "v1");
    let mirror = small(&upstream).start().await;
    mirror.pull(&image, "v1").await;
    told(&mirror, &["pin", "app:v1"]).await;
    let hex = &image.digest[7..];
    let mirror = mirror.stop().await.into_killed();
    std::fs::write(mirror.cache_dir().join("blobs/sha256").join(&hex[..2]).join(hex), "no manifest").unwrap();
    let mirror = mirror.start().await;
    assert!(!mirror.holds(&image.digest));
    let shown = told(&mirror, &["ls"]).await;
    assert!(shown.contains("docker.io/library/app:v1") && shown.contains("1 missing"), "{shown}");
    crowd(&mirror, &upstream, 100).await;
    // Also where it is not here when larder stops and starts.
    let mirror = mirror.stop().await.start().await;
    crowd(&mirror, &upstream, 150).await;
    assert!(image.blobs().all(|blob| mirror.holds(&blob.digest)));
    mirror.pull(&image, "v1").await;
    crowd(&mirror, &upstream, 200).await;
    assert!(is_whole(&mirror, &image));
}

/// Without an index it is read from the manifests what is pinned, and one could not be read just then.
#[tokio::test]
async fn what_a_pinned_manifest_names_stays_where_that_cannot_be_read_at_a_start() {
    let upstream = Registry::start().await;
    let image = Image::new(5).layers(&[3 * MIB]).put(&upstream, "library/app", "v1");
    let mirror = small(&upstream).start().await;
    mirror.pull(&image, "v1").await;
    told(&mirror, &["pin", "app:v1"]).await;
    let mirror = mirror.stop().await.into_killed();
    std::fs::remove_file(mirror.cache_dir().join("index")).unwrap();
    let hex = image.digest[7..].to_owned();
    let of_manifest = move |operation: Operation, path: &Path| operation == Operation::Open && path.ends_with(&hex);
    mirror.faults().each(of_manifest, Fault::Errno(Errno::IO.raw_os_error()));
    let mirror = mirror.start().await;
    for n in 0..10 {
        let other = Image::new(500 + n).layers(&[2 * MIB]).put(&upstream, "library/other", &n.to_string());
        mirror.get(&other.blob_path(&other.layers[0])).await.expect(200);
    }
    assert!(is_whole(&mirror, &image));
    mirror.faults().heal();
    mirror.probe().await;
    crowd(&mirror, &upstream, 600).await;
    assert!(is_whole(&mirror, &image));
}

#[tokio::test]
async fn only_what_is_here_can_be_pinned() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).start().await;
    for (image, says) in [
        ("app:v1", "app:v1: it is not in the cache; `larder ls` shows what is, and `larder pull app:v1` brings it"),
        ("App", "\"App\" is no image such as nginx:1.27"),
        ("gone.example/x", "it is not in the cache"),
    ] {
        let ended = order(&mirror, &["pin", image]).await;
        assert!(ended.status.code() == Some(1) && ended.log.contains(says), "{}", ended.log);
    }
}

#[tokio::test]
async fn a_pin_that_cannot_be_written_down_is_told_of() {
    let upstream = Registry::start().await;
    let image = Image::new(4).put(&upstream, "library/app", "v1");
    let mirror = small(&upstream).start().await;
    mirror.pull(&image, "v1").await;
    let of_records = |operation: Operation, path: &Path| operation == Operation::Write && path.ends_with("records");
    mirror.faults().each(of_records, Fault::Errno(Errno::NOSPC.raw_os_error()));
    let ended = order(&mirror, &["pin", "app:v1"]).await;
    assert!(ended.status.code() == Some(1) && ended.log.contains("pinned until larder ends, and not beyond"), "{}", ended.log);
}
