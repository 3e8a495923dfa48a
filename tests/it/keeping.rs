//! What stays in the cache: the cap, what goes first, restarts, crashes, and strangers in the directory.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

use crate::support::{
    Fault, Image, Match, MultiArch, PutImage, Registry, StoppedMirror, TestMirror, digest_of, noise, partial_file,
};

const MIB: usize = 1 << 20;

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// As `du` counts.
fn disk_use(dir: &Path) -> u64 {
    let blocks = |path: &Path| fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512);
    let inside = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    blocks(dir) + inside.map(|path| if path.is_dir() { disk_use(&path) } else { blocks(&path) }).sum::<u64>()
}

fn blob_file(mirror: &Path, digest: &str) -> PathBuf {
    let (algorithm, hex) = digest.split_once(':').unwrap();
    mirror.join("blobs").join(algorithm).join(&hex[..2]).join(hex)
}

fn held(mirror: &TestMirror, digest: &str) -> bool {
    blob_file(&mirror.cache_dir(), digest).exists()
}

fn small(registry: &Registry) -> StoppedMirror {
    TestMirror::builder().upstream("docker.io", registry).set("cache.max_size = \"32MiB\"").set("cache.min_free = \"0%\"")
}

/// Pulls as a client does, and waits until all of it is kept.
async fn pull(mirror: &TestMirror, image: &PutImage, tag: &str) {
    mirror.get(&image.tag_path(tag)).await.expect(200);
    mirror.get(&image.manifest_path()).await.expect(200);
    for blob in image.blobs() {
        let answer = mirror.get(&image.blob_path(blob)).await.expect(200);
        assert_eq!(answer.body, blob.bytes);
        mirror.kept(&blob.digest).await;
    }
    mirror.kept(&image.digest).await;
}

#[tokio::test]
async fn disk_use_never_exceeds_the_cap_and_the_least_used_image_goes_first() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).start().await;
    let images: Vec<_> =
        (0..8).map(|n| Image::new(n).layers(&[5 * MIB, 3 * MIB]).put(&upstream, &format!("library/i{n}"), "latest")).collect();
    for image in &images {
        pull(&mirror, image, "latest").await;
        assert!(disk_use(&mirror.cache_dir()) <= 32 << 20, "{}", disk_use(&mirror.cache_dir()));
        mirror.clock().advance(Duration::from_secs(1));
    }
    let whole: Vec<bool> = images
        .iter()
        .map(|image| held(&mirror, &image.digest) && image.blobs().all(|blob| held(&mirror, &blob.digest)))
        .collect();
    assert_eq!(whole, [false, false, false, false, false, true, true, true], "images stay whole, the newest of them");
}

#[tokio::test]
async fn using_an_image_again_keeps_all_of_it() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).start().await;
    let first = Image::new(1).layers(&[4 * MIB, 4 * MIB]).put(&upstream, "library/first", "latest");
    pull(&mirror, &first, "latest").await;
    for n in 10..16 {
        mirror.clock().advance(Duration::from_secs(1));
        // Only the manifest is asked for: the client has the layers.
        mirror.get(&first.manifest_path()).await.expect(200);
        mirror.clock().advance(Duration::from_secs(1));
        let other = Image::new(n).layers(&[8 * MIB]).put(&upstream, &format!("library/o{n}"), "latest");
        pull(&mirror, &other, "latest").await;
    }
    assert!(held(&mirror, &first.digest) && first.blobs().all(|blob| held(&mirror, &blob.digest)));
}

