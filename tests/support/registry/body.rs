//! A body that is sent by script: paced, held, broken off.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{fault::Fault, port::Wire};

pub(super) type Body = UnsyncBoxBody<Bytes, Closed>;

/// The script closes the connection here: to hyper an error, on the wire an end.
#[derive(Debug, thiserror::Error)]
#[error("the script closes the connection")]
pub(super) struct Closed;

/// The bytes still to send and what happens on the way.
pub(super) struct Script {
    rest: Bytes,
    sent: usize,
    /// By offset, the next one last.
    breaks: Vec<(usize, Break)>,
    pace: Option<Pace>,
    wire: Wire,
    hold: Hold,
    counted: Counted,
}

#[derive(Clone, Copy)]
enum Break {
    Cut,
    Reset,
    Stall,
    Gate,
}

/// Spreads bytes over time. A sender that was held up may catch up for [`Pace::SLACK`], not more: a pause
/// of the reader does not end in a burst.
struct Pace {
    bytes_per_second: u64,
    due: Instant,
}

/// Where a request waits for `release()`; made when the request arrives, as only a later release counts.
pub(super) struct Hold {
    pub(super) releases: watch::Receiver<u64>,
    pub(super) held: watch::Sender<usize>,
}

/// How many bodies are under way, and what all of them have sent.
#[derive(Clone, Default)]
pub(super) struct InFlight {
    counts: Arc<InFlightCounts>,
}

#[derive(Default)]
struct InFlightCounts {
    now: AtomicUsize,
    most: AtomicUsize,
    bytes: AtomicU64,
}

struct Counted {
    in_flight: InFlight,
}

// === impl Script ===

impl Script {
    pub(super) fn new(
        bytes: Bytes,
        faults: &[Fault],
        bandwidth: Option<u64>,
        wire: Wire,
        hold: Hold,
        in_flight: &InFlight,
    ) -> Self {
        let mut breaks = Vec::new();
        let mut bandwidth = bandwidth;
        for fault in faults {
            match *fault {
                Fault::Cut { after } => breaks.push((after, Break::Cut)),
                Fault::Reset { after } => breaks.push((after, Break::Reset)),
                Fault::Stall { after } => breaks.push((after, Break::Stall)),
                Fault::Gate { after } => breaks.push((after, Break::Gate)),
                Fault::Bandwidth(bytes_per_second) => bandwidth = Some(bytes_per_second),
                _ => {}
            }
        }
        breaks.sort_by_key(|(after, _)| *after);
        breaks.reverse();
        Self { rest: bytes, sent: 0, breaks, pace: bandwidth.map(Pace::new), wire, hold, counted: in_flight.enter() }
    }

    pub(super) fn into_body(self) -> Body {
        StreamBody::new(stream::unfold(self, Self::next)).boxed_unsync()
    }

    async fn next(mut self) -> Option<(Result<Frame<Bytes>, Closed>, Self)> {
        while let Some((_, what)) = self.breaks.pop_if(|(after, _)| *after <= self.sent) {
            self.wire.flushed().await;
            match what {
                Break::Gate => {
                    self.hold.wait().await;
                    continue;
                }
                Break::Stall => self.hold.wait().await,
                Break::Cut => {}
                Break::Reset => self.wire.reset(),
            }
            return Some((Err(Closed), self));
        }
        if self.rest.is_empty() {
            return None;
        }
        let mut len = self.rest.len();
        if let Some((after, _)) = self.breaks.last() {
            len = len.min(after - self.sent);
        }
        if let Some(pace) = &mut self.pace {
            len = len.min(pace.chunk());
            pace.wait_for(len).await;
        }
        self.sent += len;
        self.counted.in_flight.counts.bytes.fetch_add(len as u64, Ordering::Relaxed);
        let chunk = self.rest.split_to(len);
        Some((Ok(Frame::data(chunk)), self))
    }
}

// === impl Pace ===

impl Pace {
    const SLACK: Duration = Duration::from_millis(50);

    fn new(bytes_per_second: u64) -> Self {
        assert!(bytes_per_second > 0, "a bandwidth of nothing is a stall");
        Self { bytes_per_second, due: Instant::now() }
    }

    /// What is sent at once: five milliseconds' worth, as timers tick once in one.
    fn chunk(&self) -> usize {
        usize::try_from(self.bytes_per_second / 200).map_or(usize::MAX, |bytes| bytes.max(1))
    }

    /// Waits until these bytes have had their time, so that a body ends no earlier than the rate allows.
    async fn wait_for(&mut self, len: usize) {
        let nanos = len as u128 * 1_000_000_000 / u128::from(self.bytes_per_second);
        let took = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let earliest = Instant::now().checked_sub(Self::SLACK).unwrap_or(self.due);
        self.due = self.due.max(earliest) + took;
        sleep_until(self.due).await;
    }
}

// === impl Hold ===

impl Hold {
    /// Waits for the next release. A registry that is gone counts as one.
    pub(super) async fn wait(&mut self) {
        struct Held<'a>(&'a watch::Sender<usize>);
        impl Drop for Held<'_> {
            fn drop(&mut self) {
                self.0.send_modify(|held| *held -= 1);
            }
        }
        self.held.send_modify(|held| *held += 1);
        let _held = Held(&self.held);
        let _ = self.releases.changed().await;
    }
}

// === impl InFlight ===

impl InFlight {
    pub(super) fn most(&self) -> usize {
        self.counts.most.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }

    fn enter(&self) -> Counted {
        let now = self.counts.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.counts.most.fetch_max(now, Ordering::Relaxed);
        Counted { in_flight: self.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.in_flight.counts.now.fetch_sub(1, Ordering::Relaxed);
    }
}
