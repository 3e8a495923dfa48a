//! `larder pin` and `larder unpin`.

use crate::oci::{Digest, Reference, Repository};
use crate::store::{Kind, Pin};

use super::parts::Parts;
use super::{Orders, Report, Reports, absent};

// === impl Orders ===

impl Orders {
    pub(super) async fn pin(&self, images: &[String], reports: &Reports) {
        for image in images {
            reports.outcome(image, self.pin_one(image).await).await;
        }
    }

    async fn pin_one(&self, image: &str) -> Result<Report, String> {
        let (repository, reference) = self.named(image)?;
        let holds = self.store.holds();
        let digest = self.digest_of(&repository, &reference).ok_or_else(|| absent(image))?;
        let parts = self.parts(&digest, None, Some(&holds)).await?;
        self.keep_for_good(&repository, &reference, &digest, &parts).await?;
        let missing = parts.missing.len();
        Ok(Report::Pinned { image: repository.image(&reference), digest: digest.to_string(), missing })
    }

    /// Pins an image and all that its manifests name.
    pub(super) async fn keep_for_good(
        &self,
        repository: &Repository,
        reference: &Reference,
        digest: &Digest,
        parts: &Parts,
    ) -> Result<(), String> {
        let pinned = self.store.pin(repository, reference, digest).await;
        pinned.map_err(|error| format!("it is pinned until larder ends, and not beyond: {error}"))?;
        // Where too much is remembered, what this one names may not have been.
        parts.manifests.iter().for_each(|(digest, manifest)| self.store.link(digest, &manifest.names));
        Ok(())
    }

    pub(super) async fn unpin(&self, images: &[String], reports: &Reports) {
        for image in images {
            reports.outcome(image, self.unpin_one(image).await).await;
        }
    }

    async fn unpin_one(&self, image: &str) -> Result<Report, String> {
        let (repository, reference) = self.named(image)?;
        // By its digest an image is meant by whatever name it was pinned.
        let meant = |pin: &Pin| pin.reference == reference || reference == Reference::Digest(pin.digest.clone());
        let pins: Vec<Pin> = self.store.pins().into_iter().filter(|pin| pin.repository == repository && meant(pin)).collect();
        let Some(digest) = pins.first().map(|pin| pin.digest.to_string()) else {
            return Err("it is not pinned; `larder ls` shows what is".into());
        };
        for pin in pins {
            let unpinned = self.store.unpin(&repository, &pin.reference).await;
            unpinned.map_err(|error| format!("it is unpinned until larder ends, and not beyond: {error}"))?;
        }
        Ok(Report::Unpinned { image: repository.image(&reference), digest })
    }

    /// What a name means, if that is here.
    pub(super) fn digest_of(&self, repository: &Repository, reference: &Reference) -> Option<Digest> {
        let digest = match reference {
            Reference::Tag(tag) => self.store.tag(repository, tag)?.digest,
            Reference::Digest(digest) => digest.clone(),
        };
        self.store.proof(repository, &digest, Kind::Manifest)?;
        self.store.size(&digest).map(|_| digest)
    }
}
