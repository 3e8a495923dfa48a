//! What is in the cache, how large it is, and what goes first.

mod entries;
mod pins;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::time::Duration;

use crate::clock::{Seconds, Timestamp};
use crate::oci::Digest;

use super::changed::Changed;
use entries::{Entries, NONE, Place};

pub use pins::Entry;

/// The entries of the cache in order of use, image by image.
///
/// Using a manifest uses all that it names, after itself: so a manifest is always older than its blobs, and goes before
/// them. There are two segments: what was used once, and what was used again at least [`AGAIN`] later. The first goes
/// first, so that one large scan does not push out what is hot.
///
/// Pure bookkeeping, about 130 bytes an entry; whoever calls it does the I/O.
#[derive(Default)]
pub(super) struct Lru {
    entries: Entries,
    /// How many bytes there may be, as far as is known.
    room: u64,
    /// Names in all manifests that are in the cache.
    links: usize,
    /// What has come or gone, is named or not named any more.
    pub(super) changed: Changed,
}

/// How much later a second use must be to count as one: the requests of one pull are one use.
const AGAIN: Duration = Duration::from_mins(10);

/// At most this part of the room that nothing pinned takes is protected, or nothing new could ever stay. Not of what is there: that
/// becomes less whenever room is made for something that then does not come.
const PROTECTED_SHARE: (u64, u64) = (4, 5);

/// However much an image names, a use of it uses no more than this, as it must not take long; more is not remembered of one
/// manifest either. Images name a hundred layers at most, indexes some hundreds of manifests.
const MOST_NAMES: usize = 10_000;

/// And of all together no more than this, whatever upstreams send: what a manifest names need not be here, and takes memory
/// then, some 130 bytes, and none of `max_size`. It is as much as 50,000 images name that are made for 16 platforms each, with as
/// many attestations. Beyond it a manifest is used alone.
const MOST_LINKS: usize = 2_000_000;

/// File systems give space in blocks; a file of one byte takes a whole one.
const BLOCK: u64 = 4096;

/// What a file of `size` bytes takes of the disk.
pub(super) fn charge(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

/// One entry as it is written to the index and read from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) first_used: Timestamp,
    pub(super) used: Timestamp,
    pub(super) verified: Timestamp,
    pub(super) again: bool,
    /// It is pinned and not in the cache: what it names stays until it is fetched anew.
    pub(super) absent: bool,
    pub(super) names: Vec<Digest>,
}

/// What goes first has the least.
pub(super) type Rank = (bool, u64);

/// A blob that is to be verified, behind what tells how soon.
pub(super) type Due = (Timestamp, Timestamp, Digest);

/// So many slots are looked at before others may have the lock again.
pub(super) const STRETCH: usize = 1024;

// === impl Snapshot ===

impl Snapshot {
    /// With no date after `now`: that was written by a clock that was wrong, and would be believed until it comes.
    pub(super) fn before(self, now: Timestamp) -> Self {
        let [first_used, used, verified] = [self.first_used, self.used, self.verified].map(|date| date.min(now));
        Self { first_used, used, verified, ..self }
    }
}

// === impl Lru ===

