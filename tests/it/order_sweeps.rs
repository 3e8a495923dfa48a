//! Orders in which one operation on the cache directory goes wrong: each of them, in every way. An order that says that it is done has
//! been done for good; one that says that it is not can be given again, and nothing else has come to harm.

use std::fs;
use std::path::PathBuf;

use larder::store::faults::{Fault, Loss};

use crate::support::{
    Ended, Image, Process, PutImage, Registry, StoppedMirror, TestMirror, assert_booked, assert_sound, entries, reboot,
};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
/// The number of operations varies a little with how bytes come in.
const MORE: usize = 5;

/// How a larder ends that dies at the operation with this number. One of all the ways, by turns; `ATTACKS=20`: all of them.
fn deaths(number: usize) -> Vec<(Fault, Option<Loss>)> {
    let losses = [Loss::Cut, Loss::Zeroed, Loss::Renames].map(|loss| (Fault::DieAfter, Some(loss)));
    let all = [(Fault::DieBefore, None), (Fault::DieAfter, None)].into_iter().chain(losses);
    if std::env::var_os("ATTACKS").is_some() { all.collect() } else { all.skip(number % 5).take(1).collect() }
}

/// An archive with two images that share a layer.
struct Bundle {
    _dir: tempfile::TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
    images: [PutImage; 2],
}

/// A larder that asks nobody.
struct World<'a> {
    bundle: &'a Bundle,
    mirror: TestMirror,
}

// === impl Bundle ===

impl Bundle {
    async fn new() -> Self {
        let upstream = Registry::start().await;
        let shared = crate::support::noise(1, 400_000);
        let of = |seed, name| Image::new(seed).layer(shared.clone()).layers(&[900]).put(&upstream, name, "v1");
        let images = [of(1, "library/app"), of(2, "library/other")];
        let outside = TestMirror::of(&upstream).await;
        for name in ["app:v1", "other:v1"] {
            assert_eq!(outside.warm(name, &[]).await.failed, []);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.tar");
        let ended = Process::order(outside.dir(), &["export", "--all", "-o", path.to_str().unwrap()], &[]).await;
        assert!(ended.status.success(), "{}", ended.log);
        let bytes = fs::read(&path).unwrap();
        Self { _dir: dir, path, bytes, images }
    }

    /// A larder that has nothing.
    async fn empty(&self) -> World<'_> {
        let mirror = TestMirror::builder().set("mirror.offline = true").set("cache.min_free = \"0%\"").start().await;
        World { bundle: self, mirror }
    }

    /// A larder that has taken it in.
    async fn taken(&self) -> World<'_> {
        let world = self.empty().await;
        world.well(&world.import(), "all is well").await;
        world
    }
}

// === impl World ===

impl<'a> World<'a> {
    fn import(&self) -> Vec<&'a str> {
        vec!["import", self.bundle.path.to_str().unwrap(), "--no-pin"]
    }

    async fn order(&self, order: &[&str]) -> Ended {
        Process::order(self.mirror.dir(), order, &[]).await
    }

    async fn well(&self, order: &[&str], what: &str) -> String {
        let Ended { status, stdout, log } = self.order(order).await;
        assert!(status.success(), "{what}: {order:?}: {stdout}{log}");
        stdout
    }

    /// Gives an order while one operation goes wrong. True if it says that it is done; if not, it says why.
    async fn with_one(&self, order: &[&str], number: usize, fault: Fault, what: &str) -> bool {
        self.mirror.faults().next(number, fault);
        let Ended { status, stdout, log } = self.order(order).await;
        assert!(matches!(status.code(), Some(0 | 1)), "{what}: {status} {stdout}{log}");
        assert!(status.success() || log.starts_with("larder: "), "{what}: {stdout}{log}");
        self.mirror.faults().heal();
        status.success()
    }

    async fn stopped(self) -> (&'a Bundle, StoppedMirror) {
        (self.bundle, self.mirror.stop().await)
    }

    /// Stops it and starts it again with a disk that is well.
    async fn again(self) -> Self {
        let (bundle, stopped) = self.stopped().await;
        assert_sound(&stopped.cache_dir());
        let mirror = stopped.start().await;
        assert_booked(&mirror).await;
        World { bundle, mirror }
    }

    /// The same after its death, and a power loss.
    async fn dead(self, loss: Option<Loss>) -> Self {
        self.mirror.faults().die();
        let faults = self.mirror.faults().clone();
        let (bundle, stopped) = self.stopped().await;
        if let Some(loss) = loss {
            faults.lose_power(loss);
            reboot(&stopped.cache_dir());
        }
        assert_sound(&stopped.cache_dir());
        let mirror = stopped.start().await;
        assert_booked(&mirror).await;
        World { bundle, mirror }
    }

    /// Whether an image is served. If its name is known, or its manifest, all of it is there.
    async fn has(&self, image: &PutImage, what: &str) -> bool {
        let Self { mirror, .. } = self;
        let mut named = false;
        for path in [image.tag_path("v1"), image.manifest_path()] {
            let answer = mirror.get(&path).await;
            assert!(matches!(answer.status, 200 | 404), "{what}: {}", answer.text());
            if answer.status == 200 {
                assert_eq!(answer.body, image.manifest, "{what}");
                for blob in image.blobs() {
                    let answer = mirror.get(&image.blob_path(blob)).await;
                    assert!(answer.status == 200 && answer.body == blob.bytes, "{what}: {} is {}", blob.digest, answer.status);
                }
                named |= path.ends_with("v1");
            }
        }
        named
    }

    async fn has_all(&self, what: &str) {
        for image in &self.bundle.images {
            assert!(self.has(image, what).await, "{what}: {} is not here", image.repository);
        }
    }

    fn is_pinned(&self, image: &PutImage) -> bool {
        let records = fs::read_to_string(self.mirror.cache_dir().join("records")).unwrap_or_default();
        let about = format!(" docker.io {} v1", image.repository);
        records.lines().rfind(|line| line.contains(&about) && line.contains("pin ")).is_some_and(|line| line.starts_with("pin "))
    }
}

