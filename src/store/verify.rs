//! Hashing what is in the cache again: each blob when it is first read after an unclean stop, and all of them in idle time.
//!
//! A blob that is being verified is a growing one whose writer is the verification: those who want it meanwhile follow its
//! front, and nothing of it ends before all of it is known to be right. However many they are, it is hashed once.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::oci::{Digest, Hasher};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::timeout;

use super::growing::{End, Growing};
use super::handle::Handle;
use super::quarantine::Damage;
use super::reader::{Blob, Growth};
use super::{Shared, Store, lock};

/// A verification under way.
pub(super) struct Verification {
    growing: Arc<Growing>,
    /// Someone waits for it.
    urgent: AtomicBool,
}

/// Takes the verification off the list however it ends.
struct Landing {
    store: Arc<Shared>,
    digest: Digest,
    verification: Arc<Verification>,
    /// In bytes a second, while nobody waits for it.
    rate: u64,
}

/// What a round over the cache has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scrubbed {
    pub right: u64,
    pub damaged: u64,
    /// They could not be read just now, or have left the cache meanwhile.
    pub skipped: u64,
}

/// In idle time, what was verified longer ago than this is verified again.
const AGAIN: Duration = Duration::from_hours(14 * 24);

/// So much is hashed at once.
const CHUNK: u64 = 1 << 20;

/// How long the idle time is waited for.
const BUSY: Duration = Duration::from_millis(50);

// === impl Store ===

impl Store {
    /// Verifies all blobs of which nobody knows whether they have survived a stop, or that were verified long ago, at a bounded
    /// rate. Damaged ones leave the cache.
    ///
    /// Cancel safe.
    pub async fn scrub_once(&self) -> Scrubbed {
        let store = &self.0;
        let mut scrubbed = Scrubbed::default();
        if store.scrub_rate == 0 {
            return scrubbed;
        }
        for digest in store.due(store.clock.now() - AGAIN) {
            match self.check(&digest, Some(store.scrub_rate)).await {
                Some(true) => scrubbed.right += 1,
                Some(false) => scrubbed.damaged += 1,
                None => scrubbed.skipped += 1,
            }
        }
        if scrubbed != Scrubbed::default() {
            let Scrubbed { right, damaged, skipped } = scrubbed;
            tracing::info!(right, damaged, skipped, "the cache was verified");
        }
        scrubbed
    }

    /// So many bytes a second are verified in idle time; `None`: nothing is.
    #[must_use]
    pub fn scrub_rate(&self) -> Option<u64> {
        Some(self.0.scrub_rate).filter(|rate| *rate > 0)
    }

    /// All that is in the cache, in the order in which it is best verified: first of all that of which nobody knows anything.
    #[must_use]
    pub fn all(&self) -> Vec<Digest> {
        self.0.due(Timestamp::from_unix_millis(u64::MAX))
    }

    /// Whether a blob is right; `None` if it cannot be told, as it cannot be read just now or has left the cache. One that is not
    /// leaves it. `rate`: so many bytes a second are hashed, in idle time; `None`: someone waits for it.
    ///
    /// Cancel safe: the verification goes on.
    pub async fn check(&self, digest: &Digest, rate: Option<u64>) -> Option<bool> {
        // It is not evicted before it is open: that it is gone then says that it was damaged.
        let _opening = lock(&self.0.books).opening(&self.0.books, digest);
        let size = self.size(digest)?;
        let (store, wanted) = (Arc::clone(&self.0), digest.clone());
        let opened = self.0.reads.soon(move || store.open_blob(&wanted, Some(size), false)).await.ok()?;
        match opened {
            Ok(Some(blob)) if self.0.verify(digest, &blob, rate).verified().await => return Some(true),
            Ok(_) => {}
            Err(error) => {
                let (store, wanted, damage) = (Arc::clone(&self.0), digest.clone(), Damage::told_by(&error)?);
                self.0.writes.run(move || store.quarantine(&wanted, None, &damage)).await.ok()?;
            }
        }
        if self.size(digest).is_some() { None } else { Some(false) }
    }
}

// === impl Shared ===

