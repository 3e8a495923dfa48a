//! `larder export`

mod directory;
mod output;

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

use bytesize::ByteSize;
use clap::Args;
use futures_util::stream;
use indicatif::ProgressBar;

use crate::orders::{self, ExportReport, Input, Order, Report};

use super::give::give_with;
use super::said::{note, say};
use super::table::{short, size};
use super::{Configured, bars};

use output::Output;

/// Write images to an archive: an OCI image layout that docker load, podman load, ctr images import, skopeo and larder import take.
/// Signatures and what else refers to the images goes along. Every byte is verified on its way, and the same images give the same
/// archive. Exit code 1 if an image is not here whole; the others are written.
#[derive(Args)]
pub(super) struct Export {
    /// Images that are in the cache.
    #[arg(value_name = "IMAGE", required_unless_present_any = ["all", "pinned"])]
    images: Vec<String>,
    /// All images.
    #[arg(long, conflicts_with_all = ["images", "pinned"])]
    all: bool,
    /// All that are pinned.
    #[arg(long, conflicts_with = "images")]
    pinned: bool,
    /// A file; a directory that there is, which must be empty; or - for standard output.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Several files of at most this size, for media: FILE.000, FILE.001 …; larder import takes them together, as does cat.
    #[arg(long, value_name = "SIZE")]
    split: Option<ByteSize>,
    /// A line of JSON for whatever happens.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    configured: Configured,
}

// === impl Export ===

impl Export {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let export = match (self.all, self.pinned) {
            (true, _) => orders::Export::All,
            (_, true) => orders::Export::Pinned,
            _ => orders::Export::These(self.images),
        };
        let shown = self.output.display().to_string();
        let whole = self.split.is_none();
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::FileTooLarge if whole => format!("{shown}: {error}; --split 4GiB writes several files"),
            _ => format!("{shown}: {error}"),
        };
        let output = Output::new(&self.output, self.split.map(|split| split.as_u64())).map_err(failed)?;
        // Standard output may be for the archive.
        let says = |line: &str| if shown == "-" { note(line) } else { say(line) };
        let (mut output, mut bar, json) = (Some(output), ProgressBar::hidden(), self.json);
        let nothing = || -> Input { Box::pin(stream::empty()) };
        give_with(&self.configured, &Order::Export { export }, &nothing, |report| {
            match &report {
                Report::Piece { bytes, .. } => {
                    bar.inc(bytes.len() as u64);
                    return output.as_mut().map_or(Ok(()), |output| output.write(bytes)).map_err(failed);
                }
                _ if json => says(report.line().trim_end()),
                Report::Writing { bytes } => bar = bars::bytes(Some(*bytes), true),
                Report::Exporting(exporting) => says(&summary(exporting)),
                _ => {}
            }
            if let Report::Exported { images, blobs } = report {
                let Some(output) = output.take() else { return Ok(()) };
                let written = output.finish().map_err(failed)?;
                bar.finish_and_clear();
                for (file, bytes, sha256) in written {
                    if json {
                        says(
                            &serde_json::json!({ "report": "written", "file": file, "bytes": bytes, "sha256": sha256 })
                                .to_string(),
                        );
                    } else {
                        says(&format!("{sha256}  {file}  {}", size(bytes)));
                    }
                }
                if !json {
                    says(&format!("{images} images in {blobs} manifests and blobs"));
                }
            }
            Ok(())
        })
    }
}

fn summary(exporting: &ExportReport) -> String {
    let ExportReport { image, digest, blobs, bytes, absent } = exporting;
    let mut line = format!("{image}  {}  {} in {blobs} parts", short(digest), size(*bytes));
    if !absent.is_empty() {
        let _ = write!(line, ", without {}, which {} not here", absent.join(", "), if absent.len() == 1 { "is" } else { "are" });
    }
    line
}
