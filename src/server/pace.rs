//! Whether a client takes what it has asked for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The least that is asked of a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Least {
    /// It may take nothing for this long.
    pub(super) idle: Duration,
    /// In bytes per second. 0: any byte will do.
    pub(super) rate: u64,
}

/// How one client does, on a connection or on a stream of one.
///
/// It begins with `idle` to its credit. While larder waits for it to take something, that is used up; each byte that it takes
/// earns the time that it may cost at `rate`, up to `idle` again. So who takes nothing is given up after `idle`, and who is
/// slower than `rate` when it has lost that much against it.
pub(super) struct Pace {
    least: Least,
    credit: Mutex<Credit>,
}

struct Credit {
    left: Duration,
    /// Since when larder waits for it.
    waiting: Option<Instant>,
    lost: bool,
}

// === impl Pace ===

impl Pace {
    pub(super) fn new(least: Least) -> Self {
        Self { least, credit: Mutex::new(Credit { left: least.idle, waiting: None, lost: false }) }
    }

    /// There is something for the client, which does not take it yet.
    pub(super) fn waits(&self) {
        self.credit().waiting.get_or_insert_with(Instant::now);
    }

    /// The client has taken so many bytes.
    pub(super) fn took(&self, bytes: usize) {
        self.credit().took(bytes, &self.least, Instant::now);
    }

    /// Waits until the client is to be given up.
    pub(super) async fn lost(&self) {
        loop {
            let last_moment = {
                let mut credit = self.credit();
                let now = Instant::now();
                // At the earliest: it may not have begun to be slow, or earn more meanwhile.
                let last_moment = credit.waiting.unwrap_or(now) + credit.left;
                credit.lost = last_moment <= now;
                if credit.lost {
                    return;
                }
                last_moment
            };
            sleep_until(last_moment).await;
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.credit().lost
    }

    fn credit(&self) -> MutexGuard<'_, Credit> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Credit ===

impl Credit {
    fn took(&mut self, bytes: usize, least: &Least, now: impl FnOnce() -> Instant) {
        if let Some(since) = self.waiting.take() {
            self.left = self.left.saturating_sub(now() - since);
        }
        if self.left < least.idle && bytes > 0 {
            // What two hundred years would earn is more than any credit.
            let earned = (bytes as u64).saturating_mul(1000).checked_div(least.rate).map_or(least.idle, Duration::from_millis);
            self.left = least.idle.min(self.left.saturating_add(earned));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Least = Least { idle: Duration::from_mins(1), rate: 1024 };

    /// For how many seconds a client is borne with that takes so many bytes every so many seconds, up to a day.
    fn borne(bytes: usize, every: u64, least: &Least) -> u64 {
        let mut credit = Credit { left: least.idle, waiting: None, lost: false };
        let begun = Instant::now();
        let mut now = begun;
        while credit.left > Duration::from_secs(every) && now - begun < Duration::from_hours(24) {
            credit.waiting = Some(now);
            now += Duration::from_secs(every);
            credit.took(bytes, least, || now);
        }
        (now - begun + credit.left).as_secs()
    }

    #[test]
    fn who_takes_nothing_is_given_up_after_the_time_for_that_and_who_is_slow_later() {
        let day = 24 * 3600;
        assert_eq!(borne(0, 1, &LEAST), 60);
        assert_eq!(borne(512, 1, &LEAST), 119, "half of what it should");
        assert!(borne(1024, 1, &LEAST) >= day);
        assert!(borne(64 << 10, 50, &LEAST) >= day, "in large pieces, as a kernel takes them");
        assert_eq!(borne(1 << 30, 61, &LEAST), 60, "no piece is large enough for that");
        assert!(borne(1, 59, &Least { rate: 0, ..LEAST }) >= day, "any byte will do");
    }
}
