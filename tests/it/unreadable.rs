//! Files that the disk cannot read: clients do not notice, and the next one finds the blob whole again.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use larder::store::{Operation, faults};
use rustix::io::Errno;

use super::damage::{REPOSITORY, SIZE, accounts_are_right, aside, cached, file, path, quarantined};
use crate::support::{Fault, Image, Match, Registry, TestMirror, is_of, logged, noise, stream};

/// Lets the `nth` reading of this blob fail, and with `all` those after it, until healed. Returns how many there were.
pub(super) fn let_reads_fail(mirror: &TestMirror, digest: &str, nth: usize, all: bool) -> Arc<AtomicUsize> {
    let (digest, seen) = (digest.to_owned(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&seen);
    let which = move |operation, path: &Path| {
        let is_read = matches!(operation, Operation::Read | Operation::ReadCached);
        is_read && is_of(path, &digest) && {
            let n = counted.fetch_add(1, Ordering::Relaxed);
            n == nth || all && n > nth
        }
    };
    mirror.faults().each(which, faults::Fault::Errno(Errno::IO.raw_os_error()));
    seen
}

#[tokio::test]
async fn a_hit_whose_file_cannot_be_read_at_some_place_goes_on_from_the_upstream() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let blob = noise(1, SIZE);
    let digest = cached(&upstream, &mirror, &blob).await;
    // The less the client's socket takes at once, the more readings there are.
    for nth in 0.. {
        upstream.forget_requests();
        let reads = let_reads_fail(&mirror, &digest, nth, false);
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob, "read {nth}");
        mirror.faults().heal();
        if reads.load(Ordering::Relaxed) <= nth {
            assert!(nth > 2, "{nth}");
            break;
        }
        assert_eq!(quarantined(&mirror).await, nth as u64 + 1);
        assert_eq!(upstream.count("GET", &digest), 1, "read {nth}");
        assert!(aside(&mirror.cache_dir(), &digest).exists());
        mirror.kept(&digest).await;
        accounts_are_right(&mirror).await;
        let hit = mirror.get(&path(&digest)).await.expect(200);
        assert_eq!((hit.body == blob, hit.header("cache-status")), (true, Some("larder; hit")), "read {nth}");
    }
}

#[tokio::test]
async fn ranges_go_on_from_the_upstream_as_well() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let blob = noise(2, SIZE);
    let digest = cached(&upstream, &mirror, &blob).await;
    for nth in 0..3 {
        let_reads_fail(&mirror, &digest, nth, false);
        let range = mirror.get_with(&path(&digest), &[("range", "bytes=700000-999999")]).await.expect(206);
        assert_eq!(range.body, blob.slice(700_000..1_000_000), "read {nth}");
        mirror.faults().heal();
        mirror.kept(&digest).await;
        let_reads_fail(&mirror, &digest, nth, false);
        let parts = mirror.get_with(&path(&digest), &[("range", "bytes=10-19,1000000-1100000,-5")]).await.expect(206);
        let text = parts.body;
        for part in [blob.slice(10..20), blob.slice(1_000_000..1_100_001), blob.slice(SIZE - 5..)] {
            assert!(text.windows(part.len()).any(|window| window == part), "read {nth}");
        }
        mirror.faults().heal();
        mirror.kept(&digest).await;
    }
}

#[tokio::test]
async fn many_readers_of_one_damaged_file_cost_one_request() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    // More than a kernel takes ahead of a client.
    let blob = noise(3, 24 << 20);
    let digest = cached(&upstream, &mirror, &blob).await;
    upstream.forget_requests();
    upstream.on(Match::get(&digest), Fault::Gate { after: 0 });
    let url = mirror.url(&path(&digest));
    let mut bodies = join_all((0..10).map(|_| stream(&url))).await;
    for body in &mut bodies {
        body.take(10_000).await;
    }
    // The file is cut under their feet.
    fs::OpenOptions::new().write(true).open(file(&mirror.cache_dir(), &digest)).unwrap().set_len(16 << 20).unwrap();
    let rest = tokio::spawn(join_all(bodies.into_iter().map(crate::support::Streaming::rest)));
    upstream.held(1).await;
    upstream.release();
    for answer in rest.await.unwrap() {
        assert!(answer.expect(200).body == blob.slice(10_000..));
    }
    assert_eq!((upstream.count("GET", &digest), quarantined(&mirror).await), (1, 1));
    mirror.kept(&digest).await;
    accounts_are_right(&mirror).await;
}

