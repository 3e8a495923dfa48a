//! What goes from a file into a client's socket without being read: whole, in its place among what is read, and from a file that
//! is still what it was.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use larder::clock::Clock;
use larder::metrics::Metrics;
use larder::oci::Digest;
use larder::store::{self, BlobReader, Held, Outlet, Pieces, Store};
use rustix::fs::{Advice, fadvise};

use crate::damage::{cached, file, path};
use crate::support::{Closed, Raw, Registry, TestMirror, noise};

const MIB: usize = 1 << 20;

/// A larder that has one blob.
async fn holding(length: usize) -> (Registry, TestMirror, String, Bytes) {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let blob = noise(1, length);
    let digest = cached(&upstream, &mirror, &blob).await;
    (upstream, mirror, digest, blob)
}

/// The answer's body, by its length.
async fn answer(client: &mut Raw) -> Vec<u8> {
    let head = client.head().await;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    client.take(length.parse().unwrap()).await
}

#[tokio::test]
async fn answers_to_many_questions_that_came_at_once_stand_in_their_order() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let mut blobs = Vec::new();
    for (seed, length) in [(1, 100), (2, 3 * MIB + 1), (3, 65_536), (4, 262_144), (5, 65_535), (6, MIB)] {
        let blob = noise(seed, length);
        blobs.push((cached(&upstream, &mirror, &blob).await, blob));
    }
    let (mut questions, mut answers) = (String::new(), Vec::new());
    for n in 0..60 {
        let (digest, blob) = &blobs[n * 5 % 6];
        let from = if n % 3 == 0 { 0 } else { blob.len() / 7 * (n % 7) };
        let range = if from > 0 { format!("range: bytes={from}-\r\n") } else { String::new() };
        questions += &format!("GET {} HTTP/1.1\r\nhost: mirror\r\n{range}\r\n", path(digest));
        answers.push(blob.slice(from..));
    }
    let mut client = Raw::connect(mirror.address()).await;
    client.send(questions).await;
    for (n, expected) in answers.into_iter().enumerate() {
        assert!(answer(&mut client).await == expected, "answer {n}");
    }
}

#[tokio::test]
async fn parts_of_many_ranges_stand_between_their_heads() {
    let (_upstream, mirror, digest, blob) = holding(8 * MIB).await;
    let mut client = Raw::connect(mirror.address()).await;
    let ranges = "bytes=10-1000009,2000000-2000009,3000000-3499999,5000000-8388607";
    client.send(format!("GET {} HTTP/1.1\r\nhost: mirror\r\nrange: {ranges}\r\n\r\n", path(&digest))).await;
    let body = Bytes::from(answer(&mut client).await);
    let mut at = 0;
    for range in [10..1_000_010, 2_000_000..2_000_010, 3_000_000..3_500_000, 5_000_000..8_388_608] {
        let head = body[at..].windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        let said = format!("bytes {}-{}/{}", range.start, range.end - 1, blob.len());
        assert!(String::from_utf8_lossy(&body[at..at + head]).contains(&said), "{said}");
        at += head;
        assert!(body[at..at + range.len()] == blob[range.clone()], "{said}");
        at += range.len();
    }
}

#[tokio::test]
async fn what_is_not_in_memory_is_read() {
    let (upstream, mirror, digest, blob) = holding(8 * MIB).await;
    let opened = fs::File::open(file(&mirror.cache_dir(), &digest)).unwrap();
    opened.sync_all().unwrap();
    for (offset, length) in [(0, 0), (0, 1 << 20), (3 << 20, 4096), (7 << 20, 0)] {
        fadvise(&opened, offset, std::num::NonZeroU64::new(length), Advice::DontNeed).unwrap();
        assert!(mirror.get(&path(&digest)).await.expect(200).body == blob, "without {length} bytes from {offset}");
    }
    assert_eq!(upstream.count("GET", &digest), 1);
}

