//! Requests and answers whose end two readers could see in different places. Whoever disagrees with larder gains nothing: what is
//! hidden in one message is never taken for another, on either side.

use bytes::Bytes;

use crate::support::{RawRegistry, Registry, TestMirror, get, noise, raw};

const HIDDEN: &str = "GET /v2/library/alpine/manifests/hidden HTTP/1.1\r\nhost: mirror\r\n\r\n";

/// The statuses of all answers that are in these bytes.
fn statuses(answers: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answers);
    text.match_indices("HTTP/1.").map(|(at, _)| text[at + 9..at + 12].parse().expect("a status")).collect()
}

/// What comes back when these bytes are all that a client sends. Nobody is asked upstream.
async fn said_to(bytes: &[u8]) -> Vec<u16> {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let answers = raw(mirror.address(), bytes).await;
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
    mirror.metric_is("larder_connections", 0).await;
    statuses(&answers)
}

/// What hyper refuses is answered 400. Of the rest (RFC 9112, section 6.1: chunks go before a length) larder reads no body, and what
/// follows is not read either.
#[tokio::test]
async fn a_request_whose_end_is_in_doubt_is_the_last_of_its_connection() {
    let chunked = "transfer-encoding: chunked\r\n";
    for (what, headers, body, expected) in [
        ("both a length and chunks", "content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n", vec![200]),
        ("chunks and a length", "transfer-encoding: chunked\r\ncontent-length: 70\r\n", "0\r\n\r\n", vec![200]),
        ("two lengths", "content-length: 0\r\ncontent-length: 5\r\n", "", vec![400]),
        ("two lengths in one", "content-length: 0, 5\r\n", "", vec![400]),
        ("a length with a sign", "content-length: +5\r\n", "", vec![400]),
        ("a length below zero", "content-length: -1\r\n", "", vec![400]),
        ("a length beyond all", "content-length: 18446744073709551616\r\n", "", vec![400]),
        ("a length in hex", "content-length: 0x5\r\n", "", vec![400]),
        ("a coding that is none", "transfer-encoding: xchunked\r\n", "0\r\n\r\n", vec![400]),
        ("two codings", "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", "0\r\n\r\n", vec![400]),
        ("a coding twice", "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n", vec![200]),
        ("a coding before a space", "transfer-encoding : chunked\r\n", "0\r\n\r\n", vec![400]),
        ("a length after a bare LF", "x: a\ncontent-length: 5\r\n", "hello", vec![400]),
        ("chunks that are not the last coding", "transfer-encoding: chunked, identity\r\n", "0\r\n\r\n", vec![400]),
        ("a coding behind a vertical tab", "transfer-encoding: \x0bchunked\r\n", "0\r\n\r\n", vec![400]),
        ("a space before the colon", "content-length : 5\r\n", "", vec![400]),
        ("a folded line", "x: a\r\n content-length: 5\r\n", "", vec![400]),
        ("a folded coding", "transfer-encoding:\r\n chunked\r\n", "0\r\n\r\n", vec![400]),
        ("a NUL", "x: a\0b\r\n", "", vec![400]),
        ("a bare CR", "x: a\rcontent-length: 5\r\n", "", vec![400]),
        ("a header without a name", ": a\r\n", "", vec![400]),
        ("a header without a colon", "content-length 5\r\n", "", vec![400]),
        ("a chunk of a size that is none", chunked, "g\r\n\r\n0\r\n\r\n", vec![200]),
        ("a chunk beyond all", chunked, "FFFFFFFFFFFFFFFFF\r\na\r\n0\r\n\r\n", vec![200]),
        ("a chunk that lies about its size", chunked, "1\r\nabc\r\n0\r\n\r\n", vec![200]),
        ("a chunk with an extension that holds a line", chunked, "1;a=\"\n\"\r\na\r\n0\r\n\r\n", vec![200]),
        ("a chunk that ends in LF", chunked, "1\na\r\n0\r\n\r\n", vec![200]),
        ("a body with a GET", "content-length: 5\r\n", "hello", vec![200]),
    ] {
        let sent = format!("GET /v2/ HTTP/1.1\r\nhost: mirror\r\n{headers}\r\n{body}{HIDDEN}");
        assert_eq!(said_to(sent.as_bytes()).await, expected, "{what}");
    }
}

