//! Which images an archive has, and what they are called there.

use serde::Deserialize;

use crate::oci::{Digest, MAX_MANIFEST};

use super::super::archive::shown;
use super::{LARGEST_INDEX, Read, Role};

/// An image that an archive says it has.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) digest: Digest,
    pub(super) media_type: Option<String>,
}

/// A manifest that is made for an image that has none, and the names of the image.
pub(super) struct Made {
    pub(super) manifest: String,
    pub(super) names: Vec<String>,
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
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// Values in one of these files. The names of ten thousand images and their layers are not as many.
const MOST_VALUES: usize = 300_000;

/// The images of an OCI image layout.
pub(super) fn of_index(bytes: &[u8]) -> Result<Vec<Named>, String> {
    let index: Index = read("index.json", bytes)?;
    let named = index.manifests.into_iter().map(|Descriptor { digest, media_type, annotations }| {
        let Annotations { name, ref_name } = annotations;
        // The other may be no more than a tag.
        let whole = ref_name.filter(|name| name.contains([':', '/']));
        let digest = digest.parse().map_err(|_| "its index.json has a manifest without a digest")?;
        Ok(Named { name: name.or(whole).unwrap_or_default(), digest, media_type })
    });
    named.collect()
}

/// The images that `docker load` would find.
pub(super) fn of_docker(bytes: &[u8], archive: &Read) -> Result<Vec<Made>, String> {
    let described = |path: &str, media_type: &str| {
        let absent = || format!("{:?} is not in it", shown(path));
        let Role::Blob(digest) = Role::of(path) else { return Err(absent()) };
        let size = archive.files.get(&digest).ok_or_else(absent)?;
        Ok(serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size }))
    };
    let made = read::<Vec<Loaded>>("manifest.json", bytes)?.into_iter().map(|Loaded { config, repo_tags, layers }| {
        let config = described(&config, CONFIG_TYPE)?;
        let layers = layers.iter().map(|layer| described(layer, LAYER_TYPE)).collect::<Result<Vec<_>, String>>()?;
        let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers });
        let manifest = manifest.to_string();
        if manifest.len() > MAX_MANIFEST {
            return Err("its manifest.json has an image of more layers than any".into());
        }
        let names = repo_tags.filter(|tags| !tags.is_empty()).unwrap_or_else(|| vec![String::new()]);
        Ok(Made { manifest, names })
    });
    made.collect()
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

fn read<'a, T: Deserialize<'a>>(name: &str, bytes: &'a [u8]) -> Result<T, String> {
    check_small(name, bytes)?;
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => format!("its {name} does not list images"),
        _ => format!("its {name} is no JSON"),
    })
}
