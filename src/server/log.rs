//! One line a request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use crate::metrics::{AnswerKind, Metrics};
use crate::mirror::Served;
use crate::oci::{ErrorCode, Repository};
use crate::traces::Span;

use super::audit::{Access, Audit};

/// What is told of a request once its answer has gone out. Names get here parsed, or quoted as in an error; no header, no
/// query.
pub(super) struct AccessLine {
    /// Whence it came.
    pub(super) client: Arc<str>,
    /// As whom it is known, where it has been asked.
    pub(super) user: Option<Arc<str>>,
    /// The name in the certificate that it has shown.
    pub(super) certificate: Option<Arc<str>>,
    /// As whom it asks where its own credentials count; the audit log alone is told.
    pub(super) login: Option<Arc<str>>,
    pub(super) method: Method,
    /// What kind of thing was asked for.
    pub(super) kind: &'static str,
    /// Of which repository.
    pub(super) repository: Option<Repository>,
    /// By which tag or digest.
    pub(super) reference: Option<Arc<str>>,
    /// What it has led to, where there is an audit log.
    pub(super) digest: Option<String>,
    pub(super) served: Option<Served>,
    /// Why there was no answer.
    pub(super) why: Option<String>,
    /// `None` while there is no answer.
    pub(super) status: Option<StatusCode>,
    /// The code of an error that was answered.
    pub(super) code: Option<ErrorCode>,
    /// The same in a trace.
    pub(super) span: Span,
    pub(super) begun: Instant,
    first_byte: Option<Duration>,
    bytes: u64,
    end: End,
    metrics: Metrics,
    audit: Audit,
}

/// How an answer has ended, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Not at all, so that the client has left: it needs no more, or has no time.
    Left,
    /// All of it has gone out.
    Complete,
    /// There was no more to be had.
    Broken,
    /// The client was given up, as it took too little for too long.
    Slow,
    /// larder has stopped.
    Stopped,
}

// === impl AccessLine ===

impl AccessLine {
    pub(super) fn new(client: Arc<str>, method: &Method, metrics: Metrics, audit: Audit) -> Self {
        Self {
            client,
            user: None,
            certificate: None,
            login: None,
            method: written(method),
            kind: "other",
            repository: None,
            reference: None,
            digest: None,
            served: None,
            why: None,
            status: None,
            code: None,
            span: Span::default(),
            begun: Instant::now(),
            first_byte: None,
            bytes: 0,
            end: End::Left,
            metrics,
            audit,
        }
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.metrics.sent(self.served(), bytes);
        self.first_byte.get_or_insert_with(|| self.begun.elapsed());
    }

    /// The first word about the end counts.
    pub(super) fn ended(&mut self, end: End) {
        if self.end == End::Left {
            self.end = end;
        }
    }

    /// How the answer came about, in a word.
    fn served(&self) -> &'static str {
        match &self.served {
            Some(served) => served.word(),
            None if self.why.is_some() => "refused",
            None => "local",
        }
    }

    fn count(&self, total: Duration) {
        let kind = match self.kind {
            "blob" => AnswerKind::Blob,
            "manifest" => AnswerKind::Manifest,
            "tags" | "referrers" => AnswerKind::List,
            _ => AnswerKind::Other,
        };
        let whole = (self.end == End::Complete).then_some(total);
        self.metrics.answered(self.served(), kind, self.first_byte.or(whole), whole);
        if let (Some(code), Some(status)) = (self.code, self.status) {
            self.metrics.refused(code.as_str(), status.as_str());
        }
    }

    /// Upstream, repository and reference, as far as they are known.
    fn names(&self) -> [&str; 3] {
        let [upstream, repository] =
            self.repository.as_ref().map_or([""; 2], |Repository { upstream, name }| [upstream, name.as_str()]);
        [upstream, repository, self.reference.as_deref().unwrap_or_default()]
    }

    fn audit(&self, total: Duration) {
        if !self.audit.is_kept() {
            return;
        }
        let [upstream, repository, reference] = self.names();
        let access = Access {
            client: &self.client,
            user: self.user.as_deref().or(self.login.as_deref()),
            certificate: self.certificate.as_deref(),
            method: self.method.as_str(),
            kind: self.kind,
            upstream,
            repository,
            reference,
            digest: self.digest.as_deref(),
            status: self.status.map(|status| status.as_u16()),
            served: self.served(),
            why: self.why.as_deref(),
            bytes: self.bytes,
            end: self.end(),
        };
        self.audit.accessed(total, &access);
    }

    fn tell_span(&mut self) {
        let mut span = std::mem::take(&mut self.span);
        let (served, end, [upstream, repository, reference]) = (self.served(), self.end(), self.names());
        let Self { method, kind, client, status, bytes, why, .. } = &*self;
        // What a client makes up is no name.
        let known = if matches!(*method, Method::GET | Method::HEAD) { method.as_str() } else { "other" };
        span.name(|| format!("{known} {kind}"));
        span.text("http.request.method", || &*method);
        span.text("client.address", || &*client);
        span.text("larder.upstream", || upstream);
        span.text("larder.repository", || repository);
        span.text("larder.reference", || reference);
        span.text("larder.served", || served);
        span.text("larder.end", || end);
        span.number("http.response.body.size", *bytes);
        status.iter().for_each(|status| span.number("http.response.status_code", status.as_u16()));
        if status.is_some_and(|status| status.is_server_error()) {
            span.failed(why.as_deref().unwrap_or("an error"));
        }
    }

    /// How it ended, in a word.
    fn end(&self) -> &'static str {
        match self.end {
            _ if std::thread::panicking() => "panicked",
            End::Left => "left",
            End::Complete => "complete",
            End::Broken => "broken",
            End::Slow => "slow",
            End::Stopped => "stopped",
        }
    }
}

/// What a client makes up may be as long as a head.
fn written(method: &Method) -> Method {
    const LONGEST: usize = 16;
    if method.as_str().len() > LONGEST { Method::from_bytes(b"_OTHER").unwrap_or_default() } else { method.clone() }
}

/// Milliseconds with their thousandths.
fn ms(duration: Duration) -> f64 {
    f64::from(u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)) / 1000.0
}

impl Drop for AccessLine {
    fn drop(&mut self) {
        let total = self.begun.elapsed();
        match self.end {
            End::Slow => self.metrics.client_given_up(),
            End::Left if !std::thread::panicking() => {
                self.metrics.client_left(if self.status.is_none() { "head" } else { "body" });
            }
            _ => {}
        }
        self.count(total);
        self.audit(total);
        self.tell_span();
        let [upstream, repository, reference] = self.names();
        tracing::info!(
            target: "access",
            client = %self.client,
            user = self.user.as_deref(),
            method = %self.method,
            kind = self.kind,
            upstream,
            repository,
            reference,
            status = self.status.map(|status| status.as_u16()),
            served = self.served(),
            why = self.why,
            bytes = self.bytes,
            first_ms = ms(self.first_byte.unwrap_or(total)),
            total_ms = ms(total),
            end = self.end(),
        );
    }
}
