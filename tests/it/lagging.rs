//! Readers who fetch for themselves what the fill that all share cannot give them, or not in time: they are held to the same
//! digest as the fill.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use larder::store::{Operation, faults};

use super::damage::{accounts_are_right, path};
use super::unreadable::let_reads_fail;
use crate::support::{Client, Fault, Match, PATIENCE, Registry, Streaming, TestMirror, logged, noise, partial_file, until};

const REPOSITORY: &str = "library/app";
const MIB: usize = 1 << 20;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
/// Withheld until all is verified.
const TAIL: usize = 16 << 10;

/// The blob with another last byte, and more behind it: what is withheld of a blob would have been pushed out by what follows.
fn wrong_and_longer(blob: &Bytes) -> Bytes {
    let mut bytes = blob.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    bytes.extend_from_slice(&noise(9, 64 << 10));
    bytes.into()
}

#[tokio::test]
async fn who_has_fallen_behind_is_given_no_tail_that_more_bytes_than_announced_push_out() {
    let upstream = Registry::start().await;
    let blob = noise(201, 24 * MIB);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    // It is too large to be kept, and larger than what stands in memory for it.
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.max_size = \"16MiB\"").start().await;
    upstream.on(Match::get(&digest).ranged(), Fault::WrongBody(wrong_and_longer(&blob)));
    let mut slow = mirror.stream(&path(&digest)).await;
    assert!(mirror.get(&path(&digest)).await.expect(200).body == blob, "who keeps up");
    assert_eq!(slow.take(MIB).await, blob.slice(..MIB));
    let rest = slow.rest().await;
    assert!(!rest.complete, "{} bytes ended cleanly", MIB + rest.body.len());
    assert!(blob[MIB..].starts_with(&rest.body), "a wrong byte was sent");
    logged(&["ERROR", &digest, "the upstream sent other bytes than before"]).await;
    assert_eq!(upstream.count("GET", &digest), 2, "one for all, one for the slow one");
    assert_eq!(mirror.metric("larder_bypasses_total{reason=\"too_large\"}"), 1);
    accounts_are_right(&mirror).await;
}

#[tokio::test]
async fn nor_is_who_fetches_all_of_it_anew_as_the_file_cannot_be_read() {
    let upstream = Registry::start().await;
    let blob = noise(202, 1_500_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    let mirror = TestMirror::of(&upstream).await;
    upstream.on(Match::get(&digest).times(1), Fault::Gate { after: 1_000_000 });
    upstream.on(Match::get(&digest).times(1), Fault::WrongBody(wrong_and_longer(&blob)));
    let_reads_fail(&mirror, &digest, 2, true);
    let answer = mirror.get(&path(&digest)).await;
    assert!(!answer.complete && answer.status == 200, "{} bytes ended cleanly", answer.body.len());
    assert!(blob.starts_with(&answer.body), "a wrong byte was sent");
    logged(&["WARN", &digest, "a blob cannot be read on; it goes on from the upstream"]).await;
    logged(&["ERROR", &digest, "the upstream sent other bytes than before"]).await;
    assert_eq!(upstream.count("GET", &digest), 2);
    mirror.faults().heal();
    upstream.release();
    assert!(mirror.get(&path(&digest)).await.expect(200).body == blob);
    mirror.kept(&digest).await;
    accounts_are_right(&mirror).await;
}

/// Its reader waited for a fill whose file the disk never got done with.
#[tokio::test]
async fn who_cannot_read_on_does_not_wait_for_a_fill_that_a_disk_that_hangs_does_not_commit() {
    let upstream = Registry::start().await;
    let blob = noise(203, 24 * MIB);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.patience = \"300ms\"").start().await;
    let partial = partial_file(&mirror.cache_dir(), &digest);
    let commits = partial.clone();
    mirror.faults().each(move |operation, path| operation == Operation::Sync && path == commits, faults::Fault::Hang);
    let mut reading = mirror.stream(&path(&digest)).await;
    assert_eq!(reading.take(MIB).await, blob.slice(..MIB));
    until("all of it verified, and the commit hangs", || mirror.faults().hanging() == 1).await;
    let reads = |operation| matches!(operation, Operation::Read | Operation::ReadCached);
    mirror.faults().each(move |operation, path| reads(operation) && path == partial, faults::Fault::Errno(EIO));
    let rest = reading.rest().await;
    assert!(rest.complete && rest.body == blob[MIB..], "{} bytes", rest.body.len());
    logged(&["WARN", &digest, "a blob cannot be read on; it goes on from the upstream"]).await;
    assert_eq!((upstream.count("GET", &digest), mirror.holds(&digest)), (2, false));
    mirror.faults().heal();
    mirror.metric_is("larder_fills_total{outcome=\"kept\"}", 1).await;
    assert!(mirror.get(&path(&digest)).await.expect(200).body == blob);
    accounts_are_right(&mirror).await;
}

// === a range far ahead of its fill ===

const LARGE: usize = 24 * MIB;
const FAR: usize = 20 * MIB;
/// So much of it goes out before all is verified.
const EARLY: usize = LARGE - TAIL - FAR;

/// A mirror with a client that reads from far ahead of a fill, whose upstream holds back the rest.
struct Ahead {
    upstream: Registry,
    mirror: TestMirror,
    blob: Bytes,
    digest: String,
}

