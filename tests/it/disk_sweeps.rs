//! A cold pull in which one operation on the cache directory goes wrong: each of them, in every way.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use larder::store::Operation;
use larder::store::faults::{Fault, Loss};

use crate::support::{Image, PATIENCE, PutImage, Registry, TestMirror, assert_booked, assert_sound, partial_file, reboot};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const EDQUOT: i32 = 122;

/// A registry with one image, and a larder before it that has never been asked for anything.
struct World {
    upstream: Registry,
    image: PutImage,
    mirror: TestMirror,
}

impl World {
    async fn new() -> Self {
        Self::with_patience(PATIENCE).await
    }

    async fn with_patience(patience: Duration) -> Self {
        let upstream = Registry::start().await;
        // A layer of several writes, and one so small that nothing goes out before it is verified.
        let image = Image::new(7).layers(&[1_200_000, 900]).put(&upstream, "library/app", "latest");
        let mirror = TestMirror::builder()
            .upstream("docker.io", &upstream)
            .set("cache.min_free = \"0%\"")
            .set(&format!("cache.patience = \"{}ms\"", patience.as_millis()))
            .start()
            .await;
        Self { upstream, image, mirror }
    }

    /// Pulls as clients do, the layers at the same time, each twice. Every answer must be right.
    async fn pull(&self, what: &str) {
        let Self { image, mirror, .. } = self;
        let manifest = mirror.get(&image.tag_path("latest")).await;
        assert_eq!((manifest.status, &manifest.body), (200, &image.manifest), "{what}: {}", manifest.text());
        let twice = image.blobs().chain(image.blobs());
        let blobs = twice.map(|blob| async move { (blob, mirror.get(&image.blob_path(blob)).await) });
        for (blob, answer) in join_all(blobs).await {
            assert_eq!(answer.status, 200, "{what}: {} of {} bytes: {}", blob.digest, blob.bytes.len(), answer.text());
            assert!(answer.complete && answer.body == blob.bytes, "{what}: {} bytes of {}", answer.body.len(), blob.bytes.len());
        }
    }

    /// The same of a larder that is dying: what ends well is right.
    async fn pull_what_can_be_had(&self) {
        let Self { image, mirror, .. } = self;
        let asked = image.blobs().map(|blob| async move { (blob, mirror.get(&image.blob_path(blob)).await) });
        for (blob, answer) in join_all(asked).await {
            assert!(answer.status != 200 || !answer.complete || answer.body == blob.bytes, "{}", blob.digest);
        }
    }

    /// Stops it and starts it again with a disk that is well.
    async fn again(self) -> Self {
        let Self { upstream, image, mirror } = self;
        let stopped = mirror.stop().await;
        assert_sound(&stopped.cache_dir());
        let mirror = stopped.start().await;
        assert_booked(&mirror).await;
        Self { upstream, image, mirror }
    }

    /// Once all is well again, everything is kept that is pulled, and nothing is fetched that is kept.
    async fn ends_well(self, what: &str) {
        let Self { image, mirror, .. } = &self;
        let kept = async {
            // Where the patience is short, this test may have been slow; and what was given up may be on its way out.
            loop {
                self.pull(what).await;
                if image.blobs().map(|blob| &blob.digest).chain([&image.digest]).all(|digest| mirror.holds(digest)) {
                    break;
                }
            }
        };
        assert!(tokio::time::timeout(PATIENCE, kept).await.is_ok(), "{what}: it is not kept");
        self.upstream.forget_requests();
        self.pull(what).await;
        assert_eq!(self.upstream.requests().len(), 0, "{what}");
        assert_booked(&self.mirror).await;
        self.mirror.stop().await;
    }
}

