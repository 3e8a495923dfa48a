//! `larder ls`: the images that are here.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::oci::{Digest, Manifest, Pattern, Platform, Reference, Repository};
use crate::store::{Entry, Known, Pin};
use crate::upstream::DOCKER_HUB;

use super::{Orders, Report, Reports, date};

/// An image that is in the cache, or that is pinned and should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReport {
    /// Its whole name: `docker.io/library/nginx:1.27`.
    pub image: String,
    pub digest: String,
    /// For what it is here: `linux/amd64`.
    pub platforms: Vec<String>,
    /// Bytes that no other image needs, and bytes that others need as well.
    pub own: u64,
    pub shared: u64,
    /// How many of its blobs are not here. Platforms that are not here at all do not count.
    pub missing: usize,
    /// When it was used last; `None` if it is not here.
    pub used: Option<String>,
    pub pinned: bool,
}

/// A name and what it means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Image {
    pub(super) repository: Repository,
    pub(super) reference: Reference,
    pub(super) digest: Digest,
}

/// What an image is made of, as far as it is here.
pub(super) struct Parts {
    pub(super) blobs: Vec<(Digest, u64)>,
    pub(super) missing: usize,
    used: Option<Timestamp>,
    pub(super) pinned: bool,
}

/// The largest config of an image that is looked into, in bytes.
const MOST_CONFIG: usize = 1 << 20;

// === impl Orders ===

impl Orders {
    pub(super) async fn list(&self, patterns: &[Pattern], reports: &Reports) {
        let orders = self.clone();
        let images = tokio::task::spawn_blocking(move || orders.measured()).await.unwrap_or_default();
        for (image, parts, own) in images {
            if !(patterns.is_empty() || patterns.iter().any(|pattern| image.is_meant_by(pattern))) {
                continue;
            }
            let all: u64 = parts.blobs.iter().map(|(_, size)| size).sum();
            let report = ImageReport {
                image: image.name(),
                digest: image.digest.to_string(),
                platforms: self.platforms(&image.digest).await,
                own,
                shared: all - own,
                missing: parts.missing,
                used: parts.used.map(date),
                pinned: parts.pinned,
            };
            reports.tell(Report::Image(report)).await;
        }
    }

    /// All images with their parts, and how many bytes are theirs alone. Takes time, as it looks at everything that is known.
    fn measured(&self) -> Vec<(Image, Parts, u64)> {
        let images: Vec<(Image, Parts)> = self
            .images()
            .into_iter()
            .map(|image| {
                let parts = self.parts(&image.digest);
                (image, parts)
            })
            .collect();
        let mut needed_by: HashMap<&Digest, u32> = HashMap::new();
        let mut counted = HashSet::new();
        for (_, parts) in images.iter().filter(|(image, _)| counted.insert(&image.digest)) {
            parts.blobs.iter().for_each(|(digest, _)| *needed_by.entry(digest).or_default() += 1);
        }
        let own = |parts: &Parts| parts.blobs.iter().filter(|(digest, _)| needed_by[digest] == 1).map(|(_, size)| size).sum();
        let own: Vec<u64> = images.iter().map(|(_, parts)| own(parts)).collect();
        images.into_iter().zip(own).map(|((image, parts), own)| (image, parts, own)).collect()
    }

