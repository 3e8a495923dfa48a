//! One fill feeds everyone: who joins it, who leaves it, who is slow, and what is larger than the cache.

use std::fs;

use futures_util::future::join_all;
use larder::app::Drained;

use crate::support::{Fault, Match, Registry, StoppedMirror, Streaming, TestMirror, noise, stream, until};

const REPOSITORY: &str = "library/app";
const TAIL: usize = 64 << 10;

fn path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

/// So many clients, each on a connection of its own, at the beginning of the blob's body.
async fn clients(mirror: &TestMirror, digest: &str, number: usize) -> Vec<Streaming> {
    let url = mirror.url(&path(digest));
    join_all((0..number).map(|_| stream(&url))).await
}

// === joining ===

#[tokio::test]
async fn fifty_clients_of_one_cold_blob_cost_one_get_and_each_has_what_is_there_at_once() {
    let upstream = Registry::start().await;
    let blob = noise(1, 3_000_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    let gate = 1_500_000;
    upstream.on(Match::get(&digest), Fault::Gate { after: gate });
    let mirror = TestMirror::of(&upstream).await;

    let mut bodies = clients(&mirror, &digest, 25).await;
    join_all(bodies.iter_mut().map(|body| async {
        assert_eq!(body.take(gate - TAIL).await, blob.slice(..gate - TAIL), "an early client, before the gate opens");
    }))
    .await;
    let mut late = clients(&mirror, &digest, 25).await;
    join_all(late.iter_mut().map(|body| async {
        assert_eq!(body.take(gate - TAIL).await, blob.slice(..gate - TAIL), "a late client, before the gate opens");
    }))
    .await;
    assert_eq!(upstream.held_now(), 1);
    upstream.release();

    for answer in join_all(bodies.into_iter().chain(late).map(Streaming::rest)).await {
        assert_eq!(answer.expect(200).body, blob.slice(gate - TAIL..));
    }
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
}

#[tokio::test]
async fn fifty_who_ask_at_the_same_moment_cost_one_get() {
    let upstream = Registry::start().await;
    let blob = noise(2, 400_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    let mirror = TestMirror::of(&upstream).await;
    let bodies = clients(&mirror, &digest, 50).await;
    let joined = bodies.iter().filter(|body| body.headers["cache-status"] == "larder; fwd=miss; stored").count();
    assert!(joined <= 1, "only one of them is the miss");
    for answer in join_all(bodies.into_iter().map(Streaming::rest)).await {
        assert_eq!(answer.expect(200).body, blob);
    }
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
}

#[tokio::test]
async fn a_slow_reader_slows_nobody_and_gets_everything_in_the_end() {
    let upstream = Registry::start().await;
    let blob = noise(3, 24 << 20);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    let mirror = TestMirror::of(&upstream).await;
    let slow = stream(mirror.url(&path(&digest))).await;
    let quick = clients(&mirror, &digest, 3).await;
    for answer in join_all(quick.into_iter().map(Streaming::rest)).await {
        assert_eq!(answer.expect(200).body, blob);
    }
    assert_eq!(slow.rest().await.expect(200).body, blob);
    assert_eq!(upstream.count("GET", &digest), 1);
}

// === leaving ===

#[tokio::test]
async fn the_first_client_leaves_and_the_others_do_not_notice() {
    let upstream = Registry::start().await;
    let blob = noise(4, 2_000_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest), Fault::Gate { after: 1_000_000 });
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.orphan_bytes = \"1B\"").start().await;

    let mut first = stream(mirror.url(&path(&digest))).await;
    first.take(500_000).await;
    let others = clients(&mirror, &digest, 5).await;
    drop(first);
    upstream.held(1).await;
    upstream.release();
    for answer in join_all(others.into_iter().map(Streaming::rest)).await {
        assert_eq!(answer.expect(200).body, blob);
    }
    assert_eq!(upstream.count("GET", &digest), 1);
}

#[tokio::test]
async fn all_clients_leave_and_the_fill_goes_on_to_its_end() {
    let upstream = Registry::start().await;
    let blob = noise(5, 2_000_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest), Fault::Gate { after: 1_000_000 });
    let mirror = TestMirror::of(&upstream).await;
    let mut bodies = clients(&mirror, &digest, 3).await;
    for body in &mut bodies {
        body.take(500_000).await;
    }
    drop(bodies);
    upstream.held(1).await;
    upstream.release();
    mirror.kept(&digest).await;

    let answer = mirror.stop().await.start().await.get(&path(&digest)).await.expect(200);
    assert_eq!(answer.body, blob);
    assert_eq!(answer.header("cache-status"), Some("larder; hit"));
    assert_eq!(upstream.count("GET", &digest), 1);
}

