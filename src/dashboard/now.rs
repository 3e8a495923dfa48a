//! What goes on at this moment.

use serde::Serialize;

use crate::mirror::Health;
use crate::oci::Digest;
use crate::orders::ActivityReport;
use crate::store::{Account, Kind, Leaving};

use super::{Amounts, Dashboard, Errand, Span};

/// A larder at one moment. Times are in milliseconds since 1970.
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

/// What the cache takes of the disk, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CacheReport {
    pub limit: u64,
    pub used: u64,
    /// Of that, what is never evicted, what may be, what is on its way in, and what was found damaged.
    pub pinned: u64,
    pub evictable: u64,
    pub partial: u64,
    pub quarantined: u64,
    pub blobs: usize,
    /// What eviction would take first.
    pub next_to_leave: Vec<LeavingReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeavingReport {
    pub digest: String,
    /// A repository that has it.
    pub of: Option<String>,
    pub manifest: bool,
    pub bytes: u64,
    pub used: u64,
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
            cache: self.cache(),
            served: ServedReport {
                hour: self.served_within(Span::Hour),
                day: self.served_within(Span::Day),
                month: self.served_within(Span::Month),
            },
            errands: self.errands(),
        }
    }

    fn cache(&self) -> CacheReport {
        let Account { budget, used, pinned, evictable, partial, quarantined } = self.0.store.account();
        let next = self.0.store.next_to_leave(LEAVING_SHOWN).into_iter();
        CacheReport {
            limit: budget,
            used,
            pinned,
            evictable,
            partial,
            quarantined,
            blobs: self.0.store.usage().map_or(0, |(_, blobs)| blobs),
            next_to_leave: next.map(|leaving| self.leaving(&leaving)).collect(),
        }
    }

    fn leaving(&self, leaving: &Leaving) -> LeavingReport {
        let Leaving { digest, charge, used } = leaving;
        let (of, manifest) = self.holder(digest).map_or((None, false), |(of, manifest)| (Some(of), manifest));
        LeavingReport { digest: digest.to_string(), of, manifest, bytes: *charge, used: used.unix_millis() }
    }

    /// Who has it, and whether as a manifest.
    fn holder(&self, digest: &Digest) -> Option<(String, bool)> {
        let (repository, kind) = self.0.store.held_by(digest).into_iter().next()?;
        Some((repository.to_string(), kind == Kind::Manifest))
    }
}
