//! TLS for clients: versions, protocols, certificates that change, handshakes that come to nothing.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::damage::{cached, path};
use crate::support::{Authority, Client, Fault, Log, Match, PATIENCE, Raw, Registry, TestMirror, get, noise};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// The beginning of a record with a `ClientHello` of TLS 1.3, whose rest never comes.
const HALF_OF_A_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

async fn speaking_tls(upstream: &Registry, authority: &Authority, options: &str) -> TestMirror {
    let mirror = TestMirror::builder().upstream("docker.io", upstream).set(options);
    let files = authority.server(mirror.dir(), "127.0.0.1");
    mirror.tls(&files, "").start().await
}

async fn connect(address: SocketAddr, config: &ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    timeout(PATIENCE, TlsConnector::from(Arc::new(config.clone())).connect(name, stream)).await.expect("it answers")
}

#[tokio::test]
async fn pulls_go_by_both_versions_of_tls_and_both_of_http() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let mirror = speaking_tls(&upstream, &authority, "").await;
    for (n, (tls, offered, spoken)) in [
        (&TLS12, &["h2", "http/1.1"][..], Version::HTTP_2),
        (&TLS13, &["h2", "http/1.1"], Version::HTTP_2),
        (&TLS12, &["http/1.1"], Version::HTTP_11),
        (&TLS13, &["http/1.1"], Version::HTTP_11),
        (&TLS13, &[], Version::HTTP_11),
    ]
    .into_iter()
    .enumerate()
    {
        // First from the upstream, then from the cache, then a part.
        let blob = noise(n as u64, 5 * MIB + 17);
        let path = path(&upstream.put_blob("library/app", blob.clone()));
        let client = Client::tls(authority.believed(&[tls], offered));
        for _ in 0..2 {
            let answer = client.get(mirror.tls_url(&path)).await.expect(200);
            assert!(answer.body == blob && answer.version == spoken, "{tls:?} {offered:?} {:?}", answer.version);
        }
        let range = client.get_with(mirror.tls_url(&path), &[("range", "bytes=70000-3000000")]).await.expect(206);
        assert!(range.body == blob[70_000..=3_000_000], "{tls:?} {offered:?}");
        assert_eq!(upstream.count("GET", &path), 1);
    }
    mirror.metric_is("larder_tls_handshakes_total{outcome=\"done\"}", 5).await;
}

#[tokio::test]
async fn who_does_not_believe_the_certificate_or_shares_no_protocol_hears_nothing() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let mirror = speaking_tls(&upstream, &authority, "").await;
    let stranger = Client::tls(Authority::new().believed(rustls::ALL_VERSIONS, &["h2"]));
    assert!(stranger.try_get(mirror.tls_url("/v2/")).await.is_err());
    let error = connect(mirror.tls_address(), &authority.believed(rustls::ALL_VERSIONS, &["http/3"])).await.unwrap_err();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    mirror.metric_is("larder_tls_handshakes_total{outcome=\"failed\"}", 2).await;
    mirror.metric_is("larder_connections", 0).await;
}

#[tokio::test]
async fn who_speaks_http_where_it_must_be_https_is_told_so() {
    let upstream = Registry::start().await;
    let mirror = speaking_tls(&upstream, &Authority::new(), "").await;
    let answer = get(format!("http://{}/v2/", mirror.tls_address())).await.expect(400);
    assert_eq!(answer.error_code().as_deref(), Some("UNSUPPORTED"));
    assert!(answer.text().contains("speaks https"), "{}", answer.text());
    mirror.metric_is("larder_connections", 0).await;
}

#[tokio::test]
async fn a_blob_that_breaks_does_not_end_well() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let mirror = speaking_tls(&upstream, &authority, "").await;
    for (n, protocol) in ["http/1.1", "h2"].into_iter().enumerate() {
        let blob = noise(n as u64, 1_000_000);
        let digest = upstream.put_blob("library/app", blob.clone());
        upstream.on(Match::get(&digest).times(1), Fault::Cut { after: 300_000 });
        upstream.on(Match::get(&digest), Fault::status(404));
        let client = Client::tls(authority.believed(rustls::ALL_VERSIONS, &[protocol]));
        let answer = client.get(mirror.tls_url(&path(&digest))).await;
        assert!(answer.status == 200 && !answer.complete, "{protocol}");
        assert!(!answer.body.is_empty() && blob.starts_with(&answer.body), "{protocol}: {}", answer.body.len());
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_given_up() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let mirror = speaking_tls(&upstream, &authority, "server.write_idle = \"300ms\"").await;
    let digest = cached(&upstream, &mirror, &noise(1, 24 * MIB)).await;
    let mut client = connect(mirror.tls_address(), &authority.believed(rustls::ALL_VERSIONS, &["http/1.1"])).await.unwrap();
    client.write_all(format!("GET {} HTTP/1.1\r\nhost: mirror\r\n\r\n", path(&digest)).as_bytes()).await.unwrap();
    mirror.metric_is("larder_slow_clients_total", 1).await;
    mirror.metric_is("larder_body_buffer_bytes", 0).await;
    let mut taken = Vec::new();
    assert!(timeout(PATIENCE, client.read_to_end(&mut taken)).await.unwrap().is_err(), "not as if it were all");
}

