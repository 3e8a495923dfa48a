//! Repository names, tags and references, with the grammar of the distribution specification.
//!
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests>

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Digest, InvalidDigest};

/// The path of a repository within its registry: `library/alpine`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

/// The identity of a repository: which registry, and where in it. Every way in leads to the same identity.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// The configured name of the upstream: `docker.io`.
    pub upstream: Arc<str>,
    pub name: RepositoryName,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// What a manifest is asked by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("a repository name is lower-case path components of letters, digits and single separators, 255 characters at most")]
    Repository,
    #[error("a tag is a letter, digit or underscore, then at most 127 of these, dots and dashes")]
    Tag,
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

// === impl RepositoryName ===

impl RepositoryName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for `alpine`, false for `library/alpine`.
    #[must_use]
    pub fn is_single_component(&self) -> bool {
        !self.0.contains('/')
    }
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let legal = text.len() <= 255 && text.as_bytes().split(|byte| *byte == b'/').all(is_component);
        if legal { Ok(Self(text.into())) } else { Err(InvalidName::Repository) }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`: alphanumeric runs with one separator between each two.
fn is_component(mut rest: &[u8]) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    loop {
        let run = rest.iter().take_while(|b| alphanumeric(b)).count();
        if run == 0 {
            return false;
        }
        rest = &rest[run..];
        if rest.is_empty() {
            return true;
        }
        let separator = rest.iter().take_while(|b| !alphanumeric(b)).count();
        let legal = match &rest[..separator] {
            b"." | b"_" | b"__" => true,
            dashes => dashes.iter().all(|b| *b == b'-'),
        };
        if !legal {
            return false;
        }
        rest = &rest[separator..];
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Repository ===

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.upstream, self.name)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Tag ===

impl Tag {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag under which a registry without the referrers API keeps the referrers of `digest`.
    ///
    /// <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#referrers-tag-schema>
    #[must_use]
    pub fn of_referrers(digest: &Digest) -> Self {
        let mut hex = digest.hex();
        hex.truncate(64);
        Self(format!("{}-{hex}", digest.algorithm().name()).into())
    }

    /// What follows where it is such a tag, which is nothing, or one of those that cosign puts beside it: `.sig`, `.att`.
    #[must_use]
    pub fn ending_of_referrers(&self) -> Option<&str> {
        let hex = self.0.strip_prefix("sha256-").or_else(|| self.0.strip_prefix("sha512-"))?;
        let (hex, ending) = hex.split_at_checked(64)?;
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (is_hex && (ending.is_empty() || ending.starts_with('.'))).then_some(ending)
    }
}

impl FromStr for Tag {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = text.as_bytes();
        let legal =
            (1..=128).contains(&bytes.len()) && word(bytes[0]) && bytes[1..].iter().all(|&b| word(b) || b == b'.' || b == b'-');
        if legal { Ok(Self(text.into())) } else { Err(InvalidName::Tag) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Reference ===

impl From<&Reference> for Arc<str> {
    fn from(reference: &Reference) -> Self {
        match reference {
            Reference::Tag(Tag(tag)) => Self::clone(tag),
            Reference::Digest(digest) => (*digest.text()).into(),
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        // No tag has a colon and every digest has one.
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_of_repository_names_is_the_specifications() {
        for name in ["a", "library/alpine", "a/b/c/d", "a.b/c_d/e__f/g--h---i", "0/1", "manifests/blobs"] {
            assert!(name.parse::<RepositoryName>().is_ok(), "{name}");
        }
        let long = "a".repeat(256);
        for name in ["", "A", "a/", "/a", "a//b", "a..b", "-a", "a-", "a___b", "a._b", "a b", "ä", "..", "a/../b", &long] {
            assert!(name.parse::<RepositoryName>().is_err(), "{name}");
        }
    }

    #[test]
    fn the_grammar_of_tags_is_the_specifications() {
        for tag in ["latest", "_", "1.27-alpine", "V1", &"a".repeat(128)] {
            assert!(tag.parse::<Tag>().is_ok(), "{tag}");
        }
        for tag in ["", ".a", "-a", "a/b", "a:b", "a b", &"a".repeat(129)] {
            assert!(tag.parse::<Tag>().is_err(), "{tag}");
        }
    }

    #[test]
    fn the_referrers_tag_is_cut_to_what_a_tag_may_be() {
        let digest: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
        let tag = Tag::of_referrers(&digest);
        assert_eq!(tag.as_str(), format!("sha512-{}", "ab".repeat(32)));
        assert!(tag.as_str().parse::<Tag>().is_ok());
        assert_eq!(tag.ending_of_referrers(), Some(""));
        assert_eq!(format!("{tag}.sig").parse::<Tag>().unwrap().ending_of_referrers(), Some(".sig"));
        for other in ["latest", "sha256-", &format!("{tag}f"), &tag.as_str().replace('a', "x")] {
            assert_eq!(other.parse::<Tag>().unwrap().ending_of_referrers(), None, "{other}");
        }
    }
}
