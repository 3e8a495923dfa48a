//! Manifests: just enough of their JSON to know their type and what they name. Their bytes are never changed.

use serde::Deserialize;

use super::{Digest, Platform, keys};

/// The largest manifest that is fetched, in bytes. The specification asks for 4 MiB at least; clients stop there.
pub const MAX_MANIFEST: usize = 4 << 20;

pub const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST_TYPE: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const SCHEMA_1_TYPE: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const ARTIFACT_TYPE: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// A digest of any algorithm is shorter.
const LONGEST_SHOWN: usize = 150;

/// What larder accepts from an upstream: every current media type, so that one answer fits all clients. Schema 1 is left
/// out, or an upstream would convert to it.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.artifact.manifest.v1+json, */*";

/// A manifest or index as it was verified.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The media type it is served with; no parameters, no white space.
    pub media_type: String,
    /// What it names, without what is to be had elsewhere (`urls`).
    pub names: Vec<Digest>,
    /// For an index: the manifests it holds, in order.
    pub children: Vec<Descriptor>,
    /// For an image: what says how to run it, and for what it is.
    pub config: Option<Digest>,
    /// What it needs and larder cannot have: the digest of a part, which is of an algorithm that larder does not know, or is none.
    pub strange: Option<String>,
}

/// <https://github.com/opencontainers/image-spec/blob/main/descriptor.md>
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    urls: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadManifest {
    #[error("it is no JSON object: {0}")]
    NotJson(String),
    #[error("it is sent as {header} but says that it is {body}")]
    TypeConflict { header: String, body: String },
    #[error("it is manifests of two kinds at once")]
    TwoKinds,
    /// Says how.
    #[error("{0}")]
    TwoReadings(String),
    #[error("its media type cannot be told")]
    NoType,
    #[error("it is too long")]
    TooLong,
    #[error("it has nothing of what its type promises")]
    Empty,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    /// Those of Docker's schema 1.
    fs_layers: Option<Vec<FsLayer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FsLayer {
    blob_sum: String,
}

// === impl BadManifest ===

impl BadManifest {
    /// What is wrong may quote what is there, which is the upstream's and may be long.
    pub(super) fn not_json(error: &serde_json::Error) -> Self {
        Self::NotJson(shown(error))
    }
}

fn shown(error: &serde_json::Error) -> String {
    error.to_string().chars().filter(|c| !c.is_control()).take(200).collect()
}

// === impl Manifest ===

impl Manifest {
    /// Reads `bytes` that an upstream sent with `content_type`. A vendor's type that larder does not know passes.
    ///
    /// # Errors
    /// What is no manifest (a login page, an error under a manifest's type), or claims to be two things at once, which different clients would read
    /// differently (CVE-2021-41190).
    pub fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, BadManifest> {
        let document: Document = serde_json::from_slice(bytes).map_err(|error| BadManifest::not_json(&error))?;
        keys::check(bytes).map_err(|error| BadManifest::TwoReadings(shown(&error)))?;
        let of_image = document.layers.is_some() || document.config.is_some();
        let kinds = [document.manifests.is_some(), of_image, document.fs_layers.is_some()];
        if kinds.into_iter().filter(|is_one| *is_one).count() > 1 {
            return Err(BadManifest::TwoKinds);
        }
        let media_type = document.media_type(content_type)?;
        let is_empty = match &*media_type {
            INDEX_TYPE | DOCKER_LIST_TYPE => document.manifests.is_none(),
            MANIFEST_TYPE | DOCKER_MANIFEST_TYPE => document.config.is_none() && document.layers.is_none(),
            _ => false,
        };
        if is_empty {
            return Err(BadManifest::Empty);
        }
        let children = document.manifests.unwrap_or_default();
        let parts = document.config.iter().chain(document.layers.iter().flatten()).chain(document.blobs.iter().flatten());
        let parts = parts.filter(|descriptor| descriptor.urls.is_empty()).map(|descriptor| &descriptor.digest);
        let parts = parts.chain(document.fs_layers.iter().flatten().map(|layer| &layer.blob_sum));
        let is_strange = |digest: &&String| digest.parse::<Digest>().is_err();
        let strange = parts.clone().find(is_strange).map(|digest| digest.chars().take(LONGEST_SHOWN).collect());
        let children_here = children.iter().filter(|child| child.urls.is_empty()).map(|child| &child.digest);
        let names = children_here.chain(parts).filter_map(|digest| digest.parse().ok()).collect();
        let config = document.config.and_then(|config| config.digest.parse().ok());
        Ok(Self { media_type, names, children, config, strange })
    }

    /// The child that a client gets that does not know lists: see [`is_docker_list`].
    #[must_use]
    pub fn default_child(&self) -> Option<Digest> {
        self.children
            .iter()
            .find(|child| child.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == "amd64"))
            .and_then(|child| child.digest.parse().ok())
    }
}

