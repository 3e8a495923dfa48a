//! How a blob's way in ends: committed, passed on without being kept, found wrong, or left for another time.

use std::io;
use std::sync::Arc;

use crate::sync::try_start_task;

use super::super::books::Partial;
use super::super::growing::End;
use super::super::handle::Handle;
use super::super::lru::charge;
use super::super::pool::Broken;
use super::super::{Shared, disk_failed, lock};
use super::{BlobWriter, Bypass, Target};

/// How a blob ended whose bytes were all accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// In the cache.
    Kept,
    /// Verified and given to all who followed, but not kept.
    Passed(Bypass),
    /// Not the bytes that the digest promises. Nothing is kept.
    Mismatch,
}

impl Finished {
    /// In a word, for metrics.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Passed(_) => "passed",
            Self::Mismatch => "mismatch",
        }
    }
}

impl BlobWriter {
    /// All bytes were pushed: verifies them, lets the readers have the tail, and commits.
    pub async fn finish(mut self) -> Finished {
        while self.is_busy() {
            if matches!(self.target, Target::Memory(_)) && self.job.is_none() {
                // The last of it need not wait for readers.
                self.batch_to_memory();
            } else {
                self.progress().await;
            }
        }
        let right_size = !self.too_long && self.size.is_none_or(|size| size == self.accepted);
        let right_hash = self.hasher.take().is_some_and(|hasher| hasher.finish() == self.digest);
        if !(right_size && right_hash) {
            self.discard().await;
            return Finished::Mismatch;
        }
        self.growing.set_size(self.accepted);
        self.growing.finish(End::Verified);
        match &self.target {
            Target::Memory(why) => Finished::Passed(why.clone()),
            Target::File(handle) => {
                let handle = Arc::clone(handle);
                match self.commit(handle).await {
                    Ok(()) => Finished::Kept,
                    Err(error) => {
                        let why = disk_failed("commit", &error);
                        if let Some(removed) = self.bypass(why.clone()) {
                            let _ = removed.await;
                        }
                        Finished::Passed(why)
                    }
                }
            }
        }
    }

    async fn commit(&mut self, handle: Arc<Handle>) -> io::Result<()> {
        let (store, digest, size) = (Arc::clone(&self.store), self.digest.clone(), self.accepted);
        let mut reservation = self.reservation.take();
        let commit = self.store.pool.run(move || {
            // From the rename to the entry in the books, nothing may remove the file.
            let committed = Shared::settle(&handle.file, size).and_then(|()| {
                let gate = lock(&store.gate);
                store.disk.publish(&digest).map(|()| gate)
            });
            match committed {
                Ok(gate) => {
                    let mut books = lock(&store.books);
                    books.commit(&digest, size, reservation.forget(), store.clock.now());
                    books.end_writing(&digest);
                    let closed = books.remember(&digest, &handle);
                    drop(books);
                    drop(gate);
                    drop(closed);
                    Ok(())
                }
                Err(error) => Err((error, reservation)),
            }
        });
        match commit.await {
            Ok(Ok(())) => {
                // From here on the blob is the cache's; nothing of it is ours to undo.
                self.target = Target::Memory(Bypass::Busy);
                Ok(())
            }
            Ok(Err((error, reservation))) => {
                self.reservation = reservation;
                Err(error)
            }
            Err(broken) => Err(broken.into()),
        }
    }

    /// Stops, and leaves what is on the disk for the next writer. `durable`: so that it outlives the machine as well.
    pub async fn suspend(mut self, durable: bool) {
        // What has come is worth keeping, and those who read may have it.
        while self.is_busy() && matches!(self.target, Target::File(_)) {
            self.progress().await;
        }
        self.growing.finish(End::Failed);
        let Target::File(handle) = &self.target else { return };
        let (handle, store, digest) = (Arc::clone(handle), Arc::clone(&self.store), self.digest.clone());
        let length = self.accepted - self.batch_bytes as u64;
        let mut reservation = self.reservation.take();
        self.target = Target::Memory(Bypass::Busy);
        let suspend = self.store.pool.run(move || {
            // Also gives back what was allocated beyond the end.
            let mut kept = handle.file.truncate(length);
            if durable {
                kept = kept.and_then(|()| handle.file.sync());
            }
            if length == 0 || kept.is_err() {
                kept = store.disk.remove_partial(&digest);
            }
            let mut books = lock(&store.books);
            let reserved = reservation.forget();
            books.release(reserved);
            let charge = if kept.is_err() { reserved } else { charge(length) };
            if charge > 0 {
                books.add_partial(digest.clone(), Partial { charge, since: store.clock.now() });
            }
            books.end_writing(&digest);
        });
        let _ = suspend.await;
    }

    /// Stops, and keeps nothing.
    pub async fn discard(mut self) {
        self.growing.finish(End::Failed);
        if let Some(removed) = self.bypass(Bypass::WrongBytes) {
            let _ = removed.await;
        }
    }

    /// Goes on in memory. The file is removed, for which the caller may wait; who reads what is in it keeps it open.
    pub(super) fn bypass(&mut self, why: Bypass) -> Option<impl Future<Output = Result<(), Broken>> + use<>> {
        let Target::File(handle) = std::mem::replace(&mut self.target, Target::Memory(why)) else { return None };
        self.growing.go_on_in_memory();
        let reserved = self.reservation.forget();
        let mut books = lock(&self.store.books);
        books.release(reserved);
        handle.unlinked(&mut books, reserved);
        drop(books);
        let (store, digest) = (Arc::clone(&self.store), self.digest.clone());
        Some(self.store.pool.run(move || {
            if let Err(error) = store.disk.remove_partial(&digest) {
                tracing::warn!(%digest, %error, "a partial file could not be removed");
            }
            lock(&store.books).end_writing(&digest);
        }))
    }
}

impl Drop for BlobWriter {
    /// The fill was cancelled or panicked: readers are told, and the file is left for the next writer as soon as no job
    /// writes to it any more.
    fn drop(&mut self) {
        self.growing.finish(End::Failed);
        if !matches!(self.target, Target::File(_)) {
            return;
        }
        let (store, digest, job) = (Arc::clone(&self.store), self.digest.clone(), self.job.take());
        let mut reservation = self.reservation.take();
        let mut leave = move || {
            let mut books = lock(&store.books);
            let charge = reservation.forget();
            books.release(charge);
            books.add_partial(digest.clone(), Partial { charge, since: store.clock.now() });
            books.end_writing(&digest);
        };
        match job {
            None => leave(),
            Some(job) => {
                // Without a runtime the process is ending; what is on the disk is counted when it starts again.
                try_start_task(async move {
                    let _ = job.await;
                    leave();
                });
            }
        }
    }
}
