//! `larder export`: images leave as one archive, an OCI image layout that `docker load` takes as well.
//!
//! The same images give the same bytes, on whatever machine and day. What the archive holds is found out first; then each blob is
//! hashed once more on its way out.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::oci::{Algorithm, Digest, INDEX_TYPE, MAX_MANIFEST, Reference, Tag};
use crate::store::{BlobReader, Damage, Held, Holds, Kind, ReadError};

use super::archive::{BLOCK, MOST_ENTRIES, header, padding};
use super::hashing::Hashing;
use super::images::Image;
use super::import::{self, MOST_IMAGES};
use super::parts::Lack;
use super::{Orders, Report, Reports, absent};

/// What is to be exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Export {
    These(Vec<String>),
    Pinned,
    All,
}

/// An image that is in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportReport {
    /// Its whole name.
    pub image: String,
    pub digest: String,
    /// How many manifests and blobs it has there, and their bytes. Images share them.
    pub blobs: usize,
    pub bytes: u64,
    /// The platforms that its index names and that are not here whole.
    pub absent: Vec<String>,
}

/// All that goes into an archive.
#[derive(Default)]
struct Contents {
    images: BTreeSet<Image>,
    index: Vec<Value>,
    /// By config and layers, the names of each image that `docker load` is told of.
    loaded: BTreeMap<(Digest, Vec<Digest>), BTreeSet<String>>,
    blobs: BTreeMap<Digest, u64>,
}

/// What an image is made of.
#[derive(Default)]
struct Found {
    blobs: BTreeMap<Digest, u64>,
    manifests: Vec<Digest>,
    /// Of the manifests of an index that are not here whole: for what they are.
    absent: Vec<String>,
    /// It is made of layers that are unpacked.
    is_image: bool,
    /// Images with config and layers, and whether they are for the platform that Docker takes to be meant.
    runnable: Vec<(bool, Digest, Vec<Digest>)>,
}

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// What is no image has its name by this one: containerd unpacks all that is named by the others, and cannot unpack a signature.
const OTHER_NAME: &str = "larder.name";
/// The types of what makes an image.
const CONFIGS: [&str; 2] = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: [&str; 2] = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];
/// With so many zeros an archive ends.
const END: usize = 2 * BLOCK;
/// What is in an archive beside blobs.
const SMALL_FILES: usize = 3;
/// What cosign adds to the tag of a digest.
const COSIGN: [&str; 4] = ["", ".sig", ".att", ".sbom"];

// === impl Orders ===

impl Orders {
    pub(super) async fn export(&self, export: &Export, reports: &Reports) {
        // Also what is written hours later is to be here then.
        let holds = self.store.holds();
        let mut contents = Contents::default();
        for (image, found) in self.chosen(export, &holds, reports).await {
            let report = ExportReport {
                image: image.name(),
                digest: image.digest.to_string(),
                blobs: found.blobs.len(),
                bytes: found.blobs.values().sum(),
                absent: found.absent.clone(),
            };
            contents.add(image, found, self);
            reports.tell(Report::Exporting(report)).await;
        }
        if contents.images.is_empty() {
            return reports.tell(Report::Failed { what: "export".into(), why: "there is nothing to export".into() }).await;
        }
        // What larder import refuses is not written.
        let too_much = contents.blobs.len() + SMALL_FILES > MOST_ENTRIES || contents.images.len() > MOST_IMAGES;
        let files = contents.files();
        if too_much || files.iter().any(|(path, text)| import::check_small(path, text.as_bytes()).is_err()) {
            let (images, blobs) = (contents.images.len(), contents.blobs.len());
            let why =
                format!("{images} images of {blobs} manifests and blobs are too many for one archive; export some at a time");
            return reports.tell(Report::Failed { what: "export".into(), why }).await;
        }
        match self.write(&contents, files, reports).await {
            Ok(()) => reports.tell(Report::Exported { images: contents.images.len(), blobs: contents.blobs.len() }).await,
            Err((what, why)) => reports.tell(Report::Failed { what, why }).await,
        }
    }

