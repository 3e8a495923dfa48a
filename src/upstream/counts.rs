//! What is counted of an upstream.

use std::sync::Arc;

use http::StatusCode;

use crate::metrics::Metrics;

use super::budget::Purpose;
use super::error::Error;

/// The metrics of one upstream. Clones count into the same.
#[derive(Clone)]
pub(super) struct Counts {
    metrics: Metrics,
    upstream: Arc<str>,
}

// === impl Counts ===

impl Counts {
    pub(super) fn new(metrics: Metrics, upstream: Arc<str>) -> Self {
        Self { metrics, upstream }
    }

    /// A request has been sent, and this became of it.
    pub(super) fn asked(&self, purpose: Purpose, outcome: Result<StatusCode, &Error>) {
        let status = match &outcome {
            Ok(status) => status.as_str(),
            Err(Error::Unavailable { timed_out: true, .. }) => "timeout",
            Err(_) => "failed",
        };
        self.metrics.upstream_asked(&self.upstream, purpose.word(), status);
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

    pub(super) fn redirect_refreshed(&self) {
        self.metrics.redirect_refreshed(&self.upstream);
    }

    pub(super) fn dns_failed(&self) {
        self.metrics.dns_failed(&self.upstream);
    }
}
