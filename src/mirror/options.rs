//! `[mirror]`

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::oci::{ImageName, Platforms, TagTtl};
use crate::upstream::{DOCKER_HUB, LEAST_RATE};

/// How fresh answers are and how much is done for nobody.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The upstream of clients that name none, as Docker's `registry-mirrors`.
    pub default_upstream: String,
    /// For how long a tag is fresh. After it, the upstream is asked whether it has moved.
    #[serde(with = "humantime_serde")]
    pub tag_ttl: Duration,
    /// Other TTLs for tags that match a pattern: `latest=30s`, `v*.*.*=forever`. The first that matches counts.
    pub tag_ttls: Vec<TagTtl>,
    /// How much of the upstream's budget for pulls may be left, in percent, before TTLs stretch so that it lasts; 0: never.
    pub stretch_below: u32,
    /// How many times longer TTLs are when next to nothing is left; they grow evenly up to that, and never beyond `max_stale`.
    pub stretch_factor: u32,
    /// For how long a tag is served while its upstream cannot be asked.
    #[serde(with = "humantime_serde")]
    pub max_stale: Duration,
    /// For how long a repository of an upstream that is shown credentials is believed to hold what it held. After it, the
    /// upstream is asked again; while it cannot be asked, `max_stale` more. 0s: for ever.
    #[serde(with = "humantime_serde")]
    pub proof_ttl: Duration,
    /// How long a client waits for an answer of the upstream when the cache has an older one.
    #[serde(with = "humantime_serde")]
    pub revalidate_wait: Duration,
    /// For how long it is remembered that something is not there.
    #[serde(with = "humantime_serde")]
    pub negative_ttl: Duration,
    /// By how many connections at once a blob of more than 32 MiB is fetched where one alone is slow, as some registries limit
    /// each. Those beyond the first have at most 4 MiB each in memory.
    pub blob_connections: usize,
    /// How many layers of an image are fetched at once ahead of a client that has begun to fetch its layers; 0: none. It has
    /// effect where registries limit each connection, as clients ask for three or so at a time.
    pub prefetch: usize,
    /// How many bytes of blobs may come from all upstreams together in a second, each transfer of which gets its share; `0B`: any
    /// number.
    pub max_rate: ByteSize,
    /// How many blobs are fetched to their end after all their clients have left.
    pub orphan_fills: usize,
    /// How much of such a blob may still be missing.
    pub orphan_bytes: ByteSize,
    /// After how long a fill whose transfer breaks is not taken up again.
    #[serde(with = "humantime_serde")]
    pub fill_timeout: Duration,
    /// Images that are always here, as for `docker pull`: `nginx:1.27`, `ghcr.io/org/app`.
    pub keep: Vec<ImageName>,
    /// How often it is seen to that they are, and that their tags point to what they should.
    #[serde(with = "humantime_serde")]
    pub keep_every: Duration,
    /// For which platforms, such as `linux/arm64`, or `all`. None: for this machine's.
    pub keep_platforms: Platforms,
    /// Stand before the well-known public registries without their being configured.
    pub well_known: bool,
    /// Stand before any registry on the internet that a client names, by https and without credentials. Only public addresses
    /// are dialled, and directly, past any proxy: else it could not be seen which they are.
    pub any_public: bool,
    /// Ask no upstream: serve what is cached, whatever its age.
    pub offline: bool,
}

/// More would be rude.
const MOST_CONNECTIONS: usize = 16;
/// More than any machine can do at once.
const MOST_ORPHANS: usize = 1_000_000;

impl Options {
    /// # Errors
    /// Says in one line what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.stretch_below > 100 {
            return Err(format!("mirror.stretch_below is {}; it is a percentage, at most 100", self.stretch_below));
        }
        if !(1..=1_000).contains(&self.stretch_factor) {
            return Err(format!("mirror.stretch_factor is {}; it must be from 1 to 1000", self.stretch_factor));
        }
        if !(1..=MOST_CONNECTIONS).contains(&self.blob_connections) {
            return Err(format!("mirror.blob_connections is {}; it must be from 1 to {MOST_CONNECTIONS}", self.blob_connections));
        }
        if self.prefetch > MOST_CONNECTIONS {
            return Err(format!("mirror.prefetch is {}; it must be at most {MOST_CONNECTIONS}", self.prefetch));
        }
        if (1..LEAST_RATE).contains(&self.max_rate.as_u64()) {
            return Err(format!("mirror.max_rate is {}; it must be 0B or at least 64KiB", self.max_rate));
        }
        if self.orphan_fills > MOST_ORPHANS {
            return Err(format!("mirror.orphan_fills is {}; it must be at most {MOST_ORPHANS}", self.orphan_fills));
        }
        if self.keep_every < Duration::from_mins(1) {
            return Err("mirror.keep_every must be at least 1m".into());
        }
        Ok(())
    }

    /// Takes from `new` what can change while larder serves.
    pub fn take_up(&mut self, new: &Self) {
        (self.tag_ttl, self.max_rate) = (new.tag_ttl, new.max_rate);
        self.tag_ttls.clone_from(&new.tag_ttls);
        (self.stretch_below, self.stretch_factor) = (new.stretch_below, new.stretch_factor);
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_upstream: DOCKER_HUB.into(),
            tag_ttl: Duration::from_mins(1),
            tag_ttls: Vec::new(),
            stretch_below: 50,
            stretch_factor: 20,
            max_stale: Duration::from_hours(168),
            proof_ttl: Duration::from_hours(24),
            revalidate_wait: Duration::from_secs(2),
            negative_ttl: Duration::from_secs(5),
            blob_connections: 4,
            prefetch: 4,
            max_rate: ByteSize::b(0),
            orphan_fills: 4,
            orphan_bytes: ByteSize::gib(2),
            fill_timeout: Duration::from_hours(1),
            keep: Vec::new(),
            keep_every: Duration::from_hours(6),
            keep_platforms: Platforms::default(),
            well_known: true,
            any_public: false,
            offline: false,
        }
    }
}
