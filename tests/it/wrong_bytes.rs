//! Bytes that are not what the digest promises: another address is asked, and the one that sent them is asked last.

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::support::{Fault, Image, Log, Match, Registry, StoppedMirror, TestMirror, digest_of, noise};

const REPOSITORY: &str = "library/app";

fn path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

/// Two registries with the same blob.
async fn pair(size: usize) -> (Registry, Registry, Bytes, String) {
    let (first, second) = (Registry::start().await, Registry::start().await);
    let blob = noise(1, size);
    first.put_blob(REPOSITORY, blob.clone());
    let digest = second.put_blob(REPOSITORY, blob.clone());
    (first, second, blob, digest)
}

fn before(first: &Registry, second: &Registry) -> StoppedMirror {
    let fallbacks = format!("upstream.\"docker.io\".fallbacks = [{:?}]", second.url());
    TestMirror::builder().upstream("docker.io", first).set(&fallbacks)
}

const MISMATCHES: &str = "larder_digest_mismatches_total{upstream=\"docker.io\"}";

#[tokio::test]
async fn a_small_blob_that_comes_wrong_comes_right_from_the_next_address_and_no_client_notices() {
    let log = Log::from_here();
    for wrong in [Fault::Corrupt { at: 5 }, Fault::WrongBody(noise(2, 9_999)), Fault::WrongBody(noise(2, 10_001))] {
        let (first, second, blob, digest) = pair(10_000).await;
        first.on(Match::get(&digest), wrong.clone());
        let mirror = before(&first, &second).start().await;
        let url = path(&digest);
        for answer in join_all((0..5).map(|_| mirror.get(&url))).await {
            assert_eq!(answer.expect(200).body, blob, "{wrong:?}");
        }
        assert_eq!((first.requests().len(), second.requests().len()), (1, 1), "{wrong:?}");
        assert_eq!(mirror.metric(MISMATCHES), 1, "{wrong:?}");
        mirror.kept(&digest).await;
        if let Fault::WrongBody(bytes) = &wrong {
            log.will_say(&["ERROR", &digest, &format!("found={}", digest_of(bytes)), "upstream=docker.io"]).await;
        }
    }
}

#[tokio::test]
async fn a_manifest_that_comes_wrong_is_refused_and_counted_as_a_blob_is() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/app", "latest");
    upstream.on(Match::get(&image.digest).times(1), Fault::WrongBody(noise(2, 500)));
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&image.manifest_path()).await.expect(502);
    assert_eq!(mirror.metric(MISMATCHES), 1);
    assert!(!mirror.holds(&image.digest));
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest);
    assert_eq!(mirror.metric(MISMATCHES), 1);
}

#[tokio::test]
async fn of_a_large_blob_who_has_wrong_bytes_ends_short_and_who_has_none_gets_right_ones() {
    let (first, second, blob, digest) = pair(500_000).await;
    first.on(Match::get(&digest), vec![Fault::Corrupt { at: 100_000 }, Fault::Gate { after: 400_000 }]);
    let mirror = before(&first, &second).start().await;
    let url = path(&digest);
    let mut misled = mirror.stream(&url).await;
    // The other wants what is withheld until all is verified.
    let given = misled.take(300_000).await;
    assert_ne!(given, blob.slice(..300_000));
    let (misled, tail, ()) = tokio::join!(misled.rest(), mirror.get_with(&url, &[("range", "bytes=490000-")]), async {
        first.held(1).await;
        first.release();
    });
    assert!(!misled.complete, "{} wrong bytes ended cleanly", misled.body.len());
    assert_eq!(tail.expect(206).body, blob.slice(490_000..));
    mirror.kept(&digest).await;
    assert_eq!(mirror.get(&url).await.expect(200).body, blob);
    assert_eq!((first.requests().len(), second.requests().len()), (1, 1));
    assert_eq!(second.requests()[0].range(), None, "with an empty file");
    assert_eq!(fs::read_dir(mirror.cache_dir().join("partial")).unwrap().count(), 0);
}

