//! Which images an archive has, and what they are called there.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::oci::{Digest, MAX_MANIFEST};

use super::super::archive::shown;
use super::role::Role;
use super::{LARGEST_INDEX, Read};

/// An image that an archive says it has.
pub(super) struct Named {
    pub(super) name: String,
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
    pub(super) fn key(&self) -> (String, Digest) {
        self.key_of(&self.digest)
    }

    /// What says of one of its manifests where it belongs.
    pub(super) fn key_of(&self, digest: &Digest) -> (String, Digest) {
        let name = self.name.split_once('@').map_or(self.name.as_str(), |(name, _)| name);
        let repository = match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository,
            _ => name,
        };
        (repository.to_owned(), digest.clone())
    }
}

/// The images of an OCI image layout.
pub(super) fn of_index(bytes: &[u8]) -> Result<Vec<Named>, String> {
    let index: Index = read("index.json", bytes)?;
    let named = index.manifests.into_iter().map(|Descriptor { digest, media_type, annotations }| {
        let Annotations { name, ref_name, other_name, kind } = annotations;
        // The other may be no more than a tag.
        let whole = ref_name.filter(|name| name.contains([':', '/']));
        let digest =
            digest.parse().map_err(|_| "its index.json has a manifest without a digest that larder knows: sha256 or sha512")?;
        Ok(Named { name: name.or(other_name).or(whole).unwrap_or_default(), digest, media_type, kind, is_untagged: false })
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
