//! A larder that asks nobody: what it has stays and is served, whatever its age; what it lacks is a list for the next delivery.

use std::time::Duration;

use crate::support::{Image, MultiArch, Process, Registry, TestMirror, get};

const MIB: usize = 1 << 20;

async fn missing(mirror: &TestMirror) -> Vec<String> {
    let ended = Process::order(mirror.dir(), &["missing"], &[]).await;
    assert!(ended.status.success(), "{}", ended.log);
    ended.stdout.lines().map(str::to_owned).collect()
}

fn names(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.split("  # ").next().unwrap()).collect()
}

#[tokio::test]
async fn nothing_expires_also_not_what_was_had_by_credentials() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[2_000]).put(&upstream, "library/app", "v1");
    let builder = TestMirror::builder().upstream("docker.io", &upstream).login("docker.io", "bob", "canary-of-sealed");
    let mirror = builder.start().await;
    assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    let mirror = mirror.stop().await.set("mirror.offline = true").start().await;
    upstream.forget_requests();
    mirror.clock().advance(Duration::from_hours(24 * 365));
    assert_eq!(mirror.get(&image.tag_path("v1")).await.expect(200).body, image.manifest);
    for blob in image.blobs() {
        let answer = mirror.get(&image.blob_path(blob)).await.expect(200);
        assert!(answer.body == blob.bytes && answer.header("cache-status").unwrap().contains("detail=offline"));
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn nothing_is_evicted_however_full_the_disk_is() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    for n in 0..8 {
        Image::new(n).layers(&[3 * MIB]).put(&upstream, "library/app", &n.to_string());
        assert_eq!(mirror.warm(&format!("app:{n}"), &[]).await.failed, []);
    }
    let used = mirror.used();
    let mirror = mirror.stop().await.set("mirror.offline = true").set("cache.max_size = \"16MiB\"").start().await;
    mirror.upkeep().await;
    mirror.probe().await;
    assert_eq!(mirror.used(), used);
    let ended = Process::order(mirror.dir(), &["du", "--json"], &[]).await;
    assert!(ended.stdout.contains("\"next_to_leave\":[]"), "{}", ended.stdout);
    let mirror = mirror.stop().await.set("mirror.offline = false").start().await;
    mirror.upkeep().await;
    assert!(mirror.used() < used, "the cache was too large for this test");
}

#[tokio::test]
async fn what_is_asked_for_in_vain_is_the_list_of_the_next_delivery() {
    let upstream = Registry::start().await;
    let wanted = Image::new(1).layers(&[2_000]).put(&upstream, "library/wanted", "v2");
    let index = MultiArch::new(2).put(&upstream, "library/multi", "v1");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("multi:v1", &["linux/amd64"]).await.failed, []);
    assert_eq!(missing(&mirror).await, [""; 0]);
    let mirror = mirror.stop().await.set("mirror.offline = true").start().await;
    for _ in 0..3 {
        mirror.get("/v2/library/wanted/manifests/v2").await.expect(404);
    }
    mirror.get(&index.images[1].manifest_path()).await.expect(404);
    mirror.get(&index.tag_path("v1")).await.expect(200);
    // What nobody would ask for who has a manifest is no image, nor is what is not there because of how it is asked for.
    mirror.get(&wanted.blob_path(&wanted.layers[0])).await.expect(404);
    mirror.get(&format!("/v2/library/multi/referrers/{}", index.digest)).await.expect(200);
    mirror.get("/v2/library/NO/manifests/v2").await.expect(400);
    let lines = missing(&mirror).await;
    let other = format!("docker.io/library/multi@{}", index.images[1].digest);
    assert_eq!(names(&lines), [&*other, "docker.io/library/wanted:v2"]);
    assert!(lines[1].contains("  # asked for 3 times, last 20") && lines[0].contains("# asked for once"), "{lines:?}");

    // It outlives a restart, and is what a pull outside takes.
    let mirror = mirror.stop().await.start().await;
    assert_eq!(missing(&mirror).await, lines);
    std::fs::write(mirror.dir().join("list"), lines.join("\n")).unwrap();
    let outside = tempfile::tempdir().unwrap();
    let list = mirror.dir().join("list");
    let arguments = ["pull", "--from", list.to_str().unwrap(), "--platform", "all"];
    let ended = Process::order(outside.path(), &arguments, &[&format!("upstream.\"docker.io\".url={}", upstream.url())]).await;
    assert!(ended.status.success() && ended.stdout.lines().count() == 2, "{}", ended.log);

    // What has been delivered is not asked for any more.
    let mirror = mirror.stop().await.set("mirror.offline = false").start().await;
    assert_eq!(mirror.warm("wanted:v2", &[]).await.failed, []);
    let mirror = mirror.stop().await.set("mirror.offline = true").start().await;
    assert_eq!(names(&missing(&mirror).await), [&*other]);
}

#[tokio::test]
async fn an_image_that_is_here_in_part_is_on_the_list() {
    let upstream = Registry::start().await;
    let image = Image::new(3).layers(&[2_000]).put(&upstream, "library/app", "v1");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&image.tag_path("v1")).await.expect(200);
    mirror.kept(&image.digest).await;
    let mirror = mirror.stop().await.set("mirror.offline = true").start().await;
    mirror.get(&image.tag_path("v1")).await.expect(200);
    mirror.get(&image.blob_path(&image.layers[0])).await.expect(404);
    mirror.head(&image.blob_path(&image.config)).await.expect(404);
    assert_eq!(names(&missing(&mirror).await), [format!("docker.io/library/app@{}", image.digest)]);
}

/// Whoever reaches larder may ask for anything.
#[tokio::test]
async fn the_list_is_bounded_and_what_is_wanted_often_stays_on_it() {
    let mirror = TestMirror::builder().set("mirror.offline = true").start().await;
    for _ in 0..2 {
        mirror.get("/v2/library/wanted/manifests/v1").await.expect(404);
    }
    for n in 0..1_500 {
        mirror.head(&format!("/v2/library/x{n}/manifests/v1")).await.expect(404);
    }
    let lines = missing(&mirror).await;
    assert_eq!(lines.len(), 1_000);
    assert!(names(&lines).contains(&"docker.io/library/wanted:v1"));
}

#[tokio::test]
async fn the_list_is_there_without_a_running_larder() {
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &["mirror.offline=true"], &[]);
    get(larder.url("/v2/library/app/manifests/v1")).await.expect(404);
    assert!(larder.terminate().status.success());
    let ended = Process::order(dir.path(), &["missing", "--json"], &["mirror.offline=true"]).await;
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&report["image"], &report["times"]), (&"docker.io/library/app:v1".into(), &1.into()));
}
