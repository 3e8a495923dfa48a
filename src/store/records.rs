//! What bytes do not tell: which digest a tag had, which repository has proven to hold which digest, and what is pinned.
//!
//! Kept in memory and in a log of lines that `cat` shows. The last line about a thing counts; `untag`, `unproof` and
//! `unpin` take back. When most lines are outdated the log is written anew.

mod kinds;
mod known;
mod line;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::metrics::Metrics;
use crate::oci::{Digest, Reference, Repository, Tag};
use crate::sync::{Mutex, MutexGuard, Notify};

use super::disk::{Disk, File};
use super::lock;
use super::pool::{Pool, caught};

pub(super) use kinds::Hold;
pub use kinds::{Kind, Known, Pin, Proof, TagRecord, Tally};
use known::Place;
use line::Line;

/// The log and what it says.
pub(super) struct Records {
    shared: Arc<Shared>,
    disk: Arc<Disk>,
    pool: Pool,
}

struct Shared {
    state: Mutex<State>,
    /// Told when a job has written all there was.
    written: Notify,
    metrics: Metrics,
}

struct State {
    known: known::Known,
    log: Log,
}

#[derive(Default)]
struct Log {
    file: Option<Arc<File>>,
    /// Lines to append; a job is at it while `writing`.
    pending: String,
    writing: bool,
    /// The last line may have been written in part.
    torn: bool,
    /// Some lines could not be written: the log is to be written anew.
    lost: bool,
    /// Of what was written before, some or all could not be read.
    unread: Unread,
    lines: usize,
    /// How many there were when it was last written anew.
    lines_then: usize,
}

/// How much of the log could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Unread {
    #[default]
    Nothing,
    Lines,
    /// It is left as it is, for whoever can make sense of it.
    All,
}

const NAME: &str = "records";
const HEADER: &str = "larder records 1\n";

/// Below this many lines the log is never written anew.
const FEW: usize = 4096;

// === impl Records ===

impl Records {
    /// Reads the log. `sealed`: nobody could be asked again. Lines that cannot be read are passed over with a warning: what they said is asked again upstream.
    pub(super) fn open(disk: Arc<Disk>, pool: Pool, sealed: bool, metrics: Metrics) -> Self {
        let state = Mutex::new(State { known: known::Known::new(sealed, metrics.clone()), log: Log::default() });
        let records = Self { shared: Arc::new(Shared { state, written: Notify::default(), metrics }), disk, pool };
        match records.read() {
            // What is there now is in memory, and is written anew where it cannot be gone on with.
            Ok(whole) => match records.begin(whole) {
                Ok(file) => records.lock().log.file = Some(Arc::new(file)),
                Err(error) => {
                    records.lock().log.lost = true;
                    tracing::error!(%error, "the records cannot be gone on with; all are written anew when the disk takes them");
                }
            },
            Err(error) => {
                records.lock().log.unread = Unread::All;
                tracing::error!(
                    %error,
                    "the records cannot be read; until a start at which they can be, nothing is evicted and nothing recorded"
                );
            }
        }
        records
    }

    /// Takes what the log says. Returns how long its whole lines are; what follows the last of them was cut off by a crash. 0: there
    /// is none yet.
    fn read(&self) -> io::Result<u64> {
        let bytes = match self.disk.read(NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            read => read?,
        };
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let text = String::from_utf8_lossy(&bytes[..whole]);
        let lines = text.strip_prefix(HEADER).ok_or_else(|| io::Error::other("they are of another version"))?;
        let mut state = self.lock();
        for line in lines.lines().filter(|line| !line.is_empty()) {
            state.log.lines += 1;
            if let Some(line) = Line::read(line) {
                state.known.take(line);
            } else {
                state.log.unread = Unread::Lines;
                tracing::warn!(line, "a record cannot be read; passed over");
            }
        }
        Ok(whole as u64)
    }

