//! The fills under way: who wants which, who may join, and how everyone learns that one is over.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::metrics::FillGauges;
use crate::oci::{Digest, Repository};
use crate::store::Growth;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, watch};
use crate::traces::{Span, SpanKind};
use crate::upstream::{Askers, CacheStatus, Company};

use super::{For, Interest, Origin, Refusal};

/// The fills under way. Clones share them.
#[derive(Clone)]
pub(in crate::mirror) struct Fills {
    running: Arc<Mutex<Running>>,
    /// Permits to go on for nobody.
    orphans: Arc<Semaphore>,
}

type Running = HashMap<Key, Arc<Fill>>;

/// An upstream and a digest. It may send what it likes as slowly as it likes, to those who ask for it there and to nobody else.
type Key = (Arc<str>, Digest);

/// The transfer of one blob into the store.
pub(super) struct Fill {
    /// Whose upstream is asked.
    pub(super) origin: Origin,
    pub(super) digest: Digest,
    pub(super) head: watch::Sender<Head>,
    /// Who wants it.
    pub(super) company: Company,
    /// How many answers to clients wait for it.
    pub(super) answers: AtomicUsize,
    /// It has decided to stop; who comes now waits for its end and starts anew. Changes under the lock of the list.
    closing: AtomicBool,
    /// It is off the list.
    pub(super) landed: CancellationToken,
    span: Mutex<Span>,
}

/// A fill as it is now.
pub struct Underway {
    pub repository: Repository,
    pub digest: Digest,
    /// How much of it clients can read already.
    pub bytes: u64,
    /// `None`: the upstream does not tell it, or has not answered yet.
    pub size: Option<u64>,
    /// How many answers wait for it, or read it.
    pub clients: usize,
}

/// What became of the wish to join a fill.
pub(in crate::mirror) enum Joined {
    /// A fill follows, started by this wish or by an earlier one.
    Fill { interest: Interest, started: bool },
    /// The blob has just come into the cache, or was found missing.
    Settled,
    /// The last fill is about to end; after it, one may be started.
    Ending(CancellationToken),
}

/// What is known at the beginning of a fill.
#[derive(Clone)]
pub(super) enum Head {
    Waiting,
    Begun(Begun),
    Failed(Refusal),
}

/// A fill whose upstream has answered.
#[derive(Clone)]
pub(in crate::mirror) struct Begun {
    pub(in crate::mirror) growth: Growth,
    /// Why it goes past the cache, if it does.
    pub(in crate::mirror) bypass: Option<String>,
    /// What the upstream says of its cache.
    pub(in crate::mirror) cache_status: Option<CacheStatus>,
}

/// Takes the fill off the list however it ends, and tells all who still wait for its beginning.
pub(super) struct Landing {
    fills: Fills,
    fill: Arc<Fill>,
}

// === impl Fills ===

impl Fills {
    pub(in crate::mirror) fn new(orphans: usize) -> Self {
        Self { running: Arc::default(), orphans: Arc::new(Semaphore::new(orphans)) }
    }

    /// Joins the fill of `digest` at its upstream, or puts one on the list, on behalf of `origin`, which the caller is to run as long as it
    /// holds the landing. `settled` says whether the cache has the blob, or it is known to be missing.
    pub(super) fn join(
        &self,
        origin: &Origin,
        digest: &Digest,
        what_for: For,
        settled: impl FnOnce() -> bool,
    ) -> (Joined, Option<Landing>) {
        let mut running = self.running();
        let key = key(origin, digest);
        if let Some(fill) = running.get(&key) {
            // Its failure is for those who waited for it; who comes now may have better luck.
            let failed = matches!(*fill.head.borrow(), Head::Failed(_));
            if failed || fill.closing.load(Ordering::Relaxed) {
                return (Joined::Ending(fill.landed.clone()), None);
            }
            return (Joined::Fill { interest: Interest::of(fill, &origin.behalf.askers, what_for), started: false }, None);
        }
        // A fill leaves the list after its blob has come in, or its failure was noted, so that looking here, under the lock, misses none.
        if settled() {
            return (Joined::Settled, None);
        }
        let (span, company) = (span(origin, digest), origin.behalf.askers.company());
        let mut asking = origin.clone();
        (asking.behalf.trace, asking.behalf.askers) = (span.trace(), Askers::Company(company.clone()));
        let fill = Arc::new(Fill {
            origin: asking,
            digest: digest.clone(),
            head: watch::Sender::new(Head::Waiting),
            company,
            answers: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            landed: CancellationToken::new(),
            span: Mutex::new(span),
        });
        running.insert(key, Arc::clone(&fill));
        let interest = Interest::of(&fill, &origin.behalf.askers, what_for);
        let landing = Landing { fills: self.clone(), fill };
        (Joined::Fill { interest, started: true }, Some(landing))
    }

