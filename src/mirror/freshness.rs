//! For how long a tag is fresh.

use std::time::Duration;

use crate::oci::{Tag, TagTtl, Ttl};
use crate::upstream;

use super::Options;

/// What is said of the tags of an upstream.
pub struct Freshness {
    /// The first that matches counts.
    by_pattern: Vec<TagTtl>,
    otherwise: Duration,
}

// === impl Freshness ===

impl Freshness {
    /// What an upstream says of its tags goes before what is said of all.
    #[must_use]
    pub fn of(options: &Options, upstream: &upstream::Options) -> Self {
        let otherwise = if upstream.tag_ttl.is_zero() { options.tag_ttl } else { upstream.tag_ttl };
        let by_pattern = upstream.tag_ttls.iter().chain(&options.tag_ttls).cloned().collect();
        Self { by_pattern, otherwise }
    }

    pub(super) fn ttl(&self, tag: &Tag) -> Ttl {
        let matching = self.by_pattern.iter().find(|by_pattern| by_pattern.matches(tag));
        matching.map_or(Ttl::For(self.otherwise), |by_pattern| by_pattern.ttl)
    }

    /// Of a list, which no pattern is for.
    pub(super) fn list_ttl(&self) -> Duration {
        self.otherwise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_counts_the_upstreams_own_before_the_mirrors() {
        let ttls = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<TagTtl>>();
        let mirror = Options { tag_ttls: ttls(&["latest=30s", "v*.*.*=forever", "v*=1d"]), ..Options::default() };
        let mut upstream = upstream::Options { tag_ttls: ttls(&["latest=5s"]), ..upstream::Options::default() };
        let ttl = |upstream: &upstream::Options, tag: &str| Freshness::of(&mirror, upstream).ttl(&tag.parse().unwrap());
        assert_eq!(ttl(&upstream, "latest"), Ttl::For(Duration::from_secs(5)));
        assert_eq!(ttl(&upstream, "v1.2.3"), Ttl::Forever);
        assert_eq!(ttl(&upstream, "v1.2"), Ttl::For(Duration::from_hours(24)));
        assert_eq!(ttl(&upstream, "edge"), Ttl::For(mirror.tag_ttl));
        upstream.tag_ttl = Duration::from_secs(7);
        assert_eq!(ttl(&upstream, "edge"), Ttl::For(Duration::from_secs(7)));
        assert_eq!(ttl(&upstream, "v1.2"), Ttl::For(Duration::from_hours(24)), "a pattern goes before what is for all tags");
    }
}
