//! One open file of the cache.

use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write as _};
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use rustix::fs::{Advice, FallocateFlags};
use rustix::io::ReadWriteFlags;

use super::gate::{Gate, Operation};
use super::residence;

pub(in crate::store) struct File {
    inner: fs::File,
    /// Where it was opened; it may have been renamed since.
    path: PathBuf,
    gate: Arc<Gate>,
}

// === impl File ===

impl File {
    pub(super) fn new(inner: fs::File, path: PathBuf, gate: &Arc<Gate>) -> Self {
        Self { inner, path, gate: Arc::clone(gate) }
    }

    pub(in crate::store) fn length(&self) -> io::Result<u64> {
        self.gate.pass(Operation::Length, &self.path, || Ok(self.inner.metadata()?.len()))
    }

    /// Sets space aside without changing the file's length, so that the length always says what was written.
    pub(in crate::store) fn allocate(&self, size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        self.gate.pass(Operation::Allocate, &self.path, || {
            match rustix::fs::fallocate(&self.inner, FallocateFlags::KEEP_SIZE, 0, size) {
                // A file system that cannot promise space is used without the promise.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
                Err(errno) => Err(errno.into()),
            }
        })
    }

    pub(in crate::store) fn truncate(&self, length: u64) -> io::Result<()> {
        self.gate.pass(Operation::Truncate, &self.path, || self.inner.set_len(length))
    }

    /// After an error the file is not to be trusted: what could not be written may have been dropped and marked clean.
    pub(in crate::store) fn sync(&self) -> io::Result<()> {
        self.gate.pass(Operation::Sync, &self.path, || self.inner.sync_all())
    }

    pub(super) fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        self.gate.pass(Operation::Touch, &self.path, || self.inner.set_modified(time))
    }

    /// Writes all of `chunks` from `offset` on.
    pub(in crate::store) fn write_at(&self, mut offset: u64, chunks: &[Bytes]) -> io::Result<()> {
        /// `IOV_MAX`
        const AT_ONCE: usize = 1024;
        for chunks in chunks.chunks(AT_ONCE) {
            let mut slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
            let mut rest = slices.as_mut_slice();
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                let written = self.gate.pass_some(Operation::Write, &self.path, |most| {
                    let written = match most {
                        Some(most) => rustix::io::pwrite(&self.inner, &rest[0][..most.clamp(1, rest[0].len())], offset),
                        None => rustix::io::pwritev(&self.inner, rest, offset),
                    };
                    Ok(written?)
                });
                match written {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(n) => {
                        offset += n as u64;
                        IoSlice::advance_slices(&mut rest, n);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Adds to the end, and makes sure that it is on the disk.
    pub(in crate::store) fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.gate.pass(Operation::Write, &self.path, || (&self.inner).write_all(bytes))?;
        self.gate.pass(Operation::Sync, &self.path, || self.inner.sync_data())
    }

    /// Reads what is in the page cache, at most `buffer`; `None` if the disk would have to be waited for.
    pub(in crate::store) fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let read = self.gate.pass(Operation::ReadCached, &self.path, || {
            Ok(rustix::io::preadv2(&self.inner, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT)?)
        });
        match read {
            Ok(n) => Ok(Some(n)),
            // Not every file system knows how; then a thread reads, as it does where the disk would have to be waited for.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Unsupported) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether all of these bytes are in memory. `length`: at least one.
    pub(in crate::store) fn is_cached(&self, offset: u64, length: usize) -> io::Result<bool> {
        /// What one page tells of its neighbours, where the kernel does not tell of all.
        const STRETCH: usize = 32 << 10;
        let is_there = |ahead: usize| io::Result::Ok(self.read_cached(offset + ahead as u64, &mut [0])? == Some(1));
        // What is on its way from the disk has its pages already. The last is filled last.
        if !is_there(length - 1)? {
            return Ok(false);
        }
        match residence::has_pages(&self.inner, offset, length) {
            Some(has) => Ok(has),
            None => (0..length).step_by(STRETCH).try_fold(true, |all, ahead| Ok(all && is_there(ahead)?)),
        }
    }

    /// Has the kernel write into a socket, as much as that takes without waiting. Where the bytes are not in memory it waits
    /// for the disk.
    pub(in crate::store) fn send(&self, socket: BorrowedFd<'_>, mut offset: u64, limit: usize) -> io::Result<usize> {
        Ok(rustix::fs::sendfile(socket, &self.inner, Some(&mut offset), limit)?)
    }

    /// Lets go of what was read here, if it is in memory. Only a hint.
    pub(in crate::store) fn forget(&self, offset: u64, length: u64) {
        let _ = rustix::fs::fadvise(&self.inner, offset, NonZeroU64::new(length), Advice::DontNeed);
    }

    pub(in crate::store) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.gate.pass_some(Operation::Read, &self.path, |most| {
                let most = most.map_or(buffer.len(), |most| most.clamp(1, buffer.len().max(1)));
                let end = most.min(buffer.len());
                self.inner.read_at(&mut buffer[..end], offset)
            });
            match read {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}
