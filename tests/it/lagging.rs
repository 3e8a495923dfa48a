//! Readers who fetch for themselves what the fill that all share cannot give them, or not in time: they are held to the same
//! digest as the fill.

use bytes::Bytes;
use larder::store::{Operation, faults};

use super::damage::{accounts_are_right, let_reads_fail, path, until};
use crate::support::{Fault, Match, Registry, TestMirror, logged, noise};

const REPOSITORY: &str = "library/app";
const MIB: usize = 1 << 20;
const EIO: i32 = 5;

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
    until("kept", || mirror.holds(&digest)).await;
    accounts_are_right(&mirror).await;
}

/// Its reader waited for a fill whose file the disk never got done with.
#[tokio::test]
async fn who_cannot_read_on_does_not_wait_for_a_fill_that_a_disk_that_hangs_does_not_commit() {
    let upstream = Registry::start().await;
    let blob = noise(203, 24 * MIB);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.patience = \"300ms\"").start().await;
    let name = digest.replace(':', "-");
    let commits = name.clone();
    mirror.faults().each(move |operation, path| operation == Operation::Sync && path.ends_with(&commits), faults::Fault::Hang);
    let mut reading = mirror.stream(&path(&digest)).await;
    assert_eq!(reading.take(MIB).await, blob.slice(..MIB));
    until("all of it verified, and the commit hangs", || mirror.faults().hanging() == 1).await;
    let reads = |operation| matches!(operation, Operation::Read | Operation::ReadCached);
    mirror.faults().each(move |operation, path| reads(operation) && path.ends_with(&name), faults::Fault::Errno(EIO));
    let rest = reading.rest().await;
    assert!(rest.complete && rest.body == blob[MIB..], "{} bytes", rest.body.len());
    logged(&["WARN", &digest, "a blob cannot be read on; it goes on from the upstream"]).await;
    assert_eq!((upstream.count("GET", &digest), mirror.holds(&digest)), (2, false));
    mirror.faults().heal();
    mirror.metric_is("larder_fills_total{outcome=\"kept\"}", 1).await;
    assert!(mirror.get(&path(&digest)).await.expect(200).body == blob);
    accounts_are_right(&mirror).await;
}
