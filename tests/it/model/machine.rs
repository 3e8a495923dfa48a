//! What goes wrong here: the disk, the process, the power, the clock.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use larder::clock::Clock;
use larder::store::faults;

use super::history::{Damage, DiskFault, FoundBy, Jump, Stop};
use super::invariants;
use super::order::Order;
use super::world::World;
use crate::support::{Content, PATIENCE, StoppedMirror, TestMirror};

impl World {
    pub(super) fn fail_disk(&mut self, n: usize, how: DiskFault) {
        use rustix::io::Errno;
        self.disk_fails = true;
        self.stalled.iter_mut().for_each(|stalled| stalled.undisturbed = false);
        let fault = match how {
            DiskFault::NoSpace => faults::Fault::Errno(Errno::NOSPC.raw_os_error()),
            DiskFault::Io => faults::Fault::Errno(Errno::IO.raw_os_error()),
            DiskFault::ReadOnly => faults::Fault::Errno(Errno::ROFS.raw_os_error()),
            DiskFault::Short => faults::Fault::Short,
            DiskFault::Hang => faults::Fault::Hang,
            DiskFault::DieBefore => faults::Fault::DieBefore,
            DiskFault::DieAfter => faults::Fault::DieAfter,
        };
        self.disk_errs |= how != DiskFault::Hang;
        self.hangs |= how == DiskFault::Hang;
        self.dies |= matches!(how, DiskFault::DieBefore | DiskFault::DieAfter);
        self.mirror().faults().next(n, fault);
    }

    /// What hangs goes on.
    pub(super) async fn mend(&mut self) {
        if std::mem::take(&mut self.hangs) {
            self.mirror().faults().heal();
            let began = Instant::now();
            while self.mirror().faults().hanging() > 0 {
                assert!(began.elapsed() < PATIENCE, "it hangs although the disk answers");
                tokio::task::yield_now().await;
            }
        }
    }

    /// Due once a minute, by a task that nobody waits for: it hangs as long as the disk.
    pub(super) async fn upkeep(&mut self) {
        let upkeep = tokio::time::timeout(Duration::from_secs(2), self.mirror().upkeep()).await;
        assert!(upkeep.is_ok() || self.hangs, "the upkeep does not end");
    }

    pub(super) async fn restart(&mut self, stop: Stop, offline: bool, jump: Option<Jump>) {
        let stopped = self.stop(stop).await;
        if stop != Stop::Clean || jump.is_some() {
            // What the index does not know it may only guess.
            self.order = Order::default();
        }
        let stopped = stopped.set(&format!("mirror.offline = {offline}"));
        self.offline = offline;
        let stopped = match jump {
            Some(Jump::Back(by)) => self.lose(stopped, by),
            Some(Jump::Ahead(by)) => {
                self.clock.advance(by);
                stopped
            }
            None => stopped,
        };
        self.start(stopped).await;
    }

    /// Puts the clock back, and with it all that is known to have happened at some time.
    fn lose(&mut self, stopped: StoppedMirror, by: Duration) -> StoppedMirror {
        let (now, clock) = (self.clock.now(), Clock::system());
        clock.advance((now - by).since(clock.now()));
        let lost = now.since(clock.now());
        for history in &mut self.tags {
            history.moves.iter_mut().for_each(|(at, _)| *at = *at - lost);
            history.well_since = history.well_since - lost;
        }
        self.lost += lost;
        self.clock = clock.clone();
        stopped.clock(clock)
    }

