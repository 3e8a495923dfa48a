//! Faults of the disk, by plan: how tests make the n-th operation fail. Only in builds with debug assertions.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::gate::Operation;

/// What goes wrong with the disk of one larder: nothing, unless it is planned. Clones are the same plan.
#[derive(Clone, Default)]
pub struct Faults(Option<Arc<Shared>>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when the faults are over.
    healed: Condvar,
}

#[derive(Default)]
struct State {
    /// Every operation so far, in order.
    journal: Vec<Done>,
    planned: Vec<Planned>,
    /// From now on nothing changes any more.
    dead: bool,
    hanging: usize,
    /// How often it has been healed.
    healed: usize,
    /// How much of a file has been synced.
    synced: HashMap<PathBuf, u64>,
    /// What a power loss may undo: renames whose directory has not been synced.
    loose: Vec<Loose>,
    /// Files that were written to since they were synced.
    unsynced: HashMap<PathBuf, u64>,
}

struct Done {
    operation: Operation,
    path: PathBuf,
}

struct Planned {
    when: When,
    fault: Fault,
}

enum When {
    /// The operation with this number, counted from 0 since the larder's beginning.
    Nth(usize),
    /// Each one of these, until healed.
    Each(Which),
}

/// Picks operations.
type Which = Box<dyn Fn(Operation, &Path) -> bool + Send>;

struct Loose {
    from: PathBuf,
    to: PathBuf,
    /// What was there before.
    replaced: Option<Vec<u8>>,
    /// It has been done.
    done: bool,
}

/// What happens instead of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this `errno`.
    Errno(i32),
    /// It does a part of what it should, where that can be.
    Short,
    /// It does not come back before [`Faults::heal`].
    Hang,
    /// It takes so much longer.
    Slow(Duration),
    Panic,
    /// The process dies before it; nothing changes on the disk any more.
    DieBefore,
    /// The process dies after it.
    DieAfter,
}

/// What a power loss does to bytes that have not been synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The file ends where it was synced.
    Cut,
    /// The file is as long as it was, with zeros from there on.
    Zeroed,
    /// All bytes have made it to the disk, but no rename whose directory was not synced.
    Renames,
}

// === impl Faults: the test's side ===

impl Faults {
    /// A plan in which nothing goes wrong yet. It keeps account of every operation.
    #[must_use]
    pub fn planned() -> Self {
        Self(Some(Arc::default()))
    }

    /// How many operations there have been.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().journal.len()
    }

    /// The operations from the one with the number `since` on, with the names of the files.
    #[must_use]
    pub fn since(&self, since: usize) -> Vec<(Operation, String)> {
        let name = |done: &Done| done.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.lock().journal.iter().skip(since).map(|done| (done.operation, name(done))).collect()
    }

    /// Lets the operation with this number go wrong, counted from 0 since the larder's beginning.
    pub fn at(&self, number: usize, fault: Fault) {
        self.lock().planned.push(Planned { when: When::Nth(number), fault });
    }

    /// Lets the `n`-th operation from now on go wrong; 0 is the next.
    pub fn next(&self, n: usize, fault: Fault) {
        let mut state = self.lock();
        let number = state.journal.len() + n;
        state.planned.push(Planned { when: When::Nth(number), fault });
    }

    /// Lets all go wrong that `which` picks, until [`Faults::heal`].
    pub fn each(&self, which: impl Fn(Operation, &Path) -> bool + Send + 'static, fault: Fault) {
        self.lock().planned.push(Planned { when: When::Each(Box::new(which)), fault });
    }

    /// The disk is well again; what hangs goes on. A process that died stays dead.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.planned.clear();
        state.healed += 1;
        drop(state);
        self.plan().healed.notify_all();
    }

    /// How many operations hang.
    #[must_use]
    pub fn hanging(&self) -> usize {
        self.lock().hanging
    }

    /// Whether one of the faults has ended the process, as far as the disk can tell.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Ends the process, as far as the disk can tell, between two operations.
    pub fn die(&self) {
        self.lock().dead = true;
        self.plan().healed.notify_all();
    }

    /// Makes of the directory what may be left of it when the power goes: for a process that has died.
    ///
    /// # Panics
    /// When the directory cannot be changed.
    pub fn lose_power(&self, loss: Loss) {
        let mut state = self.lock();
        if loss == Loss::Renames {
            for loose in std::mem::take(&mut state.loose).into_iter().rev().filter(|loose| loose.done && loose.to.exists()) {
                fs::rename(&loose.to, &loose.from).expect("the rename can be undone");
                if let Some(bytes) = loose.replaced {
                    fs::write(&loose.to, bytes).expect("what was there can be put back");
                }
            }
            return;
        }
        for path in state.unsynced.keys() {
            let synced = state.synced.get(path).copied().unwrap_or_default();
            let Ok(file) = fs::OpenOptions::new().write(true).open(path) else { continue };
            let length = file.metadata().expect("a file").len();
            file.set_len(synced.min(length)).expect("it can be cut");
            if loss == Loss::Zeroed {
                file.set_len(length).expect("it can be made longer");
            }
        }
    }
}

