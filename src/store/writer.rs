//! Bringing a blob in: hash, write, verify, commit.

mod begin;
mod end;
mod jobs;
mod partial;
mod space;

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::oci::{Digest, Hasher};

use super::Shared;
use super::books::Claim;
use super::growing::{FEW_BYTES, Growing};
use super::reader::Growth;

use jobs::Jobs;
use partial::PartialFile;

pub use end::Finished;

/// Takes the bytes of one blob. What it holds is invisible to the cache until [`BlobWriter::finish`] has verified, synced
/// and renamed it; who follows it sees its bytes at once, apart from the tail.
///
/// Trouble with the disk is not the caller's: the writer then goes on in memory, where readers of about the same speed
/// find the bytes, and nothing is kept. Dropped, it leaves a partial file for the next writer.
pub struct BlobWriter {
    store: Arc<Shared>,
    digest: Digest,
    /// To be the one who brings it, where that was not known at the beginning.
    claim: Option<Claim>,
    growing: Arc<Growing>,
    target: Target,
    hasher: Hasher,
    /// It comes from an upstream, which may say and send anything.
    sent: bool,
    /// Bytes accepted, written or not.
    accepted: u64,
    size: Option<u64>,
    /// Of the disk, for so many bytes, space is still to be had.
    to_allocate: Option<u64>,
    too_long: bool,
    /// Accepted, but not yet given to a job.
    batch: Vec<Bytes>,
    batch_bytes: usize,
    jobs: Jobs,
}

enum Target {
    File(Arc<PartialFile>),
    Memory(Bypass),
}

/// Why a blob goes past the cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Bypass {
    #[error("the cache is still being counted")]
    Starting,
    #[error("the blob is larger than the cache")]
    TooLarge,
    #[error("there is no room: the disk is full, or what takes it is in use, or has been used more than once")]
    Full,
    #[error("the cache takes more than cache.max_size already; give the --config of the larder that serves it")]
    Over,
    #[error("it is being written already")]
    Busy,
    #[error("it is not what its digest promises")]
    WrongBytes,
    #[error("the disk failed: {0}")]
    Disk(String),
}

/// How many bytes may wait for a job: enough to overlap the disk with the network.
const BATCH: usize = 1 << 20;
/// So many are given to a job that follows the one under way: few enough to be still in the processor's cache when they are hashed.
const NEXT: usize = if FEW_BYTES { 1 } else { 256 << 10 };

/// Of a blob of [`LARGE`] bytes or more, so many are given to those who wait before the rest of what has come is looked at, and
/// before the disk has found space for all of it, which takes as long as an upstream nearby takes to answer.
const FIRST: usize = 64 << 10;
const LARGE: u64 = 4 << 20;

// === impl BlobWriter ===

impl BlobWriter {
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

    /// How large the blob will be, if the upstream has announced it.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Why the blob will not be kept, if so.
    #[must_use]
    pub fn bypassed(&self) -> Option<&Bypass> {
        match &self.target {
            Target::File(_) => None,
            Target::Memory(why) => Some(why),
        }
    }

    /// Accepts bytes. They move on while [`BlobWriter::progress`] is awaited. More than was announced are not accepted, and
    /// spoil the blob.
    pub fn push(&mut self, bytes: Bytes) {
        self.too_long |= self.missing().is_some_and(|missing| bytes.len() as u64 > missing);
        if self.too_long {
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
        !self.jobs.is_empty() || !self.batch.is_empty()
    }

    /// Moves accepted bytes on: to the hash, the disk and the readers. Returns when a step is done.
    ///
    /// Cancel safe.
    pub async fn progress(&mut self) {
        if matches!(self.target, Target::Memory(_)) && self.jobs.is_empty() {
            self.growing.room().await;
            return self.batch_to_memory();
        }
        if self.jobs.is_empty() && !self.batch.is_empty() {
            self.begin_job();
        }
        // So that those who hash and write need not wait for who waits for them.
        if self.batch_bytes >= NEXT && self.to_allocate.is_none() && self.jobs.has_room() {
            self.begin_job();
        }
        match self.jobs.end_of_first().await {
            None => {}
            Some(Ok(hasher)) => self.hasher = hasher,
            Some(Err(why)) => {
                let chunks = self.jobs.take_back();
                self.batch_bytes += chunks.iter().map(Bytes::len).sum::<usize>();
                self.batch.splice(0..0, chunks);
                self.bypass(why);
            }
        }
    }

    fn begin_job(&mut self) {
        let Target::File(partial) = &self.target else { return };
        let partial = Arc::clone(partial);
        let offset = self.accepted - self.batch_bytes as u64;
        let is_first = offset == 0 && self.size.is_some_and(|size| size >= LARGE);
        let chunks = if is_first { self.first_of_batch() } else { std::mem::take(&mut self.batch) };
        self.batch_bytes -= chunks.iter().map(Bytes::len).sum::<usize>();
        let end = self.accepted - self.batch_bytes as u64;
        let to_allocate = if is_first { None } else { self.to_allocate.take() };
        let to_reserve = (end > partial.reserved()).then(|| self.next_strides(end));
        let (store, file, growing) = (Arc::clone(&self.store), Arc::clone(&partial), Arc::clone(&self.growing));
        let room = (to_reserve.is_some() || to_allocate.is_some()).then_some(async move {
            if let Some(strides) = to_reserve {
                space::reserve_first(&store, &file, strides).await?;
            }
            if let Some(size) = to_allocate {
                let allocating = Arc::clone(&file);
                let allocated = store.writes.soon(move || allocating.file().allocate(size));
                allocated.await.map_err(io::Error::from).flatten().map_err(|error| store.disk_failed("allocate", &error))?;
            }
            Ok(())
        });
        self.jobs.begin(&self.hasher, partial, offset, chunks, room, move |hasher| growing.advance(end, hasher));
    }

    fn first_of_batch(&mut self) -> Vec<Bytes> {
        let Some(chunk) = self.batch.first_mut() else { return Vec::new() };
        let first = chunk.split_to(FIRST.min(chunk.len()));
        if chunk.is_empty() {
            self.batch.remove(0);
        }
        vec![first]
    }

    fn batch_to_memory(&mut self) {
        self.batch_bytes = 0;
        for bytes in self.batch.drain(..) {
            let before = self.hasher.clone();
            self.hasher.update(&bytes);
            self.growing.push(bytes, before);
        }
    }

    fn go_on_in_memory(&mut self, why: Bypass) {
        self.store.metrics.bypassed(why.word());
        self.growing.go_on_in_memory(self.accepted - self.batch_bytes as u64, self.hasher.clone());
        self.target = Target::Memory(why);
    }
}

// === impl Bypass ===

impl Bypass {
    /// In a word, for metrics.
    fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::TooLarge => "too_large",
            Self::Full => "full",
            Self::Over => "over",
            Self::Busy => "busy",
            Self::WrongBytes => "wrong_bytes",
            Self::Disk(_) => "disk",
        }
    }
}
