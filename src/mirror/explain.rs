//! What would be done if an image were asked for now, and why, without asking anyone.

use std::time::Duration;

use crate::oci::{Digest, Reference, Tag};
use crate::store::{Kind, TagRecord};

use super::freshness::Age;
use super::{Mirror, Origin, Thing};

/// How an image would be served now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// What it is, as far as that is known.
    pub digest: Option<Digest>,
    pub from: ServedFrom,
    /// Why, in a sentence.
    pub why: String,
    /// What the upstream would be asked for its manifest.
    pub question: Option<Question>,
}

/// From where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedFrom {
    Cache,
    /// The upstream is asked whether the cache may; where it cannot be asked, the cache serves all the same.
    CacheOnceAsked,
    Upstream,
    /// It is refused.
    Nowhere,
}

/// What is asked of an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Free where pulls are counted.
    Head,
    /// Counts as a pull.
    Get,
}

// === impl Mirror ===

impl Mirror {
    /// Tells what would be done if this were asked for now.
    #[must_use]
    pub fn outlook(&self, origin: &Origin, reference: &Reference) -> Outlook {
        match reference {
            Reference::Digest(digest) => self.outlook_of_digest(origin, digest),
            Reference::Tag(tag) => match self.0.store.tag(&origin.repository, tag) {
                Some(record) => self.outlook_of_tag(origin, tag, &record),
                None => self.absent(
                    origin,
                    Thing::Tag(tag.clone()),
                    None,
                    "the tag was never asked for, or its image has left the cache",
                ),
            },
        }
    }

    fn outlook_of_tag(&self, origin: &Origin, tag: &Tag, record: &TagRecord) -> Outlook {
        let digest = record.digest.clone();
        let ago = humantime::format_duration(Duration::from_secs(self.0.clock.now().since(record.checked).as_secs()));
        let is_here = self.0.store.size(&digest).is_some() && self.old_proof(origin, &digest, Kind::Manifest).is_some();
        if !is_here {
            return self.absent(origin, Thing::Tag(tag.clone()), Some(digest), "what the tag points to is not in the cache");
        }
        let cached = |why| Outlook { digest: Some(digest.clone()), from: ServedFrom::Cache, why, question: None };
        if origin.is_offline() {
            return cached(format!("larder is offline; the tag was last asked for {ago} ago, and does not expire"));
        }
        if self.age(origin, tag, record) != Age::Old {
            return cached(format!("the upstream was asked for the tag {ago} ago, which is fresh"));
        }
        let why = format!(
            "the upstream was last asked for the tag {ago} ago, which is too long: it is asked whether the tag has moved"
        );
        Outlook { digest: Some(digest), from: ServedFrom::CacheOnceAsked, why, question: Some(Question::Head) }
    }

    fn outlook_of_digest(&self, origin: &Origin, digest: &Digest) -> Outlook {
        let outlook = |from, why: &str, question| Outlook { digest: Some(digest.clone()), from, why: why.into(), question };
        if self.0.store.size(digest).is_none() {
            return self.absent(origin, Thing::Manifest(digest.clone()), Some(digest.clone()), "it is not in the cache");
        }
        if self.proof(origin, digest, Kind::Manifest).is_some() {
            return outlook(ServedFrom::Cache, "the upstream has said that this repository holds it", None);
        }
        if origin.is_offline() {
            return outlook(
                ServedFrom::Nowhere,
                "the bytes are here by another repository, and larder is offline: it cannot ask whether this one has them",
                None,
            );
        }
        let why =
            "the bytes are here, but the upstream has not said, or not lately, that this repository holds them: it is asked";
        outlook(ServedFrom::CacheOnceAsked, why, Some(Question::Head))
    }

    fn absent(&self, origin: &Origin, thing: Thing, digest: Option<Digest>, why: &str) -> Outlook {
        if origin.is_offline() {
            return Outlook { digest, from: ServedFrom::Nowhere, why: format!("{why}, and larder is offline"), question: None };
        }
        match self.check_missing(origin, thing) {
            Err(said) => {
                Outlook { digest, from: ServedFrom::Nowhere, why: format!("the upstream has just said: {said}"), question: None }
            }
            Ok(()) => Outlook { digest, from: ServedFrom::Upstream, why: why.into(), question: Some(Question::Get) },
        }
    }
}
