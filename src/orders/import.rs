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

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::mirror::Origin;
use crate::oci::{self, Digest, Hasher, ImageName, MAX_MANIFEST, Manifest, Reference};
use crate::store::{Bypass, Finished};

use super::archive::{Archive, Entry, Input, shown};
use super::{Orders, Report, Reports};

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
    /// How many manifests its index names that are not here.
    pub absent: usize,
    pub pinned: bool,
}

/// What has been read of an archive.
#[derive(Default)]
struct Read {
    /// Of the files by which images are found.
    small: HashMap<String, Vec<u8>>,
    /// The digest of each blob that its path does not say, with its size.
    files: HashMap<String, (Digest, u64)>,
    /// In the storage of a registry: repository, tag and what it points to.
    tags: Vec<(String, String, Digest)>,
    added: HashSet<Digest>,
    paths: HashSet<String>,
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

/// An image that an archive says it has.
struct Named {
    name: String,
    digest: Digest,
    media_type: Option<String>,
}

/// What an image is made of.
#[derive(Default)]
struct Parts {
    manifests: Vec<(Digest, u64, Manifest)>,
    blobs: BTreeMap<Digest, u64>,
    absent: usize,
}

/// The largest file by which images are found, in bytes.
const LARGEST_INDEX: u64 = 16 << 20;
const LARGEST_LINK: u64 = 256;
/// How much there may be in an archive that is of no use, in bytes.
const MOST_SKIPPED: u64 = 64 << 20;
const MOST_IMAGES: usize = 10_000;
const MOST_MANIFESTS: usize = 10_000;
/// How long a client's own pull of the same blob may take, and how often it is looked whether it has ended.
const BUSY: Duration = Duration::from_mins(1);
const AGAIN: Duration = Duration::from_millis(20);

// === impl Orders ===

impl Orders {
    pub(super) async fn import(&self, import: &Import, input: &mut Input, reports: &Reports) {
        let mut read = Read::default();
        let mut needed = HashSet::new();
        match self.read_archive(&mut read, input).await {
            Err(why) => reports.tell(Report::Failed { what: "the archive is refused".into(), why }).await,
            Ok(()) => match self.images_of(&mut read, import).await {
                Err(why) => reports.tell(Report::Failed { what: "the archive is refused".into(), why }).await,
                Ok(images) => {
                    for image in images {
                        let imported = self.admit(&image, &read, import.pin, &mut needed).await;
                        reports.outcome(&shown(&image.name), imported.map(Report::Imported)).await;
                    }
                }
            },
        }
        self.remove_unneeded(&read.added, &needed).await;
    }