#[tokio::test]
async fn a_client_of_http2_that_takes_nothing_is_given_up() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let mirror = speaking_tls(&upstream, &authority, "server.write_idle = \"300ms\"").await;
    let digest = cached(&upstream, &mirror, &noise(1, 24 * MIB)).await;
    let client = connect(mirror.tls_address(), &authority.believed(rustls::ALL_VERSIONS, &["h2"])).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(32 << 20).initial_connection_window_size(32 << 20);
    let (mut requests, mut connection) = builder.handshake::<_, Bytes>(client).await.unwrap();
    let asked = Request::get(mirror.tls_url(&path(&digest))).body(()).unwrap();
    let (answer, _) = requests.send_request(asked, true).unwrap();
    tokio::select! {
        answer = answer => assert_eq!(answer.unwrap().status(), 200),
        _ = &mut connection => panic!("it is answered"),
    }
    // Nobody reads what comes now.
    mirror.metric_is("larder_slow_clients_total", 1).await;
    mirror.metric_is("larder_body_buffer_bytes", 0).await;
    assert!(connection.await.is_err());
}

// === certificates that change ===

/// Asks, and is answered, on a connection that is then kept.
async fn ping(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\n").await.expect("it listens");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n{}") {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("it is not silent");
        assert!(read.is_ok_and(|read| read > 0), "{}", String::from_utf8_lossy(&answer));
    }
}

/// What the server shows, as a client that believes both sees it.
async fn shown(mirror: &TestMirror, config: &ClientConfig) -> Vec<u8> {
    let stream = connect(mirror.tls_address(), config).await.expect("it is believed");
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

async fn becomes(mirror: &TestMirror, config: &ClientConfig, certificate: &Path) {
    let expected = pem(certificate);
    let becomes = async {
        while shown(mirror, config).await != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, becomes).await.expect("the new certificate is shown");
}

fn pem(file: &Path) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject as _;
    rustls::pki_types::CertificateDer::from_pem_file(file).unwrap().to_vec()
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let upstream = Registry::start().await;
    let blob = noise(1, 3 * MIB);
    let digest = upstream.put_blob("library/app", blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Gate { after: MIB });
    let authority = Authority::new();
    let mirror = TestMirror::builder().upstream("docker.io", &upstream);
    let dir = mirror.dir().to_owned();
    let files = authority.server(&dir, "127.0.0.1");
    let mirror = mirror.tls(&files, "").start().await;
    let config = authority.believed(rustls::ALL_VERSIONS, &["http/1.1"]);
    let old = pem(&files.0);
    assert_eq!(shown(&mirror, &config).await, old);
    let mut under_way = Client::tls(config.clone()).stream(mirror.tls_url(&path(&digest))).await;
    let beginning = under_way.take(100 * KIB).await;
    let mut idle = connect(mirror.tls_address(), &config).await.expect("it is believed");
    ping(&mut idle).await;

    let log = Log::from_here();
    authority.server(&dir, "127.0.0.1");
    assert_ne!(pem(&files.0), old);
    becomes(&mirror, &config, &files.0).await;
    log.will_say(&["INFO", "the certificate of 127.0.0.1:0", "read anew"]).await;
    upstream.release();
    let rest = under_way.rest().await.expect(200);
    assert!([&beginning[..], &rest.body].concat() == blob);
    ping(&mut idle).await;
}

#[tokio::test]
async fn a_new_certificate_that_cannot_be_used_is_not_and_the_log_says_why() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let mirror = TestMirror::builder().upstream("docker.io", &upstream);
    let dir = mirror.dir().to_owned();
    let files = authority.server(&dir, "127.0.0.1");
    let mirror = mirror.tls(&files, "").start().await;
    let config = authority.believed(rustls::ALL_VERSIONS, &["http/1.1"]);
    let (old, good_key) = (pem(&files.0), fs::read(&files.1).unwrap());
    let stranger = tempfile::tempdir().unwrap();
    let (_, others_key) = authority.server(stranger.path(), "127.0.0.1");
    let others_key = fs::read(others_key).unwrap();
    let missing = dir.join("away");
    for (what, says) in [("another key", "cert_file does not fit key_file"), ("garbage", "server.key"), ("none", "server.key")] {
        let log = Log::from_here();
        match what {
            "another key" => fs::write(&files.1, &others_key).unwrap(),
            "garbage" => fs::write(&files.1, "-----BEGIN PRIVATE KEY-----\nnothing").unwrap(),
            _ => fs::rename(&files.1, &missing).unwrap(),
        }
        log.will_say(&["WARN", "what it was stays", says, if says == "server.key" { dir.to_str().unwrap() } else { says }]).await;
        assert_eq!(shown(&mirror, &config).await, old, "{what}");
    }
    fs::write(&files.1, good_key).unwrap();
    authority.server(&dir, "127.0.0.1");
    becomes(&mirror, &config, &files.0).await;
}

