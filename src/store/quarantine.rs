//! What is damaged is set aside: out of the cache, so that it is fetched anew, and under `quarantine/`, for whoever wants to
//! know what has become of it. Only the newest few stay there.

use std::io;
use std::sync::{Arc, Weak};

use crate::oci::Digest;

use super::handle::Handle;
use super::lru::charge;
use super::pool::caught;
use super::{Shared, lock};

/// How a blob of the cache is not what it was.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("it is gone")]
    Gone,
    #[error("it has {0} bytes")]
    Size(u64),
    #[error("it ends early")]
    Short,
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    #[error("it has other bytes than its digest promises")]
    Bytes,
}

/// The file in which damage was seen.
pub struct OpenFile(pub(super) Arc<Handle>);

/// A damaged file that still takes its space.
pub(super) struct Kept {
    pub(super) digest: Digest,
    pub(super) charge: u64,
    /// Its bytes stay on the disk for those who have it open.
    file: Weak<Handle>,
    /// It could not be moved: it lies where the blob was, until a new one takes the place.
    in_place: bool,
}

/// The newest of the quarantine, at most so many, and at most this part of the cache.
const MOST: usize = 16;
const SHARE: u64 = 100;

// === impl Shared ===

impl Shared {
    /// Takes a damaged blob out of the cache. `file`: where the damage was seen, if it was not seen from outside; nothing
    /// happens if another one has taken its place meanwhile. A sealed cache keeps what it cannot read.
    pub(super) fn quarantine(&self, digest: &Digest, file: Option<&Arc<Handle>>, damage: &Damage) {
        if self.is_sealed() && matches!(damage, Damage::Unreadable(_)) {
            // It may be well another time, and there is no other to be had.
            tracing::error!(%digest, %damage, "a cached blob is left as it is, as nobody can be asked for it");
            return;
        }
        // Nobody renames anything in or removes it meanwhile.
        let _gate = lock(&self.gate);
        let length = if file.is_none() { self.disk.blob_length(digest).ok().flatten() } else { None };
        // Where files are held, that must outlive the lock: the last one to let go of a file takes it.
        let (open, old);
        let mut books = lock(&self.books);
        open = books.opened(digest);
        let replaced = match file {
            // As long as someone holds the blob's file, the books know it: they know none, or another one, if this was replaced.
            Some(file) => open.as_ref().is_none_or(|open| !Arc::ptr_eq(open, file)),
            None => length.is_some() && length == books.lru.size(digest),
        };
        if replaced {
            return;
        }
        let Some(charged) = books.take_out(digest) else { return };
        drop(books);
        if matches!(damage, Damage::Bytes) {
            open.iter().for_each(|file| file.spoil());
        }
        self.metrics.quarantined();
        let moved = caught(|| self.disk.set_aside(digest));
        let removed = moved.as_ref().is_err_and(|_| caught(|| self.disk.remove_blob(digest)).is_ok());
        let mut books = lock(&self.books);
        books.left(charged);
        // One that was there under its name is replaced.
        old = books.take_quarantined(digest).map(|old| (old.file.upgrade(), old.charge));
        if let (Some((Some(file), charge)), Ok(Some(_))) = (&old, &moved) {
            file.unlinked(&mut books, *charge);
        }
        let kept = |charge, in_place| {
            let file = open.as_ref().map_or_else(Weak::new, Arc::downgrade);
            Kept { digest: digest.clone(), charge, file, in_place }
        };
        match moved {
            Ok(Some(length)) => {
                books.quarantine.push_back(kept(charge(length), false));
                drop(books);
                self.bound_quarantine();
                tracing::error!(%digest, %damage, "a cached blob is damaged; it is in quarantine/ and will be fetched anew");
            }
            Err(error) if !removed => {
                // Only a look at every file will tell that it is there.
                books.miscounted = true;
                books.quarantine.push_back(kept(charged, true));
                tracing::error!(%digest, %damage, %error, "a cached blob is damaged and cannot be moved; it will be fetched anew");
            }
            _ => {
                open.iter().for_each(|file| file.unlinked(&mut books, charged));
                tracing::error!(%digest, %damage, "a cached blob is damaged; it will be fetched anew");
            }
        }
    }

    /// Counts what is in quarantine from before.
    pub(super) fn count_quarantine(&self) -> io::Result<()> {
        let mut found = self.disk.quarantined()?;
        found.sort_by_key(|found| found.modified);
        let kept = found.into_iter().map(|found| Kept {
            charge: charge(found.size),
            digest: found.digest,
            file: Weak::new(),
            in_place: false,
        });
        lock(&self.books).quarantine.extend(kept);
        self.bound_quarantine();
        Ok(())
    }

    /// Removes the oldest of what is too much.
    fn bound_quarantine(&self) {
        loop {
            let Some(Kept { digest, charge, file, .. }) = lock(&self.books).pop_quarantined(MOST, SHARE) else { return };
            let (removed, file) = (caught(|| self.disk.remove_quarantined(&digest)), file.upgrade());
            let mut books = lock(&self.books);
            match removed {
                Ok(()) => {
                    books.left(charge);
                    file.iter().for_each(|file| file.unlinked(&mut books, charge));
                }
                Err(error) => {
                    // Its bytes go on counting.
                    books.miscounted = true;
                    tracing::error!(%digest, %error, "a file in quarantine could not be removed");
                }
            }
        }
    }
}

// === impl Damage ===

impl Damage {
    /// What an error in reading tells of the file; `None` if it only tells of the disk that it does not answer, or of us.
    #[must_use]
    pub fn told_by(error: &io::Error) -> Option<Self> {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Some(Self::Short),
            io::ErrorKind::TimedOut | io::ErrorKind::OutOfMemory => None,
            _ => error.raw_os_error().map(|_| Self::Unreadable(error.to_string())),
        }
    }
}

// === impl Kept ===

impl Kept {
    /// Whether it lies under this name in quarantine.
    pub(super) fn is_aside(&self, digest: &Digest) -> bool {
        !self.in_place && self.digest == *digest
    }

    /// Whether a blob that comes in takes its place.
    pub(super) fn is_replaced_by(&self, digest: &Digest) -> bool {
        self.in_place && self.digest == *digest
    }

    pub(super) fn can_be_removed(&self) -> bool {
        !self.in_place
    }
}
