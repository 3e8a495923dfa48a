//! What goes on at this moment.

use serde::Serialize;

use crate::mirror::Health;
use crate::orders::{ActivityReport, CacheReport};

use super::{Amounts, Dashboard, Errand, Span};

/// A larder at one moment. Its times are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NowReport {
    pub version: &'static str,
    pub now: u64,
    pub started: u64,
    /// It asks no upstream.
    pub sealed: bool,
    /// The cache is still being counted, and nothing new is kept.
    pub counting: bool,
    #[serde(flatten)]
    pub activity: ActivityReport,
    pub cache: CacheReport,
    pub served: ServedReport,
    pub errands: Vec<Errand>,
}

/// What clients were served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServedReport {
    pub hour: Amounts,
    pub day: Amounts,
    pub month: Amounts,
}

const LEAVING_SHOWN: usize = 5;

// === impl Dashboard ===

impl Dashboard {
    #[must_use]
    pub fn now(&self) -> NowReport {
        let now = self.sample();
        let Health { counting, .. } = self.0.mirror.health();
        NowReport {
            version: env!("CARGO_PKG_VERSION"),
            now: now.unix_millis(),
            started: self.0.started.unix_millis(),
            sealed: self.0.mirror.is_sealed(),
            counting,
            activity: self.0.orders.activity(),
            cache: self.0.orders.cache(LEAVING_SHOWN),
            served: ServedReport {
                hour: self.served_within(Span::Hour),
                day: self.served_within(Span::Day),
                month: self.served_within(Span::Month),
            },
            errands: self.errands(),
        }
    }
}