    fn begin(&self, whole: u64) -> io::Result<File> {
        if whole == 0 {
            self.disk.replace(NAME, HEADER.as_bytes())?;
        }
        self.disk.open_log(NAME, whole.max(HEADER.len() as u64))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Option<TagRecord> {
        self.lock().known.tag(repository, tag)
    }

    pub(super) fn ask_tag(&self, repository: &Repository, tag: &Tag) -> Option<(TagRecord, bool)> {
        self.lock().known.ask_tag(repository, tag)
    }

    pub(super) fn set_tag(&self, repository: &Repository, tag: &Tag, record: &TagRecord) {
        let mut state = self.lock();
        let before = state.known.set_tag(repository, tag, record.clone());
        // That a tag was looked at again is worth a line once an hour; that it moved, always.
        let known = before.is_some_and(|old| old.digest == record.digest && old.checked.same_hour(record.checked));
        if !known {
            self.append(&mut state, &Line::Tag(repository.clone(), tag.clone(), record.clone()));
        }
    }

    pub(super) fn remove_tag(&self, repository: &Repository, tag: &Tag) {
        let mut state = self.lock();
        if state.known.remove_tag(repository, tag) {
            self.append(&mut state, &Line::Untag(repository.clone(), tag.clone()));
        }
    }

    pub(super) fn proof(&self, repository: &Repository, digest: &Digest, kind: Kind) -> Option<Proof> {
        self.lock().known.proof(repository, digest, kind)
    }

    pub(super) fn set_proof(&self, repository: &Repository, digest: &Digest, proof: Proof) {
        let mut state = self.lock();
        let before = state.known.set_proof(repository, digest, proof.clone());
        // As with tags: that it was proven again is worth a line once an hour.
        if !before.is_some_and(|before| before.says_the_same(&proof)) {
            self.append(&mut state, &Line::Proof(repository.clone(), digest.clone(), proof));
        }
    }

    pub(super) fn remove_proof(&self, repository: &Repository, digest: &Digest, kind: Kind) {
        let mut state = self.lock();
        if state.known.remove_proof(repository, digest, kind) {
            self.append(&mut state, &Line::Unproof(repository.clone(), digest.clone(), kind));
        }
    }

    pub(super) fn tally(&self, name: &str) -> Option<Tally> {
        self.lock().known.tally(name)
    }

    pub(super) fn set_tally(&self, name: &str, tally: Tally) {
        let mut state = self.lock();
        if state.known.set_tally(name, tally) != Some(tally) {
            self.append(&mut state, &Line::Tally(name.to_owned(), tally));
        }
    }

    /// Returns what the name pinned before.
    pub(super) fn set_pin(&self, repository: &Repository, reference: &Reference, digest: &Digest) -> Option<Digest> {
        let mut state = self.lock();
        let before = state.known.set_pin(repository.clone(), reference.clone(), digest.clone());
        if before.as_ref() != Some(digest) {
            self.append(&mut state, &Line::Pin(repository.clone(), reference.clone(), digest.clone()));
        }
        before
    }

    /// Returns what the name pinned.
    pub(super) fn remove_pin(&self, repository: &Repository, reference: &Reference) -> Option<Digest> {
        let mut state = self.lock();
        let before = state.known.remove_pin(repository, reference)?;
        self.append(&mut state, &Line::Unpin(repository.clone(), reference.clone()));
        Some(before)
    }

    pub(super) fn pins(&self) -> Vec<Pin> {
        let pin = |((repository, reference), digest): (&(Repository, Reference), &Digest)| Pin {
            repository: repository.clone(),
            reference: reference.clone(),
            digest: digest.clone(),
        };
        self.lock().known.pins().map(pin).collect()
    }

    /// Tells of all tags and proofs, a stretch at a time, so that nobody who asks meanwhile waits for all of it.
    pub(super) fn each(&self, mut tell: impl FnMut(Known)) {
        self.shared.each_stretch(
            |_, _| true,
            |lines| {
                lines.into_iter().for_each(|line| match line {
                    Line::Tag(repository, tag, record) => tell(Known::Tag(repository, tag, record)),
                    Line::Proof(repository, digest, proof) => tell(Known::Proof(repository, digest, proof)),
                    Line::Untag(..) | Line::Unproof(..) | Line::Pin(..) | Line::Unpin(..) | Line::Tally(..) => {}
                });
            },
        );
    }

    /// What something has been recorded or taken back of since this was last asked. `None`: of anything.
    pub(super) fn changed(&self) -> Option<HashSet<Digest>> {
        self.lock().known.changed.take()
    }

    /// The repositories that have proven to hold a digest as a manifest, each with the tags that mean it there.
    pub(super) fn named(&self, digest: &Digest) -> Vec<(Repository, Vec<Tag>)> {
        self.lock().known.named(digest)
    }

    /// The repositories that have proven to hold a digest, and as what.
    pub(super) fn held_by(&self, digest: &Digest) -> Vec<(Repository, Kind)> {
        self.lock().known.held_by(digest)
    }

    /// The digests that are manifests, as far as the records tell.
    pub(super) fn manifests(&self) -> Vec<Digest> {
        self.lock().known.manifests()
    }

    /// Forgets what is said of digests that are no longer `held`, of which there are so many `blobs`, and what was said longest
    /// ago where that is too much: once the log has grown enough to be worth writing anew, or lacks lines that could not be
    /// written.
    pub(super) fn compact(&self, blobs: usize, held: impl Fn(&Digest) -> Hold + Send + 'static) {
        let most;
        {
            let mut state = self.lock();
            most = state.known.most(blobs);
            let outgrown = state.log.lines >= FEW + 2 * state.log.lines_then || state.known.len() > most;
            if state.log.writing || state.log.unread == Unread::All || !(outgrown || state.log.lost) {
                return;
            }
            // What is recorded from here on is appended behind what is written anew.
            state.log.pending.clear();
            state.log.lines = 0;
            state.log.writing = true;
        }
        let (disk, shared) = (Arc::clone(&self.disk), Arc::clone(&self.shared));
        self.pool.start(move || {
            let log = caught(|| {
                let (text, lines) = shared.all(most, held);
                let mut state = lock(&shared.state);
                state.log.lines += lines;
                state.log.lines_then = lines;
                drop(state);
                disk.replace(NAME, text.as_bytes()).and_then(|()| disk.open_log(NAME, text.len() as u64))
            });
            let mut state = lock(&shared.state);
            state.log.lost = log.is_err();
            match log {
                Ok(file) => (state.log.file, state.log.torn) = (Some(Arc::new(file)), false),
                Err(error) => tracing::error!(%error, "the records could not be written anew"),
            }
            drop(state);
            shared.append_pending();
        });
    }

    /// True if the log lacks what could not be written.
    pub(super) fn are_lost(&self) -> bool {
        let log = &self.lock().log;
        log.lost || log.unread == Unread::All
    }

    /// True if nothing is known of what was recorded before, and so of what is pinned.
    pub(super) fn are_unread(&self) -> bool {
        self.lock().log.unread == Unread::All
    }

    /// True if all that was recorded is known.
    pub(super) fn are_whole(&self) -> bool {
        self.lock().log.unread == Unread::Nothing
    }

    /// Waits until what was recorded is on the disk. No thread waits: all of them may be needed for what is waited for.
    ///
    /// Cancel safe.
    pub(super) async fn flush(&self) {
        loop {
            let written = self.shared.written.notified();
            if !self.lock().log.writing {
                return;
            }
            written.await;
        }
    }

    fn append(&self, state: &mut State, line: &Line) {
        // Writing to a string does not fail.
        let _ = write!(state.log.pending, "{line}");
        state.log.lines += 1;
        // Lines that come while a job writes are written by that job: one sync for all of them.
        if !state.log.writing {
            state.log.writing = true;
            let shared = Arc::clone(&self.shared);
            self.pool.start(move || shared.append_pending());
        }
    }
}

// === impl Shared ===

impl Shared {
    /// The whole log as it is to be, and how many lines it has. It is made a stretch at a time, so that nobody who asks
    /// meanwhile waits for all of it.
    fn all(&self, most: usize, held: impl Fn(&Digest) -> Hold) -> (String, usize) {
        let (since, mut forgotten) = (self.oldest_of(most), 0);
        let (mut text, mut written) = (String::from(HEADER), 0);
        let mut write = |lines: Vec<Line>| {
            written += lines.len();
            lines.iter().for_each(|line| _ = write!(text, "{line}"));
        };
        write(lock(&self.state).known.lasting());
        let keep = |digest: &Digest, date| {
            let hold = held(digest);
            forgotten += usize::from(hold == Hold::Loose && date < since);
            hold == Hold::Pinned || hold == Hold::Loose && date >= since
        };
        self.each_stretch(keep, &mut write);
        self.metrics.forgotten("record", forgotten);
        (text, written)
    }

