//! HTTP/2 in cleartext, as go-containerregistry and its kin would speak it behind a proxy that ends TLS.

use futures_util::future::join_all;
use http::{Method, Version};

use crate::support::{Client, Fault, Image, Match, MultiArch, Raw, Registry, Streaming, TestMirror, noise};

#[tokio::test]
async fn a_pull_over_one_connection_brings_what_one_over_http1_brings() {
    let upstream = Registry::start().await;
    let index = MultiArch::new(1).layers(&[1000, 300_000]).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let client = Client::h2();
    for _ in ["cold", "warm"] {
        let ping = client.get(mirror.url("/v2/")).await.expect(200);
        assert_eq!(ping.version, Version::HTTP_2);
        let head = client.head(mirror.url(&index.tag_path("latest"))).await.expect(200);
        assert_eq!(head.header("docker-content-digest"), Some(&*index.digest));
        assert_eq!(head.header("content-length"), Some(&*index.manifest.len().to_string()));
        assert_eq!(client.get(mirror.url(&index.manifest_path())).await.expect(200).body, index.manifest);
        for image in &index.images {
            assert_eq!(client.get(mirror.url(&image.manifest_path())).await.expect(200).body, image.manifest);
            for blob in image.blobs() {
                let over_h2 = client.get(mirror.url(&image.blob_path(blob))).await.expect(200);
                let over_h1 = mirror.get(&image.blob_path(blob)).await.expect(200);
                assert_eq!((&over_h2.body, &over_h1.body), (&blob.bytes, &blob.bytes));
                for name in ["content-type", "content-length", "docker-content-digest", "etag", "accept-ranges", "cache-control"]
                {
                    assert_eq!(over_h2.header(name), over_h1.header(name), "{name}");
                }
            }
        }
    }
    assert_eq!(upstream.requests().len(), 1 + 2 + 2 * 3);
}

/// Ten thousand connections may have 128 requests each under way, and each takes as much memory as an answer in small pieces.
#[tokio::test]
async fn what_one_connection_asks_at_once_counts_and_leaves_room_for_others() {
    let upstream = Registry::start().await;
    // No blob: those are refused on their own.
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    upstream.on(Match::get("/manifests/"), Fault::Gate { after: 0 });
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("server.max_buffers = \"1MiB\"").start().await;
    let url = mirror.url(&image.tag_path("latest"));
    let greedy = Client::h2();
    let ask = || {
        let (client, url) = (greedy.clone(), url.clone());
        tokio::spawn(async move { client.get(url).await.status })
    };
    // The first takes nothing of it.
    let first = ask();
    upstream.held(1).await;
    let second = ask();
    let weight = mirror.metric_once("larder_body_buffer_bytes", |bytes| bytes > 0).await;
    let asked: Vec<_> = (2..128).map(|_| ask()).collect();
    // Who has no more than is left is heard.
    let heard = (1 << 20) / 2 / weight + 1;
    mirror.metric_is("larder_shed_total{reason=\"memory\"}", 128 - 1 - heard).await;
    Client::h2().get(mirror.url("/v2/")).await.expect(200);
    upstream.release();
    let answered = join_all([first, second].into_iter().chain(asked)).await.into_iter().map(Result::unwrap);
    assert_eq!(answered.filter(|status| *status == 200).count() as u64, 1 + heard);
    mirror.metric_is("larder_body_buffer_bytes", 0).await;
}

#[tokio::test]
async fn a_hundred_streams_at_once_share_a_connection_and_a_fill() {
    let upstream = Registry::start().await;
    let layer = noise(1, 300_000);
    let digest = upstream.put_blob("library/alpine", layer.clone());
    upstream.on(Match::get(&digest), Fault::Gate { after: 0 });
    let mirror = TestMirror::of(&upstream).await;
    let client = Client::h2();
    client.get(mirror.url("/v2/")).await.expect(200);
    let url = mirror.url(&format!("/v2/library/alpine/blobs/{digest}"));
    let streams = join_all((0..100).map(|_| client.stream(&url))).await;
    // All have their headers, and none has a byte.
    assert_eq!(upstream.held_now(), 1);
    upstream.release();
    for answer in join_all(streams.into_iter().map(Streaming::rest)).await {
        assert_eq!(answer.expect(200).body, layer);
    }
    assert_eq!(upstream.count("GET", &digest), 1);
}

#[tokio::test]
async fn a_stream_that_is_not_read_does_not_hold_up_the_others() {
    let upstream = Registry::start().await;
    let (large, small) = (noise(1, 16 << 20), noise(2, 100_000));
    let [large_path, small_path] =
        [&large, &small].map(|bytes| format!("/v2/library/alpine/blobs/{}", upstream.put_blob("library/alpine", bytes.clone())));
    let mirror = TestMirror::of(&upstream).await;
    let client = Client::h2();
    let unread = client.stream(mirror.url(&large_path)).await;
    assert_eq!(client.get(mirror.url(&small_path)).await.expect(200).body, small);
    assert!(mirror.get(&large_path).await.expect(200).body == large, "nor a client on another connection");
    assert!(unread.rest().await.expect(200).body == large);
}

