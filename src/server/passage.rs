//! The way of an answer to its client: how much it takes at once, for how long that counts, whether it takes it at all.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::mirror::Pieces;

use super::buffers::{Buffers, Count};
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

/// Bytes that count as long as someone has them, and by TLS until they are written as well: what has them encrypts them, and has that.
struct Held {
    bytes: Bytes,
    count: Option<Count>,
    line: Option<Arc<Line>>,
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

/// Who has enough goes on with as much as a packet or two.
pub(super) const LEAST: usize = 4 << 10;
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

    /// The same bytes, counted for this client.
    pub(super) fn hold(&self, bytes: Bytes, client: Option<IpAddr>) -> Bytes {
        let count = self.buffers.count(bytes.len(), client);
        let line = self.line.is_encrypted().then(|| Arc::clone(&self.line));
        Bytes::from_owner(Held { bytes, count: Some(count), line })
    }

    /// A crowd that takes nothing is to leave room for the others: half of the memory in small pieces is enough for one each.
    pub(super) fn is_crowded(&self) -> bool {
        self.buffers.now() >= self.buffers.most() / 2
    }

    /// How much the next piece may be at most.
    pub(super) fn most(&self, client: Option<IpAddr>) -> usize {
        match (&self.stream, self.buffers.now()) {
            // Who has more than is left has more than half.
            _ if self.is_crowded() => {
                if self.buffers.are_enough_for(client) {
                    LEAST
                } else {
                    SMALL
                }
            }
            (Some(_), _) => STREAM,
            (None, held) if held >= self.buffers.most() / 4 => MEDIUM,
            (None, _) => LARGE,
        }
    }
}

// === impl Held ===

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(line), Some(count)) = (&self.line, self.count.take()) {
            line.keep(count);
        }
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