    /// All images by name: tags, and manifests that no tag of their repository leads to.
    pub(super) fn images(&self) -> Vec<Image> {
        let (mut images, mut manifests) = (BTreeSet::new(), Vec::new());
        self.store.each_known(|known| match known {
            Known::Tag(repository, tag, record) => {
                if self.store.size(&record.digest).is_some() {
                    images.insert(Image { repository, reference: Reference::Tag(tag), digest: record.digest });
                }
            }
            Known::Proof(repository, digest, proof) => {
                if proof.media_type.is_some() && self.store.size(&digest).is_some() {
                    manifests.push((repository, digest));
                }
            }
        });
        let tagged: HashSet<(Repository, Digest)> =
            images.iter().map(|image| (image.repository.clone(), image.digest.clone())).collect();
        let is_part = |digest: &Digest| self.store.entry(digest).is_some_and(|entry| !entry.named_by.is_empty());
        let untagged = manifests.into_iter().filter(|(_, digest)| !is_part(digest));
        for (repository, digest) in untagged.filter(|named| !tagged.contains(named)) {
            images.insert(Image { repository, reference: Reference::Digest(digest.clone()), digest });
        }
        // What is pinned is told of also where it is not here.
        let pinned = self.store.pins().into_iter().filter(|pin| self.store.size(&pin.digest).is_none());
        images.extend(pinned.map(|Pin { repository, reference, digest }| Image { repository, reference, digest }));
        images.into_iter().collect()
    }

    pub(super) fn parts(&self, digest: &Digest) -> Parts {
        let mut parts = Parts { blobs: Vec::new(), missing: 0, used: None, pinned: self.store.is_pinned(digest) };
        let (mut wanted, mut seen) = (vec![(digest.clone(), true)], HashSet::from([digest.clone()]));
        while let Some((digest, needed)) = wanted.pop() {
            let Some(Entry { size, used, names, .. }) = self.store.entry(&digest) else {
                parts.missing += usize::from(needed);
                continue;
            };
            parts.used.get_or_insert(used);
            parts.blobs.push((digest, size));
            let is_index = names.iter().any(|name| self.store.entry(name).is_some_and(|entry| !entry.names.is_empty()));
            // Of an index, nobody needs all that it names.
            wanted.extend(names.into_iter().filter(|name| seen.insert(name.clone())).map(|name| (name, !is_index)));
        }
        parts
    }

    /// For what an image is here.
    async fn platforms(&self, digest: &Digest) -> Vec<String> {
        let Some(manifest) = self.manifest(digest).await else { return Vec::new() };
        let here = |text: &String| text.parse().is_ok_and(|digest| self.store.size(&digest).is_some());
        if !manifest.children.is_empty() {
            let here = manifest.children.iter().filter(|child| here(&child.digest));
            return here.filter_map(|child| Some(child.platform.as_ref()?.to_string())).collect();
        }
        let Some(config) = &manifest.config else { return Vec::new() };
        let bytes = self.store.peek(config, MOST_CONFIG).await.ok().flatten().unwrap_or_default();
        let platform = serde_json::from_slice::<Platform>(&bytes).ok();
        platform.filter(|platform| !platform.os.is_empty()).map(|platform| platform.to_string()).into_iter().collect()
    }

    /// A manifest of the cache, without using it.
    pub(super) async fn manifest(&self, digest: &Digest) -> Option<Manifest> {
        let bytes = self.store.peek(digest, crate::oci::MAX_MANIFEST).await.ok()??;
        if digest.matches(&bytes) { Manifest::parse(None, &bytes).ok() } else { None }
    }
}

// === impl Image ===

impl Image {
    pub(super) fn name(&self) -> String {
        self.repository.image(&self.reference)
    }

    /// A pattern may be for the name as it is shown, or as it is written for Docker Hub, with the tag or for all tags.
    fn is_meant_by(&self, pattern: &Pattern) -> bool {
        let whole = self.repository.to_string();
        let on_hub = whole.strip_prefix(DOCKER_HUB).and_then(|rest| rest.strip_prefix('/'));
        let official = on_hub.and_then(|rest| rest.strip_prefix("library/"));
        let reference = match &self.reference {
            Reference::Tag(tag) => format!(":{tag}"),
            Reference::Digest(digest) => format!("@{digest}"),
        };
        let names = [Some(whole.as_str()), on_hub, official];
        names.into_iter().flatten().any(|name| pattern.matches(name) || pattern.matches(&format!("{name}{reference}")))
    }
}
