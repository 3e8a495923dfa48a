//! Manifests that are asked for often, in memory.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use hashbrown::HashMap;
use http::HeaderMap;
use tokio::sync::OnceCell;

use crate::oci::Digest;

/// The bytes of a manifest, as they were verified.
#[derive(Clone)]
pub(super) struct Hot {
    pub(super) bytes: Bytes,
    pub(super) told: Arc<Told>,
}

/// What follows from the same bytes each time, found by whoever needs it first.
#[derive(Debug, Default)]
pub struct Told {
    /// What is told with them in every answer.
    pub headers: OnceLock<HeaderMap>,
    /// What is served in the place of a list to who knows no lists.
    pub(super) default_child: OnceCell<Option<Digest>>,
}

/// What is hot, up to a number of bytes.
pub(super) struct HotManifests {
    most: usize,
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    by_digest: HashMap<Digest, Place>,
    bytes: usize,
}

struct Place {
    hot: Hot,
    /// It was asked for since room was made last.
    asked: bool,
}

// === impl HotManifests ===

impl HotManifests {
    pub(super) fn new(most: usize) -> Self {
        Self { most, shelf: Mutex::default() }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Hot> {
        let mut shelf = self.lock();
        let place = shelf.by_digest.get_mut(digest)?;
        place.asked = true;
        Some(place.hot.clone())
    }

    pub(super) fn put(&self, digest: &Digest, hot: Hot) {
        let weight = hot.weight();
        if weight > self.most {
            return;
        }
        let mut shelf = self.lock();
        shelf.remove(digest);
        while shelf.bytes + weight > self.most {
            shelf.make_room(self.most / 4 + weight);
        }
        shelf.bytes += weight;
        shelf.by_digest.insert(digest.clone(), Place { hot, asked: false });
    }

    pub(super) fn forget(&self, digest: &Digest) {
        self.lock().remove(digest);
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Shelf ===

impl Shelf {
    fn remove(&mut self, digest: &Digest) {
        if let Some(place) = self.by_digest.remove(digest) {
            self.bytes -= place.hot.weight();
        }
    }

    /// Lets go up to so many bytes of what nobody has asked for since this was last done; at the next time, of what nobody has asked
    /// for since now.
    fn make_room(&mut self, bytes: usize) {
        let mut gone = 0;
        self.by_digest.retain(|_, place| {
            let stays = std::mem::take(&mut place.asked) || gone >= bytes;
            gone += if stays { 0 } else { place.hot.weight() };
            stays
        });
        self.bytes -= gone;
    }
}

// === impl Hot ===

impl Hot {
    /// About what it takes of the memory, in bytes.
    fn weight(&self) -> usize {
        /// Of what is told with it.
        const TOLD: usize = 2 << 10;
        self.bytes.len() + TOLD
    }
}

impl From<Bytes> for Hot {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, told: Arc::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(hot: &HotManifests, n: usize) -> Digest {
        let bytes = Bytes::from(n.to_le_bytes().to_vec());
        let digest = Digest::sha256(&bytes);
        hot.put(&digest, bytes.into());
        digest
    }

    #[test]
    fn what_is_asked_for_stays_among_many_that_are_not() {
        let one = Hot::from(Bytes::from_static(&[0; 8])).weight();
        let hot = HotManifests::new(100 * one);
        let asked = put(&hot, 0);
        for n in 1..1000 {
            let digest = put(&hot, n);
            assert!(hot.lock().bytes <= 100 * one && hot.lock().by_digest.contains_key(&digest));
            assert_eq!(hot.get(&asked).unwrap().bytes, 0_usize.to_le_bytes().to_vec());
        }
        assert!(hot.lock().by_digest.len() > 50);
    }

    #[test]
    fn where_all_are_asked_for_there_is_room_for_one_more() {
        let one = Hot::from(Bytes::from_static(&[0; 8])).weight();
        let hot = HotManifests::new(100 * one);
        let digests: Vec<Digest> = (0..100).map(|n| put(&hot, n)).collect();
        assert!(digests.iter().all(|digest| hot.get(digest).is_some()));
        assert!(hot.get(&put(&hot, 100)).is_some());
        assert_eq!(digests.iter().filter(|digest| hot.get(digest).is_some()).count(), 74);
    }

    #[test]
    fn what_is_forgotten_or_too_large_takes_no_room() {
        let hot = HotManifests::new(8 << 10);
        let digest = put(&hot, 1);
        assert_eq!(put(&hot, 1), digest);
        hot.forget(&digest);
        hot.put(&digest, Bytes::from(vec![0; 8 << 10]).into());
        let shelf = hot.lock();
        assert!(shelf.by_digest.is_empty() && shelf.bytes == 0);
    }
}
