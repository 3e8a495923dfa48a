//! `larder import`: images come in from an archive, as it is read.
//!
//! Blobs are admitted as they come, each only if it is what its name promises; nothing has a name yet. Behind the archive's end each
//! image is looked at, and has its name and its pin only if all of it is here. What an archive brought that is refused, or that no
//! image of it needs, is removed again.
//!
//! Three kinds of archives are read, which may be several at once: an OCI image layout (`index.json`); what is for `docker load`
//! (`manifest.json`), where layers and configs are named by their digests; and the storage of a distribution registry
//! (`docker/registry/v2`). Where there is only `manifest.json`, layers stay as they are, and each image gets a manifest made of the
//! digests and sizes of its config and layers alone, so that its digest is the same wherever it is made. That is not the digest which
//! the registry has that the image came from.

mod named;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::mirror::Origin;
use crate::oci::{Digest, ImageName, Reference};
use crate::store::{Bypass, Finished, Holds};

use super::archive::{Archive, Entry, Input, shown};
use super::hashing::Hashing;
use super::parts::{Lack, Parts};
use super::{Orders, Report, Reports};

pub(super) use named::check_small;
use named::{Made, Named};

/// How images are to be brought in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// What the only image is to be called; or for the storage of a registry, which registry it is.
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
    /// The blobs, with their sizes.
    files: HashMap<Digest, u64>,
    /// In the storage of a registry: repository, tag and what it points to.
    tags: Vec<(String, String, Digest)>,
    added: HashSet<Digest>,
    /// Hashes of all paths, as a path may be long.
    paths: HashSet<Digest>,
    skipped: u64,
}

/// What a file of an archive is.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    Small,
    Blob(Digest),
    /// The tag of a repository.
    Link(String, String),
    Nothing,
}

/// The largest file by which images are found, in bytes.
const LARGEST_INDEX: u64 = 16 << 20;
pub(super) const MOST_IMAGES: usize = 10_000;
const LARGEST_LINK: u64 = 256;
/// How much there may be in an archive that is of no use, in bytes.
const MOST_SKIPPED: u64 = 64 << 20;
/// How often it is looked whether another has brought what it brings, and after how many times it is said that it is waited for.
const AGAIN: Duration = Duration::from_millis(20);
const SAID: u32 = 100;

// === impl Orders ===

impl Orders {
    pub(super) async fn import(&self, import: &Import, input: &mut Input, reports: &Reports) {
        let holds = self.store.holds();
        let mut read = Read::default();
        let images = match self.read_archive(&mut read, input, &holds, reports).await {
            Ok(()) => self.images_of(&mut read, import, &holds).await,
            Err(why) => Err(why),
        };
        match images {
            Err(why) => reports.tell(Report::Failed { what: "the archive is refused".into(), why }).await,
            Ok(images) => {
                for image in images {
                    let imported = self.admit(&image, &read, import.pin, &holds).await;
                    reports.outcome(&shown(&image.name), imported.map(Report::Imported)).await;
                }
            }
        }
        holds.end().await;
    }

    /// Takes blobs in and remembers what says how they belong together.
    async fn read_archive(&self, read: &mut Read, input: &mut Input, holds: &Holds, reports: &Reports) -> Result<(), String> {
        let mut archive = Archive::new(input);
        while let Some(entry) = archive.next().await? {
            if !read.paths.insert(Digest::sha256(entry.path.as_bytes())) {
                return Err(format!("it has {:?} twice", shown(&entry.path)));
            }
            match Role::of(&entry.path) {
                Role::Small => {
                    let bytes = archive.whole(&entry, LARGEST_INDEX).await?;
                    read.small.insert(entry.path, bytes);
                }
                Role::Link(repository, tag) => {
                    let link = archive.whole(&entry, LARGEST_LINK).await?;
                    let digest = std::str::from_utf8(&link).ok().and_then(|link| link.trim().parse().ok());
                    read.tags.push((repository, tag, digest.ok_or_else(|| format!("{:?} is no link", shown(&entry.path)))?));
                    at_most(read.tags.len())?;
                }
                Role::Blob(digest) => {
                    if self.take_blob(&mut archive, &entry, &digest, holds, reports).await? {
                        read.added.insert(digest.clone());
                    }
                    read.files.insert(digest, entry.size);
                }
                Role::Nothing if entry.path.ends_with("/layer.tar") => {
                    return Err(
                        "its layers have not their digests for names; load it into Docker 25 or later and save it there".into()
                    );
                }
                Role::Nothing => {
                    read.skipped = read.skipped.saturating_add(entry.size);
                    if read.skipped > MOST_SKIPPED {
                        return Err(format!("{:?} is of no use and large", shown(&entry.path)));
                    }
                }
            }
        }
        Ok(())
    }