#[tokio::test]
async fn what_is_no_request_line_of_http_1_is_refused() {
    for (line, expected) in [
        ("GET /v2/ HTTP/1.1 \r\n", vec![400]),
        ("GET  /v2/ HTTP/1.1\r\n", vec![400]),
        ("GET /v2/\r\n", vec![400]),
        ("GET /v2/ HTTP/2.0\r\n", vec![400]),
        ("GET /v2/ HTTP/1.2\r\n", vec![400]),
        ("GET /v2/\0 HTTP/1.1\r\n", vec![400]),
        ("GET\t/v2/ HTTP/1.1\r\n", vec![400]),
        ("G\x01T /v2/ HTTP/1.1\r\n", vec![400]),
        (" GET /v2/ HTTP/1.1\r\n", vec![400]),
    ] {
        let sent = format!("{line}host: mirror\r\n\r\n{HIDDEN}");
        assert_eq!(said_to(sent.as_bytes()).await, expected, "{line:?}");
    }
}

/// One that takes an LF alone for a part of a value sees no end of the head where another does.
#[tokio::test]
async fn a_head_that_others_may_read_in_another_way_is_refused_or_the_last() {
    for (head, expected) in [
        ("GET /v2/ HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", vec![400]),
        ("GET /v2/ HTTP/1.0\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", vec![400]),
        ("GET /v2/ HTTP/1.1\r\nhost: mirror\r\nhost: elsewhere\r\nconnection: close\r\n\r\n", vec![400]),
        ("GET http://elsewhere/v2/ HTTP/1.1\r\nhost: mirror\r\nconnection: close\r\n\r\n", vec![400]),
        ("GET http://mirror/v2/ HTTP/1.1\r\nhost: Mirror\r\nconnection: close\r\n\r\n", vec![200]),
        ("GET /v2/ HTTP/1.1\nhost: mirror\n\n", vec![400]),
        ("\nGET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\n", vec![400]),
        ("GET /v2/ HTTP/1.1\r\nhost: mirror\r\nx: y\n\n", vec![400]),
        ("GET /v2/ HTTP/1.1\r\nhost: mirror\r\nx: y\nconnection: close\r\n\r\n", vec![400]),
        ("GET /v2/ HTTP/1.1\r\nhost: mirror\r\nx: y\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", vec![400]),
        ("GET /v2/ HTTP/1.1\r\nhost: mirror\r\n\n", vec![400]),
        ("GET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\nGET /v2/ HTTP/1.1\nhost: mirror\r\n\r\n", vec![200, 400]),
    ] {
        assert_eq!(said_to(format!("{head}{HIDDEN}").as_bytes()).await, expected, "{head:?}");
    }
}

