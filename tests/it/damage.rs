//! Files of the cache that are damaged: clients do not notice, and the next one finds the blob whole again.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use larder::store::{Operation, faults};
use rustix::io::Errno;

use super::unreadable::let_reads_fail;
use crate::support::{Client, Log, Registry, TestMirror, noise, until};

pub(super) const REPOSITORY: &str = "library/app";

/// Larger than what is withheld of a blob, and read in many pieces.
pub(super) const SIZE: usize = 3_500_000;

pub(super) fn path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

/// Where the file of a blob is.
pub(super) fn file(cache: &Path, digest: &str) -> PathBuf {
    let (algorithm, hex) = digest.split_once(':').unwrap();
    cache.join("blobs").join(algorithm).join(&hex[..2]).join(hex)
}

/// Where it is once it was found damaged.
pub(super) fn aside(cache: &Path, digest: &str) -> PathBuf {
    cache.join("quarantine").join(digest.replace(':', "-"))
}

/// What the files under these directories take of the disk. What is no file is a stranger's.
fn disk_use(dirs: &[PathBuf]) -> u64 {
    let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten()).map(|entry| entry.unwrap().path());
    let blocks = |path: &Path| fs::symlink_metadata(path).map_or(0, |meta| if meta.is_file() { meta.blocks() * 512 } else { 0 });
    entries.map(|path| if path.is_dir() { disk_use(&[path]) } else { blocks(&path) }).sum()
}

/// What the cache takes of the disk is what it counts, once nobody reads or writes.
pub(super) async fn accounts_are_right(mirror: &TestMirror) {
    let cache = mirror.cache_dir();
    let on_disk = || disk_use(&["blobs", "partial", "quarantine"].map(|dir| cache.join(dir)));
    until(&format!("{} counted, {} on the disk", mirror.used(), on_disk()), || mirror.used() == on_disk()).await;
}

/// How many blobs were found damaged.
pub(super) async fn quarantined(mirror: &TestMirror) -> u64 {
    let page = Client::h1().get(mirror.admin_url("/metrics")).await.expect(200).text();
    let line = page.lines().find_map(|line| line.strip_prefix("larder_quarantined_total "));
    line.expect("it is on the page").parse().unwrap()
}

/// Has a blob in the cache.
pub(super) async fn cached(upstream: &Registry, mirror: &TestMirror, blob: &Bytes) -> String {
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    mirror.kept(&digest).await;
    digest
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
        let_reads_fail(&mirror, &digest, 0, false);
        mirror.get(&path(&digest)).await.expect(200);
        mirror.faults().heal();
        digests.push(digest);
    }
    for digest in &digests {
        mirror.get(&path(digest)).await.expect(200);
        mirror.kept(digest).await;
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
        let_reads_fail(&mirror, &digest, 2, false);
        let fails = move |operation, path: &Path| {
            path.to_string_lossy().contains("quarantine") || cannot_remove && operation == Operation::Remove
        };
        mirror.faults().each(fails, faults::Fault::Errno(Errno::ROFS.raw_os_error()));
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
        mirror.kept(&digest).await;
        mirror.faults().heal();
        accounts_are_right(&mirror).await;
        assert!(!aside(&mirror.cache_dir(), &digest).exists());
    }
    let hit = mirror.get(&path(&digest)).await.expect(200);
    assert_eq!((hit.body == blob, hit.header("cache-status")), (true, Some("larder; hit")));
}

// === verification ===

/// Changes the file of a blob as no larder ever would.
fn harm(cache: &Path, digest: &str, damage: &str) {
    let path = file(cache, digest);
    let bytes = fs::read(&path).unwrap();
    let flip = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    match damage {
        "cut to nothing" => fs::write(&path, b"").unwrap(),
        "cut by one byte" => fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes.len() as u64 - 1).unwrap(),
        "one byte longer" => fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"x").unwrap(),
        "zeroed" => fs::write(&path, vec![0; bytes.len()]).unwrap(),
        "another first byte" => flip(0),
        "another byte in the middle" => flip(bytes.len() / 2),
        "another last byte" => flip(bytes.len() - 1),
        "gone" => fs::remove_file(&path).unwrap(),
        "a directory" => {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
        }
        "not to be opened" => {
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&path, &path).unwrap();
        }
        _ => panic!("{damage}"),
    }
}

/// Seen at the opening of a file, and what only its bytes tell.
const OUTSIDE: [&str; 6] = ["cut to nothing", "cut by one byte", "one byte longer", "gone", "a directory", "not to be opened"];
const INSIDE: [&str; 4] = ["zeroed", "another first byte", "another byte in the middle", "another last byte"];