    async fn stop(&mut self, stop: Stop) -> StoppedMirror {
        self.stalled.clear();
        // What an upstream has asked for is not written down.
        self.ails.leave_alone = None;
        let mirror = self.mirror.take().expect("it runs");
        let stop = if stop == Stop::Clean && mirror.faults().is_dead() { Stop::Kill } else { stop };
        if stop == Stop::Clean {
            // A disk that hangs lets larder end, but not cleanly.
            mirror.faults().heal();
        } else {
            mirror.faults().die();
        }
        let (faults, dir) = (mirror.faults().clone(), mirror.cache_dir());
        let held: Vec<PathBuf> = invariants::sound_blobs(&dir, |digest| mirror.holds(digest));
        if stop != Stop::Clean || self.disk_fails {
            // What was recorded may be lost, and is then asked for again.
            self.proven.clear();
            self.tags.iter_mut().for_each(|tag| tag.known = None);
        }
        let (mut stopped, _) = mirror.drain().await;
        if let Stop::Power(loss) = stop {
            faults.lose_power(loss);
            fs::write(dir.join("lock"), "1 another-boot\n").unwrap();
        }
        if stop != Stop::Clean {
            stopped = recover_once(stopped).await;
        }
        for path in held {
            assert!(path.exists(), "{} was verified and is gone after {stop:?}", path.display());
        }
        (self.disk_fails, self.disk_errs, self.hangs, self.dies) = (false, false, false, false);
        stopped
    }

    async fn start(&mut self, stopped: StoppedMirror) {
        self.mirror = Some(started(stopped).await);
    }

    pub(super) async fn damage(&mut self, blob: usize, how: Damage) {
        let stopped = self.stop(Stop::Clean).await;
        let Content { digest, bytes } = &self.blobs[blob];
        let path = invariants::blob_file(&stopped.cache_dir(), digest);
        if path.exists() {
            match how {
                Damage::Gone => fs::remove_file(path).unwrap(),
                Damage::Short => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
                Damage::Empty => fs::write(path, b"").unwrap(),
                Damage::Long => fs::write(path, [&bytes[..], b"x"].concat()).unwrap(),
            }
            self.damaged.insert(digest.clone());
        }
        self.start(stopped).await;
    }
}

impl World {
    /// A bit that turns over where nobody sees it, before it must be seen.
    pub(super) async fn flip(&mut self, blob: usize, at: usize, found_by: FoundBy) {
        let Content { digest, bytes } = self.blobs[blob].clone();
        let stopped = if found_by == FoundBy::Reader { Some(self.stop(Stop::Kill).await) } else { None };
        let dir = stopped.as_ref().map_or_else(|| self.mirror().cache_dir(), StoppedMirror::cache_dir);
        let path = invariants::blob_file(&dir, &digest);
        let flips = path.exists() && !self.damaged.contains(&digest) && !self.disk_fails && self.is_quiet_or_stopped();
        let flips = flips && self.mirror.as_ref().is_none_or(|mirror| mirror.holds(&digest));
        if flips {
            let mut wrong = bytes.to_vec();
            wrong[at * bytes.len() / 1000] ^= 1;
            // In place, as the disk would.
            fs::File::options().write(true).open(&path).unwrap().write_all_at(&wrong, 0).unwrap();
            self.damaged.insert(digest.clone());
            self.flipped.insert(digest.clone());
        }
        match stopped {
            Some(stopped) => {
                self.order = Order::default();
                self.start(stopped).await;
            }
            None if flips => {
                self.clock.advance(Duration::from_hours(15 * 24));
                let scrubbed = self.mirror().scrub().await;
                assert!(scrubbed.damaged > 0 && !self.mirror().holds(&digest), "{scrubbed:?}");
            }
            None => {}
        }
    }

    fn is_quiet_or_stopped(&self) -> bool {
        self.mirror.is_none() || self.is_quiet()
    }
}

/// Starts after a crash and crashes at once: what is then there is what the next start leaves as well.
async fn recover_once(mut stopped: StoppedMirror) -> StoppedMirror {
    let dir = stopped.cache_dir();
    let mut left = Vec::new();
    for _ in 0..2 {
        let mirror = started(stopped).await;
        left.push(invariants::listing(&dir));
        mirror.faults().die();
        stopped = mirror.drain().await.0;
    }
    assert_eq!(left[0], left[1], "recovering twice is recovering once");
    stopped
}

/// The directory may be held for another moment.
async fn started(mut stopped: StoppedMirror) -> TestMirror {
    let began = std::time::Instant::now();
    loop {
        match stopped.try_start().await {
            Ok(mirror) => return mirror,
            Err((error, back)) => {
                assert!(error.contains("holds the cache") && began.elapsed() < PATIENCE, "{error}");
                stopped = back;
                tokio::task::yield_now().await;
            }
        }
    }
}
