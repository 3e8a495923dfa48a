//! `larder missing`

use std::process::ExitCode;

use clap::Args;

use crate::orders::{MissingReport, Order, Report};

use super::Configured;
use super::give::give;
use super::said::{note, put, say};

/// List what a larder that asks nobody (mirror.offline) was asked for and does not have: what `larder pull --from` takes outside.
#[derive(Args)]
pub(super) struct Missing {
    /// A line of JSON for each.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    configured: Configured,
}

// === impl Missing ===

impl Missing {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let (json, mut none) = (self.json, true);
        let code = give(&self.configured, &Order::Missing, |report| match report {
            report if json => put(&report.line()),
            Report::Missing(MissingReport { image, times, last }) => {
                none = false;
                let times = if times == 1 { "once".into() } else { format!("{times} times") };
                say(&format!("{image}  # asked for {times}, last {last}"));
            }
            _ => {}
        })?;
        if none && !json {
            note("Nothing was asked for that is not here.");
        }
        Ok(code)
    }
}