// === handshakes that come to nothing ===

#[tokio::test]
async fn who_stalls_in_a_handshake_is_closed_after_five_seconds() {
    let upstream = Registry::start().await;
    let mirror = speaking_tls(&upstream, &Authority::new(), "").await;
    let begun = Instant::now();
    let mut stalled = Raw::connect(mirror.tls_address()).await;
    stalled.send(HALF_OF_A_HELLO).await;
    // A byte now and then does not keep it.
    let mut dripping = Raw::connect(mirror.tls_address()).await;
    dripping.send(HALF_OF_A_HELLO).await;
    let drips = async {
        while dripping.try_send(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(stalled.rest(), drips);
    let lasted = begun.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(8)).contains(&lasted), "{lasted:?}");
    mirror.metric_is("larder_tls_handshakes_total{outcome=\"slow\"}", 2).await;
    mirror.metric_is("larder_connections", 0).await;
}

#[tokio::test]
async fn garbage_in_place_of_a_handshake_ends_its_connection_alone() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let mirror = speaking_tls(&upstream, &authority, "").await;
    let client = Client::tls(authority.believed(rustls::ALL_VERSIONS, &["http/1.1"]));
    client.get(mirror.tls_url("/v2/")).await.expect(200);
    let mut huge = HALF_OF_A_HELLO.to_vec();
    huge[6..9].copy_from_slice(b"\xff\xff\xff");
    huge.resize(70_000, 0);
    let garbage: [&[u8]; 6] = [
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x00",
        b"\x80\x2e\x01\x00\x02",
        b"\x15\x03\x01\x00\x02\x02\x28",
        &[0; 16_000],
        &huge,
    ];
    for (n, garbage) in garbage.into_iter().enumerate() {
        let mut raw = Raw::connect(mirror.tls_address()).await;
        let _ = raw.try_send(garbage).await;
        let _ = raw.try_half_close().await;
        raw.rest().await;
        mirror.metric_is("larder_tls_handshakes_total{outcome=\"failed\"}", n as u64 + 1).await;
    }
    client.get(mirror.tls_url("/v2/")).await.expect(200);
    mirror.metric_is("larder_connections", 1).await;
}

#[tokio::test]
async fn for_one_more_handshake_than_there_may_be_the_oldest_is_given_up() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let mirror = speaking_tls(&upstream, &authority, "").await;
    let mut stalled = Vec::new();
    for _ in 0..1025 {
        let mut raw = Raw::connect(mirror.tls_address()).await;
        raw.send(HALF_OF_A_HELLO).await;
        stalled.push(raw);
    }
    let given_up = "larder_tls_handshakes_total{outcome=\"given_up\"}";
    mirror.metric_is(given_up, 1).await;
    mirror.metric_is("larder_connections", 1024).await;
    let client = Client::tls(authority.believed(rustls::ALL_VERSIONS, &["http/1.1"]));
    client.get(mirror.tls_url("/v2/")).await.expect(200);
    assert_eq!(mirror.metric(given_up), 2, "no more than needed");
}

#[tokio::test]
async fn a_handshake_under_way_does_not_hold_up_a_stop() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let mirror = speaking_tls(&upstream, &authority, "").await;
    let mut stalled = Raw::connect(mirror.tls_address()).await;
    stalled.send(HALF_OF_A_HELLO).await;
    let client = Client::tls(authority.believed(rustls::ALL_VERSIONS, &["http/1.1"]));
    client.get(mirror.tls_url("/v2/")).await.expect(200);
    mirror.metric_is("larder_connections", 2).await;
    let begun = Instant::now();
    let (_, drained) = mirror.drain().await;
    assert_eq!(drained.connections, 0);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    stalled.rest().await;
}

