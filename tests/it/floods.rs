//! Heads that do not end and frames that ask for work and never for an answer. Each costs its own connection, little memory and no
//! question upstream.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::support::{Authority, Client, Image, PATIENCE, Process, Registry, TestMirror, noise, raw};

const MIB: u64 = 1 << 20;

// === Heads of HTTP/1.1 ===

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_and_its_connection_closed() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let filler = |bytes: usize| "x".repeat(bytes);
    let many = (0..200).map(|n| format!("x-{n}: y\r\n")).collect::<Vec<_>>().concat();
    for (what, head, statuses) in [
        ("a path of 70 KB", format!("GET /v2/{} HTTP/1.1\r\nhost: mirror\r\n\r\n", filler(70_000)), &["414", "431"][..]),
        ("a path of 8 MB", format!("GET /v2/{} HTTP/1.1\r\n", filler(8 << 20)), &["414", "431"]),
        ("a header of 8 MB", format!("GET /v2/ HTTP/1.1\r\nx: {}\r\n\r\n", filler(8 << 20)), &["431"]),
        ("a header's name of 8 MB", format!("GET /v2/ HTTP/1.1\r\n{}: x\r\n\r\n", filler(8 << 20)), &["431"]),
        ("200 headers", format!("GET /v2/ HTTP/1.1\r\n{many}\r\n"), &["431"]),
        ("a method of 8 MB", format!("{} /v2/ HTTP/1.1\r\n\r\n", filler(8 << 20)), &["400", "431"]),
        ("lines for ever", "\r\n".repeat(4 << 20), &["400", "431"]),
    ] {
        let answer =
            raw(mirror.address(), format!("{head}GET /v2/library/a/manifests/hidden HTTP/1.1\r\nhost: mirror\r\n\r\n")).await;
        let text = String::from_utf8_lossy(&answer);
        let status = text.get(9..12).unwrap_or_default();
        assert!(statuses.contains(&status), "{what}: {text}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{what}: {text}");
    }
    assert!(upstream.requests().is_empty());
    mirror.metric_is("larder_connections", 0).await;
}

/// In HTTP/2 a byte may stand for a header that came before: what takes 2 KB on its way took 150 KB in memory, for as long as its request
/// waited, a hundred times for each connection.
#[tokio::test]
async fn a_request_with_more_headers_than_clients_send_waits_for_nothing() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/a", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let (url, client) = (mirror.url(&image.tag_path("latest")), Client::h2());
    for number in [150, 400, 1_900] {
        client.get_with(&url, &vec![("x", "y"); number]).await.expect(431);
    }
    assert!(upstream.requests().is_empty());
    client.get_with(&url, &[("x", "y"); 90]).await.expect(200);
}

/// A repository's name, a tag, a digest: what is longer than any is told so before anyone is asked.
#[tokio::test]
async fn names_that_no_registry_has_cost_no_question() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let long = "a".repeat(20_000);
    for path in [
        format!("/v2/{long}/manifests/latest"),
        format!("/v2/{}/manifests/latest", "a/".repeat(10_000)),
        format!("/v2/library/alpine/manifests/{long}"),
        format!("/v2/library/alpine/blobs/sha256:{long}"),
        format!("/v2/library/alpine/blobs/{long}:{long}"),
        format!("/v2/library/alpine/manifests/latest?ns={long}"),
        format!("/v2/library/alpine/tags/list?last={long}"),
        format!("/v2/library/alpine/tags/list?next_page={long}"),
        format!("/{long}/v2/library/alpine/manifests/latest"),
    ] {
        let answer = mirror.get(&path).await;
        assert!(matches!(answer.status, 400 | 404), "{}: {}", answer.status, &path[..60]);
        assert!(answer.text().len() < 3_000, "what was asked is not told again at length: {}", answer.body.len());
    }
    assert!(upstream.requests().is_empty());
}

// === Frames of HTTP/2 ===

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(crate) const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A literal header that is never put into the table.
pub(crate) fn header(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    [vec![0x10], text(name), text(value)].concat()
}

/// GET of a path over http.
fn get_of(path: &str) -> Vec<u8> {
    [header(":method", "GET"), header(":scheme", "http"), header(":authority", "mirror"), header(":path", path)].concat()
}

