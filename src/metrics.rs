//! Metrics: every name, what it counts, and what tells its series apart. Floor 0.
//!
//! The page is in the text format of `OpenMetrics`: <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>.
//! No label holds a repository, a tag or a digest, so the number of series is bounded by the configuration.

use std::fmt;
use std::sync::{Arc, LazyLock};

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of one larder. Clones count into the same.
#[derive(Clone)]
pub struct Metrics(Arc<Shared>);

struct Shared {
    registry: Registry,
    connections: Gauge,
    body_buffers: Gauge,
    client_aborts: Counters<1>,
    slow_clients: Counter,
    /// By how they came about. There is one for each request, so that each has its counters at hand.
    answers: [(&'static str, Counter, Counter); ANSWERS.len()],
    shed: Counters<1>,
    handshakes: Counters<1>,
    unproxied: Counter,
    fills: Counters<1>,
    fill_resumes: Counter,
    resume_mismatches: Counter,
    digest_mismatches: Counters<1>,
    upstream_requests: Counters<3>,
    upstream_hedges: Counters<2>,
    upstream_tokens: Counters<2>,
    upstream_cool_down: Gauges<1>,
    redirect_refreshes: Counters<1>,
    dns_errors: Counters<1>,
    budget_limit: Gauges<2>,
    budget_remaining: Gauges<2>,
    budget_window: Gauges<2>,
    budget_reset: Gauges<2>,
    bypasses: Counters<1>,
    disk_errors: Counters<2>,
    quarantined: Counter,
    verified: Counters<1>,
    forgotten: Counters<1>,
    cache_bytes: Gauges<1>,
    cache_blobs: Gauge,
    cache_state: Gauge,
}

type Labels<const N: usize> = [(&'static str, String); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Gauges<const N: usize> = Family<Labels<N>, Gauge>;

/// What an account may still fetch from an upstream that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetGauges {
    pub limit: u64,
    pub remaining: u64,
    pub window_seconds: u64,
    /// Until there is a budget again, where there is none now.
    pub reset_seconds: Option<u64>,
}

/// What the cache takes of the disk, in bytes, by what it is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheGauges {
    /// Verified blobs.
    pub committed: u64,
    /// Files on their way in that nobody is filling.
    pub partial: u64,
    /// Promised to those that are being filled.
    pub reserved: u64,
    /// Found damaged and set aside.
    pub quarantined: u64,
    /// Removed, or about to be, and not off the disk yet: somebody reads them.
    pub leaving: u64,
    pub blobs: u64,
    /// True while the disk fails and what is missing goes past the cache.
    pub degraded: bool,
}

/// How answers come about: as in the log.
const ANSWERS: [&str; 9] = ["hit", "joined", "miss", "revalidated", "stale", "offline", "bypass", "refused", "local"];

/// One for the process, as what panics may be no part of any larder.
static PANICS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Counts a panic, wherever it was.
pub fn panicked() {
    PANICS.inc();
}

// === impl Metrics ===

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let mut register = Register(Registry::with_prefix("larder"));
        register.0.register("panics", "Panics of this process, each of which cost one task", PANICS.clone());
        let answers: Counters<1> = register.add(
            "answers",
            "Answers to clients, by how they came about: hit, joined, miss, revalidated, stale, offline, bypass, refused, local",
        );
        let answer_bytes: Counters<1> = register.add("answer_bytes", "Bytes of bodies that clients were sent, likewise");
        let counters = |counters: &Counters<1>, served: &str| counters.get_or_create(&[("served", served.into())]).clone();
        let shared = Shared {
            answers: ANSWERS.map(|served| (served, counters(&answers, served), counters(&answer_bytes, served))),
            connections: register.add("connections", "Connections of clients that are open"),
            body_buffers: register.add("body_buffer_bytes", "Bytes of blobs that are in memory on their way to clients"),
            client_aborts: register
                .add("client_aborts", "Requests that clients have left before their end, by phase: head, body"),
            slow_clients: register.add("slow_clients", "Answers given up as their clients took too little for too long"),
            shed: register.add(
                "shed",
                "What was not served for want of something: connections, memory, descriptors, sockets (to ask upstreams with), or as one \
                 client had all that it may have: client_connections, client_requests",
            ),
            handshakes: register
                .add("tls_handshakes", "TLS handshakes of clients, by outcome: done, failed, slow, given_up (for newer ones)"),
            unproxied: register.add(
                "unproxied_connections",
                "Connections closed, as they did not begin as the PROXY protocol has it, or were none of a proxy's",
            ),
            fills: register.add("fills", "Fills that have ended, by how: kept, passed, mismatch, stopped, given_up, failed"),
            fill_resumes: register.add("fill_resumes", "Transfers that broke and were taken up again"),
            resume_mismatches: register.add(
                "resume_mismatches",
                "Transfers that could not go on, as the upstream now has other bytes before that place",
            ),
            digest_mismatches: register.add("digest_mismatches", "Bodies that did not hash to their digest"),
            upstream_requests: register.add(
                "upstream_requests",
                "Requests to upstreams, by kind (manifest, blob, list) and status (a number, timeout or failed)",
            ),
            upstream_hedges: register.add(
                "upstream_hedges",
                "Questions that a second address was asked as well, by whether it answered first (won) or not (lost)",
            ),
            upstream_tokens: register.add("upstream_tokens", "Tokens that were asked for, by outcome (fetched, refused, failed)"),
            upstream_cool_down: register
                .add("upstream_cool_down_seconds", "For how long the upstream is left alone, as it limits the rate or is down"),
            redirect_refreshes: register
                .add("redirect_refreshes", "Redirects that led to a refusal, so that the upstream was asked for another"),
            dns_errors: register.add("dns_errors", "Names that could not be resolved, some of them known from before"),
            budget_limit: register.add("upstream_budget_limit", "Manifests that the account may fetch within the window"),
            budget_remaining: register.add("upstream_budget_remaining", "Manifests that it may still fetch, as was last told"),
            budget_window: register.add("upstream_budget_window_seconds", "The window of the budget"),
            budget_reset: register.add("upstream_budget_reset_seconds", "Until there is a budget again, where there is none"),
            bypasses: register.add("bypasses", "Blobs that went past the cache, by reason"),
            disk_errors: register.add("disk_errors", "Operations on the cache directory that failed, by operation and error"),
            quarantined: register.add("quarantined", "Blobs that were found damaged and set aside"),
            verified: register.add("verified", "Blobs of the cache that were hashed again, by outcome: right, damaged, unknown"),
            forgotten: register.add(
                "forgotten",
                "What is not remembered, or no longer, as there was too much of it: links of manifests to what they name, tags \
                 and proofs, or the oldest records of all",
            ),
            cache_bytes: register.add("cache_bytes", "Bytes of the disk, by what they are there for"),
            cache_blobs: register.add("cache_blobs", "Blobs in the cache, manifests among them"),
            cache_state: register.add("cache_state", "0 if all is well, 1 while the disk fails"),
            registry: register.0,
        };
        Self(Arc::new(shared))
    }