    pub(in crate::mirror) fn now(&self) -> Vec<Underway> {
        self.running().values().map(|fill| fill.now()).collect()
    }

    /// How large a blob is that is being fetched, where that is known.
    pub(in crate::mirror) fn size(&self, origin: &Origin, digest: &Digest) -> Option<u64> {
        self.running().get(&key(origin, digest))?.now().size
    }

    pub(in crate::mirror) fn gauges(&self) -> FillGauges {
        let running = self.running();
        let clients = running.values().map(|fill| fill.answers.load(Ordering::Relaxed) as u64).sum();
        FillGauges { running: running.len() as u64, clients }
    }

    /// Whoever wants a blob keeps its fill going. Without anyone, a few go on, if they are worth it.
    pub(super) fn may_go_on(&self, fill: &Fill, worth_it: bool, permit: &mut Option<OwnedSemaphorePermit>) -> bool {
        if !fill.company.is_empty() {
            *permit = None;
            return true;
        }
        if !worth_it {
            return false;
        }
        if permit.is_none() {
            *permit = Arc::clone(&self.orphans).try_acquire_owned().ok();
        }
        permit.is_some()
    }

    /// Lets nobody join any more, unless someone has just come to want the blob.
    pub(super) fn close(&self, fill: &Fill) -> bool {
        let _running = self.running();
        let unwanted = fill.company.is_empty();
        fill.closing.store(unwanted, Ordering::Relaxed);
        unwanted
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It is told of as what the one who came first has led to.
fn span(origin: &Origin, digest: &Digest) -> Span {
    let mut span = origin.behalf.trace.begin(|| "fill".into(), SpanKind::Internal);
    span.text("larder.upstream", || &origin.repository.upstream);
    span.text("larder.repository", || &origin.repository.name);
    span.text("larder.digest", || digest);
    span
}

fn key(origin: &Origin, digest: &Digest) -> Key {
    (Arc::clone(&origin.repository.upstream), digest.clone())
}

// === impl Fill ===

impl Fill {
    fn now(&self) -> Underway {
        let (bytes, size) = match &*self.head.borrow() {
            Head::Begun(begun) => (begun.growth.front(), begun.growth.known_size()),
            Head::Waiting | Head::Failed(_) => (0, None),
        };
        let (repository, digest) = (self.origin.repository.clone(), self.digest.clone());
        Underway { repository, digest, bytes, size, clients: self.answers.load(Ordering::Relaxed) }
    }

    /// Tells more of it.
    pub(super) fn span(&self, tell: impl FnOnce(&mut Span)) {
        tell(&mut self.span.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

// === impl Landing ===

impl Landing {
    pub(super) fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.fills.running().remove(&key(&self.fill.origin, &self.fill.digest));
        self.fill.head.send_if_modified(|head| {
            // What has begun can still be read by those who have joined, kept or not; and everyone is told the same failure.
            let waiting = matches!(head, Head::Waiting);
            if waiting {
                *head = Head::Failed(Refusal::Interrupted);
            }
            waiting
        });
        self.fill.span(|span| drop(std::mem::take(span)));
        self.fill.landed.cancel();
    }
}