/// What it is answered from is asked for once, and nothing of how the client has asked gets there.
#[tokio::test]
async fn a_request_whose_end_is_in_doubt_is_one_question_upstream() {
    for (what, headers, body) in [
        ("both a length and chunks", "content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
        ("chunks and a length", "transfer-encoding: chunked\r\ncontent-length: 70\r\n", "0\r\n\r\n"),
        ("a coding twice", "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
        ("a chunk that lies about its size", "transfer-encoding: chunked\r\n", "1\r\nabc\r\n0\r\n\r\n"),
        ("a body", "content-length: 5\r\nexpect: 100-continue\r\n", "hello"),
    ] {
        let upstream = Registry::start().await;
        let path = format!("/v2/library/alpine/blobs/{}", upstream.put_blob("library/alpine", noise(1, 300)));
        let mirror = TestMirror::of(&upstream).await;
        let sent = format!("GET {path} HTTP/1.1\r\nhost: mirror\r\n{headers}\r\n{body}{HIDDEN}");
        assert_eq!(statuses(&raw(mirror.address(), sent).await), [200], "{what}");
        let asked = upstream.requests();
        assert_eq!((asked.len(), &asked[0].path), (1, &path), "{what}: {asked:?}");
        let told = ["content-length", "transfer-encoding", "expect", "connection", "x"];
        assert!(told.iter().all(|name| !asked[0].headers.contains_key(*name)), "{what}: {asked:?}");
    }
}

#[tokio::test]
async fn what_would_become_another_protocol_stays_http() {
    for headers in ["upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAAA\r\n", "upgrade: websocket\r\n"] {
        let sent = format!("GET /v2/ HTTP/1.1\r\nhost: mirror\r\n{headers}connection: close\r\n\r\n{HIDDEN}");
        assert_eq!(said_to(sent.as_bytes()).await, [200], "{headers:?}");
    }
    let sent = format!("CONNECT registry-1.docker.io:443 HTTP/1.1\r\nhost: mirror\r\nconnection: close\r\n\r\n{HIDDEN}");
    assert_eq!(said_to(sent.as_bytes()).await, [405]);
}

#[tokio::test]
async fn requests_one_behind_the_other_are_answered_in_their_order() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob("library/alpine", noise(1, 3));
    let mirror = TestMirror::of(&upstream).await;
    let blob = format!("/v2/library/alpine/blobs/{digest}");
    let ask = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: mirror\r\n{more}\r\n");
    let sent = [
        ask("/v2/", ""),
        ask(&blob, ""),
        ask("http://elsewhere.example/v2/library/alpine/manifests/.x", ""),
        ask("/v2/library/alpine/blobs/sha256:0", ""),
        ask(&blob, "range: bytes=5-\r\nconnection: close\r\n"),
        ask("/v2/library/alpine/manifests/hidden", ""),
    ];
    let answers = raw(mirror.address(), sent.concat()).await;
    assert_eq!(statuses(&answers), [200, 200, 400, 400, 416]);
    assert_eq!(upstream.requests().len(), 1, "what follows a close is not read");
}

// === Answers ===

const TRUE_LIST: &str = "{\"name\":\"library/alpine\",\"tags\":[\"true\"]}";
const POISON: &str = "{\"name\":\"library/alpine\",\"tags\":[\"poison\"]}";

fn list(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// An upstream that says `first` to the first request of its first connection, `poison` to all that follow on that one, and what is true
/// on every other; and a larder before it.
async fn saying(first: impl Into<Bytes>) -> (RawRegistry, TestMirror) {
    let first = first.into();
    let upstream = RawRegistry::saying(move |connection, n, _| match (connection, n) {
        (0, 0) => first.clone(),
        (0, _) => list(POISON).into(),
        _ => list(TRUE_LIST).into(),
    });
    // An answer may be one that ends with its connection, which it does not.
    let patience = "upstream.\"docker.io\".header_timeout = \"500ms\"\nupstream.\"docker.io\".idle_timeout = \"500ms\"";
    let mirror = upstream.mirror().set(patience).start().await;
    (upstream, mirror)
}

/// Whatever ends an answer in two places, or in none, the next question goes to a connection of its own.
#[tokio::test]
async fn an_answer_whose_end_is_in_doubt_is_the_last_of_its_connection() {
    let (ok, poison, length) = ("HTTP/1.1 200 OK\r\n", list(POISON), TRUE_LIST.len());
    let chunked = format!("{length:x}\r\n{TRUE_LIST}\r\n0\r\n\r\n");
    for (what, answer) in [
        ("more than its length", format!("{}{poison}", list(TRUE_LIST))),
        ("two lengths", format!("{ok}content-length: {length}\r\ncontent-length: 0\r\n\r\n{TRUE_LIST}{poison}")),
        ("two lengths in one", format!("{ok}content-length: {length}, 0\r\n\r\n{TRUE_LIST}{poison}")),
        ("a length below zero", format!("{ok}content-length: -1\r\n\r\n{TRUE_LIST}{poison}")),
        ("a length and chunks", format!("{ok}content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n{chunked}{poison}")),
        ("chunks, then more", format!("{ok}transfer-encoding: chunked\r\n\r\n{chunked}{poison}")),
        ("a coding that is none", format!("{ok}transfer-encoding: xchunked\r\ncontent-length: 0\r\n\r\n{poison}")),
        ("chunks of HTTP/1.0", format!("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunked}{poison}")),
        ("a chunk of a size beyond all", format!("{ok}transfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n{poison}")),
        ("a chunk of a size that is none", format!("{ok}transfer-encoding: chunked\r\n\r\n-1\r\n{poison}")),
        (
            "a chunk that lies about its size",
            format!("{ok}transfer-encoding: chunked\r\n\r\n1\r\n{TRUE_LIST}\r\n0\r\n\r\n{poison}"),
        ),
        ("204 with a body", format!("HTTP/1.1 204 No Content\r\n\r\n{poison}")),
        ("304 with a body", format!("HTTP/1.1 304 Not Modified\r\ncontent-length: {length}\r\n\r\n{poison}")),
        ("another protocol", format!("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n{poison}")),
        ("a folded coding", format!("{ok}transfer-encoding:\r\n chunked\r\n\r\n{chunked}{poison}")),
        ("a version that is none", format!("HTTP/3.0 200 OK\r\ncontent-length: 0\r\n\r\n{poison}")),
        ("a status that is none", format!("HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n{poison}")),
        ("no head at all", poison["HTTP/1.1 ".len()..].to_owned()),
        ("404 and more", format!("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n{poison}")),
        ("hints, and more", format!("HTTP/1.1 103 Early Hints\r\n\r\n{}{poison}", list(TRUE_LIST))),
    ] {
        let (upstream, mirror) = saying(answer).await;
        let first = mirror.get("/v2/library/alpine/tags/list").await;
        assert!(!first.text().contains("poison"), "{what}: {}", first.text());
        for n in 0..5 {
            let next = mirror.get(&format!("/v2/library/other{n}/tags/list")).await;
            assert!(!next.text().contains("poison"), "{what}: {}", next.text());
        }
        assert_eq!(upstream.heard()[0].heads.len(), 1, "{what}: {:?}", upstream.heard());
    }
}

/// The body that an answer to a HEAD must not have would be the answer to whoever asks next.
#[tokio::test]
async fn a_body_after_an_answer_to_head_is_nobodys_answer() {
    let digest = crate::support::digest_of(b"here");
    for status in ["200 OK", "404 Not Found"] {
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{}", POISON.len(), list(POISON));
        let (upstream, mirror) = saying(answer).await;
        mirror.head(&format!("/v2/library/alpine/blobs/{digest}")).await;
        let next = mirror.get("/v2/library/alpine/tags/list").await;
        assert!(!next.text().contains("poison"), "{status}: {}", next.text());
        assert_eq!(upstream.heard()[0].heads.len(), 1, "{status}: {:?}", upstream.heard());
    }
}

/// Of each larder reads at most half a MiB, and the kernels hold less than one. Only hints are read for as long as an answer may take.
#[tokio::test]
async fn an_answer_without_end_costs_little_and_is_given_up() {
    const MOST_TAKEN: usize = 2 << 20;
    const ENDLESS: usize = 32 << 20;
    let endless = |start: &str, line: &str| Bytes::from([start, &line.repeat(ENDLESS / line.len())].concat());
    let line = "x-filler: 0123456789012345678901234567890123456789012345678901234567890123456789\r\n";
    let many = (0..2_000).map(|n| format!("x-{n}: y\r\n")).collect::<Vec<_>>().concat();
    let ok = "HTTP/1.1 200 OK\r\n";
    let chunked = format!("{ok}transfer-encoding: chunked\r\n\r\n");
    for (what, answer, is_read) in [
        ("headers", endless(ok, line), false),
        ("one header", endless(&format!("{ok}x: "), "x"), false),
        ("2,000 headers", format!("{ok}{many}content-length: 0\r\n\r\n").into(), false),
        ("hints for ever", endless("", "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"), true),
        ("an extension", endless(&format!("{chunked}1;"), "x"), false),
        ("trailers", endless(&format!("{chunked}0\r\n"), line), false),
    ] {
        let (upstream, mirror) = saying(answer).await;
        let answer = get(mirror.url("/v2/library/alpine/tags/list")).await;
        assert!(
            answer.text().contains("true") || matches!(answer.status, 502 | 504),
            "{what}: {} {}",
            answer.status,
            answer.text()
        );
        assert_eq!(mirror.get("/v2/library/other/tags/list").await.expect(200).json()["tags"][0], "true", "{what}");
        let taken = upstream.heard()[0].taken;
        eprintln!("{what}: {} KiB taken", taken >> 10);
        assert!(taken <= if is_read { ENDLESS } else { MOST_TAKEN }, "{what}: {taken}");
    }
}
