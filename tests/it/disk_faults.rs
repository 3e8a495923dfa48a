//! What is wrong with the disk for a while: pulls go on, the operator is told, and it is over by itself.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use larder::store::Operation;
use larder::store::faults::Fault;

use crate::support::{
    self, Image, Match, PATIENCE, PutImage, Registry, TestMirror, assert_booked, assert_sound, get, logged, noise, partial_file,
};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EOPNOTSUPP: i32 = 95;

const MIB: usize = 1 << 20;

async fn world() -> (Registry, TestMirror) {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder()
        .upstream("docker.io", &upstream)
        .set("cache.min_free = \"0%\"")
        .set("cache.patience = \"200ms\"")
        .start()
        .await;
    (upstream, mirror)
}

fn changes(operation: Operation) -> bool {
    use Operation::{Allocate, Create, MakeDir, Rename, Sync, SyncDir, Touch, Truncate, Write};
    matches!(operation, Allocate | Create | MakeDir | Rename | Sync | SyncDir | Touch | Truncate | Write)
}

fn put(upstream: &Registry, seed: u64, size: usize) -> (PutImage, String) {
    let image = Image::new(seed).layers(&[size]).put(upstream, "library/app", &format!("t{seed}"));
    let path = image.blob_path(&image.layers[0]);
    (image, path)
}

/// Waits until the store says that all is well again.
async fn is_well(mirror: &TestMirror) {
    let well = async {
        while mirror.trouble().is_some() {
            mirror.probe().await;
        }
    };
    tokio::time::timeout(PATIENCE, well).await.expect("it notices that the disk is well again");
}

