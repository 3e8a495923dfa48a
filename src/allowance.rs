//! What there is so much of in a second: requests, bytes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Up to when an allowance has been used. Each use takes the time that it is worth; what has not been used is lost, but for a
/// while's worth.
#[derive(Default)]
pub(crate) struct Allowance(Mutex<Option<Instant>>);

/// How many bytes may pass in a second, all transfers together. Each piece that has passed stands in line with those of the other
/// transfers, so that all of them go on alike.
#[derive(Default)]
pub struct Rate {
    /// In bytes per second; 0: any.
    most: AtomicU64,
    /// So much may pass at once after a time in which less has passed.
    ahead: Duration,
    taken: Allowance,
}

/// One transfer's part in all rates that bound it. It begins with waiting for what is owed already: else whoever takes a little each
/// time would always go before those who are under way, and owe for all of them.
pub(crate) struct Turn<const RATES: usize> {
    rates: [Arc<Rate>; RATES],
    /// When the next piece may pass.
    pub(crate) at: Instant,
}

// === impl Allowance ===

impl Allowance {
    /// Uses so much, unless more would have been used than there is.
    ///
    /// # Errors
    /// It would; after this time there is enough.
    pub(crate) fn spend(&self, cost: Duration, ahead: Duration, now: Instant) -> Result<(), Duration> {
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = spent.map_or(now, |spent| spent.max(now)) + cost;
        let early = at.saturating_duration_since(now + ahead);
        if early.is_zero() {
            *spent = Some(at);
            Ok(())
        } else {
            Err(early)
        }
    }

    /// Uses so much, and says from when on more may be used.
    pub(crate) fn overspend(&self, cost: Duration, ahead: Duration, now: Instant) -> Instant {
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = spent.map_or(now, |spent| spent.max(now)) + cost;
        *spent = Some(at);
        at.checked_sub(ahead).unwrap_or(now)
    }

    /// Whether more has been used than there is.
    fn is_overspent(&self, ahead: Duration, now: Instant) -> bool {
        let spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spent.is_some_and(|spent| spent > now + ahead)
    }
}

// === impl Rate ===

impl Rate {
    /// `most`: bytes per second; 0: any number. `ahead`: what may pass at once, as the time in which it might have passed.
    #[must_use]
    pub fn new(most: u64, ahead: Duration) -> Self {
        Self { most: most.into(), ahead, taken: Allowance::default() }
    }

    /// Changes it, for transfers under way as well.
    pub fn set(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Whether transfers wait for their turn, or are about to.
    pub(crate) fn is_used_up(&self) -> bool {
        self.most.load(Ordering::Relaxed) > 0 && self.taken.is_overspent(self.ahead / 2, Instant::now())
    }

    /// Lets so much pass, and says when more may. `None`: at any time.
    fn take(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let most = self.most.load(Ordering::Relaxed);
        let worth = Duration::from_nanos(bytes.saturating_mul(1_000_000_000).checked_div(most)?);
        Some(self.taken.overspend(worth, self.ahead, now))
    }
}

// === impl Turn ===

impl<const RATES: usize> Turn<RATES> {
    pub(crate) fn new(rates: [Arc<Rate>; RATES]) -> Self {
        Self::begun(rates, Instant::now())
    }

    fn begun(rates: [Arc<Rate>; RATES], now: Instant) -> Self {
        let mut turn = Self { rates, at: now };
        turn.take(0, now);
        turn
    }

    /// A piece has passed, or is about to.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.take(bytes, Instant::now());
    }

    fn take(&mut self, bytes: usize, now: Instant) {
        let turns = self.rates.iter().filter_map(|rate| rate.take(bytes as u64, now));
        self.at = turns.max().unwrap_or(self.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_allowance_that_is_not_used_is_kept_for_a_while_and_no_longer() {
        let (spent, begun) = (Allowance::default(), Instant::now());
        let spend = |after: u32| spent.spend(SECOND / 10, 2 * SECOND, begun + SECOND * after);
        assert_eq!((0..20).filter(|_| spend(0).is_ok()).count(), 20);
        assert_eq!(spend(0), Err(SECOND / 10));
        assert_eq!((0..20).filter(|_| spend(1).is_ok()).count(), 10);
        assert_eq!((0..50).filter(|_| spend(100).is_ok()).count(), 20);
    }

    /// How many seconds so many pieces take, of one transfer after the other with so many each.
    fn time(rate: &Arc<Rate>, now: &mut Instant, transfers: usize, pieces: usize) -> u64 {
        let begun = *now;
        for _ in 0..transfers {
            let mut turn = Turn::begun([Arc::clone(rate)], *now);
            for _ in 0..pieces {
                *now = turn.at.max(*now);
                turn.take(1000, *now);
            }
        }
        (*now - begun).as_secs()
    }

    #[test]
    fn many_small_transfers_take_as_long_as_a_large_one() {
        let (rate, now) = (|most| Arc::new(Rate::new(most, SECOND)), &mut Instant::now());
        // But for what there is ahead, and the last piece.
        assert_eq!(time(&rate(10_000), now, 1, 200), 18);
        let shared = rate(10_000);
        assert_eq!(time(&shared, now, 200, 1), 18);
        assert_eq!(time(&shared, now, 1, 10), 1, "nobody pays for more than is owed");
        assert_eq!(time(&rate(0), now, 200, 1), 0);
    }
}
