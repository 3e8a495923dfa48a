//! What the operator looks at and decides about what is in the cache: what is known of it, what is pinned, what goes.

use std::collections::HashSet;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::oci::{Digest, Reference, Repository, Tag};

use super::pool::caught;
use super::records::Pin;
use super::{Entry, Kind, Known, Shared, Store, lock};

/// What the cache takes of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    /// What it may take.
    pub budget: u64,
    pub used: u64,
    /// Of it, blobs that are pinned, or that an order needs just now,
    pub pinned: u64,
    /// blobs that may be,
    pub evictable: u64,
    /// what is on its way in,
    pub partial: u64,
    /// what was found damaged,
    pub quarantined: u64,
    /// and what was removed, or is about to be, and is not off the disk yet.
    pub leaving: u64,
}

/// What a manifest takes of the cache, with all here that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Each blob once.
    pub bytes: u64,
    pub used: Timestamp,
    pub pinned: bool,
}

/// A blob that eviction would take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaving {
    pub digest: Digest,
    /// What it takes of the disk, in bytes.
    pub charge: u64,
    pub used: Timestamp,
}

// === impl Store ===

impl Store {
    /// What is known of a blob of the cache, without using it.
    #[must_use]
    pub fn entry(&self, digest: &Digest) -> Option<Entry> {
        lock(&self.0.books).lru.entry(digest)
    }

    /// What an image takes, without using it.
    #[must_use]
    pub fn extent(&self, manifest: &Digest) -> Option<Extent> {
        lock(&self.0.books).lru.extent(manifest)
    }

    /// Whether a manifest of the cache names a digest.
    #[must_use]
    pub fn is_named(&self, digest: &Digest) -> bool {
        lock(&self.0.books).lru.is_named(digest)
    }

    /// The manifests of the cache that name a digest, which need not be in it.
    #[must_use]
    pub fn named_by(&self, digest: &Digest) -> Vec<Digest> {
        lock(&self.0.books).lru.named_by(digest)
    }

    /// Of the manifests of the cache that name a digest, which need not be in it, the one that was used last, and when.
    #[must_use]
    pub fn last_used_that_names(&self, digest: &Digest) -> Option<(Digest, Timestamp)> {
        lock(&self.0.books).lru.last_used_that_names(digest)
    }

    /// The repositories that have proven to hold a digest, and as what.
    #[must_use]
    pub fn held_by(&self, digest: &Digest) -> Vec<(Repository, Kind)> {
        self.0.records.held_by(digest)
    }

    /// The digests that are here, or named by what is here, or have a tag, a proof or a pin, unlike when this was last asked. `None`:
    /// they are too many, or it was never asked. There is one to ask.
    #[must_use]
    pub fn changed(&self) -> Option<HashSet<Digest>> {
        let (recorded, come) = (self.0.records.changed(), lock(&self.0.books).lru.changed.take());
        let mut all = recorded?;
        all.extend(come?);
        Some(all)
    }

    /// The repositories that have proven to hold a digest as a manifest, each with the tags that mean it there.
    #[must_use]
    pub fn named(&self, digest: &Digest) -> Vec<(Repository, Vec<Tag>)> {
        self.0.records.named(digest)
    }

    /// When a blob of the cache was used last, without using it.
    #[must_use]
    pub fn used(&self, digest: &Digest) -> Option<Timestamp> {
        lock(&self.0.books).lru.used(digest)
    }

    /// Tells of all tags and proofs. To be called where one may wait.
    pub fn each_known(&self, tell: impl FnMut(Known)) {
        self.0.records.each(tell);
    }

    #[must_use]
    pub fn account(&self) -> Account {
        let books = lock(&self.0.books);
        let gauges = books.gauges();
        Account {
            budget: gauges.budget,
            used: books.used(),
            pinned: gauges.pinned,
            evictable: books.lru.evictable(),
            partial: gauges.partial + gauges.reserved,
            quarantined: gauges.quarantined,
            leaving: gauges.leaving,
        }
    }

    /// What was found damaged and is kept aside, the oldest first.
    #[must_use]
    pub fn in_quarantine(&self) -> Vec<Digest> {
        lock(&self.0.books).quarantine.iter().map(|kept| kept.digest.clone()).collect()
    }

    /// What eviction would take first, in its order; none where nothing is evicted.
    #[must_use]
    pub fn next_to_leave(&self, most: usize) -> Vec<Leaving> {
        if self.0.is_sealed() { Vec::new() } else { lock(&self.0.books).lru.next_to_leave(most) }
    }