    /// From when on records are kept, if there are to be no more than `most`.
    fn oldest_of(&self, most: usize) -> Timestamp {
        let mut dates = Vec::new();
        if lock(&self.state).known.len() > most {
            let date = |_: &Digest, date| {
                dates.push(date);
                true
            };
            self.each_stretch(date, drop);
        }
        // A few more go, so that it need not be done again at once.
        match dates.len().checked_sub(most - most / 8) {
            Some(too_many) if too_many < dates.len() => *dates.select_nth_unstable(too_many).1,
            _ => Timestamp::default(),
        }
    }

    fn each_stretch(&self, mut keep: impl FnMut(&Digest, Timestamp) -> bool, mut kept: impl FnMut(Vec<Line>)) {
        let mut next = Some(Place::Tags(0));
        while let Some(place) = next {
            let mut lines = Vec::new();
            next = lock(&self.state).known.stretch(place, &mut keep, &mut lines);
            kept(lines);
        }
    }

    fn append_pending(&self) {
        loop {
            let (mut lines, file) = {
                let mut state = lock(&self.state);
                let lines = std::mem::take(&mut state.log.pending);
                match &state.log.file {
                    Some(file) if !lines.is_empty() => (lines, Arc::clone(file)),
                    _ => {
                        state.log.writing = false;
                        self.written.notify_waiters();
                        return;
                    }
                }
            };
            if std::mem::take(&mut lock(&self.state).log.torn) {
                lines.insert(0, '\n');
            }
            if let Err(error) = caught(|| file.append(lines.as_bytes())) {
                tracing::error!(%error, "records could not be written; all are written anew when the disk takes them");
                let mut state = lock(&self.state);
                (state.log.torn, state.log.lost) = (true, true);
            }
        }
    }
}
