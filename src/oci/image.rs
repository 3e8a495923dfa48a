//! Images as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{InvalidName, Reference, Repository, RepositoryName};

/// An image as for `docker pull`: `nginx`, `nginx:1.27`, `ghcr.io/org/app@sha256:…`. Which registry is meant where none is
/// named is not said here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName {
    pub registry: Option<String>,
    pub repository: RepositoryName,
    pub reference: Reference,
}

/// Why a text is no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no image such as nginx:1.27 or ghcr.io/org/app: {why}")]
pub struct InvalidImage {
    text: String,
    why: InvalidName,
}

// === impl ImageName ===

impl ImageName {
    fn parse(text: &str) -> Result<Self, InvalidName> {
        let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
        // A colon before the last slash belongs to the registry.
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        let tag: Reference = Reference::Tag(tag.unwrap_or("latest").parse()?);
        // Of a tag and a digest, the digest counts.
        let reference = digest.map_or(Ok(tag), |digest| digest.parse().map(Reference::Digest).map_err(InvalidName::Digest))?;
        let (registry, repository) = match name.split_once('/') {
            Some((registry, repository)) if is_registry(registry) => (Some(registry.to_owned()), repository),
            _ => (None, name),
        };
        Ok(Self { registry, repository: repository.parse()?, reference })
    }
}

/// As Docker tells a registry from the first part of a path.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(|c: char| c == '.' || c == ':' || c.is_ascii_uppercase())
}

impl FromStr for ImageName {
    type Err = InvalidImage;

    fn from_str(text: &str) -> Result<Self, InvalidImage> {
        Self::parse(text).map_err(|why| InvalidImage { text: text.into(), why })
    }
}

impl TryFrom<String> for ImageName {
    type Error = InvalidImage;

    fn try_from(text: String) -> Result<Self, InvalidImage> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(image: ImageName) -> Self {
        image.to_string()
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        write!(f, "{}{}", self.repository, self.reference.suffix())
    }
}

// === impl Repository ===

impl Repository {
    /// The whole name of one of its images: `docker.io/library/nginx:1.27`.
    #[must_use]
    pub fn image(&self, reference: &Reference) -> String {
        format!("{self}{}", reference.suffix())
    }
}

// === impl Reference ===

impl Reference {
    /// As it stands after the name of a repository.
    fn suffix(&self) -> String {
        match self {
            Self::Tag(tag) => format!(":{tag}"),
            Self::Digest(digest) => format!("@{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_name_means_what_it_means_to_docker() {
        for (text, registry, repository, reference) in [
            ("nginx", None, "nginx", "latest"),
            ("nginx:1.27", None, "nginx", "1.27"),
            ("library/nginx", None, "library/nginx", "latest"),
            ("docker.io/nginx:1.27-alpine", Some("docker.io"), "nginx", "1.27-alpine"),
            ("ghcr.io/o/x/y:latest", Some("ghcr.io"), "o/x/y", "latest"),
            ("registry.corp:5000/x", Some("registry.corp:5000"), "x", "latest"),
            ("[::1]:5000/x:v1", Some("[::1]:5000"), "x", "v1"),
            ("localhost/x", Some("localhost"), "x", "latest"),
            ("Host/x", Some("Host"), "x", "latest"),
            ("org/x", None, "org/x", "latest"),
            (&format!("nginx@{DIGEST}"), None, "nginx", DIGEST),
            (&format!("quay.io/o/x:v1@{DIGEST}"), Some("quay.io"), "o/x", DIGEST),
        ] {
            let image: ImageName = text.parse().unwrap();
            assert_eq!(image.registry.as_deref(), registry, "{text}");
            assert_eq!((image.repository.as_str(), image.reference.to_string().as_str()), (repository, reference), "{text}");
            assert_eq!(image.to_string().parse::<ImageName>().unwrap(), image);
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for text in
            ["", ":1", "nginx:", "Nginx", "ghcr.io/", "ghcr.io/O/x", "a b", "nginx@sha256:abc", "nginx:.x", "a//b", "http://x/y"]
        {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
    }
}
