//! Clients that take a cold blob in parts: containerd in its parallel mode, podman with zstd:chunked. All share one fill, what is far ahead of it comes at once, and the upstream is not asked as often as they ask.

use bytes::Bytes;
use futures_util::future::join_all;

use super::ranges::parts;
use crate::support::{Client, Fault, Match, Registry, TestMirror, noise};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const SIZE: usize = 40 * MIB;

/// A blob of which the upstream holds back all but the beginning, of the first answer for it.
async fn held_back() -> (Registry, TestMirror, String, String, Bytes) {
    let upstream = Registry::start().await;
    let blob = noise(1, SIZE);
    let digest = upstream.put_blob("library/alpine", blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Gate { after: 100 * KIB });
    let mirror = TestMirror::of(&upstream).await;
    let url = mirror.url(&format!("/v2/library/alpine/blobs/{digest}"));
    (upstream, mirror, url, digest, blob)
}

/// `bytes=0-`, and then an open range for each chunk, each on a connection of its own that is closed after the chunk.
#[tokio::test]
async fn containerd_gets_far_chunks_at_once_and_leaves_each_without_harm() {
    let (upstream, mirror, url, digest, blob) = held_back().await;
    let chunk = 4 * MIB;
    let first = Client::h1().stream_with(&url, &[("range", "bytes=0-")]).await;
    upstream.held(1).await;
    let far: Vec<usize> = (5..9).map(|n| n * chunk).collect();
    let chunks = far.iter().map(|start| {
        let (url, start) = (url.clone(), *start);
        async move {
            let mut body = Client::h1().stream_with(url, &[("range", &format!("bytes={start}-"))]).await;
            assert_eq!(body.status, 206);
            body.take(chunk).await
        }
    });
    for (start, bytes) in far.iter().zip(join_all(chunks).await) {
        assert!(bytes == blob[*start..start + chunk], "{start}");
    }
    assert_eq!(upstream.held_now(), 1, "the fill has not moved");
    assert_eq!(upstream.count("GET", &digest), 1 + far.len());
    upstream.release();
    assert!(first.rest().await.expect(206).body == blob);
    assert!(Client::h1().get(&url).await.expect(200).body == blob);
    assert_eq!(upstream.count("GET", &digest), 1 + far.len(), "what came is kept");
    mirror.metric_is("larder_client_aborts_total{phase=\"body\"}", far.len() as u64).await;
    assert_eq!(mirror.metric("larder_fills_total{outcome=\"kept\"}"), 1);
}

/// Each range far ahead of the fill cost a request of its own: a thousand for one of podman's.
#[tokio::test]
async fn a_thousand_ranges_of_podman_cost_a_few_requests() {
    let (upstream, _mirror, url, digest, blob) = held_back().await;
    let asked: Vec<(usize, usize)> = (0..1024).map(|n| (n * 40_000, n * 40_000 + 99)).chain([(SIZE - 5, SIZE - 1)]).collect();
    let asked = &asked[1..];
    let range: Vec<String> = asked.iter().map(|(first, last)| format!("{first}-{last}")).collect();
    let range = format!("bytes={}", range.join(","));
    // The first range is near, and waits; behind it the fill is held. So the far ones are on their own.
    let far = format!("bytes={}", range["bytes=".len()..].split(',').skip(600).collect::<Vec<_>>().join(","));
    let asking = {
        let (url, far) = (url.clone(), far.clone());
        tokio::spawn(async move { Client::h1().get_with(url, &[("range", &far)]).await })
    };
    upstream.held(1).await;
    let first_far = asked[600].0;
    let at_once = Client::h1().get_with(&url, &[("range", &format!("bytes={first_far}-{}", first_far + 9))]).await.expect(206);
    assert!(at_once.body == blob[first_far..first_far + 10]);
    upstream.release();
    for (answer, asked) in [
        (asking.await.unwrap().expect(206), &asked[600..]),
        (Client::h1().get_with(&url, &[("range", &range)]).await.expect(206), asked),
    ] {
        let sent = parts(&answer);
        assert_eq!(sent.len(), asked.len());
        for ((content_range, bytes), (first, last)) in sent.iter().zip(asked) {
            assert_eq!(*content_range, format!("bytes {first}-{last}/{SIZE}"));
            assert!(*bytes == blob[*first..=*last], "{first}");
        }
    }
    let gets = upstream.count("GET", &digest);
    assert!(gets <= 1 + 8 + 1, "{gets} requests");
}
