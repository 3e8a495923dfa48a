//! What there is so much of in a second: requests, bytes.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Up to when an allowance has been used. Each use takes the time that it is worth; what has not been used is lost, but for a
/// while's worth.
#[derive(Default)]
pub(crate) struct Allowance(Mutex<Option<Instant>>);

/// What so many are worth where there are `rate` in a second, which is not 0.
pub(crate) fn worth(amount: u64, rate: u64) -> Duration {
    Duration::from_nanos(amount.saturating_mul(1_000_000_000) / rate)
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
    pub(crate) fn is_overspent(&self, ahead: Duration, now: Instant) -> bool {
        let spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spent.is_some_and(|spent| spent > now + ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_that_is_not_used_is_kept_for_a_while_and_no_longer() {
        let (spent, begun) = (Allowance::default(), Instant::now());
        let second = Duration::from_secs(1);
        let spend = |after: u32| spent.spend(second / 10, 2 * second, begun + second * after);
        assert_eq!((0..20).filter(|_| spend(0).is_ok()).count(), 20);
        assert_eq!(spend(0), Err(second / 10));
        assert_eq!((0..20).filter(|_| spend(1).is_ok()).count(), 10);
        assert_eq!((0..50).filter(|_| spend(100).is_ok()).count(), 20);
    }
}