impl Shared {
    /// What was verified before `limit`, those first of which nobody knows anything.
    pub(super) fn due(&self, limit: Timestamp) -> Vec<Digest> {
        if !lock(&self.books).is_counted() {
            return Vec::new();
        }
        let mut due = self.look_through(|lru, slots| lru.verified_before(limit, slots));
        due.sort_unstable();
        due.into_iter().map(|(.., digest)| digest).collect()
    }

    /// Begins to verify a blob, or joins the verification that is under way. `rate`: so many bytes a second, in idle time;
    /// `None`: someone waits for it.
    pub(super) fn verify(self: &Arc<Self>, digest: &Digest, blob: &Blob, rate: Option<u64>) -> Growth {
        let urgent = rate.is_none();
        let mut verifying = lock(&self.verifying);
        if let Some(verification) = verifying.get(digest) {
            verification.urgent.fetch_or(urgent, Ordering::Relaxed);
            return Growth(Arc::clone(&verification.growing));
        }
        let growing = Growing::of_file(Arc::clone(&blob.handle), blob.size());
        let verification = Arc::new(Verification { growing: Arc::clone(&growing), urgent: AtomicBool::new(urgent) });
        verifying.insert(digest.clone(), Arc::clone(&verification));
        drop(verifying);
        let rate = rate.unwrap_or(self.scrub_rate).max(1);
        let landing = Landing { store: Arc::clone(self), digest: digest.clone(), verification, rate };
        let (handle, size) = (Arc::clone(&blob.handle), blob.size());
        self.tasks.spawn(async move {
            tokio::select! {
                () = landing.store.stopping.cancelled() => {}
                () = landing.verify(&handle, size) => {}
            }
        });
        Growth(growing)
    }
}

// === impl Landing ===

impl Landing {
    async fn verify(&self, handle: &Arc<Handle>, size: u64) {
        let Self { store, digest, verification, .. } = self;
        let found = match self.hash(handle, size).await {
            Ok(found) if found == *digest => {
                store.metrics.verified("right");
                let now = store.clock.now();
                lock(&store.books).verified(digest, now);
                return verification.growing.finish(End::Verified);
            }
            Ok(_) => Some(Damage::Bytes),
            Err(error) => {
                tracing::warn!(%digest, %error, "a cached blob cannot be verified");
                Damage::told_by(&error)
            }
        };
        store.metrics.verified(if found.is_some() { "damaged" } else { "unknown" });
        if let Some(damage) = found {
            let (shared, digest, handle) = (Arc::clone(store), digest.clone(), Arc::clone(handle));
            let set_aside = store.writes.run(move || shared.quarantine(&digest, Some(&handle), &damage));
            // Who reads it is told, also where the disk hangs.
            let _ = timeout(store.writes.patience(), set_aside).await;
        }
    }

    async fn hash(&self, handle: &Arc<Handle>, size: u64) -> io::Result<Digest> {
        let Self { store, digest, verification, rate } = self;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut at = 0;
        // What was not in memory before need not be there afterwards, if nobody reads it.
        let in_memory = size == 0 || handle.file().read_cached(0, &mut [0])?.is_some();
        while at < size {
            let urgent = verification.urgent.load(Ordering::Relaxed);
            let limit = if urgent { CHUNK } else { CHUNK.min(*rate / 4).max(1) };
            if !urgent {
                // A little at a time, so that someone who comes in a hurry does not wait.
                tokio::time::sleep(Duration::from_micros(limit * 1_000_000 / rate)).await;
                while store.reads.is_busy() && !verification.urgent.load(Ordering::Relaxed) {
                    tokio::time::sleep(BUSY).await;
                }
            }
            let (handle, mut hashed) = (Arc::clone(handle), hasher.clone());
            let read = store.reads.soon(move || {
                let mut buffer = vec![0; usize::try_from(limit.min(size - at)).unwrap_or(usize::MAX)];
                let n = handle.file().read_at(at, &mut buffer)?;
                hashed.update(&buffer[..n]);
                if !urgent && !in_memory {
                    handle.file().forget(at, n as u64);
                }
                io::Result::Ok((n, hashed))
            });
            let (n, hashed) = read.await??;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hasher = hashed;
            at += n as u64;
            verification.growing.advance(at, hasher.clone());
        }
        Ok(hasher.finish())
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.store.verifying).remove(&self.digest);
        self.verification.growing.finish(End::Failed);
    }
}
