//! What a cache takes of the disk, seen from outside.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Measures a cache directory every few milliseconds, on a thread of its own.
pub struct Sampler {
    larder: Arc<Mutex<Option<Pid>>>,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Samples>,
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Samples {
    pub taken: usize,
    /// The largest sum of what `du` would say and of what is unlinked but still open.
    pub largest: u64,
    /// The most that was unlinked but still open.
    pub largest_unlinked: u64,
    /// The longest that a sample took.
    pub longest: Duration,
}

/// While it lives, no thread of the process runs: what is measured is one moment and not a walk's worth of moments, in
/// which a blob that goes and one that comes would both be counted.
struct Frozen(Pid);

struct Measure<'a> {
    dir: &'a Path,
    /// A file may be met twice: by its name and by a descriptor.
    seen: HashSet<u64>,
}

const EVERY: Duration = Duration::from_millis(3);

/// Blobs in the cache and the bytes in them.
pub fn blobs(cache: &Path) -> (usize, u64) {
    let mut found = (0, 0);
    walk(&cache.join("blobs"), &mut |meta| {
        if meta.is_file() {
            found.0 += 1;
            found.1 += meta.len();
        }
    });
    found
}

// === impl Sampler ===

impl Sampler {
    pub fn start(dir: PathBuf) -> Self {
        Self::every(EVERY, dir)
    }

    /// Less often, where the process has to do something between the samples for hours.
    pub fn every(interval: Duration, dir: PathBuf) -> Self {
        let larder = Arc::new(Mutex::new(None));
        let (stop, stopped) = mpsc::channel();
        let running = Arc::clone(&larder);
        let thread = thread::spawn(move || {
            let mut samples = Samples::default();
            while stopped.recv_timeout(interval) == Err(mpsc::RecvTimeoutError::Timeout) {
                samples.take(&dir, *running.lock().unwrap());
            }
            samples
        });
        Self { larder, stop, thread }
    }

    /// Names the process to be stopped for each sample; `None` before it ends, and returns when nothing looks at it.
    pub fn watch(&self, larder: Option<Pid>) {
        *self.larder.lock().unwrap() = larder;
    }

    pub fn end(self) -> Samples {
        drop(self.stop);
        self.thread.join().expect("the sampler does not panic")
    }
}

// === impl Samples ===

impl Samples {
    fn take(&mut self, dir: &Path, larder: Option<Pid>) {
        let begun = Instant::now();
        let frozen = larder.map(Frozen::of);
        let mut measure = Measure { dir, seen: HashSet::new() };
        let linked = measure.linked();
        let unlinked = larder.map_or(0, |larder| measure.unlinked(larder).unwrap_or_default());
        drop(frozen);
        self.taken += 1;
        self.largest = self.largest.max(linked + unlinked);
        self.largest_unlinked = self.largest_unlinked.max(unlinked);
        self.longest = self.longest.max(begun.elapsed());
    }
}

// === impl Measure ===

impl Measure<'_> {
    /// What `du` would say.
    fn linked(&mut self) -> u64 {
        let mut bytes = 0;
        walk(self.dir, &mut |meta| {
            if self.seen.insert(meta.ino()) {
                bytes += meta.blocks() * 512;
            }
        });
        bytes
    }

    /// What the process keeps on the disk by its descriptors alone.
    fn unlinked(&mut self, larder: Pid) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(format!("/proc/{}/fd", larder.as_raw_pid()))?.flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            if target.starts_with(self.dir)
                && let Ok(meta) = fs::metadata(entry.path())
                && self.seen.insert(meta.ino())
            {
                bytes += meta.blocks() * 512;
            }
        }
        Ok(bytes)
    }
}

fn walk(at: &Path, visit: &mut impl FnMut(&fs::Metadata)) {
    // What has gone meanwhile takes nothing.
    let Ok(meta) = fs::symlink_metadata(at) else { return };
    visit(&meta);
    if meta.is_dir() {
        fs::read_dir(at).into_iter().flatten().flatten().for_each(|entry| walk(&entry.path(), visit));
    }
}

// === impl Frozen ===

impl Frozen {
    fn of(process: Pid) -> Self {
        kill_process(process, Signal::STOP).expect("larder runs");
        // A thread within a system call stops when that is done.
        while !stands_still(process) {
            thread::yield_now();
        }
        Self(process)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn stands_still(process: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", process.as_raw_pid()));
    threads.into_iter().flatten().flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['T', 't', 'Z', 'X']))
    })
}
