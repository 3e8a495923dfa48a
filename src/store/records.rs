//! What bytes do not tell: which digest a tag had, and which repository has proven to hold which digest.
//!
//! Kept in memory and in a log of lines that `cat` shows. The last line about a thing counts; `untag` and `unproof` take
//! back. When most lines are outdated the log is written anew.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::oci::{Digest, Repository, Tag};
use crate::sync::{Mutex, MutexGuard, Notify};

use super::disk::{Disk, File};
use super::lock;
use super::pool::{Pool, caught};

/// The log and what it says.
pub(super) struct Records {
    shared: Arc<Shared>,
    disk: Arc<Disk>,
    pool: Pool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when a job has written all there was.
    written: Notify,
}

#[derive(Default)]
struct State {
    repositories: Vec<Repository>,
    ids: HashMap<Repository, u32>,
    tags: HashMap<(u32, Tag), TagRecord>,
    proofs: HashMap<Digest, Vec<(u32, Proof)>>,
    tallies: HashMap<String, Tally>,
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
    lines: usize,
    /// How many there were when it was last written anew.
    lines_then: usize,
}

/// What a tag pointed to when the upstream was last asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRecord {
    pub digest: Digest,
    pub checked: Timestamp,
}

/// The upstream has answered for a digest in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// In bytes.
    pub size: u64,
    /// For a manifest: the media type it is served with. `None` for a blob.
    pub media_type: Option<String>,
    /// When it did so last. Very long ago if it is not known.
    pub proven: Timestamp,
}

/// What has been counted under some name since some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub since: Timestamp,
    pub amount: u64,
}

/// As what a repository holds a digest. One says nothing of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Blob,
    Manifest,
}

const NAME: &str = "records";
const HEADER: &str = "larder records 1\n";

/// Below this many lines the log is never written anew.
const FEW: usize = 4096;

// === impl Records ===

impl Records {
    /// Reads the log. Lines that cannot be read are passed over with a warning: what they said is asked again upstream.
    pub(super) fn open(disk: Arc<Disk>, pool: Pool) -> Self {
        let records = Self { shared: Arc::default(), disk, pool };
        match records.read() {
            Ok(file) => records.lock().log.file = Some(Arc::new(file)),
            // What is there is left as it is, for whoever can make sense of it.
            Err(error) => tracing::error!(%error, "the records cannot be used; tags and proofs last until the next start"),
        }
        records
    }

    fn read(&self) -> io::Result<File> {
        let bytes = match self.disk.read(NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.disk.replace(NAME, HEADER.as_bytes())?;
                HEADER.as_bytes().to_vec()
            }
            read => read?,
        };
        // What follows the last line end was cut off by a crash.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let text = String::from_utf8_lossy(&bytes[..whole]);
        let lines = text.strip_prefix(HEADER).ok_or_else(|| io::Error::other("they are of another version"))?;
        let mut state = self.lock();
        for line in lines.lines().filter(|line| !line.is_empty()) {
            state.log.lines += 1;
            if state.read(line).is_none() {
                tracing::warn!(line, "a record cannot be read; passed over");
            }
        }
        drop(state);
        self.disk.open_log(NAME, whole as u64)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Option<TagRecord> {
        let state = self.lock();
        state.tags.get(&(*state.ids.get(repository)?, tag.clone())).cloned()
    }

    pub(super) fn set_tag(&self, repository: &Repository, tag: &Tag, record: &TagRecord) {
        let mut state = self.lock();
        let id = state.id(repository);
        let line = tag_line(repository, tag, record);
        let before = state.tags.insert((id, tag.clone()), record.clone());
        // That a tag was looked at again is worth a line once an hour; that it moved, always.
        let known = before.is_some_and(|old| old.digest == record.digest && old.checked.same_hour(record.checked));
        if !known {
            self.append(&mut state, &line);
        }
    }

    pub(super) fn remove_tag(&self, repository: &Repository, tag: &Tag) {
        let mut state = self.lock();
        let Some(id) = state.ids.get(repository).copied() else { return };
        if state.tags.remove(&(id, tag.clone())).is_some() {
            self.append(&mut state, &format!("untag {} {} {tag}\n", repository.upstream, repository.name));
        }
    }

    pub(super) fn proof(&self, repository: &Repository, digest: &Digest, kind: Kind) -> Option<Proof> {
        let state = self.lock();
        let id = *state.ids.get(repository)?;
        state.proofs.get(digest)?.iter().find(|(by, proof)| *by == id && proof.kind() == kind).map(|(_, proof)| proof.clone())
    }

