//! Asking for tags upstream now: after a push, say.

use serde::{Deserialize, Serialize};

use crate::mirror::{Mirror, Refreshed, Refusal};
use crate::oci::{ImageName, Reference};

use super::{Orders, Report, Reports};

/// What the upstream says of a tag now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshReport {
    /// Its whole name.
    pub image: String,
    pub digest: String,
    /// It points elsewhere than larder knew, or larder did not know it.
    pub moved: bool,
}

/// Why a tag could not be asked for.
#[derive(Debug, thiserror::Error)]
pub enum NotRefreshed {
    #[error("{0}")]
    Name(String),
    #[error("a digest never moves; name a tag")]
    Digest,
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Asks for the tag that `image` names, however fresh it is.
///
/// Cancel safe: the question goes on.
///
/// # Errors
/// See [`NotRefreshed`].
pub async fn refresh(mirror: &Mirror, image: &str) -> Result<RefreshReport, NotRefreshed> {
    let image = image.parse::<ImageName>().map_err(|invalid| NotRefreshed::Name(invalid.to_string()))?;
    let Reference::Tag(tag) = &image.reference else { return Err(NotRefreshed::Digest) };
    let origin = mirror.registries().resolve(&image)?;
    let image = origin.repository.image(&image.reference);
    let Refreshed { digest, moved } = mirror.refresh(&origin, tag).await?;
    tracing::info!(image, %digest, moved, "a tag was refreshed");
    Ok(RefreshReport { image, digest: digest.to_string(), moved })
}

// === impl Orders ===

impl Orders {
    pub(super) async fn refresh(&self, images: &[String], reports: &Reports) {
        for image in images {
            let refreshed = refresh(&self.mirror, image).await;
            reports.outcome(image, refreshed.map(Report::Refreshed).map_err(|why| why.to_string())).await;
        }
    }
}
