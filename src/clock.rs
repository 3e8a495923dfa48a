//! Time as the rest of larder sees it: the machine's, plus what a test has added.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tells the time to everything that keeps a date: freshness of tags, life of tokens, order of the cache. It never runs
/// backwards, whatever is done to the machine's wall clock. Clones tell the same time.
#[derive(Clone)]
pub struct Clock(Arc<Shared>);

struct Shared {
    /// `None`: it stands still.
    started: Option<Instant>,
    started_at: Duration,
    added_ms: AtomicU64,
}

/// Milliseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Timestamp(u64);

/// Whole seconds since 1970, up to 2106, in half the room of a [`Timestamp`]: for what there are millions of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Seconds(u32);

// === impl Clock ===

impl Clock {
    #[must_use]
    pub fn system() -> Self {
        Self::started(Some(Instant::now()))
    }

    /// One that moves only when it is told to, for tests of what happens within a moment.
    #[must_use]
    pub fn still() -> Self {
        Self::started(None)
    }

    fn started(started: Option<Instant>) -> Self {
        Self(Arc::new(Shared {
            started,
            started_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            added_ms: AtomicU64::new(0),
        }))
    }

    #[must_use]
    pub fn now(&self) -> Timestamp {
        let since_1970 = self.0.started_at + self.0.started.map_or(Duration::ZERO, |started| started.elapsed());
        Timestamp(millis(since_1970) + self.0.added_ms.load(Ordering::Relaxed))
    }

    /// Moves this clock and all its clones forward: how tests make a tag old.
    pub fn advance(&self, by: Duration) {
        self.0.added_ms.fetch_add(millis(by), Ordering::Relaxed);
    }
}

// === impl Timestamp ===

impl Timestamp {
    #[must_use]
    pub const fn from_unix_millis(millis: u64) -> Self {
        Self(millis)
    }

    #[must_use]
    pub fn unix_millis(self) -> u64 {
        self.0
    }

    /// True if both lie in the same hour, for what is written down once an hour.
    #[must_use]
    pub fn same_hour(self, other: Self) -> bool {
        const HOUR: u64 = 3_600_000;
        self.0 / HOUR == other.0 / HOUR
    }

    /// Zero if `earlier` is in fact later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(millis(by)))
    }
}

impl std::ops::Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(millis(by)))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, millis))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(timestamp: Timestamp) -> Self {
        UNIX_EPOCH + Duration::from_millis(timestamp.0)
    }
}

// === impl Seconds ===

impl Seconds {
    /// The first full second that does not lie before `at`.
    #[must_use]
    pub fn not_before(at: Timestamp) -> Self {
        Self(u32::try_from(at.0.div_ceil(1000)).unwrap_or(u32::MAX))
    }

    /// The second that `at` lies in.
    #[must_use]
    pub fn within(at: Timestamp) -> Self {
        Self(u32::try_from(at.0 / 1000).unwrap_or(u32::MAX))
    }

    #[must_use]
    pub fn timestamp(self) -> Timestamp {
        Timestamp(u64::from(self.0) * 1000)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.now().fmt(f)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
