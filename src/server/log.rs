//! One line a request.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use crate::mirror::Served;

/// What is told of a request once its answer has gone out. Names get here parsed, or quoted as in an error; no header, no
/// query.
pub(super) struct AccessLine {
    pub(super) client: SocketAddr,
    pub(super) method: Method,
    /// What kind of thing was asked for.
    pub(super) kind: &'static str,
    pub(super) upstream: String,
    pub(super) repository: String,
    pub(super) reference: String,
    pub(super) served: Option<Served>,
    /// Why there was no answer.
    pub(super) why: Option<String>,
    pub(super) status: StatusCode,
    pub(super) begun: Instant,
    first_byte: Option<Duration>,
    bytes: u64,
    broke: bool,
    /// How much the answer should have.
    pub(super) expected: Option<u64>,
}

// === impl AccessLine ===

impl AccessLine {
    pub(super) fn new(client: SocketAddr, method: &Method) -> Self {
        Self {
            client,
            method: method.clone(),
            kind: "other",
            upstream: String::new(),
            repository: String::new(),
            reference: String::new(),
            served: None,
            why: None,
            status: StatusCode::OK,
            begun: Instant::now(),
            first_byte: None,
            bytes: 0,
            broke: false,
            expected: None,
        }
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.first_byte.get_or_insert_with(|| self.begun.elapsed());
    }

    pub(super) fn broke(&mut self) {
        self.broke = true;
    }

    /// How the answer came about, in a word.
    fn served(&self) -> &'static str {
        match &self.served {
            Some(served) => served.word(),
            None if self.why.is_some() => "refused",
            None => "local",
        }
    }

    /// How the body ended, in a word.
    fn end(&self) -> &'static str {
        if self.broke {
            "broken"
        } else if self.method != Method::HEAD && self.expected.is_some_and(|expected| self.bytes < expected) {
            "left"
        } else {
            "complete"
        }
    }
}

/// Milliseconds with their thousandths.
fn ms(duration: Duration) -> f64 {
    f64::from(u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)) / 1000.0
}

impl Drop for AccessLine {
    fn drop(&mut self) {
        let total = self.begun.elapsed();
        tracing::info!(
            target: "access",
            client = %self.client,
            method = %self.method,
            kind = self.kind,
            upstream = self.upstream,
            repository = self.repository,
            reference = self.reference,
            status = self.status.as_u16(),
            served = self.served(),
            why = self.why,
            bytes = self.bytes,
            first_ms = ms(self.first_byte.unwrap_or(total)),
            total_ms = ms(total),
            end = self.end(),
        );
    }
}
