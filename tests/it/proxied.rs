//! Clients that come through proxies before larder: whose word counts for where they come from, in the log and in what each
//! address may try.

use http::Version;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Authority, Client, PATIENCE, Process, Raw, Registry, TestMirror, get_with};

const PING: &str = "GET /v2/ HTTP/1.1\r\nhost: mirror\r\nconnection: close\r\n\r\n";
const UNPROXIED: &str = "larder_unproxied_connections_total";

/// A larder in a process of its own that listens besides with these options, and where that is.
fn listening(dir: &std::path::Path, options: &str) -> (Process, std::net::SocketAddr) {
    let setting = format!("server.listener=[{{listen='127.0.0.1:0', {options}}}]");
    let larder = Process::start(dir, &[&setting], &[]);
    let address = larder.greeting().split("http://").nth(2).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    (larder, address)
}

/// Whom the log names, in so many requests.
async fn clients(larder: &Process, requests: usize) -> Vec<String> {
    let log = larder.log_when("all requests in the log", |log| log.matches("access: client=").count() == requests).await;
    let lines = log.lines().filter(|line| line.contains("access: client="));
    lines.map(|line| line.split("client=").nth(1).unwrap().split(' ').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_log_names_whom_a_trusted_proxy_speaks_for_and_else_who_has_connected() {
    let dir = tempfile::tempdir().unwrap();
    for (options, header, expected) in [
        ("proxies = ['127.0.0.0/8', '10.0.0.0/8']", "198.51.100.1", "198.51.100.1"),
        ("proxies = ['127.0.0.0/8', '10.0.0.0/8']", "203.0.113.9, 198.51.100.1, 10.1.1.1", "198.51.100.1"),
        ("proxies = ['10.0.0.0/8']", "198.51.100.1", "127.0.0.1:"),
        ("proxies = []", "198.51.100.1", "127.0.0.1:"),
        ("proxies = ['127.0.0.1']", "198.51.100.1\\r\\n2026 INFO access: ", "127.0.0.1:"),
    ] {
        let (larder, address) = listening(dir.path(), options);
        let url = format!("http://{address}/v2/");
        get_with(&url, &[("x-forwarded-for", header)]).await.expect(200);
        // At the listener without doors nobody is believed.
        get_with(larder.url("/v2/"), &[("x-forwarded-for", header)]).await.expect(200);
        let named = clients(&larder, 2).await;
        assert!(named.len() == 2 && named[0].starts_with(expected) && named[1].starts_with("127.0.0.1:"), "{options}: {named:?}");
    }
}

#[tokio::test]
async fn a_proxy_says_by_the_proxy_protocol_for_whom_it_speaks() {
    let dir = tempfile::tempdir().unwrap();
    let (larder, address) = listening(dir.path(), "proxies = ['127.0.0.1'], proxy_protocol = true");
    let four = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc6\x33\x64\x02\x0a\x00\x00\x01\x12\x67\x00\x50";
    let own = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    for header in [&b"PROXY TCP4 198.51.100.1 10.0.0.1 4711 80\r\n"[..], four, own, b"PROXY UNKNOWN\r\n"] {
        // In one piece, and byte by byte.
        let mut whole = Raw::connect(address).await;
        whole.send([header, PING.as_bytes()].concat()).await;
        assert!(whole.rest().await.0.starts_with(b"HTTP/1.1 200 "));
        let mut dripping = Raw::connect(address).await;
        for byte in header {
            dripping.send([*byte]).await;
        }
        dripping.send(PING).await;
        assert!(dripping.rest().await.0.starts_with(b"HTTP/1.1 200 "));
    }
    let named = clients(&larder, 8).await;
    assert_eq!(named[..4], ["198.51.100.1:4711", "198.51.100.1:4711", "198.51.100.2:4711", "198.51.100.2:4711"]);
    assert!(named[4..].iter().all(|client| client.starts_with("127.0.0.1:")), "{named:?}");
    assert_eq!(larder.metric(UNPROXIED).await, 0);
}

/// What speaks the PROXY protocol does not look into HTTP, and lets through what its clients write there.
#[tokio::test]
async fn where_proxies_speak_the_proxy_protocol_x_forwarded_for_is_nobodys_word() {
    let dir = tempfile::tempdir().unwrap();
    let (larder, address) = listening(dir.path(), "proxies = ['127.0.0.0/8'], proxy_protocol = true");
    let invents = PING.replace("host: mirror", "host: mirror\r\nx-forwarded-for: 203.0.113.9");
    for header in ["PROXY UNKNOWN\r\n", "PROXY TCP4 127.0.0.7 10.0.0.1 4711 80\r\n"] {
        let mut raw = Raw::connect(address).await;
        raw.send(format!("{header}{invents}")).await;
        assert!(raw.rest().await.0.starts_with(b"HTTP/1.1 200 "));
    }
    let named = clients(&larder, 2).await;
    assert!(named.iter().all(|client| client.starts_with("127.0.0.")), "{named:?}");
}

#[tokio::test]
async fn without_a_header_of_a_proxys_nobody_is_heard() {
    let upstream = Registry::start().await;
    let listener = "proxies = ['127.0.0.1'], proxy_protocol = true";
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).listener(listener).start().await;
    let address = mirror.listening()[1].address().unwrap();
    let garbage: [&[u8]; 5] = [
        PING.as_bytes(),
        b"PROXY TCP4 nonsense 10.0.0.1 4711 80\r\nGET /v2/ HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on",
        &[b'P'; 4096],
    ];
    for (n, garbage) in garbage.iter().enumerate() {
        let mut raw = Raw::connect(address).await;
        let _ = raw.try_send(garbage).await;
        assert_eq!(raw.rest().await.0, b"", "{}", String::from_utf8_lossy(garbage));
        mirror.metric_is(UNPROXIED, n as u64 + 1).await;
    }
    // Who says half of it keeps no place for ever.
    let mut half = Raw::connect(address).await;
    half.send(b"PROXY TCP4 198.51.100.1").await;
    assert_eq!(half.rest().await.0, b"");
    mirror.metric_is("larder_connections", 0).await;

    let stranger = "proxies = ['10.0.0.0/8'], proxy_protocol = true";
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).listener(stranger).start().await;
    let mut raw = Raw::connect(mirror.listening()[1].address().unwrap()).await;
    let _ = raw.try_send([b"PROXY TCP4 198.51.100.1 10.0.0.1 4711 80\r\n", PING.as_bytes()].concat()).await;
    assert_eq!(raw.rest().await.0, b"");
    mirror.metric_is(UNPROXIED, 1).await;
}