    pub(super) fn set_proof(&self, repository: &Repository, digest: &Digest, proof: Proof) {
        let mut state = self.lock();
        let id = state.id(repository);
        let proofs = state.proofs.entry(digest.clone()).or_default();
        let line = proof_line(repository, digest, &proof);
        // As with tags: that it was proven again is worth a line once an hour.
        let old = proofs.iter().position(|(by, old)| *by == id && old.kind() == proof.kind());
        let said = old.is_some_and(|at| proofs.swap_remove(at).1.says_the_same(&proof));
        proofs.push((id, proof));
        if !said {
            self.append(&mut state, &line);
        }
    }

    pub(super) fn remove_proof(&self, repository: &Repository, digest: &Digest, kind: Kind) {
        let mut state = self.lock();
        let Some(id) = state.ids.get(repository).copied() else { return };
        let Some(proofs) = state.proofs.get_mut(digest) else { return };
        let before = proofs.len();
        proofs.retain(|(by, proof)| *by != id || proof.kind() != kind);
        if proofs.len() < before {
            let Repository { upstream, name } = repository;
            self.append(&mut state, &format!("unproof {upstream} {name} {digest} {}\n", kind.word()));
        }
    }

    pub(super) fn tally(&self, name: &str) -> Option<Tally> {
        self.lock().tallies.get(name).copied()
    }

    pub(super) fn set_tally(&self, name: &str, tally: Tally) {
        let mut state = self.lock();
        if state.tallies.insert(name.to_owned(), tally) != Some(tally) {
            self.append(&mut state, &tally_line(name, tally));
        }
    }

    /// The digests that are manifests, as far as the records tell.
    pub(super) fn manifests(&self) -> Vec<Digest> {
        let state = self.lock();
        let is_manifest = |proofs: &[(u32, Proof)]| proofs.iter().any(|(_, proof)| proof.media_type.is_some());
        state.proofs.iter().filter(|(_, proofs)| is_manifest(proofs)).map(|(digest, _)| digest.clone()).collect()
    }