// === impl Faults: the disk's side ===

impl Faults {
    /// # Panics
    /// Where nothing is planned.
    fn plan(&self) -> &Shared {
        self.0.as_ref().expect("a plan")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.plan().state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` as the plan says.
    pub(super) fn around<T>(
        &self,
        operation: Operation,
        path: &Path,
        work: impl FnOnce(Option<usize>) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.0.is_none() {
            return work(None);
        }
        let mut state = self.lock();
        if state.dead {
            return Err(dead());
        }
        let number = state.journal.len();
        state.journal.push(Done { operation, path: path.into() });
        let hits = |planned: &Planned| match &planned.when {
            When::Nth(nth) => *nth == number,
            When::Each(which) => which(operation, path),
        };
        let fault = state.planned.iter().find(|planned| hits(planned)).map(|planned| planned.fault);
        match fault {
            None => {}
            Some(Fault::Errno(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short) => {
                drop(state);
                let done = work(Some(1));
                self.note(operation, path, done.is_ok());
                return done;
            }
            // That is not waited for.
            Some(Fault::Hang | Fault::Slow(_)) if operation == Operation::ReadCached => {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Some(Fault::Hang) => {
                state.hanging += 1;
                let healed = state.healed;
                let hangs = |state: &mut State| !state.dead && state.healed == healed;
                state = self.plan().healed.wait_while(state, hangs).unwrap_or_else(PoisonError::into_inner);
                state.hanging -= 1;
                if state.dead {
                    return Err(dead());
                }
            }
            Some(Fault::Slow(longer)) => {
                drop(state);
                std::thread::sleep(longer);
                state = self.lock();
            }
            Some(Fault::Panic) => {
                drop(state);
                panic!("{operation:?} panics as planned");
            }
            Some(Fault::DieBefore) => {
                state.dead = true;
                return Err(dead());
            }
            Some(Fault::DieAfter) => {
                // Under the lock, so that no other operation comes in between.
                let done = work(None);
                state.note(operation, path, done.is_ok());
                state.dead = true;
                return Err(dead());
            }
        }
        drop(state);
        let done = work(None);
        self.note(operation, path, done.is_ok());
        done
    }

    fn note(&self, operation: Operation, path: &Path, well: bool) {
        self.lock().note(operation, path, well);
    }

    pub(super) fn will_rename(&self, from: &Path, to: &Path) {
        if self.0.is_none() {
            return;
        }
        let replaced = fs::read(to).ok();
        self.lock().loose.push(Loose { from: from.into(), to: to.into(), replaced, done: false });
    }
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

// === impl State ===

impl State {
    /// Keeps account of what a power loss could take.
    fn note(&mut self, operation: Operation, path: &Path, well: bool) {
        match operation {
            // Of a write that fails a part may have been done.
            Operation::Write => _ = self.unsynced.insert(path.into(), 0),
            Operation::Sync if well => {
                self.unsynced.remove(path);
                let length = fs::metadata(path).map_or(0, |meta| meta.len());
                self.synced.insert(path.into(), length);
            }
            Operation::Truncate if well => {
                let length = fs::metadata(path).map_or(0, |meta| meta.len());
                self.synced.entry(path.into()).and_modify(|synced| *synced = length.min(*synced));
            }
            Operation::Rename => {
                let Some(at) = self.loose.iter().rposition(|loose| loose.to == path && !loose.done) else { return };
                if !well {
                    self.loose.remove(at);
                    return;
                }
                self.loose[at].done = true;
                let from = self.loose[at].from.clone();
                for known in [&mut self.unsynced, &mut self.synced] {
                    known.remove(path);
                    if let Some(length) = known.remove(&from) {
                        known.insert(path.into(), length);
                    }
                }
            }
            // Where either end of a rename is on the disk, it cannot be undone any more.
            Operation::SyncDir if well => {
                self.loose.retain(|loose| loose.to.parent() != Some(path) && loose.from.parent() != Some(path));
            }
            Operation::Remove if well => {
                self.unsynced.remove(path);
                self.synced.remove(path);
                self.loose.retain(|loose| loose.to != path);
            }
            _ => {}
        }
    }
}

// === impl Debug ===

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faults").field("operations", &self.0.is_some().then(|| self.count())).finish()
    }
}

/// Two larders of one configuration have nothing else in common.
impl PartialEq for Faults {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
