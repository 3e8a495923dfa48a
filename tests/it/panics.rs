//! Panics in the middle of the work: each costs what it was about, all who wait for that are told at once, and what comes next
//! is done as ever.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use larder::store::{Operation, faults};

use super::damage::{accounts_are_right, aside, cached, file, path};
use super::unreadable::let_reads_fail;
use crate::support::{
    Fault, Match, PATIENCE, Registry, Streaming, TestMirror, assert_sound, digest_of, logged, noise, partial_file, until,
};

const REPOSITORY: &str = "library/app";
const MIB: usize = 1 << 20;
const KIB: usize = 1 << 10;

/// A larder of 14 MiB for blobs.
async fn small(upstream: &Registry) -> TestMirror {
    TestMirror::builder().upstream("docker.io", upstream).set("cache.max_size = \"16MiB\"\ncache.min_free = \"0%\"").start().await
}

// === what is removed and set aside ===

/// All that was to go with it stayed on the disk, and was never counted nor removed again.
#[tokio::test]
async fn a_panic_while_a_blob_is_evicted_costs_its_space_and_eviction_goes_on() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).await;
    let mut old = Vec::new();
    for seed in 301..=306 {
        old.push(cached(&upstream, &mirror, &noise(seed, 2 * MIB)).await);
    }
    // The one that goes first.
    let first = file(&mirror.cache_dir(), &old[0]);
    let removes = first.clone();
    mirror.faults().each(move |operation, path: &Path| operation == Operation::Remove && path == removes, faults::Fault::Panic);
    let new = noise(307, 5 * MIB);
    let digest = upstream.put_blob(REPOSITORY, new.clone());
    let url = path(&digest);
    for answer in join_all((0..3).map(|_| mirror.get(&url))).await {
        let status = answer.header("cache-status").unwrap().to_owned();
        assert!(answer.expect(200).body == new);
        assert!(!status.contains("bypass"), "{status}");
    }
    mirror.kept(&digest).await;
    logged(&["ERROR", &old[0], "a blob could not be evicted", "a disk job panicked"]).await;
    assert_eq!([0, 1, 2, 3].map(|n| mirror.holds(&old[n])), [false, false, false, true], "two more had to go");
    assert!(first.exists() && !file(&mirror.cache_dir(), &old[1]).exists());
    // It goes on counting, and so does the work.
    accounts_are_right(&mirror).await;
    mirror.faults().heal();
    cached(&upstream, &mirror, &noise(308, 4 * MIB)).await;
    assert!(!mirror.holds(&old[3]));
    accounts_are_right(&mirror).await;
    assert_eq!((mirror.trouble(), upstream.count("GET", &digest)), (None, 1));
    assert_eq!(mirror.metric("larder_bypasses_total{reason=\"disk\"}"), 0);
    // The next larder looks at every file and finds it.
    let mirror = mirror.stop().await.start().await;
    assert!(mirror.holds(&old[0]));
    accounts_are_right(&mirror).await;
    assert_sound(&mirror.cache_dir());
}

#[tokio::test]
async fn a_panic_while_a_partial_file_is_removed_leaves_it_for_the_next_time() {
    let upstream = Registry::start().await;
    let stopped = TestMirror::of(&upstream).await.stop().await;
    let blob = noise(311, 300 * KIB);
    let digest = digest_of(&blob);
    let partial = stopped.cache_dir().join("partial").join(digest.replace(':', "-"));
    fs::write(&partial, &blob[..200 * KIB]).unwrap();
    let mirror = stopped.start().await;
    let removes = partial.clone();
    mirror.faults().each(move |operation, path: &Path| operation == Operation::Remove && path == removes, faults::Fault::Panic);
    for removed in [false, true] {
        mirror.clock().advance(Duration::from_hours(2));
        mirror.upkeep().await;
        assert_eq!((partial.exists(), mirror.used()), (!removed, if removed { 0 } else { 200 << 10 }));
        logged(&["ERROR", &digest, "a partial file could not be removed", "a disk job panicked"]).await;
        mirror.faults().heal();
    }
    accounts_are_right(&mirror).await;
}