/// What the kernel has not sent yet of a file that is cut it may send as zeros.
#[tokio::test]
async fn who_was_sent_what_is_then_cut_from_a_file_gets_no_whole_answer() {
    let (_upstream, mirror, digest, blob) = holding(24 * MIB).await;
    let mut client = Raw::asking(mirror.address(), &path(&digest)).await;
    client.head().await;
    let mut body = client.take(MIB).await;
    let opened = fs::OpenOptions::new().write(true).open(file(&mirror.cache_dir(), &digest)).unwrap();
    opened.set_len(300_001).unwrap();
    let (rest, closed) = client.rest().await;
    body.extend(rest);
    assert!(body.len() < blob.len());
    assert_eq!(closed, Closed::Fin);
    assert_eq!(mirror.metric("larder_quarantined_total"), 1);
    assert!(mirror.get(&path(&digest)).await.expect(200).body == blob);
}

/// Takes all at once, and notes what it is told.
#[derive(Default)]
struct Greedy {
    pieces: Mutex<Vec<usize>>,
    corked: Mutex<Vec<bool>>,
}

impl Outlet for Greedy {
    fn poll_send(
        &self,
        _: &mut Context<'_>,
        send: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let sent = send(fs::File::create("/dev/null").unwrap().as_fd());
        self.pieces.lock().unwrap().extend(sent.as_ref().ok());
        Poll::Ready(sent)
    }

    fn cork(&self, corked: bool) {
        self.corked.lock().unwrap().push(corked);
    }
}

/// A blob of this length, and a reader of it whose bytes go out by an outlet.
async fn going_out(store: &Store, length: usize) -> (BlobReader, Arc<Greedy>) {
    let blob = noise(2, length);
    let digest = Digest::sha256(&blob);
    let _ = store.put(&digest, blob, &[]).await;
    let Some(Held::Verified(blob)) = store.get(&digest).await.unwrap() else { panic!("it was put there") };
    let (pieces, outlet) = (Pieces::default(), Arc::<Greedy>::default());
    pieces.go_out_by(Arc::clone(&outlet) as _);
    (blob.read(0..length as u64).in_pieces(&pieces), outlet)
}

/// With eight clients who took 256 MiB each as fast as it came, one in a hundred small requests waited for ten milliseconds: each of them
/// had 32 MiB in its turn.
#[tokio::test]
async fn others_have_their_turn_after_each_mebibyte_that_goes_out() {
    let dir = tempfile::tempdir().unwrap();
    let options = store::Options { dir: dir.path().into(), ..store::Options::default() };
    let store = Store::open(&options, Clock::system(), Metrics::new()).await.unwrap();
    let (mut reader, outlet) = going_out(&store, 8 * MIB).await;
    let turns = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&turns);
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    let mut before = 0;
    while let Some(piece) = reader.next_piece().await {
        assert!(piece.is_ok());
        let now = turns.load(Ordering::Relaxed);
        assert!(outlet.pieces.lock().unwrap().len() == 1 || now > before);
        before = now;
    }
    other.abort();
    assert_eq!(*outlet.pieces.lock().unwrap(), [MIB; 8]);
}

#[tokio::test]
async fn packets_are_filled_while_bytes_go_out_and_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let options = store::Options { dir: dir.path().into(), ..store::Options::default() };
    let store = Store::open(&options, Clock::system(), Metrics::new()).await.unwrap();
    for (length, taken, corked) in [(3 * MIB, 9, &[true, false][..]), (3 * MIB, 2, &[true, false]), (60_000, 9, &[])] {
        let (mut reader, outlet) = going_out(&store, length).await;
        for _ in 0..taken {
            assert!(reader.next_piece().await.is_none_or(|piece| piece.is_ok()));
        }
        if taken == 9 {
            assert_eq!(*outlet.corked.lock().unwrap(), corked, "all of {length}");
        }
        drop(reader);
        assert_eq!(*outlet.corked.lock().unwrap(), corked, "{taken} pieces of {length}");
    }
}
