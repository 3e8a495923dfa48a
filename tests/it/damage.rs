//! Files of the cache that are damaged, or that the disk cannot read any more: clients do not notice, and the next one finds
//! the blob whole again.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use larder::store::{Operation, faults};
use rustix::io::Errno;

use crate::support::{Client, Fault, Image, Match, PATIENCE, Registry, TestMirror, noise, stream};

const REPOSITORY: &str = "library/app";

/// Larger than what is withheld of a blob, and read in many pieces.
const SIZE: usize = 1_500_000;

fn path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

/// Where the file of a blob is.
fn file(cache: &Path, digest: &str) -> PathBuf {
    let (algorithm, hex) = digest.split_once(':').unwrap();
    cache.join("blobs").join(algorithm).join(&hex[..2]).join(hex)
}

/// Where it is once it was found damaged.
fn aside(cache: &Path, digest: &str) -> PathBuf {
    cache.join("quarantine").join(digest.replace(':', "-"))
}

/// What the files under these directories take of the disk.
fn disk_use(dirs: &[PathBuf]) -> u64 {
    let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten()).map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { disk_use(&[path]) } else { fs::symlink_metadata(path).unwrap().blocks() * 512 }).sum()
}

/// What the cache takes of the disk is what it counts, once nobody reads or writes.
async fn accounts_are_right(mirror: &TestMirror) {
    let cache = mirror.cache_dir();
    let on_disk = || disk_use(&["blobs", "partial", "quarantine"].map(|dir| cache.join(dir)));
    until(&format!("{} counted, {} on the disk", mirror.used(), on_disk()), || mirror.used() == on_disk()).await;
}

async fn until(what: &str, so: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

/// How many blobs were found damaged.
async fn quarantined(mirror: &TestMirror) -> u64 {
    let page = Client::h1().get(mirror.admin_url("/metrics")).await.expect(200).text();
    let line = page.lines().find_map(|line| line.strip_prefix("larder_quarantined_total "));
    line.expect("it is on the page").parse().unwrap()
}

/// Has a blob in the cache.
async fn cached(upstream: &Registry, mirror: &TestMirror, blob: &Bytes) -> String {
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    until("kept", || mirror.holds(&digest)).await;
    digest
}

/// Lets the `nth` reading of this blob fail, and with `all` those after it, until healed.
fn let_reads_fail(mirror: &TestMirror, digest: &str, nth: usize, all: bool) {
    let (hex, seen) = (digest.replace("sha256:", ""), AtomicUsize::new(0));
    let which = move |operation, path: &Path| {
        let is_read = matches!(operation, Operation::Read | Operation::ReadCached);
        is_read && path.to_string_lossy().ends_with(&hex) && {
            let n = seen.fetch_add(1, Ordering::Relaxed);
            n == nth || all && n > nth
        }
    };
    mirror.faults().each(which, faults::Fault::Errno(Errno::IO.raw_os_error()));
}

// === reads that fail ===

#[tokio::test]
async fn a_hit_whose_file_cannot_be_read_at_some_place_goes_on_from_the_upstream() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let blob = noise(1, SIZE);
    let digest = cached(&upstream, &mirror, &blob).await;
    let before = mirror.faults().count();
    mirror.get(&path(&digest)).await.expect(200);
    let reads = mirror.faults().since(before).len();
    assert!(reads > 5, "{reads}");
    for nth in 0..reads {
        upstream.forget_requests();
        let_reads_fail(&mirror, &digest, nth, false);
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob, "read {nth}");
        mirror.faults().heal();
        assert_eq!(quarantined(&mirror).await, nth as u64 + 1);
        assert_eq!(upstream.count("GET", &digest), 1, "read {nth}");
        assert!(aside(&mirror.cache_dir(), &digest).exists());
        until("kept", || mirror.holds(&digest)).await;
        accounts_are_right(&mirror).await;
        let hit = mirror.get(&path(&digest)).await.expect(200);
        assert_eq!((hit.body == blob, hit.header("cache-status")), (true, Some("larder; hit")), "read {nth}");
    }
}

