//! Histograms of durations, into which a hit counts as well: two additions, no lock, no allocation.

use std::collections::HashMap;
use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// How often something took how long. Clones count into the same.
#[derive(Debug, Clone)]
pub(super) struct Histogram(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// In seconds, rising: up to which each bucket counts.
    bounds: &'static [f64],
    /// Of each bucket alone, and of what is beyond all of them.
    counts: Box<[AtomicU64]>,
    nanos: AtomicU64,
}

// === impl Histogram ===

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Shared { bounds, counts, nanos: AtomicU64::new(0) }))
    }

    pub(super) fn observe(&self, took: Duration) {
        let Shared { bounds, counts, nanos } = &*self.0;
        let seconds = took.as_secs_f64();
        counts[bounds.partition_point(|bound| *bound < seconds)].fetch_add(1, Ordering::Relaxed);
        nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    /// Nothing, as long as nothing was counted: most kinds of things are never served in most ways.
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        let Shared { bounds, counts, nanos } = &*self.0;
        let bounds = bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().map(|count| count.load(Ordering::Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        if count == 0 {
            return Ok(());
        }
        let sum = Duration::from_nanos(nanos.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram(sum, count, &buckets, None::<&HashMap<usize, Exemplar<NoLabelSet, f64>>>)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    fn page(histogram: &Histogram) -> String {
        let mut registry = Registry::default();
        registry.register("x_seconds", "It", histogram.clone());
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        page
    }

    #[test]
    fn each_bucket_has_all_that_took_no_longer() {
        let histogram = Histogram::new(&[0.001, 0.5, 2.0]);
        assert_eq!(page(&histogram), "# HELP x_seconds It.\n# TYPE x_seconds histogram\n# EOF\n");
        for millis in [0, 1, 2, 500, 501, 3000] {
            histogram.clone().observe(Duration::from_millis(millis));
        }
        let counted = "x_seconds_sum 4.004\n\
                       x_seconds_count 6\n\
                       x_seconds_bucket{le=\"0.001\"} 2\n\
                       x_seconds_bucket{le=\"0.5\"} 4\n\
                       x_seconds_bucket{le=\"2.0\"} 5\n\
                       x_seconds_bucket{le=\"+Inf\"} 6\n";
        assert!(page(&histogram).contains(counted), "{}", page(&histogram));
    }
}