/// Those who said nothing were never closed, neither before a handshake nor after it; nor those who began as HTTP/2 does, for which
/// nobody counted the time.
#[tokio::test]
async fn who_asks_nothing_is_closed_after_ten_seconds() {
    const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let mirror = speaking_tls(&upstream, &authority, "").await;
    let begun = Instant::now();
    let mut silent = [Raw::connect(mirror.address()).await, Raw::connect(mirror.tls_address()).await];
    let mut beginnings = Vec::new();
    for beginning in ["P", &PREFACE[..16], PREFACE, "GET /v2/ HTTP/1.1\r\n"] {
        let mut raw = Raw::connect(mirror.address()).await;
        raw.send(beginning).await;
        beginnings.push(raw);
    }
    let config = authority.believed(rustls::ALL_VERSIONS, &["h2"]);
    let mut by_tls = Vec::new();
    for beginning in ["", "P", &PREFACE[..23], PREFACE] {
        let mut stream = connect(mirror.tls_address(), &config).await.expect("it is believed");
        stream.write_all(beginning.as_bytes()).await.unwrap();
        by_tls.push(stream);
    }
    mirror.metric_is("larder_connections", 10).await;
    for raw in &mut silent {
        assert!(raw.rest().await.0.is_empty());
    }
    for raw in &mut beginnings {
        raw.rest().await;
    }
    for stream in &mut by_tls {
        let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("it is closed");
    }
    let lasted = begun.elapsed();
    assert!((Duration::from_secs(10)..Duration::from_secs(13)).contains(&lasted), "{lasted:?}");
    mirror.metric_is("larder_connections", 0).await;
}

// === certificates of clients ===

/// How the second of two connections of one client came about.
async fn kind_of_second_handshake(mirror: &TestMirror, config: &ClientConfig) -> HandshakeKind {
    let mut first = connect(mirror.tls_address(), config).await.expect("it is believed");
    // Tickets come with what is said first.
    ping(&mut first).await;
    let mut second = connect(mirror.tls_address(), config).await.expect("it is believed");
    ping(&mut second).await;
    second.get_ref().1.handshake_kind().expect("it has been made")
}

/// By a ticket, a certificate that had ended was believed for as long as larder ran.
#[tokio::test]
async fn who_has_shown_a_certificate_shows_it_again_on_each_connection() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    for version in [&TLS12, &TLS13] {
        for (asked_for_one, expected) in [(false, HandshakeKind::Resumed), (true, HandshakeKind::Full)] {
            let mirror = TestMirror::builder().upstream("docker.io", &upstream);
            let files = authority.server(mirror.dir(), "127.0.0.1");
            let ca = authority.file(mirror.dir());
            let options = if asked_for_one { format!("client_ca_file = '{}'", ca.display()) } else { String::new() };
            let mirror = mirror.tls(&files, &options).start().await;
            let mut config = authority.believed(&[version], &["http/1.1"]);
            config.client_auth_cert_resolver = authority.believed_by("build-7", &[]).client_auth_cert_resolver;
            assert_eq!(kind_of_second_handshake(&mirror, &config).await, expected, "{version:?}");
        }
    }
}

/// On an open connection whoever had once shown a certificate was who it said for as long as it asked for something now and then.
#[tokio::test]
async fn when_the_authority_of_clients_is_exchanged_their_connections_end_after_what_is_under_way() {
    let upstream = Registry::start().await;
    let blob = noise(1, 3 * MIB);
    let digest = upstream.put_blob("library/app", blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Gate { after: MIB });
    let (authority, new) = (Authority::new(), Authority::new());
    let mirror = TestMirror::builder().upstream("docker.io", &upstream);
    let (files, ca) = (authority.server(mirror.dir(), "127.0.0.1"), authority.file(mirror.dir()));
    let mirror = mirror.tls(&files, &format!("client_ca_file = '{}', client_cert = 'optional'", ca.display())).start().await;
    let dir = mirror.dir().to_owned();
    let mut under_way = Vec::new();
    for protocol in ["h2", "http/1.1"] {
        let client = Client::tls(authority.believed_by("build-7", &[protocol]));
        under_way.push(client.stream(mirror.tls_url(&path(&digest))).await);
    }
    let mut certified = connect(mirror.tls_address(), &authority.believed_by("build-7", &["http/1.1"])).await.unwrap();
    ping(&mut certified).await;
    let mut anonymous = connect(mirror.tls_address(), &authority.believed(rustls::ALL_VERSIONS, &["http/1.1"])).await.unwrap();
    ping(&mut anonymous).await;
    new.file(&dir);
    let ended = timeout(PATIENCE, certified.read_to_end(&mut Vec::new())).await.expect("it is closed");
    assert_eq!(ended.unwrap(), 0);
    // With TLS 1.2 a client hears during the handshake that it is not believed.
    let mut old = authority.believed(&[&TLS12], &["http/1.1"]);
    old.client_auth_cert_resolver = authority.believed_by("build-7", &[]).client_auth_cert_resolver;
    connect(mirror.tls_address(), &old).await.expect_err("who signed it is not trusted any more");
    upstream.release();
    for stream in under_way {
        assert!(stream.rest().await.expect(200).body == blob);
    }
    ping(&mut anonymous).await;
}
