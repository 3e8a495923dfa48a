//! `larder import`: images come in from an archive, as it is read.
//!
//! Blobs are admitted as they come, each only if it is what its name promises; nothing has a name yet. Behind the archive's end each
//! image is looked at, and has its name and its pin only if all of it is here. What an archive brought that is refused, or that no
//! image of it needs, is removed again.
//!
//! Four kinds of archives are read, which may be several at once: an OCI image layout (`index.json`); what is for `docker load`
//! (`manifest.json`); what was for it before Docker 1.10 (`repositories`); and the storage of a distribution registry
//! (`docker/registry/v2`). Where there is no `index.json`, layers stay as they are, and each image gets a manifest made of the digests
//! and sizes of its config and layers alone, so that its digest is the same wherever it is made. That is not the digest which the
//! registry has that the image came from.
//!
//! What refers to an image of a layout (`subject`, or as cosign saves it) needs no name of its own: it goes where its image goes.
//!
//! In most of them a file is named by its digest. A layer of an older Docker is not: it is right if the config says so, which is
//! named by its digest, or where there is no config, by being there.

mod blobs;
mod commits;
mod legacy;
mod named;
mod referring;
mod role;

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::mirror::Origin;
use crate::oci::{Digest, ImageName, MAX_MANIFEST, Reference, Repository};
use crate::store::{Holds, Kind};

use super::archive::{Archive, Input, shown};
use super::parts::{Lack, Parts};
use super::{Orders, Report, Reports};

use commits::Commits;

pub(super) use named::check_small;
use named::{Made, Named, Promised};
use referring::Referring;
use role::Role;

/// How images are to be brought in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// What the only image is to be called; without a tag, the repository for all that has one; or for the storage of a registry, which
    /// registry it is.
    pub name: Option<String>,
    /// Never to be evicted.
    pub pin: bool,
}

/// An image that is here now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportReport {
    /// Its whole name.
    pub image: String,
    pub digest: String,
    /// How many of its manifests and blobs were brought, and their bytes, and how many were here.
    pub added: usize,
    pub bytes: u64,
    pub present: usize,
    /// How many manifests its index names that are not here whole.
    pub absent: usize,
    pub pinned: bool,
}

/// What has been read of an archive.
#[derive(Default)]
struct Read {
    /// Of the files by which images are found.
    small: HashMap<String, Vec<u8>>,
    /// The blobs, with their sizes; and what was made of them.
    files: HashMap<Digest, u64>,
    /// By the IDs that an older Docker has for layers: what they are, and what it says of them.
    layers: HashMap<String, Role>,
    described: HashMap<String, Vec<u8>>,
    described_bytes: u64,
    /// In the storage of a registry: repository, tag and what it points to.
    tags: Vec<(String, String, Digest)>,
    /// And the manifests that each repository has, whatever points to them.
    revisions: Vec<(String, Digest)>,
    /// The manifests of images that were looked at, each in its repository.
    reached: HashSet<(String, Digest)>,
    /// In a layout: by what they refer to, the manifests without names; and of that what has come in, each in its repository.
    referring: HashMap<Digest, Vec<Referring>>,
    arrived: Vec<(String, Digest)>,
    added: HashSet<Digest>,
    commits: Commits,
    /// Hashes of all paths, as a path may be long.
    paths: HashSet<Digest>,
    skipped: u64,
}

/// The largest file by which images are found, in bytes.
const LARGEST_INDEX: u64 = 16 << 20;
pub(super) const MOST_IMAGES: usize = 10_000;
const LARGEST_LINK: u64 = 256;
/// What is said of one layer, and of all of them, in bytes.
const LARGEST_DESCRIPTION: u64 = 64 << 10;
const MOST_DESCRIBED: u64 = 16 << 20;
/// Layers without digests for names, or manifests without tags.
const MOST_NAMELESS: usize = 50_000;
/// How much there may be in an archive that is of no use, in bytes.
const MOST_SKIPPED: u64 = 64 << 20;
/// Of a layer of an older Docker another may be a link to it; of that no more.
const MOST_LINKS: usize = 4;

// === impl Orders ===

