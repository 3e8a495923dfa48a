//! `[traces]`: spans go to a collector of OpenTelemetry's, some at a time; nobody waits for it.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use reqwest::{Client, Url, redirect};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::traces::{Ended, Tracer, export};
use crate::upstream;

/// `[traces]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceOptions {
    /// Where a collector takes traces by OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`. Empty: nothing is traced.
    pub endpoint: String,
    /// How many requests are traced, of 1. Of those that clients trace, the same part, by the ID of the trace.
    pub sample_ratio: f64,
}

/// Brings spans to the collector, until it is ended.
pub(super) struct Exporter {
    task: JoinHandle<()>,
    last: CancellationToken,
}

/// What it works with.
struct Export {
    client: Client,
    endpoint: Url,
    metrics: Metrics,
    failing: bool,
}

/// So many spans are sent at once.
const MOST: usize = 512;
/// So long the first of several waits for the others.
const GATHER: Duration = Duration::from_secs(1);
/// So long a collector may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// And at the end, when everyone waits for larder.
const LAST: Duration = Duration::from_millis(100);

// === impl TraceOptions ===

impl Default for TraceOptions {
    fn default() -> Self {
        Self { endpoint: String::new(), sample_ratio: 1.0 }
    }
}

impl TraceOptions {
    /// # Errors
    /// Says in one line what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(format!("traces.sample_ratio is {}; it must be from 0 to 1", self.sample_ratio));
        }
        if self.endpoint.is_empty() { Ok(()) } else { self.url().map(|_| ()) }
    }

    fn url(&self) -> Result<Url, String> {
        let wrong = "traces.endpoint must be a URL without a password, such as http://127.0.0.1:4318/v1/traces";
        let url: Url = self.endpoint.parse().map_err(|_| wrong.to_owned())?;
        let bare = url.username().is_empty() && url.password().is_none();
        if bare && url.has_host() && matches!(url.scheme(), "http" | "https") { Ok(url) } else { Err(wrong.into()) }
    }
}

// === impl Exporter ===

impl Exporter {
    /// `None`, and a tracer that traces nothing, where there is no endpoint.
    ///
    /// # Errors
    /// One line that says what is wrong.
    pub(super) fn start(options: &TraceOptions, metrics: &Metrics) -> Result<(Option<Self>, Tracer), String> {
        if options.endpoint.is_empty() {
            return Ok((None, Tracer::default()));
        }
        let client = Client::builder().tls_backend_preconfigured(upstream::tls()?).redirect(redirect::Policy::none());
        let endpoint = options.url()?;
        // What is on this machine is asked itself, whatever proxy the environment names.
        let is_here = endpoint.host_str().is_some_and(upstream::is_loopback);
        let client = if is_here { client.no_proxy() } else { client };
        let client = client.timeout(PATIENCE).build().map_err(|error| format!("traces.endpoint: {error}"))?;
        let mut export = Export { client, endpoint, metrics: metrics.clone(), failing: false };
        let lost = metrics.clone();
        let (tracer, mut spans) = Tracer::new(options.sample_ratio, move || lost.spans_lost(1));
        let last = CancellationToken::new();
        let ends = last.clone();
        let task = tokio::spawn(async move {
            loop {
                let mut gathered = Vec::new();
                let more = ends.run_until_cancelled(gather(&mut spans, &mut gathered)).await;
                if more.is_none() {
                    spans.recv_many(&mut gathered, spans.len().min(MOST)).await;
                }
                if gathered.is_empty() {
                    return;
                }
                export.send(&gathered).await;
            }
        });
        Ok((Some(Self { task, last }), tracer))
    }

    /// Brings what there is, if it is taken at once.
    pub(super) async fn end(self) {
        self.last.cancel();
        let _ = timeout(LAST, self.task).await;
    }
}

/// Cancel safe: what has come is there.
async fn gather(spans: &mut Receiver<Ended>, gathered: &mut Vec<Ended>) {
    spans.recv_many(gathered, MOST).await;
    let rest = async { while gathered.len() < MOST && spans.recv_many(gathered, MOST - gathered.len()).await > 0 {} };
    let _ = timeout(GATHER, rest).await;
}

// === impl Export ===

impl Export {
    async fn send(&mut self, spans: &[Ended]) {
        let request = self.client.post(self.endpoint.clone()).header(CONTENT_TYPE, "application/json").body(export(spans));
        let taken = request.send().await.and_then(reqwest::Response::error_for_status);
        match taken {
            Ok(_) if std::mem::take(&mut self.failing) => tracing::info!("the collector takes traces again"),
            Ok(_) => {}
            Err(error) => {
                self.metrics.spans_lost(spans.len() as u64);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "the collector at traces.endpoint takes no traces; they are lost until it does");
                }
            }
        }
    }
}
