//! A partial file in the hands of its writer.

use std::io;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use crate::oci::{Digest, Hasher};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::books::{Claim, Partial};
use super::super::disk::File;
use super::super::handle::Handle;
use super::super::lru::charge;
use super::super::pool::caught;
use super::super::room::Reservation;
use super::super::{Shared, lock};

/// A partial file that nobody else writes to, with the space that is set aside for it. Whoever works on it holds it: the writer,
/// and each job, also one that hangs. Dropped by the last of them, it is left for the next writer.
///
/// What is done to it is work for the disk; all of it is for the threads of the pool.
pub(super) struct PartialFile {
    store: Arc<Shared>,
    /// A digest, but not always that of the blob.
    name: Digest,
    handle: Arc<Handle>,
    /// So many of its bytes are in it, the first of which may be gone on with.
    length: AtomicU64,
    reservation: Mutex<Reservation>,
    /// It has become the blob, is removed, or is in the books as it is.
    settled: AtomicBool,
    /// Given back last of all.
    _claim: Claim,
}

// === impl PartialFile ===

impl PartialFile {
    /// Opens the partial file, and tells how much an earlier writer left in it.
    pub(super) fn open(
        store: &Arc<Shared>,
        name: &Digest,
        reservation: Reservation,
        claim: Claim,
    ) -> io::Result<(Arc<Self>, u64)> {
        let (file, length) = match caught(|| store.disk.open_partial(name)) {
            Ok(opened) => opened,
            Err(error) => {
                abandon(store, name, reservation);
                return Err(error);
            }
        };
        let partial = Self {
            store: Arc::clone(store),
            name: name.clone(),
            handle: store.handle(file),
            length: AtomicU64::new(length),
            reservation: Mutex::new(reservation),
            settled: AtomicBool::new(false),
            _claim: claim,
        };
        Ok((Arc::new(partial), length))
    }

    /// Hashes on what is in it from `at` on, to before `end` at most; and tells how far it could be read.
    pub(super) fn hash(&self, hasher: &mut Hasher, mut at: u64, end: u64) -> io::Result<u64> {
        let mut buffer = vec![0; 1 << 20];
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(buffer.len()).min(buffer.len());
            match self.file().read_at(at, &mut buffer[..most])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => {
                    hasher.update(&buffer[..n]);
                    at += n as u64;
                }
            }
        }
        Ok(at)
    }

    /// Adds bytes where those that are in it end.
    pub(super) fn write_at(&self, at: u64, chunks: &[Bytes]) -> io::Result<()> {
        self.file().write_at(at, chunks)?;
        let length = at + chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        self.length.store(length, Ordering::Relaxed);
        Ok(())
    }

    /// Cuts off what is behind its first `length` bytes.
    pub(super) fn truncate(&self, length: u64) -> io::Result<()> {
        self.file().truncate(length)?;
        self.length.store(length, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    pub(super) fn file(&self) -> &File {
        self.handle.file()
    }

    /// How many bytes are set aside for it.
    pub(super) fn reserved(&self) -> u64 {
        lock(&self.reservation).bytes()
    }

    pub(super) fn add(&self, more: Reservation) {
        lock(&self.reservation).add(more);
    }

    /// Makes it the blob of this digest, of `size` verified bytes. If that fails it is removed.
    pub(super) fn commit(&self, digest: &Digest, size: u64) -> io::Result<()> {
        let committed = caught(|| {
            self.file().sync()?;
            let length = self.file().length()?;
            if length != size {
                return Err(io::Error::other(format!("{length} of {size} bytes are in the file")));
            }
            // From the rename to the entry in the books, nothing may remove the file.
            let gate = lock(&self.store.gate);
            self.store.disk.publish(&self.name, digest).map(|()| gate)
        });
        match committed {
            Ok(gate) => {
                let reserved = self.settle();
                let mut books = lock(&self.store.books);
                books.commit(digest, size, reserved, self.store.clock.now());
                let closed = books.remember(digest, &self.handle);
                drop(books);
                drop(gate);
                drop(closed);
                self.store.health.well();
                Ok(())
            }
            Err(error) => {
                self.remove();
                Err(error)
            }
        }
    }

    /// Leaves what is in it for the next writer.
    pub(super) fn leave(&self) {
        let length = self.length.load(Ordering::Relaxed);
        // Also gives back what was allocated beyond the end.
        let left = caught(|| self.truncate(length));
        if length == 0 || left.is_err() {
            self.remove();
        } else {
            self.enter(charge(length), length);
        }
    }

    /// Removes it. What it takes counts until its last reader has closed it; or, if it cannot be removed, until it can.
    pub(super) fn remove(&self) {
        match caught(|| self.store.disk.remove_partial(&self.name)) {
            Ok(()) => {
                let charge = self.settle();
                let mut books = lock(&self.store.books);
                books.release(charge);
                self.handle.unlinked(&mut books, charge);
            }
            Err(error) => {
                tracing::warn!(partial = %self.name, %error, "a partial file could not be removed");
                // Nobody is to go on with it.
                self.enter(self.reserved(), 0);
            }
        }
    }

    /// Puts it into the books as a file that nobody fills, and of which `length` bytes may be gone on with.
    fn enter(&self, charge: u64, length: u64) {
        let reserved = self.settle();
        let partial = Partial { charge, length, since: self.store.clock.now(), open: Arc::downgrade(&self.handle) };
        let mut books = lock(&self.store.books);
        books.release(reserved);
        books.add_partial(self.name.clone(), partial);
    }

    /// Returns how many bytes were reserved, which the caller now accounts for.
    fn settle(&self) -> u64 {
        self.settled.store(true, Ordering::Relaxed);
        lock(&self.reservation).forget()
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.settled.load(Ordering::Relaxed) {
            self.enter(self.reserved(), self.length.load(Ordering::Relaxed));
        }
    }
}

/// Removes what could not be opened, of which there may be nothing.
fn abandon(store: &Shared, name: &Digest, mut reservation: Reservation) {
    if let Err(error) = caught(|| store.disk.remove_partial(name)) {
        tracing::warn!(partial = %name, %error, "a partial file could not be removed");
        let charge = reservation.forget();
        let mut books = lock(&store.books);
        books.release(charge);
        books.add_partial(name.clone(), Partial { charge, length: 0, since: store.clock.now(), open: Weak::new() });
    }
}
