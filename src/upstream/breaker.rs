//! Leaves an address alone that does not answer.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::network::{Crowd, SIZES, SMALLEST, crowd};
use crate::room::Askers;

use super::error::Error;

/// Opens after a few failures in a row, or at once where nobody is there. While it is open nothing is asked; then one request
/// goes through, and what becomes of it decides.
///
/// What is asked for, clients make up, and some of them what fails. So a failure that depends on it opens the breaker for those alone
/// who have asked; others find out for themselves, and it shows that someone is there. Only that it keeps several waiting, or wants them to
/// wait, is believed for everyone.
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
    /// It wants to be left alone until then: it opens at once.
    Told(Timestamp),
    /// One of a few.
    Any,
    /// Of this thing. Until it is open, what has failed before says no more of the rest.
    Of(&'a str),
}

#[derive(Default)]
struct State {
    everyone: Gate,
    /// By the networks of the askers.
    askers: BTreeMap<Crowd, Gate>,
}

/// What is known for someone.
#[derive(Default)]
struct Gate {
    /// In a row.
    failures: u32,
    /// What has failed, where one thing is told from another.
    things: Vec<u64>,
    /// Nothing is asked before.
    closed_from: Timestamp,
    why: Option<Error>,
}

/// Says something at most once in a while, however often it is the case.
#[derive(Default)]
pub(super) struct Seldom(Mutex<Timestamp>);

/// So many failures in a row open it.
const FEW: u32 = 3;
/// So many askers who are kept waiting open it for everyone.
const SEVERAL: usize = 3;
/// What has come back is found again within this.
pub(super) const LONGEST: Duration = Duration::from_secs(5);
/// For so long an address is left alone that fails, for a start.
pub(super) const LEFT_ALONE: Duration = Duration::from_secs(1);
/// How often the log is told that an address fails.
const SELDOM: Duration = Duration::from_secs(10);
/// Of so many askers it is remembered how they fared; others find out again.
const REMEMBERED: usize = 1_000;

// === impl Breaker ===

impl Breaker {
    pub(super) fn new(shortest: Duration) -> Self {
        Self { shortest, state: Mutex::default() }
    }

    /// Whether something that is sent at once may be asked at `now`, for one of these.
    ///
    /// # Errors
    /// [`Error::LeftAlone`].
    pub(super) fn admit(&self, now: Timestamp, askers: &Askers) -> Result<(), Error> {
        let mut state = self.lock();
        let state = &mut *state;
        let who = state.check(now, askers)?;
        // This one tries; the others wait for what becomes of it, or for as long as a try may reasonably take.
        for gate in [Some(&mut state.everyone), state.askers.get_mut(&who)].into_iter().flatten() {
            if gate.failures >= FEW {
                gate.closed_from = now + LONGEST;
            }
        }
        Ok(())
    }

    /// Whether it is worth preparing to ask something at `now`, for one of these.
    ///
    /// # Errors
    /// [`Error::LeftAlone`].
    pub(super) fn check(&self, now: Timestamp, askers: &Askers) -> Result<(), Error> {
        self.lock().check(now, askers).map(drop)
    }

    /// Until when nothing is asked for everyone, or for several, and what the last failure was.
    pub(super) fn open_until(&self, now: Timestamp) -> Option<(Timestamp, Error)> {
        let state = self.lock();
        let open = |gate: &Gate| gate.check(now).err().map(|why| (gate.closed_from, why.clone()));
        let several = state.are_several(|gate| gate.check(now).is_err()).then(|| state.askers.values().filter_map(open));
        open(&state.everyone).or_else(|| several?.max_by_key(|(until, _)| *until))
    }

    pub(super) fn succeeded(&self) {
        let mut state = self.lock();
        if state.everyone.failures > 0 || !state.askers.is_empty() {
            *state = State::default();
        }
    }

