//! Upstreams that say too little or the wrong thing about the size of a blob.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use larder::store::{Operation, faults};

use crate::support::{
    Fault, Image, Match, Process, RawRegistry, Registry, TestMirror, assert_booked, digest_of, get, noise, raw,
};

const MIB: usize = 1 << 20;

fn path(digest: &str) -> String {
    format!("/v2/library/app/blobs/{digest}")
}

/// An answer to a ranged request that goes on and on.
fn endless(offset: usize, size: usize, body: Bytes) -> Fault {
    Fault::answer(206, &[("content-range", &format!("bytes {offset}-{}/{size}", size - 1))], body)
}

/// The space for a blob is set aside once, when its size is told. What came beyond it went to the disk uncounted.
#[tokio::test]
async fn a_body_longer_than_announced_takes_no_more_than_announced() {
    let upstream = Registry::start().await;
    let blob = noise(1, 4 * MIB);
    let digest = upstream.put_blob("library/app", blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Cut { after: 2 * MIB });
    upstream.on(Match::get(&digest).ranged().times(1), endless(2 * MIB, 4 * MIB, noise(2, 40 * MIB)));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.max_size = \"32MiB\"").start().await;
    assert!(!mirror.get(&path(&digest)).await.complete);
    assert!(mirror.used() <= 4 << 20, "{}", mirror.used());
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
}

/// Its end, and with it its size, comes only while someone reads; the reader waited for the size.
#[tokio::test]
async fn a_range_of_a_blob_that_is_neither_kept_nor_of_known_size_is_answered_whole() {
    let upstream = Registry::start().await;
    let blob = noise(3, 24 * MIB);
    let digest = upstream.put_blob("library/app", blob.clone());
    upstream.on(Match::get(&digest), Fault::NoLength);
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.max_size = \"16MiB\"").start().await;
    let answer = mirror.get_with(&path(&digest), &[("range", "bytes=0-9")]).await;
    match answer.status {
        // The disk has taken it, or has not: both are right.
        206 => assert_eq!(answer.body, blob[..10]),
        _ => assert_eq!(answer.expect(200).body, blob),
    }
}

/// The end of the connection is the end of an HTTP/1.0 body: a short one looked whole.
#[tokio::test]
async fn to_http_1_0_a_body_is_never_sent_without_a_length() {
    let upstream = Registry::start().await;
    let blob = noise(4, 300_000);
    let digest = upstream.put_blob("library/app", blob.clone());
    upstream.on(Match::get(&digest).times(1), vec![Fault::NoLength, Fault::Corrupt { at: 150_000 }]);
    upstream.on(Match::get(&digest), Fault::NoLength);
    let mirror = TestMirror::of(&upstream).await;
    let request = format!("GET {} HTTP/1.0\r\n\r\n", path(&digest));
    let wrong = String::from_utf8_lossy(&raw(mirror.address(), request.clone()).await).into_owned();
    assert!(wrong.starts_with("HTTP/1.0 502"), "{}", &wrong[..wrong.len().min(200)]);
    let right = raw(mirror.address(), request).await;
    let head = String::from_utf8_lossy(&right[..right.len() - blob.len()]).to_ascii_lowercase();
    assert!(head.starts_with("http/1.0 200") && head.contains("content-length: 300000\r\n"), "{head}");
    assert_eq!(right[right.len() - blob.len()..], blob);
}

#[tokio::test]
async fn a_size_that_no_disk_has_is_no_reason_to_fall() {
    let upstream = Registry::start().await;
    let blob = noise(5, 50_000);
    let digest = upstream.put_blob("library/app", blob.clone());
    let huge = [("content-range", "bytes 0-18446744073709551614/18446744073709551615")];
    upstream.on(Match::get(&digest).times(1), Fault::Cut { after: 20_000 });
    upstream.on(Match::get(&digest).times(1), Fault::answer(206, &huge, blob.clone()));
    let mirror = TestMirror::of(&upstream).await;
    let _ = mirror.get(&path(&digest)).await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
}

/// Such sizes were believed, and added up.
#[tokio::test]
async fn a_size_that_no_blob_has_is_not_passed_on() {
    let upstream = Registry::start().await;
    let blob = noise(6, 50_000);
    let digest = upstream.put_blob("library/app", blob.clone());
    let huge = [("content-length", "1152921504606846977")];
    let announces = vec![Fault::answer(200, &huge, blob.clone()), Fault::Stall { after: 10_000 }];
    upstream.on(Match::get(&digest).times(3), announces);
    let mirror = TestMirror::of(&upstream).await;
    let refused = mirror.get(&path(&digest)).await.expect(502);
    assert!(refused.text().contains("it announces a size that no blob has"), "{}", refused.text());
    assert_eq!((upstream.count("GET", &digest), mirror.used()), (3, 0), "it is asked again, as if it had not answered");
    mirror.metric_is("larder_fills_total{outcome=\"failed\"}", 1).await;
    assert_eq!(mirror.head(&path(&digest)).await.expect(200).header("content-length"), Some("50000"));
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
}

/// With each chunk that came while room was being made, it was made anew, and what had been evicted for that was gone.
#[tokio::test]
async fn for_a_blob_whose_size_nobody_says_room_is_made_once() {
    let upstream = Registry::start().await;
    let blob = noise(3, MIB);
    let digest = upstream.put_blob("library/app", blob.clone());
    upstream.on(Match::get(&digest), vec![Fault::NoLength, Fault::Bandwidth(2 * MIB as u64)]);
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.min_free = \"0%\"").start().await;
    let looks_for_room = |operation| operation == Operation::Space;
    mirror.faults().each(move |operation, _| looks_for_room(operation), faults::Fault::Slow(Duration::from_millis(200)));
    let before = mirror.faults().count();
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    mirror.kept(&digest).await;
    let times = mirror.faults().since(before).into_iter().filter(|(operation, _)| looks_for_room(*operation)).count();
    assert_eq!(times, 1);
    mirror.faults().heal();
    assert_booked(&mirror).await;
}

