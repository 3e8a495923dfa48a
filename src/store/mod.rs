//! The cache on disk: verified blobs by digest under a hard cap, and small records about them.
//!
//! Floor 1. Nothing here knows of HTTP, upstreams or clients. [`Store`] opens only verified blobs; a [`BlobWriter`] brings
//! one in; a [`Growth`] lets it be read meanwhile.

mod books;
mod care;
mod changed;
mod disk;
mod growing;
mod handle;
mod health;
mod holds;
mod index;
mod kept;
mod limits;
mod lru;
mod opening;
mod options;
mod outlet;
mod pool;
mod quarantine;
mod reader;
mod records;
mod room;
#[cfg(all(test, feature = "schedules"))]
pub(crate) mod schedules;
mod slots;
mod survey;
mod upkeep;
mod verify;
mod writer;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::metrics::{CacheGauges, DiskGauges, Metrics};
use crate::oci::{Digest, Repository, Tag};
use crate::sync::atomic::AtomicBool;
use crate::sync::{Mutex, MutexGuard, timeout};

use books::Books;
use disk::{Disk, Opened};
use health::Health;
use pool::Pool;
use records::Records;
use verify::Verification;

pub use care::{Account, Extent, Leaving};
pub use disk::{OpenError, SocketPath};
#[cfg(debug_assertions)]
pub use disk::{Operation, faults};
pub use growing::{Cut, TAIL};
pub use health::Trouble;
pub use holds::Holds;
pub use kept::{Kept, Text};
pub use lru::Entry;
pub use options::{Floor, Options};
pub use outlet::{Outlet, Piece};
pub use quarantine::{Damage, OpenFile};
pub use reader::{Blob, BlobReader, Growth, Held, Pieces, ReadError};
pub use records::{Kind, Known, Pin, Proof, TagRecord, Tally};
pub use survey::survey;
pub use verify::Scrubbed;
pub use writer::{BlobWriter, Bypass, Finished};

/// The cache directory. Clones share it.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    disk: Arc<Disk>,
    /// For what is read, and for what changes something, as the one must not wait for the other.
    reads: Pool,
    writes: Pool,
    books: Arc<Mutex<Books>>,
    records: Records,
    min_free: Floor,
    /// Held by the thread that renames a blob in or removes one; never while the books are locked.
    gate: Mutex<()>,
    /// Held while a pin is made or taken back.
    pinning: Mutex<()>,
    /// Nothing is evicted.
    sealed: bool,
    /// Held for one command alone.
    passing: bool,
    /// Pinned manifests of which nobody knows what they name, as they could not be read. Until they can be, nothing is evicted.
    unlinked: Mutex<Vec<Digest>>,
    /// Held by the thread that writes the index.
    indexing: Mutex<()>,
    health: Health,
    opened: Instant,
    /// Every file is being looked at.
    counting: AtomicBool,
    /// The blobs that are being verified. Each of these tasks ends when the store is closed.
    verifying: Mutex<HashMap<Digest, Arc<Verification>>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// In bytes a second; 0: never.
    scrub_rate: u64,
    clock: Clock,
    metrics: Metrics,
}

// === impl Store ===

