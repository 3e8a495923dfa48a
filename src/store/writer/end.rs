//! How a blob's way in ends: committed, passed on without being kept, found wrong, or left for another time.

use std::io;
use std::sync::Arc;

use crate::oci::Digest;
use crate::sync::timeout;

use super::super::growing::End;
use super::super::lock;
use super::super::pool::{Broken, Pool};
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
    /// What the bytes hash to that were accepted so far.
    ///
    /// Cancel safe.
    pub async fn digest_so_far(&mut self) -> Digest {
        self.settle().await;
        self.hasher.clone().finish()
    }

    /// Says what the digest is, which was not known when this began. False while another brings the blob that has it.
    pub fn call(&mut self, digest: &Digest) -> bool {
        let claim = lock(&self.store.books).claim(&self.store.books, digest, digest);
        let is_ours = claim.is_some();
        if is_ours {
            (self.digest, self.claim) = (digest.clone(), claim);
        }
        is_ours
    }

    /// Moves on all that was accepted.
    async fn settle(&mut self) {
        while self.is_busy() {
            if matches!(self.target, Target::Memory(_)) && self.jobs.is_empty() {
                // The last of it need not wait for readers.
                self.batch_to_memory();
            } else {
                self.progress().await;
            }
        }
    }

    /// All bytes were pushed: verifies them, lets the readers have the tail, and commits.
    pub async fn finish(mut self) -> Finished {
        self.settle().await;
        let right_size = !self.too_long && self.size.is_none_or(|size| size == self.accepted);
        if !right_size || self.hasher.clone().finish() != self.digest {
            self.discard().await;
            return Finished::Mismatch;
        }
        self.growing.set_size(self.accepted);
        self.growing.finish(End::Verified);
        match &self.target {
            Target::Memory(why) => Finished::Passed(why.clone()),
            Target::File(partial) => {
                let (partial, size, digest, claim) = (Arc::clone(partial), self.accepted, self.digest.clone(), self.claim.take());
                // For this nobody waits who could be helped: all bytes have been given out.
                let commit = self.store.writes.run(move || {
                    let _claim = claim;
                    partial.commit(&digest, size)
                });
                match commit.await.map_err(io::Error::from).flatten() {
                    Ok(()) => Finished::Kept,
                    Err(error) => {
                        let why = self.store.disk_failed("commit", &error);
                        self.store.metrics.bypassed(why.word());
                        Finished::Passed(why)
                    }
                }
            }
        }
    }

    /// Stops, and leaves what is on the disk for the next writer, of this process or a later one. It need not outlive the machine.
    pub async fn suspend(mut self) {
        // What has come is worth keeping, and those who read may have it.
        while self.is_busy() && matches!(self.target, Target::File(_)) {
            self.progress().await;
        }
        self.growing.finish(End::Failed);
        let Target::File(partial) = &self.target else { return };
        let partial = Arc::clone(partial);
        let left = self.store.writes.run(move || partial.leave());
        patiently(&self.store.writes.clone(), left).await;
    }

    /// Stops, and keeps nothing.
    pub async fn discard(mut self) {
        self.growing.finish(End::Failed);
        if let Some(removed) = self.give_up_file(Bypass::WrongBytes) {
            patiently(&self.store.writes.clone(), removed).await;
        }
    }

    /// Goes on in memory. The file is removed, for which nobody waits.
    pub(super) fn bypass(&mut self, why: Bypass) {
        drop(self.give_up_file(why));
    }

    /// Likewise, for who may wait until it is removed. Who reads what is in it keeps it open.
    fn give_up_file(&mut self, why: Bypass) -> Option<impl Future<Output = Result<(), Broken>> + use<>> {
        let Target::File(partial) = &self.target else { return None };
        let partial = Arc::clone(partial);
        self.go_on_in_memory(why);
        Some(self.store.writes.run(move || partial.remove()))
    }
}

/// Waits for what puts things in order, but not for a disk that hangs.
async fn patiently(pool: &Pool, job: impl Future<Output = Result<(), Broken>>) {
    let _ = timeout(pool.patience(), job).await;
}

impl Drop for BlobWriter {
    /// The fill was cancelled or panicked: readers are told. The file is left for the next writer as soon as no job writes to it
    /// any more.
    fn drop(&mut self) {
        self.growing.finish(End::Failed);
    }
}
