//! Bringing a blob in: hash, write, verify, commit.

mod end;

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::oci::{Digest, Hasher};

use super::growing::{End, Growing};
use super::handle::Handle;
use super::lru::charge;
use super::pool::Broken;
use super::reader::Growth;
use super::room::{NoRoom, Reservation};
use super::{Shared, disk_failed, lock};

pub use end::Finished;

/// Takes the bytes of one blob. What it holds is invisible to the cache until [`BlobWriter::finish`] has verified, synced
/// and renamed it; who follows it sees its bytes at once, apart from the tail.
///
/// Trouble with the disk is not the caller's: the writer then goes on in memory, where readers of about the same speed
/// find the bytes, and nothing is kept. Dropped, it leaves a partial file for the next writer.
pub struct BlobWriter {
    store: Arc<Shared>,
    digest: Digest,
    growing: Arc<Growing>,
    target: Target,
    /// `None` while a job has it.
    hasher: Option<Hasher>,
    /// Bytes accepted, written or not.
    accepted: u64,
    size: Option<u64>,
    too_long: bool,
    reservation: Reservation,
    /// Accepted, but not yet given to a job.
    batch: Vec<Bytes>,
    batch_bytes: usize,
    job: Option<Job>,
}

type Job = Pin<Box<dyn Future<Output = Result<Written, Broken>> + Send>>;

enum Target {
    File(Arc<Handle>),
    Memory(Bypass),
}

/// Why a blob goes past the cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Bypass {
    #[error("the cache is still being counted")]
    Starting,
    #[error("the blob is larger than the cache")]
    TooLarge,
    #[error("there is no room: the disk is full, or all that could be evicted is in use")]
    Full,
    #[error("it is being written already")]
    Busy,
    #[error("it is not what its digest promises")]
    WrongBytes,
    #[error("the disk failed: {0}")]
    Disk(String),
}

struct Written {
    hasher: Hasher,
    /// What could not be written; `hasher` is then as it was before.
    failed: Option<(Vec<Bytes>, io::Error)>,
}

/// How many bytes may wait for the disk: enough to overlap it with the network.
const BATCH: usize = 1 << 20;

/// How much more is reserved when a blob of unknown size has filled what was.
const STRIDE: u64 = 64 << 20;

// === impl BlobWriter ===

impl BlobWriter {
    /// Begins, or goes on with what an earlier writer left: those bytes are hashed again and can be followed at once.
    pub(super) async fn begin(store: Arc<Shared>, digest: Digest) -> Self {
        let (target, reservation) = {
            let mut books = lock(&store.books);
            if !books.known {
                (Err(Bypass::Starting), 0)
            } else if !books.begin_writing(&digest) {
                (Err(Bypass::Busy), 0)
            } else {
                (Ok(()), books.take_partial(&digest))
            }
        };
        let mut writer = Self {
            growing: Growing::new(),
            hasher: Some(Hasher::new(digest.algorithm())),
            target: Target::Memory(Bypass::Busy),
            accepted: 0,
            size: None,
            too_long: false,
            reservation: Reservation::of(&store.books, reservation),
            batch: Vec::new(),
            batch_bytes: 0,
            job: None,
            store,
            digest,
        };
        if let Err(why) = target {
            writer.growing.go_on_in_memory();
            writer.target = Target::Memory(why);
            return writer;
        }
        let (store, digest) = (Arc::clone(&writer.store), writer.digest.clone());
        match writer.store.pool.run(move || open_partial(&store, &digest)).await.map_err(io::Error::from).flatten() {
            Ok((handle, hasher, length)) => {
                writer.growing.set_file(Arc::clone(&handle));
                writer.growing.advance(length, hasher.clone());
                writer.target = Target::File(handle);
                writer.hasher = Some(hasher);
                writer.accepted = length;
            }
            Err(error) => {
                lock(&writer.store.books).end_writing(&writer.digest);
                writer.reservation.release();
                writer.growing.go_on_in_memory();
                writer.target = Target::Memory(disk_failed("open", &error));
            }
        }
        writer
    }

    /// What lets others follow.
    #[must_use]
    pub fn growth(&self) -> Growth {
        Growth(Arc::clone(&self.growing))
    }

    /// How many bytes there are: where the upstream is to go on.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Why the blob will not be kept, if so.
    #[must_use]
    pub fn bypassed(&self) -> Option<&Bypass> {
        match &self.target {
            Target::File(_) => None,
            Target::Memory(why) => Some(why),
        }
    }

    /// Says how large the blob will be, as soon as the upstream has said so, and sets space aside for it.
    pub async fn expect(&mut self, size: u64) {
        self.size = Some(size);
        self.growing.set_size(size);
        let Target::File(handle) = &self.target else { return };
        let handle = Arc::clone(handle);
        if let Err(why) = self.reserve(charge(size)).await {
            self.bypass(why);
            return;
        }
        let allocate = self.store.pool.run(move || handle.file.allocate(size));
        if let Err(error) = allocate.await.map_err(io::Error::from).flatten() {
            let why = disk_failed("allocate", &error);
            self.bypass(why);
        }
    }

