//! Opening the files of blobs.

use std::io;
use std::sync::Arc;

use crate::oci::Digest;

use super::disk::File;
use super::handle::Handle;
use super::lru::charge;
use super::quarantine::Damage;
use super::reader::Blob;
use super::{Shared, lock};

// === impl Shared ===

impl Shared {
    pub(super) fn handle(&self, file: File) -> Arc<Handle> {
        Handle::new(file, self.reads.clone(), self.writes.clone(), Arc::clone(&self.books))
    }

    /// Opens a blob. One that is gone or has another size than it was verified with is set aside: it will be fetched anew.
    ///
    /// Whoever shares a file that is open already does not look at its size again. A file that is cut meanwhile tells so where
    /// bytes are missing, before anyone has a wrong one.
    /// `recent`: it may be wanted again.
    pub(super) fn open_blob(&self, digest: &Digest, size: Option<u64>, recent: bool) -> io::Result<Option<Blob>> {
        let _opening = {
            let mut books = lock(&self.books);
            if books.is_counted() && !books.lru.contains(digest) {
                // Evicted meanwhile.
                return Ok(None);
            }
            books.opening(&self.books, digest)
        };
        let opened = self.disk.open_blob(digest).and_then(|file| Ok((file.length()?, file)));
        let (length, file) = match opened {
            Ok((length, file)) if size.is_none_or(|size| size == length) => (length, file),
            Ok((length, _)) => {
                self.quarantine(digest, None, &Damage::Size(length));
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.quarantine(digest, None, &Damage::Gone);
                return Ok(None);
            }
            Err(error) => {
                tracing::error!(%digest, %error, "a cached blob cannot be opened");
                return Err(error);
            }
        };
        let handle = self.handle(file);
        let (handle, closed) = {
            let mut books = lock(&self.books);
            if let Some(open) = books.opened(digest) {
                // Someone else has opened it meanwhile; one file is enough.
                (open, Some(handle))
            } else {
                if books.is_counted() && !books.lru.contains(digest) {
                    // Set aside while it was being opened.
                    handle.unlinked(&mut books, charge(length));
                }
                let closed = if recent {
                    books.remember(digest, &handle)
                } else {
                    books.share(digest, &handle);
                    None
                };
                (handle, closed)
            }
        };
        drop(closed);
        Ok(Some(Blob::new(handle, length)))
    }
}