    /// The images that were asked for, with what refers to them. What is not here whole is told of and left out.
    async fn chosen(&self, export: &Export, holds: &Holds, reports: &Reports) -> Vec<(Image, Found)> {
        let mut wanted = Vec::new();
        match export {
            Export::These(names) => {
                for name in names {
                    match self.image(name) {
                        Ok(image) => wanted.push(image),
                        Err(why) => reports.tell(Report::Failed { what: name.clone(), why }).await,
                    }
                }
            }
            Export::Pinned => wanted = self.pinned(),
            Export::All => {
                let orders = self.clone();
                wanted = tokio::task::spawn_blocking(move || orders.images()).await.unwrap_or_default();
            }
        }
        let (mut chosen, mut seen) = (Vec::new(), BTreeSet::new());
        while let Some(image) = wanted.pop() {
            if !seen.insert(image.clone()) {
                continue;
            }
            match self.look(&image, holds).await {
                Ok(found) => {
                    wanted.extend(found.manifests.iter().flat_map(|digest| self.referring(&image, digest)));
                    chosen.push((image, found));
                }
                Err(why) => reports.tell(Report::Failed { what: image.name(), why }).await,
            }
        }
        chosen.sort_by(|(one, _), (other, _)| one.cmp(other));
        chosen
    }

    fn image(&self, name: &str) -> Result<Image, String> {
        let (repository, reference) = self.named(name)?;
        let digest = self.digest_of(&repository, &reference).ok_or_else(|| absent(name))?;
        Ok(Image { repository, reference, digest })
    }

    /// The tags that stand for what refers to a digest, as far as they are here.
    fn referring(&self, image: &Image, digest: &Digest) -> Vec<Image> {
        let tags = COSIGN.iter().filter_map(|kind| format!("{}{kind}", Tag::of_referrers(digest)).parse::<Tag>().ok());
        let here = tags.filter_map(|tag| {
            let reference = Reference::Tag(tag);
            let digest = self.digest_of(&image.repository, &reference)?;
            Some(Image { repository: image.repository.clone(), reference, digest })
        });
        here.collect()
    }

    /// Finds all that an image needs. Of an index that may be a part.
    async fn look(&self, image: &Image, holds: &Holds) -> Result<Found, String> {
        let media_type = self.media_type(image);
        let parts = self.parts(&image.digest, media_type, Some(holds)).await?;
        if let Some((digest, lack)) = parts.missing.first_key_value() {
            return Err(match lack {
                Lack::Broken(why) => format!("{digest}: {why}"),
                Lack::Absent if parts.is_index() => {
                    format!("for no platform it is here whole; `larder pull --platform all {}` brings all", image.name())
                }
                Lack::Absent => format!("{digest} is not here; `larder pull {}` brings it", image.name()),
            });
        }
        if let Some(digest) = parts.blobs.keys().find(|digest| digest.algorithm() != Algorithm::Sha256) {
            return Err(format!("{digest}: only what has a sha256 digest is exported"));
        }
        let mut found = Found { absent: parts.absent, ..Found::default() };
        for (digest, manifest) in parts.manifests.into_iter().filter(|(digest, _)| parts.blobs.contains_key(digest)) {
            if manifest.children.is_empty()
                && let Some((config, layers)) = layered(&self.json(&digest).await?)
            {
                found.is_image = true;
                found.runnable.extend(self.runnable(config, layers).await?);
            }
            found.manifests.push(digest);
        }
        found.blobs = parts.blobs;
        Ok(found)
    }

    /// With which media type the repository serves it.
    fn media_type(&self, image: &Image) -> Option<String> {
        self.store.proof(&image.repository, &image.digest, Kind::Manifest)?.media_type.as_deref().map(str::to_owned)
    }

    /// What `docker load` needs of an image. `None`: it is none that could be run, or layers of it are elsewhere.
    ///
    /// # Errors
    /// When that cannot be read: another time the archive would be another one.
    async fn runnable(&self, config: Digest, layers: Vec<Digest>) -> Result<Option<(bool, Digest, Vec<Digest>)>, String> {
        if layers.iter().any(|layer| self.store.size(layer).is_none()) {
            return Ok(None);
        }
        let says = self.json(&config).await?;
        let diffs = says["rootfs"]["diff_ids"].as_array();
        let of_image = diffs.is_some_and(|diffs| diffs.len() == layers.len()) && says["os"] != "unknown";
        Ok(of_image.then(|| (says["os"] == "linux" && says["architecture"] == "amd64", config, layers)))
    }

    /// A small blob as JSON; null if it is none.
    async fn json(&self, digest: &Digest) -> Result<Value, String> {
        let bytes = self.store.peek(digest, MAX_MANIFEST).await;
        let bytes = bytes.map_err(|error| format!("{digest} cannot be read: {error}"))?;
        Ok(serde_json::from_slice(&bytes.unwrap_or_default()).unwrap_or_default())
    }