#[tokio::test]
async fn a_panic_while_a_damaged_blob_is_set_aside_costs_the_evidence_and_no_space() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let blob = noise(321, 3_500_000);
    let digest = cached(&upstream, &mirror, &blob).await;
    let_reads_fail(&mirror, &digest, 2, false);
    let moves = |operation, path: &Path| operation == Operation::Rename && path.to_string_lossy().contains("quarantine");
    mirror.faults().each(moves, faults::Fault::Panic);
    assert!(mirror.get(&path(&digest)).await.expect(200).body == blob);
    mirror.kept(&digest).await;
    logged(&["ERROR", &digest, "a cached blob is damaged; it will be fetched anew"]).await;
    assert!(!aside(&mirror.cache_dir(), &digest).exists());
    assert_eq!((mirror.metric("larder_quarantined_total"), upstream.count("GET", &digest)), (1, 2));
    accounts_are_right(&mirror).await;
}

#[tokio::test]
async fn a_panic_while_the_quarantine_is_bounded_costs_the_space_of_one_file_until_the_next_start() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).await;
    // More than the quarantine of so small a cache may hold.
    let blob = noise(331, MIB);
    let digest = cached(&upstream, &mirror, &blob).await;
    let_reads_fail(&mirror, &digest, 0, false);
    let removes = |operation, path: &Path| operation == Operation::Remove && path.to_string_lossy().contains("quarantine");
    mirror.faults().each(removes, faults::Fault::Panic);
    assert!(mirror.get(&path(&digest)).await.expect(200).body == blob);
    mirror.kept(&digest).await;
    logged(&["ERROR", &digest, "a file in quarantine could not be removed", "a disk job panicked"]).await;
    logged(&["ERROR", &digest, "a cached blob is damaged; it is in quarantine/ and will be fetched anew"]).await;
    let aside = aside(&mirror.cache_dir(), &digest);
    assert!(aside.exists());
    accounts_are_right(&mirror).await;
    let mirror = mirror.stop().await.start().await;
    assert!(!aside.exists());
    accounts_are_right(&mirror).await;
}

// === records ===

/// Whoever had panicked was taken to be still writing: nothing was recorded any more, and a stop waited for it in vain.
#[tokio::test]
async fn a_panic_while_records_are_written_costs_nothing_once_they_are_written_anew() {
    for all_of_it in [false, true] {
        let upstream = Registry::start().await;
        let mirror = TestMirror::of(&upstream).await;
        let blob = noise(341, 1000);
        let panics = move |operation, path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name == "records" && operation == Operation::Write || all_of_it && name.starts_with("records")
        };
        mirror.faults().each(panics, faults::Fault::Panic);
        let before = mirror.faults().count();
        let digest = cached(&upstream, &mirror, &blob).await;
        let seen = |n: usize| mirror.faults().since(before).iter().filter(|(_, name)| name.starts_with("records")).count() >= n;
        until("it has been recorded", || seen(1)).await;
        let records = || fs::read_to_string(mirror.cache_dir().join("records")).unwrap();
        if all_of_it {
            // To write all of it anew panics as well.
            while !seen(2) {
                mirror.probe().await;
            }
        }
        mirror.faults().heal();
        let written = async {
            while !records().contains(&digest) {
                mirror.probe().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, written).await.is_ok(), "{}", records());
        let mirror = mirror.stop().await.set("mirror.offline = true").start().await;
        assert!(mirror.get(&path(&digest)).await.expect(200).body == blob);
    }
}

// === fills ===

