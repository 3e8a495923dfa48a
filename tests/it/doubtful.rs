//! Blobs that go out before anyone knows whether an unclean stop has damaged them, and what then turns out.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use larder::store::Operation;
use larder::store::faults::Fault;

use super::damage::{accounts_are_right, aside, cached, file, path};
use crate::support::{Client, PATIENCE, Registry, StoppedMirror, TestMirror, logged, noise, partial_file};

const SIZE: usize = 3_000_000;
/// What has gone out before the disk answers again.
const SENT: usize = 1_500_000;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const QUARANTINED: &str = "larder_quarantined_total";

/// A larder that was killed with one blob in its cache, whose file has been changed since; and an upstream that still has it.
struct Killed {
    upstream: Registry,
    stopped: StoppedMirror,
    digest: String,
    blob: Bytes,
}

/// The same, alive again, on a disk that hangs behind the second MiB of the file.
struct Doubtful {
    upstream: Registry,
    mirror: TestMirror,
    digest: String,
    blob: Bytes,
}

impl Killed {
    async fn with(blob: Bytes, harm: impl FnOnce(&Path)) -> Self {
        let upstream = Registry::start().await;
        let mirror = TestMirror::builder()
            .upstream("docker.io", &upstream)
            // A busy machine may take its time to come to where the disk is well again.
            .set("cache.min_free = \"0%\"\ncache.patience = \"20s\"")
            .start()
            .await;
        let digest = cached(&upstream, &mirror, &blob).await;
        let stopped = mirror.stop().await.into_killed();
        // Of its size there is nothing but the file.
        fs::remove_file(stopped.cache_dir().join("index")).unwrap();
        harm(&file(&stopped.cache_dir(), &digest));
        upstream.forget_requests();
        Self { upstream, stopped, digest, blob }
    }

    async fn starts(self) -> Doubtful {
        let Self { upstream, stopped, digest, blob } = self;
        let (hex, reads) = (digest.replace("sha256:", ""), AtomicUsize::new(0));
        let hangs = move |operation, path: &Path| {
            // That of who verifies it: who sends what is verified may have to read that as well, where it is not in memory any more.
            operation == Operation::Read && path.ends_with(&hex) && reads.fetch_add(1, Ordering::Relaxed) == 2
        };
        stopped.faults().each(hangs, Fault::Hang);
        Doubtful { upstream, mirror: stopped.start().await, digest, blob }
    }
}

impl Doubtful {
    /// Whatever has happened, the next client gets the blob, and it is in the cache again.
    async fn ends_well(self) {
        let Self { mirror, digest, blob, .. } = self;
        mirror.faults().heal();
        let well = async {
            while mirror.trouble().is_some() {
                mirror.probe().await;
            }
        };
        tokio::time::timeout(PATIENCE, well).await.expect("it notices that the disk is well again");
        assert!(mirror.get(&path(&digest)).await.expect(200).body == blob);
        mirror.kept(&digest).await;
        accounts_are_right(&mirror).await;
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).header("cache-status"), Some("larder; hit"));
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// The rest came from a blob of another size: an answer of 2,999,999 bytes was whole, and wrong.
#[tokio::test]
async fn an_answer_that_has_promised_a_size_ends_short_when_the_blob_has_another() {
    join_all([(SIZE - 1, 101), (SIZE + 1, 102)].map(|(size, seed)| async move {
        let killed = Killed::with(noise(seed, SIZE), |file| {
            OpenOptions::new().write(true).open(file).unwrap().set_len(size as u64).unwrap();
        });
        let doubtful = killed.await.starts().await;
        let Doubtful { upstream, mirror, digest, blob } = &doubtful;
        let mut whole = mirror.stream(&path(digest)).await;
        assert_eq!(whole.headers["content-length"], size.to_string());
        let begun = whole.take(SENT).await;
        assert!(begun == blob[..SENT], "{size}: {} bytes", begun.len());
        mirror.faults().heal();
        let rest = whole.rest().await;
        assert!(!rest.complete, "{size}: {} bytes ended cleanly", SENT + rest.body.len());
        assert!(blob[SENT..].starts_with(&rest.body), "{size}: a wrong byte");
        logged(&["ERROR", digest, "a blob was of another size than it had here; the answer ends short"]).await;
        logged(&["ERROR", digest, "a cached blob is damaged; it is in quarantine/ and will be fetched anew"]).await;
        assert_eq!((upstream.count("GET", digest), mirror.metric(QUARANTINED)), (1, 1));
        assert!(aside(&mirror.cache_dir(), digest).exists());
        doubtful.ends_well().await;
    }))
    .await;
}