impl Ahead {
    /// `answers`: what goes wrong with those that the upstream gives apart from the fill.
    async fn reads(seed: u64, answers: &[Fault]) -> (Self, Streaming) {
        let upstream = Registry::start().await;
        let blob = noise(seed, LARGE);
        let digest = upstream.put_blob(REPOSITORY, blob.clone());
        let mirror = TestMirror::builder()
            .upstream("docker.io", &upstream)
            .set("cache.min_free = \"0%\"\ncache.patience = \"300ms\"")
            .start()
            .await;
        upstream.on(Match::get(&digest).times(1), Fault::Gate { after: 100_000 });
        answers.iter().for_each(|fault| upstream.on(Match::get(&digest).times(1), fault.clone()));
        mirror.get_with(&path(&digest), &[("range", "bytes=0-9")]).await.expect(206);
        let client = Client::h1().stream_with(mirror.url(&path(&digest)), &[("range", &format!("bytes={FAR}-"))]).await;
        assert_eq!((client.status, upstream.held_now()), (206, 1));
        (Self { upstream, mirror, blob, digest }, client)
    }

    /// What the upstream was asked for after the fill had begun.
    fn asked(&self) -> Vec<String> {
        let requests = self.upstream.requests();
        requests.iter().skip(1).map(|request| request.range().unwrap_or("all").to_owned()).collect()
    }

    /// The disk is well again, and the next client has not noticed anything.
    async fn ends_well(self) {
        let Self { upstream, mirror, blob, digest } = self;
        mirror.faults().heal();
        upstream.heal();
        let well = async {
            while mirror.trouble().is_some() {
                mirror.probe().await;
            }
        };
        tokio::time::timeout(PATIENCE, well).await.expect("it notices that the disk is well again");
        assert!(mirror.get(&path(&digest)).await.expect(200).body == blob);
        mirror.kept(&digest).await;
        until("no partial file", || fs::read_dir(mirror.cache_dir().join("partial")).unwrap().count() == 0).await;
        accounts_are_right(&mirror).await;
    }
}

/// It ended short where the disk had filled up meanwhile.
#[tokio::test]
async fn a_range_far_ahead_of_a_fill_is_whole_though_the_disk_fails_before_the_fill_comes_there() {
    let early = format!("bytes={FAR}-{}", LARGE - TAIL - 1);
    let later = format!("bytes={}-{}", FAR + MIB, LARGE - TAIL - 1);
    for (seed, answers, begins, whole, asked) in [
        (210, &[][..], EARLY, true, vec![&*early, "bytes=0-"]),
        (211, &[Fault::Corrupt { at: FAR + 10 }], EARLY, false, vec![&*early, "bytes=0-"]),
        // What comes apart from the fill breaks off as well.
        (212, &[Fault::Cut { after: MIB }, Fault::status(416)], MIB, true, vec![&*early, &*later, "bytes=0-"]),
    ] {
        let (ahead, mut client) = Ahead::reads(seed, answers).await;
        let begun = client.take(begins).await;
        assert_eq!((begun.len(), begun == ahead.blob[FAR..FAR + begins]), (begins, whole), "{answers:?}");
        ahead.mirror.faults().each(|operation, _| operation == Operation::Write, faults::Fault::Errno(ENOSPC));
        ahead.upstream.release();
        let rest = client.rest().await;
        assert_eq!(rest.complete, whole, "{answers:?}: {} bytes", begins + rest.body.len());
        assert!(rest.body == if whole { ahead.blob.slice(FAR + begins..) } else { Bytes::new() }, "{answers:?}");
        assert_eq!(ahead.asked(), asked, "{answers:?}");
        logged(&["INFO", &ahead.digest, "a blob is not kept; what was sent of it is compared with what comes again"]).await;
        if !whole {
            logged(&["ERROR", &ahead.digest, "the upstream sent other bytes than before"]).await;
        }
        assert_eq!(
            (ahead.mirror.metric("larder_bypasses_total{reason=\"disk\"}"), ahead.mirror.holds(&ahead.digest)),
            (1, false)
        );
        ahead.ends_well().await;
    }
}

/// The wrong byte was forgotten where the disk did not get done with the blob, and the answer ended cleanly.
#[tokio::test]
async fn a_range_far_ahead_that_is_wrong_does_not_end_cleanly_though_the_verified_blob_cannot_be_read() {
    let (ahead, mut client) = Ahead::reads(213, &[Fault::Corrupt { at: FAR + 10 }]).await;
    assert_eq!(client.take(EARLY).await.len(), EARLY);
    let partial = partial_file(&ahead.mirror.cache_dir(), &ahead.digest);
    let fails = move |operation, path: &Path| matches!(operation, Operation::Read | Operation::ReadCached) && path == partial;
    ahead.mirror.faults().each(|operation, _| operation == Operation::Sync, faults::Fault::Hang);
    ahead.mirror.faults().each(fails, faults::Fault::Errno(EIO));
    ahead.upstream.release();
    let rest = client.rest().await;
    assert!(!rest.complete && rest.body.is_empty(), "{} bytes", EARLY + rest.body.len());
    logged(&["WARN", &ahead.digest, "a blob cannot be read on; it goes on from the upstream", "os error 5"]).await;
    logged(&["ERROR", &ahead.digest, "the upstream sent other bytes than before"]).await;
    assert_eq!((ahead.asked().last().unwrap().as_str(), ahead.mirror.holds(&ahead.digest)), ("bytes=0-", false));
    ahead.ends_well().await;
}
