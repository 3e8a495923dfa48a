//! `larder ls`: the images that are here.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Manifest, Pattern, Platform, Reference, Repository};
use crate::store::{Known, Pin};
use crate::upstream::DOCKER_HUB;

use super::parts::Parts;
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
pub struct Image {
    pub repository: Repository,
    pub reference: Reference,
    pub digest: Digest,
}

/// What an image takes of the cache.
struct Measured {
    blobs: Vec<(Digest, u64)>,
    missing: usize,
    platforms: Vec<String>,
}

/// No image is for so many platforms, and none is called by so many bytes: an upstream may say what it likes.
const MOST_PLATFORMS: usize = 100;
const LONGEST_PLATFORM: usize = 64;
/// The largest config of an image that is looked into, in bytes.
const MOST_CONFIG: usize = 1 << 20;

// === impl Orders ===

impl Orders {
    pub(super) async fn list(&self, patterns: &[Pattern], reports: &Reports) {
        let orders = self.clone();
        let images = tokio::task::spawn_blocking(move || orders.images()).await.unwrap_or_default();
        let mut made_of: HashMap<Digest, Measured> = HashMap::new();
        let mut needed_by: HashMap<Digest, u32> = HashMap::new();
        for Image { digest, .. } in &images {
            if made_of.contains_key(digest) {
                continue;
            }
            match self.parts(digest, None, None).await {
                Ok(parts) => {
                    let platforms = self.platforms(&parts).await;
                    let blobs: Vec<_> = parts.here().map(|(digest, size)| (digest.clone(), size)).collect();
                    blobs.iter().for_each(|(digest, _)| *needed_by.entry(digest.clone()).or_default() += 1);
                    made_of.insert(digest.clone(), Measured { blobs, missing: parts.missing.len(), platforms });
                }
                Err(why) => reports.tell(Report::Failed { what: digest.to_string(), why }).await,
            }
        }
        for image in images {
            if !(patterns.is_empty() || patterns.iter().any(|pattern| image.is_meant_by(pattern))) {
                continue;
            }
            let Some(Measured { blobs, missing, platforms }) = made_of.get(&image.digest) else { continue };
            let all: u64 = blobs.iter().map(|(_, size)| size).sum();
            let own: u64 = blobs.iter().filter(|(digest, _)| needed_by[digest] == 1).map(|(_, size)| size).sum();
            let report = ImageReport {
                image: image.name(),
                digest: image.digest.to_string(),
                platforms: platforms.clone(),
                own,
                shared: all - own,
                missing: *missing,
                used: self.store.entry(&image.digest).map(|entry| date(entry.used)),
                pinned: self.store.is_pinned(&image.digest),
            };
            reports.tell(Report::Image(report)).await;
        }
    }

    /// All images by name: tags, and manifests that no tag of their repository leads to. To be called where one may wait.
    #[must_use]
    pub fn images(&self) -> Vec<Image> {
        let (mut tags, mut manifests) = (Vec::new(), HashSet::new());
        self.store.each_known(|known| match known {
            Known::Tag(repository, tag, record) => {
                tags.push(Image { repository, reference: Reference::Tag(tag), digest: record.digest });
            }
            Known::Proof(repository, digest, proof) => {
                if proof.media_type.is_some() && self.store.size(&digest).is_some() {
                    manifests.insert((repository, digest));
                }
            }
        });
        let (mut images, mut tagged) = (BTreeSet::new(), HashSet::new());
        for image in tags {
            let manifest = (image.repository.clone(), image.digest.clone());
            if manifests.contains(&manifest) {
                images.insert(image);
                tagged.insert(manifest);
            }
        }
        for (repository, digest) in manifests.difference(&tagged).filter(|(_, digest)| !self.store.is_named(digest)).cloned() {
            images.insert(Image { repository, reference: Reference::Digest(digest.clone()), digest });
        }
        images.extend(self.pinned_as_shown());
        images.into_iter().collect()
    }

    /// Those of [`Self::images`] that have one of these digests.
    #[must_use]
    pub fn images_with(&self, digests: &HashSet<Digest>) -> Vec<Image> {
        let mut images = BTreeSet::new();
        for digest in digests.iter().filter(|digest| self.store.size(digest).is_some()) {
            let is_part = self.store.is_named(digest);
            for (repository, tags) in self.store.named(digest) {
                let own = (tags.is_empty() && !is_part).then(|| Reference::Digest(digest.clone()));
                let image = |reference| Image { repository: repository.clone(), reference, digest: digest.clone() };
                images.extend(tags.into_iter().map(Reference::Tag).chain(own).map(image));
            }
        }
        images.extend(self.pinned_as_shown().filter(|image| digests.contains(&image.digest)));
        images.into_iter().collect()
    }

    /// What is pinned is told of also where it is a part of another, or not here, or its tag means something else by now.
    fn pinned_as_shown(&self) -> impl Iterator<Item = Image> {
        self.pinned().into_iter().map(|image| match &image.reference {
            Reference::Tag(tag) if self.store.tag(&image.repository, tag).is_some_and(|now| now.digest != image.digest) => {
                Image { reference: Reference::Digest(image.digest.clone()), ..image }
            }
            _ => image,
        })
    }

    /// All that is pinned, by the names that it was pinned by.
    pub(super) fn pinned(&self) -> Vec<Image> {
        let pins = self.store.pins().into_iter();
        pins.map(|Pin { repository, reference, digest }| Image { repository, reference, digest }).collect()
    }

    /// For what an image is: each platform, with the manifest that is for it. Of what an upstream says, what is a platform, and no more
    /// than images have.
    ///
    /// # Errors
    /// It is not here, or cannot be read.
    pub async fn platforms_of(&self, image: &Digest) -> Result<Vec<(Digest, String)>, String> {
        let manifest = self.read_manifest(image, None).await?;
        Ok(self.named_platforms(image, &manifest).await)
    }

    /// For what an image is here.
    async fn platforms(&self, parts: &Parts) -> Vec<String> {
        let Some((image, manifest)) = parts.manifests.first() else { return Vec::new() };
        let mut here = self.named_platforms(image, manifest).await;
        here.retain(|(digest, _)| self.store.size(digest).is_some());
        distinct(here.into_iter().map(|(_, platform)| platform))
    }

    async fn named_platforms(&self, image: &Digest, manifest: &Manifest) -> Vec<(Digest, String)> {
        if !manifest.children.is_empty() {
            let children = manifest.children.iter();
            return distinct(children.filter_map(|child| Some((child.digest.parse().ok()?, named(child.platform.as_ref()?)?))));
        }
        let Some(config) = &manifest.config else { return Vec::new() };
        let bytes = self.store.peek(config, MOST_CONFIG).await.ok().flatten().unwrap_or_default();
        let platform = serde_json::from_slice::<Platform>(&bytes).ok().and_then(|platform| named(&platform));
        platform.map(|platform| (image.clone(), platform)).into_iter().collect()
    }
}

fn named(platform: &Platform) -> Option<String> {
    let text = platform.to_string();
    (text.len() <= LONGEST_PLATFORM && text.parse::<Platform>().is_ok()).then_some(text)
}

/// The first of each.
fn distinct<T: Clone + Eq + Hash>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = HashSet::new();
    all.filter(|one| seen.insert(one.clone())).take(MOST_PLATFORMS).collect()
}

// === impl Image ===

impl Image {
    /// Its whole name: `docker.io/library/nginx:1.27`.
    #[must_use]
    pub fn name(&self) -> String {
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
