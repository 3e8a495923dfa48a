//! What is changed below the root: by the descriptors of its directories, so that it happens nowhere else, although a directory
//! has become a symbolic link while larder runs.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::gate::Gate;
use super::paths::link;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

// === impl Gate ===

impl Gate {
    /// Opens a file to read and write it, and makes it if there is none.
    pub(super) fn create_within(&self, path: &Path) -> io::Result<File> {
        let (dir, name) = self.parent(path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    pub(super) fn rename_within(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_dir, from), (to_dir, to)) = (self.parent(from)?, self.parent(to)?);
        Ok(rustix::fs::renameat(from_dir, from, to_dir, to)?)
    }

    pub(super) fn remove_within(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    /// Makes a directory, those above it too, of which none may be left.
    pub(super) fn make_within(&self, dir: &Path) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root)?;
        let make = |above: &OwnedFd, name: &OsStr| match rustix::fs::mkdirat(above, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        };
        self.descend(dir, make).map(File::from)
    }

    /// The directory that `path` is in, and its name there.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Err(ErrorKind::InvalidInput.into()) };
        Ok((self.descend(dir, |_, _| Ok(()))?, name))
    }

    /// Goes down from the root to `dir`, and on the way through no symbolic link. `first` is done before each step.
    fn descend(&self, dir: &Path, first: impl Fn(&OwnedFd, &OsStr) -> io::Result<()>) -> io::Result<OwnedFd> {
        // The root itself is where the operator says, and that may be a link.
        let mut here = rustix::fs::open(&self.root, DIRECTORY, Mode::empty())?;
        let mut path = self.root.clone();
        for step in dir.strip_prefix(&self.root).map_err(io::Error::other)? {
            path.push(step);
            first(&here, step)?;
            here = rustix::fs::openat(&here, step, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(|errno| {
                let is_link = rustix::fs::readlinkat(&here, step, Vec::new()).is_ok();
                if is_link { link(&path) } else { errno.into() }
            })?;
        }
        Ok(here)
    }
}