// === What is read whole ===

/// `content` in chunks, after so many spaces.
fn padded(spaces: usize, content_type: &str, content: &[u8]) -> Bytes {
    const CHUNK: usize = 64 << 10;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n");
    let chunk = [format!("{CHUNK:x}\r\n").as_bytes(), &vec![b' '; CHUNK], b"\r\n"].concat();
    let last = format!("{:x}\r\n", content.len());
    [head.as_bytes(), &chunk.repeat(spaces / CHUNK), last.as_bytes(), content, b"\r\n0\r\n\r\n"].concat().into()
}

/// What each is refused for is its size alone: were it read to its end, it would be a right answer.
#[tokio::test]
async fn what_has_no_end_is_read_no_further_than_it_may_be() {
    /// How much larder reads at once.
    const AT_ONCE: usize = 512 << 10;
    let upstream = Registry::start().await;
    let image = Image::new(7).put(&upstream, "library/app", "latest");
    let held = RawRegistry::held_by_kernels();
    // Much more than larder can have read when it gives up.
    let spaces = held + 16 * MIB;
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{index_type}","manifests":[]}}"#);
    let by_tag = "/v2/library/app/manifests/latest".to_owned();
    let whole = [&vec![b' '; spaces / (64 << 10) * (64 << 10)][..], &image.manifest].concat();
    let by_digest = format!("/v2/library/app/manifests/{}", digest_of(&whole));
    let referrers = format!("/v2/library/app/referrers/{}", image.digest);
    for (kind, most, path, content_type, content) in [
        ("manifest", 4 * MIB, &by_tag, image.media_type, &image.manifest[..]),
        ("manifest", 4 * MIB, &by_digest, image.media_type, &image.manifest),
        ("list", 4 * MIB, &"/v2/library/app/tags/list".into(), "application/json", br#"{"name":"library/app","tags":["v1"]}"#),
        ("list", 4 * MIB, &referrers, index_type, index.as_bytes()),
        ("token", 64 << 10, &by_tag, "application/json", br#"{"token":"of-nobody"}"#),
    ] {
        let endless = padded(spaces, content_type, content);
        let manifest = padded(0, image.media_type, &image.manifest);
        let upstream = RawRegistry::saying(move |_, _, head| match kind {
            "token" if head.contains("\r\nauthorization: Bearer of-nobody") => manifest.clone(),
            "token" if !head.starts_with("GET /token") => {
                let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
                let realm = format!("www-authenticate: Bearer realm=\"http://{host}/token\"");
                format!("HTTP/1.1 401 Unauthorized\r\n{realm}\r\ncontent-length: 0\r\n\r\n").into()
            }
            _ => endless.clone(),
        });
        let mirror = upstream.mirror().start().await;
        let refused = mirror.get(path).await.expect(502).text();
        let heard = upstream.heard();
        let times = heard.iter().flat_map(|talk| &talk.heads).filter(|head| kind != "token" || head.contains("/token")).count();
        let taken: Vec<usize> = heard.iter().map(|talk| talk.taken).collect();
        let read = mirror.metric(&format!("larder_upstream_bytes_total{{upstream=\"docker.io\",kind=\"{kind}\"}}"));
        eprintln!("{path}: {taken:?} bytes were taken, {read} were read in {times} answers, and said is {refused}");
        assert!(refused.contains(&format!("its answer is larger than {most} bytes")), "{path}: {refused}");
        assert!((1..=3).contains(&times) && read <= (times * (most + AT_ONCE)) as u64, "{path}: {read} in {times}");
        assert!(taken.iter().all(|taken| *taken <= most + AT_ONCE + held), "{path}: {taken:?}");
    }
}

/// How much it becomes nobody says before.
#[tokio::test]
async fn a_manifest_that_was_compressed_is_unpacked_no_further_than_a_manifest_may_be_large() {
    let upstream = Registry::start().await;
    let image = Image::new(8).put(&upstream, "library/app", "latest");
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&format!("upstream.\"docker.io\".url={}", upstream.url())], &[]);
    let encoded = [("content-type", image.media_type), ("content-encoding", "gzip")];
    let ask = async |digest: &str, body: Vec<u8>| {
        upstream.heal();
        upstream.on(Match::get(digest), Fault::answer(200, &encoded, body));
        get(larder.url(&format!("/v2/library/app/manifests/{digest}"))).await
    };
    for (size, status) in [(4 * MIB, 200), (4 * MIB + 1, 502)] {
        let spaced = [&vec![b' '; size - image.manifest.len()][..], &image.manifest].concat();
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&spaced).unwrap();
        assert_eq!(ask(&digest_of(&spaced), packed.finish().unwrap()).await.status, status, "{size}");
    }
    // Spaces, of which every further MiB is packed into the same bytes.
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    let mut pack = || {
        let before = packed.get_ref().len();
        packed.write_all(&vec![b' '; MIB]).unwrap();
        packed.flush().unwrap();
        packed.get_ref()[before..].to_vec()
    };
    let bomb = [pack(), pack().repeat(300)].concat();
    assert!(bomb.len() < 4 * MIB, "{}", bomb.len());
    let before = larder.peak();
    ask(&digest_of(b"a bomb"), bomb).await.expect(502);
    let grown = larder.peak() - before;
    assert!(grown < 64 << 20, "{grown} bytes more");
}
