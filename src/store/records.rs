//! What bytes do not tell: which digest a tag had, and which repository has proven to hold which digest.
//!
//! Kept in memory and in a log of lines that `cat` shows. The last line about a thing counts; `untag` and `unproof` take
//! back. When most lines are outdated the log is written anew.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use crate::clock::Timestamp;
use crate::oci::{Digest, Repository, Tag};

use super::disk::Disk;
use super::pool::Pool;
use super::{disk, lock};

/// The log and what it says.
pub(super) struct Records {
    state: Arc<Mutex<State>>,
    disk: Arc<Disk>,
    pool: Pool,
}

#[derive(Default)]
struct State {
    repositories: Vec<Repository>,
    ids: HashMap<Repository, u32>,
    tags: HashMap<(u32, Tag), TagRecord>,
    proofs: HashMap<Digest, Vec<(u32, Proof)>>,
    log: Log,
}

#[derive(Default)]
struct Log {
    file: Option<Arc<File>>,
    /// Lines to append; a job is at it while `writing`.
    pending: String,
    writing: bool,
    lines: usize,
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
}

const NAME: &str = "records";
const HEADER: &str = "larder records 1\n";

/// Below this many lines the log is never written anew.
const FEW: usize = 4096;

// === impl Records ===

impl Records {
    /// Reads the log. Lines that cannot be read are passed over with a warning: what they said is asked again upstream.
    pub(super) fn open(disk: Arc<Disk>, pool: Pool) -> Self {
        let text = match disk.read(NAME) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                tracing::error!(%error, "the records cannot be read; tags and proofs are asked anew");
                String::new()
            }
        };
        let mut state = State::default();
        // What follows the last line end was cut off by a crash.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if let Some(lines) = text[..whole].strip_prefix(HEADER) {
            for line in lines.lines() {
                state.log.lines += 1;
                if state.read(line).is_none() {
                    tracing::warn!(line, "a record cannot be read; passed over");
                }
            }
        }
        let fresh = !text.starts_with(HEADER);
        let records = Self { state: Arc::new(Mutex::new(state)), disk, pool };
        let opened = if fresh {
            records.disk.replace(NAME, HEADER.as_bytes()).and_then(|()| records.disk.open_log(NAME, HEADER.len() as u64))
        } else {
            records.disk.open_log(NAME, whole as u64)
        };
        match opened {
            Ok(file) => lock(&records.state).log.file = Some(Arc::new(file)),
            Err(error) => tracing::error!(%error, "the records cannot be written; they last until the next start"),
        }
        records
    }

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Option<TagRecord> {
        let state = lock(&self.state);
        state.tags.get(&(*state.ids.get(repository)?, tag.clone())).cloned()
    }

    pub(super) fn set_tag(&self, repository: &Repository, tag: &Tag, record: &TagRecord) {
        let mut state = lock(&self.state);
        let id = state.id(repository);
        let line = tag_line(repository, tag, record);
        let before = state.tags.insert((id, tag.clone()), record.clone());
        // That a tag was looked at again is worth a line once an hour; that it moved, always.
        let known = before.is_some_and(|old| old.digest == record.digest && same_hour(old.checked, record.checked));
        if !known {
            self.append(&mut state, &line);
        }
    }

    pub(super) fn remove_tag(&self, repository: &Repository, tag: &Tag) {
        let mut state = lock(&self.state);
        let id = state.id(repository);
        if state.tags.remove(&(id, tag.clone())).is_some() {
            self.append(&mut state, &format!("untag {} {} {tag}\n", repository.upstream, repository.name));
        }
    }

    pub(super) fn proof(&self, repository: &Repository, digest: &Digest) -> Option<Proof> {
        let state = lock(&self.state);
        let id = *state.ids.get(repository)?;
        state.proofs.get(digest)?.iter().find(|(by, _)| *by == id).map(|(_, proof)| proof.clone())
    }

    pub(super) fn set_proof(&self, repository: &Repository, digest: &Digest, proof: Proof) {
        let mut state = lock(&self.state);
        let id = state.id(repository);
        let proofs = state.proofs.entry(digest.clone()).or_default();
        let line = proof_line(repository, digest, &proof);
        match proofs.iter_mut().find(|(by, _)| *by == id) {
            Some((_, old)) if *old == proof => return,
            Some((_, old)) => *old = proof,
            None => proofs.push((id, proof)),
        }
        self.append(&mut state, &line);
    }

    pub(super) fn remove_proof(&self, repository: &Repository, digest: &Digest) {
        let mut state = lock(&self.state);
        let id = state.id(repository);
        let Some(proofs) = state.proofs.get_mut(digest) else { return };
        let before = proofs.len();
        proofs.retain(|(by, _)| *by != id);
        if proofs.len() < before {
            self.append(&mut state, &format!("unproof {} {} {digest}\n", repository.upstream, repository.name));
        }
    }

    /// The digests that are manifests, as far as the records tell.
    pub(super) fn manifests(&self) -> Vec<Digest> {
        let state = lock(&self.state);
        let is_manifest = |proofs: &[(u32, Proof)]| proofs.iter().any(|(_, proof)| proof.media_type.is_some());
        state.proofs.iter().filter(|(_, proofs)| is_manifest(proofs)).map(|(digest, _)| digest.clone()).collect()
    }

    /// Forgets what is said of digests that are no longer `held`, and writes the log anew if most of it is outdated.
    pub(super) fn compact(&self, held: impl Fn(&Digest) -> bool) {
        let text = {
            let mut state = lock(&self.state);
            let worth = state.log.lines > FEW && state.log.lines > 2 * state.live();
            if !worth || state.log.writing {
                return;
            }
            state.proofs.retain(|digest, _| held(digest));
            state.tags.retain(|_, record| held(&record.digest));
            state.log.writing = true;
            state.log.pending.clear();
            state.log.lines = state.live();
            state.text()
        };
        let (disk, state) = (Arc::clone(&self.disk), Arc::clone(&self.state));
        self.pool.start(move || {
            let log = disk.replace(NAME, text.as_bytes()).and_then(|()| disk.open_log(NAME, text.len() as u64));
            match log {
                Ok(file) => lock(&state).log.file = Some(Arc::new(file)),
                Err(error) => tracing::error!(%error, "the records could not be written anew"),
            }
            append_pending(&state);
        });
    }

    /// Waits until what was recorded is on the disk.
    pub(super) async fn flush(&self) {
        let state = Arc::clone(&self.state);
        let _ = self.pool.run(move || append_pending(&state)).await;
    }

    fn append(&self, state: &mut State, line: &str) {
        state.log.pending.push_str(line);
        state.log.lines += 1;
        // Lines that come while a job writes are written by that job: one sync for all of them.
        if !state.log.writing {
            state.log.writing = true;
            let shared = Arc::clone(&self.state);
            self.pool.start(move || append_pending(&shared));
        }
    }
}

