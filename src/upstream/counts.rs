//! What is counted of an upstream.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::metrics::{Fetched, Metrics};

use super::budget::Purpose;
use super::error::Error;

/// The metrics of one upstream. Clones count into the same.
#[derive(Clone)]
pub(super) struct Counts {
    metrics: Metrics,
    /// What it is called there.
    upstream: Arc<str>,
}

/// Upstreams that clients name are all called this: how many names there are is not for clients to say.
pub const PUBLIC: &str = "public";

// === impl Counts ===

impl Counts {
    pub(super) fn new(metrics: Metrics, upstream: Arc<str>) -> Self {
        Self { metrics, upstream }
    }

    /// Of an upstream that a client has named.
    pub(super) fn of_public(metrics: Metrics) -> Self {
        Self::new(metrics, PUBLIC.into())
    }

    /// A request has been sent, and this became of it after this time.
    pub(super) fn asked(&self, purpose: Purpose, outcome: Result<StatusCode, &Error>, took: Duration) {
        if matches!(outcome, Err(Error::LeftAlone(_))) {
            return;
        }
        if outcome.is_ok() {
            self.metrics.upstream_began(&self.upstream, purpose.word(), took);
        }
        let status = match &outcome {
            Ok(status) => status.as_str(),
            Err(Error::Unavailable { timed_out: true, .. }) => "timeout",
            Err(_) => "failed",
        };
        self.metrics.upstream_asked(&self.upstream, purpose.word(), status);
    }

    /// Where the bytes are counted that come for this; `None`: for a token.
    pub(super) fn fetched(&self, purpose: Option<Purpose>) -> Fetched {
        self.metrics.fetched(&self.upstream, purpose.map_or("token", Purpose::word))
    }

    /// It has sent other bytes than a digest promises.
    pub(super) fn mismatched(&self) {
        self.metrics.digest_mismatched(&self.upstream);
    }

    pub(super) fn hedged(&self, won: bool) {
        self.metrics.hedged(&self.upstream, won);
    }

    /// A token service has been asked.
    pub(super) fn token_asked<T>(&self, outcome: &Result<T, Error>) {
        let word = match outcome {
            Ok(_) => "fetched",
            Err(Error::Denied | Error::Credentials(_) | Error::RateLimited { .. }) => "refused",
            Err(_) => "failed",
        };
        self.metrics.token_asked(&self.upstream, word);
    }

    /// There was no socket to ask it with.
    pub(super) fn no_socket(&self) {
        self.metrics.shed("sockets");
    }

    /// Too much was asked of it already.
    pub(super) fn no_place(&self) {
        self.metrics.shed("transfers");
    }

    pub(super) fn redirect_refreshed(&self) {
        self.metrics.redirect_refreshed(&self.upstream);
    }

    pub(super) fn dns_failed(&self) {
        self.metrics.dns_failed(&self.upstream);
    }
}

#[cfg(test)]
mod tests {
    use crate::clock::Clock;
    use crate::metrics::{Format, Metrics};
    use crate::upstream::{Hop, Options, Upstream};

    /// Each name that a client made up was a series, and stayed one.
    #[test]
    fn upstreams_that_clients_name_are_one_to_who_counts() {
        let metrics = Metrics::new();
        let told = |name: &str, options| {
            Upstream::new(name, &options, Hop::unique(), Clock::system(), metrics.clone()).unwrap().note_mismatch();
        };
        told("docker.io", Options::default().with_presets("docker.io"));
        (0..10).for_each(|n| told(&format!("r{n}.example"), Options::of_public(&format!("r{n}.example"))));
        let page = metrics.page(Format::Text);
        let mut shown: Vec<_> = page.lines().filter(|line| line.starts_with("larder_digest_mismatches_total{")).collect();
        shown.sort_unstable();
        let one = |upstream, times| format!("larder_digest_mismatches_total{{upstream=\"{upstream}\"}} {times}");
        assert_eq!(shown, [one("docker.io", 1), one("public", 10)]);
    }
}