/// The number of the n-th stream of a client.
pub(crate) fn stream(n: u32) -> u32 {
    2 * n + 1
}

/// Makes the n-th frames of a flood.
type Frames<'a> = Box<dyn FnMut(u32) -> Vec<u8> + 'a>;

/// A client that sends frames for as long as larder takes them, and reads, or not, what comes.
struct Flood {
    /// How much larder has taken, in bytes.
    taken: usize,
    /// It has closed the connection.
    closed: bool,
    heard: Vec<u8>,
}

/// Sends what `next` makes, up to so many bytes.
async fn flood<C: AsyncRead + AsyncWrite + Unpin>(
    mut connection: C,
    most: usize,
    reads: bool,
    mut next: impl FnMut(u32) -> Vec<u8>,
) -> Flood {
    connection.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let (mut from, mut to) = tokio::io::split(connection);
    let mut heard = Vec::new();
    let (mut taken, mut n) = (0, 0);
    let sends = async {
        while taken < most {
            let frames: Vec<u8> = (0..100)
                .flat_map(|_| {
                    n += 1;
                    next(n - 1)
                })
                .collect();
            // Who is not read from any more is not waited for.
            match timeout(Duration::from_secs(1), to.write_all(&frames)).await {
                Ok(Ok(())) => taken += frames.len(),
                Ok(Err(_)) => return true,
                Err(_) => return false,
            }
        }
        false
    };
    let hears = async {
        if !reads {
            std::future::pending::<()>().await;
        }
        let _ = from.read_to_end(&mut heard).await;
    };
    let closed = tokio::select! {
        closed = sends => closed,
        () = hears => true,
    };
    Flood { taken, closed, heard }
}

/// Another client, which asks for the same again and again in a thread of its own: in that of the test it would wait for the flood.
struct Beside {
    until: oneshot::Sender<()>,
    waited: thread::JoinHandle<Vec<Duration>>,
}

// === impl Beside ===

impl Beside {
    fn start(url: &str) -> Self {
        let ((until, mut ends), url) = (oneshot::channel(), url.to_owned());
        let waited = thread::spawn(move || {
            Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let (client, mut waited) = (Client::h2(), Vec::new());
                while ends.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                    let begun = Instant::now();
                    let answer = timeout(PATIENCE, client.get(&url)).await.expect("in time").expect(200);
                    assert_eq!(answer.body.len(), 100_000);
                    waited.push(begun.elapsed());
                }
                waited
            })
        });
        Self { until, waited }
    }

    /// How long it has waited, 99 times of a hundred; and how often it has asked.
    fn end(self) -> (Duration, usize) {
        let _ = self.until.send(());
        let mut waited = self.waited.join().expect("it is served");
        waited.sort();
        (waited.get(waited.len() * 99 / 100).copied().unwrap_or_default(), waited.len())
    }
}