/// The bytes that were sent came by another transfer than those that follow: they must be the same.
#[tokio::test]
async fn a_fill_that_cannot_be_read_back_harms_none_who_follow_it() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    for nth in [0, 1, 3] {
        let blob = noise(40 + nth as u64, SIZE);
        let digest = upstream.put_blob(REPOSITORY, blob.clone());
        let_reads_fail(&mirror, &digest, nth, true);
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob, "read {nth}");
        mirror.faults().heal();
    }
    // The first transfer is wrong in what was sent of it, the second is right: together they are not the blob.
    let blob = noise(50, SIZE);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest).times(1), vec![Fault::Corrupt { at: 5 }, Fault::Gate { after: 1_000_000 }]);
    let_reads_fail(&mirror, &digest, 2, true);
    let answer = mirror.get(&path(&digest)).await;
    assert!(!answer.complete, "{} bytes ended cleanly", answer.body.len());
    assert_ne!(answer.body, blob.slice(..answer.body.len()), "the wrong byte was sent");
    assert_eq!(upstream.count("GET", &digest), 2, "the reader has asked for itself");
    mirror.faults().heal();
    upstream.release();
}

#[tokio::test]
async fn without_an_upstream_a_hit_that_cannot_be_read_on_ends_short() {
    let upstream = Registry::start().await;
    let blob = noise(4, SIZE);
    let mirror = TestMirror::of(&upstream).await;
    let digest = cached(&upstream, &mirror, &blob).await;
    let mirror = mirror.stop().await.set("mirror.offline = true").start().await;
    let_reads_fail(&mirror, &digest, 2, true);
    let answer = mirror.get(&path(&digest)).await;
    assert!(!answer.complete && answer.status == 200);
    assert_eq!(answer.body, blob.slice(..answer.body.len()));
}

/// Bytes of the cache are everyone's, the right to them is not: who reads on asks for itself.
#[tokio::test]
async fn a_reader_whose_repository_has_lost_the_blob_ends_short() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let blob = noise(5, SIZE);
    let digest = cached(&upstream, &mirror, &blob).await;
    upstream.put_blob("library/other", blob.clone());
    upstream.remove(REPOSITORY, &digest);
    let_reads_fail(&mirror, &digest, 2, true);
    let answer = mirror.get(&path(&digest)).await;
    assert!(!answer.complete);
    assert_eq!(answer.body, blob.slice(..answer.body.len()));
    assert!(upstream.requests().iter().all(|request| !request.path.contains("library/other")));
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_is_fetched_anew_and_one_in_memory_goes_on_to_be_served() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&image.manifest_path()).await.expect(200);
    mirror.kept(&image.digest).await;
    fs::write(file(&mirror.cache_dir(), &image.digest), "damaged").unwrap();
    upstream.forget_requests();
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest, "from memory");
    assert_eq!(upstream.requests().len(), 0);
    let mirror = mirror.stop().await.start().await;
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest, "fetched anew");
    mirror.kept(&image.digest).await;
    assert_eq!(quarantined(&mirror).await, 1);
    let mirror = mirror.stop().await.start().await;
    let_reads_fail(&mirror, &image.digest, 0, true);
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest, "fetched anew");
    mirror.faults().heal();
    assert_eq!((upstream.count("GET", &image.digest), quarantined(&mirror).await), (2, 1));
}

/// The file that had come in its place was taken for it, and set aside.
#[tokio::test]
async fn who_finds_the_damage_after_the_blob_has_been_replaced_harms_the_new_file_no_more_than_anyone() {
    let upstream = Registry::start().await;
    // Of a cache that large, the file that is cut may stay in quarantine.
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.max_size = \"8GiB\"").start().await;
    // More than two sockets hold.
    let blob = noise(9, 48 << 20);
    let digest = cached(&upstream, &mirror, &blob).await;
    upstream.forget_requests();
    let mut late = mirror.stream(&path(&digest)).await;
    assert!(late.take(10_000).await == blob[..10_000]);
    fs::OpenOptions::new().write(true).open(file(&mirror.cache_dir(), &digest)).unwrap().set_len(47 << 20).unwrap();
    mirror.clock().advance(Duration::from_hours(15 * 24));
    assert_eq!(mirror.scrub().await.damaged, 1);
    assert!(aside(&mirror.cache_dir(), &digest).exists());
    assert!(mirror.get(&path(&digest)).await.expect(200).body == blob, "who comes next");
    mirror.kept(&digest).await;
    // So many files are not kept open at once: the new one is closed, as nobody reads it.
    for seed in 0..260 {
        cached(&upstream, &mirror, &noise(1000 + seed, 100)).await;
    }
    assert!(late.rest().await.expect(200).body == blob[10_000..]);
    logged(&["WARN", &digest, "a blob cannot be read on; it goes on from the upstream", "at=49283072"]).await;
    assert_eq!((upstream.count("GET", &digest), quarantined(&mirror).await), (1, 1), "it goes on with the new file");
    accounts_are_right(&mirror).await;
}
