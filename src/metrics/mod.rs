//! Metrics: every name, what it counts, and what tells its series apart. Floor 0.
//!
//! No label holds a repository, a tag or a digest, and no name of an upstream that a client has chosen, so the number of series is
//! bounded by the configuration.

mod counting;
mod gauges;
mod histogram;
mod page;

use std::fmt;
use std::sync::{Arc, LazyLock};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use gauges::Process;
use histogram::Histogram;
use page::Register;

pub use counting::{AnswerKind, Fetched};
pub use gauges::{BudgetGauges, CacheGauges, DiskGauges, FillGauges, ProcessGauges};
pub use page::{Described, Format};

/// The metrics of one larder. Clones count into the same.
#[derive(Clone)]
pub struct Metrics(Arc<Shared>);

struct Shared {
    registries: [Registry; 2],
    described: Vec<Described>,
    connections: Gauge,
    body_buffers: Gauge,
    client_aborts: Counters<1>,
    slow_clients: Counter,
    /// By how they came about. There is one for each request, so that each has its counters at hand.
    answers: [Answers; ANSWERS.len()],
    errors: Counters<2>,
    shed: Counters<1>,
    handshakes: Counters<1>,
    unproxied: Counter,
    fills: Counters<1>,
    fills_running: Gauge,
    fill_clients: Gauge,
    fill_resumes: Counter,
    resume_mismatches: Counter,
    digest_mismatches: Counters<1>,
    upstream_requests: Counters<3>,
    upstream_bytes: Counters<2>,
    /// Of all upstreams.
    fetched: Counter,
    upstream_header: Histograms<2>,
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
    evictions: Counters<1>,
    evicted_bytes: Counters<1>,
    quarantined: Counter,
    verified: Counters<1>,
    forgotten: Counters<1>,
    cache_bytes: Gauges<1>,
    cache_max: Gauge,
    cache_pinned: Gauge,
    cache_blobs: Gauge,
    cache_oldest: Gauge,
    cache_state: Gauge,
    disk_free: Gauge,
    disk_size: Gauge,
    disk_floor: Gauge,
    audit_lost: Counter,
    spans_lost: Counter,
    process: Process,
}

/// Answers that came about in one way.
struct Answers {
    served: &'static str,
    number: Counter,
    bytes: Counter,
    /// By [`AnswerKind`].
    first_byte: [Histogram; KINDS.len()],
    whole: [Histogram; KINDS.len()],
}