/// Whoever pulls much that nobody else wants, however often in a row, takes room from the like of it.
#[tokio::test]
async fn junk_of_ten_times_the_cap_does_not_push_out_what_is_hot() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).set("cache.max_size = \"16MiB\"").start().await;
    let image = |seed, name: &str| Image::new(seed).layers(&[2 * MIB, 2 * MIB]).put(&upstream, name, "latest");
    let (hot, cold) = (image(1, "library/hot"), image(2, "library/cold"));
    pull(&mirror, &hot, "latest").await;
    pull(&mirror, &cold, "latest").await;
    mirror.clock().advance(Duration::from_mins(11));
    pull(&mirror, &hot, "latest").await;
    for n in 10..50 {
        mirror.clock().advance(Duration::from_secs(1));
        let junk = image(n, &format!("library/junk{n}"));
        for _ in 0..2 {
            pull(&mirror, &junk, "latest").await;
        }
        assert!(disk_use(&mirror.cache_dir()) <= 16 << 20);
    }
    assert!(!held(&mirror, &cold.digest), "what was used once goes");
    upstream.forget_requests();
    assert!(held(&mirror, &hot.digest));
    for blob in hot.blobs() {
        assert_eq!(mirror.get(&hot.blob_path(blob)).await.expect(200).body, blob.bytes);
    }
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
}

#[tokio::test]
async fn a_layer_that_two_images_share_stays_with_the_one_in_use() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).start().await;
    let shared = noise(7, 6 * MIB);
    let old = Image::new(1).layer(shared.clone()).layers(&[2 * MIB]).put(&upstream, "library/old", "latest");
    let new = Image::new(2).layer(shared.clone()).layers(&[2 * MIB]).put(&upstream, "library/new", "latest");
    pull(&mirror, &old, "latest").await;
    mirror.clock().advance(Duration::from_secs(1));
    pull(&mirror, &new, "latest").await;
    mirror.clock().advance(Duration::from_secs(1));
    let big = Image::new(3).layers(&[20 * MIB]).put(&upstream, "library/big", "latest");
    pull(&mirror, &big, "latest").await;
    assert!(!held(&mirror, &old.digest), "the old image has gone");
    assert!(held(&mirror, &new.digest) && new.blobs().all(|blob| held(&mirror, &blob.digest)), "the new one is whole");
}

#[tokio::test]
async fn a_file_that_is_being_read_is_not_disturbed_by_its_eviction() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).start().await;
    let first = Image::new(1).layers(&[12 * MIB]).put(&upstream, "library/first", "latest");
    pull(&mirror, &first, "latest").await;
    let layer = first.layers.last().unwrap();
    let mut reading = mirror.stream(&first.blob_path(layer)).await;
    let begun = reading.take(MIB).await;
    for n in 2..5 {
        let other = Image::new(n).layers(&[9 * MIB]).put(&upstream, &format!("library/o{n}"), "latest");
        pull(&mirror, &other, "latest").await;
        assert!(disk_use(&mirror.cache_dir()) <= 32 << 20);
    }
    let rest = reading.rest().await;
    assert!(rest.complete);
    assert_eq!([begun, rest.body].concat(), layer.bytes);
}

#[tokio::test]
async fn order_and_content_outlive_a_clean_restart_without_a_request() {
    let upstream = Registry::start().await;
    let mut mirror = small(&upstream).start().await;
    let image = |n: u64| Image::new(n).layers(&[7 * MIB]).put(&upstream, &format!("library/i{n}"), "latest");
    let images = [image(1), image(2), image(3)];
    for image in &images {
        pull(&mirror, image, "latest").await;
        mirror.clock().advance(Duration::from_secs(1));
    }
    pull(&mirror, &images[0], "latest").await;
    upstream.forget_requests();
    mirror = mirror.stop().await.start().await;
    for image in &images {
        mirror.get(&image.tag_path("latest")).await.expect(200);
        for blob in image.blobs() {
            mirror.get(&image.blob_path(blob)).await.expect(200);
        }
    }
    assert_eq!(upstream.requests().len(), 0, "{:#?}", upstream.requests());
    mirror.clock().advance(Duration::from_secs(5));
    pull(&mirror, &images[0], "latest").await;
    mirror = mirror.stop().await.start().await;
    pull(&mirror, &image(4), "latest").await;
    pull(&mirror, &image(5), "latest").await;
    assert!(held(&mirror, &images[0].digest), "the one used last has stayed");
    assert!(!held(&mirror, &images[1].digest), "the one used least has gone");
}

