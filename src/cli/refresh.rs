//! `larder refresh`

use std::process::ExitCode;

use clap::Args;

use crate::orders::{Order, RefreshReport, Report};

use super::Configured;
use super::give::give;
use super::said::say;

/// Ask for tags upstream now, however fresh they are: after a push, say. Exit code 1 if one could not be asked for.
#[derive(Args)]
pub(super) struct Refresh {
    /// Images as for `docker pull`: nginx:1.27, ghcr.io/org/app.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    configured: Configured,
}

// === impl Refresh ===

impl Refresh {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        give(&self.configured, &Order::Refresh { images: self.images }, |report| {
            if let Report::Refreshed(RefreshReport { image, digest, moved }) = report {
                say(&if moved { format!("{image} moved to {digest}") } else { format!("{image} has not moved") });
            }
        })
    }
}
