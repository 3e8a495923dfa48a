//! Things by number, and their numbers by digest.
//!
//! There may be millions. So none is moved when more are added, which would take as long as all who wait for the lock have to
//! wait; and a digest is kept once, in what it stands for.

use std::hash::BuildHasher;
use std::ops::Range;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::oci::Digest;

pub(super) struct Slots<T> {
    /// All but the last are full.
    pieces: Vec<Vec<T>>,
    free: Vec<u32>,
    by_digest: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

/// What has a digest of its own.
pub(super) trait Keyed {
    fn digest(&self) -> &Digest;
}

/// So many lie together: some 100 KB of them.
const PIECE: usize = 1024;

// === impl Slots ===

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), free: Vec::new(), by_digest: HashTable::new(), hasher: DefaultHashBuilder::default() }
    }
}

impl<T: Keyed> Slots<T> {
    pub(super) fn find(&self, digest: &Digest) -> Option<u32> {
        self.by_digest.find(self.hasher.hash_one(digest), |slot| self.at(*slot).digest() == digest).copied()
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// Adds what has a digest that no other has.
    pub(super) fn add(&mut self, thing: T) -> u32 {
        let hash = self.hasher.hash_one(thing.digest());
        let slot = if let Some(slot) = self.free.pop() {
            *self.at_mut(slot) = thing;
            slot
        } else {
            let slot = u32::try_from(self.end()).expect("fewer than 2^32");
            if (slot as usize).is_multiple_of(PIECE) {
                self.pieces.push(Vec::with_capacity(PIECE));
            }
            self.pieces[slot as usize / PIECE].push(thing);
            slot
        };
        let Self { pieces, by_digest, hasher, .. } = self;
        by_digest.insert_unique(hash, slot, |slot| hasher.hash_one(in_slot(pieces, *slot).digest()));
        slot
    }

    /// What is there stays, until something else takes the slot; but nobody finds it.
    pub(super) fn remove(&mut self, slot: u32) {
        let hash = self.hasher.hash_one(self.at(slot).digest());
        if let Ok(found) = self.by_digest.find_entry(hash, |known| *known == slot) {
            found.remove();
            self.free.push(slot);
        }
    }

    /// Those that have these slots, the ones that were removed among them. `None` where there are no slots any more.
    pub(super) fn within(&self, slots: Range<usize>) -> Option<impl Iterator<Item = (u32, &T)>> {
        let slots = u32::try_from(slots.start).ok()?..u32::try_from(slots.end.min(self.end())).ok()?;
        (!slots.is_empty()).then(|| slots.map(|slot| (slot, self.at(slot))))
    }

    /// Those that were removed among them.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten()
    }

    pub(super) fn at(&self, slot: u32) -> &T {
        in_slot(&self.pieces, slot)
    }

    pub(super) fn at_mut(&mut self, slot: u32) -> &mut T {
        &mut self.pieces[slot as usize / PIECE][slot as usize % PIECE]
    }

    /// Behind the last slot.
    pub(super) fn end(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE + last.len())
    }
}

fn in_slot<T>(pieces: &[Vec<T>], slot: u32) -> &T {
    &pieces[slot as usize / PIECE][slot as usize % PIECE]
}
