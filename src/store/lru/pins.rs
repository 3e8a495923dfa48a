//! What is not evicted: what is pinned, and all that it names; and what orders need just now.

use std::collections::HashSet;

use crate::clock::Timestamp;
use crate::oci::Digest;

use super::super::care::{Extent, Leaving};
use super::entries::{NONE, Place};
use super::{AGAIN, Lru, MOST_NAMES, charge};

/// What is known of one blob of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// In bytes.
    pub size: u64,
    pub used: Timestamp,
    pub pinned: bool,
    /// An order needs it just now.
    pub held: bool,
    /// What it names, if it is a manifest.
    pub names: Vec<Digest>,
}

// === impl Lru ===

impl Lru {
    /// Bytes of what is not evicted.
    pub(in crate::store) fn pinned_bytes(&self) -> u64 {
        self.entries.pinned.bytes
    }

    /// Whether a digest is pinned, in the cache or not.
    pub(in crate::store) fn is_pinned(&self, digest: &Digest) -> bool {
        self.entries.find(digest).is_some_and(|slot| self.entries.at(slot).pins > 0)
    }

    /// Keeps a digest from eviction, with all that it names, as long as it is pinned once more than unpinned. It need not be in
    /// the cache yet.
    pub(in crate::store) fn pin(&mut self, digest: &Digest) {
        let slot = self.entries.slot(digest);
        self.pin_slots(vec![slot]);
    }

    /// Takes back what [`Lru::pin`] did, once.
    pub(in crate::store) fn unpin(&mut self, digest: &Digest) {
        if let Some(slot) = self.entries.find(digest) {
            self.unpin_slots(vec![slot]);
            self.bound_protected();
        }
    }

    /// Keeps a digest from eviction, and no more than it, as long as it is held once more than let go. It need not be in the cache
    /// yet.
    pub(in crate::store) fn hold(&mut self, digest: &Digest) {
        let slot = self.entries.slot(digest);
        self.entries.at_mut(slot).holds += 1;
        self.put_in_place(slot);
    }

    /// Takes back what [`Lru::hold`] did, once.
    pub(in crate::store) fn let_go(&mut self, digest: &Digest) {
        if let Some(slot) = self.entries.find(digest) {
            let entry = self.entries.at_mut(slot);
            entry.holds = entry.holds.saturating_sub(1);
            self.put_in_place(slot);
            self.entries.forget_if_unused(slot);
            self.bound_protected();
        }
    }

    /// How deep in an image it stands: what names others is not so deep as what does not.
    pub(in crate::store) fn depth(&self, digest: &Digest) -> u8 {
        match self.entries.find(digest) {
            Some(slot) if !self.entries.at(slot).names().is_empty() => u8::from(self.is_named(digest)),
            _ => 2,
        }
    }

    /// Moves an entry that is kept to those that are, and one that is not any more to those that are not.
    fn put_in_place(&mut self, slot: u32) {
        let entry = self.entries.at(slot);
        if entry.place == Place::Absent || (entry.place == Place::Pinned) == entry.is_kept() {
            return;
        }
        let place = if entry.used().since(entry.first_used()) >= AGAIN { Place::Again } else { Place::Once };
        self.entries.unlink(slot);
        self.entries.push_newest(slot, place);
    }

    /// One more pins these. No call of itself, as an upstream may have nested its manifests deep.
    pub(super) fn pin_slots(&mut self, mut slots: Vec<u32>) {
        while let Some(slot) = slots.pop() {
            let entry = self.entries.at_mut(slot);
            entry.pins += 1;
            if entry.pins > 1 {
                continue;
            }
            slots.extend_from_slice(self.entries.at(slot).names());
            self.put_in_place(slot);
        }
    }

    /// One less pins these.
    fn unpin_slots(&mut self, mut slots: Vec<u32>) {
        let mut absent = Vec::new();
        while let Some(slot) = slots.pop() {
            let entry = self.entries.at_mut(slot);
            entry.pins = entry.pins.saturating_sub(1);
            if entry.pins > 0 {
                continue;
            }
            slots.extend_from_slice(self.entries.at(slot).names());
            if self.entries.at(slot).place == Place::Absent {
                absent.push(slot);
            } else {
                self.put_in_place(slot);
            }
        }
        for slot in absent {
            // One of them that named it may have been the last that did.
            if self.entries.is_known(slot) {
                self.unlink_names(slot);
            }
        }
    }

