//! The account of the disk: exact bytes, and what they are there for.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use hashbrown::hash_map::{Entry, HashMap};
use tokio_util::sync::CancellationToken;

use crate::clock::Timestamp;
use crate::metrics::CacheGauges;
use crate::oci::Digest;
use crate::sync::Mutex;

use super::handle::Handle;
use super::lock;
use super::lru::{Lru, charge};
use super::quarantine::Kept;
use super::records::Hold;
use super::room::Sake;

/// What lies on the disk or may come to lie there. One lock guards it; no I/O happens under it.
///
/// `committed + partial + reserved + quarantined + leaving + lingering ≤ budget` at every moment. A file is in one of these sums
/// from the moment when space is set aside for it to the moment when the disk has it back:
///
/// | what happens | from | to |
/// |---|---|---|
/// | [`reserve`](Self::reserve), [`release`](Self::release) | free, reserved | reserved, free |
/// | [`commit`](Self::commit) | reserved | committed |
/// | … over a blob of that name that is open | | lingering, the old file |
/// | a writer leaves its file: `release`, [`add_partial`](Self::add_partial) | reserved | partial |
/// | [`take_partial`](Self::take_partial) | partial | reserved |
/// | [`leave_partial`](Self::leave_partial), then [`partial_stays`](Self::partial_stays) if it cannot be removed | partial | leaving, partial |
/// | [`leave`](Self::leave), [`take_out`](Self::take_out) | committed | leaving |
/// | [`left`](Self::left), and a `Kept` is noted | leaving | quarantined |
/// | [`pop_quarantined`](Self::pop_quarantined) | quarantined | leaving |
/// | [`left`](Self::left), [`partial_left`](Self::partial_left) | leaving | free |
/// | … and [`Handle::unlinked`], of a file that is open: [`linger`](Self::linger) | leaving | lingering |
/// | its last reader lets go: [`closed`](Self::closed) | lingering | free |
#[derive(Default)]
pub(super) struct Books {
    pub(super) lru: Lru,
    /// All that the directory holds is counted. Until then nothing new is admitted.
    pub(super) counted: CancellationToken,
    /// Something is on the disk that should not be; only a look at every file will tell.
    pub(super) miscounted: bool,
    /// Blobs have come, gone or been used since the index was written.
    pub(super) dirty: bool,
    budget: u64,
    reserved: u64,
    /// Taken out of the cache, but not yet off the disk.
    leaving: u64,
    /// Off the directory, but still open: the disk keeps these bytes until the last reader closes them.
    lingering: u64,
    partials: HashMap<Digest, Partial>,
    /// What was found damaged, oldest first.
    pub(super) quarantine: VecDeque<Kept>,
    /// What is being written, by the name of its partial file.
    writing: HashMap<Digest, Digest>,
    open: HashMap<Digest, Weak<Handle>>,
    /// How many are about to open the file of a blob.
    opening: HashMap<Digest, usize>,
    /// Keeps what was opened lately open, so that a hot blob is opened once.
    recent: VecDeque<Arc<Handle>>,
    max_recent: usize,
}

/// The right to write a partial file, and to make it the blob: nobody else has it until this is dropped. Not to be dropped under the
/// lock of the books.
pub(super) struct Claim {
    books: Arc<Mutex<Books>>,
    partial: Digest,
}

/// Someone is about to open the file of a blob: until this is dropped it is not evicted, or the same bytes would be lent to a
/// writer while a reader has them. Not to be dropped under the lock of the books.
pub(super) struct Opening {
    books: Arc<Mutex<Books>>,
    digest: Digest,
}

/// A partial file that nobody is filling.
pub(super) struct Partial {
    pub(super) charge: u64,
    /// How much of it may be gone on with, as far as is known without a look at it.
    pub(super) length: u64,
    pub(super) since: Timestamp,
    /// Some may still read what is in it.
    pub(super) open: Weak<Handle>,
}

// === impl Books ===

