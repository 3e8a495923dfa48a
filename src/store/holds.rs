//! What an order needs while it lasts: it is neither evicted nor removed meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::oci::Digest;
use crate::sync::Mutex;

use super::{Shared, Store, lock};

/// Holds digests, in the cache or not, until it is dropped or ended. What was brought under it and has no name then is removed.
pub struct Holds {
    store: Arc<Shared>,
    /// Whether it was brought for this order, and nothing has named it yet.
    held: Mutex<HashMap<Digest, bool>>,
}

const AGAIN: Duration = Duration::from_millis(2);

// === impl Store ===

impl Store {
    #[must_use]
    pub fn holds(&self) -> Holds {
        Holds { store: Arc::clone(&self.0), held: Mutex::default() }
    }
}

// === impl Holds ===

impl Holds {
    /// From now on this stays, or if it is not there, what comes by this digest. To be called before it is looked at.
    pub fn hold(&self, digest: &Digest) {
        let mut held = lock(&self.held);
        if !held.contains_key(digest) {
            held.insert(digest.clone(), false);
            lock(&self.store.books).lru.hold(digest);
        }
    }

    /// What comes by this digest is for this order alone, until it is [`named`](Self::named). To be called before it comes.
    pub fn bring(&self, digest: &Digest) {
        self.hold(digest);
        lock(&self.held).insert(digest.clone(), true);
    }

    /// It stays in the cache, or another has brought it.
    pub fn named(&self, digest: &Digest) {
        if let Some(brought) = lock(&self.held).get_mut(digest) {
            *brought = false;
        }
    }

    /// Lets go, and waits until what is to be removed is.
    ///
    /// Cancel safe: it is done all the same.
    pub async fn end(self) {
        let _ = self.store.writes.run(self.let_go()).await;
    }

    fn let_go(&self) -> impl FnOnce() + Send + 'static + use<> {
        let (store, held) = (Arc::clone(&self.store), std::mem::take(&mut *lock(&self.held)));
        let going = store.tasks.token();
        move || {
            // The store closes when that is done.
            let _going = going;
            // An image is to go before its layers: what is let go first is older.
            let mut order: Vec<_> = held.keys().map(|digest| (lock(&store.books).lru.depth(digest), digest)).collect();
            order.sort_unstable();
            for (_, digest) in order {
                lock(&store.books).lru.let_go(digest);
            }
            for (digest, _) in held.into_iter().filter(|(_, brought)| *brought) {
                store.until_written(&digest);
                if store.records.held_by(&digest).is_empty()
                    && let Err(error) = store.remove(&digest, None)
                {
                    tracing::warn!(%digest, %error, "what was brought for nothing could not be removed");
                }
            }
        }
    }
}

impl Shared {
    /// Waits until nobody makes a blob of this digest, as who was told to stop may just be at that; but not for a disk that hangs, nor
    /// for others who need it.
    #[expect(clippy::disallowed_methods, reason = "a thread of the pool waits for another that is about to end")]
    fn until_written(&self, digest: &Digest) {
        let since = Instant::now();
        let is_coming = || {
            let books = lock(&self.books);
            books.is_written(digest) && !books.lru.is_kept(digest)
        };
        while since.elapsed() < self.writes.patience() && is_coming() {
            thread::sleep(AGAIN);
        }
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        if !lock(&self.held).is_empty() {
            self.store.writes.start(self.let_go());
        }
    }
}
