//! How many files are open for answers that clients ask for beside others, over the same connection.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::network::block;
use crate::oci::Digest;

use super::holders::Holders;

/// The files of blobs that are open for such answers: one for each blob, which all who read it share. Clones count together.
#[derive(Clone)]
pub(super) struct Files(Arc<Counted>);

struct Counted {
    most: u64,
    open: Mutex<Holders<Digest>>,
}

/// A file that counts for a client until this is dropped.
pub(super) struct OpenFile {
    digest: Digest,
    client: Option<IpAddr>,
    files: Files,
}

/// There is no file more for a client.
pub(super) struct NoneLeft;

// === impl Files ===

impl Files {
    pub(super) fn new(most: u64) -> Self {
        Self(Arc::new(Counted { most, open: Mutex::default() }))
    }

    /// Counts the file of a blob that is about to be opened for a client, or is open already.
    pub(super) fn open(&self, digest: &Digest, client: IpAddr) -> Result<OpenFile, NoneLeft> {
        let client = Some(block(client));
        let mut open = self.counted();
        let left = self.0.most.saturating_sub(open.shared());
        if !open.is_shared(digest) && (left == 0 || open.has_enough(client, left)) {
            return Err(NoneLeft);
        }
        open.share(digest, client, 1);
        drop(open);
        Ok(OpenFile { digest: digest.clone(), client, files: self.clone() })
    }

    fn counted(&self) -> MutexGuard<'_, Holders<Digest>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl OpenFile ===

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.files.counted().let_go(&self.digest, self.client, 1);
    }
}