#[tokio::test]
async fn floods_of_frames_are_cut_off_or_cost_nothing() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob("library/alpine", noise(1, 100_000));
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (certificate, key) = authority.server(dir.path(), "127.0.0.1");
    let (certificate, key) = (certificate.display(), key.display());
    let settings = [
        &*format!("upstream.\"docker.io\".url={}", upstream.url()),
        &format!("server.listener=[{{listen='127.0.0.1:0', cert_file='{certificate}', key_file='{key}'}}]"),
        "log.level=error",
    ];
    let larder = Process::start(dir.path(), &settings, &[]);
    let by_tls = TlsConnector::from(Arc::new(authority.believed(rustls::ALL_VERSIONS, &["h2"])));
    let other = Client::h2();
    let url = larder.url(&format!("/v2/library/alpine/blobs/{digest}"));
    other.get(&url).await.expect(200);
    // Each flood asks for what no other asks for.
    let round = std::cell::Cell::new(0);
    let unknown = |n: u32| get_of(&format!("/v2/library/flood{}/manifests/t{n}", round.get()));
    let request = |n: u32, end: u8| frame(HEADERS, END_HEADERS | end, stream(n), &unknown(n));
    // What, whether larder must close, what it may ask upstream, and the frames.
    let floods: Vec<(&str, bool, usize, Frames<'_>)> = vec![
        (
            "rapid resets",
            true,
            500,
            Box::new(|n| [request(n, END_STREAM), frame(RESET, 0, stream(n), &8_u32.to_be_bytes())].concat()),
        ),
        (
            "resets that larder is made to send",
            true,
            500,
            Box::new(|n| [request(n, 0), frame(WINDOW, 0, stream(n), &0_u32.to_be_bytes())].concat()),
        ),
        ("streams beyond what may be open", true, 500, Box::new(|n| request(n, 0))),
        (
            "headers that go on for ever",
            true,
            0,
            Box::new(|n| {
                if n == 0 {
                    frame(HEADERS, 0, 1, &unknown(0))
                } else {
                    frame(CONTINUATION, 0, 1, &header("x", &"y".repeat(120)).repeat(100))
                }
            }),
        ),
        (
            "headers that go on with nothing",
            true,
            0,
            Box::new(|n| if n == 0 { frame(HEADERS, 0, 1, &unknown(0)) } else { frame(CONTINUATION, 0, 1, &[]) }),
        ),
        ("data without bytes", false, 500, Box::new(|n| if n == 0 { request(0, 0) } else { frame(DATA, 0, 1, &[]) })),
        (
            "data that is all padding",
            false,
            500,
            Box::new(|n| if n == 0 { request(0, 0) } else { frame(DATA, 8, 1, &[&[99][..], &[0; 99]].concat()) }),
        ),
        ("pings", false, 0, Box::new(|n| frame(PING, 0, 0, &u64::from(n).to_be_bytes()))),
        (
            "settings",
            false,
            0,
            Box::new(|n| frame(SETTINGS, 0, 0, &[&4_u16.to_be_bytes()[..], &(n % 60_000).to_be_bytes()].concat())),
        ),
        ("windows", false, 0, Box::new(|_| frame(WINDOW, 0, 0, &1_u32.to_be_bytes()))),
        ("priorities", false, 0, Box::new(|n| frame(PRIORITY, 0, stream(n), &[0, 0, 0, 0, 1]))),
        ("frames of no kind", false, 0, Box::new(|_| frame(0x42, 0, 0, &[0; 64]))),
    ];
    for (what, must_close, most_asked, mut frames) in floods {
        for (reads, tls) in [(true, false), (false, false), (false, true)] {
            let most = match what {
                _ if tls => 2 << 20,
                // Of answers that nobody reads, more than kernels take.
                "pings" | "settings" if !reads => 64 << 20,
                _ => 8 << 20,
            };
            round.set(round.get() + 1);
            larder.forget_peak();
            let (before, beside) = (larder.memory(), Beside::start(&url));
            let flood = if tls {
                let (address, name) = (larder.tls_address(), ServerName::try_from("127.0.0.1").unwrap());
                let stream = TcpStream::connect(address).await.unwrap();
                flood(by_tls.connect(name, stream).await.unwrap(), most, reads, &mut frames).await
            } else {
                flood(TcpStream::connect(larder.address()).await.unwrap(), most, reads, &mut frames).await
            };
            let (grown, (waits, times)) = (larder.peak().saturating_sub(before), beside.end());
            eprintln!(
                "{what}{}{}: {} KiB taken, closed: {}, {} KiB more at the most; another waits {waits:?} at p99 of {times}",
                if reads { "" } else { ", unread" },
                if tls { ", by TLS" } else { "" },
                flood.taken >> 10,
                flood.closed,
                grown >> 10,
            );
            assert!(flood.closed || !must_close, "{what}: {} bytes were taken and all is well", flood.taken);
            assert!(grown < 24 * MIB, "{what}: {grown}");
            assert!(flood.heard.len() <= flood.taken + (64 << 10), "{what}: {} bytes for {}", flood.heard.len(), flood.taken);
            assert_eq!(timeout(PATIENCE, other.get(&url)).await.expect("in time").expect(200).body.len(), 100_000, "{what}");
            let asked = upstream.count("GET", &format!("/flood{}/", round.get()));
            assert!(asked <= most_asked, "{what}: {asked}");
        }
    }
    larder.until("larder_connections", |open| open <= 2).await;
    let log = larder.log();
    assert!(!log.contains("panicked"), "{log}");
}
