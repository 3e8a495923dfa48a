//! What happens, counted by those to whom it happens.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use super::gauges::signed;
use super::{Answers, Metrics};

/// What kind of thing a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    Blob,
    Manifest,
    /// Tags, or referrers.
    List,
    Other,
}

/// The bytes that come from one upstream for one kind of thing.
#[derive(Clone)]
pub struct Fetched {
    these: Counter,
    all: Counter,
}

// === impl Fetched ===

impl Fetched {
    pub fn add(&self, bytes: usize) {
        self.these.inc_by(bytes as u64);
        self.all.inc_by(bytes as u64);
    }
}

// === impl Metrics ===

impl Metrics {
    // --- clients ---

    pub fn connected(&self) {
        self.0.connections.inc();
    }

    pub fn disconnected(&self) {
        self.0.connections.dec();
    }

    pub fn body_buffered(&self, bytes: usize) {
        self.0.body_buffers.inc_by(signed(bytes as u64));
    }

    pub fn body_released(&self, bytes: usize) {
        self.0.body_buffers.dec_by(signed(bytes as u64));
    }

    /// Bytes of blobs that are in memory on their way to clients.
    #[must_use]
    pub fn body_buffers(&self) -> u64 {
        self.0.body_buffers.get().try_into().unwrap_or_default()
    }

    /// An answer has ended. `served`: in a word, how it came about. `first_byte`, `whole`: how long the beginning took, and all of it;
    /// `None` where it did not come to that.
    pub fn answered(&self, served: &str, kind: AnswerKind, first_byte: Option<Duration>, whole: Option<Duration>) {
        let Some(answers) = self.of(served) else { return };
        answers.number.inc();
        first_byte.into_iter().for_each(|took| answers.first_byte[kind as usize].observe(took));
        whole.into_iter().for_each(|took| answers.whole[kind as usize].observe(took));
    }

    /// So many bytes of one's body went out.
    pub fn sent(&self, served: &str, bytes: usize) {
        self.of(served).into_iter().for_each(|answers| _ = answers.bytes.inc_by(bytes as u64));
    }

    fn of(&self, served: &str) -> Option<&Answers> {
        self.0.answers.iter().find(|answers| answers.served == served)
    }

    /// How many answers have come about in which way, and how many bytes of them went out.
    pub fn answers(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        self.0.answers.iter().map(|answers| (answers.served, answers.number.get(), answers.bytes.get()))
    }

    /// A client was answered an error. `code`: the specification's.
    pub fn refused(&self, code: &'static str, status: &str) {
        self.0.errors.get_or_create(&[("code", code.into()), ("status", status.into())]).inc();
    }

    /// Connections of clients that are open.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.0.connections.get().try_into().unwrap_or_default()
    }

    pub fn client_left(&self, phase: &'static str) {
        self.0.client_aborts.get_or_create(&[("phase", phase.into())]).inc();
    }

    pub fn client_given_up(&self) {
        self.0.slow_clients.inc();
    }

    pub fn shed(&self, reason: &'static str) {
        self.0.shed.get_or_create(&[("reason", reason.into())]).inc();
    }

    /// `outcome`: done, failed, slow, `given_up`.
    pub fn handshake(&self, outcome: &'static str) {
        self.0.handshakes.get_or_create(&[("outcome", outcome.into())]).inc();
    }

    pub fn unproxied(&self) {
        self.0.unproxied.inc();
    }

    /// So many lines of the audit log could not be written.
    pub fn audit_lost(&self, lines: u64) {
        self.0.audit_lost.inc_by(lines);
    }

    /// The collector has not taken so many spans.
    pub fn spans_lost(&self, spans: u64) {
        self.0.spans_lost.inc_by(spans);
    }

    // --- fills ---

    pub fn fill_ended(&self, how: &'static str) {
        self.0.fills.get_or_create(&[("outcome", how.into())]).inc();
    }

    pub fn fill_resumed(&self) {
        self.0.fill_resumes.inc();
    }

    pub fn resume_mismatched(&self) {
        self.0.resume_mismatches.inc();
    }

    // --- upstreams ---

    /// `status`: that of the answer, or in a word why there was none.
    pub fn upstream_asked(&self, upstream: &str, kind: &'static str, status: &str) {
        let labels = [("upstream", upstream.into()), ("kind", kind.into()), ("status", status.into())];
        self.0.upstream_requests.get_or_create(&labels).inc();
    }

    /// An answer has begun after this time.
    pub fn upstream_began(&self, upstream: &str, kind: &'static str, took: Duration) {
        self.0.upstream_header.get_or_create(&[("upstream", upstream.into()), ("kind", kind.into())]).observe(took);
    }

    /// Where the bytes are counted that come for this kind of thing.
    #[must_use]
    pub fn fetched(&self, upstream: &str, kind: &'static str) -> Fetched {
        let labels = [("upstream", upstream.into()), ("kind", kind.into())];
        Fetched { these: self.0.upstream_bytes.get_or_create_owned(&labels), all: self.0.fetched.clone() }
    }

    /// Bytes that have come from all upstreams.
    #[must_use]
    pub fn fetched_bytes(&self) -> u64 {
        self.0.fetched.get()
    }

    /// A second address was asked as well; `won`: and answered first.
    pub fn hedged(&self, upstream: &str, won: bool) {
        let outcome = if won { "won" } else { "lost" };
        self.0.upstream_hedges.get_or_create(&[("upstream", upstream.into()), ("outcome", outcome.into())]).inc();
    }

    pub fn token_asked(&self, upstream: &str, outcome: &'static str) {
        self.0.upstream_tokens.get_or_create(&[("upstream", upstream.into()), ("outcome", outcome.into())]).inc();
    }

    pub fn redirect_refreshed(&self, upstream: &str) {
        self.0.redirect_refreshes.get_or_create(&[("upstream", upstream.into())]).inc();
    }

    pub fn dns_failed(&self, upstream: &str) {
        self.0.dns_errors.get_or_create(&[("upstream", upstream.into())]).inc();
    }

    pub fn digest_mismatched(&self, upstream: &str) {
        self.0.digest_mismatches.get_or_create(&[("upstream", upstream.into())]).inc();
    }

    // --- cache ---

    pub fn bypassed(&self, why: &'static str) {
        self.0.bypasses.get_or_create(&[("reason", why.into())]).inc();
    }

    /// `error`: the name of its kind, such as `StorageFull`.
    pub fn disk_failed(&self, operation: &'static str, error: &str) {
        self.0.disk_errors.get_or_create(&[("operation", operation.into()), ("error", error.into())]).inc();
    }

    /// Something was removed to make room. `what`: blob, partial. `bytes`: of the disk.
    pub fn evicted(&self, what: &'static str, bytes: u64) {
        self.0.evictions.get_or_create(&[("what", what.into())]).inc();
        self.0.evicted_bytes.get_or_create(&[("what", what.into())]).inc_by(bytes);
    }

    pub fn quarantined(&self) {
        self.0.quarantined.inc();
    }

    pub fn verified(&self, outcome: &'static str) {
        self.0.verified.get_or_create(&[("outcome", outcome.into())]).inc();
    }

    /// `what`: link, tag, proof, record.
    pub fn forgotten(&self, what: &'static str, number: usize) {
        if number > 0 {
            self.0.forgotten.get_or_create(&[("what", what.into())]).inc_by(number as u64);
        }
    }
}
