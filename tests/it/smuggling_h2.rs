//! Heads of HTTP/2 that a proxy would have to write down as HTTP/1.1, where they would become another request or two. Frames end where
//! they end, so that larder has nothing to mistake; what is malformed (RFC 9113, section 8.2 and 8.3) is refused all the same, by h2 but
//! for the hosts, and nobody is asked upstream.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::floods::{DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, RESET, SETTINGS, frame, header, stream};
use crate::support::{PATIENCE, Registry, TestMirror};

const GOAWAY: u8 = 7;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    Answered(Status),
    /// The stream is at its end, or the whole connection.
    Refused,
}

/// As far as it is one of those that stand in HPACK's table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Status {
    Ok,
    BadRequest,
    NotFound,
    Another,
}

/// Sends these frames and sees what becomes of the first stream.
async fn outcome(mirror: &TestMirror, frames: &[u8]) -> Outcome {
    let mut connection = TcpStream::connect(mirror.address()).await.unwrap();
    connection.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), frames].concat()).await.unwrap();
    let comes = async {
        loop {
            let mut head = [0; 9];
            if connection.read_exact(&mut head).await.is_err() {
                return Outcome::Refused;
            }
            let [a, b, c, kind, _, number @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            connection.read_exact(&mut payload).await.unwrap();
            match (kind, u32::from_be_bytes(number)) {
                (GOAWAY, _) | (RESET, 1) => return Outcome::Refused,
                (HEADERS, 1) => {
                    return Outcome::Answered(match payload[0] {
                        0x88 => Status::Ok,
                        0x8c => Status::BadRequest,
                        0x8d => Status::NotFound,
                        _ => Status::Another,
                    });
                }
                _ => {}
            }
        }
    };
    timeout(PATIENCE, comes).await.expect("it is not silent")
}

#[tokio::test]
async fn a_head_of_http_2_that_is_malformed_asks_nobody() {
    use Outcome::{Answered, Refused};
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let path = "/v2/library/alpine/manifests/hidden";
    let [method, scheme, authority, path] = [(":method", "GET"), (":scheme", "http"), (":authority", "mirror"), (":path", path)]
        .map(|(name, value)| header(name, value));
    let good = [&method[..], &scheme, &authority, &path].concat();
    let with = |name: &str, value: &str| [&good[..], &header(name, value)].concat();
    for (what, block, expected) in [
        ("a coding", with("transfer-encoding", "chunked"), Refused),
        ("a connection", with("connection", "close"), Refused),
        ("one that names headers", with("connection", "x, content-length"), Refused),
        ("one that is kept alive", with("keep-alive", "timeout=5"), Refused),
        ("one of a proxy", with("proxy-connection", "keep-alive"), Refused),
        ("an upgrade", with("upgrade", "h2c"), Refused),
        ("codings of trailers", with("te", "chunked"), Refused),
        ("a CR in a value", with("x", "a\rb"), Refused),
        ("an LF in a value", with("x", "a\nb"), Refused),
        ("a request in a value", with("x", "a\r\n\r\nGET /v2/ HTTP/1.1\r\nx: y"), Refused),
        ("a NUL in a value", with("x", "a\0b"), Refused),
        ("a CR and LF in a name", with("x: a\r\ny", "b"), Refused),
        ("a colon in a name", with("x:y", "b"), Refused),
        ("a space in a name", with("x ", "b"), Refused),
        ("a name in capitals", with("Content-Length", "5"), Refused),
        ("a name of nothing", with("", "b"), Refused),
        ("two methods", [&method[..], &good].concat(), Refused),
        ("two paths", [&path[..], &good].concat(), Refused),
        ("two schemes", [&scheme[..], &good].concat(), Refused),
        ("two authorities", [&authority[..], &good].concat(), Refused),
        ("an authority behind headers", [&method[..], &scheme, &path, &header("x", "y"), &authority].concat(), Refused),
        ("a head of its own kind", with(":status", "200"), Refused),
        ("a head of no kind", [&header(":x", "y")[..], &good].concat(), Refused),
        ("no path", [&method[..], &scheme, &authority].concat(), Refused),
        ("an empty path", [&method[..], &scheme, &authority, &header(":path", "")].concat(), Refused),
        ("a path with a space", [&method[..], &scheme, &authority, &header(":path", "/v2/ HTTP/1.1")].concat(), Refused),
        ("a path with a line", [&method[..], &scheme, &authority, &header(":path", "/v2/\r\nx: y")].concat(), Refused),
        ("a method with a space", [&header(":method", "GET /v2/")[..], &scheme, &authority, &path].concat(), Refused),
        ("a host that is another", with("host", "elsewhere"), Answered(Status::BadRequest)),
        ("two hosts", [with("host", "mirror"), header("host", "elsewhere")].concat(), Answered(Status::BadRequest)),
    ] {
        let sent = frame(HEADERS, END_HEADERS | END_STREAM, stream(0), &block);
        assert_eq!(outcome(&mirror, &sent).await, expected, "{what}");
        assert!(upstream.requests().is_empty(), "{what}: {:?}", upstream.requests());
    }
    // What is in order is heard.
    let sent = frame(HEADERS, END_HEADERS | END_STREAM, stream(0), &with("host", "MIRROR"));
    assert_eq!(outcome(&mirror, &sent).await, Answered(Status::NotFound));
    assert_eq!(upstream.requests().len(), 1);
    mirror.metric_is("larder_connections", 0).await;
}

/// It may be answered before it is seen that its length is another; what came with it is nobody's request.
#[tokio::test]
async fn what_is_hidden_in_a_body_of_http_2_is_no_request() {
    let hidden = "GET /v2/library/alpine/manifests/hidden HTTP/1.1\r\nhost: mirror\r\n\r\n";
    for (what, length, body) in [
        ("more than its length", "1", hidden),
        ("less than its length", "1000", hidden),
        ("a length and nothing", "5", ""),
        ("a length that is none", "0, 5", hidden),
        ("a length below zero", "-1", hidden),
        ("its length", &hidden.len().to_string(), hidden),
    ] {
        let upstream = Registry::start().await;
        let mirror = TestMirror::of(&upstream).await;
        let head =
            [(":method", "GET"), (":scheme", "http"), (":authority", "mirror"), (":path", "/v2/library/alpine/manifests/seen")];
        let head: Vec<u8> = head.into_iter().flat_map(|(name, value)| header(name, value)).collect();
        let head = [head, header("content-length", length)].concat();
        let sent = [frame(HEADERS, END_HEADERS, stream(0), &head), frame(DATA, END_STREAM, stream(0), body.as_bytes())];
        outcome(&mirror, &sent.concat()).await;
        let asked = upstream.requests();
        assert!(asked.len() <= 1 && asked.iter().all(|asked| asked.path.ends_with("/seen")), "{what}: {asked:?}");
        assert!(asked.iter().all(|asked| !asked.headers.contains_key("content-length")), "{what}: {asked:?}");
    }
}