impl Store {
    /// Takes the directory and begins to count what is in it. Blobs can be read at once; new ones are admitted when all is
    /// counted, which after a clean stop it is when this returns.
    ///
    /// # Errors
    /// When the directory cannot be used. It is then as it was.
    pub async fn open(options: &Options, clock: Clock, metrics: Metrics) -> Result<Self, OpenError> {
        let unusable = |error| OpenError::Unusable { dir: options.dir.clone(), error };
        let reads = Pool::new("larder-reads", options.patience).map_err(unusable)?;
        let writes = Pool::new("larder-writes", options.patience).map_err(unusable)?;
        let (of, counting) = (options.clone(), metrics.clone());
        let opened = writes.run(move || {
            let opened = Disk::open(&of, counting)?;
            let of = limits::settle(&opened.disk, of);
            Ok((opened, of))
        });
        let broken = |broken| unusable(io::Error::from(broken));
        let (Opened { disk, new, clean, rebooted }, options) = opened.await.map_err(broken)??;
        let (disk, books) = (Arc::new(disk), Arc::new(Mutex::new(Books::new(options.budget(), options.max_recent))));
        let (of, pool, counting, sealed) = (Arc::clone(&disk), writes.clone(), metrics.clone(), options.sealed);
        let records = writes.run(move || Records::open(of, pool, sealed, counting)).await.map_err(broken)?;
        let (gate, indexing) = (Mutex::new(()), Mutex::new(()));
        let store = Self(Arc::new(Shared {
            disk,
            reads,
            writes,
            books,
            records,
            min_free: options.min_free,
            gate,
            pinning: Mutex::new(()),
            sealed: options.sealed,
            passing: options.passing,
            unlinked: Mutex::default(),
            indexing,
            health: Health::default(),
            opened: Instant::now(),
            counting: AtomicBool::new(false),
            verifying: Mutex::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            scrub_rate: options.scrub_rate.as_u64(),
            clock,
            metrics,
        }));
        let shared = Arc::clone(&store.0);
        let counted = store.0.writes.run(move || {
            shared.pin_all();
            shared.count_partials(rebooted)?;
            shared.count_quarantine()?;
            if new {
                lock(&shared.books).counted.cancel();
            }
            Ok(new || clean && shared.count_by_index())
        });
        if !counted.await.map_err(broken)?.map_err(unusable)? {
            store.0.count();
        }
        Ok(store)
    }

    /// A blob, used now. `None` if the cache has none.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// When the blob is there and cannot be opened, for want of descriptors or because the disk fails.
    pub async fn get(&self, digest: &Digest) -> io::Result<Option<Held>> {
        let Some(blob) = self.get_unverified(digest).await? else { return Ok(None) };
        if lock(&self.0.books).lru.verified(digest).is_some() {
            return Ok(Some(Held::Verified(blob)));
        }
        Ok(Some(Held::Doubtful(self.0.verify(digest, &blob, None))))
    }

