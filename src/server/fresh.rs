//! What is made of files, and made anew when they change.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::current::Current;

/// What was made last of files that could be used.
pub(super) struct Fresh<T> {
    /// What it is, for the log.
    what: String,
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    made: Current<T>,
    /// The files as they were when it was last tried.
    seen: Mutex<Vec<Option<Stamp>>>,
}

/// Tells a file from what it was and from another of its name: device, number, length, times of change.
type Stamp = (u64, u64, u64, [i64; 4]);

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
        let seen = stamps(&files).into();
        let made = Current::new(make()?);
        Ok(Self { what, files, make: Box::new(make), made, seen })
    }

    pub(super) fn get(&self) -> Arc<T> {
        self.made.get()
    }

    /// Makes it anew if a file has changed. Where that fails, what there was stays. May wait for the disk.
    pub(super) fn look(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.files);
        if *seen == now {
            return;
        }
        *seen = now;
        match (self.make)() {
            Ok(made) => {
                self.made.set(made);
                tracing::info!("{}: read anew, as it has changed", self.what);
            }
            Err(why) => tracing::warn!("{}: what it has become cannot be used, and what it was stays: {why}", self.what),
        }
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
