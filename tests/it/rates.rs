//! How much larder takes from upstreams where the operator has set a limit, and that all fills get on alike.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::support::{Fault, Match, Registry, TestMirror, noise};

const MIB: usize = 1 << 20;

/// Blobs of this size, as the upstream has them, and their paths.
fn blobs(upstream: &Registry, seeds: std::ops::Range<u64>, size: usize) -> Vec<(String, Bytes)> {
    let put = |seed| {
        let blob = noise(seed, size);
        (format!("/v2/library/app/blobs/{}", upstream.put_blob("library/app", blob.clone())), blob)
    };
    seeds.map(put).collect()
}

/// How long each takes, asked for at the same time.
async fn times(mirror: &TestMirror, ns: &str, blobs: &[(String, Bytes)]) -> Vec<Duration> {
    let fetch = async |(path, blob): &(String, Bytes)| {
        let begun = Instant::now();
        assert!(mirror.get(&format!("{path}?ns={ns}")).await.expect(200).body == *blob);
        begun.elapsed()
    };
    join_all(blobs.iter().map(fetch)).await
}

/// The last of them is done no sooner than this many milliseconds after the beginning.
fn assert_held_back(times: &[Duration], least: u64) {
    assert!(times.iter().max() >= Some(&Duration::from_millis(least)), "{times:?}");
}

#[tokio::test]
async fn all_fills_of_an_upstream_share_what_may_come_and_hits_and_other_upstreams_have_no_part_in_it() {
    let (hub, quay) = (Registry::start().await, Registry::start().await);
    let mirror = TestMirror::builder().upstream("docker.io", &hub).upstream("quay.io", &quay);
    let mirror = mirror.set("upstream.\"docker.io\".max_rate = \"4MiB\"").start().await;
    let (four, others) = (blobs(&hub, 0..4, 3 * MIB), blobs(&quay, 4..5, 3 * MIB));
    let (of_hub, of_quay) = tokio::join!(times(&mirror, "docker.io", &four), times(&mirror, "quay.io", &others));
    // 12 MiB, of which half a second's worth comes at once to whoever is first.
    assert_held_back(&of_hub, 2450);
    let last = *of_hub.iter().max().unwrap();
    assert!(of_quay[0] < last, "{of_quay:?}, {of_hub:?}");
    let hits = times(&mirror, "docker.io", &four).await;
    assert!(hits.iter().all(|hit| *hit < last), "{hits:?}");
}

#[tokio::test]
async fn all_upstreams_share_what_may_come_together() {
    let (hub, quay) = (Registry::start().await, Registry::start().await);
    let mirror = TestMirror::builder().upstream("docker.io", &hub).upstream("quay.io", &quay);
    let mirror = mirror.set("mirror.max_rate = \"4MiB\"").start().await;
    let (of_hub, of_quay) = (blobs(&hub, 0..2, 3 * MIB), blobs(&quay, 2..4, 3 * MIB));
    let (of_hub, of_quay) = tokio::join!(times(&mirror, "docker.io", &of_hub), times(&mirror, "quay.io", &of_quay));
    assert_held_back(&[of_hub, of_quay].concat(), 2450);
}

/// What larder waits for of itself is no silence of the upstream, and no reason to ask for a part by another connection.
#[tokio::test]
async fn who_is_held_back_is_not_slow() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("upstream.\"docker.io\".max_rate = \"4MiB\"");
    let mirror = mirror.set("upstream.\"docker.io\".idle_timeout = \"500ms\"").set("mirror.blob_connections = 4");
    let mirror = mirror.set("upstream.\"docker.io\".min_rate = \"8MiB\"").start().await;
    let large = blobs(&upstream, 0..1, 12 * MIB);
    let took = times(&mirror, "docker.io", &large).await;
    assert_held_back(&took, 2450);
    assert_eq!(upstream.count("GET", &large[0].0), 1);
}

#[tokio::test]
async fn segments_stay_within_the_limit_as_well() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("upstream.\"docker.io\".max_rate = \"16MiB\"");
    let mirror = mirror.set("mirror.blob_connections = 4").start().await;
    let large = blobs(&upstream, 0..1, 56 * MIB);
    upstream.on(Match::get(&large[0].0), Fault::Bandwidth(8 << 20));
    let took = times(&mirror, "docker.io", &large).await;
    // By four without a limit it would take little more than 2 s.
    assert_held_back(&took, 2950);
    assert!(upstream.count("GET", &large[0].0) > 2);
}

/// They were told that the upstream had no room, where it was larder that let nothing come.
#[tokio::test]
async fn who_waits_for_those_that_are_held_back_is_not_refused() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("upstream.\"docker.io\".max_rate = \"2MiB\"");
    let mirror = mirror.set("upstream.\"docker.io\".max_transfers = 2\nupstream.\"docker.io\".header_timeout = \"300ms\"");
    let mirror = mirror.start().await;
    let (large, small) = (blobs(&upstream, 0..1, 4 * MIB), blobs(&upstream, 1..2, 1000));
    let (large, small) = tokio::join!(times(&mirror, "docker.io", &large), async {
        upstream.seen("GET", "/blobs/", 1).await;
        times(&mirror, "docker.io", &small).await
    });
    assert_held_back(&large, 1400);
    assert!(small[0] > Duration::from_millis(300), "there was no room: {small:?}");
}

#[tokio::test]
async fn a_limit_that_nobody_could_live_with_is_refused() {
    let upstream = Registry::start().await;
    for option in ["mirror.max_rate", "upstream.\"docker.io\".max_rate"] {
        let mirror = TestMirror::builder().upstream("docker.io", &upstream).set(&format!("{option} = \"63KiB\""));
        let (why, _) = mirror.try_start().await.err().unwrap();
        assert_eq!(why, format!("{option} is 63.0 KiB; it must be 0B or at least 64KiB"));
    }
}