    /// Admits the bytes of a file as a blob. False if it was here, and is right: then they are verified all the same.
    async fn take_blob(
        &self,
        archive: &mut Archive<'_>,
        entry: &Entry,
        digest: &Digest,
        holds: &Holds,
        reports: &Reports,
    ) -> Result<bool, String> {
        let refused = |why: &dyn std::fmt::Display| format!("{:?}: {why}", shown(&entry.path));
        let wrong = || refused(&"its bytes are not those that its name promises");
        let mut waited = 0;
        holds.bring(digest);
        let mut writer = loop {
            if let Some(size) = self.store.size(digest) {
                // An archive is also how what is damaged is had again where nobody can be asked.
                if self.store.check(digest, None).await == Some(false) {
                    continue;
                }
                holds.named(digest);
                if size != entry.size {
                    return Err(wrong());
                }
                let mut hashing = Hashing::new(digest.algorithm());
                while let Some(bytes) = archive.data().await? {
                    hashing.update(bytes).await;
                }
                return if hashing.finish().await.as_ref() == Some(digest) { Ok(false) } else { Err(wrong()) };
            }
            let writer = self.store.begin(digest.clone()).await;
            match writer.bypassed() {
                Some(Bypass::Busy) => {
                    waited += 1;
                    if waited == SAID {
                        reports.tell(Report::Waiting { why: format!("{digest} is being brought by another just now") }).await;
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                Some(why) => return Err(refused(why)),
                None => break writer,
            }
        };
        if writer.accepted() > 0 {
            writer.restart().await;
        }
        writer.expect(entry.size).await;
        loop {
            if let Some(why) = writer.bypassed() {
                return Err(refused(&why.clone()));
            }
            if writer.is_full() {
                writer.progress().await;
                continue;
            }
            match archive.data().await {
                Ok(Some(bytes)) => writer.push(bytes),
                Ok(None) => break,
                Err(why) => {
                    writer.discard().await;
                    return Err(why);
                }
            }
        }
        match writer.finish().await {
            Finished::Kept => Ok(true),
            Finished::Mismatch => Err(wrong()),
            Finished::Passed(why) => Err(refused(&why)),
        }
    }

    /// Which images the archive has, and what they are to be called.
    async fn images_of(&self, read: &mut Read, import: &Import, holds: &Holds) -> Result<Vec<Named>, String> {
        let archive = std::mem::take(read);
        // They may be large, and are not read on a thread that serves.
        let found = tokio::task::spawn_blocking(move || {
            let found = match (archive.small.get("index.json"), archive.small.get("manifest.json")) {
                (Some(index), _) => named::of_index(index).map(|images| (images, Vec::new())),
                (None, Some(loaded)) => named::of_docker(loaded, &archive).map(|made| (Vec::new(), made)),
                (None, None) => Ok((Vec::new(), Vec::new())),
            };
            (found, archive)
        });
        let (found, archive) = found.await.map_err(|error| error.to_string())?;
        *read = archive;
        read.small.clear();
        let (mut images, made) = found?;
        for Made { manifest, names } in made {
            let digest = self.put_manifest(manifest, read, holds).await?;
            let media_type = Some(named::MANIFEST_TYPE.to_owned());
            images.extend(names.into_iter().map(|name| Named { name, digest: digest.clone(), media_type: media_type.clone() }));
            at_most(images.len())?;
        }
        at_most(images.len())?;
        if let (Some(name), false) = (&import.name, images.is_empty()) {
            let digests: BTreeSet<Digest> = images.iter().map(|image| image.digest.clone()).collect();
            if digests.len() > 1 {
                return Err(format!("it has {} images, which cannot all be called {name}", digests.len()));
            }
            images.truncate(1);
            images.iter_mut().for_each(|image| image.name.clone_from(name));
        }
        let registry = import.name.as_ref().map_or_else(String::new, |registry| format!("{registry}/"));
        let tags = read.tags.drain(..);
        images.extend(tags.map(|(repository, tag, digest)| Named {
            name: format!("{registry}{repository}:{tag}"),
            digest,
            media_type: None,
        }));
        if images.is_empty() {
            Err("it has no image: no index.json, no manifest.json, no docker/registry/v2".into())
        } else {
            Ok(images)
        }
    }

    /// Keeps a manifest that was made.
    async fn put_manifest(&self, manifest: String, read: &mut Read, holds: &Holds) -> Result<Digest, String> {
        let digest = Digest::sha256(manifest.as_bytes());
        holds.hold(&digest);
        if self.store.size(&digest).is_none() {
            holds.bring(&digest);
            match self.store.put(&digest, Bytes::from(manifest), &[]).await {
                Finished::Kept => _ = read.added.insert(digest.clone()),
                other => return Err(format!("a manifest is not kept: {other:?}")),
            }
        }
        Ok(digest)
    }

    /// Gives an image its name, if all of it is here.
    async fn admit(&self, image: &Named, read: &Read, pin: bool, holds: &Holds) -> Result<ImportReport, String> {
        if image.name.is_empty() {
            return Err(format!("{} has no name; --as gives it one", image.digest));
        }
        let name = image.name.parse::<ImageName>().map_err(|invalid| invalid.to_string())?;
        if let Reference::Digest(digest) = &name.reference
            && *digest != image.digest
        {
            return Err(format!("it is {}", image.digest));
        }
        let origin = self.mirror.registries().resolve(&name).map_err(|refusal| refusal.to_string())?;
        let parts = self.parts(&image.digest, image.media_type.clone(), Some(holds)).await?;
        if let Some((digest, lack)) = parts.missing.first_key_value() {
            return Err(match lack {
                Lack::Broken(why) => format!("{digest}: {why}"),
                Lack::Absent if parts.is_index() => "none of the manifests that it names is in the archive whole, or here".into(),
                Lack::Absent => format!("{digest} is not in the archive, and not here"),
            });
        }
        self.name(&origin, &name.reference, &image.digest, &parts);
        parts.blobs.keys().for_each(|digest| holds.named(digest));
        if pin {
            self.keep_for_good(&origin.repository, &name.reference, &image.digest, &parts).await?;
        }
        self.store.settle().await.map_err(|error| format!("it is here until larder ends, and not beyond: {error}"))?;
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
            self.mirror.set_proof(repository, digest, size, Some(manifest.media_type.clone()));
        }
        if let Reference::Tag(tag) = reference {
            self.mirror.point(origin, tag, image);
        }
    }
}

fn at_most(images: usize) -> Result<(), String> {
    if images > MOST_IMAGES { Err(format!("it has more than {MOST_IMAGES} images")) } else { Ok(()) }
}

// === impl Role ===

impl Role {
    fn of(path: &str) -> Self {
        if matches!(path, "index.json" | "manifest.json") {
            return Self::Small;
        }
        let parts: Vec<&str> = path.split('/').collect();
        let digest = |algorithm: &str, hex: &str| format!("{algorithm}:{hex}").parse().map_or(Self::Nothing, Self::Blob);
        let registry = parts.windows(3).position(|three| three == ["docker", "registry", "v2"]);
        match (registry.map(|at| &parts[at + 3..]), &parts[..]) {
            (Some(["blobs", algorithm, _, hex, "data"]), _) | (None, ["blobs", algorithm, hex]) => digest(algorithm, hex),
            (Some(["repositories", repository @ .., "_manifests", "tags", tag, "current", "link"]), _) => {
                Self::Link(repository.join("/"), (*tag).to_owned())
            }
            // As podman and skopeo name layers and configs for `docker load`.
            (None, [name]) => digest("sha256", name.strip_suffix(".tar").or(name.strip_suffix(".json")).unwrap_or(name)),
            _ => Self::Nothing,
        }
    }
}
