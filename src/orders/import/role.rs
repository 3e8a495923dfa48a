//! What the files of an archive are, as their paths say.

use crate::oci::Digest;

/// What a file of an archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    Small,
    Blob(Digest),
    /// A layer that has no digest for a name, but an ID;
    Layer(String),
    /// and what is said of it.
    Description(String),
    /// The tag of a repository.
    Tag(String, String),
    /// A manifest of a repository.
    Revision(String, Digest),
    Nothing,
}

// === impl Role ===

impl Role {
    pub(super) fn of(path: &str) -> Self {
        if matches!(path, "index.json" | "manifest.json" | "repositories") {
            return Self::Small;
        }
        let parts: Vec<&str> = path.split('/').collect();
        let digest = |algorithm: &str, hex: &str| format!("{algorithm}:{hex}").parse().map_or(Self::Nothing, Self::Blob);
        let registry = parts.windows(3).position(|three| three == ["docker", "registry", "v2"]);
        match (registry.map(|at| &parts[at + 3..]), &parts[..]) {
            (Some(["blobs", algorithm, _, hex, "data"]), _) | (None, ["blobs", algorithm, hex]) => digest(algorithm, hex),
            (Some(["repositories", repository @ .., "_manifests", "tags", tag, "current", "link"]), _) => {
                Self::Tag(repository.join("/"), (*tag).to_owned())
            }
            (Some(["repositories", repository @ .., "_manifests", "revisions", algorithm, hex, "link"]), _) => {
                let digest = format!("{algorithm}:{hex}").parse();
                digest.map_or(Self::Nothing, |digest| Self::Revision(repository.join("/"), digest))
            }
            (None, [id, "layer.tar"]) if is_id(id) => Self::Layer((*id).to_owned()),
            (None, [id, "json"]) if is_id(id) => Self::Description((*id).to_owned()),
            // As podman, skopeo, crane and Docker name layers and configs for `docker load`.
            (None, [name]) => {
                let name = name.strip_prefix("sha256:").unwrap_or(name);
                digest("sha256", [".tar", ".tar.gz", ".json"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name))
            }
            _ => Self::Nothing,
        }
    }
}

/// Whether it is what an older Docker calls a layer: as long as a digest, which it is not.
fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
