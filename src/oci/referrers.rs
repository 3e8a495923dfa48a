//! Referrers: what refers to a manifest by its `subject`, and the lists in which a registry tells of them.
//!
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#listing-referrers>

use std::collections::HashSet;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{BadManifest, Descriptor, Digest, INDEX_TYPE, MAX_MANIFEST, Manifest};

/// A manifest that refers to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrer {
    pub subject: Digest,
    /// As it stands in a list of referrers.
    pub descriptor: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    annotations: Option<Map<String, Value>>,
}

/// What a list has beside what it lists, in bytes at most.
const FRAME: usize = 200;
/// More than refer to any manifest, and fewer than make an image that larder does not read.
const MOST_REFERRERS: usize = 9_000;

// === impl Referrer ===

impl Referrer {
    /// The manifest `digest`, which is these `bytes`, if it refers to another.
    #[must_use]
    pub fn read(digest: &Digest, media_type: Option<&str>, bytes: &[u8]) -> Option<Self> {
        let media_type = Manifest::parse(media_type, bytes).ok()?.media_type;
        let document: Document = serde_json::from_slice(bytes).ok()?;
        let subject = document.subject?.digest.parse().ok()?;
        let artifact_type = document.artifact_type.filter(|named| !named.is_empty());
        let artifact_type = artifact_type.or_else(|| document.config.map(|config| config.media_type));
        let mut descriptor = json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() });
        if let Some(artifact_type) = artifact_type {
            descriptor["artifactType"] = artifact_type.into();
        }
        if let Some(annotations) = document.annotations {
            descriptor["annotations"] = annotations.into();
        }
        Some(Self { subject, descriptor })
    }
}

/// A list of referrers: those of `list`, if it is one, and behind them those of `more` that are not in it, as far as it has room.
/// `None` if all of them are. With it come the digests of those for which there is no room.
#[must_use]
pub fn list_referrers(list: &[u8], more: impl IntoIterator<Item = Value>) -> (Option<String>, Vec<String>) {
    let mut length = list.len();
    let (mut listed, mut left_out) = (listed(list), Vec::new());
    let digest = |descriptor: &Value| descriptor["digest"].as_str().unwrap_or_default().to_owned();
    let mut known: HashSet<_> = listed.iter().map(digest).collect();
    let before = listed.len();
    for descriptor in more {
        if known.insert(digest(&descriptor)) {
            length += descriptor.to_string().len() + 1;
            if length + FRAME > MAX_MANIFEST || listed.len() == MOST_REFERRERS {
                left_out.push(digest(&descriptor));
            } else {
                listed.push(descriptor);
            }
        }
    }
    let longer = listed.len() > before;
    (longer.then(|| json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": listed }).to_string()), left_out)
}

/// What a list of referrers has, as it stands there.
#[must_use]
pub fn listed(list: &[u8]) -> Vec<Value> {
    let mut list: Value = serde_json::from_slice(list).unwrap_or_default();
    list["manifests"].as_array_mut().map(std::mem::take).unwrap_or_default()
}

/// One index of the descriptors of all `pages`, which otherwise is as the first.
///
/// # Errors
/// When a page is no index.
pub fn merge_indexes(pages: &[Bytes]) -> Result<Vec<u8>, BadManifest> {
    let mut merged: Option<Value> = None;
    for page in pages {
        let mut page: Value = serde_json::from_slice(page).map_err(|error| BadManifest::not_json(&error))?;
        let descriptors =
            page.get_mut("manifests").and_then(Value::as_array_mut).map(std::mem::take).ok_or(BadManifest::NoType)?;
        let merged = merged.get_or_insert(page);
        merged["manifests"].as_array_mut().ok_or(BadManifest::NoType)?.extend(descriptors);
    }
    serde_json::to_vec(&merged).map_err(|error| BadManifest::not_json(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn read(manifest: &Value) -> Option<Referrer> {
        let bytes = manifest.to_string().into_bytes();
        Referrer::read(&Digest::sha256(&bytes), None, &bytes)
    }

    #[test]
    fn a_list_has_of_a_referrer_what_is_looked_for() {
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let subject = json!({ "mediaType": manifest_type, "digest": A, "size": 0 });
        let config = json!({ "mediaType": "a/config", "digest": A, "size": 0 });
        let mut manifest = json!({ "mediaType": manifest_type, "config": config, "layers": [], "subject": subject,
                                   "artifactType": "a/signature", "annotations": { "made": "today" } });
        let Referrer { subject, descriptor } = read(&manifest).unwrap();
        assert_eq!(subject.to_string(), A);
        assert_eq!(descriptor["size"], manifest.to_string().len());
        assert_eq!(
            [&descriptor["mediaType"], &descriptor["artifactType"], &descriptor["annotations"]["made"]],
            [manifest_type, "a/signature", "today"]
        );
        manifest["artifactType"] = "".into();
        assert_eq!(read(&manifest).unwrap().descriptor["artifactType"], "a/config", "as the specification has it");
        manifest["subject"] = Value::Null;
        assert_eq!(read(&manifest), None);
    }

    #[test]
    fn a_list_keeps_what_it_has_and_has_nothing_twice() {
        let of = |digest: &str| json!({ "digest": digest, "size": 1 });
        let list = list_referrers(b"", [of("a")]).0.unwrap();
        assert_eq!(list_referrers(list.as_bytes(), [of("a")]), (None, vec![]));
        let longer = list_referrers(list.as_bytes(), [of("b"), of("a"), of("b")]).0.unwrap();
        assert_eq!(listed(longer.as_bytes()), [of("a"), of("b")]);
    }

    #[test]
    fn what_a_list_has_no_room_for_is_told() {
        let of = |digest: String, size: usize| json!({ "digest": digest, "annotations": { "a": "x".repeat(size) } });
        let (list, left_out) = list_referrers(b"", (0..5).map(|n| of(n.to_string(), 1_300_000)));
        assert_eq!(left_out, ["3", "4"]);
        assert!(list.as_ref().is_some_and(|list| list.len() <= MAX_MANIFEST));
        assert_eq!(list_referrers(list.unwrap().as_bytes(), [of("1".into(), 1_300_000)]), (None, vec![]), "it has it");
        let (list, left_out) = list_referrers(b"", (0..MOST_REFERRERS + 2).map(|n| of(n.to_string(), 0)));
        assert_eq!((listed(list.unwrap().as_bytes()).len(), left_out.len()), (MOST_REFERRERS, 2));
    }
}
