//! How long a body may take: it may not fall silent, nor drip.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Response;

use super::error::Error;
use super::options::Options;

/// The limits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Without a byte.
    idle: Duration,
    /// In bytes per second; 0: any.
    rate: u64,
}

/// A body's pace. Only the time in which it is waited for counts: who reads slowly is not held against the upstream.
pub(super) struct Pace {
    limits: Limits,
    /// Since the last byte.
    silent: Duration,
    /// Since the average was begun.
    waited: Duration,
    received: u64,
}

/// Counts the time until it is dropped.
struct Waiting<'a> {
    pace: &'a mut Pace,
    since: Instant,
}

// === impl Limits ===

impl Limits {
    pub(super) fn of(options: &Options) -> Self {
        Self { idle: options.idle_timeout, rate: options.min_rate.as_u64() }
    }

    /// Over how long the rate is averaged: one silence that is not too long leaves time to make up for it.
    pub(super) fn window(self) -> Duration {
        self.idle * 2
    }
}

// === impl Pace ===

impl Pace {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, silent: Duration::ZERO, waited: Duration::ZERO, received: 0 }
    }

    /// The next bytes of a body; `None` at its end.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// When the connection breaks, or too little comes.
    pub(super) async fn chunk(&mut self, response: &mut Response) -> Result<Option<Bytes>, Error> {
        let left = self.limits.idle.saturating_sub(self.silent);
        let waiting = Waiting { pace: self, since: Instant::now() };
        let chunk = tokio::time::timeout(left, response.chunk()).await;
        drop(waiting);
        let chunk = chunk.map_err(|_| Error::timed_out("the body has fallen silent"))??;
        self.silent = Duration::ZERO;
        self.received += chunk.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if chunk.is_some() && self.waited >= self.limits.window() {
            if self.received < self.limits.rate.saturating_mul(self.waited.as_millis().try_into().unwrap_or(u64::MAX)) / 1000 {
                return Err(Error::timed_out("the body comes too slowly"));
            }
            (self.waited, self.received) = (Duration::ZERO, 0);
        }
        Ok(chunk)
    }
}

// === impl Waiting ===

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waited = self.since.elapsed();
        self.pace.silent += waited;
        self.pace.waited += waited;
    }
}
