//! Upstreams that break off, fall silent, or send something else: clients get right bytes, or plainly not all.

use std::{fs, path::Path};

use bytes::Bytes;
use futures_util::future::join_all;

use crate::support::{Client, Fault, Log, Match, Registry, TestMirror, noise, partial_file};

const REPOSITORY: &str = "library/app";

fn path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

/// The files under a directory, those in its directories too.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    found
}

/// All `Range`s with which the blob was asked for, one for each GET.
fn ranges(upstream: &Registry, digest: &str) -> Vec<Option<String>> {
    let gets = upstream.requests().into_iter().filter(|request| request.method == "GET" && request.path.contains(digest));
    gets.map(|request| request.range().map(str::to_owned)).collect()
}

// === wrong bytes ===

/// Asks for a blob that must not come whole, and tells how many bytes came. Where none has been sent, there may still be
/// time for a status; else the connection closes, before the headers or after them.
async fn comes_short(mirror: &TestMirror, digest: &str) -> usize {
    match Client::h1().try_get(mirror.url(&path(digest))).await {
        Ok(answer) if answer.status == 502 => 0,
        Ok(answer) => {
            assert!(!answer.complete, "{} bytes ended cleanly: {:?}", answer.body.len(), answer.headers);
            answer.body.len()
        }
        Err(_) => 0,
    }
}

/// Asks for a blob that comes wrong: the body must not end cleanly, nothing of it may stay, and the next request must ask
/// anew.
async fn comes_wrong(blob: Bytes, faults: Vec<Fault>) -> usize {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest), faults);
    let mirror = TestMirror::of(&upstream).await;
    let came = comes_short(&mirror, &digest).await;
    assert!(came < blob.len());
    upstream.heal();
    let asked = upstream.count("GET", &digest);
    assert!(asked <= 3, "asked {asked} times for wrong bytes");

    let stopped = mirror.stop().await;
    let cache = stopped.cache_dir();
    let left = [files(&cache.join("blobs")), files(&cache.join("partial"))].concat();
    assert!(left.is_empty(), "{left:?} stayed");

    let mirror = stopped.start().await;
    let head = mirror.head(&path(&digest)).await.expect(200);
    assert_eq!(head.header("content-length"), Some(blob.len().to_string().as_str()), "not what the wrong answer said");
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    assert_eq!(ranges(&upstream, &digest), vec![None; asked + 1], "asked once more, and for everything");
    came
}

#[tokio::test]
async fn a_blob_with_one_wrong_byte_never_ends_cleanly_and_is_not_kept() {
    let blob = noise(1, 300_000);
    for at in [0, 150_000, 299_999] {
        comes_wrong(blob.clone(), vec![Fault::Corrupt { at }]).await;
    }
}

#[tokio::test]
async fn a_small_blob_with_a_wrong_byte_sends_no_byte_at_all() {
    assert_eq!(comes_wrong(noise(2, 2_000), vec![Fault::Corrupt { at: 7 }]).await, 0);
}

#[tokio::test]
async fn a_blob_that_is_too_long_or_too_short_never_ends_cleanly_and_is_not_kept() {
    let blob = noise(3, 300_000);
    for wrong in [noise(3, 300_001), noise(3, 299_999)] {
        comes_wrong(blob.clone(), vec![Fault::WrongBody(wrong), Fault::NoLength]).await;
    }
}

#[tokio::test]
async fn a_blob_whose_announced_length_is_wrong_leaves_no_trace_of_that_length() {
    let blob = noise(4, 300_000);
    comes_wrong(blob.clone(), vec![Fault::WrongBody(noise(4, 200_000))]).await;
}

/// The next request came while the wrong file was being removed and was told that someone writes the blob: it was answered
/// past the cache and the one after it had to fetch everything again.
#[tokio::test]
async fn the_blob_that_comes_after_a_wrong_one_is_kept() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    for seed in 50..70 {
        let blob = noise(seed, 300_000);
        let digest = upstream.put_blob(REPOSITORY, blob.clone());
        upstream.on(Match::get(&digest).times(1), Fault::Corrupt { at: 5 });
        // It is short, unless larder was quick enough to ask again before it answered.
        if let Ok(answer) = Client::h1().try_get(mirror.url(&path(&digest))).await {
            assert!(!answer.complete || answer.status == 502 || answer.body == blob);
        }
        for _ in 0..2 {
            assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
        }
        assert_eq!(upstream.count("GET", &digest), 2, "blob {seed}: once wrong, once right");
    }
}