impl Lru {
    /// Bytes that all entries take of the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.evictable() + self.entries.pinned.bytes
    }

    /// The same without what is pinned.
    pub(super) fn evictable(&self) -> u64 {
        self.entries.once.bytes + self.entries.again.bytes
    }

    /// How many bytes there may be of what is not pinned.
    pub(super) fn room(&self) -> u64 {
        self.room.max(self.bytes()) - self.entries.pinned.bytes
    }

    pub(super) fn set_room(&mut self, bytes: u64) {
        self.room = bytes;
    }

    pub(super) fn len(&self) -> usize {
        self.entries.once.len + self.entries.again.len + self.entries.pinned.len
    }

    pub(super) fn size(&self, digest: &Digest) -> Option<u64> {
        let entry = self.entries.at(self.entries.find(digest)?);
        (entry.place != Place::Absent).then_some(entry.size)
    }

    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.size(digest).is_some()
    }

    /// When a blob was last verified, if it is in the cache and that is known.
    pub(super) fn verified(&self, digest: &Digest) -> Option<Timestamp> {
        let entry = self.entries.at(self.entries.find(digest)?);
        (entry.place != Place::Absent && entry.verified() != Timestamp::default()).then_some(entry.verified())
    }

    pub(super) fn set_verified(&mut self, digest: &Digest, now: Timestamp) {
        if let Some(slot) = self.entries.find(digest) {
            self.entries.at_mut(slot).set_verified(now);
        }
    }

    /// The blobs in these slots that were verified before `limit`, those first of which that is not known. `None` where there
    /// are no slots any more.
    pub(super) fn verified_before(&self, limit: Timestamp, slots: Range<usize>) -> Option<Vec<Due>> {
        let due = self.entries.held(slots)?.filter(|(_, entry)| entry.verified() < limit);
        Some(due.map(|(_, entry)| (entry.verified(), entry.used(), entry.digest.clone())).collect())
    }

    /// Adds a blob, used now, whose bytes are known to be right. Adding it again changes nothing.
    pub(super) fn insert(&mut self, digest: &Digest, size: u64, now: Timestamp) {
        let slot = self.entries.slot(digest);
        if self.entries.at(slot).place != Place::Absent {
            return;
        }
        let entry = self.entries.at_mut(slot);
        entry.size = size;
        entry.set_first_used(now);
        entry.set_used(now);
        entry.set_verified(now);
        self.entries.push_newest(slot, Place::Once);
        self.note(slot);
    }

    /// It is here or not, unlike before; and what it names, is named by what is here or not.
    fn note(&mut self, slot: u32) {
        let entry = self.entries.at(slot);
        self.changed.note(&entry.digest);
        entry.names().iter().for_each(|name| self.changed.note(&self.entries.at(*name).digest));
    }

    /// Says what a manifest of the cache names, so that using it uses them. They need not be in the cache. Returns how many are
    /// left out, as they are too many.
    pub(super) fn link(&mut self, manifest: &Digest, names: &[Digest]) -> usize {
        let Some(slot) = self.entries.find(manifest) else { return 0 };
        let entry = self.entries.at(slot);
        let (pinned, known) = (entry.pins > 0, entry.names().to_vec());
        // It may have been evicted meanwhile. Where too much was remembered, a part may have been left out; of what is pinned none is.
        if !pinned && (entry.place == Place::Absent || !known.is_empty()) {
            return 0;
        }
        // What is pinned must be known, whatever else is remembered.
        let room = if pinned { MOST_NAMES } else { MOST_NAMES.min(MOST_LINKS.saturating_sub(self.links)) };
        let others = names.iter().filter(|name| *name != manifest);
        let mut named: Vec<u32> = others.take(room).map(|name| self.entries.slot(name)).collect();
        named.sort_unstable();
        named.dedup();
        named.retain(|name| known.binary_search(name).is_err());
        for &name in &named {
            self.entries.at_mut(name).named_by.push(slot);
        }
        self.links += named.len();
        if pinned {
            self.pin_slots(named.clone());
        }
        named.extend(known);
        named.sort_unstable();
        self.entries.at_mut(slot).set_names(named);
        self.note(slot);
        names.len().saturating_sub(room)
    }

    /// Uses a blob, and if it is a manifest, what it names; once a second. Returns the time of the use before, if it is in the cache.
    pub(super) fn touch(&mut self, digest: &Digest, now: Timestamp) -> Option<Timestamp> {
        /// An index names manifests, which name blobs; deeper nesting is legal and rare.
        const DEPTH: u8 = 4;
        let slot = self.entries.find(digest)?;
        if self.entries.at(slot).place == Place::Absent {
            return None;
        }
        let before = self.entries.at(slot).used();
        // Many may ask for one image within a second, and an image may name hundreds.
        if before == Seconds::within(now).timestamp() {
            return Some(before);
        }
        let mut left = MOST_NAMES;
        self.touch_slot(slot, now, DEPTH, &mut left);
        self.bound_protected();
        Some(before)
    }

    fn touch_slot(&mut self, slot: u32, now: Timestamp, depth: u8, left: &mut usize) {
        if *left == 0 {
            return;
        }
        *left -= 1;
        let entry = self.entries.at_mut(slot);
        if entry.place != Place::Absent {
            // Each by its own time: one request for a manifest would protect whatever it names, and so push out what has proven itself.
            let hot = entry.place == Place::Again || now.since(entry.first_used()) >= AGAIN;
            entry.set_used(now);
            self.entries.unlink(slot);
            self.entries.push_newest(slot, if hot { Place::Again } else { Place::Once });
        }
        if depth > 0 {
            for i in 0..self.entries.at(slot).names().len() {
                let name = self.entries.at(slot).names()[i];
                self.touch_slot(name, now, depth - 1, left);
            }
        }
    }

    /// When that was last used which nobody has used for longest, of what is not kept.
    pub(super) fn oldest_use(&self) -> Option<Timestamp> {
        let oldest = [self.entries.once.oldest, self.entries.again.oldest];
        oldest.into_iter().filter(|slot| *slot != NONE).map(|slot| self.entries.at(slot).used()).min()
    }

    /// How many bytes go before no more than `stays` are left of what was used again.
    pub(super) fn could_leave(&self, stays: u64) -> u64 {
        self.entries.once.bytes + self.entries.again.bytes.saturating_sub(stays)
    }

    /// Takes out the entry that goes first, passing over those that `keep` wants kept. Of what was used again, `stays` bytes stay.
    pub(super) fn pop(&mut self, stays: u64, keep: impl Fn(&Digest) -> bool) -> Option<(Digest, u64)> {
        for (oldest, may_go) in
            [(self.entries.once.oldest, u64::MAX), (self.entries.again.oldest, self.entries.again.bytes.saturating_sub(stays))]
        {
            let mut slot = oldest;
            while slot != NONE {
                if !keep(&self.entries.at(slot).digest) {
                    let (digest, size) = (self.entries.at(slot).digest.clone(), self.entries.at(slot).size);
                    if charge(size) > may_go {
                        break;
                    }
                    self.remove(&digest);
                    return Some((digest, size));
                }
                slot = self.entries.at(slot).next;
            }
        }
        None
    }

    /// Takes out one entry; returns its size.
    pub(super) fn remove(&mut self, digest: &Digest) -> Option<u64> {
        let slot = self.entries.find(digest)?;
        if self.entries.at(slot).place == Place::Absent {
            return None;
        }
        self.entries.unlink(slot);
        self.entries.at_mut(slot).place = Place::Absent;
        self.note(slot);
        let size = self.entries.at(slot).size;
        // What a pinned manifest names stays pinned while it is fetched anew.
        if self.entries.at(slot).pins == 0 {
            self.unlink_names(slot);
        }
        Some(size)
    }

    /// Forgets what an absent manifest names, and the manifest.
    fn unlink_names(&mut self, slot: u32) {
        let names = self.entries.at_mut(slot).take_names();
        self.links -= names.len();
        for &name in &names {
            self.entries.at_mut(name).named_by.retain(|by| *by != slot);
            self.entries.forget_if_unused(name);
        }
        self.entries.forget_if_unused(slot);
    }

    /// The entries in these slots by their rank. `None` where there are no slots any more.
    pub(super) fn ranks(&self, slots: Range<usize>) -> Option<Vec<(Rank, u32)>> {
        let entries = self.entries.within(slots)?;
        Some(entries.map(|(slot, entry)| ((entry.place == Place::Again, entry.turn), slot)).collect())
    }

    /// The entry in a slot, if it is in the cache, or what it names is to stay.
    pub(super) fn snapshot(&self, slot: u32) -> Option<Snapshot> {
        let entry = self.entries.at(slot);
        let absent = entry.place == Place::Absent;
        // What is not there has no size, and is used by nobody.
        let [first_used, used, verified] =
            [entry.first_used(), entry.used(), entry.verified()].map(|date| if absent { Timestamp::default() } else { date });
        (!absent || entry.pins > 0 && !entry.names().is_empty()).then(|| Snapshot {
            digest: entry.digest.clone(),
            size: if absent { 0 } else { entry.size },
            first_used,
            used,
            verified,
            again: entry.place == Place::Again,
            absent,
            names: entry.names().iter().map(|name| self.entries.at(*name).digest.clone()).collect(),
        })
    }

    /// Adds an entry of a snapshot as the newest of its segment.
    pub(super) fn restore(&mut self, snapshot: &Snapshot) {
        if snapshot.absent {
            // Unpinned since, it is none.
            self.link(&snapshot.digest, &snapshot.names);
            return;
        }
        let slot = self.entries.slot(&snapshot.digest);
        if self.entries.at(slot).place == Place::Absent {
            let entry = self.entries.at_mut(slot);
            entry.size = snapshot.size;
            entry.set_first_used(snapshot.first_used);
            entry.set_used(snapshot.used);
            entry.set_verified(snapshot.verified);
            self.entries.push_newest(slot, if snapshot.again { Place::Again } else { Place::Once });
            self.note(slot);
        }
        self.link(&snapshot.digest, &snapshot.names);
    }

    /// When protected bytes are too many, the oldest of them must prove themselves anew. Their order stays.
    fn bound_protected(&mut self) {
        let (share, of) = PROTECTED_SHARE;
        while self.entries.again.bytes > self.room() / of * share && self.entries.again.oldest != self.entries.again.newest {
            let slot = self.entries.again.oldest;
            self.entries.unlink(slot);
            // Its time begins again, or the next use would bring it straight back.
            let entry = self.entries.at_mut(slot);
            entry.set_first_used(entry.used());
            self.entries.push_newest(slot, Place::Once);
        }
    }
}