    /// Takes blobs in and remembers what says how they belong together.
    async fn read_archive(&self, read: &mut Read, input: &mut Input) -> Result<(), String> {
        let mut archive = Archive::new(input);
        while let Some(entry) = archive.next().await? {
            if !read.paths.insert(entry.path.clone()) {
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
                }
                Role::Blob(digest) => {
                    if self.take_blob(&mut archive, &entry, &digest).await? {
                        read.added.insert(digest.clone());
                    }
                    read.files.insert(entry.path, (digest, entry.size));
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

    /// Admits the bytes of a file as a blob. False if it was here: then they are verified all the same.
    async fn take_blob(&self, archive: &mut Archive<'_>, entry: &Entry, digest: &Digest) -> Result<bool, String> {
        let refused = |why: &dyn std::fmt::Display| format!("{:?}: {why}", shown(&entry.path));
        let wrong = || refused(&"its bytes are not those that its name promises");
        let since = Instant::now();
        let mut writer = loop {
            if self.store.size(digest).is_some() {
                let mut hasher = Hasher::new(digest.algorithm());
                while let Some(bytes) = archive.data().await? {
                    hasher.update(&bytes);
                }
                return if hasher.finish() == *digest { Ok(false) } else { Err(wrong()) };
            }
            let writer = self.store.begin(digest.clone()).await;
            match writer.bypassed() {
                Some(Bypass::Busy) if since.elapsed() < BUSY => tokio::time::sleep(AGAIN).await,
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
    async fn images_of(&self, read: &mut Read, import: &Import) -> Result<Vec<Named>, String> {
        let json = |name: &str| -> Result<Option<Value>, String> {
            let Some(bytes) = read.small.get(name) else { return Ok(None) };
            serde_json::from_slice(bytes).map(Some).map_err(|_| format!("its {name} is no JSON"))
        };
        let (index, loaded) = (json("index.json")?, json("manifest.json")?);
        let mut images = Vec::new();
        if let Some(index) = index {
            images.extend(of_index(&index)?);
        } else if let Some(loaded) = loaded {
            images.extend(self.of_docker(&loaded, read).await?);
        }
        if images.len() > MOST_IMAGES || read.tags.len() > MOST_IMAGES {
            return Err(format!("it has more than {MOST_IMAGES} images"));
        }
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

    /// The images that `docker load` would find, with manifests made for them.
    async fn of_docker(&self, loaded: &Value, read: &mut Read) -> Result<Vec<Named>, String> {
        let mut images = Vec::new();
        for image in loaded.as_array().ok_or("its manifest.json is no list")? {
            let described = |path: &Value, media_type: &str| {
                let path = path.as_str().ok_or("its manifest.json names no file")?;
                let (digest, size) = read.files.get(path).ok_or_else(|| format!("{:?} is not in it", shown(path)))?;
                Ok::<_, String>(json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size }))
            };
            let config = described(&image["Config"], "application/vnd.oci.image.config.v1+json")?;
            let layers = image["Layers"].as_array().ok_or("its manifest.json has an image without layers")?;
            let layers = layers.iter().map(|layer| described(layer, "application/vnd.oci.image.layer.v1.tar"));
            let layers = layers.collect::<Result<Vec<Value>, String>>()?;
            let media_type = "application/vnd.oci.image.manifest.v1+json";
            let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers }).to_string();
            let digest = Digest::sha256(manifest.as_bytes());
            if self.store.size(&digest).is_none() {
                match self.store.put(&digest, Bytes::from(manifest), &[]).await {
                    Finished::Kept => _ = read.added.insert(digest.clone()),
                    other => return Err(format!("a manifest is not kept: {other:?}")),
                }
            }
            let tags = image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let mut names: Vec<String> = tags.map(str::to_owned).collect();
            if names.is_empty() {
                names.push(String::new());
            }
            images.extend(names.into_iter().map(|name| Named {
                name,
                digest: digest.clone(),
                media_type: Some(media_type.into()),
            }));
        }
        Ok(images)
    }

    /// Gives an image its name, if all of it is here.
    async fn admit(&self, image: &Named, read: &Read, pin: bool, needed: &mut HashSet<Digest>) -> Result<ImportReport, String> {
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
        let parts = self.parts_of(image).await?;
        self.name(&origin, &name.reference, image, &parts);
        needed.extend(parts.blobs.keys().cloned());
        if pin {
            self.keep_for_good(&origin.repository, &name.reference, &image.digest).await?;
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
            absent: parts.absent,
            pinned: pin,
        })
    }

    /// All that an image needs, if it is here.
    async fn parts_of(&self, image: &Named) -> Result<Parts, String> {
        let mut parts = Parts::default();
        let mut wanted = vec![(image.digest.clone(), image.media_type.clone())];
        while let Some((digest, media_type)) = wanted.pop() {
            if parts.blobs.contains_key(&digest) {
                continue;
            }
            let size = self.store.size(&digest).ok_or_else(|| format!("{digest} is not in the archive, and not here"))?;
            let bytes = self.store.peek(&digest, MAX_MANIFEST).await.map_err(|error| format!("{digest}: {error}"))?;
            let bytes = bytes.filter(|bytes| digest.matches(bytes)).ok_or_else(|| format!("{digest} is no manifest"))?;
            let manifest = Manifest::parse(media_type.as_deref(), &bytes).map_err(|bad| format!("{digest}: {bad}"))?;
            parts.blobs.insert(digest.clone(), size);
            for child in &manifest.children {
                match child.digest.parse::<Digest>() {
                    Ok(digest) if self.store.size(&digest).is_some() && oci::is_manifest_type(&child.media_type) => {
                        wanted.push((digest, Some(child.media_type.clone())));
                    }
                    _ => parts.absent += 1,
                }
            }
            if manifest.children.is_empty() {
                for blob in &manifest.names {
                    let size = self.store.size(blob).ok_or_else(|| format!("{blob} is not in the archive, and not here"))?;
                    parts.blobs.insert(blob.clone(), size);
                }
            }
            parts.manifests.push((digest, size, manifest));
            if parts.manifests.len() > MOST_MANIFESTS {
                return Err(format!("it has more than {MOST_MANIFESTS} manifests"));
            }
        }
        Ok(parts)
    }

    /// From now on the repository has the image: who brings it in answers for it. Its tag comes last.
    fn name(&self, origin: &Origin, reference: &Reference, image: &Named, parts: &Parts) {
        let repository = &origin.repository;
        let manifests: HashSet<&Digest> = parts.manifests.iter().map(|(digest, ..)| digest).collect();
        for (digest, size) in parts.blobs.iter().filter(|(digest, _)| !manifests.contains(digest)) {
            self.mirror.set_proof(repository, digest, *size, None);
        }
        for (digest, size, manifest) in parts.manifests.iter().rev() {
            self.store.link(digest, &manifest.names);
            self.mirror.set_proof(repository, digest, *size, Some(manifest.media_type.clone()));
        }
        if let Reference::Tag(tag) = reference {
            self.mirror.point(origin, tag, &image.digest);
        }
    }

    /// Removes what was brought in for nothing, unless others have come to use it meanwhile.
    async fn remove_unneeded(&self, added: &HashSet<Digest>, needed: &HashSet<Digest>) {
        for digest in added.difference(needed) {
            let entry = self.store.entry(digest);
            let used = entry
                .is_some_and(|entry| entry.pinned || entry.named_by.iter().any(|by| !added.contains(by) || needed.contains(by)));
            if !used
                && self.store.held_by(digest).is_empty()
                && let Err(error) = self.store.remove(digest).await
            {
                tracing::warn!(%digest, %error, "what an archive brought for nothing could not be removed");
            }
        }
    }
}

/// The images of an OCI image layout.
fn of_index(index: &Value) -> Result<Vec<Named>, String> {
    let manifests = index["manifests"].as_array().ok_or("its index.json has no manifests")?;
    let named = manifests.iter().map(|descriptor| {
        let digest = descriptor["digest"].as_str().and_then(|digest| digest.parse().ok());
        let annotation = |key: &str| descriptor["annotations"][key].as_str().map(str::to_owned);
        // The other may be no more than a tag.
        let whole = annotation("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/']));
        Ok(Named {
            name: annotation("io.containerd.image.name").or(whole).unwrap_or_default(),
            digest: digest.ok_or("its index.json has a manifest without a digest")?,
            media_type: descriptor["mediaType"].as_str().map(str::to_owned),
        })
    });
    named.collect()
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
