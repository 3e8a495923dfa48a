//! The only place that touches the file system: here what lies where, in `disk/file` what is done to an open file. All of it
//! passes the `gate`.
//!
//! ```text
//! <dir>/layout                 the version of all that follows
//!       lock                   held by the process that owns the directory
//!       blobs/sha256/ab/<hex>  verified bytes; a manifest is a blob as well
//!       partial/sha256-<hex>   bytes on their way in: their digest, or what stands for that and for who sends them
//!       quarantine/            what was found damaged, named likewise: the newest few
//!       records                what bytes do not tell: tags and proofs
//!       limits                 what the cache may take, as the larder was told that served it last
//!       missing                what a sealed larder was asked for and does not have
//!       history                what clients were served, over time; may be deleted
//!       pulls                  how often images were pulled; may be deleted
//!       index                  sizes and order of use; may be deleted
//!       socket                 by which the operator's commands reach the process that owns the directory
//!       clean                  there while nothing has changed since the index was written
//! ```
#![expect(clippy::disallowed_methods, reason = "this is the file that the ban points to")]

#[cfg(debug_assertions)]
pub mod faults;
mod file;
mod gate;
mod paths;
mod residence;
mod socket;
mod within;

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::sync::Mutex;

use super::lock;
use super::options::Options;
use super::pool::caught;
use gate::Gate;

pub(super) use file::File;
#[cfg(debug_assertions)]
pub use gate::Operation;
#[cfg(not(debug_assertions))]
use gate::Operation;
use paths::{Claimed, check_owner, ignore_missing, link, plain};
pub use socket::SocketPath;

/// Raised when the layout changes in a way that an older larder would misread.
const LAYOUT: &str = "larder cache 1\n";

/// Stands in the lock of who will soon let go of it.
const PASSING: &str = "passing";

pub(super) struct Disk {
    root: PathBuf,
    gate: Arc<Gate>,
    /// Directories of blobs whose names may be gone after a power loss, as the disk failed.
    unsynced: Mutex<HashSet<PathBuf>>,
    /// Keeps the lock: the kernel releases it with the process.
    _lock: fs::File,
}

/// What [`Disk::open`] found.
pub(super) struct Opened {
    pub(super) disk: Disk,
    /// There was nothing yet.
    pub(super) new: bool,
    /// The index tells all: nothing has changed since it was written.
    pub(super) clean: bool,
    /// The machine has been restarted since: bytes that were not synced may be gone.
    pub(super) rebooted: bool,
}

pub(super) struct Found {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// What the file takes of the disk: more than its size where space was set aside for what was to come.
    pub(super) taken: u64,
    pub(super) modified: SystemTime,
}

/// Why a cache directory cannot be used. Nothing in it has been changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot use the cache directory {}: {error}; give another one as cache.dir", dir.display())]
    Unusable { dir: PathBuf, error: io::Error },
    /// `passing`: it is there for one command alone.
    #[error("another larder (process {holder}) holds the cache directory {}", dir.display())]
    Held { dir: PathBuf, holder: String, passing: bool },
    #[error("{} holds files but no larder cache; give an empty directory as cache.dir", dir.display())]
    Foreign { dir: PathBuf },
    #[error("the cache in {} has the layout {found:?}, this larder knows {LAYOUT:?}; use the larder that wrote it, or another directory", dir.display())]
    Layout { dir: PathBuf, found: String },
}

// === impl Disk ===

impl Disk {
    /// Takes the directory, creating it where there is none.
    pub(super) fn open(options: &Options, metrics: Metrics) -> Result<Opened, OpenError> {
        let root = options.dir.as_path();
        #[cfg(debug_assertions)]
        let gate = Arc::new(Gate::new(root, metrics, options.faults.clone()));
        #[cfg(not(debug_assertions))]
        let gate = Arc::new(Gate::new(root, metrics));
        let unusable = |error| OpenError::Unusable { dir: root.into(), error };
        gate.create_dirs(root).map_err(unusable)?;
        check_owner(root, &fs::metadata(root).map_err(unusable)?).map_err(unusable)?;
        let empty = gate.is_empty(root).map_err(unusable)?;
        match gate.read(&root.join("layout")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()) {
            Ok(found) if found == LAYOUT => {}
            Ok(found) => return Err(OpenError::Layout { dir: root.into(), found }),
            Err(error) if error.kind() == ErrorKind::NotFound && empty => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(OpenError::Foreign { dir: root.into() }),
            Err(error) => return Err(unusable(error)),
        }
        let Claimed { lock, rebooted } = gate.claim(root, options.passing)?;
        let disk = Self { root: root.into(), gate, unsynced: Mutex::default(), _lock: lock };
        // First of all, as without it the rest is a stranger's.
        if empty {
            disk.replace("layout", LAYOUT.as_bytes()).map_err(unusable)?;
        }
        for dir in ["blobs", "partial"] {
            disk.gate.create_own_dirs(&root.join(dir)).map_err(unusable)?;
        }
        disk.refuse_links().map_err(unusable)?;
        let clean = match disk.gate.remove(&root.join("clean")) {
            Ok(()) => {
                disk.gate.sync_dir(root).map_err(unusable)?;
                true
            }
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(unusable(error)),
        };
        Ok(Opened { disk, new: empty, clean, rebooted })
    }

