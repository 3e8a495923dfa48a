//! Metrics in the text format of Prometheus. All names stand here.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::upstream::BudgetReport;

/// What is measured of an account's budget at an upstream.
struct Gauge {
    name: &'static str,
    help: &'static str,
    value: fn(&BudgetReport, Timestamp) -> Option<u64>,
}

const BUDGET: [Gauge; 4] = [
    Gauge {
        name: "larder_upstream_budget_limit",
        help: "Manifests that the upstream lets the account fetch within the window.",
        value: |report, _| Some(report.limit),
    },
    Gauge {
        name: "larder_upstream_budget_remaining",
        help: "Manifests that the account may still fetch, as the upstream last told.",
        value: |report, _| Some(report.remaining),
    },
    Gauge {
        name: "larder_upstream_budget_window_seconds",
        help: "The window of the budget.",
        value: |report, _| Some(report.window.as_secs()),
    },
    Gauge {
        name: "larder_upstream_budget_reset_seconds",
        help: "Until there is a budget again, where there is none now.",
        value: |report, now| Some(report.resets?.since(now).as_secs()),
    },
];

/// The page that Prometheus reads.
pub(super) fn page(budgets: &[(&str, BudgetReport)], now: Timestamp) -> String {
    // Accounts of one name are one account to the upstream; what it told last is true.
    let mut accounts: BTreeMap<(&str, &str), &BudgetReport> = BTreeMap::new();
    for (upstream, report) in budgets {
        let known = accounts.entry((upstream, &report.account)).or_insert(report);
        if report.seen > known.seen {
            *known = report;
        }
    }
    let mut page = String::new();
    for Gauge { name, help, value } in BUDGET {
        page.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
        for ((upstream, account), report) in &accounts {
            if let Some(value) = value(report, now) {
                page.push_str(&format!("{name}{{upstream={},account={}}} {value}\n", quoted(upstream), quoted(account)));
            }
        }
    }
    page
}

/// The value of a label.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_page_is_what_it_was() {
        let now = Timestamp::from_unix_millis(1_000_000);
        let report = |account: &str, remaining, seen, resets: Option<u64>| BudgetReport {
            account: account.into(),
            limit: 200,
            remaining,
            window: Duration::from_hours(6),
            source: None,
            seen: Timestamp::from_unix_millis(seen),
            resets: resets.map(Timestamp::from_unix_millis),
        };
        let bob = report("bob", 7, 2, None);
        let budgets =
            [("docker.io", report("bob", 9, 1, None)), ("docker.io", bob), ("x", report("a\"b", 0, 1, Some(1_090_000)))];
        let expected = r#"# HELP larder_upstream_budget_limit Manifests that the upstream lets the account fetch within the window.
# TYPE larder_upstream_budget_limit gauge
larder_upstream_budget_limit{upstream="docker.io",account="bob"} 200
larder_upstream_budget_limit{upstream="x",account="a\"b"} 200
# HELP larder_upstream_budget_remaining Manifests that the account may still fetch, as the upstream last told.
# TYPE larder_upstream_budget_remaining gauge
larder_upstream_budget_remaining{upstream="docker.io",account="bob"} 7
larder_upstream_budget_remaining{upstream="x",account="a\"b"} 0
# HELP larder_upstream_budget_window_seconds The window of the budget.
# TYPE larder_upstream_budget_window_seconds gauge
larder_upstream_budget_window_seconds{upstream="docker.io",account="bob"} 21600
larder_upstream_budget_window_seconds{upstream="x",account="a\"b"} 21600
# HELP larder_upstream_budget_reset_seconds Until there is a budget again, where there is none now.
# TYPE larder_upstream_budget_reset_seconds gauge
larder_upstream_budget_reset_seconds{upstream="x",account="a\"b"} 90
"#;
        assert_eq!(page(&budgets, now), expected);
    }
}
