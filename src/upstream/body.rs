//! The bytes of a blob as they come from an upstream: held to a pace, counted, and with a place until all have come.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::{Instant, sleep_until};

use crate::allowance::Turn;
use crate::metrics::Fetched;
use crate::oci::Digest;

use super::Upstream;
use super::budget::Purpose;
use super::endpoint::Endpoint;
use super::error::Error;
use super::pace::Pace;
use super::places::Place;
use super::quota::Quota;

/// Bytes from the network, with limits on their silence and slowness.
pub struct Body {
    response: Response,
    pace: Pace,
    turn: Turn<2>,
    endpoint: Arc<Endpoint>,
    /// Until all has come.
    place: Option<Place>,
    quota: Arc<Quota>,
    fetched: Fetched,
    /// In bytes.
    received: u64,
    /// What came with the last of those that were passed over.
    ahead: Option<Bytes>,
}

/// An address that sends a body.
pub struct Source(Arc<Endpoint>);

/// An address that has sent this much of a blob does its work.
const PROOF: u64 = 1 << 20;

// === impl Source ===

impl Source {
    /// What it sent was not the blob: for a while others are asked for that one first.
    pub fn gave_wrong_bytes(&self, digest: &Digest) {
        self.0.gave_wrong_bytes(digest);
    }
}

// === impl Body ===

impl Body {
    pub(super) fn new(upstream: &Upstream, response: Response, endpoint: Arc<Endpoint>, place: Option<Place>) -> Self {
        Self {
            response,
            pace: Pace::new(upstream.limits),
            turn: Turn::new(upstream.rates.clone()),
            endpoint,
            place,
            quota: Arc::clone(&upstream.quota),
            fetched: upstream.counts.fetched(Some(Purpose::Blob)),
            received: 0,
            ahead: None,
        }
    }

    /// That it has come is all that was wanted.
    pub(super) fn is_enough(&mut self) {
        drop(self.place.take());
    }

    /// Passes over so many bytes, showing them.
    ///
    /// # Errors
    /// As [`chunk`](Self::chunk), and if there are not so many.
    pub async fn pass_over(&mut self, mut bytes: u64, mut show: impl FnMut(&[u8])) -> Result<(), Error> {
        while bytes > 0 {
            let mut chunk = self.chunk().await?.ok_or_else(Error::ended_early)?;
            let rest = chunk.split_off(chunk.len().min(usize::try_from(bytes).unwrap_or(usize::MAX)));
            self.ahead = Some(rest).filter(|rest| !rest.is_empty());
            bytes -= chunk.len() as u64;
            show(&chunk);
        }
        Ok(())
    }

    /// Where it comes from.
    #[must_use]
    pub fn source(&self) -> Source {
        Source(Arc::clone(&self.endpoint))
    }

    /// The next bytes; `None` at the end of the body.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// When the connection breaks, or nothing comes for too long.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        #[cfg(debug_assertions)]
        self.panic_as_asked();
        if let Some(ahead) = self.ahead.take() {
            return Ok(Some(ahead));
        }
        // Before its pace is looked at: what larder waits for of itself is not held against the upstream.
        if self.turn.at > Instant::now() {
            sleep_until(self.turn.at).await;
        }
        let chunk = self.pace.chunk(&mut self.response).await;
        match &chunk {
            Ok(Some(bytes)) => {
                let before = self.received;
                self.received += bytes.len() as u64;
                self.quota.spend(bytes.len() as u64);
                self.fetched.add(bytes.len());
                self.turn.took(bytes.len());
                if before < PROOF && self.received >= PROOF {
                    self.endpoint.body_came();
                }
            }
            Ok(None) => {
                self.endpoint.body_came();
                self.is_enough();
            }
            Err(error) => self.endpoint.body_broke(error),
        }
        chunk
    }

    /// Where a test wants it, which says in a header after how many bytes.
    #[cfg(debug_assertions)]
    fn panic_as_asked(&self) {
        let after = self.response.headers().get("x-larder-panic").and_then(|value| value.to_str().ok()?.parse().ok());
        assert!(after.is_none_or(|after: u64| self.received < after), "a test has asked for it");
    }
}

/// Of what is broken off, the connection is lost.
impl Drop for Body {
    fn drop(&mut self) {
        if self.response.content_length() != Some(0) {
            self.place.take().into_iter().for_each(Place::rest);
        }
    }
}
