//! The way of an answer to its client: how much it takes at once, how much of it is in memory, whether it takes it at all.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use crate::metrics::Metrics;
use crate::mirror::Pieces;
use crate::network::block;

use super::connections::Underway;
use super::pace::Pace;
use super::wire::Line;

/// One answer's way. Dropped when the answer is done with.
pub(super) struct Passage {
    pub(super) line: Arc<Line>,
    /// In HTTP/2, that of the stream.
    pub(super) stream: Option<Arc<Pace>>,
    pub(super) buffers: Buffers,
    pub(super) _underway: Underway,
}

/// Bytes of answers that are in memory on their way to clients. Clones count together.
#[derive(Clone)]
pub(super) struct Buffers(Arc<Counted>);

struct Counted {
    metrics: Metrics,
    most: u64,
    /// How many answers hold the same bytes, by where these are in memory and how many.
    whole: Mutex<HashMap<(usize, usize), usize>>,
    /// How many bytes there are for each client, by the first of its addresses.
    held: Mutex<HashMap<Option<IpAddr>, u64>>,
}

/// Bytes that count as long as someone has them.
struct Held {
    bytes: Bytes,
    client: Option<IpAddr>,
    buffers: Buffers,
}

/// Bytes that count once, however many answers have them.
struct Whole {
    bytes: Bytes,
    buffers: Buffers,
}

/// Decides how much a client is given at once. The first pieces are small, for a quick first byte and for those who want
/// little; larger ones are for those who take them quickly, and for the largest they must have done so for a while: what is
/// in memory for a client that stalls stays there.
pub(super) struct Appetite {
    pub(super) pieces: Pieces,
    given: Option<Instant>,
    /// How much has been taken quickly in a row.
    quickly: usize,
}

const SMALL: usize = 16 << 10;
/// Of two of these there are at most so many bytes in memory for a stream of HTTP/2 as it may have.
const STREAM: usize = 32 << 10;
const MEDIUM: usize = 64 << 10;
const LARGE: usize = 256 << 10;
/// Pieces are large after this. No kernel takes so much for a client that does not.
const PROVEN: usize = 8 << 20;
/// A piece that is taken within this time is taken quickly.
const QUICK: Duration = Duration::from_millis(100);

// === impl Passage ===

impl Passage {
    /// Whether the client is given up.
    pub(super) fn is_lost(&self) -> bool {
        self.line.pace.is_lost() || self.stream.as_ref().is_some_and(|pace| pace.is_lost())
    }

    /// Waits until hyper has written what it was given, over HTTP/1.1. In HTTP/2 it asks for more only then.
    pub(super) fn poll_written(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.stream.is_some() { Poll::Ready(()) } else { self.line.poll_written(cx) }
    }

    /// Says that hyper is given something to write, for the same to be waited for.
    pub(super) fn gives(&self) {
        if self.stream.is_none() {
            self.line.gives();
        }
    }

    /// A crowd that takes nothing is to leave room for the others: half of the memory in small pieces is enough for one each.
    pub(super) fn is_crowded(&self) -> bool {
        self.buffers.now() >= self.buffers.0.most / 2
    }

    /// How much the next piece may be at most.
    pub(super) fn most(&self) -> usize {
        match (&self.stream, self.buffers.now()) {
            _ if self.is_crowded() => SMALL,
            (Some(_), _) => STREAM,
            (None, held) if held >= self.buffers.0.most / 4 => MEDIUM,
            (None, _) => LARGE,
        }
    }
}

// === impl Buffers ===

impl Buffers {
    pub(super) fn new(most: u64, metrics: Metrics) -> Self {
        Self(Arc::new(Counted { metrics, most, whole: Mutex::default(), held: Mutex::default() }))
    }

    /// How many bytes there are.
    fn now(&self) -> u64 {
        self.0.metrics.body_buffers()
    }

    /// Whether an answer that has these bytes at hand holds more of them than one that has to get them, bit by bit.
    pub(super) fn counts(bytes: &Bytes) -> bool {
        bytes.len() > MEDIUM
    }

    /// Whether there is no more for this client. None has more than is left: one that takes nothing, as often as it likes, leaves half of
    /// the memory to others, and the next such one half of that.
    pub(super) fn are_full_for(&self, client: IpAddr) -> bool {
        let left = self.0.most.saturating_sub(self.now());
        left == 0 || self.held().get(&Some(block(client))).is_some_and(|held| *held > left)
    }

    /// The same bytes, counted for this client until they are dropped.
    pub(super) fn hold(&self, bytes: Bytes, client: Option<IpAddr>) -> Bytes {
        let client = client.map(block);
        self.0.metrics.body_buffered(bytes.len());
        *self.held().entry(client).or_default() += bytes.len() as u64;
        Bytes::from_owner(Held { bytes, client, buffers: self.clone() })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Option<IpAddr>, u64>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of a whole answer, counted until they are dropped. What many ask for at once, such as the manifest that all nodes of
    /// a cluster pull, is in memory once and counts once: its readers are not to shut out others.
    pub(super) fn hold_whole(&self, bytes: Bytes) -> Bytes {
        let (key, length) = (Self::key(&bytes), bytes.len());
        let mut whole = self.0.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = whole.entry(key).or_default();
        if *answers == 0 {
            self.0.metrics.body_buffered(length);
        }
        *answers += 1;
        drop(whole);
        Bytes::from_owner(Whole { bytes, buffers: self.clone() })
    }

    fn key(bytes: &Bytes) -> (usize, usize) {
        (bytes.as_ptr().addr(), bytes.len())
    }
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        // As long as they are here, nothing else is where they are.
        let Self { bytes, buffers } = self;
        let mut whole = buffers.0.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut answers) = whole.entry(Buffers::key(bytes)) {
            *answers.get_mut() -= 1;
            if *answers.get() == 0 {
                answers.remove();
                buffers.0.metrics.body_released(bytes.len());
            }
        }
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Self { bytes, client, buffers } = self;
        if let Entry::Occupied(mut held) = buffers.held().entry(*client) {
            *held.get_mut() -= bytes.len() as u64;
            if *held.get() == 0 {
                held.remove();
            }
        }
        buffers.0.metrics.body_released(bytes.len());
    }
}

// === impl Appetite ===

impl Appetite {
    pub(super) fn new() -> Self {
        Self { pieces: Pieces::of(SMALL), given: None, quickly: 0 }
    }

    /// The client is given a piece.
    pub(super) fn gives(&mut self) {
        self.given = Some(Instant::now());
    }

    /// The client can take another piece, of `most` at most.
    pub(super) fn asks(&mut self, most: usize) {
        let Some(given) = self.given.take() else { return };
        let (piece, quick) = (self.pieces.get(), given.elapsed() <= QUICK);
        self.quickly = if quick { self.quickly.saturating_add(piece) } else { 0 };
        let next = if !quick {
            (piece / 2).max(SMALL)
        } else if self.quickly < PROVEN {
            (piece * 2).min(MEDIUM)
        } else {
            piece * 2
        };
        self.pieces.set(next.min(most).min(LARGE));
    }
}