#[tokio::test]
async fn ranges_go_on_from_the_upstream_as_well() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let blob = noise(2, SIZE);
    let digest = cached(&upstream, &mirror, &blob).await;
    for nth in 0..3 {
        let_reads_fail(&mirror, &digest, nth, false);
        let range = mirror.get_with(&path(&digest), &[("range", "bytes=700000-999999")]).await.expect(206);
        assert_eq!(range.body, blob.slice(700_000..1_000_000), "read {nth}");
        mirror.faults().heal();
        until("kept", || mirror.holds(&digest)).await;
        let_reads_fail(&mirror, &digest, nth, false);
        let parts = mirror.get_with(&path(&digest), &[("range", "bytes=10-19,1000000-1100000,-5")]).await.expect(206);
        let text = parts.body;
        for part in [blob.slice(10..20), blob.slice(1_000_000..1_100_001), blob.slice(SIZE - 5..)] {
            assert!(text.windows(part.len()).any(|window| window == part), "read {nth}");
        }
        mirror.faults().heal();
        until("kept", || mirror.holds(&digest)).await;
    }
}

#[tokio::test]
async fn many_readers_of_one_damaged_file_cost_one_request() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let blob = noise(3, SIZE);
    let digest = cached(&upstream, &mirror, &blob).await;
    upstream.forget_requests();
    upstream.on(Match::get(&digest), Fault::Gate { after: 0 });
    let url = mirror.url(&path(&digest));
    let mut bodies = join_all((0..10).map(|_| stream(&url))).await;
    for body in &mut bodies {
        body.take(10_000).await;
    }
    // The file is cut under their feet.
    fs::OpenOptions::new().write(true).open(file(&mirror.cache_dir(), &digest)).unwrap().set_len(20_000).unwrap();
    let rest = tokio::spawn(join_all(bodies.into_iter().map(crate::support::Streaming::rest)));
    upstream.held(1).await;
    upstream.release();
    for answer in rest.await.unwrap() {
        assert_eq!(answer.expect(200).body, blob.slice(10_000..));
    }
    assert_eq!((upstream.count("GET", &digest), quarantined(&mirror).await), (1, 1));
    until("kept", || mirror.holds(&digest)).await;
    accounts_are_right(&mirror).await;
}

/// The bytes that were sent came by another transfer than those that follow: they must be the same.
#[tokio::test]
async fn a_fill_that_cannot_be_read_back_harms_none_who_follow_it() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    for nth in [0, 1, 3] {
        let blob = noise(40 + nth as u64, SIZE);
        let digest = upstream.put_blob(REPOSITORY, blob.clone());
        let_reads_fail(&mirror, &digest, nth, true);
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob, "read {nth}");
        mirror.faults().heal();
    }
    // The first transfer is wrong in what was sent of it, the second is right: together they are not the blob.
    let blob = noise(50, SIZE);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest).times(1), vec![Fault::Corrupt { at: 5 }, Fault::Gate { after: 1_000_000 }]);
    let_reads_fail(&mirror, &digest, 2, true);
    let answer = mirror.get(&path(&digest)).await;
    assert!(!answer.complete, "{} bytes ended cleanly", answer.body.len());
    assert_ne!(answer.body, blob.slice(..answer.body.len()), "the wrong byte was sent");
    assert_eq!(upstream.count("GET", &digest), 2, "the reader has asked for itself");
    mirror.faults().heal();
    upstream.release();
}

#[tokio::test]
async fn without_an_upstream_a_hit_that_cannot_be_read_on_ends_short() {
    let upstream = Registry::start().await;
    let blob = noise(4, SIZE);
    let mirror = TestMirror::of(&upstream).await;
    let digest = cached(&upstream, &mirror, &blob).await;
    let mirror = mirror.stop().await.set("mirror.offline = true").start().await;
    let_reads_fail(&mirror, &digest, 2, true);
    let answer = mirror.get(&path(&digest)).await;
    assert!(!answer.complete && answer.status == 200);
    assert_eq!(answer.body, blob.slice(..answer.body.len()));
}

