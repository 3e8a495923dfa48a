//! Clients that take little or nothing: how long they are borne with, what they cost, and that nobody else feels them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use crate::floods::{END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, WINDOW, frame, header, stream};
use crate::support::{Authority, Client, Closed, Fault, Match, Raw, Registry, TestMirror, get, noise};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const SLOW: &str = "larder_slow_clients_total";
const BUFFERS: &str = "larder_body_buffer_bytes";

/// A larder with these options that has one blob.
async fn holding(len: usize, options: &str) -> (TestMirror, String, Bytes) {
    let upstream = Registry::start().await;
    let blob = noise(1, len);
    let path = format!("/v2/library/alpine/blobs/{}", upstream.put_blob("library/alpine", blob.clone()));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set(options).start().await;
    assert!(mirror.get(&path).await.expect(200).body == blob);
    (mirror, path, blob)
}

/// One connection of HTTP/2 whose streams get no window beyond this, and which reads all that comes.
async fn without_window(mirror: &TestMirror, window: u32) -> (h2::client::SendRequest<Bytes>, tokio::task::JoinHandle<()>) {
    let stream = tokio::net::TcpStream::connect(mirror.address()).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(16 << 20);
    let (requests, connection) = builder.handshake(stream).await.unwrap();
    (requests, tokio::spawn(async move { drop(connection.await) }))
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_given_up() {
    let (mirror, path, _) = holding(4 * MIB, "server.write_idle = \"200ms\"").await;
    let mut client = Raw::asking(mirror.address(), &path).await;
    client.head().await;
    mirror.metric_is(SLOW, 1).await;
    let (body, closed) = client.rest().await;
    assert_eq!(closed, Closed::Rst, "what the kernel has for it is freed");
    assert!(body.len() < MIB, "{}", body.len());
    mirror.metric_is("larder_connections", 1).await;
    mirror.metric_is(BUFFERS, 0).await;
    assert_eq!(mirror.metric("larder_client_aborts_total{phase=\"body\"}"), 0, "it has not left");
}

/// Its answer fits into buffers, so that it does not matter to any body whether it is read.
#[tokio::test]
async fn a_client_that_asks_and_asks_and_reads_nothing_is_given_up() {
    let (mirror, path, _) = holding(60 * KIB, "server.write_idle = \"200ms\"").await;
    let mut client = Raw::connect(mirror.address()).await;
    mirror.metric_is("larder_connections", 2).await;
    for _ in 0..20 {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: mirror\r\n\r\n")).await;
    }
    mirror.metric_is("larder_connections", 1).await;
    assert_eq!(client.rest().await.1, Closed::Rst);
}

#[tokio::test]
async fn a_client_that_takes_less_than_the_least_is_given_up_though_it_takes_something() {
    let (mirror, path, _) = holding(64 * MIB, "server.write_idle = \"500ms\"\nserver.min_rate = \"8MiB\"").await;
    let mut client = Raw::asking(mirror.address(), &path).await;
    client.head().await;
    let reading = tokio::spawn(async move {
        loop {
            // About 3 MiB a second.
            client.take(32 * KIB).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    mirror.metric_is(SLOW, 1).await;
    reading.abort();
}

#[tokio::test]
async fn a_slow_client_that_takes_enough_gets_everything() {
    let (mirror, path, blob) = holding(4 * MIB, "server.write_idle = \"500ms\"\nserver.min_rate = \"64KiB\"").await;
    let mut client = Raw::asking(mirror.address(), &path).await;
    client.head().await;
    let mut body = Vec::new();
    while body.len() < blob.len() {
        body.extend(client.take((128 * KIB).min(blob.len() - body.len())).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(body == blob);
    assert_eq!(mirror.metric(SLOW), 0);
}

#[tokio::test]
async fn a_client_that_waits_for_the_upstream_is_not_slow() {
    let upstream = Registry::start().await;
    let blob = noise(1, MIB);
    let digest = upstream.put_blob("library/alpine", blob.clone());
    upstream.on(Match::get(&digest), Fault::Gate { after: 300_000 });
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("server.write_idle = \"100ms\"").start().await;
    for client in [Client::h1(), Client::h2()] {
        let mut reading = client.stream(mirror.url(&format!("/v2/library/alpine/blobs/{digest}"))).await;
        reading.take(200_000).await;
        let idle = mirror.stream("/v2/").await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(mirror.metric(SLOW), 0);
        idle.rest().await.expect(200);
        upstream.release();
        assert!(reading.rest().await.expect(200).body == blob[200_000..]);
    }
}

#[tokio::test]
async fn a_stream_that_is_not_read_is_reset_and_its_connection_goes_on() {
    let (mirror, path, blob) = holding(16 * MIB, "server.write_idle = \"300ms\"").await;
    let client = Client::h2();
    let mut unread = client.stream(mirror.url(&path)).await;
    mirror.metric_is(SLOW, 1).await;
    let range = [("range", "bytes=0-99999")];
    assert!(client.get_with(mirror.url(&path), &range).await.expect(206).body == blob[..100_000], "over the same connection");
    while unread.next().await.is_some() {}
    assert_eq!(unread.reset(), Some(h2::Reason::CANCEL));
    mirror.metric_is(BUFFERS, 0).await;
}

/// Each stream may hold something in memory until it is reset, the smallest answers included.
#[tokio::test]
async fn streams_without_any_window_cost_little_and_are_all_reset() {
    let (mirror, path, _) = holding(MIB, "server.write_idle = \"300ms\"").await;
    let (mut requests, connection) = without_window(&mirror, 0).await;
    let mut answers = Vec::new();
    for range in (0..100).map(|n| if n % 2 == 0 { "bytes=0-".to_owned() } else { format!("bytes={n}-70000") }) {
        let request = http::Request::get(mirror.url(&path)).header("range", range).body(()).unwrap();
        requests = requests.ready().await.unwrap();
        let (response, _) = requests.send_request(request, true).unwrap();
        answers.push(response.await.unwrap().into_body());
    }
    let held = mirror.metric(BUFFERS);
    assert!(held > 0 && held <= 100 * 64 * KIB as u64, "{held}");
    for mut answer in answers {
        let end = answer.data().await.unwrap();
        assert_eq!(end.unwrap_err().reason(), Some(h2::Reason::CANCEL));
    }
    mirror.metric_is(SLOW, 100).await;
    mirror.metric_is(BUFFERS, 0).await;
    connection.abort();
}

/// How large a window is the client says, but not how much waits for its connection.
#[tokio::test]
async fn streams_with_a_window_hold_little_each_where_their_connection_is_not_read() {
    const STREAMS: u32 = 100;
    const LARGEST_WINDOW: u32 = 1 << 30;
    let (mirror, path, _) = holding(2 * MIB, "server.write_idle = \"1m\"").await;
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", "mirror"), (":path", &*path)];
    let head: Vec<u8> = head.into_iter().flat_map(|(name, value)| header(name, value)).collect();
    let window = [&4_u16.to_be_bytes()[..], &LARGEST_WINDOW.to_be_bytes()].concat();
    let begins = [PREFACE, &frame(SETTINGS, 0, 0, &window), &frame(WINDOW, 0, 0, &LARGEST_WINDOW.to_be_bytes())].concat();
    let requests = (0..STREAMS).flat_map(|n| frame(HEADERS, END_HEADERS | END_STREAM, stream(n), &head));
    let mut client = Raw::connect(mirror.address()).await;
    client.send(begins.into_iter().chain(requests).collect::<Vec<_>>()).await;
    let few = u64::from(STREAMS) * 32 * KIB as u64;
    let mut held = 0;
    while held < few || mirror.metric(BUFFERS) != held {
        held = mirror.metric_once(BUFFERS, |bytes| bytes >= few).await;
        for _ in 0..20 {
            mirror.get("/v2/").await.expect(200);
        }
    }
    assert!(held <= 5 * few, "{held}");
    drop(client);
    mirror.metric_is(BUFFERS, 0).await;
}

/// As long as something is left to write, nobody says that the rest is written.
#[tokio::test]
async fn of_what_is_encrypted_that_counts_which_is_not_yet_written() {
    const LEN: usize = 16 * MIB;
    let upstream = Registry::start().await;
    let path = format!("/v2/library/alpine/blobs/{}", upstream.put_blob("library/alpine", noise(1, LEN)));
    let (authority, mirror) = (Authority::new(), TestMirror::builder().upstream("docker.io", &upstream));
    let files = authority.server(mirror.dir(), "127.0.0.1");
    let mirror = mirror.tls(&files, "").start().await;
    mirror.get(&path).await.expect(200);
    let tls = TlsConnector::from(Arc::new(authority.believed(rustls::ALL_VERSIONS, &["http/1.1"])));
    let name = ServerName::IpAddress(mirror.tls_address().ip().into());
    let mut client = tls.connect(name, Raw::connect(mirror.tls_address()).await.into_stream()).await.unwrap();
    client.write_all(format!("GET {path} HTTP/1.1\r\nhost: mirror\r\n\r\n").as_bytes()).await.unwrap();
    let (mut part, mut held) = (vec![0; 64 * KIB], 0);
    for _ in 0..LEN / part.len() {
        client.read_exact(&mut part).await.unwrap();
        held = held.max(mirror.metric(BUFFERS));
    }
    assert!((1..=MIB as u64).contains(&held), "{held}");
    // What is left is less than a head.
    mirror.metric_is(BUFFERS, 0).await;
    assert!(mirror.metric("larder_connections") >= 1, "it is still there");
}

/// 1,000 slow readers made registry v3 take 4 GiB. What is in memory anyhow goes from there into the socket.
#[tokio::test]
async fn two_hundred_stalled_clients_hold_next_to_nothing_and_the_others_are_served() {
    let (mirror, path, blob) = holding(8 * MIB, "server.write_idle = \"1m\"").await;
    let mut stalled = join_all((0..200).map(|_| Raw::asking(mirror.address(), &path))).await;
    for client in &mut stalled {
        client.head().await;
    }
    let quick = join_all((0..8).map(|_| mirror.get(&path))).await;
    assert!(quick.into_iter().all(|answer| answer.expect(200).body == blob));
    let held = mirror.metric(BUFFERS);
    assert!(held <= 200 * KIB as u64, "{held}");
    drop(stalled);
    mirror.metric_is(BUFFERS, 0).await;
    mirror.metric_is("larder_client_aborts_total{phase=\"body\"}", 200).await;
}

#[tokio::test]
async fn when_clients_hold_all_the_memory_they_may_more_are_told_to_come_again() {
    let (mirror, path, blob) = holding(4 * MIB, "server.max_buffers = \"400KiB\"").await;
    let (mut requests, connection) = without_window(&mirror, 16 << 10).await;
    let mut stalled = Vec::new();
    let refused = loop {
        let answer = mirror.get_with(&path, &[("range", "bytes=0-9")]).await;
        if answer.status == 503 {
            break answer;
        }
        let request = http::Request::get(mirror.url(&path)).body(()).unwrap();
        requests = requests.ready().await.unwrap();
        let (answer, _) = requests.send_request(request, true).unwrap();
        let answer = answer.await.unwrap();
        let held = mirror.metric(BUFFERS);
        assert!(stalled.len() < 200, "{} after {} bytes of {}", answer.status(), held, stalled.len());
        stalled.push(answer.into_body());
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(stalled.len() > 2, "a few have room: each holds little when many do");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(mirror.metric("larder_shed_total{reason=\"memory\"}") >= 1);
    mirror.head(&path).await.expect(200);
    let mut body = Vec::new();
    while let Some(data) = stalled[0].data().await {
        let data = data.unwrap();
        stalled[0].flow_control().release_capacity(data.len()).unwrap();
        body.extend(data);
    }
    assert!(body == blob, "who is served goes on being served");
    drop((stalled, requests));
    mirror.metric_is(BUFFERS, 0).await;
    connection.abort();
    assert!(mirror.get(&path).await.expect(200).body == blob);
}

/// Each of its streams may have little in memory when it is let in, and more as soon as its client takes some of it.
#[tokio::test]
async fn what_a_client_has_been_let_in_with_does_not_outgrow_its_share() {
    let (mirror, path, _) = holding(MIB, "server.max_buffers = \"1MiB\"\nserver.write_idle = \"1m\"").await;
    let stream = tokio::net::TcpStream::connect(mirror.address()).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0).initial_connection_window_size(16 << 20);
    let (mut requests, mut connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let (open, opens) = tokio::sync::oneshot::channel();
    let connection = tokio::spawn(async move {
        tokio::select! {
            _ = &mut connection => {}
            window = opens => {
                connection.set_initial_window_size(window.unwrap()).unwrap();
                drop(connection.await);
            }
        }
    });
    let mut streams = Vec::new();
    loop {
        let request = http::Request::get(mirror.url(&path)).body(()).unwrap();
        requests = requests.ready().await.unwrap();
        let answer = requests.send_request(request, true).unwrap().0.await.unwrap();
        if answer.status() == 503 {
            break;
        }
        streams.push(answer.into_body());
    }
    // No whole number of pieces, so that each stream has one that cannot go.
    let window = 63 * 1000;
    open.send(window).unwrap();
    for stream in &mut streams {
        let mut taken = 0;
        while taken < window as usize {
            taken += stream.data().await.unwrap().unwrap().len();
        }
    }
    let held = mirror.metric(BUFFERS);
    assert!((MIB as u64 / 4..MIB as u64 * 3 / 4).contains(&held), "{} streams have {held}", streams.len());
    Client::from("127.0.0.2").get(mirror.url(&path)).await.expect(200);
    drop((streams, requests));
    connection.await.unwrap();
    mirror.metric_is(BUFFERS, 0).await;
}

/// A thousand who take nothing of a manifest of 4 MiB each would have it in memory.
#[tokio::test]
async fn large_manifests_and_lists_are_counted_those_that_many_share_once() {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let upstream = Registry::start().await;
    let large = |n: usize| format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[],"n":"{n}{}"}}"#, "x".repeat(MIB));
    let path = |n: usize| format!("/v2/library/app/manifests/t{n}");
    for n in 0..3 {
        upstream.put_manifest("library/app", Some(&format!("t{n}")), INDEX, large(n));
    }
    let small = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[]}}"#);
    let small = upstream.put_manifest("library/app", Some(&"y".repeat(100)), INDEX, small);
    for n in 0..1000 {
        upstream.tag("library/app", &format!("{n}{}", "z".repeat(100)), &small);
    }
    let builder = TestMirror::builder().upstream("docker.io", &upstream);
    let mirror = builder.set("server.max_buffers = \"4MiB\"").set("server.write_idle = \"1m\"").start().await;
    for n in 0..3 {
        assert_eq!(mirror.get(&path(n)).await.expect(200).body, large(n));
    }
    let (list, page) = ("/v2/library/app/tags/list", "/v2/library/app/tags/list?n=500");
    let length_of_page = mirror.get(page).await.expect(200).body.len();
    mirror.get(list).await.expect(200);
    mirror.metric_is(BUFFERS, 0).await;

    let (mut requests, connection) = without_window(&mirror, 16 << 10).await;
    let mut stalled = Vec::new();
    for path in [path(0), path(0), path(0), page.into(), page.into(), path(1)] {
        let request = http::Request::get(mirror.url(&path)).body(()).unwrap();
        requests = requests.ready().await.unwrap();
        let answer = requests.send_request(request, true).unwrap().0.await.unwrap();
        assert_eq!(answer.status(), 200);
        stalled.push(answer.into_body());
    }
    // Those that are asked beside the first are themselves something, and what is made for each of them is there so many times.
    let requests_beside = 5 * 8 * KIB;
    assert_eq!(mirror.metric(BUFFERS), (large(0).len() + large(1).len() + 2 * length_of_page + requests_beside) as u64);
    let other = Client::from("127.0.0.2");
    for path in [path(2), list.to_owned(), page.to_owned()] {
        other.get(mirror.url(&path)).await.expect(200);
        let refused = mirror.get(&path).await.expect(503);
        assert_eq!((refused.header("retry-after"), refused.error_code().as_deref()), (Some("1"), Some("UNAVAILABLE")));
        mirror.head(&path).await.expect(200);
    }
    assert_eq!(mirror.metric("larder_shed_total{reason=\"memory\"}"), 3);
    mirror.get(&format!("/v2/library/app/manifests/{small}")).await.expect(200);
    drop((stalled, requests));
    mirror.metric_is(BUFFERS, 0).await;
    connection.abort();
    assert_eq!(mirror.get(&path(2)).await.expect(200).body, large(2));
}

/// I7: the counts are those of a larder without the one that stalls.
#[tokio::test]
async fn one_stalled_client_changes_nothing_for_the_others_of_a_cold_blob() {
    for protocol in ["HTTP/1.1", "HTTP/2"] {
        let upstream = Registry::start().await;
        let blob = noise(1, 12 * MIB);
        let digest = upstream.put_blob("library/alpine", blob.clone());
        let path = format!("/v2/library/alpine/blobs/{digest}");
        let mirror = TestMirror::of(&upstream).await;
        let mut on_socket = Raw::connect(mirror.address()).await;
        let on_stream = Client::h2();
        let mut stalled = None;
        if protocol == "HTTP/2" {
            stalled = Some(on_stream.stream(mirror.url(&path)).await);
        } else {
            on_socket.send(format!("GET {path} HTTP/1.1\r\nhost: mirror\r\n\r\n")).await;
            on_socket.head().await;
        }
        let quick = join_all((0..10).map(|_| get(mirror.url(&path)))).await;
        assert!(quick.into_iter().all(|answer| answer.expect(200).body == blob), "{protocol}");
        let same_connection = on_stream.get_with(mirror.url(&path), &[("range", "bytes=0-99")]).await.expect(206);
        assert_eq!(same_connection.body, blob[..100]);
        assert_eq!(upstream.requests().len(), 1, "{protocol}: one fetch, from its beginning to its end");
        assert_eq!(mirror.metric("larder_fills_total{outcome=\"kept\"}"), 1);
        assert_eq!(mirror.metric(SLOW), 0, "and it is still there");
        drop(stalled);
    }
}
