//! How much of answers is in memory on its way to clients.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::metrics::Metrics;
use crate::network::block;

use super::holders::Holders;

/// Bytes of answers that are in memory on their way to clients. Clones count together.
#[derive(Clone)]
pub(super) struct Buffers(Arc<Counted>);

struct Counted {
    metrics: Metrics,
    most: u64,
    /// Answers that hold the same bytes share them.
    held: Mutex<Holders<Place>>,
}

/// Where bytes are in memory, and how many.
type Place = (usize, usize);

/// So many bytes, which count for a client until this is dropped.
pub(super) struct Count {
    bytes: usize,
    client: Option<IpAddr>,
    buffers: Buffers,
}

/// Bytes that count once in all, and once for each client, however many answers have them.
struct Whole {
    bytes: Bytes,
    client: Option<IpAddr>,
    buffers: Buffers,
}

/// So much of an answer does not count by itself.
const LITTLE: usize = 4 << 10;
/// Of an answer that is at hand so much is given also when there is no more, or nobody could begin a pull: to who has nothing yet.
const TO_BEGIN: usize = 16 << 10;

// === impl Buffers ===

impl Buffers {
    pub(super) fn new(most: u64, metrics: Metrics) -> Self {
        Self(Arc::new(Counted { metrics, most, held: Mutex::default() }))
    }

    /// How many bytes there may be.
    pub(super) fn most(&self) -> u64 {
        self.0.most
    }

    /// How many bytes there are.
    pub(super) fn now(&self) -> u64 {
        self.0.metrics.body_buffers()
    }

    /// Whether a client has more than its share.
    pub(super) fn are_enough_for(&self, client: Option<IpAddr>) -> bool {
        self.held().has_enough(client.map(block), self.left())
    }

    /// Whether there is no more for this client.
    pub(super) fn are_full_for(&self, client: IpAddr) -> bool {
        self.left() == 0 || self.are_enough_for(Some(client))
    }

    /// Whether there is not so much more for it, where that is at hand and all of it.
    pub(super) fn are_full_for_whole(&self, bytes: usize, client: IpAddr) -> bool {
        bytes > LITTLE && self.are_enough_for(Some(client)) || bytes > TO_BEGIN && self.left() == 0
    }

    fn left(&self) -> u64 {
        self.0.most.saturating_sub(self.now())
    }

    pub(super) fn count(&self, bytes: usize, client: Option<IpAddr>) -> Count {
        let client = client.map(block);
        self.0.metrics.body_buffered(bytes);
        self.held().add(client, bytes as u64);
        Count { bytes, client, buffers: self.clone() }
    }

    fn release(&self, bytes: usize, client: Option<IpAddr>) {
        if bytes > 0 {
            self.held().remove(client, bytes as u64);
            self.0.metrics.body_released(bytes);
        }
    }

    /// The bytes of a whole answer, counted until they are dropped. What many ask for at once, such as the manifest that all nodes of
    /// a cluster pull, is in memory once and counts once: its readers are not to shut out others.
    pub(super) fn hold_whole(&self, bytes: Bytes, client: Option<IpAddr>) -> Bytes {
        if bytes.len() <= LITTLE {
            return bytes;
        }
        let (place, client) = (place(&bytes), client.map(block));
        let mut held = self.held();
        if held.share(&place, client, bytes.len() as u64) {
            self.0.metrics.body_buffered(bytes.len());
        }
        drop(held);
        Bytes::from_owner(Whole { bytes, client, buffers: self.clone() })
    }

    fn held(&self) -> MutexGuard<'_, Holders<Place>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(bytes: &Bytes) -> Place {
    (bytes.as_ptr().addr(), bytes.len())
}

// === impl Whole ===

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        // As long as they are here, nothing else is where they are.
        let (place, length) = (place(&self.bytes), self.bytes.len());
        let mut held = self.buffers.held();
        if held.let_go(&place, self.client, length as u64) {
            self.buffers.0.metrics.body_released(length);
        }
    }
}

// === impl Count ===

impl Count {
    /// Counts no more than this from now on, and returns how much that is.
    pub(super) fn at_most(&mut self, bytes: usize) -> usize {
        let bytes = self.bytes.min(bytes);
        self.buffers.release(self.bytes - bytes, self.client);
        self.bytes = bytes;
        bytes
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.at_most(0);
    }
}