#[tokio::test]
async fn a_blob_that_the_upstream_compresses_is_refused_and_not_kept() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob(REPOSITORY, noise(5, 10_000));
    upstream.on(Match::get(&digest), Fault::ContentEncoding("gzip"));
    let mirror = TestMirror::of(&upstream).await;
    let answer = mirror.get(&path(&digest)).await.expect(502);
    assert_eq!(answer.error_code().as_deref(), Some("UNAVAILABLE"));
    let asked_for = upstream.requests()[0].header("accept-encoding").map(str::to_owned);
    assert_eq!(asked_for.as_deref(), Some("identity"));
    let stopped = mirror.stop().await;
    let cache = stopped.cache_dir();
    assert_eq!([files(&cache.join("blobs")), files(&cache.join("partial"))].concat(), [""; 0]);
}

#[tokio::test]
async fn a_blob_without_a_length_comes_whole_and_is_kept() {
    let upstream = Registry::start().await;
    let blob = noise(6, 700_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest), Fault::NoLength);
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    let hit = mirror.get(&path(&digest)).await.expect(200);
    assert_eq!(hit.body, blob);
    assert_eq!(hit.header("content-length"), Some("700000"), "{:?}", hit.headers);
    assert_eq!(upstream.count("GET", &digest), 1);
}

// === breaking off ===

#[tokio::test]
async fn a_transfer_that_breaks_off_once_goes_on_where_it_was_and_no_client_notices() {
    let log = Log::from_here();
    let upstream = Registry::start().await;
    let blob = noise(7, 4_000_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Cut { after: 1_600_000 });
    let mirror = TestMirror::of(&upstream).await;
    let url = path(&digest);
    for answer in join_all((0..3).map(|_| mirror.get(&url))).await {
        assert_eq!(answer.expect(200).body, blob);
    }
    assert_eq!(ranges(&upstream, &digest), [None, Some("bytes=1600000-".to_owned())]);
    assert_eq!(mirror.metric("larder_fill_resumes_total"), 1);
    assert_eq!(log.says(&["INFO", &digest, "a transfer broke", "at=1600000"]), 1);
    assert_eq!(log.says(&["WARN", &digest]) + log.says(&["ERROR", &digest]), 0, "nothing is wrong");
}

#[tokio::test]
async fn a_transfer_may_break_off_at_any_byte() {
    let upstream = Registry::start().await;
    let size = 200_000;
    let mirror = TestMirror::of(&upstream).await;
    let cuts = [0, 1, 2, 16_383, 16_384, 100_000, size - 16_385, size - 16_384, size - 16_383, size - 2, size - 1];
    let one = |(seed, after): (usize, usize)| {
        let (mirror, upstream) = (&mirror, &upstream);
        async move {
            let blob = noise(100 + seed as u64, size);
            let digest = upstream.put_blob(REPOSITORY, blob.clone());
            upstream.on(Match::get(&digest).times(1), Fault::Cut { after });
            assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob, "cut at {after}");
            assert_eq!(ranges(upstream, &digest), [None, Some(format!("bytes={after}-"))]);
        }
    };
    join_all(cuts.into_iter().enumerate().map(one)).await;
}

#[tokio::test]
async fn a_transfer_without_a_length_may_break_off_too() {
    let upstream = Registry::start().await;
    let blob = noise(8, 500_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest).times(1), vec![Fault::NoLength, Fault::Cut { after: 200_000 }]);
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
}

#[tokio::test]
async fn an_upstream_that_ignores_the_range_of_a_resumption_is_read_past_what_is_here() {
    let upstream = Registry::start().await;
    let blob = noise(9, 500_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Cut { after: 200_000 });
    upstream.on(Match::get(&digest).ranged(), Fault::IgnoreRange);
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    assert_eq!(upstream.count("GET", &digest), 2);
}

#[tokio::test]
async fn a_wrong_byte_after_a_resumption_lets_no_body_end_cleanly() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob(REPOSITORY, noise(10, 500_000));
    upstream.on(Match::get(&digest).times(1), Fault::Cut { after: 200_000 });
    upstream.on(Match::get(&digest).ranged(), Fault::Corrupt { at: 400_000 });
    let mirror = TestMirror::of(&upstream).await;
    comes_short(&mirror, &digest).await;
    assert!(!mirror.holds(&digest));
}

