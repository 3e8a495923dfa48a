//! Which images an archive has, and what they are called there.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::oci::{Digest, MAX_MANIFEST, Tag};

use super::super::archive::shown;
use super::role::Role;
use super::{LARGEST_INDEX, Read};

/// An image that an archive says it has.
pub(super) struct Named {
    /// Empty: it has none.
    pub(super) name: String,
    /// It is known by this, in a repository that is not said.
    pub(super) tag: Option<String>,
    pub(super) digest: Digest,
    pub(super) media_type: Option<String>,
    /// What it is to cosign.
    pub(super) kind: Option<String>,
    /// It is there, and nothing says that it is meant.
    pub(super) is_untagged: bool,
}

/// An image for which a manifest is made, as it has none.
pub(super) struct Made {
    /// A config that is made as well.
    pub(super) config: Option<String>,
    pub(super) manifest: String,
    pub(super) names: Vec<String>,
    pub(super) promised: Option<Promised>,
}

/// Layers that have no digest for a name, and are what they should be if the config says so: at which place is which.
pub(super) struct Promised {
    pub(super) config: Digest,
    pub(super) layers: Vec<(usize, Digest)>,
}

/// `index.json`: of what stands there no more than is used, as it is a stranger's and may be large.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    media_type: Option<String>,
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(rename = "io.containerd.image.name")]
    name: Option<String>,
    #[serde(rename = "org.opencontainers.image.ref.name")]
    ref_name: Option<String>,
    /// Of what is no image, in larder's own.
    #[serde(rename = "larder.name")]
    other_name: Option<String>,
    kind: Option<String>,
}

/// `manifest.json`
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Loaded {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const COMPRESSED_LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Values in one of these files. The names of ten thousand images and their layers are not as many.
const MOST_VALUES: usize = 300_000;

// === impl Named ===

impl Named {
    /// An image that is just this.
    pub(super) fn new(name: String, digest: Digest, media_type: Option<String>) -> Self {
        Self { name, tag: None, digest, media_type, kind: None, is_untagged: false }
    }

    pub(super) fn is_nameless(&self) -> bool {
        self.name.is_empty() && self.tag.is_none()
    }

    /// By which it is told of.
    pub(super) fn shown(&self) -> String {
        if self.name.is_empty() { self.digest.to_string() } else { shown(&self.name) }
    }

    pub(super) fn key(&self) -> (String, Digest) {
        self.key_of(&self.digest)
    }

    /// What says of one of its manifests where it belongs.
    pub(super) fn key_of(&self, digest: &Digest) -> (String, Digest) {
        (repository_of(&self.name).to_owned(), digest.clone())
    }
}

/// An image's name without its tag and its digest.
fn repository_of(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// Gives the images of an archive the name that is wanted for them. One without a tag is that of a repository, for all that has a tag
/// in the archive.
pub(super) fn call(images: &mut Vec<Named>, wanted: &str) -> Result<(), String> {
    let repository = repository_of(wanted);
    // What leads to what refers to an image is found by no other tag.
    let is_kept = |tag: &str| repository == wanted || tag.parse::<Tag>().is_ok_and(|tag| tag.ending_of_referrers().is_some());
    let (mut tagged, mut others): (Vec<Named>, Vec<Named>) =
        std::mem::take(images).into_iter().partition(|image| image.tag.as_deref().is_some_and(is_kept));
    for image in &mut tagged {
        image.name = format!("{repository}:{}", image.tag.as_deref().unwrap_or_default());
    }
    let digests: BTreeSet<&Digest> = others.iter().map(|image| &image.digest).collect();
    if digests.len() > 1 {
        return Err(format!("it has {} images, which cannot all be called {wanted}", digests.len()));
    }
    others.truncate(1);
    others.iter_mut().for_each(|image| wanted.clone_into(&mut image.name));
    images.append(&mut tagged);
    images.append(&mut others);
    Ok(())
}

/// The images of an OCI image layout.
pub(super) fn of_index(bytes: &[u8]) -> Result<Vec<Named>, String> {
    let index: Index = read("index.json", bytes)?;
    let named = index.manifests.into_iter().map(|Descriptor { digest, media_type, annotations }| {
        let Annotations { name, ref_name, other_name, kind } = annotations;
        // The other may be no more than a tag.
        let (whole, tag) = match ref_name {
            Some(name) if name.contains([':', '/']) => (Some(name), None),
            tag => (None, tag.filter(|tag| !tag.is_empty())),
        };
        let digest =
            digest.parse().map_err(|_| "its index.json has a manifest without a digest that larder knows: sha256 or sha512")?;
        Ok(Named { name: name.or(other_name).or(whole).unwrap_or_default(), tag, digest, media_type, kind, is_untagged: false })
    });
    named.collect()
}

/// The images that `docker load` would find.
pub(super) fn of_docker(bytes: &[u8], archive: &Read) -> Result<Vec<Made>, String> {
    read::<Vec<Loaded>>("manifest.json", bytes)?.into_iter().map(|loaded| made(loaded, archive)).collect()
}

fn made(Loaded { config, repo_tags, layers }: Loaded, archive: &Read) -> Result<Made, String> {
    let (config, size) = archive.blob(&config).ok_or_else(|| absent(&config))?;
    let (mut promised, mut described) = (Vec::new(), Vec::new());
    for (place, path) in layers.iter().enumerate() {
        let (digest, size) = archive.blob(path).ok_or_else(|| absent(path))?;
        if matches!(Role::of(path), Role::Layer(_)) {
            promised.push((place, digest.clone()));
        }
        let is_compressed = path.strip_suffix("gz").is_some_and(|path| path.ends_with('.'));
        described.push(descriptor(if is_compressed { COMPRESSED_LAYER_TYPE } else { LAYER_TYPE }, &digest, size));
    }
    Ok(Made {
        manifest: manifest(&config, size, &described)?,
        config: None,
        names: repo_tags.filter(|tags| !tags.is_empty()).unwrap_or_else(|| vec![String::new()]),
        promised: (!promised.is_empty()).then_some(Promised { config, layers: promised }),
    })
}

pub(super) fn absent(path: &str) -> String {
    format!("{:?} is not in it", shown(path))
}

pub(super) fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

/// Of the same config and layers always the same.
pub(super) fn manifest(config: &Digest, size: u64, layers: &[Value]) -> Result<String, String> {
    let config = descriptor(CONFIG_TYPE, config, size);
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers }).to_string();
    if manifest.len() > MAX_MANIFEST { Err("it has an image of more layers than any".into()) } else { Ok(manifest) }
}

/// Whether a file by which images are found is one that is read.
pub(in crate::orders) fn check_small(name: &str, bytes: &[u8]) -> Result<(), String> {
    if bytes.len() as u64 > LARGEST_INDEX {
        return Err(format!("its {name} is larger than {LARGEST_INDEX} bytes"));
    }
    // Each takes many times what it takes here.
    if bytes.split(|byte| *byte == b',').count() > MOST_VALUES {
        return Err(format!("its {name} has more than {MOST_VALUES} values"));
    }
    Ok(())
}

pub(super) fn read<'a, T: Deserialize<'a>>(name: &str, bytes: &'a [u8]) -> Result<T, String> {
    check_small(name, bytes)?;
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => format!("its {name} does not list images"),
        _ => format!("its {name} is no JSON"),
    })
}
