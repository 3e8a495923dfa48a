//! Reading a blob, finished or growing.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::sync::watch;

use super::growing::{Cut, End, Growing, Progress, Registration, Step};
use super::handle::Handle;
use super::outlet::{Flow, LEAST, Outlet, Piece};
use super::quarantine::OpenFile;

/// A verified blob of the cache, held open: eviction does not disturb it.
#[derive(Clone)]
pub struct Blob {
    pub(super) handle: Arc<Handle>,
    size: u64,
}

/// A blob on its way in, for those who may want to read it.
#[derive(Clone)]
pub struct Growth(pub(super) Arc<Growing>);

/// A blob of the cache.
pub enum Held {
    Verified(Blob),
    /// Nobody has looked at its bytes since larder was not stopped as it should be. They are being verified now.
    Doubtful(Growth),
}

/// A place in a growing blob.
struct Follower {
    registration: Registration,
    progress: watch::Receiver<Progress>,
}

/// Yields the bytes of one range in order, waiting while the blob grows. That it ends without an error implies that the
/// bytes are verified, if the range reaches the end of the blob.
pub struct BlobReader {
    source: Source,
    at: u64,
    /// `None`: to the end of a blob whose size is not known yet.
    end: Option<u64>,
    pieces: Pieces,
    /// The end of what went out unread.
    sent: u64,
    /// There while bytes go out unread.
    flow: Option<Flow>,
}

/// How a reader takes bytes. Whoever waits for them may change it at any time.
#[derive(Clone)]
pub struct Pieces(Arc<Shape>);

struct Shape {
    /// At most so many at once.
    bytes: AtomicUsize,
    /// They may go out this way unread.
    outlet: OnceLock<Arc<dyn Outlet>>,
}

enum Source {
    Blob(Arc<Handle>),
    Growing(Follower),
}

/// Why no more bytes come from the store.
pub enum ReadError {
    /// The disk took no more of the blob and this reader fell behind the memory that stands in for it. The rest is to be
    /// had from the upstream.
    Lagged(Box<Cut>),
    Disk(io::Error),
    /// The blob will never be complete, or has turned out to be wrong.
    Ended,
}

/// For those who read all of a blob at once.
const LARGEST_PIECE: usize = 256 << 10;

// === impl Blob ===

impl Blob {
    pub(super) fn new(handle: Arc<Handle>, size: u64) -> Self {
        Self { handle, size }
    }

    /// In bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    #[must_use]
    pub fn read(&self, range: Range<u64>) -> BlobReader {
        BlobReader {
            source: Source::Blob(Arc::clone(&self.handle)),
            at: range.start,
            end: Some(range.end),
            pieces: Pieces::default(),
            sent: 0,
            flow: None,
        }
    }
}

// === impl Growth ===

impl Growth {
    /// Whether both follow the same writer.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Up to where the bytes are there to be read.
    #[must_use]
    pub fn front(&self) -> u64 {
        self.0.subscribe().borrow().readable()
    }

    /// True if what was read cannot be read again: the disk does not take the blob.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.0.subscribe().borrow().in_memory
    }

    /// True if the blob will never be complete.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.0.subscribe().borrow().end == Some(End::Failed)
    }

    /// True if all bytes are there and right.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.0.subscribe().borrow().end == Some(End::Verified)
    }

    /// Lets go of what is in memory of a blob that is not kept: who reads that has fallen behind.
    pub fn let_go(&self) {
        self.0.let_go();
    }

    /// Up to where the bytes are in a file, and what they hash to: more than anyone has read there.
    #[must_use]
    pub fn filed(&self) -> Option<Cut> {
        self.0.subscribe().borrow().cut_at_filed()
    }

    /// The size, if the upstream has announced it or the end has come.
    #[must_use]
    pub fn known_size(&self) -> Option<u64> {
        self.0.subscribe().borrow().size
    }

    /// The size, waiting for the blob's end where the upstream did not announce it; `None` if it never gets complete, or is
    /// not kept: its end then does not come before someone reads.
    ///
    /// Cancel safe.
    pub async fn size(&self) -> Option<u64> {
        let mut progress = self.0.subscribe();
        let known = |progress: &Progress| progress.size.is_some() || progress.end.is_some() || progress.in_memory;
        progress.wait_for(known).await.ok()?.size
    }

    /// Waits for the end; true if the blob is verified. The end of a large blob that is not kept comes only while someone reads.
    ///
    /// Cancel safe.
    pub async fn verified(&self) -> bool {
        let mut progress = self.0.subscribe();
        progress.wait_for(|progress| progress.end.is_some()).await.is_ok_and(|progress| progress.end == Some(End::Verified))
    }

    /// Waits until the blob is verified, or will not be kept; true if it is verified.
    ///
    /// Cancel safe.
    pub async fn settled(&self) -> bool {
        let mut progress = self.0.subscribe();
        let settled = progress.wait_for(|progress| progress.end.is_some() || progress.in_memory).await;
        settled.is_ok_and(|progress| progress.end == Some(End::Verified))
    }

    /// Reads from `start` to `end`, or to the blob's end whatever that will be.
    #[must_use]
    pub fn read(&self, start: u64, end: Option<u64>) -> BlobReader {
        let follower = Follower { registration: self.0.register(start), progress: self.0.subscribe() };
        BlobReader { source: Source::Growing(follower), at: start, end, pieces: Pieces::default(), sent: 0, flow: None }
    }
}

// === impl BlobReader ===

impl BlobReader {
    /// Reads in pieces of another size.
    #[must_use]
    pub fn in_pieces(self, pieces: &Pieces) -> Self {
        Self { pieces: pieces.clone(), ..self }
    }

