//! Commands that are given without the configuration of the larder whose cache it is.

use std::fs;

use crate::support::{Image, Process, Registry, TestMirror, files, refused, told};

const MIB: usize = 1 << 20;

/// A cache with so many images of 2 MiB that nothing pins, left by a larder that was told this; and an archive of 5 MiB.
async fn left(images: u64, settings: &[&str]) -> tempfile::TempDir {
    let upstream = Registry::start().await;
    let url = format!("upstream.\"docker.io\".url={}", upstream.url());
    let dir = tempfile::tempdir().unwrap();
    for n in 0..images {
        Image::new(n).layers(&[2 * MIB]).put(&upstream, "library/app", &n.to_string());
        let image = format!("app:{n}");
        assert!(Process::order(dir.path(), &["pull", &image], &[&url]).await.status.success());
    }
    Image::new(9).layers(&[5 * MIB]).put(&upstream, "library/new", "v1");
    let outside = TestMirror::of(&upstream).await;
    assert_eq!(outside.warm("new:v1", &[]).await.failed, []);
    let bundle = dir.path().join("new.tar");
    told(outside.dir(), &["export", "--all", "-o", bundle.to_str().unwrap()]).await;
    assert!(Process::start(dir.path(), settings, &[]).terminate().status.success());
    dir
}

fn blobs(dir: &tempfile::TempDir) -> usize {
    files(&dir.path().join("cache/blobs")).len()
}

const IMPORT: [&str; 6] = ["import", "new.tar", "--set", "cache.max_size=16MiB", "--set", "cache.min_free=0%"];

#[tokio::test]
async fn nothing_is_evicted_of_what_a_sealed_larder_left() {
    let dir = left(5, &["mirror.offline=true", "cache.max_size=16MiB", "cache.min_free=0%"]).await;
    let said = refused(dir.path(), &IMPORT).await;
    assert!(said.contains("there is no room"), "{said}");
    assert_eq!(blobs(&dir), 15);
    // Who is to serve it says what is so from then on.
    assert!(Process::start(dir.path(), &["cache.max_size=16MiB", "cache.min_free=0%"], &[]).terminate().status.success());
    told(dir.path(), &IMPORT).await;
    assert!(blobs(&dir) < 18);
}

#[tokio::test]
async fn there_is_as_much_room_as_the_larder_had() {
    let dir = left(5, &["cache.max_size=64MiB", "cache.min_free=0%"]).await;
    told(dir.path(), &IMPORT).await;
    assert_eq!(blobs(&dir), 18);
    let limits = fs::read_to_string(dir.path().join("cache/limits")).unwrap();
    assert_eq!(limits, "larder limits 1\nmax_size 67108864\nmin_free 0%\nsealed false\n");
}

/// A larder of before has not said how much there may be.
#[tokio::test]
async fn a_cache_that_is_too_large_for_a_command_is_not_made_smaller_by_it() {
    let dir = left(10, &["cache.max_size=64MiB", "cache.min_free=0%"]).await;
    fs::remove_file(dir.path().join("cache/limits")).unwrap();
    let said = refused(dir.path(), &IMPORT).await;
    assert!(said.contains("give the --config of the larder that serves it"), "{said}");
    assert_eq!(blobs(&dir), 30);
}

/// Records of another version tell of pins that this larder does not know.
#[tokio::test]
async fn what_records_say_that_cannot_be_read_stays_and_nothing_is_said_to_be_written() {
    let upstream = Registry::start().await;
    let image = Image::new(30).layers(&[3 * MIB]).put(&upstream, "library/app", "v1");
    let builder = TestMirror::builder().upstream("docker.io", &upstream);
    let mirror = builder.set("cache.max_size = \"16MiB\"").set("cache.min_free = \"0%\"").start().await;
    mirror.pull(&image, "v1").await;
    told(mirror.dir(), &["pin", "app:v1"]).await;
    let mirror = mirror.stop().await;
    let records = mirror.cache_dir().join("records");
    let newer = fs::read_to_string(&records).unwrap().replace("larder records 1", "larder records 2");
    fs::write(&records, &newer).unwrap();
    let mirror = mirror.start().await;
    for n in 0..10 {
        let other = Image::new(40 + n).layers(&[2 * MIB]).put(&upstream, "library/other", &n.to_string());
        mirror.get(&other.tag_path(&n.to_string())).await.expect(200);
        mirror.get(&other.blob_path(&other.layers[0])).await.expect(200);
    }
    assert!(image.blobs().all(|blob| mirror.holds(&blob.digest)));
    mirror.get(&image.tag_path("v1")).await.expect(200);
    let said = refused(mirror.dir(), &["pin", "app:v1"]).await;
    assert!(said.contains("pinned until larder ends, and not beyond"), "{said}");
    mirror.upkeep().await;
    assert_eq!(fs::read_to_string(&records).unwrap(), newer);
    let mirror = mirror.stop().await;
    fs::write(&records, newer.replace("larder records 2", "larder records 1")).unwrap();
    let mirror = mirror.start().await;
    for n in 0..10 {
        let other = Image::new(60 + n).layers(&[2 * MIB]).put(&upstream, "library/other", &n.to_string());
        mirror.pull(&other, &n.to_string()).await;
    }
    assert!(image.blobs().all(|blob| mirror.holds(&blob.digest)));
}
