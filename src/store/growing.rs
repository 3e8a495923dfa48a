//! A blob on its way in, as those see it who read it meanwhile.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use crate::oci::Hasher;
use crate::sync::{Mutex, Notify, watch};
use bytes::Bytes;

use super::handle::Handle;
use super::lock;

/// What a writer publishes and readers follow. The bytes are in a file; or, from where the disk failed on, in a bounded
/// window of memory.
pub(super) struct Growing {
    file: OnceLock<Arc<Handle>>,
    progress: watch::Sender<Progress>,
    readers: Mutex<Readers>,
    /// Told when a reader has moved or left.
    moved: Notify,
}

/// How far the blob has come: `filed` ≤ the window's front ≤ `written` ≤ what its writer has accepted. Readers go up to
/// `readable`, which keeps them out of the tail, or at its beginning:
///
/// ```text
/// state          bytes before `filed`   from there to `written`          moved by
/// in the file    in the file            none                             advance: both, with each job that ends
/// `in_memory`    in the file            in the window, or gone from it   push: `written`; advance has no effect any more
/// `doubtful`     in the file, hashed    none; all `size` are filed       advance, as the verification goes on
/// `end`          as they were           as they were                     nothing but an advance that comes late
/// ```
///
/// `go_on_in_memory` leads from the first to the second, once, and may set both back to where the last job began whose end was
/// waited for; `finish` leads from each to the last. Nothing leads back.
#[derive(Default)]
pub(super) struct Progress {
    /// As announced by the upstream.
    pub(super) size: Option<u64>,
    /// Bytes hashed and readable, apart from the tail.
    pub(super) written: u64,
    /// How many of them are in the file.
    pub(super) filed: u64,
    /// No more bytes go into the file.
    pub(super) in_memory: bool,
    /// All bytes are in the file already, but are still to be verified: until then nothing of it ends, no range either.
    doubtful: bool,
    /// The newest of those that are not in the file.
    window: VecDeque<Chunk>,
    /// The state of the hash where they end.
    hash_at_filed: Option<Hasher>,
    pub(super) end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// All bytes are there and hash to the digest.
    Verified,
    /// No more bytes will come.
    Failed,
}

struct Chunk {
    start: u64,
    bytes: Bytes,
    /// The state of the hash before these bytes.
    before: Hasher,
}

/// Where someone who has fallen behind the window can go on: at `from`, hashing on from `hasher`.
#[derive(Clone)]
pub struct Cut {
    pub from: u64,
    pub hasher: Hasher,
}

#[derive(Default)]
struct Readers {
    next: u64,
    places: HashMap<u64, Place>,
}

struct Place {
    at: u64,
    cut: Option<Cut>,
}

/// One reader's registration: it counts until dropped.
pub(super) struct Registration {
    growing: Arc<Growing>,
    id: u64,
}

/// What a reader can do at its place.
pub(super) enum Step {
    /// Read from the file, up to here.
    File(Arc<Handle>, u64),
    Bytes(Bytes),
    /// Its bytes have left the window.
    Lagged(Box<Cut>),
    Wait,
    End(End),
}

/// The last bytes are withheld until the digest is known to be right: a body that is wrong then ends short.
pub const TAIL: u64 = if FEW_BYTES { 1 << 10 } else { 16 << 10 };

/// How much of a blob that the disk does not take is held in memory for readers of different speed.
const WINDOW: u64 = if FEW_BYTES { 4 << 10 } else { 8 << 20 };

/// A thousand orders of events take a while; they need not move megabytes as well.
pub(super) const FEW_BYTES: bool = cfg!(feature = "schedules");

// === impl Growing ===

