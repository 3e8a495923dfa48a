//! Parts of blobs, of those that are here and of those that are still to come.

use bytes::Bytes;
use futures_util::future::join;

use crate::support::{Answer, Client, Fault, Log, Match, Registry, TestMirror, noise, raw};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// The end of a blob is held back until all of it is verified.
const TAIL: usize = 16 * KIB;

/// One blob at an upstream.
struct Blob {
    upstream: Registry,
    bytes: Bytes,
    digest: String,
    path: String,
}

impl Blob {
    async fn of(len: usize) -> Self {
        let upstream = Registry::start().await;
        let bytes = noise(7, len);
        let digest = upstream.put_blob("library/alpine", bytes.clone());
        let path = format!("/v2/library/alpine/blobs/{digest}");
        Self { upstream, bytes, digest, path }
    }

    fn gets(&self) -> usize {
        self.upstream.count("GET", &self.digest)
    }

    /// The ranges that the upstream was asked for.
    fn ranges(&self) -> Vec<String> {
        self.upstream.requests().iter().filter_map(|request| request.range().map(str::to_owned)).collect()
    }
}

/// A range, the status, and the first and last byte of each part.
type Row = (&'static str, u16, &'static [(usize, usize)]);

/// What a 2048-byte blob answers.
const TABLE: [Row; 23] = [
    ("bytes=500-1499", 206, &[(500, 1499)]),
    ("bytes=500-", 206, &[(500, 2047)]),
    ("bytes=0-", 206, &[(0, 2047)]),
    ("bytes=0-0", 206, &[(0, 0)]),
    ("bytes=-500", 206, &[(1548, 2047)]),
    ("bytes=-5000", 206, &[(0, 2047)]),
    ("bytes=2000-5000", 206, &[(2000, 2047)]),
    // regclient gives the size as the last byte.
    ("bytes=1000-2048", 206, &[(1000, 2047)]),
    ("bytes=2047-", 206, &[(2047, 2047)]),
    ("bytes=500-0", 416, &[]),
    ("bytes=5000-10000", 416, &[]),
    ("bytes=2048-", 416, &[]),
    ("bytes=-0", 416, &[]),
    ("bytes=0-1,100-199", 206, &[(0, 1), (100, 199)]),
    // Neither sorted nor joined.
    ("bytes=100-199,0-1, 2-3,-5,2000-", 206, &[(100, 199), (0, 1), (2, 3), (2043, 2047), (2000, 2047)]),
    ("bytes=0-1,1-2", 206, &[(0, 1), (1, 2)]),
    ("bytes=0-2047,0-2047", 200, &[]),
    ("bytes=0-,0-,0-", 200, &[]),
    ("items=0-1", 200, &[]),
    ("bytes=a-b", 200, &[]),
    ("bytes=-", 200, &[]),
    ("bytes", 200, &[]),
    ("0-5", 200, &[]),
];

#[track_caller]
fn answers(answer: &Answer, bytes: &Bytes, range: &str, status: u16, parts: &[(usize, usize)]) {
    assert_eq!(answer.status, status, "{range}");
    assert!(answer.complete, "{range}");
    assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()), "{range}");
    let size = bytes.len();
    match (status, parts) {
        (200, _) => {
            assert_eq!(answer.body, bytes, "{range}");
            assert_eq!(answer.header("content-range"), None, "{range}");
        }
        (416, _) => {
            assert_eq!(answer.header("content-range"), Some(&*format!("bytes */{size}")), "{range}");
            assert_eq!(answer.error_code().as_deref(), Some("RANGE_INVALID"), "{range}");
        }
        (_, [(first, last)]) => {
            assert_eq!(answer.body, bytes.slice(first..=last), "{range}");
            assert_eq!(answer.header("content-range"), Some(&*format!("bytes {first}-{last}/{size}")), "{range}");
            assert_eq!(answer.header("content-type"), Some("application/octet-stream"), "{range}");
        }
        (_, parts) => {
            assert_eq!(answer.header("content-range"), None, "{range}");
            let sent = self::parts(answer);
            let asked: Vec<_> =
                parts.iter().map(|(first, last)| (format!("bytes {first}-{last}/{size}"), bytes.slice(first..=last))).collect();
            assert_eq!(sent, asked, "{range}");
        }
    }
}