impl Orders {
    pub(super) async fn import(&self, import: &Import, input: &mut Input, reports: &Reports) {
        let holds = self.store.holds();
        let mut read = Read::default();
        let came = self.read_archive(&mut read, input, &holds, reports).await;
        let kept = read.commits.end().await;
        let images = match came.and(kept) {
            Ok(()) => self.images_of(&mut read, import, &holds, reports).await,
            Err(why) => Err(why),
        };
        match images {
            Err(why) => reports.tell(Report::Failed { what: "the archive is refused".into(), why }).await,
            Ok(images) => {
                let untagged = self.untagged(&mut read, import).await;
                for image in images.into_iter().chain(untagged) {
                    // What belongs to another has come with that.
                    if !(image.is_untagged && read.reached.contains(&image.key())) {
                        self.take_in(&image, &mut read, import.pin, &holds, reports).await;
                    }
                }
                self.admit_referring(&mut read, import.pin, &holds, reports).await;
            }
        }
        holds.end().await;
    }

    /// Takes blobs in and remembers what says how they belong together.
    async fn read_archive(&self, read: &mut Read, input: &mut Input, holds: &Holds, reports: &Reports) -> Result<(), String> {
        let mut archive = Archive::new(input);
        while let Some(entry) = archive.next().await? {
            let role = Role::of(&entry.path);
            if let Some(target) = &entry.link {
                // What else is a link is there under its own name as well, for those who know that.
                if let (Role::Layer(id), to @ (Role::Layer(_) | Role::Blob(_))) = (role, Role::of(target)) {
                    read.layers.insert(id, to);
                    at_most(read.layers.len(), MOST_NAMELESS, "layers")?;
                }
                continue;
            }
            if !read.paths.insert(Digest::sha256(entry.path.as_bytes())) {
                return Err(format!("it has {:?} twice", shown(&entry.path)));
            }
            match role {
                Role::Small => {
                    let bytes = archive.whole(&entry, LARGEST_INDEX).await?;
                    read.small.insert(entry.path, bytes);
                }
                Role::Tag(repository, tag) => {
                    let link = archive.whole(&entry, LARGEST_LINK).await?;
                    let digest = std::str::from_utf8(&link).ok().and_then(|link| link.trim().parse().ok());
                    read.tags.push((repository, tag, digest.ok_or_else(|| format!("{:?} is no link", shown(&entry.path)))?));
                    at_most(read.tags.len(), MOST_IMAGES, "images")?;
                }
                Role::Revision(repository, digest) => {
                    read.revisions.push((repository, digest));
                    at_most(read.revisions.len(), MOST_NAMELESS, "manifests")?;
                }
                Role::Blob(digest) => {
                    self.take_blob(&mut archive, &entry, &digest, read, holds, reports).await?;
                    read.files.insert(digest, entry.size);
                }
                Role::Layer(id) => {
                    let digest = self.take_layer(&mut archive, &entry, read, holds, reports).await?;
                    read.files.insert(digest.clone(), entry.size);
                    read.layers.insert(id, Role::Blob(digest));
                    at_most(read.layers.len(), MOST_NAMELESS, "layers")?;
                }
                Role::Description(id) => {
                    // Who has a manifest.json has no need of it.
                    read.described_bytes += entry.size.min(LARGEST_DESCRIPTION);
                    if entry.size <= LARGEST_DESCRIPTION && read.described_bytes <= MOST_DESCRIBED {
                        read.described.insert(id, archive.whole(&entry, LARGEST_DESCRIPTION).await?);
                    } else {
                        read.skip(entry.size, &entry.path)?;
                    }
                }
                Role::Nothing => read.skip(entry.size, &entry.path)?,
            }
        }
        Ok(())
    }

