//! Bytes on their way to the disk: one thread hashes them while another writes them, and both find the next ones ready.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{Either, FutureExt as _, join};

use crate::oci::Hasher;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

use super::super::pool::{Lane, caught};
use super::super::{Shared, lock};
use super::Bypass;
use super::partial::PartialFile;

/// The jobs of one writer, in the order of their bytes.
pub(super) struct Jobs {
    store: Arc<Shared>,
    hashing: Lane,
    writing: Lane,
    /// What those that are under way hash on, one after the other.
    hasher: Arc<Mutex<Hasher>>,
    /// One of them has failed. Nothing is written behind what is not there: the length of the file says what is.
    broken: Arc<AtomicBool>,
    underway: VecDeque<Job>,
}

struct Job {
    /// The hash after its bytes.
    ended: Pin<Box<dyn Future<Output = Result<Hasher, Bypass>> + Send>>,
    /// For the case that they do not get there.
    chunks: Vec<Bytes>,
    /// It is in its lanes; it is not while room is made for it.
    in_lane: bool,
}

/// One is at work, one follows it.
const AT_ONCE: usize = 2;

// === impl Jobs ===

impl Jobs {
    pub(super) fn new(store: &Arc<Shared>, hasher: &Hasher) -> Self {
        Self {
            store: Arc::clone(store),
            hashing: store.writes.lane(),
            writing: store.writes.lane(),
            hasher: Arc::new(Mutex::new(hasher.clone())),
            broken: Arc::default(),
            underway: VecDeque::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.underway.is_empty()
    }

    /// Whether another may begin. None may before all others are in their lanes, or it would be written first: a file that is longer
    /// than what it holds is believed after a crash.
    pub(super) fn has_room(&self) -> bool {
        self.underway.len() < AT_ONCE && self.underway.iter().all(|job| job.in_lane)
    }

    /// Begins the next. `before`: the hash of all bytes before the first that is under way. `room`: what is to be done before
    /// anything is written; the job begins at once where there is nothing. `then` is told the hash, if all went well.
    pub(super) fn begin(
        &mut self,
        before: &Hasher,
        partial: Arc<PartialFile>,
        offset: u64,
        chunks: Vec<Bytes>,
        room: Option<impl Future<Output = Result<(), Bypass>> + Send + 'static>,
        then: impl FnOnce(Hasher) + Send + 'static,
    ) {
        if self.underway.is_empty() {
            (self.hasher, self.broken) = (Arc::new(Mutex::new(before.clone())), Arc::default());
        }
        let (hasher, to_hash) = (Arc::clone(&self.hasher), chunks.clone());
        let hashed = self.hashing.soon(move || {
            let mut hasher = lock(&hasher);
            to_hash.iter().for_each(|chunk| hasher.update(chunk));
            hasher.clone()
        });
        let (broken, to_write) = (Arc::clone(&self.broken), chunks.clone());
        let write = move || {
            if broken.load(Ordering::Relaxed) {
                return Err(io::Error::other("what comes before is not there"));
            }
            let written = caught(|| partial.write_at(offset, &to_write));
            broken.fetch_or(written.is_err(), Ordering::Relaxed);
            written
        };
        let in_lane = room.is_none();
        let written = match room {
            None => Either::Left(self.writing.soon(write).map(Ok)),
            Some(room) => {
                let writing = self.writing.clone();
                Either::Right(async move { room.await.map(|()| writing.soon(write))?.map(Ok).await })
            }
        };
        let store = Arc::clone(&self.store);
        let ended = async move {
            let (hashed, written) = join(hashed, written).await;
            let failed = |error: io::Error| store.disk_failed("write", &error);
            written?.map_err(io::Error::from).flatten().map_err(failed)?;
            let hasher = hashed.map_err(io::Error::from).map_err(failed)?;
            then(hasher.clone());
            Ok(hasher)
        };
        self.underway.push_back(Job { ended: Box::pin(ended), chunks, in_lane });
    }

    /// How the first of them ends; `None` if there is none.
    ///
    /// Cancel safe.
    pub(super) async fn end_of_first(&mut self) -> Option<Result<Hasher, Bypass>> {
        let ended = (&mut self.underway.front_mut()?.ended).await;
        if ended.is_ok() {
            self.underway.pop_front();
        }
        Some(ended)
    }

    /// Gives back the bytes of all that are under way, of which the first has failed.
    pub(super) fn take_back(&mut self) -> Vec<Bytes> {
        self.underway.drain(..).flat_map(|job| job.chunks).collect()
    }
}