    /// The bytes of a small blob, without using it and without a look at whether they are right. `None` if the cache has none,
    /// or it has more than `most`.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn peek(&self, digest: &Digest, most: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(size) = self.size(digest).and_then(|size| usize::try_from(size).ok()).filter(|size| *size <= most) else {
            return Ok(None);
        };
        let (store, digest) = (Arc::clone(&self.0), digest.clone());
        let read = self.0.reads.soon(move || {
            let Some(blob) = store.open_blob(&digest, Some(size as u64), false)? else { return Ok(None) };
            let (mut bytes, mut at) = (vec![0; size], 0);
            while at < size {
                match blob.handle.file().read_at(at as u64, &mut bytes[at..])? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    n => at += n,
                }
            }
            Ok(Some(bytes))
        });
        read.await?
    }

    // --- pins ---

    /// Keeps a digest and all that it names from eviction, until the name is unpinned or pins another one. It need not be in the
    /// cache yet. The pin is on the disk when this returns.
    ///
    /// Cancel safe: it is pinned all the same.
    ///
    /// # Errors
    /// When it could not be written down: then it lasts until larder ends.
    pub async fn pin(&self, repository: &Repository, reference: &Reference, digest: &Digest) -> io::Result<()> {
        {
            let _pinning = lock(&self.0.pinning);
            let before = self.0.records.set_pin(repository, reference, digest);
            let mut books = lock(&self.0.books);
            if before.as_ref() != Some(digest) {
                books.lru.pin(digest);
                before.iter().for_each(|before| books.lru.unpin(before));
                books.dirty = true;
            }
        }
        self.settle().await
    }

    /// Takes a pin back. Returns what it pinned.
    ///
    /// Cancel safe: it is done all the same.
    ///
    /// # Errors
    /// As [`Store::pin`].
    pub async fn unpin(&self, repository: &Repository, reference: &Reference) -> io::Result<Option<Digest>> {
        let before = {
            let _pinning = lock(&self.0.pinning);
            let before = self.0.records.remove_pin(repository, reference);
            let mut books = lock(&self.0.books);
            before.iter().for_each(|before| books.lru.unpin(before));
            books.dirty |= before.is_some();
            before
        };
        self.settle().await.map(|()| before)
    }

    #[must_use]
    pub fn pins(&self) -> Vec<Pin> {
        self.0.records.pins()
    }

    /// Whether a digest is never evicted, by its own name or as a part of what is pinned.
    #[must_use]
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        lock(&self.0.books).lru.is_pinned(digest)
    }

    /// Says what a manifest of the cache names.
    pub fn link(&self, manifest: &Digest, names: &[Digest]) {
        self.0.link(manifest, names);
    }

    // --- removal ---

    /// Removes a blob and says that `repository` does not hold it any more; who reads it reads on. Returns what it took of the disk,
    /// in bytes; `None` if there was none, or it is pinned, or an order needs it, or a manifest of the cache names it.
    ///
    /// Cancel safe: it is done all the same.
    ///
    /// # Errors
    /// When the file could not be removed. The cache does not have it any more, but the disk does.
    pub async fn remove(&self, digest: &Digest, repository: &Repository) -> io::Result<Option<u64>> {
        let (store, digest, repository) = (Arc::clone(&self.0), digest.clone(), repository.clone());
        self.0.writes.run(move || store.remove(&digest, Some(&repository))).await?
    }

    /// Waits until what was recorded is on the disk, and what has come has its name there for good.
    ///
    /// # Errors
    /// When it could not be written; it is tried again later.
    pub async fn settle(&self) -> io::Result<()> {
        self.0.records.flush().await;
        let store = Arc::clone(&self.0);
        self.0.writes.run(move || store.disk.sync_names()).await??;
        if self.0.records.are_lost() { Err(io::Error::other("the records could not be written")) } else { Ok(()) }
    }

    /// The socket by which the operator's commands reach this process: see [`super::socket`].
    ///
    /// # Errors
    /// When there can be none.
    pub async fn listen(&self) -> io::Result<UnixListener> {
        let store = Arc::clone(&self.0);
        self.0.writes.run(move || store.disk.listen()).await?
    }
}

// === impl Shared ===

impl Shared {
    /// Pins what the records say is pinned; to be called before anything can be evicted.
    pub(super) fn pin_all(&self) {
        let pins = self.records.pins();
        let mut books = lock(&self.books);
        pins.iter().for_each(|pin| books.lru.pin(&pin.digest));
    }

    /// Whether it is needed is decided where it is taken out: who needs it holds it before looking whether it is there.
    pub(super) fn remove(&self, digest: &Digest, repository: Option<&Repository>) -> io::Result<Option<u64>> {
        // Nobody renames anything in or removes it meanwhile.
        let _gate = lock(&self.gate);
        // It must outlive the lock: the last one to let go of a file takes it.
        let open;
        let charge = {
            let mut books = lock(&self.books);
            if books.lru.is_needed(digest) {
                return Ok(None);
            }
            open = books.opened(digest);
            let Some(charge) = books.take_out(digest) else { return Ok(None) };
            charge
        };
        // Who brings it in anew, and says so, does it when the gate is open again.
        for kind in [Kind::Manifest, Kind::Blob] {
            repository.iter().for_each(|repository| self.records.remove_proof(repository, digest, kind));
        }
        let removed = caught(|| self.disk.remove_blob(digest));
        let mut books = lock(&self.books);
        match removed {
            Ok(()) => {
                books.left(charge);
                open.iter().for_each(|file| file.unlinked(&mut books, charge));
                Ok(Some(charge))
            }
            Err(error) => {
                // Its bytes go on counting, and the next start looks at every file.
                books.miscounted = true;
                Err(error)
            }
        }
    }
}
