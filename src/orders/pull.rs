//! `larder pull`: images come into the cache by the ways that clients take.

use serde::{Deserialize, Serialize};

use crate::mirror::{Step, Warmed, Warming};
use crate::oci::{ImageName, Platforms, Reference};
use crate::store::Holds;

use super::parts::Lack;
use super::{Orders, Report, Reports};

/// What is to be pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    pub images: Vec<String>,
    pub platforms: Platforms,
    /// Signatures, SBOMs and attestations as well.
    pub referrers: bool,
    /// Never to be evicted.
    pub pin: bool,
}

/// An image that is here now, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullReport {
    /// Its whole name.
    pub image: String,
    pub digest: String,
    /// How many of its manifests and blobs were here already, and how many were fetched.
    pub present: usize,
    pub fetched: usize,
    /// How many bytes were fetched.
    pub bytes: u64,
    /// How many lists of referrers and signatures it has.
    pub referrers: usize,
    pub pinned: bool,
}

/// How far a blob has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    pub image: String,
    pub digest: String,
    pub bytes: u64,
    pub size: Option<u64>,
    pub done: bool,
}

/// Someone waits for them.
const AT_ONCE: usize = 4;

// === impl Orders ===

impl Orders {
    pub(super) async fn pull(&self, pull: &Pull, reports: &Reports) {
        // What one image needs is not to leave for the next.
        let holds = self.store.holds();
        for image in &pull.images {
            let pulled = self.pull_one(image, pull, &holds, reports).await;
            reports.outcome(image, pulled.map(Report::Pulled)).await;
        }
    }

    async fn pull_one(&self, image: &str, pull: &Pull, holds: &Holds, reports: &Reports) -> Result<PullReport, String> {
        let name = image.parse::<ImageName>().map_err(|invalid| invalid.to_string())?;
        let origin = self.mirror.registries().resolve(&name).map_err(|refusal| refusal.to_string())?;
        let image = origin.repository.image(&name.reference);
        let tell = |Step { digest, bytes, size, done }: Step| {
            let layer = LayerReport { image: image.clone(), digest: digest.to_string(), bytes, size, done };
            reports.try_tell(Report::Layer(layer));
        };
        let warming = Warming { platforms: &pull.platforms, at_once: AT_ONCE, holds, tell: &tell };
        let mut warmed = self.mirror.bring(&origin, &name.reference, warming).await;
        let mut found = Vec::new();
        if pull.referrers {
            for manifest in std::mem::take(&mut warmed.manifests) {
                let referring = self.mirror.bring_referrers(&origin, &manifest, warming).await;
                warmed.add(referring.warmed);
                found.extend(referring.found);
            }
        }
        let Some(digest) = warmed.digest.clone() else { return Err(why(&warmed, &name.reference)) };
        let parts = self.parts(&digest, None, Some(holds)).await?;
        if pull.pin {
            self.keep_for_good(&origin.repository, &name.reference, &digest, &parts).await?;
            for (reference, digest) in &found {
                let parts = self.parts(digest, None, Some(holds)).await?;
                self.keep_for_good(&origin.repository, reference, digest, &parts).await?;
            }
        }
        self.store.settle().await.map_err(|error| format!("it is here until larder ends, and not beyond: {error}"))?;
        if !warmed.failed.is_empty() {
            return Err(why(&warmed, &name.reference));
        }
        if let Some((digest, lack)) = parts.missing.first_key_value() {
            return Err(match lack {
                Lack::Broken(why) => format!("{digest}: {why}"),
                Lack::Absent => format!("{digest} came, and is not here any more"),
            });
        }
        if let Some(why) = warmed.stale {
            return Err(format!("it is here, but whether it is the newest could not be asked: {why}"));
        }
        Ok(PullReport {
            image,
            digest: digest.to_string(),
            present: warmed.present,
            fetched: warmed.fetched,
            bytes: warmed.bytes,
            referrers: found.len(),
            pinned: pull.pin,
        })
    }
}

/// Why an image is not here whole, in a line.
fn why(warmed: &Warmed, reference: &Reference) -> String {
    match &warmed.failed[..] {
        [] => "it has nothing".into(),
        [(what, why)] if *what == reference.to_string() => why.clone(),
        [(what, why)] => format!("{what}: {why}"),
        [(what, why), more @ ..] => format!("{what}: {why} (and {} more)", more.len()),
    }
}
