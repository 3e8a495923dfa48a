//! Tags whose upstream has failed: when it is asked again, and how few of them ask.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::oci::Tag;
use crate::upstream;

use super::rights::View;
use super::{REMEMBERED, Refusal};

/// Each of these tags is left alone for a moment. After that they take turns, one in a moment for each upstream, until one of
/// them is answered: then all may ask. So an upstream that is well again is found out soon, and one that is not has little to
/// do with it, however many tags there are.
pub(super) struct HeldOff {
    tags: moka::sync::Cache<(View, Tag), Failed>,
    upstreams: moka::sync::Cache<Arc<str>, Arc<Mutex<Turn>>>,
}

/// The upstream could not be asked for a tag.
#[derive(Debug, Clone)]
struct Failed {
    at: Timestamp,
    /// It is left alone before.
    until: Timestamp,
    why: Refusal,
}

#[derive(Debug, Default)]
struct Turn {
    /// No other tag's turn comes before.
    next: Timestamp,
    /// When the upstream has last answered.
    well: Timestamp,
}

/// Less than the five seconds within which what has come back is to be found again.
const MOMENT: Duration = Duration::from_secs(3);

// === impl HeldOff ===

impl HeldOff {
    pub(super) fn new() -> Self {
        Self { tags: moka::sync::Cache::new(REMEMBERED), upstreams: moka::sync::Cache::new(REMEMBERED) }
    }

    /// Why a tag is not to be asked for at `now`, if it is not. If it is, it is its turn, which does not come to the others until
    /// a moment later. `patient`: who asks has an older answer; who has none waits for no turn.
    pub(super) fn check(&self, key: &(View, Tag), now: Timestamp, patient: bool) -> Option<Refusal> {
        let Failed { at, until, why } = self.tags.get(key)?;
        if now < until {
            return Some(why);
        }
        let turn = self.turn(&key.0);
        let mut turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !patient || turn.well > at {
            return None;
        }
        if now < turn.next {
            return Some(why);
        }
        turn.next = now + MOMENT;
        None
    }

    pub(super) fn failed(&self, key: (View, Tag), now: Timestamp, why: &Refusal) {
        let until = match why {
            // It keeps to that itself.
            Refusal::Upstream(upstream::Error::RateLimited { until }) => (*until).min(now + MOMENT),
            _ => now + MOMENT,
        };
        self.tags.insert(key, Failed { at: now, until, why: why.clone() });
    }

    pub(super) fn answered(&self, key: &(View, Tag), now: Timestamp) {
        self.tags.invalidate(key);
        self.turn(&key.0).lock().unwrap_or_else(PoisonError::into_inner).well = now;
    }

    fn turn(&self, view: &View) -> Arc<Mutex<Turn>> {
        self.upstreams.get_with_by_ref(&view.repository.upstream, Arc::default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Repository;

    fn key(upstream: &str, tag: &str) -> (View, Tag) {
        let repository = Repository { upstream: upstream.into(), name: "library/app".parse().unwrap() };
        (View { repository, client: None }, tag.parse().unwrap())
    }

    /// How many of a hundred tags of one upstream may ask at `now`.
    fn asked(held_off: &HeldOff, now: Timestamp, patient: bool) -> usize {
        let may = |n: &u32| held_off.check(&key("a", &n.to_string()), now, patient).is_none();
        (0..100).filter(may).count()
    }

    #[test]
    fn one_asks_for_all_and_once_it_is_answered_all_ask() {
        let (held_off, start) = (HeldOff::new(), Timestamp::default() + Duration::from_hours(1));
        assert_eq!(asked(&held_off, start, true), 100);
        (0..100).for_each(|n| held_off.failed(key("a", &n.to_string()), start, &Refusal::Interrupted));
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!([0, 2].map(|seconds| asked(&held_off, later(seconds), false)), [0, 0]);
        assert_eq!([3, 4, 5, 6, 8].map(|seconds| asked(&held_off, later(seconds), true)), [1, 0, 0, 1, 0]);
        assert_eq!(asked(&held_off, later(8), false), 100, "who has no older answer");
        assert!(held_off.check(&key("a", "new"), later(8), true).is_none(), "of it nothing is known yet");
        held_off.failed(key("b", "1"), start, &Refusal::Interrupted);
        assert!(held_off.check(&key("b", "1"), later(8), true).is_none(), "another upstream");
        held_off.answered(&key("a", "0"), later(9));
        assert_eq!(asked(&held_off, later(9), true), 100);
        held_off.failed(key("a", "7"), later(9), &Refusal::Interrupted);
        assert_eq!(asked(&held_off, later(10), true), 99, "one that fails again is left alone again");
    }
}