    /// Where the next bytes come from.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The file that it reads from, if it does.
    #[must_use]
    pub fn file(&self) -> Option<OpenFile> {
        let file = match &self.source {
            Source::Blob(handle) => Some(Arc::clone(handle)),
            Source::Growing(follower) => follower.registration.file(),
        };
        file.map(OpenFile)
    }

    /// The next bytes; `None` at the end of the range.
    ///
    /// Cancel safe: what was not returned is read again.
    ///
    /// # Errors
    /// See [`ReadError`]; nothing more comes after one.
    pub async fn next(&mut self) -> Option<Result<Bytes, ReadError>> {
        if self.end.is_some_and(|end| self.at >= end) {
            return None;
        }
        let piece = self.pieces.get();
        let bytes = match &mut self.source {
            Source::Blob(handle) => {
                let limit = piece.min(within(self.at, self.end.unwrap_or(u64::MAX)));
                read(handle, self.at, limit).await
            }
            Source::Growing(follower) => follower.next(self.at, self.end, piece).await?,
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => return Some(Err(error)),
        };
        self.moved(bytes.len());
        Some(Ok(bytes))
    }

    /// Likewise for those who only pass them on: by the outlet of the pieces, if there is one.
    ///
    /// Cancel safe: what was not returned is read again, and was not sent.
    ///
    /// # Errors
    /// As for [`BlobReader::next`].
    pub async fn next_piece(&mut self) -> Option<Result<Piece, ReadError>> {
        match self.send().await {
            Ok(Some(sent)) => Some(Ok(Piece::Sent(sent))),
            Ok(None) => {
                self.flow = None;
                Some(self.next().await?.map(Piece::Bytes))
            }
            Err(error) => Some(Err(ReadError::Disk(error))),
        }
    }

    async fn send(&mut self) -> io::Result<Option<usize>> {
        let Some(outlet) = self.pieces.0.outlet.get() else { return Ok(None) };
        let end = self.end.unwrap_or(u64::MAX);
        let file = match &self.source {
            Source::Blob(handle) => Some((Arc::clone(handle), end)),
            Source::Growing(follower) => follower.file(self.at, self.end),
        };
        let Some((file, readable)) = file else { return Ok(None) };
        let limit = within(self.at, readable.min(end));
        if limit < LEAST {
            return Ok(None);
        }
        let flow = self.flow.get_or_insert_with(|| Flow::by(outlet));
        let sent = flow.send(&file, self.at, limit).await?;
        if let Some(sent) = sent {
            self.moved(sent);
            self.sent = self.at;
        }
        Ok(sent)
    }

    /// True if the file has lost some of what went out unread. The kernel may still have had it to send, and then sent what
    /// became of it.
    #[must_use]
    pub fn has_lost_what_was_sent(&self) -> bool {
        let file = self.file().filter(|_| self.sent > 0);
        file.is_some_and(|OpenFile(file)| file.file().length().is_ok_and(|length| length < self.sent))
    }

    fn moved(&mut self, bytes: usize) {
        self.at += bytes as u64;
        if let Source::Growing(follower) = &self.source {
            follower.registration.moved(self.at);
        }
    }
}

// === impl Pieces ===

impl Pieces {
    #[must_use]
    pub fn of(bytes: usize) -> Self {
        Self(Arc::new(Shape { bytes: AtomicUsize::new(bytes), outlet: OnceLock::new() }))
    }

    #[must_use]
    pub fn get(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    pub fn set(&self, bytes: usize) {
        self.0.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Lets bytes that are in a file and in memory go out this way. That cannot be changed any more.
    pub fn go_out_by(&self, outlet: Arc<dyn Outlet>) {
        // The first stays.
        let _ = self.0.outlet.set(outlet);
    }
}

impl Default for Pieces {
    fn default() -> Self {
        Self::of(LARGEST_PIECE)
    }
}

// === impl Follower ===

impl Follower {
    /// The file that has the bytes at `at`, and up to where.
    fn file(&self, at: u64, end: Option<u64>) -> Option<(Arc<Handle>, u64)> {
        match self.registration.step(&self.progress.borrow(), at, end) {
            Step::File(file, readable) => Some((file, readable)),
            _ => None,
        }
    }

    async fn next(&mut self, at: u64, end: Option<u64>, piece: usize) -> Option<Result<Bytes, ReadError>> {
        loop {
            let next = {
                let progress = self.progress.borrow_and_update();
                self.registration.step(&progress, at, end)
            };
            return match next {
                Step::File(file, readable) => {
                    let limit = piece.min(within(at, readable.min(end.unwrap_or(u64::MAX))));
                    Some(read(&file, at, limit).await)
                }
                Step::Bytes(mut bytes) => {
                    bytes.truncate(piece.min(within(at, end.unwrap_or(u64::MAX))));
                    Some(Ok(bytes))
                }
                Step::Lagged(cut) => Some(Err(ReadError::Lagged(cut))),
                // All bytes were read: the end of a blob of unknown size, or nothing is left of a range.
                Step::End(End::Verified) if end.is_none() => None,
                Step::End(_) => Some(Err(ReadError::Ended)),
                // The writer always says how it ended before it goes; to lose it is an end as well.
                Step::Wait => match self.progress.changed().await {
                    Ok(()) => continue,
                    Err(_) => Some(Err(ReadError::Ended)),
                },
            };
        }
    }
}

async fn read(file: &Arc<Handle>, at: u64, limit: usize) -> Result<Bytes, ReadError> {
    match file.read(at, limit).await {
        Ok(_) if file.is_spoiled() => Err(ReadError::Ended),
        read => read.map_err(ReadError::Disk),
    }
}

fn within(at: u64, end: u64) -> usize {
    usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX)
}
