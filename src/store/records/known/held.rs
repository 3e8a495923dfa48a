//! Proofs in little room: there may be millions.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::clock::{Seconds, Timestamp};
use crate::oci::Digest;

use super::super::super::slots::Keyed;
use super::{Kind, Proof};

/// A digest, and who holds it, by repository and kind. Nobody, if it is to be forgotten.
pub(super) struct Proven {
    pub(super) digest: Digest,
    pub(super) by: SmallVec<[Held; 1]>,
}

/// A proof, as small as it can be: there may be millions.
pub(super) struct Held {
    size: u64,
    /// Most digests are blobs.
    media_type: Option<Box<MediaType>>,
    proven: Seconds,
    /// The number of the repository.
    pub(super) by: u32,
}

struct MediaType(Arc<str>);

// === impl Proven ===

impl Keyed for Proven {
    fn digest(&self) -> &Digest {
        &self.digest
    }
}

// === impl Held ===

impl Held {
    pub(super) fn of(by: u32, proof: Proof) -> Self {
        let Proof { size, media_type, proven } = proof;
        let media_type = media_type.map(|media_type| Box::new(MediaType(media_type)));
        Self { size, media_type, proven: Seconds::within(proven), by }
    }

    pub(super) fn proof(&self) -> Proof {
        let media_type = self.media_type.as_ref().map(|media_type| Arc::clone(&media_type.0));
        Proof { size: self.size, media_type, proven: self.proven.timestamp() }
    }

    pub(super) fn proven(&self) -> Timestamp {
        self.proven.timestamp()
    }

    pub(super) fn kind(&self) -> Kind {
        if self.media_type.is_some() { Kind::Manifest } else { Kind::Blob }
    }

    /// Of two that hold a digest, none have the same.
    pub(super) fn key(&self) -> (u32, Kind) {
        (self.by, self.kind())
    }
}

/// Where a proof is, or where it belongs.
pub(super) fn find(held: &[Held], id: u32, kind: Kind) -> Result<usize, usize> {
    held.binary_search_by_key(&(id, kind), Held::key)
}
