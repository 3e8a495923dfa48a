//! `larder ls`, `larder pin`, `larder unpin`, `larder rm`

use std::process::ExitCode;

use clap::Args;

use crate::oci::Pattern;
use crate::orders::{ImageReport, Order, Report};

use super::Configured;
use super::give::give;
use super::said::{note, put, say};
use super::table::{ago, short, size, table};

/// List the images that are in the cache.
#[derive(Args)]
pub(super) struct Ls {
    /// Only those that match one of these: nginx, 'myorg/**', 'ghcr.io/**:v1.*'.
    #[arg(value_name = "PATTERN")]
    patterns: Vec<Pattern>,
    /// A line of JSON for each, with whole digests, dates and bytes.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    configured: Configured,
}

/// Keep images from eviction, for good. A tag that moves takes its pin along when it is pinned again.
#[derive(Args)]
pub(super) struct Pin {
    #[command(flatten)]
    images: Images,
}

/// Let pinned images be evicted again, when they are the least recently used.
#[derive(Args)]
pub(super) struct Unpin {
    #[command(flatten)]
    images: Images,
}

/// Remove images from the cache, with all that no other image needs.
#[derive(Args)]
pub(super) struct Rm {
    #[command(flatten)]
    images: Images,
}

#[derive(Args)]
struct Images {
    /// Images as for `docker pull`, or as `larder ls` shows them.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    configured: Configured,
}

// === impl Ls ===

impl Ls {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let (mut rows, json, all) = (Vec::new(), self.json, self.patterns.is_empty());
        let code = give(&self.configured, &Order::List { patterns: self.patterns }, |report| match report {
            report if json => put(&report.line()),
            Report::Image(image) => rows.push(row(&image)),
            _ => {}
        })?;
        match (json, rows.is_empty()) {
            (true, _) => {}
            (false, false) => {
                let titles = ["IMAGE", "DIGEST", "PLATFORMS", "OWN ", "SHARED ", "USED", "PINNED"];
                put(&table(&titles, &rows));
            }
            (false, true) if all => note("No image is in the cache yet. Clients bring them, and so does `larder pull`."),
            (false, true) => note("No image in the cache matches; `larder ls` shows all."),
        }
        Ok(code)
    }
}

fn row(image: &ImageReport) -> Vec<String> {
    let ImageReport { image, digest, platforms, own, shared, missing, used, pinned } = image;
    let mut here = if platforms.is_empty() { vec!["-".to_owned()] } else { platforms.clone() };
    if *missing > 0 {
        here.push(format!("{missing} missing"));
    }
    // The digest has a column of its own.
    let name = image.split_once('@').map_or(image.as_str(), |(name, _)| name);
    vec![
        name.to_owned(),
        short(digest).to_owned(),
        here.join(", "),
        size(*own),
        size(*shared),
        used.as_deref().map_or_else(|| "-".into(), ago),
        if *pinned { "yes".into() } else { String::new() },
    ]
}

// === impl Pin ===

impl Pin {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        self.images.give(|images| Order::Pin { images })
    }
}

// === impl Unpin ===

impl Unpin {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        self.images.give(|images| Order::Unpin { images })
    }
}

// === impl Rm ===

impl Rm {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        self.images.give(|images| Order::Remove { images })
    }
}

// === impl Images ===

impl Images {
    fn give(self, order: impl FnOnce(Vec<String>) -> Order) -> Result<ExitCode, String> {
        give(&self.configured, &order(self.images), |report| match report {
            Report::Pinned { image, digest, missing: 0 } => say(&format!("{image} is pinned ({})", short(&digest))),
            Report::Pinned { image, digest, missing } => {
                let digest = short(&digest);
                say(&format!(
                    "{image} is pinned ({digest}), but {missing} of its blobs are not here; `larder pull {image}` brings them"
                ));
            }
            Report::Unpinned { image, digest } => say(&format!("{image} is not pinned any more ({})", short(&digest))),
            Report::Removed { image, digest, freed } => {
                say(&format!("{image} is removed ({}); that frees {}", short(&digest), size(freed)));
            }
            _ => {}
        })
    }
}
