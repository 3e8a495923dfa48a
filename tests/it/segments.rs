//! Large blobs of upstreams that limit each connection: fetched by several, exactly, and each byte once.

use bytes::Bytes;

use crate::support::{Blobs, Fault, Listener, Match, Registry, Setup, TestMirror, get, noise};

const MIB: usize = 1 << 20;
const SIZE: usize = 48 * MIB + 12_345;

/// An upstream that sends so many bytes a second by each connection, and a blob that it has.
async fn limited(rate: u64) -> (Registry, String, String, Bytes) {
    limited_but(rate, |all| all, Vec::new()).await
}

/// Likewise, with these faults of some answers.
async fn limited_but(rate: u64, some: impl Fn(Match) -> Match, mut faults: Vec<Fault>) -> (Registry, String, String, Bytes) {
    let upstream = Registry::start().await;
    let blob = noise(1, SIZE);
    let digest = upstream.put_blob("library/alpine", blob.clone());
    faults.push(Fault::Bandwidth(rate));
    upstream.on(some(Match::get(&digest)), faults);
    upstream.on(Match::get(&digest), Fault::Bandwidth(rate));
    let path = format!("/v2/library/alpine/blobs/{digest}");
    (upstream, digest, path, blob)
}

/// A larder that fetches by up to four.
async fn by_four(upstream: &Registry) -> TestMirror {
    TestMirror::builder().upstream("docker.io", upstream).set("mirror.blob_connections = 4").start().await
}

#[tokio::test]
async fn a_large_blob_of_a_slow_upstream_comes_by_several_connections_each_byte_once() {
    let (upstream, digest, path, blob) = limited(16 << 20).await;
    let mirror = by_four(&upstream).await;
    let clients = futures_util::future::join_all((0..10).map(|_| get(mirror.url(&path)))).await;
    assert!(clients.into_iter().all(|answer| answer.expect(200).body == blob));
    mirror.kept(&digest).await;
    let parts = upstream.count("GET", &digest);
    assert!(parts > 4, "one from the beginning, and one for each 4 MiB of the rest: {parts}");
    assert!(upstream.bytes_sent() < (SIZE + 6 * MIB) as u64, "{}", upstream.bytes_sent());
    assert!(mirror.get(&path).await.expect(200).body == blob);
    assert_eq!(upstream.count("GET", &digest), parts);
}

/// For each segment a registry would have to be asked, and to sign another way to its storage.
#[tokio::test]
async fn where_a_registry_sends_for_one_segment_is_where_the_next_are_asked_for_and_again_when_that_way_is_closed() {
    for expires in [false, true] {
        let upstream = Registry::with(Setup { blobs: Blobs::REDIRECTED, ..Setup::default() }).await;
        let blob = noise(1, SIZE);
        let digest = upstream.put_blob("library/alpine", blob.clone());
        let limited = Fault::Bandwidth(16 << 20);
        if expires {
            upstream.on(Match::storage(&digest).skip(3).times(1), vec![Fault::Gate { after: 0 }, limited.clone()]);
        }
        upstream.on(Match::storage(&digest), limited);
        let mirror = by_four(&upstream).await;
        let answer = mirror.stream(&format!("/v2/library/alpine/blobs/{digest}")).await;
        if expires {
            upstream.held(1).await;
            upstream.expire_signatures();
            upstream.release();
        }
        let answer = answer.rest().await;
        assert!(answer.complete && answer.body == blob);
        mirror.kept(&digest).await;
        let parts = upstream.count_at(Listener::Storage, "GET", &digest);
        let asked = upstream.count_at(Listener::Front, "GET", &digest);
        let renewed = mirror.metric("larder_redirect_refreshes_total{upstream=\"docker.io\"}");
        assert!(parts > 8, "{parts}");
        // The whole, and what was asked for before there was an answer; each connection finds out for itself.
        assert!(asked <= if expires { 8 } else { 4 }, "{asked} of {parts}");
        assert_eq!(renewed > 0, expires, "{renewed}");
    }
}

#[tokio::test]
async fn a_blob_that_is_not_large_is_asked_for_once() {
    let upstream = Registry::start().await;
    let blob = noise(1, 24 * MIB);
    let digest = upstream.put_blob("library/alpine", blob.clone());
    upstream.on(Match::get(&digest), Fault::Bandwidth(24 << 20));
    let mirror = by_four(&upstream).await;
    assert!(mirror.get(&format!("/v2/library/alpine/blobs/{digest}")).await.expect(200).body == blob);
    assert_eq!(upstream.count("GET", &digest), 1);
}

#[tokio::test]
async fn who_wants_one_connection_has_one() {
    let (upstream, digest, path, blob) = limited(24 << 20).await;
    let mirror = TestMirror::of(&upstream).await;
    assert!(mirror.get(&path).await.expect(200).body == blob);
    assert_eq!(upstream.count("GET", &digest), 1);
}

#[tokio::test]
async fn an_upstream_that_gives_no_parts_is_read_on() {
    let (upstream, digest, path, blob) = limited_but(24 << 20, |all| all, vec![Fault::IgnoreRange]).await;
    let mirror = by_four(&upstream).await;
    assert!(mirror.get(&path).await.expect(200).body == blob);
    let asked = upstream.count("GET", &digest);
    assert!(asked <= 4, "and asked no further: {asked}");
    mirror.kept(&digest).await;
}

/// Whatever breaks, what has come is not fetched again, but for what lies in memory beyond the break.
#[tokio::test]
async fn a_segment_that_breaks_is_taken_up_again() {
    for skip in [0, 3] {
        for fault in [Fault::Cut { after: MIB }, Fault::Reset { after: 3 * MIB }, Fault::status(500)] {
            let one = |all: Match| all.ranged().skip(skip).times(1);
            let (upstream, _, path, blob) = limited_but(32 << 20, one, vec![fault.clone()]).await;
            let mirror = by_four(&upstream).await;
            assert!(mirror.get(&path).await.expect(200).body == blob, "{skip} {fault:?}");
            let sent = upstream.bytes_sent();
            assert!(sent <= (SIZE + 20 * MIB) as u64, "{skip} {fault:?}: {sent}");
        }
    }
}

#[tokio::test]
async fn a_wrong_byte_of_a_segment_is_found() {
    let (upstream, digest, path, _) = limited_but(32 << 20, Match::ranged, vec![Fault::Corrupt { at: 20 * MIB }]).await;
    let mirror = by_four(&upstream).await;
    let answer = mirror.get(&path).await;
    assert!(!answer.complete);
    assert!(!mirror.holds(&digest));
}

#[tokio::test]
async fn after_a_restart_the_rest_comes_by_segments_as_well() {
    let (upstream, digest, path, blob) = limited(16 << 20).await;
    let mirror = by_four(&upstream).await;
    let mut body = mirror.stream(&path).await;
    body.take(2 * MIB).await;
    drop(body);
    let mirror = mirror.stop().await.start().await;
    upstream.forget_requests();
    assert!(mirror.get(&path).await.expect(200).body == blob);
    assert!(upstream.count("GET", &digest) > 2);
    assert!(upstream.bytes_sent() < (SIZE + 24 * MIB) as u64, "{}", upstream.bytes_sent());
}
