//! Referrers: what refers to a manifest by its `subject`, and the lists in which a registry tells of them.
//!
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#listing-referrers>

use std::collections::HashSet;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{BadManifest, Descriptor, Digest, INDEX_TYPE, Manifest};

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

/// A list of referrers: those of `list`, if it is one, and behind them those of `more` that are not in it.
#[must_use]
pub fn list_referrers(list: &[u8], more: impl IntoIterator<Item = Referrer>) -> String {
    let mut list: Value = serde_json::from_slice(list).unwrap_or_default();
    let mut listed = list["manifests"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let digest = |descriptor: &Value| descriptor["digest"].as_str().map(str::to_owned);
    let mut known: HashSet<_> = listed.iter().map(digest).collect();
    listed.extend(more.into_iter().map(|referrer| referrer.descriptor).filter(|descriptor| known.insert(digest(descriptor))));
    json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": listed }).to_string()
}

/// The referrers `index` with only the descriptors of `artifact_type`; everything else of them as it was.
///
/// # Errors
/// When `index` is no index.
pub fn filter_referrers(index: &[u8], artifact_type: &str) -> Result<Vec<u8>, BadManifest> {
    let not_json = |error: serde_json::Error| BadManifest::not_json(&error);
    let mut document: Value = serde_json::from_slice(index).map_err(not_json)?;
    let manifests = document.get_mut("manifests").and_then(Value::as_array_mut).ok_or(BadManifest::NoType)?;
    manifests.retain(|descriptor| descriptor["artifactType"] == json!(artifact_type));
    serde_json::to_vec(&document).map_err(not_json)
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
        let of = |digest: &str| Referrer { subject: A.parse().unwrap(), descriptor: json!({ "digest": digest, "size": 1 }) };
        let list = list_referrers(b"", [of("a")]);
        assert_eq!(list_referrers(list.as_bytes(), [of("a")]), list);
        let longer: Value = serde_json::from_str(&list_referrers(list.as_bytes(), [of("b"), of("a")])).unwrap();
        assert_eq!(longer["manifests"], json!([{ "digest": "a", "size": 1 }, { "digest": "b", "size": 1 }]));
    }

    #[test]
    fn referrers_are_filtered_without_touching_the_rest() {
        let index =
            br#"{"schemaVersion":2,"manifests":[{"digest":"a","artifactType":"x/y","annotations":{"k":"v"}},{"digest":"b"}]}"#;
        let filtered: Value = serde_json::from_slice(&filter_referrers(index, "x/y").unwrap()).unwrap();
        assert_eq!(
            filtered,
            json!({"schemaVersion":2,"manifests":[{"digest":"a","artifactType":"x/y","annotations":{"k":"v"}}]})
        );
    }
}