    /// Forgets the bytes of an earlier writer before anyone was told of them: the upstream does not go on with them.
    pub async fn restart(&mut self) {
        self.accepted = 0;
        let hasher = Hasher::new(self.digest.algorithm());
        self.hasher = Some(hasher.clone());
        self.growing.advance(0, hasher);
        if let Target::File(handle) = &self.target {
            let handle = Arc::clone(handle);
            let truncate = self.store.pool.run(move || handle.file.truncate(0));
            if let Err(error) = truncate.await.map_err(io::Error::from).flatten() {
                let why = disk_failed("truncate", &error);
                self.bypass(why);
            }
        }
    }

    /// Accepts bytes. They move on while [`BlobWriter::progress`] is awaited. More than was announced are not accepted, and
    /// spoil the blob.
    pub fn push(&mut self, bytes: Bytes) {
        self.too_long |= self.missing().is_some_and(|missing| bytes.len() as u64 > missing);
        let lost = self.hasher.is_none() && self.job.is_none();
        if self.too_long || lost {
            return;
        }
        self.accepted += bytes.len() as u64;
        self.batch_bytes += bytes.len();
        self.batch.push(bytes);
    }

    /// True while bytes are missing that the upstream has announced.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.missing().is_some_and(|bytes| bytes > 0)
    }

    /// True if more bytes have come than were announced.
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        self.too_long
    }

    /// How many bytes are still to come, if the upstream has announced a size.
    #[must_use]
    pub fn missing(&self) -> Option<u64> {
        self.size.map(|size| size.saturating_sub(self.accepted))
    }

    /// True when enough bytes wait and no more should be pushed.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.batch_bytes >= BATCH
    }

    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.job.is_some() || !self.batch.is_empty()
    }

    /// Moves accepted bytes on: to the hash, the disk and the readers. Returns when a step is done.
    ///
    /// Cancel safe.
    pub async fn progress(&mut self) {
        if matches!(self.target, Target::Memory(_)) && self.job.is_none() {
            self.growing.room().await;
            return self.batch_to_memory();
        }
        if self.job.is_none() && !self.batch.is_empty() {
            self.begin_job().await;
        }
        if let Some(job) = &mut self.job {
            let written = job.await;
            self.job = None;
            self.end_job(written);
        }
    }

    async fn begin_job(&mut self) {
        if self.accepted > self.reservation.bytes() && self.size.is_none() {
            let enough = charge(self.accepted);
            if self.reserve(enough + STRIDE).await.is_err()
                && let Err(why) = self.reserve(enough).await
            {
                self.bypass(why);
                return;
            }
        }
        let (Target::File(handle), Some(mut hasher)) = (&self.target, self.hasher.take()) else { return };
        let (handle, growing) = (Arc::clone(handle), Arc::clone(&self.growing));
        let chunks = std::mem::take(&mut self.batch);
        let offset = self.accepted - std::mem::take(&mut self.batch_bytes) as u64;
        let end = self.accepted;
        self.job = Some(Box::pin(self.store.pool.run(move || {
            let before = hasher.clone();
            chunks.iter().for_each(|chunk| hasher.update(chunk));
            match handle.file.write_at(offset, &chunks) {
                Ok(()) => {
                    growing.advance(end, hasher.clone());
                    Written { hasher, failed: None }
                }
                Err(error) => Written { hasher: before, failed: Some((chunks, error)) },
            }
        })));
    }

    fn end_job(&mut self, written: Result<Written, Broken>) {
        match written {
            Ok(Written { hasher, failed: None }) => self.hasher = Some(hasher),
            Ok(Written { hasher, failed: Some((chunks, error)) }) => {
                self.hasher = Some(hasher);
                self.batch_bytes += chunks.iter().map(Bytes::len).sum::<usize>();
                self.batch.splice(0..0, chunks);
                let why = disk_failed("write", &error);
                self.bypass(why);
            }
            // The hash is lost with the job, so nothing can be verified any more.
            Err(Broken) => {
                self.batch.clear();
                self.batch_bytes = 0;
                self.growing.finish(End::Failed);
            }
        }
    }

    fn batch_to_memory(&mut self) {
        let Some(hasher) = &mut self.hasher else { return };
        self.batch_bytes = 0;
        for bytes in self.batch.drain(..) {
            let before = hasher.clone();
            hasher.update(&bytes);
            self.growing.push(bytes, before);
        }
    }

    async fn reserve(&mut self, total: u64) -> Result<(), Bypass> {
        let missing = total.saturating_sub(self.reservation.bytes());
        match self.store.reserve(missing).await {
            Ok(more) => {
                self.reservation.add(more);
                Ok(())
            }
            Err(NoRoom::TooLarge) => Err(Bypass::TooLarge),
            Err(NoRoom::Full) => Err(Bypass::Full),
            Err(NoRoom::Disk(error)) => Err(disk_failed("space", &error)),
        }
    }
}

/// Opens the partial file of `digest` and hashes what is in it.
fn open_partial(store: &Arc<Shared>, digest: &Digest) -> io::Result<(Arc<Handle>, Hasher, u64)> {
    let (file, length) = store.disk.open_partial(digest)?;
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; if length == 0 { 0 } else { 1 << 20 }];
    let mut offset = 0;
    while offset < length {
        let n = file.read_at(offset, &mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        offset += n as u64;
    }
    Ok((store.handle(file), hasher, offset))
}
