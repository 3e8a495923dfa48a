//! How answers end on the wire when they cannot be completed, or nobody wants the rest: what was there arrives, and no end
//! passes for a clean one.

use http::Method;

use crate::support::{Client, Closed, Fault, Match, Raw, Registry, TestMirror, noise};

const REPOSITORY: &str = "library/alpine";

/// An upstream that breaks off each answer for one blob after `after` bytes, and then has it no more.
async fn breaking_off(after: usize, more: &[Fault]) -> (Registry, TestMirror, String) {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob(REPOSITORY, noise(1, 1_000_000));
    let mut faults = vec![Fault::Cut { after }];
    faults.extend_from_slice(more);
    upstream.on(Match::get(&digest).times(1), faults);
    upstream.on(Match::get(&digest), Fault::status(404));
    let mirror = TestMirror::of(&upstream).await;
    (upstream, mirror, format!("/v2/{REPOSITORY}/blobs/{digest}"))
}

/// hyper throws away what it has not written when a body breaks, and the kernel what the client has not read when the socket
/// is closed with bytes in it that nobody has read.
#[tokio::test]
async fn a_body_that_breaks_ends_with_fin_after_all_that_was_there() {
    for unread in ["", "GET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\n", "no request at all"] {
        let (_upstream, mirror, path) = breaking_off(300_000, &[]).await;
        let mut client = Raw::asking(mirror.address(), &path).await;
        client.send(unread).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-length: 1000000\r\n"), "{head}");
        let (body, closed) = client.rest().await;
        assert_eq!((body.len(), closed), (300_000, Closed::Fin), "after {unread:?}");
        assert!(body == noise(1, 1_000_000)[..300_000]);
    }
}

#[tokio::test]
async fn a_chunked_body_that_breaks_has_no_last_chunk() {
    let (_upstream, mirror, path) = breaking_off(300_000, &[Fault::NoLength]).await;
    let mut client = Raw::asking(mirror.address(), &path).await;
    let head = client.head().await;
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    let (body, closed) = client.rest().await;
    assert_eq!(closed, Closed::Fin);
    // Of a blob of unknown size the last 16 KiB that there are may be its end.
    assert!(body.len() >= 300_000 - (16 << 10), "{}", body.len());
    assert!(!body.ends_with(b"\r\n0\r\n\r\n") && !body.ends_with(b"0\r\n\r\n"));
}

#[tokio::test]
async fn a_body_that_breaks_is_an_internal_error_of_its_stream_and_no_other() {
    let (upstream, mirror, path) = breaking_off(300_000, &[]).await;
    let other = noise(2, 100_000);
    let other_path = format!("/v2/{REPOSITORY}/blobs/{}", upstream.put_blob(REPOSITORY, other.clone()));
    let client = Client::h2();
    let mut broken = client.stream(mirror.url(&path)).await;
    assert!(broken.take(1_000_000).await.len() <= 300_000);
    assert_eq!(broken.reset(), Some(h2::Reason::INTERNAL_ERROR));
    assert_eq!(client.get(mirror.url(&other_path)).await.expect(200).body, other);
    assert_eq!(mirror.metric("larder_connections"), 1);
}

/// The client could not read the answer: it was still sending when larder closed.
#[tokio::test]
async fn who_pushes_much_reads_why_it_may_not() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let mut client = Raw::connect(mirror.address()).await;
    client.send("PUT /v2/library/alpine/manifests/latest HTTP/1.1\r\nhost: mirror\r\ncontent-length: 100000\r\n\r\n").await;
    client.send(vec![b'x'; 100_000]).await;
    let (answer, closed) = client.rest().await;
    assert!(answer.starts_with(b"HTTP/1.1 405 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(closed, Closed::Fin);
}

#[tokio::test]
async fn a_request_that_makes_larder_panic_is_answered_500_and_costs_nobody_else_anything() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let clients = [Client::h1(), Client::h2()];
    for client in &clients {
        client.get(mirror.url("/v2/")).await.expect(200);
        let answer = client.request(Method::GET, mirror.url("/v2/"), &[("x-larder-panic", "")]).await.expect(500);
        assert!(answer.error_code().is_some(), "{}", answer.text());
        assert_eq!(client.get(mirror.url("/v2/")).await.expect(200).body, "{}");
    }
    assert_eq!(mirror.metric("larder_connections"), 2, "each client has kept its connection");
}