    /// Which images the archive has, and what they are to be called.
    async fn images_of(&self, read: &mut Read, import: &Import, holds: &Holds, reports: &Reports) -> Result<Vec<Named>, String> {
        let archive = std::mem::take(read);
        // They may be large, and are not read on a thread that serves.
        let found = tokio::task::spawn_blocking(move || {
            let small = |name: &str| archive.small.get(name).map(Vec::as_slice);
            let found = match (small("index.json"), small("manifest.json")) {
                (Some(index), _) => named::of_index(index).map(|images| (images, Vec::new())),
                (None, Some(loaded)) => named::of_docker(loaded, &archive).map(|made| (Vec::new(), made)),
                (None, None) => legacy::images(small("repositories"), &archive).map(|made| (Vec::new(), made)),
            };
            (found, archive)
        });
        let (found, archive) = found.await.map_err(|error| error.to_string())?;
        *read = archive;
        read.small.clear();
        read.described.clear();
        let (mut images, made) = found?;
        self.sort_out(&mut images, read).await;
        for Made { config, manifest, names, promised } in made {
            if let Some(promised) = promised {
                self.check_promise(&promised).await?;
            }
            if let Some(config) = config {
                self.put_made(config, read, holds, reports).await?;
            }
            let digest = self.put_made(manifest, read, holds, reports).await?;
            let named = |name| Named::new(name, digest.clone(), Some(named::MANIFEST_TYPE.to_owned()));
            images.extend(names.into_iter().map(named));
            at_most(images.len(), MOST_IMAGES, "images")?;
        }
        at_most(images.len(), MOST_IMAGES, "images")?;
        if let (Some(name), false) = (&import.name, images.is_empty()) {
            named::call(&mut images, name)?;
        }
        let registry = import.name.as_ref().map_or_else(String::new, |registry| format!("{registry}/"));
        let tags = read.tags.drain(..);
        images.extend(tags.map(|(repository, tag, digest)| Named::new(format!("{registry}{repository}:{tag}"), digest, None)));
        if images.is_empty() && read.revisions.is_empty() {
            Err("it has no image: no index.json, no manifest.json, no repositories, no docker/registry/v2".into())
        } else {
            Ok(images)
        }
    }

    /// Whether layers that have no digests for names are those that their config names.
    async fn check_promise(&self, promised: &Promised) -> Result<(), String> {
        let config = self.store.peek(&promised.config, MAX_MANIFEST).await.map_err(|error| error.to_string())?;
        let config: Value = serde_json::from_slice(&config.unwrap_or_default()).unwrap_or_default();
        for (place, digest) in &promised.layers {
            if config["rootfs"]["diff_ids"][place].as_str() != Some(&digest.to_string()) {
                return Err(format!("its layer {digest} is not the one that its config {} names", promised.config));
            }
        }
        Ok(())
    }

    /// The manifests of a registry, which are images by their digests where no tag leads to them. Those that lead to others come first.
    async fn untagged(&self, read: &mut Read, import: &Import) -> Vec<Named> {
        let registry = import.name.as_ref().map_or_else(String::new, |registry| format!("{registry}/"));
        let (mut indexes, mut others) = (Vec::new(), Vec::new());
        for (repository, digest) in std::mem::take(&mut read.revisions) {
            let is_index = self.parts(&digest, None, None).await.is_ok_and(|parts| parts.is_index());
            let name = format!("{registry}{repository}@{digest}");
            let image = Named { is_untagged: true, ..Named::new(name, digest, None) };
            if is_index { indexes.push(image) } else { others.push(image) }
        }
        indexes.append(&mut others);
        indexes
    }

    /// What an image is made of, as far as the archive has it, or its repository: the bytes that others have had brought here are not for
    /// an archive to give away.
    async fn parts_for(
        &self,
        repository: &Repository,
        (image, media_type): (&Digest, Option<String>),
        brought: &HashMap<Digest, u64>,
        holds: &Holds,
    ) -> Result<Parts, String> {
        let is_its = |digest: &Digest| self.is_for(repository, digest, brought);
        self.parts_among(image, media_type, Some(holds), is_its).await
    }

    /// Whether the archive has it, or its repository.
    fn is_for(&self, repository: &Repository, digest: &Digest, brought: &HashMap<Digest, u64>) -> bool {
        let proven = |kind| self.store.proof(repository, digest, kind).is_some();
        brought.contains_key(digest) || proven(Kind::Blob) || proven(Kind::Manifest)
    }