/// Docker's lists were once served by tag to clients that know only images: they get the image for linux/amd64.
#[must_use]
pub fn is_docker_list(media_type: &str) -> bool {
    media_type == DOCKER_LIST_TYPE
}

impl Document {
    fn media_type(&self, content_type: Option<&str>) -> Result<String, BadManifest> {
        let header = content_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        // Old and careless registries send these for anything.
        let header = header.filter(|value| {
            !matches!(value.as_str(), "" | "text/plain" | "application/octet-stream" | "application/json" | "binary/octet-stream")
        });
        match (header, &self.media_type) {
            (Some(header), Some(body)) if header != *body => {
                let shown = |text: &str| if is_token(text) { text.to_owned() } else { "no media type at all".into() };
                Err(BadManifest::TypeConflict { header: shown(&header), body: shown(body) })
            }
            (Some(header), _) if is_json(&header) => Ok(header),
            (None, Some(body)) if is_json(body) => Ok(body.clone()),
            (None, None) if self.manifests.is_some() => Ok(INDEX_TYPE.into()),
            (None, None) if self.config.is_some() || self.layers.is_some() => Ok(MANIFEST_TYPE.into()),
            (None, None) if self.fs_layers.is_some() => Ok(SCHEMA_1_TYPE.into()),
            _ => Err(BadManifest::NoType),
        }
    }
}

/// A manifest says itself what it is, and so could anyone who has it served. As what it is served, a browser takes for no page.
fn is_json(media_type: &str) -> bool {
    let kind = media_type.strip_prefix("application/").unwrap_or_default();
    let is_json = kind == "json" || ["+json", "+prettyjws"].iter().any(|suffix| kind.ends_with(suffix));
    is_json && is_token(media_type) && !media_type.contains([';', ','])
}

/// Fit for a header and for a field of the records: visible ASCII without spaces.
fn is_token(media_type: &str) -> bool {
    media_type.len() <= 255 && media_type.contains('/') && media_type.bytes().all(|b| b.is_ascii_graphic())
}

