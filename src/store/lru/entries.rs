//! The entries of the cache in two lists, found by digest.

use std::ops::Range;

use smallvec::SmallVec;

use crate::clock::{Seconds, Timestamp};
use crate::oci::Digest;

use super::super::slots::{Keyed, Slots};
use super::charge;

/// Entries by digest. Each has a slot, which others know it by; what is in the cache is in one of the lists.
#[derive(Default)]
pub(super) struct Entries {
    pub(super) slots: Slots<Entry>,
    pub(super) once: List,
    pub(super) again: List,
    pub(super) pinned: List,
    turns: u64,
}

/// There may be millions, so each is as small as it can be.
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) size: u64,
    first_used: Seconds,
    used: Seconds,
    verified: Seconds,
    pub(super) place: Place,
    /// By how many it is kept from eviction: pins of its own, and pinned manifests that name it.
    pub(super) pins: u32,
    /// How many orders need it just now. What it names is not meant.
    pub(super) holds: u32,
    /// Counts up: within a list, what goes first has the least.
    pub(super) turn: u64,
    previous: u32,
    pub(super) next: u32,
    /// What this manifest names. Most blobs are none.
    names: Option<Box<Names>>,
    /// The manifests that name this.
    pub(super) named_by: SmallVec<[u32; 4]>,
}

struct Names(Box<[u32]>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Named by a manifest, but not in the cache.
    Absent,
    Once,
    Again,
    /// Never evicted, as long as it is kept.
    Pinned,
}

/// A doubly linked list through the entries, oldest first.
pub(super) struct List {
    pub(super) oldest: u32,
    pub(super) newest: u32,
    /// What its entries take of the disk.
    pub(super) bytes: u64,
    pub(super) len: usize,
}

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

// === impl Entries ===

impl Entries {
    pub(super) fn find(&self, digest: &Digest) -> Option<u32> {
        self.slots.find(digest)
    }

    /// Whether the entry with this slot is still there.
    pub(super) fn is_known(&self, slot: u32) -> bool {
        self.find(&self.at(slot).digest) == Some(slot)
    }

    /// Those that have these slots. `None` where there are no slots any more.
    pub(super) fn within(&self, slots: Range<usize>) -> Option<impl Iterator<Item = (u32, &Entry)>> {
        self.slots.within(slots)
    }

    /// Likewise those in the cache.
    pub(super) fn held(&self, slots: Range<usize>) -> Option<impl Iterator<Item = (u32, &Entry)>> {
        Some(self.within(slots)?.filter(|(_, entry)| entry.place != Place::Absent))
    }

    /// The slot of `digest`, made as absent where there is none.
    pub(super) fn slot(&mut self, digest: &Digest) -> u32 {
        if let Some(slot) = self.find(digest) {
            return slot;
        }
        self.slots.add(Entry {
            digest: digest.clone(),
            size: 0,
            first_used: Seconds::default(),
            used: Seconds::default(),
            verified: Seconds::default(),
            place: Place::Absent,
            pins: 0,
            holds: 0,
            turn: 0,
            previous: NONE,
            next: NONE,
            names: None,
            named_by: SmallVec::new(),
        })
    }

    /// An entry that is neither in the cache nor named, nor kept, nor names anything, is none.
    pub(super) fn forget_if_unused(&mut self, slot: u32) {
        let entry = self.at(slot);
        let unused = entry.named_by.is_empty() && entry.names().is_empty();
        if entry.place == Place::Absent && !entry.is_kept() && unused {
            self.slots.remove(slot);
        }
    }

    /// Puts an entry that is in no list behind all others of this one, or if it is kept, of those that are.
    pub(super) fn push_newest(&mut self, slot: u32, place: Place) {
        let place = if self.at(slot).is_kept() { Place::Pinned } else { place };
        let charge = charge(self.at(slot).size);
        let list = self.list(place);
        let newest = list.newest;
        list.newest = slot;
        list.bytes += charge;
        list.len += 1;
        if newest == NONE {
            list.oldest = slot;
        } else {
            self.at_mut(newest).next = slot;
        }
        self.turns += 1;
        let turn = self.turns;
        let entry = self.at_mut(slot);
        (entry.place, entry.turn, entry.previous, entry.next) = (place, turn, newest, NONE);
    }

    /// Takes an entry out of its list; its place still tells which.
    pub(super) fn unlink(&mut self, slot: u32) {
        let Entry { place, previous, next, size, .. } = *self.at(slot);
        if previous == NONE {
            self.list(place).oldest = next;
        } else {
            self.at_mut(previous).next = next;
        }
        if next == NONE {
            self.list(place).newest = previous;
        } else {
            self.at_mut(next).previous = previous;
        }
        let list = self.list(place);
        list.bytes -= charge(size);
        list.len -= 1;
    }

    fn list(&mut self, place: Place) -> &mut List {
        match place {
            Place::Once => &mut self.once,
            Place::Again => &mut self.again,
            Place::Pinned => &mut self.pinned,
            Place::Absent => unreachable!("an absent entry is in no list"),
        }
    }

    pub(super) fn at(&self, slot: u32) -> &Entry {
        self.slots.at(slot)
    }

    pub(super) fn at_mut(&mut self, slot: u32) -> &mut Entry {
        self.slots.at_mut(slot)
    }
}

// === impl Entry ===

impl Entry {
    /// Whether it is not to be evicted.
    pub(super) fn is_kept(&self) -> bool {
        self.pins > 0 || self.holds > 0
    }

    pub(super) fn first_used(&self) -> Timestamp {
        self.first_used.timestamp()
    }

    pub(super) fn set_first_used(&mut self, at: Timestamp) {
        self.first_used = Seconds::within(at);
    }

    pub(super) fn used(&self) -> Timestamp {
        self.used.timestamp()
    }

    pub(super) fn set_used(&mut self, at: Timestamp) {
        self.used = Seconds::within(at);
    }

    /// When its bytes were last known to be right; 0: nobody knows.
    pub(super) fn verified(&self) -> Timestamp {
        self.verified.timestamp()
    }

    /// What is verified now was not verified before now, or it would have to be verified again at once.
    pub(super) fn set_verified(&mut self, at: Timestamp) {
        self.verified = Seconds::not_before(at);
    }

    /// What this manifest names.
    pub(super) fn names(&self) -> &[u32] {
        self.names.as_ref().map_or(&[], |names| &names.0)
    }

    pub(super) fn set_names(&mut self, names: Vec<u32>) {
        self.names = (!names.is_empty()).then(|| Box::new(Names(names.into())));
    }

    pub(super) fn take_names(&mut self) -> Box<[u32]> {
        self.names.take().map_or_else(Box::default, |names| names.0)
    }
}

impl Keyed for Entry {
    fn digest(&self) -> &Digest {
        &self.digest
    }
}

// === impl List ===

impl Default for List {
    fn default() -> Self {
        Self { oldest: NONE, newest: NONE, bytes: 0, len: 0 }
    }
}
