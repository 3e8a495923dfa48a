//! `larder explain`

use std::process::ExitCode;

use clap::Args;

use crate::orders::{ExplainReport, Order, Report};

use super::Configured;
use super::give::give;
use super::said::put;
use super::table::size;

/// Tell from where images would be served now, why, and what that would cost upstream. Nobody is asked to find it out.
#[derive(Args)]
pub(super) struct Explain {
    /// Images as for `docker pull`.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// A line of JSON for each.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    configured: Configured,
}

// === impl Explain ===

impl Explain {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let json = self.json;
        give(&self.configured, &Order::Explain { images: self.images }, |report| {
            let text = match &report {
                _ if json => report.line(),
                Report::Explained(explained) => shown(explained),
                _ => return,
            };
            put(&text);
        })
    }
}

fn shown(explained: &ExplainReport) -> String {
    let ExplainReport { image, digest, from, why, here, bytes, missing, pinned, cost, upstream } = explained;
    let from = match from.as_str() {
        "cache" => "from the cache",
        "cache once asked" => "from the cache, once the upstream has been asked",
        "upstream" => "from the upstream, and kept",
        _ => "not at all",
    };
    let mut text = format!("{image}\n  served    {from}: {why}\n");
    if let Some(digest) = digest {
        text += &format!("  digest    {digest}\n");
        let pinned = if *pinned { ", pinned" } else { "" };
        text += &format!("  here      {here} blobs and manifests, {}; {missing} missing{pinned}\n", size(*bytes));
    }
    let cost = if cost.is_empty() { "nothing".to_owned() } else { cost.join("; ") };
    text += &format!("  costs     {cost}\n");
    upstream.iter().for_each(|said| text += &format!("  upstream  {said}\n"));
    text
}
