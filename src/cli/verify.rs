//! `larder verify`

use std::process::ExitCode;

use bytesize::ByteSize;
use clap::Args;

use crate::orders::{Order, Report, VerifyReport};

use super::give::give;
use super::said::{put, say};
use super::table::{short, size};
use super::{Configured, bars};

/// Hash what is in the cache again, all of it or these images. What is damaged is set aside in quarantine/. Exit code 1 if something was, and is not here
/// again.
#[derive(Args)]
pub(super) struct Verify {
    /// As for `docker pull`, or as `larder ls` shows them; none: all that is there.
    images: Vec<String>,
    /// Fetch anew what is damaged.
    #[arg(long)]
    repair: bool,
    /// So much a second, such as 200MiB; without it as much as `cache.scrub_rate`.
    #[arg(long, value_name = "SIZE")]
    rate: Option<ByteSize>,
    /// A line of JSON for whatever happens.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    configured: Configured,
}

// === impl Verify ===

impl Verify {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let order = Order::Verify { repair: self.repair, rate: self.rate.map(|rate| rate.as_u64()), images: self.images };
        let (bar, json) = (bars::bytes(Some(0), !self.json), self.json);
        give(&self.configured, &order, |report| match report {
            report if json => put(&report.line()),
            Report::Verifying { bytes, of } => {
                bar.set_length(of);
                bar.set_position(bytes);
            }
            Report::Repaired { digest, of } => {
                let of = of.map_or_else(String::new, |of| format!(" of {of}"));
                say(&format!("{}{of} was damaged and has been fetched anew", short(&digest)));
            }
            Report::Verified(VerifyReport { right, damaged, repaired, skipped, bytes }) => {
                bar.finish_and_clear();
                let mut line = format!("{right} blobs are right ({}), {damaged} damaged", size(bytes));
                if repaired > 0 {
                    line += &format!(", of which {repaired} fetched anew");
                }
                if skipped > 0 {
                    line += &format!("; {skipped} could not be read now or have left");
                }
                say(&line);
            }
            _ => {}
        })
    }
}