/// One client, two ranges: the first part was of the wrong copy, so the second must not be of the right one.
#[tokio::test]
async fn no_answer_has_parts_of_two_versions() {
    let (first, second, blob, digest) = pair(500_000).await;
    first.on(Match::get(&digest), vec![Fault::Corrupt { at: 50 }, Fault::Gate { after: 400_000 }]);
    let mirror = before(&first, &second).start().await;
    let url = path(&digest);
    let (both, ()) = tokio::join!(mirror.get_with(&url, &[("range", "bytes=0-99,490000-490099")]), async {
        first.held(1).await;
        first.release();
    });
    assert!(!both.complete, "{} bytes of two versions", both.body.len());
    mirror.kept(&digest).await;
    let right = mirror.get_with(&url, &[("range", "bytes=0-99")]).await.expect(206);
    assert_eq!(right.body, blob.slice(..100));
}

#[tokio::test]
async fn for_a_minute_whoever_sent_a_wrong_blob_is_asked_last_for_it_and_for_nothing_else() {
    let (first, second, blob, digest) = pair(17 << 20).await;
    let other = first.put_blob(REPOSITORY, noise(3, 1000));
    first.on(Match::get(&digest).times(1), Fault::Corrupt { at: 100 });
    // It is too large to be kept, so that it is fetched each time.
    let mirror = before(&first, &second).set("cache.max_size = \"16MiB\"").start().await;
    let mut asked = Vec::new();
    for advance in [0, 0, 59, 1] {
        mirror.clock().advance(Duration::from_secs(advance));
        let answer = mirror.get(&path(&digest)).await;
        assert!(!answer.complete || answer.body == blob);
        asked.push((first.count("GET", &digest), second.count("GET", &digest)));
    }
    assert!(asked[0].0 == 1 && asked[0].1 <= 1, "{asked:?}");
    assert_eq!((asked[2].0, asked[3].0), (1, 2), "{asked:?}");
    mirror.get(&path(&other)).await.expect(200);
    assert_eq!(second.count("GET", &other), 0);
}

#[tokio::test]
async fn where_all_addresses_send_wrong_bytes_each_is_asked_once_and_nothing_is_kept() {
    let (first, second, blob, digest) = pair(10_000).await;
    first.on(Match::get(&digest), Fault::Corrupt { at: 5 });
    second.on(Match::get(&digest).times(1), Fault::Corrupt { at: 5 });
    let mirror = before(&first, &second).start().await;
    let url = path(&digest);
    for answer in join_all((0..5).map(|_| mirror.get(&url))).await {
        answer.expect(502);
    }
    assert_eq!((first.requests().len(), second.requests().len()), (1, 1));
    assert_eq!(mirror.metric(MISMATCHES), 2);
    mirror.metric_is("larder_fills_total{outcome=\"mismatch\"}", 1).await;
    assert_eq!(fs::read_dir(mirror.cache_dir().join("partial")).unwrap().count(), 0);
    mirror.clock().advance(Duration::from_mins(1));
    assert_eq!(mirror.get(&url).await.expect(200).body, blob);
}

/// It asked for ever, as what it asked for lay in the cache all the while.
#[tokio::test]
async fn a_small_blob_that_is_here_and_comes_wrong_for_another_repository_is_refused_there_and_stays_right() {
    for (size, ends_early) in [(0, false), (10_000, false), (0, true), (10_000, true)] {
        let upstream = Registry::start().await;
        let blob = noise(7, size);
        let digest = upstream.put_blob(REPOSITORY, blob.clone());
        upstream.put_blob_under("library/liar", &digest, noise(8, 10_001));
        if ends_early {
            upstream.on(Match::get("library/liar"), Fault::Cut { after: 5000 });
        }
        let mirror = TestMirror::of(&upstream).await;
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
        mirror.kept(&digest).await;
        upstream.forget_requests();
        let url = format!("/v2/library/liar/blobs/{digest}");
        let answers = join_all((0..5).map(|_| mirror.get(&url))).await;
        for answer in answers {
            assert_eq!(answer.status, 502, "{}", answer.text());
        }
        let asked = upstream.count("GET", &digest);
        assert!((1..=30).contains(&asked), "{asked} requests for five clients");
        upstream.forget_requests();
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
        assert_eq!(upstream.requests().len(), 0);
    }
}
