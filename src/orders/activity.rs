//! `larder top`: what a larder is doing now.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::mirror::Underway;

use super::{Orders, Report, Reports};

/// A larder at one moment. What is counted, is since it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityReport {
    pub connections: u64,
    pub answers: Vec<AnswersReport>,
    /// What is being fetched, the largest first; and how much more there is of it than is told.
    pub fills: Vec<FillReport>,
    pub more_fills: usize,
    /// What the cache may take of the disk, takes, and never evicts, in bytes.
    pub limit: u64,
    pub used: u64,
    pub pinned: u64,
    /// Why the disk takes nothing.
    pub disk: Option<String>,
    /// Upstreams that do not answer, or not for now.
    pub left_alone: Vec<String>,
    pub budgets: Vec<AccountReport>,
}

/// Answers that came about in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswersReport {
    /// As in the log: `hit`, `miss` …
    pub served: String,
    pub answers: u64,
    /// What clients got of them.
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillReport {
    pub repository: String,
    pub digest: String,
    pub bytes: u64,
    /// `None`: the upstream does not tell it, or has not answered yet.
    pub size: Option<u64>,
    pub clients: usize,
}

/// What an account may still fetch, in GETs of manifests within the upstream's window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountReport {
    pub upstream: String,
    pub account: String,
    pub limit: u64,
    pub remaining: u64,
}

/// More would not find room on a screen.
const FILLS_SHOWN: usize = 40;
/// No more often than this.
const LEAST_EVERY: Duration = Duration::from_millis(100);

// === impl Orders ===

impl Orders {
    /// Tells it each `every` milliseconds until the order is taken back; `None`: once.
    pub(super) async fn watch(&self, every: Option<u64>, reports: &Reports) {
        loop {
            reports.tell(Report::Activity(self.activity())).await;
            let Some(every) = every else { return };
            tokio::time::sleep(Duration::from_millis(every).max(LEAST_EVERY)).await;
        }
    }

    /// A larder at this moment.
    #[must_use]
    pub fn activity(&self) -> ActivityReport {
        let (metrics, health, account) = (self.mirror.metrics(), self.mirror.health(), self.store.account());
        let mut fills: Vec<_> = self.mirror.underway().into_iter().map(FillReport::of).collect();
        fills.sort_by(|a, b| (b.size, &a.digest).cmp(&(a.size, &b.digest)));
        let more_fills = fills.len().saturating_sub(FILLS_SHOWN);
        fills.truncate(FILLS_SHOWN);
        let answers = metrics.answers().map(|(served, answers, bytes)| AnswersReport { served: served.into(), answers, bytes });
        let budgets = self.mirror.registries().upstreams().flat_map(|upstream| {
            let report = |budget: crate::upstream::BudgetReport| AccountReport {
                upstream: upstream.name().to_string(),
                account: budget.account,
                limit: budget.limit,
                remaining: budget.remaining,
            };
            upstream.budgets().into_iter().map(report).collect::<Vec<_>>()
        });
        ActivityReport {
            connections: metrics.connections(),
            answers: answers.collect(),
            fills,
            more_fills,
            limit: account.budget,
            used: account.used,
            pinned: account.pinned,
            disk: health.disk.map(|trouble| trouble.why),
            left_alone: health.left_alone.iter().map(ToString::to_string).collect(),
            budgets: budgets.collect(),
        }
    }
}

// === impl FillReport ===

impl FillReport {
    fn of(fill: Underway) -> Self {
        let Underway { repository, digest, bytes, size, clients } = fill;
        Self { repository: repository.to_string(), digest: digest.to_string(), bytes, size, clients }
    }
}
