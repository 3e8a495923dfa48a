//! Leaves alone for moments what fails.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;

use super::error::Error;

/// Closes after a few failures in a row, or at once where nobody is there. Then one may try at a time, until one succeeds.
#[derive(Default)]
pub(super) struct Gate {
    /// In a row.
    failures: u32,
    /// What has failed, where one thing is told from another.
    things: Vec<u64>,
    /// Nothing is asked before.
    closed_until: Timestamp,
    why: Option<Error>,
}

/// How much a failure says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure<'a> {
    /// Nobody is there, which it has taken long to find out: it closes at once, and nobody else pays for that so soon.
    Silent,
    /// Nobody is there: it closes at once.
    Dead,
    /// One of a few.
    Any,
    /// Likewise, but this thing counts once: two that always fail close nothing.
    Of(&'a str),
}

/// Says something at most once in a while, however often it is the case.
#[derive(Default)]
pub(super) struct Seldom(Mutex<Timestamp>);

/// So many failures in a row close it.
const FEW: u32 = 3;
/// What has come back is found again within this.
pub(super) const LONGEST: Duration = Duration::from_secs(5);
/// For so long what fails is left alone, for a start; then for twice as long each time.
pub(super) const LEFT_ALONE: Duration = Duration::from_secs(1);
/// How often the log is told that an address fails.
const SELDOM: Duration = Duration::from_secs(10);

// === impl Gate ===

impl Gate {
    /// Whether anything may be asked at `now`.
    ///
    /// # Errors
    /// What failed last.
    pub(super) fn check(&self, now: Timestamp) -> Result<(), &Error> {
        match &self.why {
            Some(why) if now < self.closed_until => Err(why),
            _ => Ok(()),
        }
    }

    /// Likewise, of something that is asked at once. Returns true if it tries: the others wait for what becomes of it, or for as long as
    /// that may reasonably take.
    ///
    /// # Errors
    /// What failed last.
    pub(super) fn admit(&mut self, now: Timestamp) -> Result<bool, &Error> {
        let tries = self.failures >= FEW && now >= self.closed_until;
        if tries {
            self.closed_until = now + LONGEST;
            return Ok(true);
        }
        self.check(now).map(|()| false)
    }

    /// Until when it is closed, and why.
    pub(super) fn closed(&self, now: Timestamp) -> Option<(Timestamp, Error)> {
        self.check(now).err().map(|why| (self.closed_until, why.clone()))
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        self.failures > 0
    }

    /// Nothing was found out by the one that tried: another may.
    pub(super) fn is_to_be_tried(&mut self, now: Timestamp) {
        self.closed_until = self.closed_until.min(now);
    }

    /// `shortest`: for so long it is closed the first time. Returns true if this closes it.
    pub(super) fn failed(&mut self, now: Timestamp, why: &Error, failure: Failure<'_>, shortest: Duration) -> bool {
        let before = self.failures;
        if let Failure::Of(thing) = failure
            && before < FEW
        {
            let mut hasher = DefaultHasher::new();
            thing.hash(&mut hasher);
            let thing = hasher.finish();
            if self.things.contains(&thing) {
                return false;
            }
            self.things.push(thing);
        }
        self.failures = before.saturating_add(1);
        if matches!(failure, Failure::Silent | Failure::Dead) {
            self.failures = self.failures.max(FEW);
        }
        if self.failures < FEW {
            return false;
        }
        let doubled = shortest * (1 << (self.failures - FEW).min(8));
        self.closed_until = now + if failure == Failure::Silent { LONGEST } else { doubled.min(LONGEST) };
        self.why = Some(why.clone());
        before < FEW
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

    const SHORTEST: Duration = LEFT_ALONE;
    const WHY: Error = Error::Unsupported(502);

    #[test]
    fn it_closes_after_three_failures_in_a_row_and_one_tries_at_a_time() {
        let (mut gate, start) = (Gate::default(), Timestamp::default());
        assert!(!gate.failed(start, &WHY, Failure::Any, SHORTEST));
        assert!(!gate.failed(start, &WHY, Failure::Any, SHORTEST));
        assert_eq!(gate.admit(start), Ok(false));
        assert!(gate.failed(start, &WHY, Failure::Any, SHORTEST), "the third in a row");
        assert_eq!(gate.admit(start), Err(&WHY));
        assert_eq!(gate.closed(start), Some((start + SHORTEST, WHY)));
        let later = start + SHORTEST;
        assert!(gate.check(later).is_ok(), "one may try");
        assert_eq!(gate.admit(later), Ok(true), "which it is not yet by being about to");
        assert_eq!(gate.admit(later), Err(&WHY), "and no other with it");
        gate.is_to_be_tried(later);
        assert_eq!(gate.admit(later), Ok(true), "unless nothing was found out");
    }

    #[test]
    fn where_nobody_is_there_one_failure_is_enough() {
        for (failure, alone) in [(Failure::Dead, SHORTEST), (Failure::Silent, LONGEST)] {
            let (mut gate, start) = (Gate::default(), Timestamp::default());
            assert!(gate.failed(start, &WHY, failure, SHORTEST));
            assert!(gate.admit(start + alone - Duration::from_millis(1)).is_err());
            assert_eq!(gate.admit(start + alone), Ok(true));
        }
    }

    #[test]
    fn two_things_that_fail_again_and_again_close_nothing() {
        let (mut gate, start) = (Gate::default(), Timestamp::default());
        for _ in 0..10 {
            assert!(!gate.failed(start, &WHY, Failure::Of("a"), SHORTEST));
            assert!(!gate.failed(start, &WHY, Failure::Of("b"), SHORTEST));
        }
        assert!(gate.failed(start, &WHY, Failure::Of("c"), SHORTEST), "three are not their own fault");
        let later = start + SHORTEST;
        assert_eq!(gate.admit(later), Ok(true));
        gate.failed(later, &WHY, Failure::Of("a"), SHORTEST);
        assert!(gate.admit(later).is_err(), "once it is closed, whatever tries decides");
    }

    #[test]
    fn what_has_come_back_is_tried_within_five_seconds() {
        let (mut gate, mut now) = (Gate::default(), Timestamp::default());
        for failure in [Failure::Dead, Failure::Any, Failure::Silent, Failure::Of("a")].into_iter().cycle().take(50) {
            gate.failed(now, &WHY, failure, SHORTEST);
            now = now + LONGEST;
            assert_eq!(gate.admit(now), Ok(true));
        }
        assert!(gate.admit(now).is_err());
        assert!(gate.admit(now + LONGEST).is_ok(), "also when the one that tried was never heard of again");
    }

    #[test]
    fn the_log_is_told_once_in_ten_seconds() {
        let (seldom, start) = (Seldom::default(), Timestamp::default());
        let told = (0..30).filter(|second| seldom.is_due(start + Duration::from_secs(*second)));
        assert_eq!(told.collect::<Vec<_>>(), [0, 10, 20]);
    }
}