/// For each damage three blobs: to be asked for whole, for a part, and for its size.
struct Table {
    upstream: Registry,
    blobs: Vec<(&'static str, [(String, Bytes); 3])>,
}

impl Table {
    async fn of(damages: &[&'static str]) -> (Self, TestMirror) {
        let upstream = Registry::start().await;
        let mirror = TestMirror::of(&upstream).await;
        let mut blobs = Vec::new();
        for damage in damages {
            let mut three = Vec::new();
            for _ in 0..3 {
                let blob = noise(1000 + (blobs.len() * 3 + three.len()) as u64, 300_000);
                three.push((cached(&upstream, &mirror, &blob).await, blob));
            }
            blobs.push((*damage, three.try_into().unwrap()));
        }
        (Self { upstream, blobs }, mirror)
    }

    fn harm(&self, cache: &Path) {
        for (damage, blobs) in &self.blobs {
            blobs.iter().for_each(|(digest, _)| harm(cache, digest, damage));
        }
        self.upstream.forget_requests();
    }

    /// All requests are answered rightly; returns how many of the blobs were fetched anew.
    async fn pull(&self, mirror: &TestMirror) -> usize {
        for (damage, [whole, part, size]) in &self.blobs {
            let answer = mirror.get(&path(&whole.0)).await.expect(200);
            assert!(answer.body == whole.1, "whole: {damage}");
            let answer = mirror.get_with(&path(&part.0), &[("range", "bytes=100000-100999")]).await.expect(206);
            assert!(answer.body == part.1.slice(100_000..101_000), "a part: {damage}");
            let answer = mirror.head(&path(&size.0)).await.expect(200);
            assert_eq!(answer.header("content-length"), Some("300000"), "size: {damage}");
        }
        // Who was answered from the upstream has brought it back.
        for (digest, _) in self.blobs.iter().flat_map(|(_, blobs)| &blobs[..2]) {
            mirror.kept(digest).await;
        }
        let fetched = |(digest, _): &&(String, Bytes)| self.upstream.count("GET", digest) > 0;
        self.blobs.iter().flat_map(|(_, blobs)| blobs).filter(fetched).count()
    }
}

#[tokio::test]
async fn whatever_happens_to_a_file_while_it_is_open_clients_get_right_bytes_or_the_scrub_finds_it() {
    let (table, mirror) = Table::of(&OUTSIDE).await;
    table.harm(&mirror.cache_dir());
    // Only what was cut cannot be read: the others are open, as they were.
    assert_eq!(table.pull(&mirror).await, 3);
    let (table, mirror) = Table::of(&INSIDE).await;
    table.harm(&mirror.cache_dir());
    mirror.clock().advance(Duration::from_hours(15 * 24));
    // Bytes are not hashed at each hit, so it takes the scrub to see this.
    let scrubbed = mirror.scrub().await;
    assert_eq!((scrubbed.right, scrubbed.damaged, scrubbed.skipped), (0, 12, 0));
    assert_eq!(table.pull(&mirror).await, 8, "all that was asked for, but for sizes");
    accounts_are_right(&mirror).await;
}

#[tokio::test]
async fn whatever_happens_to_a_file_while_larder_is_stopped_clients_get_right_bytes_or_the_scrub_finds_it() {
    let (table, mirror) = Table::of(&OUTSIDE).await;
    let stopped = mirror.stop().await;
    table.harm(&stopped.cache_dir());
    let mirror = stopped.start().await;
    assert_eq!(table.pull(&mirror).await, 12);
    assert_eq!(quarantined(&mirror).await, 15, "what cannot be opened is replaced in its place");
    mirror.clock().advance(Duration::from_hours(15 * 24));
    let scrubbed = mirror.scrub().await;
    let of_each = (scrubbed.right, scrubbed.damaged, scrubbed.skipped);
    assert_eq!(of_each, (12, 1, 0), "of those whose size was asked for the one that cannot be opened");
    accounts_are_right(&mirror).await;

    let (table, mirror) = Table::of(&INSIDE).await;
    let stopped = mirror.stop().await;
    table.harm(&stopped.cache_dir());
    let mirror = stopped.start().await;
    mirror.clock().advance(Duration::from_hours(15 * 24));
    assert_eq!(mirror.scrub().await.damaged, 12);
    assert_eq!(table.pull(&mirror).await, 8);
    accounts_are_right(&mirror).await;
}

#[tokio::test]
async fn whatever_an_unclean_stop_does_to_a_file_its_first_reader_gets_right_bytes() {
    for damages in [&OUTSIDE[..], &INSIDE[..]] {
        let (table, mirror) = Table::of(damages).await;
        let stopped = mirror.stop().await.into_killed();
        table.harm(&stopped.cache_dir());
        let mirror = stopped.start().await;
        assert_eq!(table.pull(&mirror).await, 2 * damages.len(), "{damages:?}");
        accounts_are_right(&mirror).await;
        // The scrub finds the rest, and what is there is right.
        mirror.scrub().await;
        assert_eq!(mirror.scrub().await, larder::store::Scrubbed::default(), "all is verified");
        accounts_are_right(&mirror).await;
    }
}

/// HEAD told the size that the index had, of a file that was not there any more, and GET then had nothing to give.
#[tokio::test]
async fn without_an_upstream_head_promises_nothing_of_a_file_that_is_gone_or_cut() {
    let log = Log::from_here();
    for damage in ["cut to nothing", "cut by one byte", "one byte longer", "gone", "a directory"] {
        let upstream = Registry::start().await;
        let mirror = TestMirror::of(&upstream).await;
        let blob = noise(20, SIZE);
        let digest = cached(&upstream, &mirror, &blob).await;
        let stopped = mirror.stop().await.set("mirror.offline = true");
        harm(&stopped.cache_dir(), &digest, damage);
        let mirror = stopped.start().await;
        mirror.head(&path(&digest)).await.expect(404);
        mirror.get(&path(&digest)).await.expect(404);
        assert!(!mirror.holds(&digest), "{damage}");
        assert_eq!(mirror.metric("larder_quarantined_total"), 1, "{damage}");
        log.will_say(&["ERROR", &digest, "a cached blob is damaged"]).await;
    }
}

#[tokio::test]
async fn after_an_unclean_stop_the_first_reading_of_a_blob_verifies_it_once_for_all_who_read_it() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let blob = noise(8, 5_000_000);
    let digest = cached(&upstream, &mirror, &blob).await;
    let mirror = mirror.stop().await.into_killed().start().await;
    upstream.forget_requests();
    let url = path(&digest);
    for answer in join_all((0..10).map(|_| mirror.get(&url))).await {
        assert_eq!(answer.header("cache-status"), Some("larder; hit"));
        assert!(answer.expect(200).body == blob);
    }
    assert_eq!(upstream.requests().len(), 0);
    let page = Client::h1().get(mirror.admin_url("/metrics")).await.text();
    assert!(page.contains("larder_verified_total{outcome=\"right\"} 1\n"), "{page}");
    // It is known from now on, and by the next larder too.
    let mirror = mirror.stop().await.start().await;
    mirror.get(&url).await.expect(200);
    assert_eq!(mirror.scrub().await, larder::store::Scrubbed::default());
}

/// A disk so slow that a file goes out before all of it is verified: nothing of it ends before it is, and what has gone out
/// of a damaged one is compared with the right one.
#[tokio::test]
async fn a_file_that_takes_long_to_verify_goes_out_meanwhile_and_never_ends_wrong() {
    let sent = 1_500_000;
    join_all([None, Some(2_999_990), Some(5)].map(|wrong_at| async move {
        let upstream = Registry::start().await;
        let mirror = TestMirror::of(&upstream).await;
        let blob = noise(9, 3_000_000);
        let digest = cached(&upstream, &mirror, &blob).await;
        let stopped = mirror.stop().await.into_killed();
        if let Some(at) = wrong_at {
            let mut bytes = blob.to_vec();
            bytes[at] ^= 1;
            fs::write(file(&stopped.cache_dir(), &digest), bytes).unwrap();
        }
        // The disk hangs behind the middle of the file.
        let (hex, reads) = (digest.replace("sha256:", ""), AtomicUsize::new(0));
        let hangs = move |operation, path: &Path| {
            operation == Operation::Read && path.ends_with(&hex) && reads.fetch_add(1, Ordering::Relaxed) >= 2
        };
        stopped.faults().each(hangs, faults::Fault::Hang);
        let mirror = stopped.start().await;
        let mut whole = mirror.stream(&path(&digest)).await;
        let mut part = Client::h1().stream_with(mirror.url(&path(&digest)), &[("range", "bytes=0-99999")]).await;
        let begun = whole.take(sent).await;
        assert_eq!(begun.len(), sent);
        assert_eq!(part.take(99_999).await.len(), 99_999);
        mirror.faults().heal();
        let (whole, part) = (whole.rest().await, part.rest().await);
        let harmed = wrong_at == Some(5);
        assert_eq!((whole.complete, part.complete), (!harmed, !harmed), "{wrong_at:?}");
        if !harmed {
            assert!([begun, whole.body].concat() == blob, "{wrong_at:?}");
        }
        let whole = mirror.get(&path(&digest)).await.expect(200);
        assert!(whole.body == blob);
        assert_eq!(quarantined(&mirror).await, u64::from(wrong_at.is_some()));
    }))
    .await;
}

#[tokio::test]
async fn a_scrub_finds_what_is_damaged_while_it_is_read_and_the_reader_ends_short() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.scrub_rate = \"1GiB\"").start().await;
    let blob = noise(10, 48 << 20);
    let digest = cached(&upstream, &mirror, &blob).await;
    let mut reading = mirror.stream(&path(&digest)).await;
    reading.take(100_000).await;
    let damaged = fs::OpenOptions::new().write(true).open(file(&mirror.cache_dir(), &digest)).unwrap();
    damaged.write_all_at(&[!blob[50]], 50).unwrap();
    mirror.clock().advance(Duration::from_hours(15 * 24));
    assert_eq!(mirror.scrub().await.damaged, 1);
    assert!(!reading.rest().await.complete);
    assert!(mirror.get(&path(&digest)).await.expect(200).body == blob);
}