#[tokio::test]
async fn all_clients_leave_a_blob_of_which_too_much_is_missing_and_the_next_one_goes_on_where_it_stopped() {
    let upstream = Registry::start().await;
    let blob = noise(6, 2_000_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Gate { after: 1_000_000 });
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.orphan_bytes = \"1KiB\"").start().await;
    let mut bodies = clients(&mirror, &digest, 3).await;
    for body in &mut bodies {
        body.take(1_000_000 - TAIL).await;
    }
    upstream.held(1).await;
    drop(bodies);
    until("dropped by larder", || upstream.held_now() == 0).await;

    let mirror = mirror.stop().await.start().await;
    let answer = mirror.get(&path(&digest)).await.expect(200);
    assert_eq!(answer.body, blob);
    let requests = upstream.requests();
    assert_eq!(requests.len(), 2, "{requests:#?}");
    let range = requests[1].range().unwrap_or_else(|| panic!("no range, but {:?}", answer.headers));
    let start: usize = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().parse().unwrap();
    assert!((1_000_000 - TAIL..1_000_000).contains(&start), "{range}");
}

/// A client that came in the moment in which a fill without clients was stopping got a body that broke off, although nothing
/// was wrong with the upstream: it had joined the fill that had just given up.
#[tokio::test]
async fn a_client_that_comes_just_when_the_last_one_has_left_gets_everything() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.orphan_bytes = \"1KiB\"").start().await;
    for seed in 100..140 {
        let blob = noise(seed, 600_000);
        let digest = upstream.put_blob(REPOSITORY, blob.clone());
        upstream.on(Match::get(&digest).times(1), Fault::Gate { after: 300_000 });
        let mut leaves = stream(mirror.url(&path(&digest))).await;
        leaves.take(100_000).await;
        upstream.held(1).await;
        drop(leaves);
        // Larder has let go of the upstream: it is stopping, or has stopped.
        until("dropped by larder", || upstream.held_now() == 0).await;
        let answer = mirror.get(&path(&digest)).await;
        assert!(answer.complete, "blob {seed} ends after {} bytes: {:?}", answer.body.len(), answer.headers);
        assert_eq!(answer.body, blob);
    }
}

#[tokio::test]
async fn only_so_many_fills_go_on_without_clients() {
    let upstream = Registry::start().await;
    let digests: Vec<String> = (0..3).map(|seed| upstream.put_blob(REPOSITORY, noise(10 + seed, 2_000_000))).collect();
    upstream.on(Match::get("/blobs/"), Fault::Gate { after: 1_000_000 });
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.orphan_fills = 1").start().await;
    let mut bodies = Vec::new();
    for digest in &digests {
        bodies.extend(clients(&mirror, digest, 1).await);
    }
    upstream.held(3).await;
    drop(bodies);
    until("stopped but for one", || upstream.held_now() == 1).await;
    upstream.release();
    until("in the cache", || digests.iter().any(|digest| mirror.holds(digest))).await;
    assert_eq!(digests.iter().filter(|digest| mirror.holds(digest)).count(), 1);
    let stopped = mirror.stop().await;
    let partial = fs::read_dir(stopped.cache_dir().join("partial")).unwrap();
    assert_eq!(partial.count(), 2, "what the others have is kept for the next client");
}

/// Each of them would fetch on, and set space aside.
#[tokio::test]
async fn of_forty_fills_that_were_begun_and_left_four_go_on() {
    const SIZE: usize = 4 << 20;
    let upstream = Registry::start().await;
    let digests: Vec<String> = (0..40).map(|seed| upstream.put_blob(REPOSITORY, noise(100 + seed, SIZE))).collect();
    upstream.on(Match::get("/blobs/"), Fault::Gate { after: 1 << 20 });
    let mirror = TestMirror::of(&upstream).await;
    let before = mirror.used();
    let mut bodies = Vec::new();
    for digest in &digests {
        bodies.extend(clients(&mirror, digest, 1).await);
    }
    upstream.held(40).await;
    drop(bodies);
    until("stopped but for four", || upstream.held_now() == 4).await;
    // What the others have stays for an hour, and no space for what they lack.
    until("given back", || mirror.used() - before <= (4 * SIZE + 36 * (1 << 20) + 40 * (64 << 10)) as u64).await;
    upstream.release();
    until("in the cache", || digests.iter().filter(|digest| mirror.holds(digest)).count() == 4).await;
    assert_eq!(upstream.requests().len(), 40);
    assert_eq!(mirror.metric("larder_fills_total{outcome=\"stopped\"}"), 36);
}