    /// Likewise, of one thing or another that they have asked for: what others were told is still so.
    pub(super) fn succeeded_for(&self, askers: &Askers) {
        let mut state = self.lock();
        if state.everyone.failures > 0 || !state.askers.is_empty() {
            state.everyone = Gate::default();
            askers.answerable().into_iter().for_each(|who| _ = state.askers.remove(&crowd(who, SMALLEST)));
        }
    }

    /// `of`: those who have asked, where it depends on what they have asked for. Returns true if this opens it, for anyone.
    pub(super) fn failed(&self, now: Timestamp, why: &Error, failure: Failure<'_>, of: Option<&Askers>) -> bool {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(askers) = of else { return state.everyone.failed(now, why, failure, self.shortest) };
        if state.everyone.failures >= FEW {
            if lets_wait(why) {
                return state.everyone.failed(now, why, failure, self.shortest);
            }
            state.everyone = Gate::default();
        }
        let mut opened = false;
        for who in askers.answerable() {
            let who = crowd(who, SMALLEST);
            if state.askers.len() >= REMEMBERED && !state.askers.contains_key(&who) {
                state.askers.retain(|_, gate| now < gate.closed_from);
            }
            if state.askers.len() < REMEMBERED || state.askers.contains_key(&who) {
                opened |= state.askers.entry(who).or_default().failed(now, why, failure, self.shortest);
            }
        }
        if opened && state.are_several(|gate| gate.check(now).is_err_and(lets_wait)) {
            let failure = if let Failure::Told(_) = failure { failure } else { Failure::Silent };
            state.everyone.failed(now, why, failure, self.shortest);
        }
        opened
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether to find that out takes a while, or to do so again is not wanted.
fn lets_wait(why: &Error) -> bool {
    matches!(why, Error::Unavailable { timed_out: true, .. } | Error::RateLimited { .. })
}

// === impl State ===

impl State {
    /// For whom it may be asked.
    fn check(&self, now: Timestamp, askers: &Askers) -> Result<Crowd, Error> {
        let refused = |why: &Error| Error::LeftAlone(Box::new(why.clone()));
        self.everyone.check(now).map_err(refused)?;
        let mut outcome = Err(Error::Left);
        for who in askers.answerable() {
            let who = crowd(who, SMALLEST);
            match self.askers.get(&who).map_or(Ok(()), |gate| gate.check(now)) {
                Ok(()) => return Ok(who),
                Err(why) => outcome = Err(refused(why)),
            }
        }
        outcome
    }

    /// Whether those of whom this is so are in several networks, and not one who has several.
    fn are_several(&self, are: impl Fn(&Gate) -> bool) -> bool {
        let networks = self.askers.iter().filter(|(_, gate)| are(gate)).map(|((who, _), _)| crowd(*who, SIZES[0]));
        networks.collect::<BTreeSet<_>>().len() >= SEVERAL
    }
}

// === impl Gate ===

impl Gate {
    fn check(&self, now: Timestamp) -> Result<(), &Error> {
        match &self.why {
            Some(why) if now < self.closed_from => Err(why),
            _ => Ok(()),
        }
    }

    /// Returns true if this closes it.
    fn failed(&mut self, now: Timestamp, why: &Error, failure: Failure<'_>, shortest: Duration) -> bool {
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
        if matches!(failure, Failure::Silent | Failure::Dead | Failure::Told(_)) {
            self.failures = self.failures.max(FEW);
        }
        if self.failures < FEW {
            return false;
        }
        let doubled = shortest * (1 << (self.failures - FEW).min(8));
        self.closed_from = match failure {
            Failure::Told(until) => until,
            Failure::Silent => now + LONGEST,
            _ => now + doubled.min(LONGEST),
        };
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
    use std::net::IpAddr;

    use super::*;

    const SHORTEST: Duration = Duration::from_secs(1);
    const WHY: Error = Error::Unsupported(502);

    fn client(n: u8) -> Askers {
        Askers::from(IpAddr::from([192, 0, 2, n]))
    }

    #[test]
    fn it_opens_after_three_failures_in_a_row_and_tries_with_one_request() {
        let (breaker, start, anyone) = (Breaker::new(SHORTEST), Timestamp::default(), client(1));
        assert!(!breaker.failed(start, &WHY, Failure::Any, None));
        assert!(!breaker.failed(start, &WHY, Failure::Any, None));
        breaker.succeeded();
        assert!(!breaker.failed(start, &WHY, Failure::Any, None));
        assert!(!breaker.failed(start, &WHY, Failure::Any, None));
        assert!(breaker.admit(start, &anyone).is_ok());
        assert!(breaker.failed(start, &WHY, Failure::Any, None), "the third in a row");
        assert_eq!(breaker.admit(start, &anyone), Err(Error::LeftAlone(Box::new(WHY))));
        assert_eq!(breaker.open_until(start), Some((start + SHORTEST, WHY)));
        let later = start + SHORTEST;
        assert!(breaker.check(later, &anyone).is_ok(), "one may try");
        assert!(breaker.admit(later, &anyone).is_ok(), "which it is not yet by being about to");
        assert!(breaker.admit(later, &client(2)).is_err(), "and no other with it");
        breaker.succeeded();
        assert!(breaker.admit(later, &anyone).is_ok());
        assert!(breaker.admit(later, &anyone).is_ok());
    }

    #[test]
    fn where_nobody_is_there_one_failure_is_enough() {
        for (failure, alone) in [(Failure::Dead, SHORTEST), (Failure::Silent, LONGEST)] {
            let (breaker, start, anyone) = (Breaker::new(SHORTEST), Timestamp::default(), client(1));
            assert!(breaker.failed(start, &WHY, failure, None));
            assert!(breaker.admit(start + alone - Duration::from_millis(1), &anyone).is_err());
            assert!(breaker.admit(start + alone, &anyone).is_ok());
        }
    }

    #[test]
    fn two_things_that_fail_again_and_again_keep_nobody_from_the_others() {
        let (breaker, start, who) = (Breaker::new(SHORTEST), Timestamp::default(), client(1));
        for _ in 0..10 {
            assert!(!breaker.failed(start, &WHY, Failure::Of("a"), Some(&who)));
            assert!(!breaker.failed(start, &WHY, Failure::Of("b"), Some(&who)));
        }
        assert!(breaker.failed(start, &WHY, Failure::Of("c"), Some(&who)), "three are not their own fault");
        let later = start + SHORTEST;
        assert!(breaker.admit(later, &who).is_ok());
        breaker.failed(later, &WHY, Failure::Of("a"), Some(&who));
        assert!(breaker.admit(later, &who).is_err(), "once it is open, whatever tries decides");
    }

    /// Who won the race to be the one that tries kept it open for everyone with what fails for him.
    #[test]
    fn who_tries_with_what_fails_for_him_shows_that_someone_is_there() {
        let (breaker, start) = (Breaker::new(SHORTEST), Timestamp::default());
        breaker.failed(start, &WHY, Failure::Dead, None);
        let later = start + SHORTEST;
        assert!(breaker.admit(later, &client(1)).is_ok());
        assert!(breaker.admit(later, &client(2)).is_err());
        breaker.failed(later, &WHY, Failure::Of("a"), Some(&client(1)));
        assert!(breaker.admit(later, &client(2)).is_ok());
        let hangs = Error::timed_out("no answer");
        breaker.failed(later, &WHY, Failure::Dead, None);
        breaker.failed(later, &hangs, Failure::Of("a"), Some(&client(1)));
        assert!(breaker.admit(later, &client(2)).is_err(), "nobody has answered");
    }

    #[test]
    fn what_one_is_told_is_so_also_when_another_is_answered() {
        let (breaker, start) = (Breaker::new(SHORTEST), Timestamp::default());
        let until = start + Duration::from_mins(1);
        for n in [1, 2] {
            breaker.failed(start, &WHY, Failure::Told(until), Some(&client(n)));
        }
        breaker.succeeded_for(&client(3));
        assert!([1, 2].iter().all(|n| breaker.admit(start, &client(*n)).is_err()));
        breaker.succeeded_for(&client(1));
        assert_eq!([1, 2].map(|n| breaker.admit(start, &client(n)).is_ok()), [true, false]);
    }

    #[test]
    fn who_asks_for_what_fails_keeps_nobody_else_from_asking() {
        let (breaker, start) = (Breaker::new(SHORTEST), Timestamp::default());
        for thing in 0..100_u8 {
            breaker.failed(start, &WHY, Failure::Of(&thing.to_string()), Some(&client(thing % 10)));
        }
        assert!((0..10).all(|n| breaker.admit(start, &client(n)).is_err()));
        assert_eq!(breaker.open_until(start).map(|(_, why)| why), Some(WHY), "of ten it is told");
        assert!(breaker.admit(start, &client(10)).is_ok());
        assert!(breaker.admit(start, &Askers::default()).is_ok());
        let company = client(1).company();
        let _both = [client(1), client(10)].map(|who| company.enter(&who));
        assert!(breaker.admit(start, &Askers::Company(company)).is_ok(), "one of whom may");
        breaker.succeeded();
        assert!((0..10).all(|n| breaker.admit(start, &client(n)).is_ok()));
    }

    #[test]
    fn that_it_keeps_several_waiting_or_wants_to_be_left_alone_is_believed_for_everyone() {
        let start = Timestamp::default();
        let until = start + Duration::from_mins(1);
        let slow = (Error::timed_out("no answer"), Failure::Silent, start + LONGEST);
        for (why, failure, until) in [slow, (Error::RateLimited { until }, Failure::Told(until), until)] {
            let breaker = Breaker::new(SHORTEST);
            for n in [1, 2, 2, 2] {
                breaker.failed(start, &why, failure, Some(&client(n)));
            }
            assert_eq!([1, 2, 3].map(|n| breaker.admit(start, &client(n)).is_ok()), [false, false, true]);
            breaker.failed(start, &why, failure, Some(&client(3)));
            assert_eq!(breaker.admit(start, &client(4)).map_err(|error| error.cause().clone()), Err(why));
            assert!(breaker.admit(until, &client(4)).is_ok());
            assert!(breaker.admit(until, &client(5)).is_err(), "one tries");
        }
    }

    #[test]
    fn any_number_of_askers_is_remembered_no_longer_than_they_are_kept_out() {
        let (breaker, start) = (Breaker::new(SHORTEST), Timestamp::default());
        let asker = |n: u32| Askers::from(IpAddr::from(n.to_be_bytes()));
        (0..5_000).for_each(|n| _ = breaker.failed(start, &WHY, Failure::Any, Some(&asker(n))));
        assert_eq!(breaker.lock().askers.len(), REMEMBERED);
        (0..3).for_each(|_| _ = breaker.failed(start + SHORTEST, &WHY, Failure::Any, Some(&asker(9_999))));
        assert!(breaker.admit(start + SHORTEST, &asker(9_999)).is_err());
    }

    #[test]
    fn what_has_come_back_is_tried_within_five_seconds() {
        for of in [None, Some(client(1))] {
            let (breaker, mut now, who) = (Breaker::new(SHORTEST), Timestamp::default(), client(1));
            for failure in [Failure::Any, Failure::Dead, Failure::Silent, Failure::Of("a")].into_iter().cycle().take(50) {
                breaker.failed(now, &WHY, failure, of.as_ref());
                now = now + LONGEST;
                assert!(breaker.admit(now, &who).is_ok());
            }
            assert!(breaker.admit(now, &who).is_err());
            assert!(breaker.admit(now + LONGEST, &who).is_ok(), "also when the one that tried was never heard of again");
        }
    }

    #[test]
    fn the_log_is_told_once_in_ten_seconds() {
        let (seldom, start) = (Seldom::default(), Timestamp::default());
        let told = (0..30).filter(|second| seldom.is_due(start + Duration::from_secs(*second)));
        assert_eq!(told.collect::<Vec<_>>(), [0, 10, 20]);
    }
}
