//! Leaves an address alone that does not answer.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;

use super::error::Error;

/// Opens after a few failures in a row, or at once where nobody is there. While it is open nothing is asked; then one request
/// goes through, and what becomes of it decides.
pub(super) struct Breaker {
    /// For so long it is open the first time; then for twice as long each time.
    shortest: Duration,
    state: Mutex<State>,
}

/// How much a failure says of the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure<'a> {
    /// Nobody is there, which it has taken long to find out: it opens at once, and nobody else pays for that so soon.
    Silent,
    /// Nobody is there: it opens at once.
    Dead,
    /// One of a few.
    Any,
    /// Of this thing. Until it is open, what has failed before says no more of the rest.
    Of(&'a str),
}

#[derive(Default)]
struct State {
    /// In a row.
    failures: u32,
    /// What has failed, where one thing is told from another.
    things: Vec<String>,
    /// Nothing is asked before.
    closed_from: Timestamp,
    why: Option<Error>,
}

/// Says something at most once in a while, however often it is the case.
#[derive(Default)]
pub(super) struct Seldom(Mutex<Timestamp>);

/// So many failures in a row open it.
const FEW: u32 = 3;
/// What has come back is found again within this.
pub(super) const LONGEST: Duration = Duration::from_secs(5);
/// For so long an address is left alone that fails, for a start.
pub(super) const LEFT_ALONE: Duration = Duration::from_secs(1);
/// How often the log is told that an address fails.
const SELDOM: Duration = Duration::from_secs(10);

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

    /// Nothing is asked before.
    pub(super) fn closed_from(&self) -> Timestamp {
        let state = self.lock();
        if state.why.is_some() { state.closed_from } else { Timestamp::default() }
    }

    pub(super) fn succeeded(&self) {
        let mut state = self.lock();
        if state.failures > 0 {
            *state = State::default();
        }
    }

    /// Returns true if this opens it.
    pub(super) fn failed(&self, now: Timestamp, why: &Error, failure: Failure<'_>) -> bool {
        let mut state = self.lock();
        let before = state.failures;
        if let Failure::Of(thing) = failure
            && before < FEW
        {
            if state.things.iter().any(|known| known == thing) {
                return false;
            }
            state.things.push(thing.to_owned());
        }
        state.failures = before.saturating_add(1);
        if matches!(failure, Failure::Silent | Failure::Dead) {
            state.failures = state.failures.max(FEW);
        }
        if state.failures < FEW {
            return false;
        }
        let doubled = self.shortest * (1 << (state.failures - FEW).min(8));
        let alone = if failure == Failure::Silent { LONGEST } else { doubled.min(LONGEST) };
        state.closed_from = now + alone;
        state.why = Some(why.clone());
        before < FEW
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

// === impl Seldom ===

impl Seldom {
    /// Whether to say it at `now`.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = now >= *next;
        if due {
            *next = now + SELDOM;
        }
        due
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
        assert!(!breaker.failed(start, &WHY, Failure::Any));
        assert!(!breaker.failed(start, &WHY, Failure::Any));
        breaker.succeeded();
        assert!(!breaker.failed(start, &WHY, Failure::Any));
        assert!(!breaker.failed(start, &WHY, Failure::Any));
        assert!(breaker.admit(start).is_ok());
        assert!(breaker.failed(start, &WHY, Failure::Any), "the third in a row");
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
    fn where_nobody_is_there_one_failure_is_enough() {
        for (failure, alone) in [(Failure::Dead, SHORTEST), (Failure::Silent, LONGEST)] {
            let (breaker, start) = (Breaker::new(SHORTEST), Timestamp::default());
            assert!(breaker.failed(start, &WHY, failure));
            assert!(breaker.admit(start + alone - Duration::from_millis(1)).is_err());
            assert!(breaker.admit(start + alone).is_ok());
        }
    }

    #[test]
    fn two_things_that_fail_again_and_again_keep_nobody_from_the_others() {
        let (breaker, start) = (Breaker::new(SHORTEST), Timestamp::default());
        for _ in 0..10 {
            assert!(!breaker.failed(start, &WHY, Failure::Of("a")));
            assert!(!breaker.failed(start, &WHY, Failure::Of("b")));
        }
        assert!(breaker.failed(start, &WHY, Failure::Of("c")), "three are not their own fault");
        let later = start + SHORTEST;
        assert!(breaker.admit(later).is_ok());
        breaker.failed(later, &WHY, Failure::Of("a"));
        assert!(breaker.admit(later).is_err(), "once it is open, whatever tries decides");
    }

    #[test]
    fn what_has_come_back_is_tried_within_five_seconds() {
        let (breaker, mut now) = (Breaker::new(SHORTEST), Timestamp::default());
        for failure in [Failure::Any, Failure::Dead, Failure::Silent, Failure::Of("a")].into_iter().cycle().take(50) {
            breaker.failed(now, &WHY, failure);
            now = now + LONGEST;
            assert!(breaker.admit(now).is_ok());
        }
        assert!(breaker.admit(now).is_err());
        assert!(breaker.admit(now + LONGEST).is_ok(), "also when the one that tried was never heard of again");
    }

    #[test]
    fn the_log_is_told_once_in_ten_seconds() {
        let (seldom, start) = (Seldom::default(), Timestamp::default());
        let told = (0..30).filter(|second| seldom.is_due(start + Duration::from_secs(*second)));
        assert_eq!(told.collect::<Vec<_>>(), [0, 10, 20]);
    }
}