    /// Forgets what is said of digests that are no longer `held`, once the log has grown enough to be worth writing anew, or
    /// lacks lines that could not be written.
    pub(super) fn compact(&self, held: impl Fn(&Digest) -> bool) {
        let text = {
            let mut state = self.lock();
            let outgrown = state.log.lines >= FEW + 2 * state.log.lines_then;
            if state.log.writing || !(outgrown || state.log.lost) {
                return;
            }
            state.proofs.retain(|digest, _| held(digest));
            state.tags.retain(|_, record| held(&record.digest));
            state.log.pending.clear();
            state.log.writing = true;
            state.log.lines = state.tallies.len() + state.tags.len() + state.proofs.values().map(Vec::len).sum::<usize>();
            state.log.lines_then = state.log.lines;
            state.text()
        };
        let (disk, shared) = (Arc::clone(&self.disk), Arc::clone(&self.shared));
        self.pool.start(move || {
            let log = caught(|| disk.replace(NAME, text.as_bytes()).and_then(|()| disk.open_log(NAME, text.len() as u64)));
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
        self.lock().log.lost
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

    fn append(&self, state: &mut State, line: &str) {
        state.log.pending.push_str(line);
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

// === impl State ===

impl State {
    fn id(&mut self, repository: &Repository) -> u32 {
        if let Some(id) = self.ids.get(repository) {
            return *id;
        }
        let id = u32::try_from(self.repositories.len()).expect("fewer than 2^32 repositories");
        self.repositories.push(repository.clone());
        self.ids.insert(repository.clone(), id);
        id
    }

    fn text(&self) -> String {
        let mut text = String::from(HEADER);
        self.tallies.iter().for_each(|(name, tally)| text.push_str(&tally_line(name, *tally)));
        for ((id, tag), record) in &self.tags {
            text.push_str(&tag_line(&self.repositories[*id as usize], tag, record));
        }
        for (digest, proofs) in &self.proofs {
            for (id, proof) in proofs {
                text.push_str(&proof_line(&self.repositories[*id as usize], digest, proof));
            }
        }
        text
    }

    fn read(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        if kind == "tally" {
            let name = words.next()?.to_owned();
            let since = Timestamp::from_unix_millis(words.next()?.parse().ok()?);
            let amount = words.next()?.parse().ok()?;
            whole(&mut words)?;
            self.tallies.insert(name, Tally { since, amount });
            return Some(());
        }
        let repository = Repository { upstream: words.next()?.into(), name: words.next()?.parse().ok()? };
        let id = self.id(&repository);
        match kind {
            "tag" => {
                let tag = words.next()?.parse().ok()?;
                let digest = words.next()?.parse().ok()?;
                let checked = Timestamp::from_unix_millis(words.next()?.parse().ok()?);
                whole(&mut words)?;
                self.tags.insert((id, tag), TagRecord { digest, checked });
            }
            "untag" => {
                self.tags.remove(&(id, words.next()?.parse().ok()?));
            }
            "proof" => {
                let digest: Digest = words.next()?.parse().ok()?;
                let size = words.next()?.parse().ok()?;
                let media_type = Some(words.next()?).filter(|text| *text != "-").map(String::from);
                // Once they had no date.
                let proven = Timestamp::from_unix_millis(words.next().map_or(Ok(0), str::parse).ok()?);
                let proof = Proof { size, media_type, proven };
                whole(&mut words)?;
                let proofs = self.proofs.entry(digest).or_default();
                proofs.retain(|(by, old)| *by != id || old.kind() != proof.kind());
                proofs.push((id, proof));
            }
            "unproof" => {
                let digest: Digest = words.next()?.parse().ok()?;
                let kind = [Kind::Blob, Kind::Manifest].into_iter().find(|kind| Some(kind.word()) == words.clone().next())?;
                if let Some(proofs) = self.proofs.get_mut(&digest) {
                    proofs.retain(|(by, old)| *by != id || old.kind() != kind);
                }
            }
            _ => return None,
        }
        Some(())
    }
}

/// Nothing follows: two lines that a full disk has run together are none.
fn whole(words: &mut std::str::Split<'_, char>) -> Option<()> {
    words.next().is_none().then_some(())
}

// === impl Proof ===

impl Proof {
    /// But for minutes.
    fn says_the_same(&self, other: &Self) -> bool {
        (self.size, &self.media_type) == (other.size, &other.media_type) && self.proven.same_hour(other.proven)
    }

    fn kind(&self) -> Kind {
        if self.media_type.is_some() { Kind::Manifest } else { Kind::Blob }
    }
}

// === impl Kind ===

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Manifest => "manifest",
        }
    }
}

fn tag_line(repository: &Repository, tag: &Tag, record: &TagRecord) -> String {
    let Repository { upstream, name } = repository;
    format!("tag {upstream} {name} {tag} {} {}\n", record.digest, record.checked.unix_millis())
}

fn proof_line(repository: &Repository, digest: &Digest, proof: &Proof) -> String {
    let Repository { upstream, name } = repository;
    let (media_type, proven) = (proof.media_type.as_deref().unwrap_or("-"), proof.proven.unix_millis());
    format!("proof {upstream} {name} {digest} {} {media_type} {proven}\n", proof.size)
}

fn tally_line(name: &str, tally: Tally) -> String {
    format!("tally {name} {} {}\n", tally.since.unix_millis(), tally.amount)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::super::Options;
    use super::super::pool::THREADS;
    use super::*;
    use crate::metrics::Metrics;

    /// Who waited did so on a thread of the pool, and where all had one, none was left for what they waited for.
    #[tokio::test]
    async fn however_many_wait_until_all_is_written_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { dir: dir.path().join("cache"), ..Options::default() };
        let disk = Disk::open(&options, Metrics::new()).unwrap().disk;
        let pool = Pool::new("test", Duration::from_secs(10)).unwrap();
        let records = Arc::new(Records::open(Arc::new(disk), pool.clone()));
        // No thread is free until they have come, and something is recorded after that.
        let (free, busy): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<()>()).unzip();
        busy.into_iter().for_each(|busy| pool.start(move || _ = busy.recv()));
        let waiting = [(); THREADS].map(|()| {
            let records = Arc::clone(&records);
            tokio::spawn(async move { records.flush().await })
        });
        tokio::task::yield_now().await;
        records.set_tally("pulls", Tally { since: Timestamp::from_unix_millis(1), amount: 2 });
        drop(free);
        let all = async {
            for one in waiting {
                one.await.unwrap();
            }
            records.flush().await;
        };
        assert!(tokio::time::timeout(Duration::from_secs(10), all).await.is_ok(), "they wait for each other");
        assert_eq!(records.disk.read(NAME).unwrap(), format!("{HEADER}tally pulls 1 2\n").as_bytes());
    }
}