#[tokio::test]
async fn without_its_index_the_cache_is_counted_by_looking() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).start().await;
    let image = MultiArch::new(1).layers(&[3 * MIB]).put(&upstream, "library/multi", "latest");
    mirror.get(&image.tag_path("latest")).await.expect(200);
    for image in &image.images {
        pull(&mirror, image, "latest").await;
    }
    mirror.kept(&image.digest).await;
    let stopped = mirror.stop().await;
    fs::remove_file(stopped.cache_dir().join("index")).unwrap();
    fs::remove_file(stopped.cache_dir().join("clean")).unwrap();
    upstream.forget_requests();
    let mirror = stopped.start().await;
    for image in &image.images {
        pull(&mirror, image, "latest").await;
    }
    assert_eq!(upstream.count("GET", "blobs"), 0);
    // Which blobs make an image is known again: using the index keeps them all.
    for n in 10..14 {
        mirror.clock().advance(Duration::from_secs(1));
        mirror.get(&image.manifest_path()).await.expect(200);
        let other = Image::new(n).layers(&[8 * MIB]).put(&upstream, &format!("library/o{n}"), "latest");
        pull(&mirror, &other, "latest").await;
    }
    assert!(image.images.iter().all(|image| image.blobs().all(|blob| held(&mirror, &blob.digest))));
}

#[tokio::test]
async fn a_damaged_index_costs_nothing_but_a_look_at_every_file() {
    let upstream = Registry::start().await;
    let image = Image::new(77).layers(&[MIB]).put(&upstream, "library/alpine", "latest");
    for damage in ["no index", "a torn index", "an index of the future", "not clean"] {
        let mirror = small(&upstream).start().await;
        pull(&mirror, &image, "latest").await;
        let stopped = mirror.stop().await;
        let (index, clean) = (stopped.cache_dir().join("index"), stopped.cache_dir().join("clean"));
        match damage {
            "no index" => fs::remove_file(index).unwrap(),
            "a torn index" => fs::write(&index, &fs::read(&index).unwrap()[..60]).unwrap(),
            "an index of the future" => fs::write(index, "larder index 99\nwho knows\n").unwrap(),
            _ => fs::remove_file(clean).unwrap(),
        }
        upstream.forget_requests();
        let mirror = stopped.start().await;
        pull(&mirror, &image, "latest").await;
        assert_eq!(upstream.requests().len(), 0, "after {damage}: {:#?}", upstream.requests());
    }
}

#[tokio::test]
async fn a_blob_that_is_gone_short_or_long_is_fetched_anew() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[MIB]).put(&upstream, "library/alpine", "latest");
    let layer = image.layers.last().unwrap();
    for damage in ["gone", "short", "empty", "long"] {
        let mirror = TestMirror::of(&upstream).await;
        pull(&mirror, &image, "latest").await;
        // Reopened, so that no file is held open.
        let stopped = mirror.stop().await;
        let path = blob_file(&stopped.cache_dir(), &layer.digest);
        match damage {
            "gone" => fs::remove_file(path).unwrap(),
            "short" => fs::write(path, &layer.bytes[..1000]).unwrap(),
            "empty" => fs::write(path, b"").unwrap(),
            _ => fs::write(path, [&layer.bytes[..], b"x"].concat()).unwrap(),
        }
        let mirror = stopped.start().await;
        let answer = mirror.get(&image.blob_path(layer)).await.expect(200);
        assert_eq!(answer.body, layer.bytes, "{damage}");
        mirror.kept(&layer.digest).await;
        assert_eq!(mirror.get(&image.blob_path(layer)).await.expect(200).header("cache-status"), Some("larder; hit"));
    }
}