    /// What goes first, in its order. Who reads any of it delays that.
    pub(in crate::store) fn next_to_leave(&self, most: usize) -> Vec<Leaving> {
        let mut next = Vec::new();
        for oldest in [self.entries.once.oldest, self.entries.again.oldest] {
            let mut slot = oldest;
            while slot != NONE && next.len() < most {
                let entry = self.entries.at(slot);
                next.push(Leaving { digest: entry.digest.clone(), charge: charge(entry.size), used: entry.used() });
                slot = entry.next;
            }
        }
        next
    }

    /// The manifests of the cache that name a digest, which need not be in it.
    pub(in crate::store) fn named_by(&self, digest: &Digest) -> Vec<Digest> {
        let Some(slot) = self.entries.find(digest) else { return Vec::new() };
        let held = self.entries.at(slot).named_by.iter().map(|by| self.entries.at(*by));
        held.filter(|by| by.place != Place::Absent).map(|by| by.digest.clone()).collect()
    }

    /// Whether a manifest of the cache names a digest.
    pub(in crate::store) fn is_named(&self, digest: &Digest) -> bool {
        let by = self.entries.find(digest).map(|slot| self.entries.at(slot).named_by.as_slice());
        by.unwrap_or_default().iter().any(|by| self.entries.at(*by).place != Place::Absent)
    }

    /// Whether it is pinned, an order needs it, or a manifest of the cache names it.
    pub(in crate::store) fn is_needed(&self, digest: &Digest) -> bool {
        self.is_kept(digest) || self.is_named(digest)
    }

    /// Whether a digest is not to be evicted, in the cache or not.
    pub(in crate::store) fn is_kept(&self, digest: &Digest) -> bool {
        self.entries.find(digest).is_some_and(|slot| self.entries.at(slot).is_kept())
    }

    /// Of the manifests of the cache that name a digest, the one that was used last, and when.
    pub(in crate::store) fn last_used_that_names(&self, digest: &Digest) -> Option<(Digest, Timestamp)> {
        let named_by = self.entries.at(self.entries.find(digest)?).named_by.iter().map(|by| self.entries.at(*by));
        let last = named_by.filter(|by| by.place != Place::Absent).max_by_key(|by| (by.used(), by.turn))?;
        Some((last.digest.clone(), last.used()))
    }

    /// What a manifest takes with all that it names; of one that names more than any image does, a part.
    pub(in crate::store) fn extent(&self, manifest: &Digest) -> Option<Extent> {
        let root = self.entries.find(manifest)?;
        let (mut bytes, mut seen, mut looked_at) = (0, HashSet::new(), vec![root]);
        while let Some(slot) = looked_at.pop() {
            if seen.len() > MOST_NAMES || !seen.insert(slot) {
                continue;
            }
            let entry = self.entries.at(slot);
            bytes += if entry.place == Place::Absent { 0 } else { entry.size };
            looked_at.extend(entry.names());
        }
        let entry = self.entries.at(root);
        (entry.place != Place::Absent).then_some(Extent { bytes, used: entry.used(), pinned: entry.pins > 0 })
    }

    /// When it was used last, if it is in the cache.
    pub(in crate::store) fn used(&self, digest: &Digest) -> Option<Timestamp> {
        let entry = self.entries.at(self.entries.find(digest)?);
        (entry.place != Place::Absent).then(|| entry.used())
    }

