//! What is recorded of tags, digests and pins.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::oci::{Digest, Reference, Repository, Tag};

/// What a tag pointed to when the upstream was last asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRecord {
    pub digest: Digest,
    pub checked: Timestamp,
}

/// The upstream has answered for a digest in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// In bytes.
    pub size: u64,
    /// For a manifest: the media type it is served with. `None` for a blob.
    pub media_type: Option<Arc<str>>,
    /// When it did so last. Very long ago if it is not known.
    pub proven: Timestamp,
}

/// A tag or a proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    Tag(Repository, Tag, TagRecord),
    Proof(Repository, Digest, Proof),
}

/// What the operator wants never to be evicted, and by which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub repository: Repository,
    pub reference: Reference,
    /// What the name meant when it was pinned.
    pub digest: Digest,
}

/// How a digest is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Hold {
    Absent,
    /// Until it is evicted.
    Loose,
    /// For good; or it is about to be fetched anew.
    Pinned,
}

/// What has been counted under some name since some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub since: Timestamp,
    pub amount: u64,
}

/// As what a repository holds a digest. One says nothing of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Blob,
    Manifest,
}

// === impl Proof ===

impl Proof {
    /// But for minutes.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        (self.size, &self.media_type) == (other.size, &other.media_type) && self.proven.same_hour(other.proven)
    }

    pub(super) fn kind(&self) -> Kind {
        if self.media_type.is_some() { Kind::Manifest } else { Kind::Blob }
    }
}

// === impl Kind ===

impl Kind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Manifest => "manifest",
        }
    }
}