impl Growing {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            file: OnceLock::new(),
            progress: watch::Sender::default(),
            readers: Mutex::default(),
            moved: Notify::new(),
        })
    }

    /// A blob whose file is complete, but not known to be right.
    pub(super) fn of_file(file: Arc<Handle>, size: u64) -> Arc<Self> {
        let growing = Self::new();
        growing.set_file(file);
        growing.progress.send_modify(|progress| (progress.size, progress.doubtful) = (Some(size), true));
        growing
    }

    // --- the writer's side ---

    pub(super) fn set_file(&self, file: Arc<Handle>) {
        let _ = self.file.set(file);
    }

    /// From `at` on, where the bytes hash to `hasher`, no more are looked for in the file: also not those of a job that ends
    /// just now.
    pub(super) fn go_on_in_memory(&self, at: u64, hasher: Hasher) {
        self.progress.send_modify(|progress| {
            progress.in_memory = true;
            (progress.written, progress.filed, progress.hash_at_filed) = (at, at, Some(hasher));
        });
    }

    pub(super) fn set_size(&self, size: u64) {
        self.progress.send_modify(|progress| progress.size = Some(size));
    }

    /// `filed` bytes are in the file, and hash to `hasher`; unless the blob has gone on in memory.
    pub(super) fn advance(&self, filed: u64, hasher: Hasher) {
        self.progress.send_if_modified(|progress| {
            // A job that comes to its end after nobody has waited for it any longer has nothing to say.
            let goes_on = !progress.in_memory;
            if goes_on {
                (progress.written, progress.filed) = (filed, filed);
                progress.hash_at_filed = Some(hasher);
            }
            goes_on
        });
    }

    /// Adds bytes to the window and takes out what is too much. `before` is the state of the hash before them.
    pub(super) fn push(&self, bytes: Bytes, before: Hasher) {
        self.progress.send_modify(|progress| {
            if progress.hash_at_filed.is_none() {
                progress.hash_at_filed = Some(before.clone());
            }
            let start = progress.written;
            progress.written += bytes.len() as u64;
            progress.window.push_back(Chunk { start, bytes, before });
            while progress.window.front().is_some_and(|chunk| progress.written - chunk.start > WINDOW + TAIL) {
                let Some(chunk) = progress.window.pop_front() else { break };
                lock(&self.readers).cut_off(&chunk);
            }
        });
    }

    /// Lets go of what is in memory: who reads it has fallen behind.
    pub(super) fn let_go(&self) {
        self.progress.send_modify(|progress| {
            let mut readers = lock(&self.readers);
            progress.window.drain(..).for_each(|chunk| readers.cut_off(&chunk));
        });
    }

    pub(super) fn finish(&self, end: End) {
        self.progress.send_if_modified(|progress| {
            let open = progress.end.is_none();
            if open {
                progress.end = Some(end);
            }
            open
        });
    }

    /// Waits until the window has room, that is, until the fastest reader is near its front. Before the first one comes, the
    /// window waits for it at its beginning; after the last has left, it waits for nobody.
    ///
    /// Cancel safe.
    pub(super) async fn room(&self) {
        loop {
            let moved = self.moved.notified();
            let (written, filed) = {
                let progress = self.progress.borrow();
                (progress.written, progress.filed)
            };
            let (nobody_more, fastest) = {
                let readers = lock(&self.readers);
                // Who waits ahead waits for the front.
                let fastest = readers.places.values().map(|place| place.at.min(written)).max();
                (readers.next > 0 && readers.places.is_empty(), fastest.unwrap_or(filed))
            };
            if nobody_more || written - fastest <= WINDOW / 2 {
                return;
            }
            moved.await;
        }
    }

    // --- the readers' side ---

    pub(super) fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(super) fn register(self: &Arc<Self>, at: u64) -> Registration {
        let progress = self.progress.borrow();
        // Who comes after the window has moved on finds a gap behind the file.
        let in_memory_from = progress.window.front().map_or(progress.written, |chunk| chunk.start);
        let gap = in_memory_from > progress.filed.max(at);
        let cut = progress.cut_at_filed().filter(|_| gap);
        let mut readers = lock(&self.readers);
        let id = readers.next;
        readers.next += 1;
        readers.places.insert(id, Place { at, cut });
        self.moved.notify_waiters();
        Registration { growing: Arc::clone(self), id }
    }
}

// === impl Progress ===

impl Progress {
    /// Up to where readers may go: not into the tail before the digest is verified.
    pub(super) fn readable(&self) -> u64 {
        match (self.end, self.size) {
            (Some(End::Verified), _) => self.written,
            (_, Some(size)) => self.written.min(size.saturating_sub(TAIL)),
            (_, None) => self.written.saturating_sub(TAIL),
        }
    }

    /// The same for a reader who reads up to `end`.
    fn readable_to(&self, end: Option<u64>) -> u64 {
        match (self.doubtful, self.end) {
            (true, None) => self.readable().min(end.map_or(u64::MAX, |end| end.saturating_sub(1))),
            (true, Some(End::Failed)) => 0,
            _ => self.readable(),
        }
    }

    pub(super) fn cut_at_filed(&self) -> Option<Cut> {
        self.hash_at_filed.clone().map(|hasher| Cut { from: self.filed, hasher })
    }
}

// === impl Readers ===

impl Readers {
    /// A chunk leaves the window: who has not read it must go on elsewhere.
    fn cut_off(&mut self, chunk: &Chunk) {
        let end = chunk.start + chunk.bytes.len() as u64;
        for place in self.places.values_mut().filter(|place| place.at < end && place.cut.is_none()) {
            place.cut = Some(Cut { from: chunk.start, hasher: chunk.before.clone() });
        }
    }
}

// === impl Registration ===

impl Registration {
    /// What is to be done at `at`, on the way to `end`.
    pub(super) fn step(&self, progress: &Progress, at: u64, end: Option<u64>) -> Step {
        let readable = progress.readable_to(end);
        if at < readable.min(progress.filed)
            && let Some(file) = self.growing.file.get()
        {
            return Step::File(Arc::clone(file), readable.min(progress.filed));
        }
        if at < readable {
            let cut = lock(&self.growing.readers).places.get(&self.id).and_then(|place| place.cut.clone());
            if let Some(cut) = cut {
                return Step::Lagged(Box::new(cut));
            }
            let chunk = progress.window.iter().rev().find(|chunk| chunk.start <= at);
            return match chunk {
                Some(chunk) => {
                    let end = usize::try_from(readable - chunk.start).map_or(chunk.bytes.len(), |n| n.min(chunk.bytes.len()));
                    let begin = usize::try_from(at - chunk.start).unwrap_or(end);
                    Step::Bytes(chunk.bytes.slice(begin..end))
                }
                None => Step::End(End::Failed),
            };
        }
        progress.end.map_or(Step::Wait, Step::End)
    }

    pub(super) fn file(&self) -> Option<Arc<Handle>> {
        self.growing.file.get().cloned()
    }

    pub(super) fn moved(&self, at: u64) {
        if let Some(place) = lock(&self.growing.readers).places.get_mut(&self.id) {
            place.at = at;
        }
        self.growing.moved.notify_waiters();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.growing.readers).places.remove(&self.id);
        self.growing.moved.notify_waiters();
    }
}