fn append_pending(state: &Mutex<State>) {
    loop {
        let (lines, file) = {
            let mut state = lock(state);
            let lines = std::mem::take(&mut state.log.pending);
            match &state.log.file {
                Some(file) if !lines.is_empty() => (lines, Arc::clone(file)),
                _ => {
                    state.log.writing = false;
                    return;
                }
            }
        };
        if let Err(error) = disk::append(&file, lines.as_bytes()) {
            tracing::error!(%error, "records could not be written; they last until the next start");
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

    fn live(&self) -> usize {
        self.tags.len() + self.proofs.values().map(Vec::len).sum::<usize>()
    }

    fn text(&self) -> String {
        let mut text = String::from(HEADER);
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
        let repository = Repository { upstream: words.next()?.into(), name: words.next()?.parse().ok()? };
        let id = self.id(&repository);
        match kind {
            "tag" => {
                let tag = words.next()?.parse().ok()?;
                let digest = words.next()?.parse().ok()?;
                let checked = Timestamp::from_unix_millis(words.next()?.parse().ok()?);
                self.tags.insert((id, tag), TagRecord { digest, checked });
            }
            "untag" => {
                self.tags.remove(&(id, words.next()?.parse().ok()?));
            }
            "proof" => {
                let digest: Digest = words.next()?.parse().ok()?;
                let size = words.next()?.parse().ok()?;
                let media_type = Some(words.next()?).filter(|text| *text != "-").map(String::from);
                let proofs = self.proofs.entry(digest).or_default();
                proofs.retain(|(by, _)| *by != id);
                proofs.push((id, Proof { size, media_type }));
            }
            "unproof" => {
                if let Some(proofs) = self.proofs.get_mut(&words.next()?.parse::<Digest>().ok()?) {
                    proofs.retain(|(by, _)| *by != id);
                }
            }
            _ => return None,
        }
        Some(())
    }
}

fn tag_line(repository: &Repository, tag: &Tag, record: &TagRecord) -> String {
    let Repository { upstream, name } = repository;
    format!("tag {upstream} {name} {tag} {} {}\n", record.digest, record.checked.unix_millis())
}

fn proof_line(repository: &Repository, digest: &Digest, proof: &Proof) -> String {
    let Repository { upstream, name } = repository;
    format!("proof {upstream} {name} {digest} {} {}\n", proof.size, proof.media_type.as_deref().unwrap_or("-"))
}

fn same_hour(a: Timestamp, b: Timestamp) -> bool {
    a.unix_millis() / 3_600_000 == b.unix_millis() / 3_600_000
}