    pub(in crate::store) fn entry(&self, digest: &Digest) -> Option<Entry> {
        let entry = self.entries.at(self.entries.find(digest)?);
        (entry.place != Place::Absent).then(|| Entry {
            size: entry.size,
            used: entry.used(),
            pinned: entry.pins > 0,
            held: entry.holds > 0,
            names: entry.names().iter().map(|slot| self.entries.at(*slot).digest.clone()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::sha256(&[n])
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_millis(seconds * 1000)
    }

    /// 1 names 2 and 3; 2 names 4; 5 is alone. All are here.
    fn images() -> Lru {
        let mut lru = Lru::default();
        (1..=5).for_each(|n| lru.insert(&digest(n), 1, at(n.into())));
        lru.link(&digest(1), &[digest(2), digest(3)]);
        lru.link(&digest(2), &[digest(4)]);
        lru
    }

    fn pop_all(lru: &mut Lru) -> Vec<Digest> {
        std::iter::from_fn(|| lru.pop(0, |_| false).map(|(digest, _)| digest)).collect()
    }

    #[test]
    fn what_is_pinned_and_what_it_names_is_never_evicted() {
        let mut lru = images();
        lru.pin(&digest(1));
        assert_eq!((lru.pinned_bytes(), lru.evictable(), lru.bytes()), (4 * 4096, 4096, 5 * 4096));
        lru.touch(&digest(2), at(5000));
        assert_eq!(pop_all(&mut lru), [digest(5)]);
        lru.unpin(&digest(1));
        assert_eq!((lru.pinned_bytes(), pop_all(&mut lru).len()), (0, 4));
        assert!(lru.entries.slots.len() == 0);
    }

    #[test]
    fn what_is_pinned_twice_must_be_unpinned_twice() {
        let mut lru = images();
        lru.pin(&digest(1));
        lru.pin(&digest(1));
        lru.pin(&digest(2));
        lru.unpin(&digest(1));
        assert_eq!(pop_all(&mut lru), [digest(5)]);
        lru.unpin(&digest(1));
        assert_eq!(pop_all(&mut lru), [digest(1), digest(3)]);
        lru.unpin(&digest(2));
        assert_eq!(pop_all(&mut lru).len(), 2);
        assert!(lru.entries.slots.len() == 0);
    }

    #[test]
    fn what_comes_after_the_pin_is_pinned_as_well() {
        let mut lru = Lru::default();
        lru.pin(&digest(1));
        (1..=5).for_each(|n| lru.insert(&digest(n), 1, at(n.into())));
        lru.link(&digest(2), &[digest(4)]);
        lru.link(&digest(1), &[digest(2), digest(3)]);
        lru.insert(&digest(6), 1, at(9));
        lru.link(&digest(4), &[digest(6)]);
        assert_eq!(pop_all(&mut lru), [digest(5)]);
    }

    #[test]
    fn what_a_pinned_manifest_names_stays_while_it_is_fetched_anew() {
        let mut lru = images();
        lru.pin(&digest(1));
        assert_eq!(lru.remove(&digest(1)), Some(1));
        assert_eq!(lru.remove(&digest(2)), Some(1));
        assert!(lru.is_pinned(&digest(1)) && !lru.contains(&digest(1)));
        assert_eq!(pop_all(&mut lru), [digest(5)]);
        lru.insert(&digest(1), 1, at(9));
        lru.insert(&digest(2), 1, at(9));
        assert_eq!((pop_all(&mut lru), lru.pinned_bytes()), (vec![], 4 * 4096));
        lru.remove(&digest(1));
        lru.unpin(&digest(1));
        assert_eq!(pop_all(&mut lru).len(), 3);
        assert!(lru.entries.slots.len() == 0);
    }

    #[test]
    fn what_is_held_stays_until_all_have_let_go_and_no_more_than_it() {
        let mut lru = images();
        lru.hold(&digest(2));
        lru.hold(&digest(2));
        lru.hold(&digest(7));
        assert_eq!(pop_all(&mut lru), [digest(1), digest(3), digest(4), digest(5)]);
        lru.let_go(&digest(2));
        assert!(lru.is_kept(&digest(2)) && !lru.is_pinned(&digest(2)) && pop_all(&mut lru).is_empty());
        assert_eq!([1, 2, 4].map(|n| images().depth(&digest(n))), [0, 1, 2]);
        lru.pin(&digest(2));
        lru.let_go(&digest(2));
        assert!(pop_all(&mut lru).is_empty());
        lru.hold(&digest(2));
        lru.unpin(&digest(2));
        assert!(pop_all(&mut lru).is_empty());
        // Also what came later, and what left all the same.
        lru.insert(&digest(7), 1, at(9));
        assert_eq!((pop_all(&mut lru), lru.remove(&digest(2))), (vec![], Some(1)));
        [2, 7].iter().for_each(|n| lru.let_go(&digest(*n)));
        assert_eq!(pop_all(&mut lru), [digest(7)]);
        assert!(lru.entries.slots.len() == 0);
    }

    #[test]
    fn what_was_never_here_leaves_nothing_behind() {
        let mut lru = Lru::default();
        lru.pin(&digest(1));
        lru.unpin(&digest(1));
        lru.unpin(&digest(1));
        assert!(lru.entries.slots.len() == 0);
    }

    /// It is gone through on a stack of its own, or one image would end the process.
    #[test]
    fn however_deep_manifests_are_nested_they_are_pinned() {
        let mut lru = Lru::default();
        let deep = |n: u32| Digest::sha256(&n.to_le_bytes());
        for n in 0..100_000 {
            lru.insert(&deep(n), 1, at(1));
            lru.link(&deep(n), &[deep(n + 1)]);
        }
        lru.pin(&deep(0));
        assert_eq!(lru.evictable(), 0);
        lru.unpin(&deep(0));
        assert_eq!(lru.pinned_bytes(), 0);
    }
}