#[tokio::test]
async fn a_large_blob_arrives_whole() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[32 << 20]).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let client = Client::h2();
    let (layer, url) = (&image.layers[0], mirror.url(&image.blob_path(&image.layers[0])));
    for _ in ["cold", "warm"] {
        assert!(client.get(&url).await.expect(200).body == layer.bytes);
    }
    let part = client.get_with(&url, &[("range", "bytes=30000000-30999999")]).await.expect(206);
    assert!(part.body == layer.bytes.slice(30_000_000..31_000_000));
    assert_eq!(upstream.count("GET", &layer.digest), 1);
}

#[tokio::test]
async fn errors_are_those_of_http1_and_the_connection_goes_on() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    upstream.on(Match::any("broken"), Fault::status(500));
    let mirror = TestMirror::of(&upstream).await;
    let client = Client::h2();
    let tag = image.tag_path("latest");
    for (method, path, range, status, code) in [
        (Method::GET, "/v2/library/alpine/manifests/absent", "", 404, "MANIFEST_UNKNOWN"),
        (Method::GET, "/v2/library/alpine/manifests/.bad", "", 400, "TAG_INVALID"),
        (Method::GET, "/v2/library/alpine/manifests/broken", "", 502, "UNAVAILABLE"),
        (Method::GET, &*image.blob_path(&image.layers[0]), "bytes=1000-", 416, "RANGE_INVALID"),
        (Method::PUT, &*tag, "", 405, "UNSUPPORTED"),
        (Method::POST, "/v2/library/alpine/blobs/uploads/", "", 405, "UNSUPPORTED"),
    ] {
        let answer = client.request(method, mirror.url(path), &[("range", range)]).await.expect(status);
        assert_eq!(answer.version, Version::HTTP_2, "{path}");
        assert_eq!(answer.error_code().as_deref(), Some(code), "{path}");
        assert!(answer.header("cache-status").is_some(), "{path}");
        assert_eq!(answer.header("connection"), None, "{path}");
    }
    assert_eq!(client.get(mirror.url(&tag)).await.expect(200).body, image.manifest);
}

#[tokio::test]
async fn a_body_that_cannot_be_completed_ends_as_a_stream_error() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[300_000]).put(&upstream, "library/alpine", "latest");
    let layer = &image.layers[0];
    // Without a length a clean end of the stream would pass for the end of the blob.
    for faults in [vec![Fault::Corrupt { at: 5 }], vec![Fault::Corrupt { at: 5 }, Fault::NoLength]] {
        upstream.heal();
        upstream.on(Match::get(&layer.digest), faults);
        let mirror = TestMirror::of(&upstream).await;
        let client = Client::h2();
        let answer = client.get(mirror.url(&image.blob_path(layer))).await;
        assert_eq!(answer.status, 200);
        assert!(!answer.complete && answer.body.len() < layer.bytes.len(), "{} {:?}", answer.body.len(), answer.headers);
        upstream.heal();
        assert_eq!(client.get(mirror.url(&image.blob_path(layer))).await.expect(200).body, layer.bytes);
    }
}

/// Heads of 20 KiB are what podman sends over HTTP/1.1, and what it gets there it should get here.
#[tokio::test]
async fn a_head_of_twenty_kilobytes_is_read() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob("library/alpine", noise(1, 16 << 20));
    let mirror = TestMirror::of(&upstream).await;
    let ranges: Vec<String> = (10_000_000..10_001_024).map(|i| format!("{}-{}", i, i + 1)).collect();
    let range = format!("bytes={}", ranges.join(","));
    assert!(range.len() > 18_000);
    let url = mirror.url(&format!("/v2/library/alpine/blobs/{digest}"));
    for client in [Client::h1(), Client::h2()] {
        client.get_with(&url, &[("range", &range)]).await.expect(206);
    }
}

const PING: u8 = 6;
const ACK: u8 = 1;

/// Reads frames until larder asks, and returns what it asks with.
async fn asked(client: &mut Raw) -> Vec<u8> {
    loop {
        let head = client.take(9).await;
        let body = client.take(usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])).await;
        if head[3] == PING && head[4] & ACK == 0 {
            return body;
        }
    }
}

/// Whose machine has gone without a word would keep its place for ever.
#[tokio::test]
async fn who_does_not_answer_whether_it_is_still_there_is_closed() {
    /// PRI, then SETTINGS without any.
    const BEGINS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let (mut there, mut gone) = (Raw::connect(mirror.address()).await, Raw::connect(mirror.address()).await);
    // GET of /v2/ over http, every header a literal.
    let length = |text: &[u8]| u8::try_from(text.len()).expect("short");
    let literal = |[name, value]: [&[u8]; 2]| [&[0, length(name)], name, &[length(value)], value].concat();
    let headers = [[b":method" as &[u8], b"GET"], [b":scheme", b"http"], [b":authority", b"mirror"], [b":path", b"/v2/"]];
    let headers = headers.map(literal).concat();
    let request = [&[0, 0, length(&headers), 1, 5, 0, 0, 0, 1], &headers[..]].concat();
    for client in [&mut there, &mut gone] {
        client.send([BEGINS, &request].concat()).await;
    }
    let (question, _) = tokio::join!(asked(&mut there), asked(&mut gone));
    there.send([&[0, 0, 8, PING, ACK, 0, 0, 0, 0], &question[..]].concat()).await;
    gone.rest().await;
    mirror.metric_is("larder_connections", 1).await;
    asked(&mut there).await;
}