#[tokio::test]
async fn tls_comes_after_the_header() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let mirror = TestMirror::builder().upstream("docker.io", &upstream);
    let files = authority.server(mirror.dir(), "127.0.0.1");
    let mirror = mirror.tls(&files, "proxies = ['127.0.0.1'], proxy_protocol = true").start().await;
    // A proxy that passes on what comes, with its header before it.
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, to) = (proxy.local_addr().unwrap(), mirror.tls_address());
    let proxy = tokio::spawn(async move {
        while let Ok((mut client, _)) = proxy.accept().await {
            let mut server = TcpStream::connect(to).await.unwrap();
            server.write_all(b"PROXY TCP4 198.51.100.1 10.0.0.1 4711 80\r\n").await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
    });
    let client = Client::tls(authority.believed(rustls::ALL_VERSIONS, &["h2"]));
    let answer = client.get(format!("https://{at}/v2/")).await.expect(200);
    assert_eq!(answer.version, Version::HTTP_2);
    assert!(Client::tls(authority.believed(rustls::ALL_VERSIONS, &["h2"])).try_get(mirror.tls_url("/v2/")).await.is_err());
    proxy.abort();
    let mut rest = Vec::new();
    let mut plain = TcpStream::connect(to).await.unwrap();
    plain.write_all(b"PROXY UNKNOWN\r\nGET /v2/ HTTP/1.1\r\n\r\n").await.unwrap();
    timeout(PATIENCE, plain.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&rest));
}
