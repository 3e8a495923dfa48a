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
const PUBLIC: &str = "public";

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

    pub(super) fn redirect_refreshed(&self) {
        self.metrics.redirect_refreshed(&self.upstream);
    }

    pub(super) fn dns_failed(&self) {
        self.metrics.dns_failed(&self.upstream);
    }
}
