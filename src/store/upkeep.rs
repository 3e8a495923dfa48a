//! What is due from time to time, and at the end: looking whether the disk is well again, counting what could not be counted,
//! removing what is too old or too much, and writing down what only memory knows.

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::sync::atomic::Ordering;
use crate::sync::timeout;

use super::lru::{Lru, STRETCH};
use super::pool::caught;
use super::room::Sake;
use super::{Shared, Store, index, lock};

/// A partial file that nobody goes on with is kept for this long.
const PARTIAL_LIFE: Duration = Duration::from_hours(1);

// === impl Store ===

impl Store {
    /// Finds out whether a disk that failed does its work again, so that nobody's pull has to. Due every few seconds.
    pub async fn probe(&self) {
        if !lock(&self.0.books).is_counted() {
            self.0.count();
        }
        if self.0.records.are_lost() {
            self.0.compact_records();
        }
        if !lock(&self.0.unlinked).is_empty() {
            let store = Arc::clone(&self.0);
            let _ = self.0.writes.soon(move || store.link_unlinked()).await;
        }
        if self.0.health.trouble().is_some() {
            let store = Arc::clone(&self.0);
            let _ = self.0.writes.soon(move || store.probe()).await;
        }
    }

    /// Waits until all is counted, or that takes longer than anyone waits for the disk: until then nothing is kept, nor gone on with. Who was
    /// cut off by a restart is back at once.
    ///
    /// Cancel safe.
    pub async fn counted(&self) {
        let counted = lock(&self.0.books).counted.clone();
        let _ = timeout(self.0.writes.patience().saturating_sub(self.0.opened.elapsed()), counted.cancelled()).await;
    }

    /// One round of upkeep, due once a minute: abandoned partial files, the floor under the free space, the index.
    pub async fn upkeep(&self) {
        let store = Arc::clone(&self.0);
        let _ = self.0.writes.run(move || store.upkeep()).await;
    }

    /// Writes down what only memory knows. `quiet`: nothing writes any more, so that the next start can trust it.
    pub async fn close(&self, quiet: bool) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.records.flush().await;
        if self.0.records.are_lost() {
            self.0.compact_records();
            self.0.records.flush().await;
        }
        let store = Arc::clone(&self.0);
        let _ = self.0.writes.run(move || store.write_index(quiet)).await;
    }
}

// === impl Shared ===

impl Shared {
    /// Counts what is in the cache by looking at every file, unless that is being done.
    pub(super) fn count(self: &Arc<Self>) {
        if self.counting.swap(true, Ordering::AcqRel) {
            return;
        }
        let store = Arc::clone(self);
        self.reads.start(move || {
            if let Err(error) = caught(|| store.count_by_walk()) {
                tracing::error!(%error, "the cache could not be counted; nothing new is kept until it is");
            }
            store.counting.store(false, Ordering::Release);
        });
    }

    fn probe(&self) {
        let probed = self.disk.probe().and_then(|()| self.short_of(0));
        match probed {
            Ok(0) => self.health.well(),
            Ok(short) => _ = self.evict(short, Sake::Ordered),
            Err(error) => self.health.failed("probe", &error, self.clock.now()),
        }
    }

    fn compact_records(&self) {
        let blobs = {
            let books = lock(&self.books);
            if !books.is_counted() {
                return;
            }
            books.lru.len()
        };
        let books = Arc::clone(&self.books);
        self.records.compact(blobs, move |digest| lock(&books).hold(digest));
    }

    fn upkeep(&self) {
        let abandoned = lock(&self.books).idle_partials(self.clock.now() - PARTIAL_LIFE);
        for digest in abandoned {
            self.remove_partial(&digest);
        }
        match self.short_of(0) {
            Ok(0) => {}
            Ok(short) => {
                self.evict(short, Sake::Ordered);
            }
            Err(error) => tracing::error!(%error, "the free space cannot be told"),
        }
        self.compact_records();
        self.write_index(false);
    }

    /// Asks about all slots of the books, a stretch of them at a time, until there are none: every request needs the books, and
    /// who waits for them has them in between.
    pub(super) fn look_through<T>(&self, ask: impl Fn(&Lru, Range<usize>) -> Option<Vec<T>>) -> Vec<T> {
        let mut found = Vec::new();
        for from in (0..).step_by(STRETCH) {
            let Some(more) = ask(&lock(&self.books).lru, from..from + STRETCH) else { break };
            found.extend(more);
            thread::yield_now();
        }
        found
    }

    fn write_index(&self, clean: bool) {
        let _indexing = lock(&self.indexing);
        {
            let mut books = lock(&self.books);
            if !books.is_counted() || !(books.changed() || clean) {
                return;
            }
        }
        let text = self.index();
        let clean = clean && !lock(&self.books).miscounted;
        let written = self.disk.replace(index::NAME, text.as_bytes());
        let written = written.and_then(|()| if clean { self.disk.replace("clean", b"") } else { Ok(()) });
        if let Err(error) = written {
            tracing::error!(%error, "the index could not be written; the next start looks at every file");
        }
    }
}
