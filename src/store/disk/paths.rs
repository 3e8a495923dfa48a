//! What is done to paths of the cache directory: who holds it, what is in it, and how files of it are opened.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};

use super::gate::{Gate, Operation};
use super::{OpenError, PASSING};

/// The lock on a directory.
pub(super) struct Claimed {
    pub(super) lock: fs::File,
    pub(super) rebooted: bool,
}

// === impl Gate ===

impl Gate {
    pub(super) fn claim(&self, root: &Path, passing: bool) -> Result<Claimed, OpenError> {
        let unusable = |error| OpenError::Unusable { dir: root.into(), error };
        let path = root.join("lock");
        let open = || plain().read(true).write(true).create(true).truncate(false).open(&path);
        let mut lock = self.pass(Operation::Create, &path, open).map_err(unusable)?;
        let mut holder = String::new();
        self.pass(Operation::Read, &path, || lock.read_to_string(&mut holder)).map_err(unusable)?;
        let mut holder = holder.lines().next().unwrap_or_default().split_whitespace();
        let (pid, boot) = (holder.next().unwrap_or("unknown"), holder.next().unwrap_or_default());
        let held_in_passing = holder.next() == Some(PASSING);
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(OpenError::Held { dir: root.into(), holder: pid.into(), passing: held_in_passing });
            }
            Err(errno) => return Err(unusable(errno.into())),
        }
        let this_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let passing = if passing { PASSING } else { "" };
        let claim = format!("{} {} {passing}\n", std::process::id(), this_boot.trim());
        // In this order: who looks meanwhile sees one line or the other.
        let write = || lock.write_all_at(claim.as_bytes(), 0).and_then(|()| lock.set_len(claim.len() as u64));
        self.pass(Operation::Write, &path, write).map_err(unusable)?;
        Ok(Claimed { rebooted: boot != this_boot.trim(), lock })
    }

    /// Whether there is nothing but what belongs to a new file system, or what a larder leaves that died in its first moments.
    pub(super) fn is_empty(&self, root: &Path) -> io::Result<bool> {
        let nothing = ["lost+found", "lock", "layout.new"];
        Ok(self.list(root)?.iter().all(|entry| nothing.iter().any(|name| entry.file_name() == *name)))
    }

    pub(super) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = self.pass(Operation::Open, path, || plain().read(true).open(path))?;
        self.pass(Operation::Read, path, || file.read_to_end(&mut bytes))?;
        Ok(bytes)
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.pass(Operation::Remove, path, || self.remove_within(path))
    }

    pub(super) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.pass(Operation::SyncDir, dir, || fs::File::open(dir)?.sync_all())
    }

    /// Only the owner may look: what is cached may be private.
    pub(super) fn create_dirs(&self, dir: &Path) -> io::Result<()> {
        self.pass(Operation::MakeDir, dir, || fs::DirBuilder::new().recursive(true).mode(0o700).create(dir))
    }

    /// Likewise below the root, where nothing leads elsewhere.
    pub(super) fn create_own_dirs(&self, dir: &Path) -> io::Result<()> {
        let made = self.pass(Operation::MakeDir, dir, || self.make_within(dir))?;
        check_owner(dir, &made.metadata()?)
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<fs::DirEntry>> {
        self.pass(Operation::List, dir, || fs::read_dir(dir)?.collect())
    }

    pub(super) fn subdirs(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut dirs = Vec::new();
        for entry in self.list(dir)? {
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            }
        }
        Ok(dirs)
    }
}

/// A directory to which others may write could be filled by them with what we would serve. Root is nobody else.
pub(super) fn check_owner(dir: &Path, meta: &fs::Metadata) -> io::Result<()> {
    let (owner, we) = (meta.uid(), rustix::process::geteuid().as_raw());
    let why = if meta.mode() & 0o002 != 0 {
        "is writable by everyone".to_owned()
    } else if owner != we && owner != 0 {
        format!("belongs to user {owner}, and larder runs as user {we}")
    } else {
        return Ok(());
    };
    Err(io::Error::new(ErrorKind::PermissionDenied, format!("{} {why}", dir.display())))
}

pub(super) fn link(path: &Path) -> io::Error {
    io::Error::new(ErrorKind::NotADirectory, format!("{} is a symbolic link, and larder follows none there", path.display()))
}

/// How files are opened, so that only the owner may read them, and never what a symbolic link leads to.
pub(super) fn plain() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

pub(super) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
