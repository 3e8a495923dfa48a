//! Making room: reservations, eviction, and the floor under the free space.

use std::io;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::oci::Digest;
use crate::sync::Mutex;

use super::books::Books;
use super::handle::Handle;
use super::pool::caught;
use super::{Shared, lock};

/// Bytes of the disk that are promised to a writer. Dropped, they are given back.
pub(super) struct Reservation {
    books: Arc<Mutex<Books>>,
    bytes: u64,
}

#[derive(Debug)]
pub(super) enum NoRoom {
    /// More than the whole cache may hold.
    TooLarge,
    /// All that may be evicted is being read, or the disk is filled by others.
    Full,
    /// There is room for it, but at the cost of what has been used again, which goes only as the bytes come.
    NotYet,
    /// There is more in the cache than the command was told that there may be, who is not the one to say what goes.
    Over,
    Disk(io::Error),
}

/// What room is made for, and so how much may go for it of what has been used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sake {
    /// What someone says will come: nothing, as saying so costs nothing.
    Announced,
    /// What is here: all but a half of the cache, whatever comes.
    Come,
    /// What is pinned, or what an order brings: all.
    Ordered,
}

/// Parallel writers may take what was just freed; after so many rounds the blob goes past the cache.
const ROUNDS: u8 = 8;

// === impl Reservation ===

impl Reservation {
    /// Takes over `bytes` that the books already count as reserved.
    pub(super) fn of(books: &Arc<Mutex<Books>>, bytes: u64) -> Self {
        Self { books: Arc::clone(books), bytes }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn add(&mut self, mut more: Self) {
        self.bytes += more.forget();
    }

    /// Leaves the bytes reserved, for the caller to account for.
    pub(super) fn forget(&mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            lock(&self.books).release(self.bytes);
        }
    }
}

// === impl Sake ===

impl Sake {
    /// How many bytes stay of what has been used again, in a cache with `room` for so many.
    pub(super) fn stays(self, room: u64) -> u64 {
        match self {
            Self::Announced => u64::MAX,
            Self::Come => room / 2,
            Self::Ordered => 0,
        }
    }
}

// === impl Shared ===

impl Shared {
    /// Sets `bytes` aside, evicting what goes first, as far as it may go for this.
    ///
    /// Cancel safe: a reservation that nobody waits for any more is given back.
    pub(super) async fn reserve(self: &Arc<Self>, bytes: u64, sake: Sake) -> Result<Reservation, NoRoom> {
        if bytes == 0 {
            return Ok(Reservation::of(&self.books, 0));
        }
        let store = Arc::clone(self);
        self.writes.soon(move || store.reserve_now(bytes, sake)).await.unwrap_or_else(|broken| Err(NoRoom::Disk(broken.into())))
    }

    fn reserve_now(&self, bytes: u64, sake: Sake) -> Result<Reservation, NoRoom> {
        if bytes > lock(&self.books).budget() {
            return Err(NoRoom::TooLarge);
        }
        for _ in 0..ROUNDS {
            let short = self.short_of(bytes).map_err(NoRoom::Disk)?;
            if self.passing && lock(&self.books).is_over() {
                return Err(NoRoom::Over);
            }
            if short == 0 {
                if lock(&self.books).reserve(bytes) {
                    return Ok(Reservation::of(&self.books, bytes));
                }
                continue;
            }
            // Nothing goes in vain.
            let enough = |sake| lock(&self.books).could_leave(sake) >= short;
            if !enough(sake) {
                return Err(if enough(Sake::Come) { NoRoom::NotYet } else { NoRoom::Full });
            }
            if self.evict(short, sake) == 0 {
                break;
            }
        }
        Err(NoRoom::Full)
    }

    /// How many bytes must go before `bytes` more fit under the cap and above the floor.
    pub(super) fn short_of(&self, bytes: u64) -> io::Result<u64> {
        let (used, budget) = {
            let books = lock(&self.books);
            (books.used(), books.budget())
        };
        let over_cap = used.saturating_add(bytes).saturating_sub(budget);
        let (free, total) = self.disk.space()?;
        let floor = self.min_free.of(total);
        lock(&self.books).lru.set_room(budget.min(used.saturating_add(free).saturating_sub(floor)));
        let below_floor = floor.saturating_add(bytes).saturating_sub(free);
        Ok(over_cap.max(below_floor))
    }

    /// Removes what goes first until `bytes` are free: abandoned partial files, then blobs, as far as they may go for
    /// this. Returns how many bytes went.
    pub(super) fn evict(&self, bytes: u64, sake: Sake) -> u64 {
        // A blob may come back while its old file is about to be removed; so renames in and removals are one at a time.
        let _gate = lock(&self.gate);
        // Two statements, as the last holder of a file locks the books when it goes.
        let recent = lock(&self.books).forget_recent();
        recent.into_iter().for_each(Handle::close);
        let mut gone = 0;
        let idle = lock(&self.books).idle_partials(self.clock.now());
        for digest in idle {
            if gone >= bytes {
                break;
            }
            let charge = self.remove_partial(&digest);
            if charge > 0 {
                self.metrics.evicted("partial", charge);
            }
            gone += charge;
        }
        if gone >= bytes {
            return gone;
        }
        let more = bytes - gone;
        let victims = if self.is_sealed() { self.leave_nameless(more) } else { lock(&self.books).leave(more, sake) };
        for (digest, charge) in victims {
            match caught(|| self.disk.remove_blob(&digest)) {
                Ok(()) => {
                    gone += charge;
                    lock(&self.books).left(charge);
                    self.metrics.evicted("blob", charge);
                    tracing::debug!(%digest, "evicted");
                }
                Err(error) => {
                    // Its bytes go on counting, and the next start looks at every file.
                    lock(&self.books).miscounted = true;
                    tracing::error!(%digest, %error, "a blob could not be evicted");
                }
            }
        }
        gone
    }

    /// Nothing that anyone could ask for is evicted.
    pub(super) fn is_sealed(&self) -> bool {
        self.sealed || self.records.are_unread() || !lock(&self.unlinked).is_empty()
    }

    /// Takes out what no repository has proven to hold and nothing needs: what orders left that were killed, which nobody can ask
    /// for. Where the records are not whole, nobody knows what that is.
    fn leave_nameless(&self, bytes: u64) -> Vec<(Digest, u64)> {
        let (mut victims, mut sum) = (Vec::new(), 0);
        if self.records.are_whole() {
            for digest in self.due(Timestamp::from_unix_millis(u64::MAX)) {
                if sum >= bytes {
                    break;
                }
                if self.records.held_by(&digest).is_empty()
                    && let Some(charge) = lock(&self.books).leave_unneeded(&digest)
                {
                    sum += charge;
                    victims.push((digest, charge));
                }
            }
        }
        victims
    }

    /// Removes a partial file that nobody fills; returns what it took.
    pub(super) fn remove_partial(&self, digest: &Digest) -> u64 {
        let Some((partial, _claim)) = lock(&self.books).leave_partial(&self.books, digest) else { return 0 };
        match caught(|| self.disk.remove_partial(digest)) {
            Ok(()) => {
                lock(&self.books).partial_left(&partial);
                partial.charge
            }
            Err(error) => {
                lock(&self.books).partial_stays(digest, partial, self.clock.now());
                tracing::error!(%digest, %error, "a partial file could not be removed");
                0
            }
        }
    }
}