#[tokio::test]
async fn an_upstream_that_falls_silent_is_asked_for_the_rest() {
    let upstream = Registry::start().await;
    let blob = noise(11, 500_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Stall { after: 200_000 });
    let mirror = TestMirror::builder()
        .upstream("docker.io", &upstream)
        .set("upstream.\"docker.io\".idle_timeout = \"200ms\"")
        .start()
        .await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    assert_eq!(ranges(&upstream, &digest), [None, Some("bytes=200000-".to_owned())]);
}

// === staying dead ===

/// What a client gets of a blob whose upstream sends 40 % and then fails like this whenever it is asked for more; and that
/// the next attempt, when it is well again, goes on from there.
async fn stays_dead(fault: Fault) {
    let log = Log::from_here();
    let upstream = Registry::start().await;
    let blob = noise(12, 500_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest).times(1), vec![Fault::Gate { after: 200_000 }, Fault::Cut { after: 200_000 }]);
    upstream.on(Match::get(&digest), fault);
    let mirror = TestMirror::of(&upstream).await;
    let mut short = mirror.stream(&path(&digest)).await;
    assert_eq!(short.take(200_000).await, blob.slice(..200_000));
    upstream.release();
    let rest = short.rest().await;
    assert!(!rest.complete);
    assert_eq!(rest.body.len(), 0, "no byte that did not come");
    log.will_say(&["ERROR", &digest, "at=200000", "a fill is given up"]).await;
    mirror.metric_is("larder_fills_total{outcome=\"given_up\"}", 1).await;

    upstream.heal();
    upstream.forget_requests();
    let stopped = mirror.stop().await;
    let cache = stopped.cache_dir();
    let partial = partial_file(&cache, &digest);
    assert_eq!(files(&cache.join("partial")), [partial.file_name().unwrap().to_string_lossy()]);
    assert_eq!(files(&cache.join("blobs")), [""; 0]);
    let mirror = stopped.start().await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    // The last byte that is here is asked for again: that the upstream has it proves that it may be served.
    assert_eq!(ranges(&upstream, &digest), [Some("bytes=199999-".to_owned())]);
}

#[tokio::test]
async fn a_blob_whose_upstream_loses_it_ends_short_and_is_resumed_later() {
    stays_dead(Fault::status(404)).await;
}

#[tokio::test]
async fn a_blob_whose_upstream_stays_down_ends_short_and_is_resumed_later() {
    stays_dead(Fault::status(503)).await;
}

/// Each resumption that got as far as the headers counted as one that had worked, so that it was tried for ever.
#[tokio::test]
async fn a_blob_of_which_no_further_byte_ever_comes_ends_short_and_is_resumed_later() {
    stays_dead(Fault::Cut { after: 0 }).await;
}

/// Lets the upstream send 40 % and then lose the blob once, so that a partial file stays.
async fn leave_partial(upstream: &Registry, mirror: &TestMirror, digest: &str) {
    upstream.on(Match::get(digest).times(1), vec![Fault::Gate { after: 200_000 }, Fault::Cut { after: 200_000 }]);
    upstream.on(Match::get(digest).times(1), Fault::status(404));
    let mut short = mirror.stream(&path(digest)).await;
    short.take(200_000).await;
    upstream.release();
    assert!(!short.rest().await.complete);
}

/// The next client of a partial file was answered 502 where any other transfer would have been taken up again.
#[tokio::test]
async fn the_resumption_of_a_partial_file_may_break_off_as_well() {
    let upstream = Registry::start().await;
    let blob = noise(13, 500_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    let mirror = TestMirror::of(&upstream).await;
    leave_partial(&upstream, &mirror, &digest).await;
    upstream.on(Match::get(&digest).times(1), Fault::Cut { after: 0 });
    let mirror = mirror.stop().await.start().await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
}

#[tokio::test]
async fn a_partial_file_that_the_upstream_does_not_go_on_with_is_begun_anew() {
    for fault in [Fault::IgnoreRange, Fault::status(416)] {
        let upstream = Registry::start().await;
        let blob = noise(14, 500_000);
        let digest = upstream.put_blob(REPOSITORY, blob.clone());
        let mirror = TestMirror::of(&upstream).await;
        leave_partial(&upstream, &mirror, &digest).await;
        upstream.on(Match::get(&digest).ranged().times(1), fault);
        let mirror = mirror.stop().await.start().await;
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    }
}