/// Bytes of the cache are everyone's, the right to them is not: who reads on asks for itself.
#[tokio::test]
async fn a_reader_whose_repository_has_lost_the_blob_ends_short() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let blob = noise(5, SIZE);
    let digest = cached(&upstream, &mirror, &blob).await;
    upstream.put_blob("library/other", blob.clone());
    upstream.remove(REPOSITORY, &digest);
    let_reads_fail(&mirror, &digest, 2, true);
    let answer = mirror.get(&path(&digest)).await;
    assert!(!answer.complete);
    assert_eq!(answer.body, blob.slice(..answer.body.len()));
    assert!(upstream.requests().iter().all(|request| !request.path.contains("library/other")));
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_is_fetched_anew_and_one_in_memory_goes_on_to_be_served() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&image.manifest_path()).await.expect(200);
    until("kept", || mirror.holds(&image.digest)).await;
    fs::write(file(&mirror.cache_dir(), &image.digest), "damaged").unwrap();
    upstream.forget_requests();
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest, "from memory");
    assert_eq!(upstream.requests().len(), 0);
    let mirror = mirror.stop().await.start().await;
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest, "fetched anew");
    until("kept", || mirror.holds(&image.digest)).await;
    assert_eq!(quarantined(&mirror).await, 1);
    let mirror = mirror.stop().await.start().await;
    let_reads_fail(&mirror, &image.digest, 0, true);
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest, "fetched anew");
    mirror.faults().heal();
    assert_eq!((upstream.count("GET", &image.digest), quarantined(&mirror).await), (2, 1));
}

// === quarantine ===

#[tokio::test]
async fn the_quarantine_is_bounded_and_what_is_in_it_counts() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let dir = mirror.cache_dir().join("quarantine");
    let mut digests = Vec::new();
    for n in 0..20 {
        let digest = cached(&upstream, &mirror, &noise(60 + n, 100_000)).await;
        let_reads_fail(&mirror, &digest, 1, false);
        mirror.get(&path(&digest)).await.expect(200);
        mirror.faults().heal();
        digests.push(digest);
    }
    for digest in &digests {
        mirror.get(&path(digest)).await.expect(200);
        until("kept again", || mirror.holds(digest)).await;
    }
    let left = || fs::read_dir(&dir).unwrap().count();
    assert_eq!((left(), quarantined(&mirror).await), (16, 20));
    assert!(!aside(&mirror.cache_dir(), &digests[3]).exists() && aside(&mirror.cache_dir(), &digests[4]).exists());
    accounts_are_right(&mirror).await;

    let mirror = mirror.stop().await.start().await;
    accounts_are_right(&mirror).await;
    // A small cache has less room for what is damaged.
    let mirror = mirror.stop().await.set("cache.max_size = \"48MiB\"").start().await;
    accounts_are_right(&mirror).await;
    assert_eq!(left(), 4);
}

#[tokio::test]
async fn a_quarantine_that_cannot_be_written_costs_the_evidence_and_nothing_else() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let blob = noise(7, SIZE);
    let digest = cached(&upstream, &mirror, &blob).await;
    for cannot_remove in [false, true] {
        let_reads_fail(&mirror, &digest, 3, false);
        let fails = move |operation, path: &Path| {
            path.to_string_lossy().contains("quarantine") || cannot_remove && operation == Operation::Remove
        };
        mirror.faults().each(fails, faults::Fault::Errno(Errno::ROFS.raw_os_error()));
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
        until("kept", || mirror.holds(&digest)).await;
        mirror.faults().heal();
        accounts_are_right(&mirror).await;
        assert!(!aside(&mirror.cache_dir(), &digest).exists());
    }
    let hit = mirror.get(&path(&digest)).await.expect(200);
    assert_eq!((hit.body == blob, hit.header("cache-status")), (true, Some("larder; hit")));
}