/// A panic must be heard of by all who wait within 100 ms; on a machine that runs many tests, ten times as long.
const AT_ONCE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_fill_that_panics_ends_at_once_for_all_who_read_it_and_the_next_request_fills() {
    let mut took = Vec::new();
    for seed in 351..=353 {
        let upstream = Registry::start().await;
        let blob = noise(seed, 500_000);
        let digest = upstream.put_blob(REPOSITORY, blob.clone());
        // In the middle of the blob.
        let panics = Fault::answer(200, &[("x-larder-panic", "200001")], blob.clone());
        upstream.on(Match::get(&digest).times(1), vec![panics, Fault::Gate { after: 200_000 }]);
        let mirror = TestMirror::of(&upstream).await;
        let url = path(&digest);
        let mut readers = join_all((0..10).map(|_| mirror.stream(&url))).await;
        for reader in &mut readers {
            assert!(reader.take(100_000).await == blob[..100_000]);
        }
        let begun = Instant::now();
        upstream.release();
        let ends = join_all(readers.into_iter().map(Streaming::rest)).await;
        took.push(begun.elapsed());
        for end in ends {
            assert!(!end.complete && blob[100_000..].starts_with(&end.body), "{} bytes", end.body.len());
        }
        assert_eq!(upstream.count("GET", &digest), 1);
        // What has come is left for the next fill. One that begins before the last write of the other is done goes past it.
        let mut fills = 1;
        while !mirror.holds(&digest) {
            let answer = mirror.get(&url).await.expect(200);
            assert!(answer.body == blob);
            fills += 1;
            if !answer.header("cache-status").unwrap().contains("bypass") {
                mirror.kept(&digest).await;
            }
            assert!(fills < 10);
        }
        assert_eq!(upstream.count("GET", &digest), fills);
        assert!(upstream.requests().last().unwrap().range().is_some(), "from where the other had come");
        mirror.metric_is("larder_fills_total{outcome=\"kept\"}", 1).await;
        accounts_are_right(&mirror).await;
    }
    assert!(took.iter().min().unwrap() < &AT_ONCE, "{took:?}");
}

/// Nothing has gone out yet: there is a status to tell it by.
#[tokio::test]
async fn a_fill_that_panics_before_it_has_begun_is_told_to_all_who_wait_by_a_status_and_the_next_request_fills() {
    let mut took = Vec::new();
    for seed in 361..=363 {
        let upstream = Registry::start().await;
        let blob = noise(seed, 500_000);
        let digest = upstream.put_blob(REPOSITORY, blob.clone());
        let stopped = TestMirror::of(&upstream).await.stop().await;
        // Of what an earlier fill has left, the last byte is asked for again before anyone is told of it.
        let partial = partial_file(&stopped.cache_dir(), &digest);
        fs::write(partial, &blob[..200_000]).unwrap();
        let part = [("content-range", "bytes 199999-499999/500000"), ("x-larder-panic", "0")];
        let panics = Fault::answer(206, &part, blob.slice(199_999..));
        upstream.on(Match::get(&digest).times(1), vec![panics, Fault::Latency(Duration::from_millis(500))]);
        let mirror = stopped.start().await;
        let url = path(&digest);
        let told = join_all((0..10).map(|_| async {
            let answer = mirror.get(&url).await.expect(503);
            (answer.header("retry-after").map(str::to_owned), answer.error_code(), Instant::now())
        }))
        .await;
        for (retry_after, code, _) in &told {
            assert_eq!((retry_after.as_deref(), code.as_deref()), (Some("1"), Some("UNAVAILABLE")));
        }
        let when = || told.iter().map(|(.., when)| *when);
        took.push(when().max().unwrap() - when().min().unwrap());
        assert_eq!(upstream.count("GET", &digest), 1);
        assert!(mirror.get(&url).await.expect(200).body == blob);
        mirror.kept(&digest).await;
        let asked: Vec<_> = upstream.requests().iter().map(|request| request.range().map(str::to_owned)).collect();
        assert_eq!(asked, [Some("bytes=199999-".to_owned()), Some("bytes=199999-".to_owned())], "what was there is still there");
        accounts_are_right(&mirror).await;
    }
    assert!(took.iter().min().unwrap() < &AT_ONCE, "{took:?}");
}
