//! The pull-through policy: who answers, how fresh, and one fill for all who ask an upstream for a digest.
//!
//! Floor 2. It brings the store and the upstreams together, which know nothing of each other.

mod access;
mod blob;
mod body;
mod explain;
mod fill;
mod freshness;
mod held_off;
mod hot;
mod incidents;
mod keep;
mod lists;
mod logins;
mod manifest;
mod names;
mod options;
mod prefetch;
mod proofs;
mod public;
mod pulls;
mod rights;
mod shared;
mod shopping;
mod tags;
mod warm;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Timestamp};
use crate::metrics::Metrics;
use crate::oci::{Digest, InvalidName, Repository, Tag};
use crate::room::Room;
use crate::store::{Kept, Kind, Store};
use crate::upstream::{self, CacheStatus};

use fill::Fills;
use held_off::HeldOff;
use hot::HotManifests;
use logins::Logins;
use prefetch::Prefetches;
use rights::{Rights, View};
use shared::Shared;

pub use access::Access;
pub use blob::{Blob, BlobSize};
pub use body::{Broken, ByteStream};
pub use explain::{Outlook, Question, ServedFrom};
pub use fill::Underway;
pub use freshness::Freshness;
pub use hot::Told;
pub use incidents::{Cause, Incident};
pub use lists::{Referrers, TagList};
pub use logins::{Challenge, Gate, Shown, Token};
pub use manifest::Manifest;
pub use names::{Origin, Registries, Registry};
pub use options::Options;
pub use public::Make;
pub use rights::Wanted;
pub use shopping::Lacking;
pub use tags::Refreshed;
pub use warm::{Referring, Step, Warmed, Warming};

pub use crate::store::{Outlet, Piece, Pieces, Trouble};

/// Decides who answers. Clones share everything.
#[derive(Clone)]
pub struct Mirror(Arc<Inner>);

struct Inner {
    options: Options,
    store: Store,
    registries: Registries,
    clock: Clock,
    metrics: Metrics,
    fills: Fills,
    prefetches: Prefetches,
    logins: Logins,
    rights: Rights,
    hot: HotManifests,
    /// The right to read a large one.
    large: Room,
    manifests: Shared<Digest, Arc<manifest::Verified>>,
    proofs: Shared<(Digest, Kind), proofs::Said>,
    /// Repositories whose upstream could not be asked for a proof.
    unasked: moka::sync::Cache<View, proofs::Unasked>,
    tags: Shared<Tag, tags::Checked>,
    held_off: HeldOff,
    /// When the upstream had last been asked for tags for which it has since been asked ahead of time.
    ahead: moka::sync::Cache<(Repository, Tag), Timestamp>,
    /// What is not there, and until when that is believed.
    missing: moka::sync::Cache<(View, Thing), (Timestamp, upstream::Error)>,
    lists: moka::sync::Cache<(View, String), lists::Cached>,
    shopping: Kept<shopping::Shopping>,
    incidents: incidents::Incidents,
    pulls: Kept<pulls::Pulls>,
    listing: Shared<String, lists::Cached>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// Something of a repository that may be missing. A digest may be there as a manifest and not as a blob.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Thing {
    Manifest(Digest),
    Blob(Digest),
    Tag(Tag),
    List(String),
}

/// What keeps larder from doing all its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The cache is still being counted, and nothing new is kept.
    pub counting: bool,
    /// Why the disk takes nothing.
    pub disk: Option<Trouble>,
    /// Upstreams that do not answer, or not for now.
    pub left_alone: Vec<Arc<str>>,
}

/// How a request was served: one word for log, metric, dashboard and the `Cache-Status` header (RFC 9211).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// From the cache; nobody was asked.
    Hit,
    /// From a fill that another request had begun, with what the upstream says of its own cache.
    Joined(Option<CacheStatus>),
    /// From the upstream, and kept; likewise.
    Miss(Option<CacheStatus>),
    /// From the cache, after the upstream was asked whether it may be.
    Revalidated,
    /// From the cache although the upstream could not be asked, for this reason.
    Stale(String),
    /// From the cache of a sealed larder.
    Offline,
    /// From the upstream, past the cache, for this reason; likewise.
    Bypass(String, Option<CacheStatus>),
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0} is not among the upstreams that are configured")]
    UnknownUpstream(String),
    #[error(transparent)]
    InvalidName(InvalidName),
    /// The operator does not let it be had; says by which rule.
    #[error("{0}")]
    NotAllowed(String),
    /// The upstream is to be had at a place of its own; says where.
    #[error("{0}")]
    Elsewhere(String),
    /// The client has to say who it is.
    #[error("a login is needed; tokens are to be had at {}", .0.realm)]
    LogIn(Challenge),
    /// The upstream does not know the client that it has said it is.
    #[error("the login is not taken: {0}")]
    WrongLogin(String),
    #[error("too many logins have failed; try again in a while")]
    TooManyLogins { until: Timestamp },
    /// The client takes only types that the manifest is not.
    #[error("the manifest is {0}, which the Accept header does not allow")]
    NotAccepted(String),
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
    /// What came is not what was asked for.
    #[error("the upstream sent something wrong: {0}")]
    WrongContent(String),
    /// larder's own fault, or it is stopping.
    #[error("the work was interrupted")]
    Interrupted,
}

/// Hot manifests may take this much memory.
const HOT_BYTES: usize = 64 << 20;
/// So many large manifests are read at a time.
const LARGE_AT_ONCE: usize = 16;
/// Lists likewise, and what is remembered as missing.
const LIST_BYTES: u64 = 64 << 20;
const MISSING_BYTES: u64 = 4 << 20;
/// How many tags are remembered for each purpose.
const REMEMBERED: u64 = 10_000;