impl Books {
    /// `max_recent`: how many files are kept open with nobody reading them.
    pub(super) fn new(budget: u64, max_recent: usize) -> Self {
        let mut lru = Lru::default();
        lru.set_room(budget);
        Self { lru, budget, max_recent, ..Self::default() }
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    pub(super) fn is_counted(&self) -> bool {
        self.counted.is_cancelled()
    }

    /// Whether the cache takes more than it may, before anything else comes.
    pub(super) fn is_over(&self) -> bool {
        self.used() > self.budget
    }

    /// How a blob is in the cache, or on its way in.
    pub(super) fn hold(&self, digest: &Digest) -> Hold {
        if self.lru.is_kept(digest) {
            Hold::Pinned
        } else if self.lru.contains(digest) || self.is_written(digest) {
            Hold::Loose
        } else {
            Hold::Absent
        }
    }

    /// Whether the index must be written, which it then is taken to be.
    pub(super) fn changed(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// Every byte that the disk holds, or has been promised, for the cache.
    pub(super) fn used(&self) -> u64 {
        self.lru.bytes() + self.partial_bytes() + self.reserved + self.quarantined() + self.leaving + self.lingering
    }

    /// The same, by what it is there for.
    pub(super) fn gauges(&self) -> CacheGauges {
        CacheGauges {
            budget: self.budget,
            committed: self.lru.bytes(),
            pinned: self.lru.pinned_bytes(),
            partial: self.partial_bytes(),
            reserved: self.reserved,
            quarantined: self.quarantined(),
            leaving: self.leaving + self.lingering,
            blobs: self.lru.len() as u64,
            oldest_use_seconds: 0,
            degraded: false,
        }
    }

    fn partial_bytes(&self) -> u64 {
        self.partials.values().map(|partial| partial.charge).sum()
    }

    fn quarantined(&self) -> u64 {
        self.quarantine.iter().map(|kept| kept.charge).sum()
    }

    // --- reservations ---

    /// Sets `bytes` aside if they fit.
    pub(super) fn reserve(&mut self, bytes: u64) -> bool {
        let fits = self.used().saturating_add(bytes) <= self.budget;
        if fits {
            self.reserved += bytes;
        }
        fits
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.reserved -= bytes;
    }

    /// Turns what was reserved for a blob into the blob. If there was one already, that one has lost its name.
    pub(super) fn commit(&mut self, digest: &Digest, size: u64, reserved: u64, now: Timestamp) {
        self.release(reserved);
        self.dirty = true;
        self.quarantine.retain(|kept| !kept.is_replaced_by(digest));
        if let Some(before) = self.lru.size(digest)
            && let Some(handle) = self.opened(digest)
        {
            handle.unlinked(self, charge(before));
        }
        self.lru.insert(digest, size, now);
    }

    // --- writers ---

    /// One writer a partial file, in which `blob` gathers, until its claim is dropped. `None` if there is one.
    pub(super) fn claim(&mut self, this: &Arc<Mutex<Self>>, partial: &Digest, blob: &Digest) -> Option<Claim> {
        let Entry::Vacant(free) = self.writing.entry(partial.clone()) else { return None };
        free.insert(blob.clone());
        Some(Claim { books: Arc::clone(this), partial: partial.clone() })
    }

    /// Whether someone writes what is to become this blob.
    pub(super) fn is_written(&self, digest: &Digest) -> bool {
        self.writing.values().any(|blob| blob == digest)
    }

    // --- partial files ---

    pub(super) fn add_partial(&mut self, digest: Digest, partial: Partial) {
        self.partials.insert(digest, partial);
    }

    /// How much of a partial file may be gone on with, when all is counted.
    pub(super) fn left_of(&self, partial: &Digest) -> u64 {
        self.partials.get(partial).map_or(0, |partial| partial.length)
    }

    /// Hands the bytes of a partial file to the writer who goes on with it: they are reserved from now on.
    pub(super) fn take_partial(&mut self, digest: &Digest) -> u64 {
        let charge = self.partials.remove(digest).map_or(0, |partial| partial.charge);
        self.reserved += charge;
        charge
    }

    /// The partial files that nobody fills and that have lain since before `limit`, the oldest first.
    pub(super) fn idle_partials(&self, limit: Timestamp) -> Vec<Digest> {
        let idle = self.partials.iter().filter(|(digest, partial)| partial.since <= limit && !self.writing.contains_key(*digest));
        let mut idle: Vec<_> = idle.map(|(digest, partial)| (partial.since, digest.clone())).collect();
        idle.sort_by_key(|(since, _)| *since);
        idle.into_iter().map(|(_, digest)| digest).collect()
    }

    /// The file is about to be removed, and until the claim is dropped nobody may write to it. `None`: it is not idle.
    pub(super) fn leave_partial(&mut self, this: &Arc<Mutex<Self>>, digest: &Digest) -> Option<(Partial, Claim)> {
        if !self.partials.contains_key(digest) {
            return None;
        }
        let claim = self.claim(this, digest, digest)?;
        let partial = self.partials.remove(digest)?;
        self.leaving += partial.charge;
        Some((partial, claim))
    }

    /// The file is off the directory.
    pub(super) fn partial_left(&mut self, partial: &Partial) {
        self.left(partial.charge);
        if let Some(handle) = partial.open.upgrade() {
            handle.unlinked(self, partial.charge);
        }
    }

    /// The file could not be removed.
    pub(super) fn partial_stays(&mut self, digest: &Digest, partial: Partial, now: Timestamp) {
        self.left(partial.charge);
        self.add_partial(digest.clone(), Partial { since: now, ..partial });
    }

    // --- eviction ---

    /// How many bytes are going, or may go for this if nobody reads any of them.
    pub(super) fn could_leave(&self, sake: Sake) -> u64 {
        self.leaving + self.partial_bytes() + self.lru.could_leave(sake.stays(self.lru.room()))
    }

    /// Takes the blobs that go first, until `bytes` are on their way out or none is left that nobody reads and that may go for this.
    pub(super) fn leave(&mut self, bytes: u64, sake: Sake) -> Vec<(Digest, u64)> {
        let stays = sake.stays(self.lru.room());
        let (mut victims, mut sum) = (Vec::new(), 0);
        while sum < bytes {
            let Some((digest, size)) = self.lru.pop(stays, |digest| is_in_use(&self.open, &self.opening, digest)) else { break };
            self.open.remove(&digest);
            let charge = charge(size);
            sum += charge;
            self.leaving += charge;
            self.dirty = true;
            victims.push((digest, charge));
        }
        victims
    }

    /// Takes out a blob that nobody reads and nothing needs. Returns what it takes of the disk.
    pub(super) fn leave_unneeded(&mut self, digest: &Digest) -> Option<u64> {
        let stays = self.lru.is_needed(digest) || is_in_use(&self.open, &self.opening, digest);
        if stays { None } else { self.take_out(digest) }
    }

    /// The bytes of a file that was leaving are off the disk.
    pub(super) fn left(&mut self, charge: u64) {
        self.leaving -= charge;
    }

    // --- quarantine ---

    /// Takes out a blob that is damaged: what it takes of the disk is leaving. Whoever calls this holds its file, if it is
    /// open, beyond the lock.
    pub(super) fn take_out(&mut self, digest: &Digest) -> Option<u64> {
        let charge = charge(self.lru.remove(digest)?);
        self.leaving += charge;
        self.dirty = true;
        if let Some(open) = self.open.remove(digest).and_then(|open| open.upgrade()) {
            self.forget(&open);
        }
        Some(charge)
    }

    /// Takes out what lies in quarantine under this name.
    pub(super) fn take_quarantined(&mut self, digest: &Digest) -> Option<Kept> {
        self.quarantine.remove(self.quarantine.iter().position(|kept| kept.is_aside(digest))?)
    }

    /// Takes the oldest out of the quarantine if that holds more than `most`, or more than this part of the budget.
    pub(super) fn pop_quarantined(&mut self, most: usize, share: u64) -> Option<Kept> {
        if self.quarantine.len() <= most && self.quarantined() <= self.budget / share {
            return None;
        }
        let kept = self.quarantine.remove(self.quarantine.iter().position(Kept::can_be_removed)?)?;
        self.leaving += kept.charge;
        Some(kept)
    }

    // --- open files ---

    pub(super) fn opening(&mut self, this: &Arc<Mutex<Self>>, digest: &Digest) -> Opening {
        *self.opening.entry(digest.clone()).or_default() += 1;
        Opening { books: Arc::clone(this), digest: digest.clone() }
    }

    pub(super) fn opened(&self, digest: &Digest) -> Option<Arc<Handle>> {
        self.open.get(digest).and_then(Weak::upgrade)
    }

    /// Remembers an open file; what falls out of the memory of recent ones is returned, to be closed without the lock.
    pub(super) fn remember(&mut self, digest: &Digest, handle: &Arc<Handle>) -> Option<Arc<Handle>> {
        if handle.is_unlinked() {
            return None;
        }
        self.share(digest, handle);
        self.recent.push_back(Arc::clone(handle));
        if self.recent.len() > self.max_recent { self.recent.pop_front() } else { None }
    }

    /// Lets others have an open file as long as someone holds it.
    pub(super) fn share(&mut self, digest: &Digest, handle: &Arc<Handle>) {
        self.open.insert(digest.clone(), Arc::downgrade(handle));
        if self.open.len() > 4 * self.max_recent {
            self.open.retain(|_, handle| handle.strong_count() > 0);
        }
    }

    /// The bytes of a blob have been found right.
    pub(super) fn verified(&mut self, digest: &Digest, now: Timestamp) {
        self.lru.set_verified(digest, now);
        self.dirty = true;
    }

    /// Keeps a file open no longer than its readers do.
    pub(super) fn forget(&mut self, handle: &Handle) {
        self.recent.retain(|recent| !std::ptr::eq(&raw const **recent, handle));
    }

    /// The files that are open only for later; dropping them closes them.
    pub(super) fn forget_recent(&mut self) -> VecDeque<Arc<Handle>> {
        std::mem::take(&mut self.recent)
    }

    /// A file has left the directory while it is open; its last reader calls [`Books::closed`].
    pub(super) fn linger(&mut self, charge: u64) {
        self.lingering += charge;
    }

    pub(super) fn closed(&mut self, charge: u64) {
        self.lingering -= charge;
    }
}

/// Whether someone has the file of a blob open, or is about to.
fn is_in_use(open: &HashMap<Digest, Weak<Handle>>, opening: &HashMap<Digest, usize>, digest: &Digest) -> bool {
    open.get(digest).is_some_and(|handle| handle.strong_count() > 0) || opening.contains_key(digest)
}

// === impl Claim ===

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.books).writing.remove(&self.partial);
    }
}

// === impl Opening ===

impl Drop for Opening {
    fn drop(&mut self) {
        let mut books = lock(&self.books);
        if let Some(opening) = books.opening.get_mut(&self.digest) {
            *opening -= 1;
            if *opening == 0 {
                books.opening.remove(&self.digest);
            }
        }
    }
}