    /// The same for whoever verifies the bytes himself, and then says so.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn get_unverified(&self, digest: &Digest) -> io::Result<Option<Blob>> {
        let now = self.0.clock.now();
        let (used, size, open, known) = {
            let mut books = lock(&self.0.books);
            let used = books.lru.touch(digest, now);
            books.dirty = true;
            (used, books.lru.size(digest), books.opened(digest), books.is_counted())
        };
        if used.is_none() && known {
            return Ok(None);
        }
        if used.is_some_and(|used| !used.same_hour(now)) {
            let (store, digest) = (Arc::clone(&self.0), digest.clone());
            self.0.writes.start(move || {
                // Only the order after a start without an index depends on it.
                let _ = store.disk.touch_blob(&digest, now.into());
            });
        }
        if let (Some(handle), Some(size)) = (open, size) {
            return Ok(Some(Blob::new(handle, size)));
        }
        let (store, digest) = (Arc::clone(&self.0), digest.clone());
        self.0.reads.soon(move || store.open_blob(&digest, size, true)).await?
    }

    /// Sets aside a blob that was found to be damaged, unless another file has taken the place of `file` meanwhile. From then
    /// on the cache does not have it.
    ///
    /// Cancel safe: it is done all the same.
    pub async fn quarantine(&self, digest: &Digest, file: OpenFile, damage: Damage) {
        let (store, digest) = (Arc::clone(&self.0), digest.clone());
        let done = self.0.writes.run(move || store.quarantine(&digest, Some(&file.0), &damage));
        let _ = timeout(self.0.writes.patience(), done).await;
    }

    /// Notes that the bytes of a blob are what its digest promises.
    pub fn verified(&self, digest: &Digest) {
        lock(&self.0.books).verified(digest, self.0.clock.now());
    }

    /// Notes a use of a blob whose bytes are at hand elsewhere.
    pub fn touch(&self, digest: &Digest) {
        let mut books = lock(&self.0.books);
        books.lru.touch(digest, self.0.clock.now());
        books.dirty = true;
    }

    /// The size of a blob in the cache, without using it.
    #[must_use]
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        lock(&self.0.books).lru.size(digest)
    }

    /// Brings in a blob whose verified bytes are at hand, and links it to what it names.
    pub async fn put(&self, digest: &Digest, bytes: Bytes, names: &[Digest]) -> Finished {
        let mut writer = self.begin(digest.clone()).await;
        writer.expect(bytes.len() as u64).await;
        writer.push(bytes);
        let finished = writer.finish().await;
        if finished == Finished::Kept {
            self.0.link(digest, names);
        }
        finished
    }

    // --- records ---

    /// What was counted under `name`, a word without spaces.
    #[must_use]
    pub fn tally(&self, name: &str) -> Option<Tally> {
        self.0.records.tally(name)
    }

    pub fn set_tally(&self, name: &str, tally: Tally) {
        self.0.records.set_tally(name, tally);
    }

    #[must_use]
    pub fn tag(&self, repository: &Repository, tag: &Tag) -> Option<TagRecord> {
        self.0.records.tag(repository, tag)
    }

    /// The same for one who asks for it. True if someone has before, since it was recorded.
    #[must_use]
    pub fn ask_tag(&self, repository: &Repository, tag: &Tag) -> Option<(TagRecord, bool)> {
        self.0.records.ask_tag(repository, tag)
    }

    pub fn set_tag(&self, repository: &Repository, tag: &Tag, record: &TagRecord) {
        self.0.records.set_tag(repository, tag, record);
    }

    pub fn remove_tag(&self, repository: &Repository, tag: &Tag) {
        self.0.records.remove_tag(repository, tag);
    }

    #[must_use]
    pub fn proof(&self, repository: &Repository, digest: &Digest, kind: Kind) -> Option<Proof> {
        self.0.records.proof(repository, digest, kind)
    }

    pub fn set_proof(&self, repository: &Repository, digest: &Digest, proof: Proof) {
        self.0.records.set_proof(repository, digest, proof);
    }

    pub fn remove_proof(&self, repository: &Repository, digest: &Digest, kind: Kind) {
        self.0.records.remove_proof(repository, digest, kind);
    }

    // --- upkeep ---

    /// Bytes that the cache takes of the disk, and how many blobs it has. `None` while they are being counted.
    #[must_use]
    pub fn usage(&self) -> Option<(u64, usize)> {
        let books = lock(&self.0.books);
        books.is_counted().then(|| (books.used(), books.lru.len()))
    }

    /// Puts what the cache takes of the disk into the metrics.
    pub fn show(&self) {
        let (cache, oldest_use) = {
            let books = lock(&self.0.books);
            (books.gauges(), books.lru.oldest_use())
        };
        let oldest_use_seconds = oldest_use.map_or(0, |used| self.0.clock.now().since(used).as_secs());
        self.0.metrics.set_cache(CacheGauges { oldest_use_seconds, degraded: self.trouble().is_some(), ..cache });
    }

    /// Likewise how much room its file system has, if that tells it in time.
    ///
    /// Cancel safe.
    pub async fn show_room(&self) {
        let store = Arc::clone(&self.0);
        if let Ok(Ok((free, size))) = self.0.reads.soon(move || store.disk.space()).await {
            self.0.metrics.set_disk(DiskGauges { free, size, floor: self.0.min_free.of(size) });
        }
    }

    /// How long a client waits for the disk.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.0.reads.patience()
    }

    /// What is wrong with the disk, if what is missing, or even what is there, goes past the cache because of it.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        let unread =
            |hangs: Duration| Trouble { why: "read: the disk does not answer".into(), since: self.0.clock.now() - hangs };
        self.0.health.trouble().or_else(|| self.0.reads.hangs_for().map(unread))
    }
}

// === impl Shared ===

impl Shared {
    /// Says what a manifest names, so that using it uses them.
    fn link(&self, manifest: &Digest, names: &[Digest]) {
        let left_out = lock(&self.books).lru.link(manifest, names);
        self.metrics.forgotten("link", left_out);
    }

    /// Reports trouble with the disk and names it as the reason to go past the cache.
    fn disk_failed(&self, operation: &str, error: &io::Error) -> Bypass {
        tracing::error!(operation, %error, "the disk failed; the blob goes past the cache");
        self.health.failed(operation, error, self.clock.now());
        Bypass::Disk(format!("{operation}: {error}"))
    }
}

// As for the pool: not where tasks are dropped that hold locks.
#[cfg(not(feature = "schedules"))]
impl Drop for Shared {
    /// The files that are kept open know the books, which know them.
    fn drop(&mut self) {
        drop(lock(&self.books).forget_recent());
    }
}

/// What a lock of ours guards stays whole when a holder panics: no panic comes between two writes that belong together.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