/// A blob that could not be opened counted as damaged and was removed: with too few descriptors, a busy larder would have
/// thrown away its cache.
#[tokio::test]
async fn a_blob_that_cannot_be_opened_is_had_from_the_upstream() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[MIB]).put(&upstream, "library/alpine", "latest");
    let layer = image.layers.last().unwrap();
    let mirror = TestMirror::of(&upstream).await;
    pull(&mirror, &image, "latest").await;
    let stopped = mirror.stop().await;
    let path = blob_file(&stopped.cache_dir(), &layer.digest);
    // A loop of links cannot be opened, by root neither.
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let mirror = stopped.start().await;
    for _ in 0..2 {
        assert_eq!(mirror.get(&image.blob_path(layer)).await.expect(200).body, layer.bytes);
    }
    mirror.kept(&layer.digest).await;
}

#[tokio::test]
async fn a_damaged_manifest_is_never_served() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    pull(&mirror, &image, "latest").await;
    let stopped = mirror.stop().await;
    let path = blob_file(&stopped.cache_dir(), &image.digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[10] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mirror = stopped.start().await;
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest);
}

#[tokio::test]
async fn what_a_stopped_fill_leaves_is_continued_after_a_restart() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[4 * MIB]).put(&upstream, "library/alpine", "latest");
    let layer = image.layers.last().unwrap();
    upstream.on(Match::get(&layer.digest).times(1), Fault::Gate { after: 3 * MIB });
    let mirror = TestMirror::of(&upstream).await;
    let mut reading = mirror.stream(&image.blob_path(layer)).await;
    let begun = reading.take(2 * MIB).await;
    assert_eq!(begun, layer.bytes[..2 * MIB]);
    drop(reading);
    let stopped = mirror.stop().await;
    assert!(files(&stopped.cache_dir().join("blobs")).is_empty(), "nothing incomplete is visible");
    let partial = files(&stopped.cache_dir().join("partial"));
    assert_eq!(partial.len(), 1);
    let length = fs::metadata(&partial[0]).unwrap().len();
    assert!(length >= 2 * MIB as u64, "{length}");
    upstream.release();
    upstream.forget_requests();
    let mirror = stopped.start().await;
    assert_eq!(mirror.get(&image.blob_path(layer)).await.expect(200).body, layer.bytes);
    let range = upstream.requests()[0].range().expect("a range is asked for").to_owned();
    assert_eq!(range, format!("bytes={}-", length - 1), "from where it stopped");
    mirror.kept(&layer.digest).await;
    assert!(files(&mirror.cache_dir().join("partial")).is_empty());
}

#[tokio::test]
async fn a_partial_file_with_wrong_bytes_spoils_nothing() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[MIB]).put(&upstream, "library/alpine", "latest");
    let layer = image.layers.last().unwrap();
    let stopped = TestMirror::of(&upstream).await.stop().await;
    fs::write(partial_file(&stopped.cache_dir(), &layer.digest), vec![0; 1000]).unwrap();
    fs::write(stopped.cache_dir().join("partial").join("stranger"), b"left alone").unwrap();
    let mirror = stopped.start().await;
    assert!(!mirror.get(&image.blob_path(layer)).await.complete, "the wrong bytes never end well");
    mirror.kept(&layer.digest).await;
    assert_eq!(mirror.get(&image.blob_path(layer)).await.expect(200).body, layer.bytes);
    assert!(mirror.cache_dir().join("partial").join("stranger").exists());
}

/// A larder that was killed in mid-fill leaves a short file for which all of its space is set aside. Counted by its length,
/// it let the cache grow beyond its cap.
#[tokio::test]
async fn space_that_a_killed_larder_had_set_aside_counts() {
    let upstream = Registry::start().await;
    let stopped = small(&upstream).start().await.stop().await;
    let path = stopped.cache_dir().join("partial").join(digest_of(b"never complete").replace(':', "-"));
    let file = fs::File::create(&path).unwrap();
    file.set_len(1000).unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 8 << 20).unwrap();
    let mirror = stopped.start().await;
    assert_eq!(mirror.used(), 8 << 20);
    mirror.clock().advance(Duration::from_secs(3601));
    mirror.upkeep().await;
    assert_eq!(mirror.used(), 0);
}