type Labels<const N: usize> = [(&'static str, String); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Gauges<const N: usize> = Family<Labels<N>, Gauge>;
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// How answers come about: as in the log.
const ANSWERS: [&str; 9] = ["hit", "joined", "miss", "revalidated", "stale", "offline", "bypass", "refused", "local"];
/// By [`AnswerKind`].
const KINDS: [&str; 4] = ["blob", "manifest", "list", "other"];

/// In seconds, up to which times are told apart: a hit begins after some tenths of a millisecond, and the patience of a client ends
/// after half a minute;
const FIRST_BYTE: [f64; 15] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// a large layer takes a slow client minutes;
const WHOLE: [f64; 15] = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];
/// an upstream is far away, and `header_timeout` ends it.
const HEADER: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

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
        let mut register = Register::new("larder");
        register.show("build", "The larder that this is", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        register.put("panics", "Panics of this process, each of which cost one task", PANICS.clone());
        let mut shared = Shared {
            answers: answers(&mut register),
            errors: register.add("errors", "Errors that clients were answered, by the distribution specification's code, and status"),
            connections: register.add("connections", "Connections of clients that are open"),
            body_buffers: register.add("body_buffer_bytes", "Bytes of blobs, manifests and lists that are in memory on their way to clients, and of what is asked over one connection at once"),
            client_aborts: register.words(
                "client_aborts",
                "Requests that clients have left before their end, by phase",
                ("phase", &["head", "body"]),
            ),
            slow_clients: register.add("slow_clients", "Answers given up as their clients took too little for too long"),
            shed: register.words(
                "shed",
                "What was not served for want of something: connections, memory, descriptors, files, sockets (to ask upstreams with), transfers (in line \
                 for an upstream), or as one \
                 client had all that it may have: client_connections, client_requests",
                ("reason", &["connections", "memory", "descriptors", "files", "sockets", "transfers", "client_connections", "client_requests"]),
            ),
            handshakes: register.words(
                "tls_handshakes",
                "TLS handshakes of clients, by outcome: done, failed, slow, given_up (for newer ones)",
                ("outcome", &["done", "failed", "slow", "given_up"]),
            ),
            unproxied: register.add(
                "unproxied_connections",
                "Connections closed, as they did not begin as the PROXY protocol has it, or were none of a proxy's",
            ),
            fills: register.words(
                "fills",
                "Fills that have ended, by how: kept, passed (on, and not kept), mismatch (of the digest), stopped, given_up, failed",
                ("outcome", &["kept", "passed", "mismatch", "stopped", "given_up", "failed"]),
            ),
            fills_running: register.add("fills_running", "Blobs that are being fetched"),
            fill_clients: register.add("fill_clients", "Answers that wait for what is being fetched, or are sent it"),
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
            upstream_bytes: register.add(
                "upstream_bytes",
                "Bytes of bodies that came from upstreams, by kind (manifest, blob, list, token); clients were sent answer_bytes",
            ),
            fetched: Counter::default(),
            upstream_header: register.put(
                "upstream_header_seconds",
                "Until the head of an upstream's answer was here, redirects followed, by kind (manifest, blob, list)",
                Family::new_with_constructor(|| Histogram::new(&HEADER)),
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
            bypasses: register.words(
                "bypasses",
                "Blobs that went past the cache, by reason: starting, too_large, full, over (what there may be), busy, wrong_bytes, disk",
                ("reason", &["starting", "too_large", "full", "over", "busy", "wrong_bytes", "disk"]),
            ),
            disk_errors: register.add("disk_errors", "Operations on the cache directory that failed, by operation and error"),
            evictions: register.words(
                "evictions",
                "What was removed to make room: blobs, and partial files that nobody went on with",
                ("what", &["blob", "partial"]),
            ),
            evicted_bytes: register.words("evicted_bytes", "Bytes of the disk that this gave back", ("what", &["blob", "partial"])),
            quarantined: register.add("quarantined", "Blobs that were found damaged and set aside"),
            verified: register.words(
                "verified",
                "Blobs of the cache that were hashed again, by outcome",
                ("outcome", &["right", "damaged", "unknown"]),
            ),
            forgotten: register.words(
                "forgotten",
                "What is not remembered, or no longer, as there was too much of it: links of manifests to what they name, tags \
                 and proofs, or the oldest records of all",
                ("what", &["link", "tag", "proof", "record"]),
            ),
            cache_bytes: register.add("cache_bytes", "Bytes of the disk, by what they are there for"),
            cache_max: register.add("cache_max_bytes", "Bytes that these may be, all together: max_size without what is set aside for records"),
            cache_pinned: register.add("cache_pinned_bytes", "Bytes of blobs that are not evicted, as they are pinned or just needed"),
            cache_blobs: register.add("cache_blobs", "Blobs in the cache, manifests among them"),
            cache_oldest: register.add(
                "cache_oldest_use_seconds",
                "How long ago the blob was last used that nobody has used for longest, of those that may be evicted",
            ),
            cache_state: register.add("cache_state", "0 if all is well, 1 while the disk fails"),
            disk_free: register.add("disk_free_bytes", "Bytes that are free for larder on the cache's file system"),
            disk_size: register.add("disk_size_bytes", "Bytes that this file system has in all"),
            disk_floor: register.add("disk_floor_bytes", "Bytes that the cache leaves free there"),
            audit_lost: register.add("audit_lost", "Lines that the audit log does not have, as it could not be written"),
            spans_lost: register.add("spans_lost", "Spans of traces that the collector has not taken"),
            process: Process::default(),
            registries: <[Registry; 2]>::default(),
            described: Vec::new(),
        };
        // By the names that every program has for them.
        let mut bare = Register::new("");
        shared.process = Process {
            cpu: bare.add("process_cpu_seconds", "Time that processors have spent on this process, its own and the kernel's"),
            resident: bare.add("process_resident_memory_bytes", "Memory that the process has"),
            virtual_memory: bare.add("process_virtual_memory_bytes", "Addresses that it has for memory"),
            open_fds: bare.add("process_open_fds", "Descriptors that it has open"),
            max_fds: bare.add("process_max_fds", "Descriptors that it may have open"),
            threads: bare.add("process_threads", "Threads that it has"),
            start: bare.add("process_start_time_seconds", "When it began, in seconds since 1970"),
        };
        shared.described = [register.described, bare.described].concat();
        shared.registries = [register.registry, bare.registry];
        Self(Arc::new(shared))
    }

    /// All of it, for Prometheus to read.
    #[must_use]
    pub fn page(&self, format: Format) -> String {
        format.page(&self.0.registries)
    }

    /// Every metric there is. The page leaves out those that have nothing to tell.
    #[must_use]
    pub fn described(&self) -> &[Described] {
        &self.0.described
    }
}

fn answers(register: &mut Register) -> [Answers; ANSWERS.len()] {
    let number: Counters<1> = register.add(
        "answers",
        "Answers to clients, by how they came about: hit, joined, miss, revalidated, stale, offline, bypass, refused, local",
    );
    let bytes: Counters<1> = register.add("answer_bytes", "Bytes of bodies that clients were sent, likewise");
    let first_byte: Histograms<2> = register.put(
        "answer_first_byte_seconds",
        "Until the first byte of a body went out to its client, or the head where there is none, by kind (blob, manifest, list, other)",
        Family::new_with_constructor(|| Histogram::new(&FIRST_BYTE)),
    );
    let whole: Histograms<2> = register.put(
        "answer_seconds",
        "Until all of an answer had gone out, likewise; without those that ended short",
        Family::new_with_constructor(|| Histogram::new(&WHOLE)),
    );
    ANSWERS.map(|served| {
        let of = |counters: &Counters<1>| counters.get_or_create_owned(&[("served", served.into())]);
        let timed = |times: &Histograms<2>| {
            KINDS.map(|kind| times.get_or_create_owned(&[("kind", kind.into()), ("served", served.into())]))
        };
        Answers { served, number: of(&number), bytes: of(&bytes), first_byte: timed(&first_byte), whole: timed(&whole) }
    })
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

// === impl Register ===

impl Register {
    /// A counter for each of these words, which are all that `label` may have: what has not happened yet is told as none.
    fn words(&mut self, name: &'static str, help: &'static str, (label, words): (&'static str, &[&str])) -> Counters<1> {
        let counters: Counters<1> = self.add(name, help);
        words.iter().for_each(|word| drop(counters.get_or_create(&[(label, (*word).to_owned())])));
        counters
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_page_tells_what_was_counted() {
        let metrics = Metrics::new();
        metrics.clone().fill_ended("kept");
        metrics.upstream_asked("docker.io", "blob", "200");
        metrics.fetched("docker.io", "blob").add(70);
        metrics.answered("hit", AnswerKind::Blob, Some(Duration::from_micros(300)), None);
        metrics.refused("DENIED", "403");
        let budget = BudgetGauges { limit: 200, remaining: 7, window_seconds: 21_600, reset_seconds: None };
        metrics.set_budgets([("docker.io", "a\"b", budget)].into_iter());
        let page = metrics.page(Format::OpenMetrics);
        for line in [
            "larder_fills_total{outcome=\"kept\"} 1",
            "larder_fills_total{outcome=\"failed\"} 0",
            "larder_upstream_requests_total{upstream=\"docker.io\",kind=\"blob\",status=\"200\"} 1",
            "larder_upstream_bytes_total{upstream=\"docker.io\",kind=\"blob\"} 70",
            "larder_answers_total{served=\"hit\"} 1",
            "larder_answer_first_byte_seconds_bucket{le=\"0.0005\",kind=\"blob\",served=\"hit\"} 1",
            "larder_errors_total{code=\"DENIED\",status=\"403\"} 1",
            "larder_upstream_budget_remaining{upstream=\"docker.io\",account=\"a\\\"b\"} 7",
            "larder_cache_state 0",
            concat!("larder_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "process_open_fds 0",
        ] {
            assert!(page.lines().any(|other| other == line), "{line}: {page}");
        }
        assert!(!page.contains("larder_answer_seconds_count"), "what did not end whole took no time: {page}");
        assert!(page.ends_with("# EOF\n"));
        metrics.set_budgets(std::iter::empty());
        assert!(!metrics.page(Format::Text).contains("remaining{"), "what is not there any more is not shown");
    }

    #[test]
    fn what_is_described_is_what_is_on_the_page() {
        let page = Metrics::new().page(Format::Text);
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let kind = |kind| if kind == "info" { "gauge" } else { kind };
        let metrics = Metrics::new();
        let described: Vec<_> = metrics.described().iter().map(|of| (of.name.as_str(), kind(of.kind))).collect();
        for shown in types {
            assert!(described.contains(&shown), "{shown:?}");
        }
        let mut names: Vec<_> = described.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), described.len(), "each name is one metric's");
    }
}
