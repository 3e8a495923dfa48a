//! Leaves an address alone that does not answer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::{Clock, Timestamp};
use crate::network::{Crowd, SIZES, SMALLEST, crowd};
use crate::room::Askers;

use super::error::Error;
use super::gate::{Failure, Gate, LEFT_ALONE, LONGEST};

/// What is asked for, clients make up, and some of them what fails, or lets wait. So a failure that depends on it closes the way for those
/// alone who have asked. It is closed for everyone, and opened again, by what nobody has chosen: that no connection leads there, and what
/// becomes of a knock, which is a question of larder's own. One that keeps several waiting is knocked at.
pub(super) struct Breaker {
    state: Mutex<State>,
    clock: Clock,
}

#[derive(Default)]
struct State {
    everyone: Gate,
    /// By the networks of the askers.
    askers: BTreeMap<Crowd, Gate>,
    /// Nobody is knocked at before, for what several wait for.
    next_knock: Timestamp,
}

/// So many askers who are kept waiting, or away, are enough to ask for everyone.
pub(super) const SEVERAL: usize = 3;
/// Of so many askers it is remembered how they fared; others find out again.
const REMEMBERED: usize = 1_000;

// === impl Breaker ===

impl Breaker {
    pub(super) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), clock })
    }

    /// Whether something that is sent at once may be asked for one of these. Where nobody answered, `knock` finds out first whether someone
    /// is there again, and goes on to its end without the caller.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Error::LeftAlone`], or what became of the knock.
    pub(super) async fn admit<F>(self: &Arc<Self>, askers: &Askers, knock: impl FnOnce() -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let first = self.lock().admit(self.clock.now(), askers)?;
        if !first {
            return Ok(());
        }
        let knocked = tokio::spawn(Arc::clone(self).knock(knock()));
        knocked.await.unwrap_or_else(|lost| Err(Error::unavailable(lost.to_string())))
    }

    /// Whether it is worth preparing to ask something for one of these.
    ///
    /// # Errors
    /// [`Error::LeftAlone`].
    pub(super) fn check(&self, askers: &Askers) -> Result<(), Error> {
        self.lock().check(self.clock.now(), askers).map(drop)
    }

    /// Until when nothing is asked for everyone, or for several, and what the last failure was.
    pub(super) fn open_until(&self, now: Timestamp) -> Option<(Timestamp, Error)> {
        let state = self.lock();
        let several = networks(state.askers.iter().filter_map(|(who, gate)| Some((*who, gate.closed(now)?.0)))).len() >= SEVERAL;
        let several = several.then(|| state.askers.values().filter_map(|gate| gate.closed(now)));
        state.everyone.closed(now).or_else(|| several?.max_by_key(|(until, _)| *until))
    }

    pub(super) fn succeeded(&self) {
        let mut state = self.lock();
        if state.everyone.is_in_doubt() || !state.askers.is_empty() {
            *state = State::default();
        }
    }

    /// Nobody has chosen what has failed. Returns true if this closes it.
    pub(super) fn failed(&self, why: &Error, failure: Failure<'_>) -> bool {
        self.lock().everyone.failed(self.clock.now(), why, failure, LEFT_ALONE)
    }

    /// It depends on what these have asked for. Returns true if this closes it for anyone.
    pub(super) fn failed_for<F>(
        self: &Arc<Self>,
        askers: &Askers,
        why: &Error,
        failure: Failure<'_>,
        knock: impl FnOnce() -> F,
    ) -> bool
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let (closed, is_in_doubt) = self.lock().failed_for(self.clock.now(), askers, why, failure);
        if is_in_doubt {
            drop(tokio::spawn(Arc::clone(self).knock(knock())));
        }
        closed
    }

    async fn knock(self: Arc<Self>, knock: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        let said = tokio::time::timeout(LONGEST, knock).await;
        let said = said.unwrap_or_else(|_| Err(Error::timed_out("nobody answers")));
        let mut state = self.lock();
        match &said {
            // What is askers' own is still so.
            Ok(()) => state.everyone = Gate::default(),
            Err(Error::NoSocket(_)) => state.everyone.is_to_be_tried(self.clock.now()),
            Err(why) => {
                let failure = if is_wait(why) { Failure::Silent } else { Failure::Dead };
                state.everyone.failed(self.clock.now(), why, failure, LEFT_ALONE);
            }
        }
        said
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether to find that out takes a while.
fn is_wait(why: &Error) -> bool {
    matches!(why, Error::Unavailable { timed_out: true, .. })
}

/// The networks of these, and the latest of what is so of each: one client may have many of the smaller ones.
pub(super) fn networks(crowds: impl Iterator<Item = (Crowd, Timestamp)>) -> BTreeMap<(Option<IpAddr>, u8), Timestamp> {
    let mut networks = BTreeMap::new();
    for ((who, _), until) in crowds {
        let latest: &mut Timestamp = networks.entry(crowd(who, SIZES[0])).or_default();
        *latest = until.max(*latest);
    }
    networks
}

// === impl State ===

impl State {
    /// For whom it may be asked.
    fn check(&self, now: Timestamp, askers: &Askers) -> Result<Crowd, Error> {
        self.everyone.check(now).map_err(left_alone)?;
        let mut outcome = Err(Error::Left);
        for who in askers.answerable() {
            let who = crowd(who, SMALLEST);
            match self.askers.get(&who).map_or(Ok(()), |gate| gate.check(now)) {
                Ok(()) => return Ok(who),
                Err(why) => outcome = Err(left_alone(why)),
            }
        }
        outcome
    }

    /// Returns true if it is to be found out first whether someone is there.
    fn admit(&mut self, now: Timestamp, askers: &Askers) -> Result<bool, Error> {
        let who = self.check(now, askers)?;
        self.askers.get_mut(&who).map_or(Ok(false), |gate| gate.admit(now)).map_err(left_alone)?;
        self.everyone.admit(now).map_err(left_alone)
    }

    /// Whether this closes it for anyone, and whether someone is there is to be found out.
    fn failed_for(&mut self, now: Timestamp, askers: &Askers, why: &Error, failure: Failure<'_>) -> (bool, bool) {
        let mut closed = false;
        for who in askers.answerable() {
            let who = crowd(who, SMALLEST);
            if self.askers.len() >= REMEMBERED && !self.askers.contains_key(&who) {
                self.askers.retain(|_, gate| gate.check(now).is_err());
            }
            if self.askers.len() < REMEMBERED || self.askers.contains_key(&who) {
                closed |= self.askers.entry(who).or_default().failed(now, why, failure, LEFT_ALONE);
            }
        }
        let waiting = |gate: &Gate| gate.closed(now).filter(|(_, why)| is_wait(why)).map(|(until, _)| until);
        let waiting = self.askers.iter().filter_map(|(who, gate)| Some((*who, waiting(gate)?)));
        let doubt = now >= self.next_knock && is_wait(why) && networks(waiting).len() >= SEVERAL;
        if doubt {
            self.next_knock = now + LONGEST;
        }
        (closed, doubt)
    }
}

fn left_alone(why: &Error) -> Error {
    why.clone().left_alone()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    const WHY: Error = Error::Unsupported(502);

    /// One with an address behind it that answers a knock as it is told.
    struct Case {
        breaker: Arc<Breaker>,
        clock: Clock,
        knocks: Arc<AtomicUsize>,
        answer: Result<(), Error>,
    }

    impl Case {
        fn new(answer: Result<(), Error>) -> Self {
            let clock = Clock::still();
            Self { breaker: Breaker::new(clock.clone()), clock, knocks: Arc::default(), answer }
        }

        fn knock(&self) -> impl Future<Output = Result<(), Error>> + use<> {
            let (knocks, answer) = (Arc::clone(&self.knocks), self.answer.clone());
            async move {
                knocks.fetch_add(1, Ordering::Relaxed);
                answer
            }
        }

        async fn admit(&self, askers: &Askers) -> Result<(), Error> {
            self.breaker.admit(askers, || self.knock()).await
        }

        fn fails_for(&self, n: u8, why: &Error, failure: Failure<'_>) -> bool {
            self.breaker.failed_for(&client(n), why, failure, || self.knock())
        }

        /// Knocks until now, once those that are under way have come to their end.
        async fn knocks(&self) -> usize {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            self.knocks.load(Ordering::Relaxed)
        }

        async fn admitted<const N: usize>(&self, clients: [u8; N]) -> [bool; N] {
            let mut admitted = [false; N];
            for (admitted, n) in admitted.iter_mut().zip(clients) {
                *admitted = self.admit(&client(n)).await.is_ok();
            }
            admitted
        }
    }

    fn client(n: u8) -> Askers {
        Askers::from(IpAddr::from([192, 0, 2, n]))
    }

    fn hangs() -> Error {
        Error::timed_out("no answer")
    }

    #[tokio::test]
    async fn where_no_connection_leads_a_knock_finds_out_and_nobody_asks_before() {
        let mut case = Case::new(Err(WHY));
        assert!(case.breaker.failed(&WHY, Failure::Dead));
        assert_eq!(case.admit(&client(1)).await, Err(left_alone(&WHY)));
        assert_eq!(case.breaker.open_until(case.clock.now()), Some((case.clock.now() + LEFT_ALONE, WHY)));
        case.clock.advance(LEFT_ALONE);
        assert!(case.breaker.check(&client(1)).is_ok(), "it is worth a try");
        assert_eq!(case.admit(&client(1)).await, Err(WHY), "that is new");
        assert_eq!(case.admit(&client(2)).await, Err(left_alone(&WHY)));
        case.answer = Ok(());
        case.clock.advance(LONGEST);
        assert_eq!(case.admitted([2, 1, 3]).await, [true; 3]);
        assert_eq!(case.knocks().await, 2);
    }

    /// Who won the race to be the one that tries kept it closed for everyone with what lets him wait.
    #[tokio::test]
    async fn who_leaves_before_the_knock_is_answered_keeps_nobody_out() {
        let case = Case::new(Ok(()));
        case.breaker.failed(&WHY, Failure::Dead);
        case.clock.advance(LEFT_ALONE);
        let anyone = client(1);
        let mut leaves = Box::pin(case.admit(&anyone));
        assert!(futures_util::poll!(&mut leaves).is_pending());
        assert!(case.breaker.check(&client(2)).is_err(), "until it is answered");
        drop(leaves);
        assert_eq!(case.knocks().await, 1);
        assert!(case.breaker.check(&client(2)).is_ok());
    }

    #[tokio::test]
    async fn who_asks_for_what_fails_keeps_nobody_else_from_asking() {
        let case = Case::new(Err(WHY));
        for thing in 0..100_u8 {
            case.fails_for(thing % 10, &WHY, Failure::Of(&thing.to_string()));
        }
        assert_eq!(case.admitted([0, 1, 9, 10]).await, [false, false, false, true]);
        assert_eq!(case.breaker.open_until(case.clock.now()).map(|(_, why)| why), Some(WHY), "of ten it is told");
        assert!(case.admit(&Askers::default()).await.is_ok());
        let company = client(1).company();
        let _both = [client(1), client(10)].map(|who| company.enter(&who));
        assert!(case.admit(&Askers::Company(company)).await.is_ok(), "one of whom may");
        case.breaker.succeeded();
        assert_eq!(case.admitted([0, 1, 9, 10]).await, [true; 4]);
        assert_eq!(case.knocks().await, 0);
    }

    #[tokio::test]
    async fn one_that_keeps_several_waiting_is_knocked_at_and_closed_if_nobody_answers() {
        for answer in [Ok(()), Err(hangs())] {
            let case = Case::new(answer.clone());
            for n in [1, 2, 2, 2] {
                case.fails_for(n, &hangs(), Failure::Silent);
            }
            assert_eq!((case.knocks().await, case.admitted([1, 2, 3]).await), (0, [false, false, true]));
            for n in [3, 4, 5, 6] {
                case.fails_for(n, &hangs(), Failure::Silent);
            }
            assert_eq!(case.knocks().await, 1, "not for each");
            assert_eq!(case.admitted([1, 3, 7]).await, [false, false, answer.is_ok()], "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_network_whose_addresses_wait_is_one() {
        let case = Case::new(Err(hangs()));
        let of_many = |n| Askers::from(IpAddr::from([0x2001, 0xdb8, 1, n, 0, 0, 0, 0]));
        for n in 0..100 {
            case.breaker.failed_for(&of_many(n), &hangs(), Failure::Silent, || case.knock());
        }
        assert_eq!((case.knocks().await, case.admitted([1]).await), (0, [true]));
    }

    #[tokio::test]
    async fn for_want_of_a_socket_nothing_is_found_out_and_the_next_one_tries() {
        let case = Case::new(Err(Error::NoSocket("none".into())));
        case.breaker.failed(&WHY, Failure::Silent);
        case.clock.advance(LONGEST);
        assert_eq!(case.admitted([1, 2, 3]).await, [false; 3]);
        assert_eq!(case.knocks().await, 3);
    }

    #[tokio::test]
    async fn any_number_of_askers_is_remembered_no_longer_than_they_are_kept_out() {
        let case = Case::new(Ok(()));
        let asker = |n: u32| Askers::from(IpAddr::from(n.to_be_bytes()));
        let fails = |n| case.breaker.failed_for(&asker(n), &WHY, Failure::Any, || case.knock());
        (0..5_000).for_each(|n| _ = fails(n));
        assert_eq!(case.breaker.lock().askers.len(), REMEMBERED);
        case.clock.advance(LEFT_ALONE);
        (0..3).for_each(|_| _ = fails(9_999));
        assert!(case.admit(&asker(9_999)).await.is_err());
        case.clock.advance(Duration::from_secs(1));
        assert!(case.admit(&asker(9_999)).await.is_ok(), "he tries himself");
    }
}