/// How many operations an order needs.
async fn operations(world: World<'_>, order: &[&str]) -> usize {
    let before = world.mirror.faults().count();
    world.well(order, "all is well").await;
    let count = world.mirror.faults().count() - before;
    assert!(count > 0, "{order:?} does nothing to the disk");
    count + MORE
}

// === import ===

#[tokio::test]
async fn an_import_in_which_any_operation_fails_is_done_or_says_why_and_can_be_given_again() {
    let bundle = Bundle::new().await;
    let world = bundle.empty().await;
    let import = world.import();
    for number in 0..operations(world, &import).await {
        for errno in [EIO, ENOSPC] {
            let what = format!("errno {errno} at operation {number}");
            let world = bundle.empty().await;
            let done = world.with_one(&import, number, Fault::Errno(errno), &what).await;
            for image in &bundle.images {
                assert!(world.has(image, &what).await || !done, "{what}");
            }
            let world = world.again().await;
            if done {
                world.has_all(&what).await;
            }
            world.well(&import, &what).await;
            world.again().await.has_all(&what).await;
        }
    }
}

#[tokio::test]
async fn a_death_or_power_loss_at_any_operation_of_an_import_leaves_no_image_that_is_not_whole() {
    let bundle = Bundle::new().await;
    let world = bundle.empty().await;
    let import = world.import();
    for number in 0..operations(world, &import).await {
        for (fault, loss) in deaths(number) {
            dies_importing(&bundle, number, fault, loss).await;
        }
    }
}

async fn dies_importing(bundle: &Bundle, number: usize, fault: Fault, loss: Option<Loss>) {
    let what = format!("{fault:?} at operation {number}, then {loss:?}");
    let world = bundle.empty().await;
    let import = world.import();
    let done = world.with_one(&import, number, fault, &what).await;
    let world = world.dead(loss).await;
    for image in &bundle.images {
        assert!(world.has(image, &what).await || !done, "{what}");
    }
    world.well(&import, &what).await;
    world.again().await.has_all(&what).await;
}

#[tokio::test]
async fn what_an_import_has_said_to_be_here_and_pinned_outlives_a_power_loss_in_that_moment() {
    let bundle = Bundle::new().await;
    for loss in [Loss::Cut, Loss::Zeroed, Loss::Renames] {
        let world = bundle.empty().await;
        world.well(&["import", bundle.path.to_str().unwrap()], "all is well").await;
        let world = world.dead(Some(loss)).await;
        world.has_all(&format!("{loss:?}")).await;
        assert!(bundle.images.iter().all(|image| world.is_pinned(image)), "{loss:?}");
    }
}

// === export ===

#[tokio::test]
async fn an_export_in_which_any_operation_fails_writes_the_same_bytes_or_no_file_and_harms_nothing() {
    let bundle = Bundle::new().await;
    let export = ["export", "--all", "-o", "out.tar"];
    // What was read once is in memory or known to be right: it is to be read as after a start.
    let fresh = async || {
        let (bundle, stopped) = bundle.taken().await.stopped().await;
        World { bundle, mirror: stopped.into_killed().start().await }
    };
    for number in 0..operations(fresh().await, &export).await {
        let what = format!("EIO at operation {number}");
        let world = fresh().await;
        let out = world.mirror.dir().join("out.tar");
        if world.with_one(&export, number, Fault::Errno(EIO), &what).await {
            assert!(fs::read(&out).unwrap() == bundle.bytes, "{what}");
        } else if let Ok(bytes) = fs::read(&out) {
            // The image that could be read.
            let blobs =
                entries(&bytes).into_iter().filter_map(|(path, bytes)| Some((path.strip_prefix("blobs/")?.to_owned(), bytes)));
            assert!(bytes.len() < bundle.bytes.len() && blobs.count() >= 4, "{what}");
        }
        assert!(!world.mirror.dir().join(".out.tar.partial").exists(), "{what}");
        world.well(&export, &what).await;
        assert!(fs::read(&out).unwrap() == bundle.bytes, "{what}");
        world.again().await.has_all(&what).await;
    }
}