    /// Gives out the archive. Fails with what is wrong and why.
    async fn write(&self, contents: &Contents, files: Vec<(&str, String)>, reports: &Reports) -> Result<(), (String, String)> {
        let length = |path: &str, size: u64| (header(path, size).len() + padding(size)) as u64 + size;
        let blobs: u64 = contents.blobs.iter().map(|(digest, size)| length(&path(digest), *size)).sum();
        let small: u64 = files.iter().map(|(path, text)| length(path, text.len() as u64)).sum();
        reports.tell(Report::Writing { bytes: blobs + small + END as u64 }).await;
        for (path, text) in files {
            let mut file = header(path, text.len() as u64);
            file.extend_from_slice(text.as_bytes());
            file.resize(file.len() + padding(text.len() as u64), 0);
            reports.tell(Report::piece(file.into())).await;
        }
        for (digest, size) in &contents.blobs {
            reports.tell(Report::piece(header(&path(digest), *size).into())).await;
            self.write_blob(digest, *size, reports).await.map_err(|why| (digest.to_string(), why))?;
            reports.tell(Report::piece(vec![0; padding(*size)].into())).await;
        }
        reports.tell(Report::piece(vec![0; END].into())).await;
        Ok(())
    }

    async fn write_blob(&self, digest: &Digest, size: u64, reports: &Reports) -> Result<(), String> {
        let held = self.store.get(digest).await.map_err(|error| error.to_string())?;
        let mut reader: BlobReader = match held.ok_or("it has just left the cache; try again")? {
            Held::Verified(blob) => blob.read(0..blob.size()),
            Held::Doubtful(growth) => growth.read(0, None),
        };
        let (file, mut hashing, mut length) = (reader.file(), Hashing::new(digest.algorithm()), 0);
        while let Some(bytes) = reader.next().await {
            let bytes = bytes.map_err(|error| match error {
                ReadError::Disk(error) => format!("it cannot be read: {error}"),
                ReadError::Ended | ReadError::Lagged(_) => damaged(),
            })?;
            length += bytes.len() as u64;
            // What stands behind the header is not to be more than that says.
            if length > size {
                break;
            }
            hashing.update(bytes.clone()).await;
            reports.tell(Report::piece(bytes)).await;
        }
        if length == size && hashing.finish().await.as_ref() == Some(digest) {
            return Ok(());
        }
        if let Some(file) = file {
            self.store.quarantine(digest, file, Damage::Bytes).await;
            self.mirror.forget_bytes(digest);
        }
        Err(damaged())
    }
}

/// Config and layers of a manifest that is an image's. Signatures have the config of an image, and something else for layers.
fn layered(manifest: &Value) -> Option<(Digest, Vec<Digest>)> {
    let config = &manifest["config"];
    CONFIGS.contains(&config["mediaType"].as_str()?).then_some(())?;
    let config: Digest = config["digest"].as_str()?.parse().ok()?;
    let layers = manifest["layers"].as_array()?.iter().map(|layer| {
        let media_type = layer["mediaType"].as_str()?;
        LAYERS.iter().any(|kind| media_type.starts_with(kind)).then_some(())?;
        layer["digest"].as_str()?.parse::<Digest>().ok()
    });
    Some((config, layers.collect::<Option<Vec<_>>>()?))
}

fn damaged() -> String {
    "it is damaged; `larder verify --repair` or the next pull fetches it anew".into()
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

// === impl Contents ===

impl Contents {
    /// First what says what all the rest is, so that who reads it as it comes knows.
    fn files(&self) -> Vec<(&'static str, String)> {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": self.index }).to_string();
        let loaded = self.loaded.iter().map(|((config, layers), tags)| {
            json!({ "Config": path(config), "RepoTags": tags, "Layers": layers.iter().map(path).collect::<Vec<_>>() })
        });
        let loaded = Value::Array(loaded.collect()).to_string();
        vec![("oci-layout", LAYOUT.to_owned()), ("index.json", index), ("manifest.json", loaded)]
    }

    fn add(&mut self, image: Image, found: Found, orders: &Orders) {
        let media_type = orders.media_type(&image).unwrap_or_else(|| INDEX_TYPE.to_owned());
        let size = found.blobs.get(&image.digest).copied().unwrap_or_default();
        let name = image.name();
        let annotations = if found.is_image { json!({ NAME: name, REF_NAME: name }) } else { json!({ OTHER_NAME: name }) };
        self.index.push(json!({
            "mediaType": media_type, "digest": image.digest.to_string(), "size": size, "annotations": annotations,
        }));
        // Docker keeps one image a name. Which, is not to depend on the machine that exports.
        let loaded = found.runnable.iter().max_by_key(|(usual, config, _)| (*usual, config));
        if let (Some((_, config, layers)), Reference::Tag(_)) = (loaded, &image.reference) {
            self.loaded.entry((config.clone(), layers.clone())).or_default().insert(name);
        }
        self.blobs.extend(found.blobs);
        self.images.insert(image);
    }
}