/// True for the types under which manifests travel, so that a blob's type is not taken for one.
#[must_use]
pub fn is_manifest_type(media_type: &str) -> bool {
    matches!(media_type, INDEX_TYPE | MANIFEST_TYPE | DOCKER_LIST_TYPE | DOCKER_MANIFEST_TYPE | ARTIFACT_TYPE)
        || media_type.starts_with("application/vnd.docker.distribution.manifest.v1+")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const A: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn image() -> String {
        json!({ "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": { "digest": A, "size": 0 },
                "layers": [{ "digest": A, "size": 0, "urls": ["http://elsewhere.example/layer"] }] })
        .to_string()
    }

    #[test]
    fn a_manifest_names_what_the_registry_holds_for_it() {
        let manifest =
            Manifest::parse(Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"), image().as_bytes()).unwrap();
        assert_eq!(manifest.media_type, MANIFEST_TYPE);
        assert_eq!(manifest.names.len(), 1, "a foreign layer is not the registry's");
    }

    #[test]
    fn a_manifest_of_schema_1_names_its_layers() {
        let manifest = format!(r#"{{"schemaVersion":1,"fsLayers":[{{"blobSum":"{A}"}},{{"blobSum":"{A}"}}]}}"#);
        let manifest = Manifest::parse(None, manifest.as_bytes()).unwrap();
        assert_eq!((manifest.media_type.as_str(), manifest.names.len(), manifest.strange), (SCHEMA_1_TYPE, 2, None));
        assert!(is_manifest_type(SCHEMA_1_TYPE));
    }

    #[test]
    fn the_type_is_found_where_the_header_is_careless() {
        for header in [None, Some("text/plain; charset=utf-8"), Some("application/octet-stream")] {
            assert_eq!(Manifest::parse(header, image().as_bytes()).unwrap().media_type, MANIFEST_TYPE);
        }
        assert_eq!(Manifest::parse(None, br#"{"manifests":[]}"#).unwrap().media_type, INDEX_TYPE);
        assert_eq!(Manifest::parse(Some("application/vnd.x+json"), br#"{"x":1}"#).unwrap().media_type, "application/vnd.x+json");
    }

    #[test]
    fn what_different_clients_would_read_differently_is_refused() {
        let header = Some(INDEX_TYPE);
        assert!(matches!(Manifest::parse(header, image().as_bytes()), Err(BadManifest::TypeConflict { .. })));
        for two in [
            r#"{"manifests":[],"layers":[]}"#,
            r#"{"manifests":[],"fsLayers":[]}"#,
            r#"{"config":null,"layers":[],"fsLayers":[]}"#,
        ] {
            assert_eq!(Manifest::parse(header, two.as_bytes()).unwrap_err(), BadManifest::TwoKinds, "{two}");
        }
        assert!(matches!(Manifest::parse(Some("text/html"), b"<html>"), Err(BadManifest::NotJson(_))));
        assert_eq!(Manifest::parse(Some("text/html"), b"{}").unwrap_err(), BadManifest::NoType);
        for page in [
            "text/html",
            "application/xhtml+xml",
            "image/svg+xml",
            "text/html;a=application/x+json",
            "application/json,text/html",
        ] {
            for header in [None, Some("application/json"), Some(page)] {
                let manifest = format!(r#"{{"mediaType":"{page}","config":{{}}}}"#);
                assert!(Manifest::parse(header, manifest.as_bytes()).is_err(), "{header:?} {page}");
            }
        }
        for header in [INDEX_TYPE, MANIFEST_TYPE, DOCKER_LIST_TYPE, DOCKER_MANIFEST_TYPE] {
            assert_eq!(Manifest::parse(Some(header), br#"{"errors":[]}"#).unwrap_err(), BadManifest::Empty, "{header}");
        }
    }

    #[test]
    fn what_different_clients_would_read_in_different_keys_is_refused() {
        let layer = format!(r#"{{"mediaType":"a/b","digest":"{A}","size":0}}"#);
        let image = |keys: &str| format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","layers":[{layer}]{keys}}}"#);
        for keys in ["", r#","Custom":1,"custom":2,"custom":3"#, r#","annotations":{"Layers":"x","layers":"y","layers":"z"}"#] {
            assert!(Manifest::parse(None, image(keys).as_bytes()).is_ok(), "{keys}");
        }
        for keys in [
            r#","layers":[]"#,
            r#","Layers":[]"#,
            r#","LAYERS":null"#,
            r#","layer\u0073":[]"#,
            ",\"layer\u{17f}\":[]",
            r#","layer\u017f":[]"#,
            r#","Config":{}"#,
            r#","Manifests":[]"#,
            r#","MediaType":"x/y""#,
            r#","SchemaVersion":1"#,
            r#","schemaVersion":1"#,
            r#","subject":{"Digest":"x"}"#,
            r#","config":{"digest":"x","Size":1}"#,
            r#","config":{"digest":"x","platform":{"os":"a","OS":"b"}}"#,
            r#","blobs":[{"digest":"x"},{"digest":"x","size":1,"size":2}]"#,
        ] {
            let read = Manifest::parse(None, image(keys).as_bytes());
            assert!(matches!(read, Err(BadManifest::TwoReadings(_) | BadManifest::NotJson(_))), "{keys}: {read:?}");
        }
        let other = Manifest::parse(None, image(r#","Layers":[]"#).as_bytes()).unwrap_err().to_string();
        assert!(other.starts_with(r#"its key "Layers" is "layers" to some clients and not to others"#), "{other}");
    }
}