/// The operations of a cold pull, as they come when nothing goes wrong, with a few more, as their number varies with how bytes
/// come in.
async fn operations() -> Range<usize> {
    let world = World::new().await;
    let before = world.mirror.faults().count();
    world.pull("all is well").await;
    let faults = world.mirror.faults().clone();
    world.again().await;
    let done = faults.since(before);
    for operation in
        [Operation::Create, Operation::Allocate, Operation::Write, Operation::Sync, Operation::Rename, Operation::SyncDir]
    {
        assert!(done.iter().any(|(known, _)| *known == operation), "{operation:?} is not among {done:?}");
    }
    0..done.len() + 5
}

/// Pulls while the operation with this number goes wrong, and again when it is over.
async fn with_one(number: usize, fault: Fault) {
    let what = format!("{fault:?} at operation {number}");
    let world = World::new().await;
    world.mirror.faults().next(number, fault);
    world.pull(&what).await;
    world.pull(&what).await;
    world.mirror.faults().heal();
    world.again().await.ends_well(&what).await;
}

async fn sweep(fault: Fault) {
    for number in operations().await {
        with_one(number, fault).await;
    }
}

#[tokio::test]
async fn no_error_of_any_operation_reaches_a_client() {
    sweep(Fault::Errno(EIO)).await;
}

#[tokio::test]
async fn a_full_disk_reaches_no_client_at_whatever_operation_it_is_noticed() {
    sweep(Fault::Errno(ENOSPC)).await;
}

#[tokio::test]
async fn a_disk_that_becomes_read_only_for_a_moment_reaches_no_client() {
    sweep(Fault::Errno(EROFS)).await;
}

#[tokio::test]
async fn a_quota_that_is_used_up_reaches_no_client() {
    sweep(Fault::Errno(EDQUOT)).await;
}

#[tokio::test]
async fn a_write_or_a_read_that_does_a_part_is_gone_on_with() {
    sweep(Fault::Short).await;
}

#[tokio::test]
async fn a_panic_in_any_operation_reaches_no_client() {
    sweep(Fault::Panic).await;
}