/// The end of a large blob that is not kept comes only when someone reads it: the reader waited for the end.
#[tokio::test]
async fn what_has_gone_out_is_compared_with_a_blob_that_is_not_kept_as_well() {
    let size = 24 << 20;
    join_all(
        [(size - 5, "bytes=0-", true), (5, "bytes=0-", false), (size - 6, "bytes=10-", true), (15, "bytes=10-", false)].map(
            |(wrong_at, range, whole)| async move {
                let doubtful = Killed::with(noise(110, size), |file| flip(file, wrong_at)).await.starts().await;
                let Doubtful { upstream, mirror, digest, blob } = &doubtful;
                let mut reading = Client::h1().stream_with(mirror.url(&path(digest)), &[("range", range)]).await;
                let begun = reading.take(SENT).await;
                mirror.faults().heal();
                mirror.faults().each(
                    |operation, _| {
                        use Operation::{Allocate, Create, MakeDir, Rename, Sync, Truncate, Write};
                        matches!(operation, Allocate | Create | MakeDir | Rename | Sync | Truncate | Write)
                    },
                    Fault::Errno(ENOSPC),
                );
                let rest = reading.rest().await;
                let start = if range == "bytes=10-" { 10 } else { 0 };
                let right = begun == blob[start..start + SENT];
                assert_eq!((rest.complete, right), (whole, whole), "{wrong_at} {range}: {} bytes", SENT + rest.body.len());
                if whole {
                    assert!([begun, rest.body].concat() == blob[start..]);
                } else {
                    assert!(rest.body.len() < blob.len() - start - SENT, "all the bytes, and wrong ones");
                }
                assert_eq!(upstream.count("GET", digest), 2, "{wrong_at}: for all, and for this reader");
                assert!(mirror.metric("larder_bypasses_total{reason=\"disk\"}") >= 1);
                assert!(!mirror.holds(digest));
                doubtful.ends_well().await;
            },
        ),
    )
    .await;
    let digest = crate::support::digest_of(&noise(110, size));
    logged(&["ERROR", &digest, "the upstream sent other bytes than before"]).await;
    logged(&["ERROR", &digest, "a cached blob is damaged; it will be fetched anew"]).await;
}

/// After the third failure the reader fetched for itself and compared no more: a wrong byte, and a clean end.
#[tokio::test]
async fn what_has_gone_out_is_compared_though_what_is_fetched_cannot_be_read_either() {
    join_all([(SIZE - 10, 121, true), (5, 122, false)].map(|(wrong_at, seed, whole)| async move {
        let doubtful = Killed::with(noise(seed, SIZE), |file| flip(file, wrong_at)).await.starts().await;
        let Doubtful { upstream, mirror, digest, blob } = &doubtful;
        let mut reading = mirror.stream(&path(digest)).await;
        let begun = reading.take(SENT).await;
        mirror.faults().heal();
        // Only what comes anew cannot be read.
        let partial = partial_file(&mirror.cache_dir(), digest);
        let (hex, first) = (digest.replace("sha256:", ""), AtomicUsize::new(0));
        let fails = move |operation, path: &Path| {
            if operation == Operation::Open && path.ends_with(&hex) {
                first.fetch_add(1, Ordering::Relaxed);
            }
            let anew = path == partial || path.ends_with(&hex) && first.load(Ordering::Relaxed) > 0;
            matches!(operation, Operation::Read | Operation::ReadCached) && anew
        };
        mirror.faults().each(fails, Fault::Errno(EIO));
        let rest = reading.rest().await;
        assert_eq!(rest.complete, whole, "{wrong_at}: {} bytes", SENT + rest.body.len());
        if whole {
            assert!([begun, rest.body].concat() == *blob);
        }
        assert!((2..=4).contains(&upstream.count("GET", digest)), "{}", upstream.count("GET", digest));
        logged(&["WARN", digest, "a blob cannot be read on; it goes on from the upstream", "os error 5"]).await;
        if !whole {
            logged(&["ERROR", digest, "the upstream sent other bytes than before"]).await;
        }
        doubtful.ends_well().await;
    }))
    .await;
}

/// HEAD told the size of the damaged file as soon as its verification took long.
#[tokio::test]
async fn head_waits_until_the_size_is_verified_and_tells_none_that_is_wrong() {
    let killed = Killed::with(noise(130, SIZE), |file| {
        OpenOptions::new().write(true).open(file).unwrap().set_len(SIZE as u64 - 1).unwrap();
    });
    let doubtful = killed.await.starts().await;
    let Doubtful { upstream, mirror, digest, .. } = &doubtful;
    let url = path(digest);
    let answer = {
        let mut head = Box::pin(mirror.head(&url));
        // Longer than anyone waits for a file that is being verified.
        let early = tokio::time::timeout(Duration::from_millis(2500), &mut head).await;
        mirror.faults().heal();
        match early {
            Ok(answer) => answer,
            Err(_) => head.await,
        }
    };
    assert_eq!(answer.expect(200).header("content-length"), None);
    assert_eq!(mirror.head(&url).await.expect(200).header("content-length"), Some("3000000"));
    assert_eq!(upstream.count("GET", digest), 0);
    doubtful.ends_well().await;
}

/// The verification waited for the damaged file to be moved, and who wanted its end for the verification.
#[tokio::test]
async fn who_reads_a_damaged_blob_does_not_wait_until_a_disk_that_hangs_has_moved_it() {
    let Killed { upstream, stopped, digest, blob } = Killed::with(noise(140, SIZE), |file| flip(file, SIZE / 2)).await;
    let mirror = stopped.set("cache.patience = \"300ms\"").start().await;
    let moves = |operation, path: &Path| operation == Operation::Rename && path.to_string_lossy().contains("quarantine");
    mirror.faults().each(moves, Fault::Hang);
    let url = path(&digest);
    let (whole, end) = tokio::join!(mirror.get(&url), mirror.get_with(&url, &[("range", "bytes=-1000")]));
    assert!(whole.expect(200).body == blob);
    assert_eq!(end.expect(206).body, blob[SIZE - 1000..]);
    assert_eq!((mirror.faults().hanging(), upstream.count("GET", &digest)), (1, 1));
    assert_eq!(mirror.metric("larder_verified_total{outcome=\"damaged\"}"), 1);
    assert!(!mirror.holds(&digest), "it waits for its place");
    mirror.faults().heal();
    logged(&["ERROR", &digest, "a cached blob is damaged; it is in quarantine/ and will be fetched anew"]).await;
    assert!(aside(&mirror.cache_dir(), &digest).exists());
    Doubtful { upstream, mirror, digest, blob }.ends_well().await;
}
