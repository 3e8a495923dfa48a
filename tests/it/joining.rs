//! Who asks for the same thing at the same time shares one question to the upstream: he waits as if it were his, and it is asked for as
//! long as one of them waits.

use std::time::Duration;

use tokio::time::timeout;

use crate::support::{Client, Fault, Image, Match, Registry, Streaming, TestMirror, digest_of, noise, stream};

const LEFT_BEFORE: &str = "larder_client_aborts_total{phase=\"head\"}";

fn path(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

async fn asked_from(url: String, client: &str) -> Streaming {
    Client::h1().stream_with(url, &[("x-forwarded-for", client)]).await
}

/// One who had all places and a long line of his own kept waiting in it who asked for the same as he.
#[tokio::test]
async fn who_asks_for_what_another_has_asked_for_does_not_wait_behind_all_that_he_wants() {
    let upstream = Registry::start().await;
    let digests: Vec<String> = (0..10).map(|seed| upstream.put_blob("library/app", noise(seed, 200_000))).collect();
    upstream.on(Match::get("/blobs/"), Fault::Gate { after: 100_000 });
    let mirror = TestMirror::builder()
        .upstream("docker.io", &upstream)
        .set("upstream.\"docker.io\".max_transfers = 3")
        .set("mirror.orphan_fills = 0")
        .listener("proxies = ['127.0.0.1']")
        .start()
        .await;
    let url = |digest: &str| format!("{}{}", mirror.listening()[1], path("library/app", digest));
    let _first = asked_from(url(&digests[0]), "198.51.100.1").await;
    let second = asked_from(url(&digests[1]), "198.51.100.1").await;
    upstream.held(2).await;
    let mut waiting = Vec::new();
    for (n, digest) in digests.iter().enumerate().skip(2) {
        waiting.push(tokio::spawn(asked_from(url(digest), "198.51.100.1")));
        mirror.metric_is("larder_fills_running", n as u64 + 1).await;
    }
    let joined = tokio::spawn(asked_from(url(&digests[9]), "198.51.100.2"));
    mirror.metric_is("larder_fill_clients", 11).await;
    drop(second);
    upstream.seen("GET", "/blobs/", 3).await;
    assert_eq!(upstream.count("GET", &digests[9]), 1, "he has none of the places, the other has one");
    upstream.heal();
    upstream.release();
    assert_eq!(joined.await.unwrap().rest().await.expect(200).body, noise(9, 200_000));
    for answer in waiting {
        answer.await.unwrap().rest().await.expect(200);
    }
    assert_eq!(upstream.count("GET", "/blobs/"), 10);
}

/// What was here was asked for all the same when its client had left, and the no was remembered; what was not here was dropped, and asked
/// for again. So the second answer told by its time which of them was here.
#[tokio::test]
async fn a_question_that_has_gone_out_is_answered_for_who_comes_next_whether_the_blob_is_here_or_not() {
    let upstream = Registry::start().await;
    let here = upstream.put_blob("library/app", noise(1, 100_000));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.orphan_fills = 0").start().await;
    mirror.get(&path("library/app", &here)).await.expect(200);
    mirror.kept(&here).await;
    upstream.forget_requests();
    upstream.on(Match::get("/blobs/"), Fault::Latency(Duration::from_millis(300)));
    let asked = [here, digest_of(b"nowhere")].map(|digest| path("library/other", &digest));
    for (n, path) in asked.iter().enumerate() {
        let url = mirror.url(path);
        let leaves = tokio::spawn(async move { Client::h1().get(url).await });
        upstream.seen("GET", path, 1).await;
        leaves.abort();
        mirror.metric_is(LEFT_BEFORE, n as u64 + 1).await;
        mirror.get(path).await.expect(404);
        mirror.get(path).await.expect(404);
        assert_eq!(upstream.count("GET", path), 1, "{path}");
    }
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_when_its_turn_comes_is_not_asked() {
    let upstream = Registry::start().await;
    let large = upstream.put_blob("library/app", noise(1, 200_000));
    let here = upstream.put_blob("library/app", noise(2, 100_000));
    let image = Image::new(1).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::builder()
        .upstream("docker.io", &upstream)
        .set("upstream.\"docker.io\".max_transfers = 1")
        .set("mirror.orphan_fills = 0")
        .start()
        .await;
    mirror.get(&path("library/app", &here)).await.expect(200);
    mirror.kept(&here).await;
    upstream.on(Match::get(&large), Fault::Gate { after: 100_000 });
    let first = stream(mirror.url(&path("library/app", &large))).await;
    upstream.held(1).await;
    let asked = [
        path("library/other", &here),
        path("library/other", &digest_of(b"nowhere")),
        image.manifest_path(),
        image.tag_path("latest"),
        "/v2/library/app/tags/list".to_owned(),
        format!("/v2/library/app/referrers/{}", image.digest),
    ];
    for (n, path) in asked.iter().enumerate() {
        for client in [Client::h1(), Client::h2()] {
            let leaves = timeout(Duration::from_millis(50), client.get(mirror.url(path)));
            assert!(leaves.await.is_err(), "{path} waits for its turn");
        }
        mirror.metric_is(LEFT_BEFORE, 2 * (n as u64 + 1)).await;
    }
    upstream.release();
    first.rest().await.expect(200);
    for path in &asked {
        assert_eq!(upstream.count("GET", path) + upstream.count("HEAD", path), 0, "{path}");
    }
    for (path, status) in asked.iter().zip([404, 404, 200, 200, 200, 200]) {
        mirror.get(path).await.expect(status);
    }
    assert_eq!(mirror.metric("larder_shed_total{reason=\"transfers\"}"), 0);
}
