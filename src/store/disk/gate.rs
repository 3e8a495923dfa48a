//! Every operation on the cache directory passes here: it is counted when it fails, and in builds with debug assertions tests
//! make it fail.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::metrics::Metrics;

#[cfg(debug_assertions)]
use super::faults::Faults;

pub(super) struct Gate {
    /// All of it is below here.
    pub(super) root: PathBuf,
    metrics: Metrics,
    #[cfg(debug_assertions)]
    faults: Faults,
}

/// What is done to a file or a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(not(debug_assertions), expect(unreachable_pub, reason = "tests name it"))]
pub enum Operation {
    Open,
    /// Opens a file and makes it if there is none.
    Create,
    Read,
    /// Reads what is in memory already, without waiting for the disk.
    ReadCached,
    Write,
    Allocate,
    Truncate,
    Sync,
    Length,
    Touch,
    Rename,
    Remove,
    MakeDir,
    SyncDir,
    List,
    Space,
}

// === impl Gate ===

impl Gate {
    #[cfg(debug_assertions)]
    pub(super) fn new(root: &Path, metrics: Metrics, faults: Faults) -> Self {
        Self { root: root.into(), metrics, faults }
    }

    #[cfg(not(debug_assertions))]
    pub(super) fn new(root: &Path, metrics: Metrics) -> Self {
        Self { root: root.into(), metrics }
    }

    /// Does `work`, which is `operation` on `path`.
    pub(super) fn pass<T>(&self, operation: Operation, path: &Path, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.pass_some(operation, path, |_| work())
    }

    /// Likewise with work that may do less than all: `most` is then how many bytes.
    pub(super) fn pass_some<T>(
        &self,
        operation: Operation,
        path: &Path,
        work: impl FnOnce(Option<usize>) -> io::Result<T>,
    ) -> io::Result<T> {
        #[cfg(debug_assertions)]
        let done = self.faults.around(operation, path, work);
        #[cfg(not(debug_assertions))]
        let done = {
            let _ = path;
            work(None)
        };
        if let Err(error) = &done
            && !operation.is_answered_by(error.kind())
        {
            self.metrics.disk_failed(operation.word(), &format!("{:?}", error.kind()));
        }
        done
    }

    /// Does a rename, of which a power loss may leave nothing.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        #[cfg(debug_assertions)]
        self.faults.will_rename(from, to);
        self.pass(Operation::Rename, to, || self.rename_within(from, to))
    }
}

// === impl Operation ===

impl Operation {
    /// That something is not there, or cannot be had just now, is an answer. So is that a file system does not know how to read
    /// without waiting, which it says at every read.
    fn is_answered_by(self, error: ErrorKind) -> bool {
        use ErrorKind::{AlreadyExists, Interrupted, NotFound, Unsupported, WouldBlock};
        matches!(error, NotFound | AlreadyExists | WouldBlock | Interrupted) || self == Self::ReadCached && error == Unsupported
    }

    /// For metrics.
    fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Create => "create",
            Self::Read | Self::ReadCached => "read",
            Self::Write => "write",
            Self::Allocate => "allocate",
            Self::Truncate => "truncate",
            Self::Sync => "sync",
            Self::Length => "length",
            Self::Touch => "touch",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::MakeDir => "make_dir",
            Self::SyncDir => "sync_dir",
            Self::List => "list",
            Self::Space => "space",
        }
    }
}