    /// Blobs are nowhere but here. Of what larder makes itself none is a symbolic link, and nobody else has been able to make
    /// one since.
    fn refuse_links(&self) -> io::Result<()> {
        let mut dirs = vec![self.root.join("blobs")];
        for depth in 0..2 {
            for dir in std::mem::take(&mut dirs) {
                for entry in self.gate.list(&dir)? {
                    if entry.file_type()?.is_symlink() {
                        return Err(link(&entry.path()));
                    }
                    if depth == 0 && entry.file_type()?.is_dir() {
                        dirs.push(entry.path());
                    }
                }
            }
        }
        Ok(())
    }

    // --- blobs ---

    pub(super) fn open_blob(&self, digest: &Digest) -> io::Result<File> {
        let path = self.blob(digest);
        let file = self.gate.pass(Operation::Open, &path, || plain().read(true).open(&path))?;
        Ok(File::new(file, path, &self.gate))
    }

    pub(super) fn remove_blob(&self, digest: &Digest) -> io::Result<()> {
        ignore_missing(self.gate.remove(&self.blob(digest)))
    }

    /// Notes a use in the file's time, for a start without an index.
    pub(super) fn touch_blob(&self, digest: &Digest, now: SystemTime) -> io::Result<()> {
        self.open_blob(digest)?.set_modified(now)
    }

    /// All blobs. What is there beside them is left alone and reported.
    pub(super) fn blobs(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for algorithm in self.gate.subdirs(&self.root.join("blobs"))? {
            let name = algorithm.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for shard in self.gate.subdirs(&algorithm)? {
                for entry in self.gate.list(&shard)? {
                    let digest = format!("{name}:{}", entry.file_name().to_string_lossy()).parse();
                    match (digest, entry.metadata()) {
                        (Ok(digest), Ok(meta)) if meta.is_file() && self.blob(&digest) == entry.path() => {
                            let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                            found.push(Found { digest, size: meta.len(), taken: meta.blocks() * 512, modified });
                        }
                        (_, Err(error)) if error.kind() == ErrorKind::NotFound => {}
                        _ => tracing::warn!(path = %entry.path().display(), "not a blob; left alone"),
                    }
                }
            }
        }
        Ok(found)
    }

    // --- partial files ---

