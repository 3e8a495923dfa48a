//! The page that Prometheus reads: how a metric comes onto it, and how it is written.

use prometheus_client::encoding::text;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Metric, Registry};

/// How the page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>
    OpenMetrics,
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>, for who asks for nothing else.
    Text,
}

/// A metric as those know it who query it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// With its suffix; that of a histogram is a query's to choose: `_bucket`, `_sum` or `_count`.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
    pub help: String,
}

/// Gives names to metrics as they are made.
pub(super) struct Register {
    /// What stands before each name.
    prefix: &'static str,
    pub(super) registry: Registry,
    pub(super) described: Vec<Described>,
}

// === impl Format ===

impl Format {
    /// As what a client asks for in `Accept`.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// All that is registered.
    pub(super) fn page(self, registries: &[Registry]) -> String {
        let mut page = String::new();
        // Writing to a string does not fail.
        registries.iter().for_each(|registry| _ = text::encode_registry(&mut page, registry));
        match self {
            Self::OpenMetrics => {
                let _ = text::encode_eof(&mut page);
                page
            }
            Self::Text => older(&page),
        }
    }
}

/// The same in the older format: there a counter is described under the name that its samples have, and so is what only informs.
fn older(page: &str) -> String {
    let (mut text, mut help) = (String::with_capacity(page.len() + page.len() / 50), None);
    for line in page.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|described| described.split_once(' ')) {
            let (suffix, kind) = (suffix(kind), if kind == "info" { "gauge" } else { kind });
            let help = help.map_or("", |(_, help)| help);
            text.push_str(&format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with("# ") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// What the samples of a kind have behind the name.
fn suffix(kind: &str) -> &'static str {
    match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    }
}

// === impl Register ===

impl Register {
    pub(super) fn new(prefix: &'static str) -> Self {
        let registry = if prefix.is_empty() { Registry::default() } else { Registry::with_prefix(prefix) };
        Self { prefix, registry, described: Vec::new() }
    }

    pub(super) fn add<M: Metric + Clone + Default>(&mut self, name: &'static str, help: &'static str) -> M {
        self.put(name, help, M::default())
    }

    pub(super) fn put<M: Metric + Clone>(&mut self, name: &'static str, help: &'static str, metric: M) -> M {
        self.show(name, help, metric.clone());
        metric
    }

    /// One that nobody changes.
    pub(super) fn show(&mut self, name: &'static str, help: &'static str, metric: impl Metric) {
        let kind = match metric.metric_type() {
            MetricType::Counter => "counter",
            MetricType::Histogram => "histogram",
            MetricType::Info => "info",
            _ => "gauge",
        };
        let underscore = if self.prefix.is_empty() { "" } else { "_" };
        let name_of_samples = format!("{}{underscore}{name}{}", self.prefix, suffix(kind));
        self.described.push(Described { name: name_of_samples, kind, help: help.to_owned() });
        self.registry.register(name, help, metric);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::info::Info;

    use super::*;

    #[test]
    fn who_asks_for_nothing_in_particular_gets_the_older_format() {
        // As Prometheus 2 and 3 ask.
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        for accept in ["", "*/*", "text/plain", "text/html, */*"] {
            assert_eq!(Format::accepted(accept), Format::Text);
        }
        let (mut register, mut bare) = (Register::new("a"), Register::new(""));
        register.add::<Counter>("pulls", "All of them").inc_by(3);
        register.add::<Gauge>("left_bytes", "What \\ is left").set(4);
        bare.registry.register("b", "Which it is", Info::new([("version", "1")]));
        let registries = [register.registry, bare.registry];
        assert_eq!(
            Format::OpenMetrics.page(&registries),
            "# HELP a_pulls All of them.\n# TYPE a_pulls counter\na_pulls_total 3\n\
             # HELP a_left_bytes What \\ is left.\n# TYPE a_left_bytes gauge\na_left_bytes 4\n\
             # HELP b Which it is.\n# TYPE b info\nb_info{version=\"1\"} 1\n# EOF\n"
        );
        assert_eq!(
            Format::Text.page(&registries),
            "# HELP a_pulls_total All of them.\n# TYPE a_pulls_total counter\na_pulls_total 3\n\
             # HELP a_left_bytes What \\ is left.\n# TYPE a_left_bytes gauge\na_left_bytes 4\n\
             # HELP b_info Which it is.\n# TYPE b_info gauge\nb_info{version=\"1\"} 1\n"
        );
        assert_eq!(register.described[0].name, "a_pulls_total");
    }
}