// === impl Refusal ===

impl Refusal {
    /// What a client is told: how larder comes by its credentials, and why not, is for its operator.
    #[must_use]
    pub fn told(&self) -> String {
        match self {
            Self::Upstream(upstream::Error::Credentials(_)) => "larder's credentials cannot be used; its log says why".into(),
            Self::Upstream(upstream::Error::UnlistedTokenHost(_)) => {
                "larder's configuration does not list the token service of the upstream; its log says which".into()
            }
            other => other.to_string(),
        }
    }

    /// Whether it is said of the one who has asked, of the line that he stood in, of the way that he came by or of what else he has asked
    /// for, and not of what was asked for.
    fn is_of_who_asked(&self) -> bool {
        matches!(
            self,
            Self::Upstream(upstream::Error::Busy | upstream::Error::Left | upstream::Error::LeftAlone(_) | upstream::Error::Loop)
        )
    }
}

// === impl Mirror ===

impl Mirror {
    #[must_use]
    pub fn new(options: Options, store: Store, registries: Registries, clock: Clock, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            fills: Fills::new(options.orphan_fills),
            prefetches: Prefetches::default(),
            logins: Logins::default(),
            rights: Rights::default(),
            options,
            store,
            registries,
            clock,
            metrics,
            hot: HotManifests::new(HOT_BYTES),
            large: Room::new(LARGE_AT_ONCE, usize::MAX),
            manifests: Shared::default(),
            proofs: Shared::default(),
            unasked: moka::sync::Cache::new(REMEMBERED),
            tags: Shared::default(),
            held_off: HeldOff::new(),
            ahead: moka::sync::Cache::new(REMEMBERED),
            missing: moka::sync::Cache::builder()
                .max_capacity(MISSING_BYTES)
                .weigher(|(_, thing): &(View, Thing), _| thing.weight())
                .build(),
            lists: moka::sync::Cache::builder()
                .max_capacity(LIST_BYTES)
                .weigher(|(_, key): &(View, String), list| lists::weight(key, list))
                .build(),
            shopping: Kept::default(),
            incidents: incidents::Incidents::default(),
            pulls: Kept::default(),
            listing: Shared::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }))
    }

    #[must_use]
    pub fn registries(&self) -> &Registries {
        &self.0.registries
    }

    /// Where things are counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// What is counted, with what the cache takes and what is being fetched as it is now.
    #[must_use]
    pub fn measured(&self) -> &Metrics {
        self.0.store.show();
        self.0.metrics.set_fills(self.0.fills.gauges());
        &self.0.metrics
    }

    /// Likewise, with how much room the disk has, which may let one wait for as long as `cache.patience` says.
    ///
    /// Cancel safe.
    pub async fn measured_with_disk(&self) -> &Metrics {
        self.0.store.show_room().await;
        self.measured()
    }

    /// Whether it asks no upstream.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.0.options.offline
    }

    /// The blobs that are being fetched.
    #[must_use]
    pub fn underway(&self) -> Vec<Underway> {
        self.0.fills.now()
    }

    /// What keeps larder from doing all its work. It serves none the less.
    #[must_use]
    pub fn health(&self) -> Health {
        let upstreams = self.0.registries.upstreams().filter(|upstream| !upstream.cool_down().is_zero());
        Health {
            counting: self.0.store.usage().is_none(),
            disk: self.0.store.trouble(),
            left_alone: upstreams.map(|upstream| Arc::clone(upstream.name())).collect(),
        }
    }

    /// Stops all fills, leaving what they have for the next start. Returns how many had not stopped within `limit`.
    pub async fn stop(&self, limit: Duration) -> usize {
        self.0.stopping.cancel();
        self.0.tasks.close();
        let _ = tokio::time::timeout(limit, self.0.tasks.wait()).await;
        self.0.tasks.len()
    }

    /// Forgets the bytes of a manifest that the cache has no more.
    pub fn forget_bytes(&self, digest: &Digest) {
        self.0.hot.forget(digest);
    }

    /// Refuses what was found missing a moment ago.
    fn check_missing(&self, origin: &Origin, thing: Thing) -> Result<(), Refusal> {
        match self.0.missing.get(&(origin.view(), thing)) {
            Some((until, error)) if self.0.clock.now() < until => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The upstream failed to give something. If that was its answer, it is believed for a while, and what was proven is so
    /// no more.
    fn note_failure(&self, origin: &Origin, thing: Thing, error: &upstream::Error) {
        if !error.is_definitive() {
            return;
        }
        match &thing {
            Thing::Manifest(digest) if origin.speaks_for_all() => {
                self.0.store.remove_proof(&origin.repository, digest, Kind::Manifest);
            }
            Thing::Blob(digest) if origin.speaks_for_all() => self.0.store.remove_proof(&origin.repository, digest, Kind::Blob),
            _ => {}
        }
        let until = self.0.clock.now() + self.0.options.negative_ttl;
        self.0.missing.insert((origin.view(), thing), (until, error.clone()));
    }
}

impl Thing {
    /// About what it takes of the memory, in bytes.
    fn weight(&self) -> u32 {
        let text = match self {
            Self::List(key) => key.len(),
            Self::Manifest(_) | Self::Blob(_) | Self::Tag(_) => 0,
        };
        u32::try_from(400 + text).unwrap_or(u32::MAX)
    }
}

impl From<crate::flight::Lost> for Refusal {
    fn from(crate::flight::Lost: crate::flight::Lost) -> Self {
        Self::Interrupted
    }
}
