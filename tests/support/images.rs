//! Images to put into a registry: bytes that look random and are the same in each run, with the
//! manifests that hold them together.

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

use super::registry::Registry;

/// Bytes that no compression shrinks; the same for the same seed, and the shorter begins the longer.
pub fn noise(seed: u64, len: usize) -> Bytes {
    // splitmix64: every seed gives a good stream, 0 and neighbours too.
    let mut state = seed.wrapping_mul(0xA076_1D64_78BD_642F);
    let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
    while bytes.len() < len {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

/// `sha256:…`
pub fn digest_of(bytes: &[u8]) -> String {
    written("sha256", &Sha256::digest(bytes))
}

/// `sha512:…`
pub fn sha512_of(bytes: &[u8]) -> String {
    written("sha512", &Sha512::digest(bytes))
}

fn written(algorithm: &str, hash: &[u8]) -> String {
    let mut digest = format!("{algorithm}:");
    for byte in hash {
        write!(digest, "{byte:02x}").expect("a string takes all");
    }
    digest
}

/// The plan of an image for one platform. Images of two seeds share nothing; [`layer`](Self::layer)
/// is for what they shall share.
#[derive(Clone, Debug)]
pub struct Image {
    seed: u64,
    architecture: &'static str,
    layers: Vec<Bytes>,
    types: &'static MediaTypes,
}

/// The plan of an index with one image for each of two platforms.
#[derive(Clone, Debug)]
pub struct MultiArch {
    images: [Image; 2],
}

/// A blob and the name under which it is served.
#[derive(Clone, Debug)]
pub struct Content {
    pub digest: String,
    pub bytes: Bytes,
}

/// An image as it now lies in a registry.
#[derive(Clone, Debug)]
pub struct PutImage {
    pub repository: String,
    pub media_type: &'static str,
    pub digest: String,
    pub manifest: Bytes,
    pub config: Content,
    pub layers: Vec<Content>,
}

/// An index as it now lies in a registry, with its images.
#[derive(Clone, Debug)]
pub struct PutIndex {
    pub repository: String,
    pub media_type: &'static str,
    pub digest: String,
    pub manifest: Bytes,
    pub images: Vec<PutImage>,
}

#[derive(Debug)]
struct MediaTypes {
    index: &'static str,
    manifest: &'static str,
    config: &'static str,
    layer: &'static str,
}

const OCI: MediaTypes = MediaTypes {
    index: "application/vnd.oci.image.index.v1+json",
    manifest: "application/vnd.oci.image.manifest.v1+json",
    config: "application/vnd.oci.image.config.v1+json",
    layer: "application/vnd.oci.image.layer.v1.tar+gzip",
};

const DOCKER: MediaTypes = MediaTypes {
    index: "application/vnd.docker.distribution.manifest.list.v2+json",
    manifest: "application/vnd.docker.distribution.manifest.v2+json",
    config: "application/vnd.docker.container.image.v1+json",
    layer: "application/vnd.docker.image.rootfs.diff.tar.gzip",
};

// === impl Image ===

impl Image {
    /// An OCI image without layers.
    pub fn new(seed: u64) -> Self {
        Self { seed, architecture: "amd64", layers: Vec::new(), types: &OCI }
    }

    /// Docker's media types instead of OCI's.
    pub fn docker(self) -> Self {
        Self { types: &DOCKER, ..self }
    }

    /// Adds layers of these sizes.
    pub fn layers(mut self, sizes: &[usize]) -> Self {
        for &size in sizes {
            let number = self.layers.len() as u64;
            let layer = noise(self.seed * 1_000 + number, size);
            self.layers.push(layer);
        }
        self
    }

    /// Adds this layer.
    pub fn layer(mut self, bytes: impl Into<Bytes>) -> Self {
        self.layers.push(bytes.into());
        self
    }

    /// Puts config, layers and manifest into the registry and tags the manifest.
    pub fn put(&self, registry: &Registry, repository: &str, tag: &str) -> PutImage {
        let image = self.put_untagged(registry, repository);
        registry.tag(repository, tag, &image.digest);
        image
    }

    pub fn put_untagged(&self, registry: &Registry, repository: &str) -> PutImage {
        let put = |bytes: &Bytes| Content { digest: registry.put_blob(repository, bytes.clone()), bytes: bytes.clone() };
        let layers: Vec<Content> = self.layers.iter().map(put).collect();
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": { "Labels": { "seed": self.seed.to_string() } },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = put(&config.to_string().into());
        let described = |media_type: &str, content: &Content| descriptor(media_type, &content.digest, content.bytes.len());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.types.manifest,
            "config": described(self.types.config, &config),
            "layers": layers.iter().map(|layer| described(self.types.layer, layer)).collect::<Vec<_>>(),
        });
        let manifest = Bytes::from(manifest.to_string());
        let media_type = self.types.manifest;
        PutImage {
            repository: repository.to_owned(),
            media_type,
            digest: registry.put_manifest(repository, None, media_type, manifest.clone()),
            manifest,
            config,
            layers,
        }
    }
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

// === impl MultiArch ===

impl MultiArch {
    /// An OCI index of an image for amd64 and one for arm64, with one small layer each.
    pub fn new(seed: u64) -> Self {
        Self {
            images: ["amd64", "arm64"]
                .map(|architecture| Image { architecture, ..Image::new(seed * 2 + u64::from(architecture == "arm64")) }),
        }
        .layers(&[1_000])
    }

    pub fn docker(self) -> Self {
        Self { images: self.images.map(Image::docker) }
    }

    /// Layers of these sizes in both images, instead of those that they have.
    pub fn layers(self, sizes: &[usize]) -> Self {
        let bare = self.images.map(|image| Image { layers: Vec::new(), ..image });
        Self { images: bare.map(|image| image.layers(sizes)) }
    }

    /// Puts both images and their index into the registry and tags the index.
    pub fn put(&self, registry: &Registry, repository: &str, tag: &str) -> PutIndex {
        let mut images = Vec::new();
        let mut manifests = Vec::new();
        for plan in &self.images {
            let image = plan.put_untagged(registry, repository);
            let mut manifest = descriptor(image.media_type, &image.digest, image.manifest.len());
            manifest["platform"] = json!({ "architecture": plan.architecture, "os": "linux" });
            manifests.push(manifest);
            images.push(image);
        }
        let media_type = self.images[0].types.index;
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
        let manifest = Bytes::from(index.to_string());
        PutIndex {
            repository: repository.to_owned(),
            media_type,
            digest: registry.put_manifest(repository, Some(tag), media_type, manifest.clone()),
            manifest,
            images,
        }
    }
}

// === impl PutImage ===

impl PutImage {
    /// The path of the manifest by digest.
    pub fn manifest_path(&self) -> String {
        format!("/v2/{}/manifests/{}", self.repository, self.digest)
    }

    /// The path of the manifest by tag.
    pub fn tag_path(&self, tag: &str) -> String {
        format!("/v2/{}/manifests/{tag}", self.repository)
    }

    /// The path of a layer or of the config.
    pub fn blob_path(&self, content: &Content) -> String {
        format!("/v2/{}/blobs/{}", self.repository, content.digest)
    }

    /// Config and layers: all that a pull fetches beside the manifest.
    pub fn blobs(&self) -> impl Iterator<Item = &Content> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

// === impl PutIndex ===

impl PutIndex {
    /// The path of the index by digest.
    pub fn manifest_path(&self) -> String {
        format!("/v2/{}/manifests/{}", self.repository, self.digest)
    }

    /// The path of the index by tag.
    pub fn tag_path(&self, tag: &str) -> String {
        format!("/v2/{}/manifests/{tag}", self.repository)
    }
}