// === pins ===

#[tokio::test]
async fn a_pin_that_was_told_of_outlives_its_larders_death_and_a_power_loss_and_no_other_is_lost() {
    let bundle = Bundle::new().await;
    let (pin, unpin) = (["pin", "app:v1"], ["unpin", "app:v1"]);
    let [app, other] = &bundle.images;
    let pinned = async || {
        let world = bundle.taken().await;
        world.well(&["pin", "other:v1"], "all is well").await;
        world
    };
    for number in 0..operations(pinned().await, &pin).await {
        for (fault, loss) in deaths(number) {
            let what = format!("{fault:?} at operation {number}, then {loss:?}");
            let world = pinned().await;
            let done = world.with_one(&pin, number, fault, &what).await;
            let world = world.dead(loss).await;
            assert!(world.is_pinned(other) && (world.is_pinned(app) || !done), "{what}");
            world.well(&pin, &what).await;
            assert!(world.is_pinned(app), "{what}");
            world.well(&unpin, &what).await;
            // Told of means for good.
            let world = world.dead(loss).await;
            assert!(world.is_pinned(other) && !world.is_pinned(app), "{what}");
            world.has_all(&what).await;
        }
    }
}

// === rm ===

#[tokio::test]
async fn an_rm_in_which_any_operation_fails_or_is_the_last_leaves_nothing_half_and_takes_nothing_of_others() {
    let bundle = Bundle::new().await;
    let rm = ["rm", "app:v1"];
    let [app, other] = &bundle.images;
    for number in 0..operations(bundle.taken().await, &rm).await {
        for (fault, loss) in [(Fault::Errno(EIO), None)].into_iter().chain(deaths(number)) {
            let what = format!("{fault:?} at operation {number}, then {loss:?}");
            let world = bundle.taken().await;
            let done = world.with_one(&rm, number, fault, &what).await;
            let world = if matches!(fault, Fault::Errno(_)) { world.again().await } else { world.dead(loss).await };
            assert!(world.has(other, &what).await, "{what}");
            let is_here = world.has(app, &what).await;
            assert!(!(done && is_here), "{what}: it is here again");
            if is_here {
                world.well(&rm, &what).await;
            }
            let world = world.again().await;
            assert!(!world.has(app, &what).await && world.has(other, &what).await, "{what}");
        }
    }
}

// === verify ===

#[tokio::test]
async fn a_verify_in_which_any_operation_fails_or_is_the_last_loses_nothing_that_is_right() {
    let bundle = Bundle::new().await;
    let verify = ["verify", "--rate", "1GiB"];
    let [app, other] = &bundle.images;
    let damaged = async || {
        let world = bundle.taken().await;
        let hex = &app.layers[1].digest[7..];
        fs::write(world.mirror.cache_dir().join("blobs/sha256").join(&hex[..2]).join(hex), crate::support::noise(9, 900))
            .unwrap();
        world
    };
    let world = damaged().await;
    let before = world.mirror.faults().count();
    assert_eq!(world.order(&verify).await.status.code(), Some(1));
    let count = world.mirror.faults().count() - before + MORE;
    for number in 0..count {
        for (fault, loss) in [(Fault::Errno(EIO), None)].into_iter().chain(deaths(number)) {
            let what = format!("{fault:?} at operation {number}, then {loss:?}");
            let world = damaged().await;
            world.with_one(&verify, number, fault, &what).await;
            let (bundle, stopped) = if matches!(fault, Fault::Errno(_)) {
                world.stopped().await
            } else {
                world.mirror.faults().die();
                let faults = world.mirror.faults().clone();
                let dead = world.stopped().await;
                if let Some(loss) = loss {
                    faults.lose_power(loss);
                    reboot(&dead.1.cache_dir());
                }
                dead
            };
            let world = World { bundle, mirror: stopped.start().await };
            assert!(world.has(other, &what).await, "{what}");
            // Given again it finds what is wrong, or that is gone; and an import brings it anew.
            world.order(&verify).await;
            assert!(!world.mirror.holds(&app.layers[1].digest), "{what}");
            world.well(&world.import(), &what).await;
            assert_eq!(world.order(&verify).await.status.code(), Some(0), "{what}");
            world.again().await.has_all(&what).await;
        }
    }
}