// === another upstream ===

/// Docker Hub and a registry that has the blob as well, or says so.
async fn beside(hub: &Registry, other: &Registry) -> TestMirror {
    TestMirror::builder().upstream("docker.io", hub).upstream("other.example", other).start().await
}

fn at_other(digest: &str) -> String {
    format!("{}?ns=other.example", path(digest))
}

/// A fill was the one of its digest, whoever sent it: who asked for the blob at another upstream waited for one that was silent.
#[tokio::test]
async fn nobody_waits_for_an_upstream_that_he_has_not_asked() {
    let (hub, other) = (Registry::start().await, Registry::start().await);
    let blob = noise(30, 600_000);
    for (upstream, after) in [(&other, 0), (&other, 300_000)] {
        let digest = hub.put_blob(REPOSITORY, blob.clone());
        other.put_blob(REPOSITORY, blob.clone());
        upstream.on(Match::get(&digest).times(1), Fault::Stall { after });
        let mirror = beside(&hub, &other).await;
        let waits = stream(mirror.url(&at_other(&digest))).await;
        other.held(1).await;
        let answers = join_all(clients(&mirror, &digest, 5).await.into_iter().map(Streaming::rest)).await;
        answers.into_iter().for_each(|answer| assert_eq!(answer.expect(200).body, blob));
        mirror.kept(&digest).await;
        assert_eq!(hub.requests().len(), 1, "{:#?}", hub.requests());
        assert_eq!(other.held_now(), 1, "that one is still silent");
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).header("cache-status"), Some("larder; hit"));
        other.release();
        assert_eq!(waits.rest().await.expect(200).body, blob, "it is taken up again");
        hub.forget_requests();
    }
}

/// Likewise who asked for it where it is right was given what another sent wrongly, up to where that came out.
#[tokio::test]
async fn nobody_is_given_what_an_upstream_sends_that_he_has_not_asked() {
    let (hub, other) = (Registry::start().await, Registry::start().await);
    let blob = noise(31, 600_000);
    let digest = hub.put_blob(REPOSITORY, blob.clone());
    other.put_blob_under(REPOSITORY, &digest, noise(32, 600_000));
    other.on(Match::get(&digest), Fault::Gate { after: 300_000 });
    let mirror = beside(&hub, &other).await;
    let lied_to = stream(mirror.url(&at_other(&digest))).await;
    other.held(1).await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    mirror.kept(&digest).await;
    other.release();
    assert!(!lied_to.rest().await.complete);
    // What that one has sent is the end of nothing else.
    let hit = mirror.get(&path(&digest)).await.expect(200);
    assert_eq!((hit.header("cache-status"), &hit.body), (Some("larder; hit"), &blob));
    assert_eq!(hub.requests().len(), 1, "{:#?}", hub.requests());
}

/// Nor of what is left of it on the disk.
#[tokio::test]
async fn nobody_goes_on_from_what_another_upstream_has_sent() {
    let (hub, other) = (Registry::start().await, Registry::start().await);
    let blob = noise(33, 600_000);
    let digest = hub.put_blob(REPOSITORY, blob.clone());
    other.put_blob_under(REPOSITORY, &digest, noise(34, 600_000));
    other.on(Match::get(&digest).times(1), Fault::Gate { after: 300_000 });
    let mirror = TestMirror::builder().upstream("docker.io", &hub).upstream("other.example", &other);
    let mirror = mirror.set("mirror.orphan_bytes = \"1KiB\"").start().await;
    let mut leaves = stream(mirror.url(&at_other(&digest))).await;
    leaves.take(100_000).await;
    other.held(1).await;
    drop(leaves);
    until("dropped by larder", || other.held_now() == 0).await;
    let mirror = mirror.stop().await.start().await;
    assert_eq!(fs::read_dir(mirror.cache_dir().join("partial")).unwrap().count(), 1, "it is there");
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    assert_eq!(hub.requests()[0].range(), None);
    assert_eq!(hub.requests().len(), 1);
}

