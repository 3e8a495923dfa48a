//! How often a transfer that broke is taken up again.

use std::time::{Duration, Instant};

/// As often as it gets on, and a few times without; and not for ever.
#[derive(Debug, Clone)]
pub(in crate::mirror) struct Tries {
    most: u32,
    until: Instant,
    /// In vain, since it last got on.
    vain: u32,
    /// Where it broke last, in bytes.
    at: u64,
}

/// So much since the last time is progress; of a small blob a tenth.
const PROGRESS: u64 = 1 << 20;

// === impl Tries ===

impl Tries {
    /// `most`: how often without progress. `limit`: after how long nothing is taken up again. `at`: where it begins.
    pub(in crate::mirror) fn new(most: u32, limit: Duration, at: u64) -> Self {
        let now = Instant::now();
        // Of a time without end an age will do.
        let until = now.checked_add(limit).unwrap_or(now + Duration::from_hours(24 * 365));
        Self { most, until, vain: 0, at }
    }

    /// It broke at `at`, of `size` if that is known. Whether it is taken up again.
    pub(in crate::mirror) fn broke(&mut self, at: u64, size: Option<u64>) -> bool {
        let enough = size.map_or(PROGRESS, |size| PROGRESS.min(size / 10).max(1));
        if at.saturating_sub(self.at) >= enough {
            (self.vain, self.at) = (0, at);
            return self.is_in_time();
        }
        self.failed()
    }

    /// To take it up was in vain. Whether that is tried again.
    pub(in crate::mirror) fn failed(&mut self) -> bool {
        self.vain += 1;
        self.vain <= self.most && self.is_in_time()
    }

    /// How often it was in vain: so many pauses there were, and the next one is as long.
    pub(in crate::mirror) fn in_vain(&self) -> u32 {
        self.vain
    }

    fn is_in_time(&self) -> bool {
        Instant::now() < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn it_goes_on_as_long_as_there_is_progress() {
        for (size, step, endless) in [
            (None, MIB, true),
            (None, MIB - 1, false),
            (Some(100 * MIB), MIB, true),
            (Some(100 * MIB), MIB - 1, false),
            (Some(10_000), 1000, true),
            (Some(10_000), 100, false),
            (Some(3), 1, true),
            (Some(3), 0, false),
        ] {
            let mut tries = Tries::new(5, HOUR, 0);
            let gone_on = (1..=100).take_while(|n| tries.broke(n * step, size)).count();
            // What is less than enough adds up.
            assert!(if endless { gone_on == 100 } else { step > 0 || gone_on == 5 }, "{size:?} {step}: {gone_on}");
        }
    }

    #[test]
    fn five_times_in_vain_is_enough_and_progress_makes_good_for_it() {
        let mut tries = Tries::new(5, HOUR, 0);
        for _ in 0..5 {
            assert!(tries.failed());
        }
        assert!(!tries.clone().failed());
        assert!(!tries.clone().broke(10, Some(MIB)));
        assert!(tries.broke(MIB, Some(100 * MIB)));
        assert_eq!(tries.in_vain(), 0);
        let mut over = Tries::new(5, Duration::ZERO, 0);
        assert!(!over.broke(MIB, None), "not for ever");
        assert!(Tries::new(1, Duration::MAX, 0).broke(MIB, None));
    }
}
