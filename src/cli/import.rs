//! `larder import`

mod source;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::orders::{self, ImportReport, Order, Report};

use super::give::give_with;
use super::said::{put, say};
use super::table::{short, size};
use super::{Configured, bars};

/// Bring images in from an archive: what larder export wrote, any OCI image layout, what docker save of any age or podman save wrote,
/// or the storage of a registry; each as a tar file, which may be compressed by gzip, or as a directory. Every byte is verified. An
/// image is here whole or not at all; exit code 1 if one is not.
#[derive(Args)]
pub(super) struct Import {
    /// A file, of those written with --split the first; a directory; or - for standard input.
    #[arg(value_name = "FILE")]
    from: PathBuf,
    /// What the only image is to be called; without a tag, the repository for all that the layout has tags for; or for the storage of a
    /// registry, by which name that is known here: ghcr.io.
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Let them be evicted. Without it they are pinned.
    #[arg(long)]
    no_pin: bool,
    /// A line of JSON for whatever happens.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    configured: Configured,
}

// === impl Import ===

impl Import {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let length = source::length(&self.from).map_err(|error| format!("{}: {error}", self.from.display()))?;
        let order = Order::Import(orders::Import { name: self.name, pin: !self.no_pin });
        let (from, json, bar) = (self.from, self.json, bars::bytes(length, !self.json));
        give_with(&self.configured, &order, &|| source::input(from.clone(), bar.clone()), |report| {
            match report {
                report if json => put(&report.line()),
                Report::Imported(imported) => {
                    bar.finish_and_clear();
                    say(&summary(&imported));
                }
                _ => {}
            }
            Ok(())
        })
    }
}

fn summary(imported: &ImportReport) -> String {
    let ImportReport { image, digest, added, bytes, present, absent, pinned } = imported;
    let mut line = format!("{image}  {}  ", short(digest));
    line += &match (added, present) {
        (0, _) => "was here already".to_owned(),
        (added, 0) => format!("added {} in {added} parts", size(*bytes)),
        (added, present) => format!("added {} in {added} parts, {present} were here already", size(*bytes)),
    };
    if *absent > 0 {
        line += &format!(", without {absent} of the manifests that it names");
    }
    if *pinned {
        line += ", pinned";
    }
    line
}