/// `Content-Range` and bytes of each part of a `multipart/byteranges`.
#[track_caller]
pub(crate) fn parts(answer: &Answer) -> Vec<(String, Bytes)> {
    let boundary = answer.header("content-type").unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap();
    assert!(!boundary.is_empty() && boundary.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{boundary}");
    let find = |rest: &Bytes, what: &str| rest.windows(what.len()).position(|window| window == what.as_bytes());
    let mut rest = answer.body.clone();
    let mut parts = Vec::new();
    let delimiter = format!("\r\n--{boundary}");
    loop {
        // The line end before the first delimiter may be there or not.
        let at = if parts.is_empty() { find(&rest, &delimiter[2..]).unwrap() + delimiter.len() - 2 } else { delimiter.len() };
        rest = rest.slice(at..);
        if rest.starts_with(b"--") {
            assert!(matches!(&rest[..], b"--" | b"--\r\n"), "something after the end");
            return parts;
        }
        let head_end = find(&rest, "\r\n\r\n").unwrap();
        let head = String::from_utf8(rest.split_to(head_end + 4).to_vec()).unwrap();
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        assert_eq!(field("Content-Type: ").as_deref(), Some("application/octet-stream"), "{head}");
        let range = field("Content-Range: ").unwrap();
        let (first, last) = range.strip_prefix("bytes ").unwrap().split_once('/').unwrap().0.split_once('-').unwrap();
        let len = last.parse::<usize>().unwrap() - first.parse::<usize>().unwrap() + 1;
        parts.push((range, rest.split_to(len)));
        assert!(rest.starts_with(delimiter.as_bytes()), "the part is longer than it says");
    }
}

#[tokio::test]
async fn every_range_of_a_warm_blob_is_what_clients_mean_by_it() {
    let blob = Blob::of(2048).await;
    let mirror = TestMirror::of(&blob.upstream).await;
    mirror.get(&blob.path).await.expect(200);
    blob.upstream.stop().await;
    for (range, status, parts) in TABLE {
        let answer = mirror.get_with(&blob.path, &[("range", range)]).await;
        answers(&answer, &blob.bytes, range, status, parts);
        assert_eq!(answer.header("docker-content-digest"), Some(&*blob.digest), "{range}");
    }
}

#[tokio::test]
async fn every_range_of_a_cold_blob_is_what_it_is_of_a_warm_one() {
    let blob = Blob::of(2048).await;
    blob.upstream.on(Match::get(&blob.digest), Fault::Gate { after: 0 });
    for (range, status, parts) in TABLE {
        let mirror = TestMirror::of(&blob.upstream).await;
        let url = mirror.url(&blob.path);
        let asking = tokio::spawn(async move { Client::h1().get_with(url, &[("range", range)]).await });
        blob.upstream.held(1).await;
        blob.upstream.release();
        let answer = asking.await.unwrap();
        answers(&answer, &blob.bytes, range, status, parts);
        mirror.stop().await;
    }
    assert_eq!(blob.gets(), TABLE.len());
    assert_eq!(blob.ranges(), [""; 0], "the whole is fetched, whatever part is asked for");
}

/// Without this, a cache before larder would go on giving the error for the blob, for a year.
#[tokio::test]
async fn a_range_that_is_refused_is_not_to_be_kept() {
    let blob = Blob::of(2048).await;
    let mirror = TestMirror::of(&blob.upstream).await;
    mirror.get(&blob.path).await.expect(200);
    let many = format!("bytes={}", vec!["0-0"; 2000].join(","));
    for (range, status) in [("bytes=2048-", 416), (&many, 400)] {
        let answer = mirror.get_with(&blob.path, &[("range", range)]).await.expect(status);
        assert_eq!((answer.header("cache-control"), answer.header("etag")), (None, None), "{status}");
    }
}

#[tokio::test]
async fn head_passes_over_a_range() {
    let blob = Blob::of(2048).await;
    let mirror = TestMirror::of(&blob.upstream).await;
    for _ in ["cold", "warm"] {
        for range in ["bytes=0-1", "bytes=5000-"] {
            let head = Client::h1().request(http::Method::HEAD, mirror.url(&blob.path), &[("range", range)]).await.expect(200);
            assert_eq!((head.header("content-length"), head.header("content-range")), (Some("2048"), None));
        }
        mirror.get(&blob.path).await.expect(200);
    }
}

#[tokio::test]
async fn a_range_counts_only_if_if_range_names_the_blob() {
    let blob = Blob::of(2048).await;
    let mirror = TestMirror::of(&blob.upstream).await;
    let digest = &blob.digest;
    for (tag, status) in [
        (format!("\"{digest}\""), 206),
        (format!("W/\"{digest}\""), 200),
        ("\"other\"".to_owned(), 200),
        ("Wed, 21 Oct 2015 07:28:00 GMT".to_owned(), 200),
    ] {
        let answer = mirror.get_with(&blob.path, &[("range", "bytes=1-2"), ("if-range", &tag)]).await.expect(status);
        assert_eq!(answer.body, if status == 206 { blob.bytes.slice(1..3) } else { blob.bytes.clone() }, "{tag}");
    }
}

/// podman and stargz then ask for fewer; the connection goes on.
#[tokio::test]
async fn too_many_ranges_are_refused_and_the_connection_goes_on() {
    let blob = Blob::of(64 * KIB).await;
    let mirror = TestMirror::of(&blob.upstream).await;
    let ranges: Vec<String> = (0..2000).map(|i| format!("{0}-{0}", 2 * i)).collect();
    let path = &blob.path;
    let requests = format!(
        "GET {path} HTTP/1.1\r\nhost: mirror\r\nrange: bytes={}\r\n\r\n\
         GET {path} HTTP/1.1\r\nhost: mirror\r\nrange: bytes=0-1\r\nconnection: close\r\n\r\n",
        ranges.join(",")
    );
    let received = raw(mirror.address(), requests).await;
    let received = String::from_utf8_lossy(&received);
    assert!(received.starts_with("HTTP/1.1 400 ") && received.contains(r#"{"errors":[{"code":"#), "{received}");
    assert!(received.contains("HTTP/1.1 206 "), "{received}");
}

#[tokio::test]
async fn as_many_ranges_as_podman_asks_for_are_answered_each() {
    let blob = Blob::of(64 * KIB).await;
    let mirror = TestMirror::of(&blob.upstream).await;
    let asked: Vec<(usize, usize)> = (0..1024).map(|i| (63 * i, 63 * i + 9)).collect();
    let range: Vec<String> = asked.iter().map(|(first, last)| format!("{first}-{last}")).collect();
    let range = format!("bytes={}", range.join(","));
    for _ in ["cold", "warm"] {
        let answer = mirror.get_with(&blob.path, &[("range", &range)]).await;
        answers(&answer, &blob.bytes, "1024 ranges", 206, &asked);
    }
    assert_eq!(blob.gets(), 1);
}

/// stargz asks so before it mounts a layer.
#[tokio::test]
async fn the_beginning_of_a_cold_blob_does_not_wait_for_its_end() {
    let blob = Blob::of(8 * MIB).await;
    blob.upstream.on(Match::get(&blob.digest), Fault::Gate { after: 100 * KIB });
    let mirror = TestMirror::of(&blob.upstream).await;
    for (range, parts) in
        [("bytes=0-1", &[(0, 1)][..]), ("bytes=50000-99999", &[(50_000, 99_999)]), ("bytes=9-10,5-6", &[(9, 10), (5, 6)])]
    {
        let answer = mirror.get_with(&blob.path, &[("range", range)]).await;
        answers(&answer, &blob.bytes, range, 206, parts);
    }
    assert_eq!(blob.upstream.held_now(), 1, "the upstream still holds the rest back");
    assert_eq!((blob.gets(), blob.ranges()), (1, vec![]));
    blob.upstream.release();
    assert_eq!(mirror.get(&blob.path).await.expect(200).body, blob.bytes);
    assert_eq!(blob.gets(), 1);
}

const LARGE: usize = 24 * MIB;
const FAR: usize = 20 * MIB;

#[tokio::test]
async fn a_range_far_ahead_of_the_fill_is_answered_by_the_upstream_at_once() {
    let blob = Blob::of(LARGE).await;
    blob.upstream.on(Match::get(&blob.digest).times(1), Fault::Gate { after: 100 * KIB });
    let mirror = TestMirror::of(&blob.upstream).await;
    let whole = mirror.stream(&blob.path).await;
    blob.upstream.held(1).await;
    let range = format!("bytes={FAR}-{}", FAR + 70_000);
    let answer = mirror.get_with(&blob.path, &[("range", &range)]).await;
    answers(&answer, &blob.bytes, &range, 206, &[(FAR, FAR + 70_000)]);
    assert_eq!(blob.upstream.held_now(), 1, "the fill has not moved");
    assert_eq!((blob.gets(), blob.ranges()), (2, vec![range]));
    blob.upstream.release();
    assert!(whole.rest().await.expect(200).body == blob.bytes);
    assert!(mirror.get(&blob.path).await.expect(200).body == blob.bytes);
    assert_eq!(blob.gets(), 2);
}

#[tokio::test]
async fn a_range_to_the_end_ends_only_when_the_whole_is_verified() {
    let blob = Blob::of(LARGE).await;
    blob.upstream.on(Match::get(&blob.digest).times(1), Fault::Gate { after: 100 * KIB });
    let mirror = TestMirror::of(&blob.upstream).await;
    let whole = mirror.stream(&blob.path).await;
    blob.upstream.held(1).await;
    let mut end = Client::h1().stream_with(mirror.url(&blob.path), &[("range", &format!("bytes={FAR}-"))]).await;
    assert_eq!(end.status, 206);
    let before_the_tail = LARGE - TAIL - FAR;
    assert!(end.take(before_the_tail).await == blob.bytes.slice(FAR..FAR + before_the_tail));
    assert_eq!(blob.upstream.held_now(), 1, "the fill has not moved");
    blob.upstream.release();
    let (end, whole) = join(end.rest(), whole.rest()).await;
    assert!(end.complete && end.body == blob.bytes.slice(LARGE - TAIL..));
    assert!(whole.complete);
}

#[tokio::test]
async fn a_range_to_the_end_of_a_blob_that_is_wrong_elsewhere_does_not_end_cleanly() {
    let blob = Blob::of(LARGE).await;
    let faults = [Fault::Gate { after: 100 * KIB }, Fault::Corrupt { at: 10 }];
    blob.upstream.on(Match::get(&blob.digest).times(1), faults);
    let mirror = TestMirror::of(&blob.upstream).await;
    let whole = mirror.stream(&blob.path).await;
    blob.upstream.held(1).await;
    let end = Client::h1().stream_with(mirror.url(&blob.path), &[("range", &format!("bytes={FAR}-"))]).await;
    blob.upstream.release();
    let (end, whole) = join(end.rest(), whole.rest()).await;
    assert!(!end.complete && end.body.len() <= LARGE - TAIL - FAR, "{}", end.body.len());
    assert!(!whole.complete && whole.body.len() <= LARGE - TAIL, "{}", whole.body.len());
    assert!(mirror.get(&blob.path).await.expect(200).body == blob.bytes, "nothing of it was kept");
}

#[tokio::test]
async fn a_part_that_goes_out_before_the_whole_is_right_is_not_to_be_kept() {
    let upstream = Registry::start().await;
    let bytes = noise(9, 3_000_000);
    let path = format!("/v2/library/app/blobs/{}", upstream.put_blob("library/app", bytes.clone()));
    upstream.on(Match::get(&path).times(1), Fault::Gate { after: 2_000_000 });
    let mirror = TestMirror::of(&upstream).await;
    let part = || mirror.get_with(&path, &[("range", "bytes=10-19")]);
    let early = part().await.expect(206);
    assert_eq!((early.header("cache-control"), &early.body), (Some("no-store"), &bytes.slice(10..20)));
    upstream.release();
    mirror.kept(path.rsplit('/').next().unwrap()).await;
    assert!(part().await.expect(206).header("cache-control").unwrap().contains("immutable"));
}

#[tokio::test]
async fn a_range_to_the_end_that_is_itself_wrong_does_not_end_cleanly() {
    let blob = Blob::of(LARGE).await;
    blob.upstream.on(Match::get(&blob.digest).ranged(), Fault::Corrupt { at: FAR + 10 });
    blob.upstream.on(Match::get(&blob.digest).times(1), Fault::Gate { after: 100 * KIB });
    let mirror = TestMirror::of(&blob.upstream).await;
    let whole = mirror.stream(&blob.path).await;
    blob.upstream.held(1).await;
    let mut end = Client::h1().stream_with(mirror.url(&blob.path), &[("range", &format!("bytes={FAR}-"))]).await;
    assert_eq!(end.take(1).await.len(), 1);
    blob.upstream.release();
    let (end, whole) = join(end.rest(), whole.rest()).await;
    assert!(!end.complete && end.body.len() <= LARGE - TAIL - FAR, "{}", end.body.len());
    assert!(whole.complete && whole.body == blob.bytes, "the fill has nothing to do with it");
}

/// One who asks for many parts at once of a blob that is not here yet, over an upstream that breaks off, falls silent or starts
/// over meanwhile.
#[tokio::test]
async fn many_ranges_of_a_cold_blob_are_exact_whatever_befalls_the_fill() {
    let (cut, near) = (700_000, "bytes=0-99,650000-750000,699999-700000,100-100,-20000,5-5");
    let far = format!("{near},{FAR}-{},{}-{}", FAR + 200_000, FAR + 50, FAR + 60);
    let once = |fault: Fault| vec![(Match::get("/blobs/").times(1), vec![fault])];
    let anew = |fault: Fault| (Match::get("/blobs/").ranged(), vec![fault]);
    let twice = |fault: Fault| (Match::get("/blobs/").ranged().times(2), vec![fault]);
    for (rules, large) in [
        (once(Fault::Cut { after: cut }), true),
        (once(Fault::Reset { after: cut }), false),
        (once(Fault::Stall { after: cut }), false),
        (once(Fault::Cut { after: 0 }), false),
        (vec![(Match::get("/blobs/").times(1), vec![Fault::NoLength, Fault::Cut { after: cut }])], false),
        // Again and again.
        (vec![(Match::get("/blobs/"), vec![Fault::Cut { after: 2 * cut }])], false),
        ([once(Fault::Cut { after: cut }), vec![anew(Fault::IgnoreRange)]].concat(), false),
        // Who asks for what is far ahead is met by it as well.
        ([once(Fault::Cut { after: cut }), vec![twice(Fault::status(503))]].concat(), true),
    ] {
        let sizes = [(2 * MIB, near), (LARGE, &*far)];
        for (size, ranges) in sizes.into_iter().take(if large { 2 } else { 1 }) {
            let blob = Blob::of(size).await;
            let mirror = TestMirror::builder()
                .upstream("docker.io", &blob.upstream)
                .set("upstream.\"docker.io\".idle_timeout = \"300ms\"")
                .start()
                .await;
            rules.iter().for_each(|(which, faults)| blob.upstream.on(which.clone(), faults.clone()));
            let cold = mirror.get_with(&blob.path, &[("range", ranges)]).await.expect(206);
            for (range, bytes) in parts(&cold) {
                let (first, rest) = range.trim_start_matches("bytes ").split_once('-').unwrap();
                let last: usize = rest.split_once('/').unwrap().0.parse().unwrap();
                assert!(bytes == blob.bytes.slice(first.parse().unwrap()..=last), "{range} of {rules:?}");
            }
            assert!(mirror.get(&blob.path).await.expect(200).body == blob.bytes, "{rules:?}");
            mirror.kept(&blob.digest).await;
            let warm = mirror.get_with(&blob.path, &[("range", ranges)]).await.expect(206);
            assert!(warm.body == cold.body, "{rules:?}: {} bytes, then {}", cold.body.len(), warm.body.len());
        }
    }
}

#[tokio::test]
async fn many_ranges_of_a_blob_that_never_comes_whole_end_short_and_have_no_byte_that_is_not_its_own() {
    let log = Log::from_here();
    for fault in [Fault::status(503), Fault::status(404), Fault::Cut { after: 0 }] {
        let blob = Blob::of(2 * MIB).await;
        blob.upstream.on(Match::get(&blob.digest).times(1), Fault::Cut { after: 700_000 });
        blob.upstream.on(Match::get(&blob.digest), fault.clone());
        let mirror = TestMirror::of(&blob.upstream).await;
        let ranges = [("range", "bytes=0-99,600000-800000,5-5")];
        let cold = mirror.get_with(&blob.path, &ranges).await;
        assert!(cold.status == 206 && !cold.complete, "{fault:?}: {}", cold.status);
        blob.upstream.heal();
        mirror.clock().advance(std::time::Duration::from_secs(5));
        let warm = mirror.get_with(&blob.path, &ranges).await.expect(206);
        // What came is the beginning of what should have come, with the first part and what there was of the second.
        assert!(warm.body.starts_with(&cold.body) && cold.body.len() > 100_000, "{fault:?}: {}", cold.body.len());
        assert!(parts(&warm)[1].1 == blob.bytes.slice(600_000..=800_000));
        log.will_say(&["ERROR", &blob.digest, "a fill is given up"]).await;
    }
}

/// First `bytes=0-`, then an open range for each further chunk, of which only the chunk is read.
#[tokio::test]
async fn containerd_in_its_parallel_mode_costs_one_request() {
    let blob = Blob::of(8 * MIB).await;
    blob.upstream.on(Match::get(&blob.digest), Fault::Gate { after: 100 * KIB });
    let mirror = TestMirror::of(&blob.upstream).await;
    let ask = |start: usize| {
        let url = mirror.url(&blob.path);
        async move { Client::h1().stream_with(url, &[("range", &format!("bytes={start}-"))]).await }
    };
    let mut chunks = vec![(0, ask(0).await)];
    blob.upstream.held(1).await;
    for start in (MIB..8 * MIB).step_by(MIB) {
        chunks.push((start, ask(start).await));
    }
    blob.upstream.release();
    for (start, mut chunk) in chunks {
        assert_eq!(chunk.status, 206);
        let content_range = format!("bytes {start}-{}/{}", 8 * MIB - 1, 8 * MIB);
        assert_eq!(chunk.headers["content-range"], *content_range);
        assert!(chunk.take(MIB).await == blob.bytes.slice(start..start + MIB), "{start}");
    }
    assert!(mirror.get(&blob.path).await.expect(200).body == blob.bytes);
    assert_eq!((blob.gets(), blob.ranges()), (1, vec![]));
}

/// A digest that was answered with 206 once must not be answered with 200 later: containerd does not look again.
#[tokio::test]
async fn a_range_is_answered_in_the_same_way_at_every_stage() {
    let blob = Blob::of(MIB).await;
    blob.upstream.on(Match::get(&blob.digest).times(1), Fault::Gate { after: 600 * KIB });
    let mirror = TestMirror::of(&blob.upstream).await;
    let headers = |answer: &Answer| {
        let names = ["content-range", "content-length", "content-type", "etag", "docker-content-digest", "accept-ranges"];
        names.map(|name| answer.header(name).map(str::to_owned))
    };
    let range = [("range", "bytes=500000-500999")];
    let cold = mirror.get_with(&blob.path, &range).await.expect(206);
    let joined = mirror.get_with(&blob.path, &range).await.expect(206);
    blob.upstream.release();
    mirror.get(&blob.path).await.expect(200);
    let warm = mirror.get_with(&blob.path, &range).await.expect(206);
    for answer in [&cold, &joined, &warm] {
        assert_eq!((headers(answer), &answer.body), (headers(&warm), &blob.bytes.slice(500_000..501_000)));
    }
}

#[tokio::test]
async fn a_range_of_a_blob_whose_size_the_upstream_does_not_say_is_right() {
    let blob = Blob::of(300_000).await;
    blob.upstream.on(Match::get(&blob.digest), Fault::NoLength);
    for range in ["bytes=1000-1999", "bytes=-5", "bytes=299999-"] {
        let mirror = TestMirror::of(&blob.upstream).await;
        let answer = mirror.get_with(&blob.path, &[("range", range)]).await.expect(206);
        assert!(answer.header("content-range").unwrap().ends_with("/300000"), "{range}");
    }
}

async fn of_a_blob_that_is_not_kept(range: &str) -> (Blob, Answer) {
    let blob = Blob::of(LARGE).await;
    let mirror = TestMirror::builder().upstream("docker.io", &blob.upstream).set("cache.max_size = \"16MiB\"").start().await;
    let answer = mirror.get_with(&blob.path, &[("range", range)]).await;
    (blob, answer)
}

#[tokio::test]
async fn the_whole_of_a_blob_that_is_not_kept_is_a_range_as_well() {
    let (blob, answer) = of_a_blob_that_is_not_kept("bytes=0-").await;
    assert!(answer.expect(206).body == blob.bytes);
}

/// A blob that is not kept passes through a window of memory, which waits for its readers. Who begins behind the window must
/// not be waited for: he waits for the window to reach him.
#[tokio::test]
async fn a_range_of_a_blob_that_is_not_kept_waits_for_no_reader_of_what_is_before_it() {
    let (blob, answer) = of_a_blob_that_is_not_kept(&format!("bytes={}-", 12 * MIB)).await;
    assert!(answer.expect(206).body == blob.bytes.slice(12 * MIB..));
}

#[tokio::test]
async fn a_range_far_ahead_in_a_blob_that_is_not_kept_comes_to_its_end() {
    let (blob, answer) = of_a_blob_that_is_not_kept(&format!("bytes={FAR}-")).await;
    assert!(answer.expect(206).body == blob.bytes.slice(FAR..));
}

#[tokio::test]
async fn ranges_of_a_blob_that_is_not_kept_may_be_in_any_order() {
    let (blob, answer) = of_a_blob_that_is_not_kept("bytes=9000000-9000009,5-6").await;
    answers(&answer, &blob.bytes, "9000000 and then 5", 206, &[(9_000_000, 9_000_009), (5, 6)]);
}

/// The range far ahead ended short, although the fill would have come there.
#[tokio::test]
async fn a_range_far_ahead_waits_for_the_fill_where_the_upstream_knows_no_ranges() {
    let blob = Blob::of(24 << 20).await;
    blob.upstream.on(Match::get(&blob.digest).ranged(), Fault::IgnoreRange);
    blob.upstream.on(Match::get(&blob.digest), Fault::Gate { after: 1 << 20 });
    let mirror = TestMirror::of(&blob.upstream).await;
    let first = mirror.stream(&blob.path).await;
    blob.upstream.held(1).await;
    let range = [("range", "bytes=20971520-20971529")];
    let far = Client::h1().stream_with(mirror.url(&blob.path), &range).await;
    blob.upstream.release();
    let far = far.rest().await;
    assert!(far.complete);
    assert_eq!(far.body, blob.bytes[20_971_520..20_971_530]);
    assert!(first.rest().await.complete);
}
