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
    stretch: Stretch,
}

/// How TTLs grow as the upstream's budget shrinks.
struct Stretch {
    /// The share of the budget below which they do.
    below: f64,
    /// How many times longer they are when nothing is left.
    factor: f64,
    /// No TTL grows beyond this.
    longest: Duration,
}

/// What the age of the upstream's last answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    Fresh,
    /// Fresh, but not for much longer: time to ask again, if asking is worth it.
    Aging,
    Old,
}

// === impl Freshness ===

impl Freshness {
    /// What an upstream says of its tags goes before what is said of all.
    #[must_use]
    pub fn of(options: &Options, upstream: &upstream::Options) -> Self {
        let otherwise = if upstream.tag_ttl.is_zero() { options.tag_ttl } else { upstream.tag_ttl };
        let by_pattern = upstream.tag_ttls.iter().chain(&options.tag_ttls).cloned().collect();
        let stretch = Stretch {
            below: f64::from(options.stretch_below) / 100.0,
            factor: f64::from(options.stretch_factor),
            longest: options.max_stale,
        };
        Self { by_pattern, otherwise, stretch }
    }

    /// What it means for `tag` that the upstream was asked `since` ago. `budget`: the share of its budget that is left, if it
    /// has one.
    pub(super) fn judge(&self, tag: &Tag, since: Duration, budget: impl FnOnce() -> Option<f64>) -> Age {
        let Ttl::For(ttl) = self.ttl(tag) else { return Age::Fresh };
        if since < ttl.saturating_sub(ttl / 5) {
            return Age::Fresh;
        }
        let left = budget().unwrap_or(1.0);
        // With nothing left nothing can be asked, and who gets an answer beyond its TTL is to be told so.
        let stretched = if left > 0.0 { self.stretch.stretched(ttl, left) } else { ttl };
        if since >= stretched {
            Age::Old
        } else if left < self.stretch.below {
            // What can wait, waits.
            Age::Fresh
        } else {
            Age::Aging
        }
    }

    fn ttl(&self, tag: &Tag) -> Ttl {
        let matching = self.by_pattern.iter().find(|by_pattern| by_pattern.matches(tag));
        matching.map_or(Ttl::For(self.otherwise), |by_pattern| by_pattern.ttl)
    }

    /// Of a list, which no pattern is for.
    pub(super) fn list_ttl(&self) -> Duration {
        self.otherwise
    }
}

// === impl Stretch ===

impl Stretch {
    fn stretched(&self, ttl: Duration, left: f64) -> Duration {
        if left >= self.below {
            return ttl;
        }
        let missing = (self.below - left) / self.below;
        let seconds = ttl.as_secs_f64() * (1.0 + (self.factor - 1.0) * missing);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(self.longest).max(ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

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

    #[test]
    fn ttls_grow_evenly_as_the_budget_shrinks() {
        let longest = Duration::from_mins(15);
        for (below, factor, left, minutes) in [
            (0.5, 20.0, 1.0, 1.0),
            (0.5, 20.0, 0.5, 1.0),
            (0.5, 20.0, 0.4, 4.8),
            (0.5, 20.0, 0.25, 10.5),
            (0.5, 20.0, 0.0, 15.0),
            (0.5, 3.0, 0.0, 3.0),
            (1.0, 3.0, 0.5, 2.0),
            (0.0, 20.0, 0.0, 1.0),
            (0.5, 1.0, 0.0, 1.0),
        ] {
            let stretched = Stretch { below, factor, longest }.stretched(MINUTE, left);
            let off = stretched.abs_diff(MINUTE.mul_f64(minutes));
            assert!(off < Duration::from_millis(1), "{stretched:?} of {below} {factor} {left}");
        }
        let stretch = Stretch { below: 0.5, factor: 20.0, longest };
        assert_eq!(stretch.stretched(longest * 2, 0.0), longest * 2, "what is longer by itself stays so");
    }

    #[test]
    fn a_tag_ages_in_the_last_fifth_of_its_ttl_unless_that_is_stretched() {
        let freshness = Freshness::of(&Options::default(), &upstream::Options::default());
        let judge = |seconds, left| freshness.judge(&"x".parse().unwrap(), Duration::from_secs(seconds), || left);
        for (seconds, left, age) in [
            (0, None, Age::Fresh),
            (47, None, Age::Fresh),
            (48, None, Age::Aging),
            (48, Some(0.5), Age::Aging),
            (59, Some(1.0), Age::Aging),
            (60, None, Age::Old),
            (60, Some(0.5), Age::Old),
            (48, Some(0.4), Age::Fresh),
            (287, Some(0.4), Age::Fresh),
            (289, Some(0.4), Age::Old),
            (1150, Some(0.01), Age::Fresh),
            (59, Some(0.0), Age::Fresh),
            (60, Some(0.0), Age::Old),
        ] {
            assert_eq!(judge(seconds, left), age, "{seconds} s, {left:?}");
        }
    }
}
