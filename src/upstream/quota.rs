//! How many bytes of blobs may be fetched from one upstream.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;

use super::error::Error;

/// Counts bytes within a window that begins with the first of them.
pub(super) struct Quota {
    /// 0: any number.
    limit: u64,
    window: Duration,
    spent: Mutex<Spent>,
}

/// What has been fetched within the window. To be kept by whoever keeps things, as a month outlasts a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// When the window began.
    pub since: Timestamp,
    pub bytes: u64,
}

// === impl Quota ===

impl Quota {
    pub(super) fn new(limit: u64, window: Duration) -> Self {
        Self { limit, window, spent: Mutex::default() }
    }

    /// Whether another blob may be fetched. One that was begun is fetched to its end.
    pub(super) fn admit(&self, now: Timestamp) -> Result<(), Error> {
        if self.limit == 0 {
            return Ok(());
        }
        let mut spent = self.lock();
        let until = spent.since + self.window;
        // A window that begins in the future was written down by a clock that was wrong.
        if now >= until || now < spent.since {
            *spent = Spent { since: now, bytes: 0 };
        }
        if spent.bytes < self.limit { Ok(()) } else { Err(Error::QuotaSpent { until }) }
    }

    pub(super) fn spend(&self, bytes: u64) {
        if self.limit > 0 {
            self.lock().bytes += bytes;
        }
    }

    /// `None` where nothing is counted.
    pub(super) fn spent(&self) -> Option<Spent> {
        (self.limit > 0).then(|| *self.lock())
    }

    /// Goes on from what was spent before.
    pub(super) fn resume(&self, spent: Spent) {
        *self.lock() = spent;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_it_is_spent_nothing_is_fetched_before_the_window_ends() {
        let hour = Duration::from_hours(1);
        let (quota, start) = (Quota::new(100, hour), Timestamp::default() + hour * 1000);
        assert_eq!(quota.admit(start), Ok(()));
        quota.spend(99);
        assert_eq!(quota.admit(start), Ok(()));
        quota.spend(50);
        assert_eq!(quota.admit(start), Err(Error::QuotaSpent { until: start + hour }));
        let later = Quota::new(100, hour);
        later.resume(quota.spent().unwrap());
        assert!(later.admit(start + hour / 2).is_err(), "also after a restart");
        assert_eq!(later.admit(start + hour), Ok(()));
        assert_eq!(Quota::new(0, hour).admit(start), Ok(()));
        let ahead = Quota::new(100, hour);
        ahead.resume(Spent { since: start + hour * 1000, bytes: 100 });
        assert_eq!(ahead.admit(start), Ok(()), "written by a clock that was wrong");
    }
}