    /// Gives an image its name, if all of it is here.
    async fn admit(&self, image: &Named, read: &mut Read, pin: bool, holds: &Holds) -> Result<ImportReport, String> {
        if image.name.is_empty() {
            return Err("it has no name; --as gives it one".into());
        }
        let name = image.name.parse::<ImageName>().map_err(|invalid| invalid.to_string())?;
        if let Reference::Digest(digest) = &name.reference
            && *digest != image.digest
        {
            return Err(format!("it is {}", image.digest));
        }
        read.reached.insert(image.key());
        let origin = self.mirror.registries().resolve(&name).map_err(|refusal| refusal.to_string())?;
        let parts = self.parts_for(&origin.repository, (&image.digest, image.media_type.clone()), &read.files, holds).await?;
        read.reached.extend(parts.manifests.iter().map(|(digest, _)| image.key_of(digest)));
        check_whole(&parts, &origin.repository)?;
        self.name(&origin, &name.reference, &image.digest, &parts);
        parts.blobs.keys().for_each(|digest| holds.named(digest));
        if pin {
            self.keep_for_good(&origin.repository, &name.reference, &image.digest, &parts).await?;
        }
        self.store.settle().await.map_err(|error| format!("it is here until larder ends, and not beyond: {error}"))?;
        let referred_to = parts.manifests.iter().filter(|(digest, _)| read.referring.contains_key(digest));
        read.arrived.extend(referred_to.map(|(digest, _)| image.key_of(digest)));
        let added = parts.blobs.iter().filter(|(digest, _)| read.added.contains(digest));
        let (added, bytes) = added.fold((0, 0), |(n, sum), (_, size)| (n + 1, sum + size));
        Ok(ImportReport {
            image: origin.repository.image(&name.reference),
            digest: image.digest.to_string(),
            added,
            bytes,
            present: parts.blobs.len() - added,
            absent: parts.absent.len(),
            pinned: pin,
        })
    }

    /// From now on the repository has the image: who brings it in answers for it. Its tag comes last.
    fn name(&self, origin: &Origin, reference: &Reference, image: &Digest, parts: &Parts) {
        let repository = &origin.repository;
        let mut blobs = parts.blobs.clone();
        let manifests = parts.manifests.iter().filter_map(|(digest, manifest)| Some((digest, blobs.remove(digest)?, manifest)));
        let manifests: Vec<_> = manifests.collect();
        for (digest, size) in &blobs {
            self.mirror.set_proof(repository, digest, *size, None);
        }
        for (digest, size, manifest) in manifests.into_iter().rev() {
            self.store.link(digest, &manifest.names);
            self.mirror.set_proof(repository, digest, size, Some((*manifest.media_type).into()));
        }
        if let Reference::Tag(tag) = reference {
            self.mirror.point(origin, tag, image);
        }
    }
}

/// Says in one line what is lacking.
fn check_whole(parts: &Parts, repository: &Repository) -> Result<(), String> {
    match parts.missing.first_key_value() {
        None => Ok(()),
        Some((digest, Lack::Broken(why))) => Err(format!("{digest}: {why}")),
        Some((_, Lack::Absent)) if parts.is_index() => {
            Err(format!("none of the manifests that it names is in the archive whole, or here for {repository}"))
        }
        Some((digest, Lack::Absent)) => Err(format!("{digest} is not in the archive, and not here for {repository}")),
    }
}

fn at_most(number: usize, most: usize, of: &str) -> Result<(), String> {
    if number > most { Err(format!("it has more than {most} {of}")) } else { Ok(()) }
}

// === impl Read ===

impl Read {
    /// The blob that a path means, and its size.
    fn blob(&self, path: &str) -> Option<(Digest, u64)> {
        let mut role = &Role::of(path);
        for _ in 0..MOST_LINKS {
            match role {
                Role::Blob(digest) => return Some((digest.clone(), *self.files.get(digest)?)),
                Role::Layer(id) => role = self.layers.get(id)?,
                _ => return None,
            }
        }
        None
    }

    fn skip(&mut self, size: u64, path: &str) -> Result<(), String> {
        self.skipped = self.skipped.saturating_add(size);
        if self.skipped > MOST_SKIPPED { Err(format!("{:?} is of no use and large", shown(path))) } else { Ok(()) }
    }
}
