//! `larder pull`

use std::collections::HashSet;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::oci::Platforms;
use crate::orders::{self, LayerReport, Order, PullReport, Report};

use super::bars::{self, Layers};
use super::give::give;
use super::said::{note, put, say};
use super::table::{short, size};
use super::{Configured, lists};

/// Bring images into the cache. What is here already is not fetched again. Exit code 1 if one could not be had; the others are.
#[derive(Args)]
pub(super) struct Pull {
    /// Images as for `docker pull`: nginx:1.27, ghcr.io/org/app@sha256:…
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Images named in a file, or for - on standard input: a line each, or Kubernetes manifests, or a compose file.
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// For which platforms: linux/amd64,linux/arm64, or all. Without it for this machine's.
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,
    /// Signatures, SBOMs and attestations as well: what refers to the images by the referrers API or by tags such as cosign's.
    #[arg(long)]
    referrers: bool,
    /// Keep them from eviction.
    #[arg(long)]
    pin: bool,
    /// A line of JSON for whatever happens.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    configured: Configured,
}

/// More would be no list of images.
const LARGEST_FILE: u64 = 64 << 20;

// === impl Pull ===

impl Pull {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let images = self.images()?;
        let platforms = Platforms::try_from(self.platform).map_err(|invalid| invalid.to_string())?;
        let order = Order::Pull(orders::Pull { images, platforms, referrers: self.referrers, pin: self.pin });
        let (mut layers, json) = (Layers::default(), self.json);
        give(&self.configured, &order, |report| match report {
            report if json => put(&report.line()),
            Report::Layer(layer) if bars::are_shown() => layers.show(&layer),
            Report::Layer(LayerReport { image, digest, bytes, done: true, .. }) => {
                note(&format!("{image}: {} fetched, {}", short(&digest), size(bytes)));
            }
            Report::Pulled(pulled) => {
                layers.clear();
                say(&summary(&pulled));
            }
            _ => {}
        })
    }

    fn images(&self) -> Result<Vec<String>, String> {
        let mut images = self.images.clone();
        for file in &self.from {
            let failed = |why: String| format!("{}: {why}", file.display());
            images.extend(lists::images(&read(file).map_err(|error| failed(error.to_string()))?).map_err(failed)?);
        }
        let mut seen = HashSet::new();
        images.retain(|image| seen.insert(image.clone()));
        if images.is_empty() {
            return Err(match self.from.first() {
                Some(file) => format!("{}: it names no image", file.display()),
                None => "say which images, or by --from FILE where they are named".into(),
            });
        }
        Ok(images)
    }
}

#[expect(clippy::disallowed_methods, reason = "it is a file of the user's, not of the cache")]
fn read(file: &std::path::Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().take(LARGEST_FILE + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file)?.take(LARGEST_FILE + 1).read_to_string(&mut text)
    };
    if read? as u64 > LARGEST_FILE { Err(std::io::Error::other("it is too large for a list of images")) } else { Ok(text) }
}

fn summary(pulled: &PullReport) -> String {
    let PullReport { image, digest, present, fetched, bytes, referrers, pinned } = pulled;
    let mut text = format!("{image}  {}  ", short(digest));
    text += &match (present, fetched) {
        (_, 0) => "was here already".to_owned(),
        (0, fetched) => format!("fetched {} in {fetched} parts", size(*bytes)),
        (present, fetched) => format!("fetched {} in {fetched} parts, {present} were here already", size(*bytes)),
    };
    if *referrers > 0 {
        text += &format!(", with {referrers} that refer to it");
    }
    if *pinned {
        text += ", pinned";
    }
    text
}