/// What an earlier fill has left is opened, read again and cut while the upstream waits.
#[tokio::test]
async fn no_error_of_any_operation_on_what_is_left_of_a_blob_reaches_a_client_whatever_its_length_has_become() {
    let shorter = |path: &Path| fs::File::options().write(true).open(path).unwrap().set_len(500_000).unwrap();
    let longer = |path: &Path| fs::write(path, [fs::read(path).unwrap(), vec![7; 100_000]].concat()).unwrap();
    for (of, change) in [("as it was", (|_| ()) as fn(&Path)), ("shorter", shorter), ("longer", longer)] {
        for number in 0.. {
            let what = format!("EIO at operation {number} on a partial file that is {of}");
            let World { upstream, image, mirror } = World::new().await;
            let stopped = mirror.stop().await;
            let layer = &image.layers[0];
            let partial = partial_file(&stopped.cache_dir(), &layer.digest);
            fs::write(&partial, &layer.bytes[..700_000]).unwrap();
            let mirror = stopped.start().await;
            change(&partial);
            let operations = Arc::new(AtomicUsize::new(0));
            let seen = Arc::clone(&operations);
            let fails = move |_, path: &Path| path == partial && seen.fetch_add(1, Ordering::Relaxed) == number;
            mirror.faults().each(fails, Fault::Errno(EIO));
            let world = World { upstream, image, mirror };
            world.pull(&what).await;
            let asked = world.upstream.requests();
            assert!(asked.iter().any(|request| request.range() == Some("bytes=699999-")), "{what}: {asked:#?}");
            world.mirror.faults().heal();
            world.again().await.ends_well(&what).await;
            if operations.load(Ordering::Relaxed) <= number {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_disk_that_hangs_at_any_operation_holds_up_no_client_for_long() {
    for number in operations().await {
        let what = format!("a hang at operation {number}");
        let world = World::with_patience(Duration::from_millis(100)).await;
        world.mirror.faults().next(number, Fault::Hang);
        let pulled = tokio::time::timeout(PATIENCE, world.pull(&what)).await;
        assert!(pulled.is_ok(), "{what}");
        world.mirror.faults().heal();
        world.again().await.ends_well(&what).await;
    }
}

#[tokio::test]
async fn a_disk_that_fails_from_any_operation_on_reaches_no_client() {
    for number in operations().await {
        let what = format!("a dead disk from operation {number} on");
        let world = World::new().await;
        let (faults, first) = (world.mirror.faults().clone(), world.mirror.faults().count() + number);
        let counted = faults.clone();
        // The plan is asked under its own lock, so the count is kept here.
        let seen = AtomicUsize::new(counted.count());
        faults.each(move |_, _| seen.fetch_add(1, Ordering::Relaxed) >= first, Fault::Errno(EIO));
        world.pull(&what).await;
        world.mirror.faults().heal();
        world.again().await.ends_well(&what).await;
    }
}

/// Dies at operation `number` of a pull, loses what was not synced if so told, and starts again.
async fn dies(number: usize, fault: Fault, loss: Option<Loss>) {
    let what = format!("{fault:?} at operation {number}, then {loss:?}");
    let world = World::new().await;
    world.mirror.faults().next(number, fault);
    let manifest = world.mirror.get(&world.image.tag_path("latest")).await;
    assert!(manifest.status != 200 || manifest.body == world.image.manifest, "{what}");
    world.pull_what_can_be_had().await;
    world.mirror.faults().die();
    let faults = world.mirror.faults().clone();
    let World { upstream, image, mirror } = world;
    let stopped = mirror.stop().await;
    if let Some(loss) = loss {
        faults.lose_power(loss);
        reboot(&stopped.cache_dir());
    }
    assert_sound(&stopped.cache_dir());
    let mirror = stopped.start().await;
    assert_booked(&mirror).await;
    World { upstream, image, mirror }.ends_well(&what).await;
}

#[tokio::test]
async fn a_death_before_any_operation_leaves_nothing_wrong() {
    for number in operations().await {
        dies(number, Fault::DieBefore, None).await;
    }
}

#[tokio::test]
async fn a_death_after_any_operation_leaves_nothing_wrong() {
    for number in operations().await {
        dies(number, Fault::DieAfter, None).await;
    }
}

#[tokio::test]
async fn a_power_loss_at_any_operation_that_cuts_what_was_not_synced_leaves_nothing_wrong() {
    for number in operations().await {
        dies(number, Fault::DieAfter, Some(Loss::Cut)).await;
    }
}

#[tokio::test]
async fn a_power_loss_at_any_operation_that_zeroes_what_was_not_synced_leaves_nothing_wrong() {
    for number in operations().await {
        dies(number, Fault::DieAfter, Some(Loss::Zeroed)).await;
    }
}

#[tokio::test]
async fn a_power_loss_at_any_operation_that_undoes_renames_leaves_nothing_wrong() {
    for number in operations().await {
        dies(number, Fault::DieAfter, Some(Loss::Renames)).await;
    }
}

/// A fault at the start is told to whoever starts it, and nothing is lost.
#[tokio::test]
async fn a_start_during_which_any_operation_fails_starts_or_says_why_and_loses_nothing() {
    let world = World::new().await;
    world.pull("all is well").await;
    let mut world = world.again().await;
    for number in 0..60 {
        let stopped = world.mirror.stop().await;
        stopped.faults().next(number, Fault::Errno(EIO));
        let mirror = match stopped.try_start().await {
            Ok(mirror) => mirror,
            Err((why, stopped)) => {
                assert!(why.contains("cache"), "{why}");
                stopped.faults().heal();
                stopped.start().await
            }
        };
        world = World { mirror, ..world };
        world.mirror.faults().heal();
        world.pull(&format!("EIO at operation {number} of the start")).await;
        world = world.again().await;
    }
    world.upstream.forget_requests();
    world.pull("after all of them").await;
    assert!(world.upstream.requests().is_empty(), "nothing verified was lost for good");
    tokio::time::timeout(Duration::from_secs(10), world.mirror.stop()).await.expect("it stops");
}
