//! `larder du`

use std::process::ExitCode;

use clap::Args;

use crate::orders::{CacheReport, LeavingReport, Order, Report, RepositoryReport, UsageReport};

use super::Configured;
use super::give::give;
use super::said::put;
use super::table::{ago, short, size, table};

/// Show what the cache takes of the disk, for which upstreams and repositories, and what would leave it first.
#[derive(Args)]
pub(super) struct Du {
    /// One line of JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    configured: Configured,
}

// === impl Du ===

impl Du {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let json = self.json;
        give(&self.configured, &Order::Usage, |report| {
            let text = match &report {
                _ if json => report.line(),
                Report::Usage(usage) => shown(usage),
                _ => return,
            };
            put(&text);
        })
    }
}

fn shown(usage: &UsageReport) -> String {
    let UsageReport { repositories, cache } = usage;
    let CacheReport { limit, used, pinned, evictable, partial, quarantined, leaving, next_to_leave, blobs: _ } = cache;
    let mut text = String::new();
    if !repositories.is_empty() {
        let mut repositories: Vec<_> = repositories.iter().collect();
        repositories.sort_by_key(|repository| (&repository.upstream, std::cmp::Reverse(repository.bytes)));
        let row = |repository: &&RepositoryReport| {
            let RepositoryReport { upstream, repository, images, bytes, own } = repository;
            vec![upstream.clone(), repository.clone(), images.to_string(), size(*bytes), size(*own)]
        };
        let rows: Vec<_> = repositories.iter().map(row).collect();
        text += &table(&["UPSTREAM", "REPOSITORY", "IMAGES ", "SIZE ", "OF WHICH OWN "], &rows);
        text.push('\n');
    }
    text += &format!(
        "On the disk {} of {}: {} may be evicted, {} pinned",
        size(*used),
        size(*limit),
        size(*evictable),
        size(*pinned)
    );
    if *partial > 0 {
        text += &format!(", {} on the way in", size(*partial));
    }
    if *quarantined > 0 {
        text += &format!(", {} in quarantine", size(*quarantined));
    }
    if *leaving > 0 {
        text += &format!(", {} on the way out", size(*leaving));
    }
    text.push('\n');
    if !next_to_leave.is_empty() {
        let row = |leaving: &LeavingReport| {
            let LeavingReport { digest, bytes, used, of, manifest: _ } = leaving;
            vec![short(digest).to_owned(), size(*bytes), ago(used), of.clone().unwrap_or_else(|| "-".into())]
        };
        let rows: Vec<_> = next_to_leave.iter().map(row).collect();
        text += &format!("\nFirst to go:\n{}", table(&["BLOB", "SIZE ", "USED", "OF"], &rows));
    }
    text
}