    /// All of it, for Prometheus to read.
    #[must_use]
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut page, &self.0.registry);
        page
    }

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

    /// An answer has ended. `served`: in a word, how it came about.
    pub fn answered(&self, served: &str) {
        let known = self.0.answers.iter().find(|(known, ..)| *known == served);
        known.into_iter().for_each(|(_, answers, _)| _ = answers.inc());
    }

    /// So many bytes of one's body went out.
    pub fn sent(&self, served: &str, bytes: usize) {
        let known = self.0.answers.iter().find(|(known, ..)| *known == served);
        known.into_iter().for_each(|(_, _, sent)| _ = sent.inc_by(bytes as u64));
    }

    /// How many answers have come about in which way, and how many bytes of them went out.
    pub fn answers(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        self.0.answers.iter().map(|(served, answers, bytes)| (*served, answers.get(), bytes.get()))
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

    /// Replaces what is shown of who is left alone, in seconds.
    pub fn set_cool_downs<'a>(&self, cool_downs: impl Iterator<Item = (&'a str, u64)>) {
        self.0.upstream_cool_down.clear();
        for (upstream, seconds) in cool_downs {
            self.0.upstream_cool_down.get_or_create(&[("upstream", upstream.into())]).set(signed(seconds));
        }
    }

    pub fn digest_mismatched(&self, upstream: &str) {
        self.0.digest_mismatches.get_or_create(&[("upstream", upstream.into())]).inc();
    }

    /// Replaces what is shown of all budgets, by upstream and account.
    pub fn set_budgets<'a>(&self, budgets: impl Iterator<Item = (&'a str, &'a str, BudgetGauges)>) {
        let families = [&self.0.budget_limit, &self.0.budget_remaining, &self.0.budget_window, &self.0.budget_reset];
        families.iter().for_each(|family| family.clear());
        for (upstream, account, budget) in budgets {
            let BudgetGauges { limit, remaining, window_seconds, reset_seconds } = budget;
            let labels = [("upstream", upstream.to_owned()), ("account", account.to_owned())];
            let values = [Some(limit), Some(remaining), Some(window_seconds), reset_seconds];
            for (family, value) in families.iter().zip(values) {
                value.iter().for_each(|value| _ = family.get_or_create(&labels).set(signed(*value)));
            }
        }
    }

    // --- cache ---

    pub fn bypassed(&self, why: &'static str) {
        self.0.bypasses.get_or_create(&[("reason", why.into())]).inc();
    }

    /// `error`: the name of its kind, such as `StorageFull`.
    pub fn disk_failed(&self, operation: &'static str, error: &str) {
        self.0.disk_errors.get_or_create(&[("operation", operation.into()), ("error", error.into())]).inc();
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

    /// Replaces what is shown of the cache.
    pub fn set_cache(&self, cache: CacheGauges) {
        let CacheGauges { committed, partial, reserved, quarantined, leaving, blobs, degraded } = cache;
        let bytes = [
            ("committed", committed),
            ("partial", partial),
            ("reserved", reserved),
            ("quarantined", quarantined),
            ("leaving", leaving),
        ];
        for (what, bytes) in bytes {
            self.0.cache_bytes.get_or_create(&[("for", what.into())]).set(signed(bytes));
        }
        self.0.cache_blobs.set(signed(blobs));
        self.0.cache_state.set(i64::from(degraded));
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Gives names to metrics as they are made.
struct Register(Registry);

impl Register {
    fn add<M>(&mut self, name: &'static str, help: &'static str) -> M
    where
        M: prometheus_client::registry::Metric + Clone + Default,
    {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_tells_what_was_counted() {
        let metrics = Metrics::new();
        metrics.clone().fill_ended("kept");
        metrics.upstream_asked("docker.io", "blob", "200");
        let budget = BudgetGauges { limit: 200, remaining: 7, window_seconds: 21_600, reset_seconds: None };
        metrics.set_budgets([("docker.io", "a\"b", budget)].into_iter());
        let page = metrics.page();
        for line in [
            "larder_fills_total{outcome=\"kept\"} 1",
            "larder_upstream_requests_total{upstream=\"docker.io\",kind=\"blob\",status=\"200\"} 1",
            "larder_upstream_budget_remaining{upstream=\"docker.io\",account=\"a\\\"b\"} 7",
            "larder_cache_state 0",
        ] {
            assert!(page.lines().any(|other| other == line), "{line}: {page}");
        }
        assert!(page.ends_with("# EOF\n"));
        metrics.set_budgets(std::iter::empty());
        assert!(!metrics.page().contains("remaining{"), "what is not there any more is not shown");
    }
}