/// A machine whose clock was wrong: what carries a date of the future was in nobody's way until that had come.
#[tokio::test]
async fn what_was_left_in_the_future_goes_like_everything_else() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[20 * MIB]).put(&upstream, "library/alpine", "latest");
    let layer = &image.layers[0];
    upstream.on(Match::get(&layer.digest).times(1), Fault::Gate { after: 18 * MIB });
    let mirror = small(&upstream).start().await;
    let mut reading = mirror.stream(&image.blob_path(layer)).await;
    reading.take(17 * MIB).await;
    drop(reading);
    let stopped = mirror.stop().await;
    let partial = files(&stopped.cache_dir().join("partial"));
    assert_eq!(partial.len(), 1);
    let future = std::time::SystemTime::now() + Duration::from_hours(24 * 400);
    fs::File::options().write(true).open(&partial[0]).unwrap().set_modified(future).unwrap();
    upstream.release();
    let mirror = stopped.start().await;
    let other = Image::new(2).layers(&[20 * MIB]).put(&upstream, "library/other", "latest");
    pull(&mirror, &other, "latest").await;
    assert!(held(&mirror, &other.layers[0].digest), "the partial file made room for it");
    assert_eq!(files(&mirror.cache_dir().join("partial")).len(), 0);
}

#[tokio::test]
async fn partial_files_that_nobody_goes_on_with_are_swept_after_an_hour() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[MIB]).put(&upstream, "library/alpine", "latest");
    let layer = image.layers.last().unwrap();
    let stopped = TestMirror::of(&upstream).await.stop().await;
    let path = stopped.cache_dir().join("partial").join(layer.digest.replace(':', "-"));
    fs::write(&path, &layer.bytes[..1000]).unwrap();
    let mirror = stopped.start().await;
    mirror.upkeep().await;
    assert!(path.exists());
    mirror.clock().advance(Duration::from_secs(3601));
    mirror.upkeep().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn one_directory_has_one_larder() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let second = TestMirror::builder().upstream("docker.io", &upstream).set(&format!("cache.dir = {:?}", mirror.cache_dir()));
    let (error, _) = second.try_start().await.err().expect("the directory is held");
    assert!(error.starts_with("another larder (process ") && error.contains("holds the cache directory"), "{error}");
}

#[tokio::test]
async fn a_directory_that_is_no_cache_is_left_as_it_was() {
    let upstream = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let start =
        || TestMirror::builder().upstream("docker.io", &upstream).set(&format!("cache.dir = {:?}", dir.path())).try_start();
    fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
    let (error, _) = start().await.err().expect("it holds something else");
    assert!(error.contains("holds files but no larder cache"), "{error}");
    assert_eq!(files(dir.path()), [dir.path().join("thesis.txt")]);
    fs::write(dir.path().join("layout"), "larder cache 99\n").unwrap();
    let (error, _) = start().await.err().expect("it is of a later larder");
    assert!(error.contains("larder cache 99"), "{error}");
    assert_eq!(files(dir.path()).len(), 2);
}

#[tokio::test]
async fn strangers_in_the_cache_are_left_alone_and_never_served() {
    let upstream = Registry::start().await;
    let stopped = TestMirror::of(&upstream).await.stop().await;
    let shard = stopped.cache_dir().join("blobs/sha256/ab");
    fs::create_dir_all(&shard).unwrap();
    fs::write(shard.join("README"), "hello").unwrap();
    fs::remove_file(stopped.cache_dir().join("clean")).unwrap();
    let mirror = stopped.start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    pull(&mirror, &image, "latest").await;
    assert!(shard.join("README").exists());
}