async fn counted(mirror: &TestMirror, line: &str) -> u64 {
    let page = get(mirror.admin_url("/metrics")).await.expect(200).text();
    page.lines().find_map(|other| other.strip_prefix(line)?.trim().parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn while_the_disk_is_full_everything_is_passed_on_and_nothing_is_kept_and_then_it_is_kept_again() {
    let (upstream, mirror) = world().await;
    let (before, warm) = put(&upstream, 1, MIB);
    assert_eq!(mirror.get(&warm).await.expect(200).body, before.layers[0].bytes);
    mirror.kept(&before.layers[0].digest).await;

    mirror.faults().each(|operation, _| changes(operation), Fault::Errno(ENOSPC));
    let (image, path) = put(&upstream, 2, 3 * MIB);
    for asked in 1..=2 {
        let answer = mirror.get(&path).await.expect(200);
        assert_eq!(answer.body, image.layers[0].bytes);
        assert!(answer.header("cache-status").unwrap().contains("bypass"), "{:?}", answer.headers);
        assert_eq!(upstream.count("GET", &image.layers[0].digest), asked);
    }
    assert!(!mirror.holds(&image.layers[0].digest));
    assert_eq!(mirror.get(&warm).await.expect(200).body, before.layers[0].bytes, "a hit is a hit");
    assert!(mirror.trouble().unwrap().why.contains("No space left"), "{:?}", mirror.trouble());
    assert_eq!(counted(&mirror, "larder_cache_state").await, 1);
    assert!(counted(&mirror, "larder_bypasses_total{reason=\"disk\"}").await >= 2);
    mirror.probe().await;
    assert!(mirror.trouble().is_some(), "looking does not make it better");

    mirror.faults().heal();
    is_well(&mirror).await;
    assert_eq!(counted(&mirror, "larder_cache_state").await, 0);
    mirror.get(&path).await.expect(200);
    mirror.kept(&image.layers[0].digest).await;
    let mirror = mirror.stop().await.start().await;
    assert_booked(&mirror).await;
}

#[tokio::test]
async fn a_disk_that_fills_up_in_the_middle_of_a_blob_is_not_noticed_by_its_readers() {
    let (upstream, mirror) = world().await;
    // Larger than the window of memory, so that who lags must fetch what it missed.
    let (image, path) = put(&upstream, 3, 24 * MIB);
    let digest = image.layers[0].digest.clone();
    upstream.on(Match::get(&digest).times(1), support::Fault::Gate { after: 4 * MIB });
    let mut slow = mirror.stream(&path).await;
    let mut quick = mirror.stream(&path).await;
    let begin = quick.take(2 * MIB).await;
    assert_eq!(begin, image.layers[0].bytes.slice(..2 * MIB));
    mirror.faults().each(|operation, _| operation == Operation::Write, Fault::Errno(ENOSPC));
    upstream.release();
    let rest = quick.rest().await;
    assert!(rest.complete && rest.body == image.layers[0].bytes.slice(2 * MIB..), "{} bytes", rest.body.len());
    assert_eq!(slow.take(1).await, image.layers[0].bytes.slice(..1));
    let rest = slow.rest().await;
    assert!(rest.complete && rest.body == image.layers[0].bytes.slice(1..), "{} bytes", rest.body.len());
    let late = mirror.get(&path).await.expect(200);
    assert_eq!(late.body, image.layers[0].bytes);
    mirror.faults().heal();
    let stopped = mirror.stop().await;
    assert_sound(&stopped.cache_dir());
    assert_booked(&stopped.start().await).await;
}

/// The next bytes are ready to be written when those before them fail.
#[tokio::test]
async fn what_stays_of_a_blob_that_could_not_be_written_has_no_hole() {
    let (upstream, mirror) = world().await;
    let (image, path) = put(&upstream, 4, 24 * MIB);
    let digest = image.layers[0].digest.clone();
    let written = AtomicUsize::new(0);
    mirror.faults().each(
        // Were it removed, nothing would stay.
        move |operation, path| match operation {
            Operation::Write if path.parent().is_some_and(|dir| dir.ends_with("partial")) => {
                written.fetch_add(1, Ordering::Relaxed) == 6
            }
            operation => operation == Operation::Remove,
        },
        Fault::Errno(EIO),
    );
    assert_eq!(mirror.get(&path).await.expect(200).body, image.layers[0].bytes);
    let left = fs::read(partial_file(&mirror.cache_dir(), &digest)).unwrap();
    assert!(left.len() < 24 * MIB && left == image.layers[0].bytes[..left.len()], "{} bytes", left.len());
    mirror.faults().heal();
    let stopped = mirror.stop().await;
    assert_sound(&stopped.cache_dir());
    assert_booked(&stopped.start().await).await;
}

/// They were gone on with, and found wrong once more, before the blob was fetched anew.
#[tokio::test]
async fn wrong_bytes_that_could_not_be_removed_are_not_gone_on_with() {
    let (upstream, mirror) = world().await;
    let (image, path) = put(&upstream, 5, 3 * MIB);
    upstream.on(Match::get(&image.layers[0].digest).times(1), support::Fault::Corrupt { at: 10 });
    mirror.faults().each(|operation, _| operation == Operation::Remove, Fault::Errno(EIO));
    assert!(!mirror.get(&path).await.complete);
    mirror.metric_is("larder_fills_total{outcome=\"mismatch\"}", 1).await;
    assert!(partial_file(&mirror.cache_dir(), &image.layers[0].digest).exists());
    mirror.faults().heal();
    let answer = mirror.get(&path).await.expect(200);
    assert!(answer.body == image.layers[0].bytes, "{} bytes", answer.body.len());
    mirror.kept(&image.layers[0].digest).await;
    assert_eq!(upstream.count("GET", &image.layers[0].digest), 2);
    assert_booked(&mirror).await;
}

#[tokio::test]
async fn a_disk_that_hangs_is_waited_for_once_and_then_by_nobody_until_it_answers() {
    let (upstream, mirror) = world().await;
    mirror.faults().each(|operation, _| changes(operation), Fault::Hang);
    for seed in 10..20 {
        let (image, path) = put(&upstream, seed, 200_000);
        let answer = tokio::time::timeout(PATIENCE, mirror.get(&path)).await.expect("nobody waits for the disk");
        assert_eq!(answer.expect(200).body, image.layers[0].bytes);
    }
    let hanging = mirror.faults().hanging();
    assert!((1..=2).contains(&hanging), "{hanging} operations hang: only those that somebody has waited for");
    assert!(mirror.trouble().unwrap().why.contains("does not answer"), "{:?}", mirror.trouble());
    mirror.faults().heal();
    is_well(&mirror).await;
    let (image, path) = put(&upstream, 20, 200_000);
    mirror.get(&path).await.expect(200);
    mirror.kept(&image.layers[0].digest).await;
    let stopped = mirror.stop().await;
    assert_sound(&stopped.cache_dir());
    assert_booked(&stopped.start().await).await;
}

#[tokio::test]
async fn a_disk_that_hangs_in_the_middle_of_a_blob_is_not_noticed_by_its_readers() {
    let (upstream, mirror) = world().await;
    let (image, path) = put(&upstream, 21, 6 * MIB);
    let digest = image.layers[0].digest.clone();
    upstream.on(Match::get(&digest).times(1), support::Fault::Gate { after: 3 * MIB });
    let mut reader = mirror.stream(&path).await;
    assert_eq!(reader.take(MIB).await, image.layers[0].bytes.slice(..MIB));
    mirror.faults().each(|operation, _| changes(operation), Fault::Hang);
    upstream.release();
    let rest = tokio::time::timeout(PATIENCE, reader.rest()).await.expect("nobody waits for the disk");
    assert!(rest.complete && rest.body == image.layers[0].bytes.slice(MIB..), "{} bytes", rest.body.len());
    mirror.faults().heal();
    is_well(&mirror).await;
    let stopped = mirror.stop().await;
    assert_sound(&stopped.cache_dir());
    assert_booked(&stopped.start().await).await;
}

#[tokio::test]
async fn a_disk_that_hangs_does_not_hold_up_a_stop() {
    let (upstream, mirror) = world().await;
    mirror.faults().each(|operation, _| changes(operation), Fault::Hang);
    let (_, path) = put(&upstream, 22, 200_000);
    mirror.get(&path).await.expect(200);
    let faults = mirror.faults().clone();
    let stopped = tokio::time::timeout(Duration::from_secs(20), mirror.stop()).await.expect("it stops");
    faults.heal();
    drop(stopped);
}

#[tokio::test]
async fn what_cannot_be_removed_goes_on_counting_until_it_can() {
    let (upstream, mirror) = world().await;
    let (image, path) = put(&upstream, 23, 200_000);
    let fails = |operation: Operation| matches!(operation, Operation::Sync | Operation::Remove);
    mirror.faults().each(move |operation, _| fails(operation), Fault::Errno(EIO));
    assert_eq!(mirror.get(&path).await.expect(200).body, image.layers[0].bytes);
    let settled = async {
        while mirror.trouble().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.expect("the commit fails");
    mirror.faults().heal();
    mirror.clock().advance(Duration::from_hours(2));
    mirror.upkeep().await;
    assert_booked(&mirror).await;
    assert_eq!(fs::read_dir(mirror.cache_dir().join("partial")).unwrap().count(), 0, "it is removed when it can be");
}

#[tokio::test]
async fn directories_that_vanish_under_our_feet_are_made_again() {
    let (upstream, mirror) = world().await;
    for (seed, dir) in [(30, "partial"), (31, "blobs")] {
        fs::remove_dir_all(mirror.cache_dir().join(dir)).unwrap();
        let (image, path) = put(&upstream, seed, 200_000);
        assert_eq!(mirror.get(&path).await.expect(200).body, image.layers[0].bytes, "without {dir}");
        mirror.kept(&image.layers[0].digest).await;
    }
    assert_sound(&mirror.cache_dir());
}

#[tokio::test]
async fn a_range_of_a_blob_that_the_disk_does_not_take_is_right_too() {
    let (upstream, mirror) = world().await;
    let blob = noise(40, 12 * MIB);
    let digest = upstream.put_blob("library/app", blob.clone());
    mirror.faults().each(|operation, _| changes(operation), Fault::Errno(ENOSPC));
    let path = format!("/v2/library/app/blobs/{digest}");
    for (range, start, end) in
        [("bytes=0-0", 0, 1), ("bytes=5000000-6000000", 5_000_000, 6_000_001), ("bytes=-100", 12 * MIB - 100, 12 * MIB)]
    {
        let answer = mirror.get_with(&path, &[("range", range)]).await.expect(206);
        assert!(answer.complete && answer.body == blob.slice(start..end), "{range}: {} bytes", answer.body.len());
    }
}

/// It was hashed in one go, and where that took longer than the patience, the disk counted as one that hangs. The upstream, which has
/// begun to answer, waits meanwhile, which is not held against it.
#[tokio::test]
async fn a_large_partial_file_on_a_slow_disk_is_gone_on_with() {
    let upstream = Registry::start().await;
    let blob = noise(50, 72 * MIB);
    let digest = upstream.put_blob("library/app", blob.clone());
    let mirror = TestMirror::builder()
        .upstream("docker.io", &upstream)
        .set("cache.min_free = \"0%\"")
        .set("cache.patience = \"3s\"")
        .set("upstream.\"docker.io\".idle_timeout = \"1s\"")
        .start()
        .await;
    let stopped = mirror.stop().await;
    let partial = partial_file(&stopped.cache_dir(), &digest);
    fs::write(&partial, &blob[..70 * MIB]).unwrap();
    let mirror = stopped.start().await;
    // All of it takes longer than the patience, and no stretch of it does.
    let reads = AtomicUsize::new(0);
    let slow = move |operation, path: &Path| {
        let read = operation == Operation::Read && path == partial;
        read && [0, 40, 66].contains(&reads.fetch_add(1, Ordering::Relaxed))
    };
    mirror.faults().each(slow, Fault::Slow(Duration::from_millis(1100)));
    let answer = mirror.get(&format!("/v2/library/app/blobs/{digest}")).await.expect(200);
    assert!(answer.body == blob);
    assert!(answer.header("cache-status").unwrap().contains("miss"), "{:?}", answer.headers);
    assert_eq!(upstream.requests()[0].range(), Some("bytes=73400319-"), "one byte of it, and the rest");
    assert_eq!((upstream.requests().len(), mirror.trouble()), (1, None));
    mirror.kept(&digest).await;
    assert_eq!(counted(&mirror, "larder_bypasses_total{reason=\"disk\"}").await, 0);
    assert_booked(&mirror).await;
}

/// Where a stretch of it cannot be read, it is cut off there.
#[tokio::test]
async fn a_partial_file_is_gone_on_with_from_where_it_can_be_read_to() {
    let (upstream, mirror) = world().await;
    let blob = noise(51, 40 * MIB);
    let digest = upstream.put_blob("library/app", blob.clone());
    let stopped = mirror.stop().await;
    let partial = partial_file(&stopped.cache_dir(), &digest);
    fs::write(&partial, &blob[..36 * MIB]).unwrap();
    let mirror = stopped.set("cache.patience = \"5s\"").start().await;
    let reads = AtomicUsize::new(0);
    let fails = move |operation, path: &Path| {
        operation == Operation::Read && path == partial && reads.fetch_add(1, Ordering::Relaxed) == 34
    };
    mirror.faults().each(fails, Fault::Errno(EIO));
    assert!(mirror.get(&format!("/v2/library/app/blobs/{digest}")).await.expect(200).body == blob);
    let ranges: Vec<_> = upstream.requests().iter().map(|request| request.range().unwrap().to_owned()).collect();
    assert_eq!(ranges, ["bytes=37748735-", "bytes=33554432-"], "whole stretches are known to be right");
    logged(&["WARN", &digest, "a partial file can be read up to here", "at=33554432"]).await;
    mirror.kept(&digest).await;
    assert_booked(&mirror).await;
}

/// The bytes before that place were forgotten only by half: an upstream that does not go on with them sent the blob behind them,
/// and the answer ended cleanly, or never.
#[tokio::test]
async fn a_partial_file_that_can_neither_be_read_nor_cut_is_forgotten_from_its_beginning() {
    let without_ranges = || vec![support::Fault::IgnoreRange];
    let without_size = || vec![support::Fault::IgnoreRange, support::Fault::NoLength];
    for (seed, fault, patience, upstreams) in [
        (59, Fault::Errno(EIO), "10s", vec![]),
        (60, Fault::Errno(EIO), "10s", without_ranges()),
        (61, Fault::Errno(EIO), "10s", without_size()),
        (62, Fault::Hang, "3s", without_size()),
    ] {
        let (upstream, mirror) = world().await;
        let blob = noise(seed, 40 * MIB);
        let digest = upstream.put_blob("library/app", blob.clone());
        // It has gone on with them when it was asked, and has to begin anew.
        upstream.on(Match::get(&digest).times(1), vec![]);
        upstream.on(Match::get(&digest), upstreams.clone());
        let stopped = mirror.stop().await;
        let partial = partial_file(&stopped.cache_dir(), &digest);
        fs::write(&partial, &blob[..36 * MIB]).unwrap();
        let mirror = stopped.set(&format!("cache.patience = {patience:?}")).start().await;
        let reads = AtomicUsize::new(0);
        let fails = move |operation, path: &Path| {
            path == partial
                && match operation {
                    Operation::Read => reads.fetch_add(1, Ordering::Relaxed) == 34,
                    Operation::Truncate => true,
                    _ => false,
                }
        };
        mirror.faults().each(fails, fault);
        let path = format!("/v2/library/app/blobs/{digest}");
        let answer = tokio::time::timeout(PATIENCE, mirror.get(&path)).await.expect("it ends").expect(200);
        assert!(answer.body == blob, "{fault:?}, {upstreams:?}: {} bytes", answer.body.len());
        assert!(answer.header("cache-status").unwrap().contains("bypass"), "{:?}", answer.headers);
        let ranges: Vec<_> = upstream.requests().iter().map(|request| request.range().unwrap().to_owned()).collect();
        assert_eq!(ranges, ["bytes=37748735-", "bytes=0-"], "{fault:?}");
        logged(&["WARN", &digest, "a partial file can be read up to here", "at=33554432"]).await;
        assert!(mirror.trouble().unwrap().why.starts_with("truncate"), "{:?}", mirror.trouble());
        assert_eq!((counted(&mirror, "larder_bypasses_total{reason=\"disk\"}").await, mirror.holds(&digest)), (1, false));
        mirror.faults().heal();
        is_well(&mirror).await;
        assert!(mirror.get(&path).await.expect(200).body == blob);
        mirror.kept(&digest).await;
        assert_eq!(fs::read_dir(mirror.cache_dir().join("partial")).unwrap().count(), 0);
        assert_booked(&mirror).await;
    }
}

/// Each read of each hit counted as an error of the disk.
#[tokio::test]
async fn a_file_system_that_cannot_read_without_waiting_is_none_that_fails() {
    let (upstream, mirror) = world().await;
    let read_cached = |operation, _: &Path| operation == Operation::ReadCached;
    mirror.faults().each(read_cached, Fault::Errno(EOPNOTSUPP));
    let (image, path) = put(&upstream, 70, 3 * MIB);
    assert!(mirror.get(&path).await.expect(200).body == image.layers[0].bytes);
    mirror.kept(&image.layers[0].digest).await;
    let hit = mirror.get(&path).await.expect(200);
    assert_eq!((hit.body == image.layers[0].bytes, hit.header("cache-status")), (true, Some("larder; hit")));
    let errors = async || get(mirror.admin_url("/metrics")).await.expect(200).text().contains("larder_disk_errors_total{");
    assert!(!errors().await);
    mirror.faults().heal();
    mirror.faults().each(read_cached, Fault::Errno(EIO));
    assert!(mirror.get(&path).await.expect(200).body == image.layers[0].bytes);
    assert!(errors().await, "of one that fails it is counted");
}
