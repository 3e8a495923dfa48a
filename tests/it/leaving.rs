//! Clients that leave: whenever they do, it is no error, and nobody else notices.

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::support::{Client, Closed, Fault, Image, Match, Process, Raw, Registry, TestMirror, noise, stream};

const MIB: usize = 1 << 20;
const LEFT_BEFORE: &str = "larder_client_aborts_total{phase=\"head\"}";
const LEFT_WITHIN: &str = "larder_client_aborts_total{phase=\"body\"}";

/// A blob of which the upstream sends so much and holds back the rest.
async fn held_after(after: usize) -> (Registry, TestMirror, String, bytes::Bytes) {
    let upstream = Registry::start().await;
    let blob = noise(1, 2 * MIB);
    let digest = upstream.put_blob("library/alpine", blob.clone());
    upstream.on(Match::get(&digest), Fault::Gate { after });
    let mirror = TestMirror::of(&upstream).await;
    (upstream, mirror, format!("/v2/library/alpine/blobs/{digest}"), blob)
}

#[tokio::test]
async fn who_leaves_before_the_answer_begins_leaves_the_fill_to_the_others() {
    let upstream = Registry::start().await;
    let blob = noise(1, 2 * MIB);
    let digest = upstream.put_blob("library/alpine", blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Latency(std::time::Duration::from_millis(500)));
    let mirror = TestMirror::of(&upstream).await;
    let path = format!("/v2/library/alpine/blobs/{digest}");
    for client in [Client::h1(), Client::h2()] {
        let leaves = timeout(std::time::Duration::from_millis(50), client.get(mirror.url(&path)));
        assert!(leaves.await.is_err(), "it has left before there was an answer");
    }
    let stays = mirror.get(&path).await.expect(200);
    assert!(stays.body == blob);
    mirror.metric_is(LEFT_BEFORE, 2).await;
    assert_eq!(mirror.metric(LEFT_WITHIN), 0);
    assert_eq!(upstream.count("GET", &digest), 1);
}

#[tokio::test]
async fn who_leaves_in_the_middle_leaves_the_fill_to_the_others() {
    for after in [0, 1, 100_000, MIB] {
        let (upstream, mirror, path, blob) = held_after(MIB + 100_000).await;
        let clients = [Client::h1(), Client::h2(), Client::h1(), Client::h2()];
        let mut leave = join_all(clients.iter().map(|client| client.stream(mirror.url(&path)))).await;
        let stays = mirror.stream(&path).await;
        for client in &mut leave {
            client.take(after).await;
        }
        upstream.held(1).await;
        drop(leave);
        mirror.metric_is(LEFT_WITHIN, 4).await;
        upstream.release();
        assert!(stays.rest().await.expect(200).body == blob, "{after}");
        assert_eq!(upstream.requests().len(), 1, "{after}");
        mirror.metric_is("larder_fills_total{outcome=\"kept\"}", 1).await;
        mirror.metric_is("larder_body_buffer_bytes", 0).await;
        assert_eq!(mirror.metric("larder_slow_clients_total"), 0);
    }
}

#[tokio::test]
async fn who_asks_by_head_and_leaves_begins_no_fill() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob("library/alpine", noise(1, 2 * MIB));
    upstream.on(Match::head(&digest).times(1), Fault::Latency(std::time::Duration::from_millis(200)));
    let mirror = TestMirror::of(&upstream).await;
    let path = format!("/v2/library/alpine/blobs/{digest}");
    let mut leaves = Raw::connect(mirror.address()).await;
    leaves.send(format!("HEAD {path} HTTP/1.1\r\nhost: mirror\r\n\r\n")).await;
    upstream.seen("HEAD", &digest, 1).await;
    drop(leaves);
    mirror.metric_is(LEFT_BEFORE, 1).await;
    mirror.head(&path).await.expect(200);
    assert_eq!(upstream.count("GET", &digest), 0);
}

/// `nc -N` does so. Nobody can tell it from a client that has gone, but what is at hand is sent.
#[tokio::test]
async fn who_closes_its_side_gets_what_is_at_hand() {
    let (_upstream, mirror, _, _) = held_after(0).await;
    let mut client = Raw::asking(mirror.address(), "/v2/").await;
    client.half_close().await;
    let (answer, closed) = client.rest().await;
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"{}"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(closed, Closed::Fin);
}

#[tokio::test]
async fn who_closes_its_side_while_the_upstream_is_asked_has_left() {
    let (upstream, mirror, path, blob) = held_after(300_000).await;
    let mut client = Raw::asking(mirror.address(), &path).await;
    client.head().await;
    upstream.held(1).await;
    client.half_close().await;
    mirror.metric_is(LEFT_WITHIN, 1).await;
    upstream.release();
    assert!(mirror.get(&path).await.expect(200).body == blob);
}

#[tokio::test]
async fn the_log_says_that_a_client_has_left_and_nothing_of_an_error() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[2 * MIB]).put(&upstream, "library/alpine", "latest");
    let layer = &image.layers[0];
    upstream.on(Match::get(&layer.digest), Fault::Gate { after: MIB });
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&format!("upstream.\"docker.io\".url={}", upstream.url())], &[]);
    let mut leaves = stream(larder.url(&image.blob_path(layer))).await;
    leaves.take(500_000).await;
    drop(leaves);
    let log = larder.log_when("the client has left", |log| log.contains("end=\"left\"")).await;
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
    upstream.release();
}