    /// The file in which the bytes of `digest` gather, with what is in it already.
    pub(super) fn open_partial(&self, digest: &Digest) -> io::Result<(File, u64)> {
        let path = self.partial(digest);
        let open = || self.gate.pass(Operation::Create, &path, || self.gate.create_within(&path));
        let file = match open() {
            // The directory was removed under our feet.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.gate.create_own_dirs(&self.root.join("partial"))?;
                open()?
            }
            other => other?,
        };
        let file = File::new(file, path, &self.gate);
        let length = file.length()?;
        Ok((file, length))
    }

    pub(super) fn remove_partial(&self, digest: &Digest) -> io::Result<()> {
        ignore_missing(self.gate.remove(&self.partial(digest)))
    }

    pub(super) fn partials(&self) -> io::Result<Vec<Found>> {
        self.named(&self.root.join("partial"))
    }

    /// The files of a directory in which they are named by algorithm and hex.
    fn named(&self, dir: &Path) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in self.gate.list(dir)? {
            let digest = entry.file_name().to_string_lossy().replacen('-', ":", 1).parse();
            match (digest, entry.metadata()) {
                (Ok(digest), Ok(meta)) if meta.is_file() => {
                    let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    found.push(Found { digest, size: meta.len(), taken: meta.blocks() * 512, modified });
                }
                _ => tracing::warn!(path = %entry.path().display(), "not ours; left alone"),
            }
        }
        Ok(found)
    }

    /// Makes a complete and synced partial file the blob of this digest.
    pub(super) fn publish(&self, partial: &Digest, digest: &Digest) -> io::Result<()> {
        let (from, to) = (self.partial(partial), self.blob(digest));
        let shard = to.parent().unwrap_or(&self.root);
        if !fs::symlink_metadata(shard).is_ok_and(|meta| meta.is_dir()) {
            self.gate.create_own_dirs(shard)?;
            for dir in shard.ancestors().skip(1).take(3) {
                self.gate.sync_dir(dir)?;
            }
        }
        match self.gate.rename(&from, &to) {
            Err(error) if error.kind() == ErrorKind::IsADirectory => {
                tracing::warn!(path = %to.display(), "a directory is where a blob belongs; it is moved to quarantine/");
                self.set_aside(digest)?;
                self.gate.rename(&from, &to)?;
            }
            renamed => renamed?,
        }
        // From here on it is the blob. Its bytes are on the disk; that its name may be gone after a power loss does no harm but to
        // who says that it will be there.
        if let Err(error) = caught(|| self.gate.sync_dir(shard)) {
            lock(&self.unsynced).insert(shard.to_owned());
            tracing::warn!(%digest, %error, "the directory of a new blob could not be synced");
        }
        Ok(())
    }

    /// Tries again to sync what could not be: then all blobs have their names for good.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        let unsynced: Vec<PathBuf> = lock(&self.unsynced).iter().cloned().collect();
        for dir in unsynced {
            self.gate.sync_dir(&dir)?;
            lock(&self.unsynced).remove(&dir);
        }
        Ok(())
    }

    // --- quarantine ---

    /// Moves what lies where a blob should be into quarantine. Returns how long it is, as [`Disk::blob_length`] does.
    pub(super) fn set_aside(&self, digest: &Digest) -> io::Result<Option<u64>> {
        let length = self.blob_length(digest)?;
        if length.is_some() {
            self.gate.create_own_dirs(&self.root.join("quarantine"))?;
            self.gate.rename(&self.blob(digest), &self.aside(digest))?;
        }
        Ok(length)
    }

    /// How long the file of a blob is, 0 for what is no file; `None` if there is nothing.
    pub(super) fn blob_length(&self, digest: &Digest) -> io::Result<Option<u64>> {
        let path = self.blob(digest);
        match self.gate.pass(Operation::Length, &path, || fs::symlink_metadata(&path)) {
            Ok(meta) => Ok(Some(if meta.is_file() { meta.len() } else { 0 })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is no file stays: it is not ours.
    pub(super) fn remove_quarantined(&self, digest: &Digest) -> io::Result<()> {
        let path = self.aside(digest);
        if path.is_dir() { Ok(()) } else { ignore_missing(self.gate.remove(&path)) }
    }

    pub(super) fn quarantined(&self) -> io::Result<Vec<Found>> {
        let dir = self.root.join("quarantine");
        if dir.is_dir() { self.named(&dir) } else { Ok(Vec::new()) }
    }

    // --- small files ---

    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.gate.read(&self.root.join(name))
    }

    /// Replaces a small file atomically.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.root.join(format!("{name}.new"));
        let open = || plain().write(true).create(true).truncate(true).open(&temporary);
        let file = self.gate.pass(Operation::Create, &temporary, open)?;
        File::new(file, temporary.clone(), &self.gate).append(bytes)?;
        self.gate.rename(&temporary, &self.root.join(name))?;
        self.gate.sync_dir(&self.root)
    }

    /// Moves a small file out of the way, in place of what was there.
    pub(super) fn move_aside(&self, name: &str) -> io::Result<()> {
        self.gate.rename(&self.root.join(name), &self.root.join(format!("{name}.damaged")))
    }

    /// Writes and removes a small file, as keeping a blob would.
    pub(super) fn probe(&self) -> io::Result<()> {
        let path = self.root.join("probe");
        let open = || plain().write(true).create(true).truncate(true).open(&path);
        let file = self.gate.pass(Operation::Create, &path, open)?;
        let written = File::new(file, path.clone(), &self.gate).append(&[0; 4096]);
        written.and(self.gate.remove(&path))
    }

    /// Opens a log for appending and cuts off what a crash left behind its last whole line.
    pub(super) fn open_log(&self, name: &str, keep: u64) -> io::Result<File> {
        let path = self.root.join(name);
        let open = || plain().append(true).create(true).open(&path);
        let file = self.gate.pass(Operation::Create, &path, open)?;
        let file = File::new(file, path, &self.gate);
        file.truncate(keep)?;
        Ok(file)
    }

    /// Bytes that are free for us and bytes in all, of the file system that holds the cache.
    pub(super) fn space(&self) -> io::Result<(u64, u64)> {
        let stat = self.gate.pass(Operation::Space, &self.root, || Ok(rustix::fs::statvfs(&self.root)?))?;
        Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs").join(digest.algorithm().name()).join(&hex[..2]).join(hex)
    }

    fn partial(&self, digest: &Digest) -> PathBuf {
        self.root.join("partial").join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }

    fn aside(&self, digest: &Digest) -> PathBuf {
        self.root.join("quarantine").join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }
}