// === larger than the cache ===

async fn small_mirror(upstream: &Registry) -> TestMirror {
    let stopped: StoppedMirror = TestMirror::builder().upstream("docker.io", upstream).set("cache.max_size = \"16MiB\"");
    stopped.start().await
}

#[tokio::test]
async fn a_blob_larger_than_the_cache_passes_through_whole_to_everyone() {
    let upstream = Registry::start().await;
    let blob = noise(7, 24 << 20);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    let mirror = small_mirror(&upstream).await;
    let bodies = clients(&mirror, &digest, 4).await;
    for answer in join_all(bodies.into_iter().map(Streaming::rest)).await {
        assert_eq!(answer.header("cache-status"), Some("larder; fwd=bypass"));
        assert!(answer.expect(200).body == blob, "other bytes");
    }
    assert!(!mirror.holds(&digest));
    let stopped = mirror.stop().await;
    assert_eq!(fs::read_dir(stopped.cache_dir().join("partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_wrong_byte_in_a_blob_larger_than_the_cache_lets_no_body_end_cleanly() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob(REPOSITORY, noise(8, 20 << 20));
    upstream.on(Match::get(&digest), Fault::Corrupt { at: 1000 });
    let mirror = small_mirror(&upstream).await;
    let bodies = clients(&mirror, &digest, 3).await;
    for answer in join_all(bodies.into_iter().map(Streaming::rest)).await {
        assert!(!answer.complete, "{} wrong bytes ended cleanly", answer.body.len());
        assert!(answer.body.len() < 20 << 20);
    }
    assert!(!mirror.holds(&digest));
}

/// A client that falls behind the window gets the rest from the upstream and verifies it itself. It held back the last bytes
/// only as long as they came in small pieces: a last piece larger than the tail was sent before the digest was known.
#[tokio::test]
async fn a_wrong_byte_lets_no_body_end_cleanly_for_those_who_have_fallen_behind_either() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob(REPOSITORY, noise(22, 24 << 20));
    upstream.on(Match::get(&digest), Fault::Corrupt { at: 1000 });
    let mirror = small_mirror(&upstream).await;
    for _ in 0..3 {
        let behind = clients(&mirror, &digest, 2).await;
        let quick = stream(mirror.url(&path(&digest))).await;
        assert!(!quick.rest().await.complete);
        for answer in join_all(behind.into_iter().map(Streaming::rest)).await {
            assert!(!answer.complete, "{} wrong bytes ended cleanly", answer.body.len());
        }
    }
    assert!(ranged(&upstream) > 0, "nobody fell behind");
}

fn ranged(upstream: &Registry) -> usize {
    upstream.requests().iter().filter(|request| request.range().is_some()).count()
}

#[tokio::test]
async fn a_client_of_a_blob_larger_than_the_cache_that_does_not_read_holds_up_nobody() {
    let upstream = Registry::start().await;
    let blob = noise(9, 24 << 20);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    let mirror = small_mirror(&upstream).await;
    let slow = stream(mirror.url(&path(&digest))).await;
    let quick = stream(mirror.url(&path(&digest))).await;
    assert!(quick.rest().await.expect(200).body == blob, "other bytes");
    assert!(slow.rest().await.expect(200).body == blob, "other bytes");
}

/// The last client of a blob larger than the cache left when the upstream had sent everything and the last of it waited for
/// room in the window. Nobody was left to make room, so the fill never ended, and all who came later joined it.
#[tokio::test]
async fn a_fill_past_the_cache_ends_wherever_its_last_client_has_left_it() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob(REPOSITORY, noise(19, 16 << 20));
    let beside = upstream.put_blob(REPOSITORY, noise(20, 500_000));
    for left_at in (8..24).map(|half| half << 19) {
        let mirror = small_mirror(&upstream).await;
        let mut leaves = stream(mirror.url(&path(&digest))).await;
        leaves.take(left_at).await;
        // What is pulled beside it gives the fill time to run ahead as far as it can.
        for _ in 0..10 {
            mirror.get(&path(&beside)).await.expect(200);
        }
        drop(leaves);
        mirror.get(&path(&beside)).await.expect(200);
        let (_stopped, drained) = mirror.drain().await;
        assert_eq!(drained, Drained::default(), "left at {left_at}");
    }
}
