//! The only file that touches the file system.
//!
//! ```text
//! <dir>/layout                 the version of all that follows
//!       lock                   held by the process that owns the directory
//!       blobs/sha256/ab/<hex>  verified bytes; a manifest is a blob as well
//!       partial/sha256-<hex>   bytes on their way in
//!       records                what bytes do not tell: tags and proofs
//!       index                  sizes and order of use; may be deleted
//!       clean                  there while nothing has changed since the index was written
//! ```
#![expect(clippy::disallowed_methods, reason = "this is the file that the ban points to")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::ReadWriteFlags;

use crate::oci::Digest;

/// Raised when the layout changes in a way that an older larder would misread.
const LAYOUT: &str = "larder cache 1\n";

pub(super) struct Disk {
    root: PathBuf,
    /// Keeps the lock: the kernel releases it with the process.
    _lock: File,
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
    #[error("another larder (process {holder}) holds the cache directory {}", dir.display())]
    Held { dir: PathBuf, holder: String },
    #[error("{} holds files but no larder cache; give an empty directory as cache.dir", dir.display())]
    Foreign { dir: PathBuf },
    #[error("the cache in {} has the layout {found:?}, this larder knows {LAYOUT:?}; use the larder that wrote it, or another directory", dir.display())]
    Layout { dir: PathBuf, found: String },
}

// === impl Disk ===

impl Disk {
    /// Takes the directory, creating it where there is none.
    pub(super) fn open(root: &Path) -> Result<Opened, OpenError> {
        let unusable = |error| OpenError::Unusable { dir: root.into(), error };
        create_dirs(root).map_err(unusable)?;
        // A new file system has a folder of its own; the others are what a larder leaves that died in its first moments.
        let nothing = ["lost+found", "lock", "layout.new"];
        let empty =
            fs::read_dir(root).map_err(unusable)?.flatten().all(|entry| nothing.iter().any(|name| entry.file_name() == *name));
        match read_text(&root.join("layout")) {
            Ok(found) if found == LAYOUT => {}
            Ok(found) => return Err(OpenError::Layout { dir: root.into(), found }),
            Err(error) if error.kind() == ErrorKind::NotFound && empty => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(OpenError::Foreign { dir: root.into() }),
            Err(error) => return Err(unusable(error)),
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut lock = options.open(root.join("lock")).map_err(unusable)?;
        let mut holder = String::new();
        lock.read_to_string(&mut holder).map_err(unusable)?;
        let mut holder = holder.split_whitespace();
        let (pid, boot) = (holder.next().unwrap_or("unknown"), holder.next().unwrap_or_default());
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(OpenError::Held { dir: root.into(), holder: pid.into() });
            }
            Err(errno) => return Err(unusable(errno.into())),
        }
        let this_boot = read_text(Path::new("/proc/sys/kernel/random/boot_id")).unwrap_or_default();
        let rebooted = boot != this_boot.trim();
        let claim = format!("{} {}\n", std::process::id(), this_boot.trim());
        let claim = lock.set_len(0).and_then(|()| lock.write_all_at(claim.as_bytes(), 0));
        claim.map_err(unusable)?;

