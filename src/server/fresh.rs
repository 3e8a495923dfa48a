//! What is made of files, and made anew when they change.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{interval, timeout};

/// What was made last of files that could be used.
pub(super) struct Fresh<T> {
    /// What it is, for the log.
    what: String,
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    made: watch::Sender<Arc<T>>,
    seen: Mutex<Seen>,
}

/// What is looked at now and then.
pub(super) trait Look: Send + Sync {
    /// What it is, for the log.
    fn what(&self) -> &str;
    /// Makes it anew if a file has changed, and has been as it is for a look: who writes it may not have done. Where that fails,
    /// what there was stays, and it is tried again at each look, as the fault need not be the file's. May wait for the disk.
    fn look(&self);
    /// The same at once.
    fn renew(&self);
}

#[derive(Default)]
struct Seen {
    /// The files as they were at the last look,
    last: Vec<Option<Stamp>>,
    /// and when it was last tried.
    tried: Vec<Option<Stamp>>,
    /// Why that failed.
    failed: Option<String>,
}

/// Tells a file from what it was and from another of its name: device, number, length, times of change.
type Stamp = (u64, u64, u64, [i64; 4]);

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A disk that takes longer is told of.
const HANGS: Duration = Duration::from_secs(10);

/// Looks at it for ever. Each has a task of its own: a disk that hangs holds up one.
pub(super) async fn keep(fresh: Arc<dyn Look>) {
    let mut due = interval(LOOK);
    loop {
        due.tick().await;
        let looked = Arc::clone(&fresh);
        let mut look = spawn_blocking(move || looked.look());
        // Where no thread is to be had for it, there is one the next time.
        if timeout(HANGS, &mut look).await.is_err() {
            tracing::warn!("{}: its files cannot be looked at, as their disk does not answer; what it was stays", fresh.what());
            let _ = look.await;
        }
    }
}

// === impl Fresh ===

impl<T> Fresh<T> {
    /// Made by `make` of `files`.
    ///
    /// # Errors
    /// Of `make`.
    pub(super) fn new(
        what: String,
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        // In this order: what changes in between is looked at again.
        let now = stamps(&files);
        let made = watch::Sender::new(Arc::new(make()?));
        let seen = Seen { last: now.clone(), tried: now, failed: None };
        Ok(Self { what, files, make: Box::new(make), made, seen: seen.into() })
    }

    pub(super) fn get(&self) -> Arc<T> {
        Arc::clone(&self.made.borrow())
    }

    /// What it is, and will be.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<T>> {
        self.made.subscribe()
    }

    fn take_up(&self, at_once: bool) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.files);
        let settled = seen.last == now;
        seen.last.clone_from(&now);
        if !(settled || at_once) || seen.tried == now && seen.failed.is_none() {
            return;
        }
        seen.tried = now;
        match (self.make)() {
            Ok(made) => {
                seen.failed = None;
                self.made.send_replace(Arc::new(made));
                tracing::info!("{}: read anew, as it has changed", self.what);
            }
            Err(why) => {
                if seen.failed.as_ref() != Some(&why) {
                    tracing::warn!("{}: what it has become cannot be used, and what it was stays: {why}", self.what);
                }
                seen.failed = Some(why);
            }
        }
    }
}

impl<T: Send + Sync> Look for Fresh<T> {
    fn what(&self) -> &str {
        &self.what
    }

    fn look(&self) {
        self.take_up(false);
    }

    fn renew(&self) {
        self.take_up(true);
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |file: &PathBuf| {
        let about = std::fs::metadata(file).ok()?;
        let times = [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()];
        Some((about.dev(), about.ino(), about.len(), times))
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files of a test are its own")]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct World {
        _dir: tempfile::TempDir,
        file: PathBuf,
        fresh: Fresh<String>,
        /// Reading fails, whatever the file is.
        broken: Arc<AtomicBool>,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "one").unwrap();
        let broken = Arc::new(AtomicBool::new(false));
        let (read, fails) = (file.clone(), Arc::clone(&broken));
        let make = move || {
            let text = fs::read_to_string(&read).map_err(|error| error.to_string())?;
            if fails.load(Ordering::Relaxed) { Err("no descriptor is left".into()) } else { Ok(text) }
        };
        World { fresh: Fresh::new("a file".into(), vec![file.clone()], make).unwrap(), file, broken, _dir: dir }
    }

    #[test]
    fn a_file_that_could_not_be_read_in_the_moment_it_changed_is_read_later() {
        let World { _dir, file, fresh, broken } = world();
        fs::write(&file, "two!").unwrap();
        broken.store(true, Ordering::Relaxed);
        (0..3).for_each(|_| fresh.look());
        assert_eq!(*fresh.get(), "one");
        // The file is as it was when it could not be read.
        broken.store(false, Ordering::Relaxed);
        fresh.look();
        assert_eq!(*fresh.get(), "two!");
    }

    #[test]
    fn a_file_is_taken_up_when_it_has_not_changed_between_two_looks_or_at_once_where_that_is_wanted() {
        let World { _dir, file, fresh, .. } = world();
        for half in ["a", "a h", "a hal"] {
            fs::write(&file, half).unwrap();
            fresh.look();
            assert_eq!(*fresh.get(), "one", "it may not be all");
        }
        fresh.look();
        assert_eq!(*fresh.get(), "a hal");
        fs::write(&file, "all").unwrap();
        fresh.renew();
        assert_eq!(*fresh.get(), "all");
    }

    #[test]
    fn who_watches_is_told_when_it_is_made_anew_and_not_when_that_fails() {
        let World { _dir, file, fresh, broken } = world();
        let watch = fresh.watch();
        broken.store(true, Ordering::Relaxed);
        fs::write(&file, "two!").unwrap();
        fresh.renew();
        assert!(!watch.has_changed().unwrap());
        broken.store(false, Ordering::Relaxed);
        fresh.renew();
        assert!(watch.has_changed().unwrap());
    }
}
