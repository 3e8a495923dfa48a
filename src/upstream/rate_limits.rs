//! Who has been told to ask less often.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Timestamp;
use crate::network::{Crowd, SMALLEST, crowd};
use crate::room::Askers;

use super::breaker::{SEVERAL, networks};

/// Until when whom is told so. What is asked for, clients make up, and some of them what is told: it is so for those alone who have asked,
/// and for everyone where several are told it. `K`: what it is said of besides, such as a login.
pub(super) struct RateLimits<K>(Mutex<HashMap<(K, Crowd), Timestamp>>);

/// Of so many it is remembered; others are told again.
const REMEMBERED: usize = 1_000;

// === impl RateLimits ===

impl<K> Default for RateLimits<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> RateLimits<K> {
    /// Whether something may be asked at `now` for one of these.
    ///
    /// # Errors
    /// From when on.
    pub(super) fn check(&self, now: Timestamp, of: &K, askers: &Askers) -> Result<(), Timestamp> {
        let told = self.lock();
        if told.is_empty() {
            return Ok(());
        }
        if let Some(until) = for_everyone(&told, now, of) {
            return Err(until);
        }
        let until = |who| told.get(&(of.clone(), crowd(who, SMALLEST))).copied().unwrap_or_default();
        let until = askers.answerable().into_iter().map(until).min().unwrap_or_default();
        if now < until { Err(until) } else { Ok(()) }
    }

    /// Until when it is so for everyone.
    pub(super) fn for_everyone(&self, now: Timestamp, of: &K) -> Option<Timestamp> {
        for_everyone(&self.lock(), now, of)
    }

    /// These are told to ask nothing before `until`.
    pub(super) fn told(&self, now: Timestamp, of: &K, askers: &Askers, until: Timestamp) {
        let mut told = self.lock();
        for who in askers.answerable() {
            let key = (of.clone(), crowd(who, SMALLEST));
            if told.len() >= REMEMBERED && !told.contains_key(&key) {
                told.retain(|_, until| now < *until);
            }
            if told.len() < REMEMBERED || told.contains_key(&key) {
                told.insert(key, until);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(K, Crowd), Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn for_everyone<K: PartialEq>(told: &HashMap<(K, Crowd), Timestamp>, now: Timestamp, of: &K) -> Option<Timestamp> {
    let told = told.iter().filter(|((told_of, _), until)| told_of == of && now < **until);
    let mut networks: Vec<_> = networks(told.map(|((_, who), until)| (*who, *until))).into_values().collect();
    networks.sort_unstable_by(|a, b| b.cmp(a));
    networks.get(SEVERAL - 1).copied()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use super::*;

    fn client(n: u32) -> Askers {
        Askers::from(IpAddr::from(Ipv4Addr::from_bits(n)))
    }

    #[test]
    fn what_one_is_told_is_so_for_him_and_what_several_are_told_for_everyone_until_it_is_over() {
        let (limits, start) = (RateLimits::default(), Timestamp::default());
        let seconds = |n| start + Duration::from_secs(n);
        for (n, until) in [(1, 60), (1, 60), (2, 20), (2, 30)] {
            limits.told(start, &"alice", &client(n), seconds(until));
        }
        let of = |limits: &RateLimits<_>, now, who| [1, 2, 3].map(|n| limits.check(now, &who, &client(n)));
        assert_eq!(of(&limits, start, "alice"), [Err(seconds(60)), Err(seconds(30)), Ok(())]);
        assert_eq!(of(&limits, start, "bob"), [Ok(()); 3], "another login");
        let company = client(1).company();
        let _both = [client(1), client(3)].map(|who| company.enter(&who));
        assert_eq!(limits.check(start, &"alice", &Askers::Company(company)), Ok(()), "one of whom may");
        limits.told(start, &"alice", &client(3), seconds(10));
        assert_eq!(limits.for_everyone(start, &"alice"), Some(seconds(10)));
        assert_eq!(limits.check(start, &"alice", &client(4)), Err(seconds(10)));
        assert_eq!(of(&limits, seconds(10), "alice"), [Err(seconds(60)), Err(seconds(30)), Ok(())]);
        assert_eq!(of(&limits, seconds(60), "alice"), [Ok(()); 3], "all at once");
    }

    #[test]
    fn any_number_is_remembered_no_longer_than_it_is_so() {
        let (limits, start) = (RateLimits::default(), Timestamp::default());
        let until = start + Duration::from_secs(1);
        (0..5_000).for_each(|n| limits.told(start, &n, &client(n), until));
        assert_eq!(limits.lock().len(), REMEMBERED);
        limits.told(until, &9_999, &client(1), until + Duration::from_secs(1));
        assert!(limits.check(until, &9_999, &client(1)).is_err());
    }
}
