//! `larder rm`: an image leaves, and with it what no other needs.

use std::collections::HashSet;

use crate::oci::{Digest, Reference, Repository, Tag};
use crate::store::{self, Kind};

use super::{Orders, Report, Reports, absent};

/// A manifest by one of its names.
struct Called {
    repository: Repository,
    tag: Option<Tag>,
    digest: Digest,
}

// === impl Orders ===

impl Orders {
    pub(super) async fn remove(&self, images: &[String], reports: &Reports) {
        for image in images {
            reports.outcome(image, self.remove_one(image).await).await;
        }
    }

    async fn remove_one(&self, image: &str) -> Result<Report, String> {
        let (repository, reference) = self.named(image)?;
        let digest = self.digest_of(&repository, &reference).ok_or_else(|| absent(image))?;
        let by_digest = matches!(reference, Reference::Digest(_));
        let pins = self.store.pins().into_iter().filter(|pin| pin.repository == repository && pin.digest == digest);
        let (named, pinned): (Vec<_>, Vec<_>) = pins.partition(|pin| by_digest || pin.reference == reference);
        if let Some(pin) = named.first() {
            return Err(format!("it is pinned; `larder unpin {}` goes first", repository.image(&pin.reference)));
        }
        let orders = self.clone();
        let known = tokio::task::spawn_blocking(move || orders.manifests()).await.map_err(|error| error.to_string())?;
        let tags = known.iter().filter(|known| known.repository == repository && known.digest == digest);
        let (going, staying): (Vec<_>, Vec<_>) =
            tags.filter_map(|known| known.tag.clone()).partition(|tag| by_digest || reference == Reference::Tag(tag.clone()));
        if self.store.entry(&digest).is_some_and(|entry| entry.held) {
            return Err("an order brings it in or gives it out just now; try again when that has ended".into());
        }
        if going.is_empty() && self.store.is_named(&digest) {
            return Err("it is a part of another image, and goes with that".into());
        }
        going.iter().for_each(|tag| self.store.remove_tag(&repository, tag));
        let freed = if staying.is_empty() && pinned.is_empty() {
            let needed = |known: &&Called| known.repository != repository || known.tag.is_some() && known.digest != digest;
            let needed = known.iter().filter(needed).map(|known| known.digest.clone()).collect();
            self.remove_parts(&repository, &digest, &needed).await?
        } else {
            0
        };
        self.store.settle().await.map_err(|error| error.to_string())?;
        Ok(Report::Removed { image: repository.image(&reference), digest: digest.to_string(), freed })
    }

    /// By which names all manifests are known.
    fn manifests(&self) -> Vec<Called> {
        let mut manifests = Vec::new();
        self.store.each_known(|known| match known {
            store::Known::Tag(repository, tag, record) => {
                manifests.push(Called { repository, tag: Some(tag), digest: record.digest });
            }
            store::Known::Proof(repository, digest, proof) if proof.media_type.is_some() => {
                manifests.push(Called { repository, tag: None, digest });
            }
            store::Known::Proof(..) => {}
        });
        manifests
    }

    /// Removes a manifest and what it names, but for what is pinned, what other manifests name, and the manifests that are
    /// `needed`. Returns how many bytes of the disk that were.
    async fn remove_parts(&self, repository: &Repository, manifest: &Digest, needed: &HashSet<Digest>) -> Result<u64, String> {
        let (mut looked_at, mut freed) = (vec![manifest.clone()], 0);
        while let Some(digest) = looked_at.pop() {
            let Some(entry) = self.store.entry(&digest) else { continue };
            let removed = if needed.contains(&digest) { Ok(None) } else { self.store.remove(&digest, repository).await };
            self.mirror.forget_bytes(&digest);
            match removed.map_err(|error| format!("{digest} could not be removed from the disk: {error}"))? {
                // Of those that name it each looks at it when it has gone; the last one takes it along.
                Some(bytes) => {
                    freed += bytes;
                    looked_at.extend(entry.names);
                }
                None if digest == *manifest => self.store.remove_proof(repository, &digest, Kind::Manifest),
                None => {}
            }
        }
        Ok(freed)
    }
}
