//! How many bytes of blobs may come in a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::allowance::{self, Allowance};

/// What transfers take of one line to the outside, or of one upstream. Each piece that has come stands in line with those of the
/// other transfers, so that all of them go on alike.
#[derive(Default)]
pub struct Rate {
    /// In bytes per second; 0: any.
    most: AtomicU64,
    taken: Allowance,
}

/// One transfer's part in all that bound it.
pub(super) struct Turn {
    rates: [Arc<Rate>; 2],
    /// When the next piece may come.
    at: Instant,
}

/// So much may come at once after a time in which less has come.
const AHEAD: Duration = Duration::from_millis(500);

// === impl Rate ===

impl Rate {
    /// `most`: bytes per second; 0: any number.
    #[must_use]
    pub fn new(most: u64) -> Self {
        Self { most: most.into(), taken: Allowance::default() }
    }

    /// Changes it, for transfers under way as well.
    pub fn set(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Whether transfers wait for their turn, or are about to.
    pub(super) fn is_used_up(&self) -> bool {
        self.most.load(Ordering::Relaxed) > 0 && self.taken.is_overspent(AHEAD / 2, Instant::now())
    }

    fn take(&self, bytes: u64) -> Option<Instant> {
        let most = self.most.load(Ordering::Relaxed);
        (most > 0).then(|| self.taken.overspend(allowance::worth(bytes, most), AHEAD, Instant::now()))
    }
}

// === impl Turn ===

impl Turn {
    pub(super) fn new(rates: [Arc<Rate>; 2]) -> Self {
        Self { rates, at: Instant::now() }
    }

    /// Waits until the next piece may come.
    ///
    /// Cancel safe.
    pub(super) async fn come(&self) {
        if self.at > Instant::now() {
            sleep_until(self.at).await;
        }
    }

    /// A piece has come.
    pub(super) fn took(&mut self, bytes: usize) {
        let turns = self.rates.iter().filter_map(|rate| rate.take(bytes as u64));
        self.at = turns.max().unwrap_or(self.at);
    }
}
