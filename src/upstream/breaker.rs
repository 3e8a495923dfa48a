//! Leaves an address alone that does not answer.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;

use super::error::Error;

/// Opens after a few failures in a row. While it is open nothing is asked; then one request goes through, and what becomes of
/// it decides.
pub(super) struct Breaker {
    /// For so long it is open the first time; then for twice as long each time.
    shortest: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In a row.
    failures: u32,
    /// Nothing is asked before.
    closed_from: Timestamp,
    why: Option<Error>,
}

/// So many failures in a row open it.
const FEW: u32 = 3;
/// What has come back is found again within this.
pub(super) const LONGEST: Duration = Duration::from_secs(5);

// === impl Breaker ===

impl Breaker {
    pub(super) fn new(shortest: Duration) -> Self {
        Self { shortest, state: Mutex::default() }
    }

    /// Whether something that is sent at once may be asked at `now`.
    ///
    /// # Errors
    /// What the last failure was.
    pub(super) fn admit(&self, now: Timestamp) -> Result<(), Error> {
        let mut state = self.lock();
        state.check(now)?;
        if state.failures >= FEW {
            // This one tries; the others wait for what becomes of it, or for as long as a try may reasonably take.
            state.closed_from = now + LONGEST;
        }
        Ok(())
    }

    /// Whether it is worth preparing to ask something at `now`.
    ///
    /// # Errors
    /// What the last failure was.
    pub(super) fn check(&self, now: Timestamp) -> Result<(), Error> {
        self.lock().check(now)
    }

    pub(super) fn succeeded(&self) {
        let mut state = self.lock();
        if state.failures > 0 {
            *state = State::default();
        }
    }

    /// Returns true if this opens it.
    pub(super) fn failed(&self, now: Timestamp, why: &Error) -> bool {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures < FEW {
            return false;
        }
        let doubled = (state.failures - FEW).min(8);
        state.closed_from = now + (self.shortest * (1 << doubled)).min(LONGEST);
        state.why = Some(why.clone());
        state.failures == FEW
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn check(&self, now: Timestamp) -> Result<(), Error> {
        match &self.why {
            Some(why) if now < self.closed_from => Err(why.clone()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORTEST: Duration = Duration::from_secs(1);
    const WHY: Error = Error::Unsupported(502);

    #[test]
    fn it_opens_after_three_failures_in_a_row_and_tries_with_one_request() {
        let (breaker, start) = (Breaker::new(SHORTEST), Timestamp::default());
        assert!(!breaker.failed(start, &WHY));
        assert!(!breaker.failed(start, &WHY));
        breaker.succeeded();
        assert!(!breaker.failed(start, &WHY));
        assert!(!breaker.failed(start, &WHY));
        assert!(breaker.admit(start).is_ok());
        assert!(breaker.failed(start, &WHY), "the third in a row");
        assert_eq!(breaker.admit(start), Err(WHY));
        let later = start + SHORTEST;
        assert!(breaker.check(later).is_ok(), "one may try");
        assert!(breaker.admit(later).is_ok(), "which it is not yet by being about to");
        assert!(breaker.admit(later).is_err(), "and no other with it");
        breaker.succeeded();
        assert!(breaker.admit(later).is_ok());
        assert!(breaker.admit(later).is_ok());
    }

    #[test]
    fn what_has_come_back_is_tried_within_five_seconds() {
        let (breaker, mut now) = (Breaker::new(SHORTEST), Timestamp::default());
        for _ in 0..50 {
            breaker.failed(now, &WHY);
            now = now + LONGEST;
            assert!(breaker.admit(now).is_ok());
        }
        assert!(breaker.admit(now).is_err());
        assert!(breaker.admit(now + LONGEST).is_ok(), "also when the one that tried was never heard of again");
    }
}