        let disk = Self { root: root.into(), _lock: lock };
        // First of all, as without it the rest is a stranger's.
        if empty {
            disk.replace("layout", LAYOUT.as_bytes()).map_err(unusable)?;
        }
        for dir in ["blobs", "partial"] {
            create_dirs(&root.join(dir)).map_err(unusable)?;
        }
        let clean = match fs::remove_file(root.join("clean")) {
            Ok(()) => {
                sync_dir(root).map_err(unusable)?;
                true
            }
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(unusable(error)),
        };
        Ok(Opened { disk, new: empty, clean, rebooted })
    }

    // --- blobs ---

    pub(super) fn open_blob(&self, digest: &Digest) -> io::Result<File> {
        File::open(self.blob(digest))
    }

    pub(super) fn remove_blob(&self, digest: &Digest) -> io::Result<()> {
        ignore_missing(fs::remove_file(self.blob(digest)))
    }

    /// Notes a use in the file's time, for a start without an index.
    pub(super) fn touch_blob(&self, digest: &Digest, now: SystemTime) -> io::Result<()> {
        self.open_blob(digest)?.set_modified(now)
    }

    /// All blobs. What is there beside them is left alone and reported.
    pub(super) fn blobs(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for algorithm in subdirs(&self.root.join("blobs"))? {
            let name = algorithm.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for shard in subdirs(&algorithm)? {
                for entry in fs::read_dir(&shard)? {
                    let entry = entry?;
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
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = match open() {
            // The directory was removed under our feet.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                create_dirs(&self.root.join("partial"))?;
                open()?
            }
            other => other?,
        };
        let length = file.metadata()?.len();
        Ok((file, length))
    }

    pub(super) fn remove_partial(&self, digest: &Digest) -> io::Result<()> {
        ignore_missing(fs::remove_file(self.partial(digest)))
    }

    pub(super) fn partials(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.join("partial"))? {
            let entry = entry?;
            let digest = entry.file_name().to_string_lossy().replacen('-', ":", 1).parse();
            match (digest, entry.metadata()) {
                (Ok(digest), Ok(meta)) if meta.is_file() => {
                    let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    found.push(Found { digest, size: meta.len(), taken: meta.blocks() * 512, modified });
                }
                _ => tracing::warn!(path = %entry.path().display(), "not a partial blob; left alone"),
            }
        }
        Ok(found)
    }

    /// Makes a complete and synced partial file the blob.
    pub(super) fn publish(&self, digest: &Digest) -> io::Result<()> {
        let (from, to) = (self.partial(digest), self.blob(digest));
        let shard = to.parent().unwrap_or(&self.root);
        if !shard.is_dir() {
            create_dirs(shard)?;
            for dir in shard.ancestors().skip(1).take(3) {
                sync_dir(dir)?;
            }
        }
        fs::rename(from, &to)?;
        // What may be gone after a power loss, and is counted by nobody, must not stay.
        sync_dir(shard).inspect_err(|_| _ = fs::remove_file(&to))
    }

    // --- small files ---

    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        read_bytes(&self.root.join(name))
    }

    /// Replaces a small file atomically.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.root.join(format!("{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.root.join(name))?;
        sync_dir(&self.root)
    }

    /// Opens a log for appending and cuts off what a crash left behind its last whole line.
    pub(super) fn open_log(&self, name: &str, keep: u64) -> io::Result<File> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(self.root.join(name))?;
        file.set_len(keep)?;
        Ok(file)
    }

    /// Bytes that are free for us and bytes in all, of the file system that holds the cache.
    pub(super) fn space(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs").join(digest.algorithm().name()).join(&hex[..2]).join(hex)
    }

    fn partial(&self, digest: &Digest) -> PathBuf {
        self.root.join("partial").join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }
}

// === files by handle ===

/// Sets space aside without changing the file's length, so that the length always says what was written.
pub(super) fn allocate(file: &File, size: u64) -> io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, size) {
        // A file system that cannot promise space is used without the promise.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

pub(super) fn length(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.size())
}

/// After an error the file is not to be trusted: what could not be written may have been dropped and marked clean.
pub(super) fn sync(file: &File) -> io::Result<()> {
    file.sync_all()
}

pub(super) fn truncate(file: &File, length: u64) -> io::Result<()> {
    file.set_len(length)
}

/// Writes all of `chunks` from `offset` on.
pub(super) fn write_at(file: &File, mut offset: u64, chunks: &[Bytes]) -> io::Result<()> {
    /// `IOV_MAX`
    const AT_ONCE: usize = 1024;
    for chunks in chunks.chunks(AT_ONCE) {
        let mut slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
        let mut rest = slices.as_mut_slice();
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match rustix::io::pwritev(file, rest, offset) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    offset += n as u64;
                    IoSlice::advance_slices(&mut rest, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

pub(super) fn append(mut log: &File, bytes: &[u8]) -> io::Result<()> {
    log.write_all(bytes)?;
    log.sync_data()
}

/// Reads what is in the page cache, at most `buffer`; `None` if the disk would have to be waited for.
pub(super) fn read_cached(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
        Ok(n) => Ok(Some(n)),
        // Not supported by every file system: then the pool reads.
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

pub(super) fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    file.read_at(buffer, offset)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_text(path: &Path) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read_bytes(path)?).into_owned())
}

/// Only the owner may look: what is cached may be private.
fn create_dirs(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = fs::metadata(dir)?;
    // A directory that all may write to could be filled by anyone with what we would serve.
    if meta.permissions().mode() & 0o002 != 0 {
        return Err(io::Error::new(ErrorKind::PermissionDenied, format!("{} is writable by everyone", dir.display())));
    }
    Ok(())
}

fn subdirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut dirs = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            dirs.push(entry.path());
        }
    }
    Ok(dirs)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
