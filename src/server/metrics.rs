//! The page of metrics: what is counted all the time, and what is looked up when someone reads it.

mod process;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use http::{HeaderMap, HeaderValue, Response, header};

use crate::clock::Timestamp;
use crate::metrics::{BudgetGauges, Format};
use crate::mirror::Mirror;
use crate::upstream::BudgetReport;

use super::body::Body;
use super::respond;

static TELLING: Mutex<()> = Mutex::new(());

/// `GET /metrics`, in the format that is asked for.
pub(super) async fn page(mirror: &Mirror, told: &[(&str, BudgetReport)], now: Timestamp, asked: &HeaderMap) -> Response<Body> {
    let metrics = mirror.measured_with_disk().await;
    // What is set for one who asks is not to be taken away for another before it is told.
    let _one = TELLING.lock().unwrap_or_else(PoisonError::into_inner);
    metrics.set_budgets(budgets(told, now));
    let upstreams = mirror.registries().upstreams();
    metrics.set_cool_downs(upstreams.map(|upstream| (&**upstream.name(), upstream.cool_down().as_secs())));
    process::ours().into_iter().for_each(|process| metrics.set_process(process));
    let accept = asked.get(header::ACCEPT).map(HeaderValue::to_str);
    let format = Format::accepted(accept.and_then(Result::ok).unwrap_or_default());
    respond::metrics(metrics.page(format), format.content_type())
}

/// Budgets by upstream and account, as they are at `now`.
fn budgets<'a>(budgets: &'a [(&'a str, BudgetReport)], now: Timestamp) -> impl Iterator<Item = (&'a str, &'a str, BudgetGauges)> {
    // Accounts of one name are one account to the upstream; what it told last is true.
    let mut accounts: BTreeMap<(&str, &str), &BudgetReport> = BTreeMap::new();
    for (upstream, report) in budgets {
        let known = accounts.entry((upstream, &report.account)).or_insert(report);
        if report.seen > known.seen {
            *known = report;
        }
    }
    accounts.into_iter().map(move |((upstream, account), report)| (upstream, account, gauges(report, now)))
}

fn gauges(report: &BudgetReport, now: Timestamp) -> BudgetGauges {
    BudgetGauges {
        limit: report.limit,
        remaining: report.remaining,
        window_seconds: report.window.as_secs(),
        reset_seconds: report.resets.map(|resets| resets.since(now).as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn of_accounts_with_one_name_the_newest_word_counts() {
        let report = |account: &str, remaining, seen, resets: Option<u64>| BudgetReport {
            account: account.into(),
            limit: 200,
            remaining,
            window: Duration::from_hours(6),
            source: None,
            seen: Timestamp::from_unix_millis(seen),
            resets: resets.map(Timestamp::from_unix_millis),
        };
        let told = [
            ("docker.io", report("bob", 9, 1, None)),
            ("docker.io", report("bob", 7, 2, None)),
            ("x", report("alice", 0, 1, Some(1_090_000))),
        ];
        let shown: Vec<_> = budgets(&told, Timestamp::from_unix_millis(1_000_000)).collect();
        let gauges = |remaining, reset_seconds| BudgetGauges { limit: 200, remaining, window_seconds: 21_600, reset_seconds };
        assert_eq!(shown, [("docker.io", "bob", gauges(7, None)), ("x", "alice", gauges(0, Some(90)))]);
    }
}
