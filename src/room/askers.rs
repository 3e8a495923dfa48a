//! For whom something is done. Who asks for the same thing shares one question, and comes and goes while it is asked.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;

use crate::sync::watch;

/// A client, by its address; `None` is larder itself.
pub type Who = Option<IpAddr>;

/// Those for whom something is asked. Clones are of the same ones.
#[derive(Clone)]
pub enum Askers {
    One(Who),
    Company(Company),
}

/// Those who share a question. Clones are of the same.
#[derive(Clone)]
pub struct Company(Arc<Members>);

struct Members {
    /// Who began, and answers for it when all have left.
    first: Who,
    /// How often each of them waits.
    present: watch::Sender<BTreeMap<Who, usize>>,
}

/// Someone waits for what a company has asked for, as long as this is held.
pub struct Presence {
    company: Company,
    askers: Watch,
    /// As whom it is noted there.
    noted: Vec<Who>,
}

/// A look at askers who come and go.
#[derive(Clone)]
pub(crate) struct Watch {
    askers: Askers,
    /// `None`: it is one alone.
    changes: Option<watch::Receiver<BTreeMap<Who, usize>>>,
}

// === impl Askers ===

impl Askers {
    /// A company that is to be entered by these first.
    #[must_use]
    pub fn company(&self) -> Company {
        Company(Arc::new(Members { first: self.first(), present: watch::Sender::new(BTreeMap::new()) }))
    }

    /// Whether nobody waits any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Company(company) if company.is_empty())
    }

    /// Who they are now, in their order.
    fn now(&self) -> Vec<Who> {
        match self {
            Self::One(who) => vec![*who],
            Self::Company(company) => company.0.present.borrow().keys().copied().collect(),
        }
    }

    /// Who they are, or were in the beginning.
    pub(crate) fn answerable(&self) -> Vec<Who> {
        let now = self.now();
        if now.is_empty() { vec![self.first()] } else { now }
    }

    /// The one who began alone.
    pub(crate) fn beginner(&self) -> Self {
        Self::One(self.first())
    }

    pub(crate) fn watch(&self) -> Watch {
        let changes = match self {
            Self::One(_) => None,
            Self::Company(company) => Some(company.0.present.subscribe()),
        };
        Watch { askers: self.clone(), changes }
    }

    fn first(&self) -> Who {
        match self {
            Self::One(who) => *who,
            Self::Company(company) => company.0.first,
        }
    }
}

impl Default for Askers {
    /// larder itself.
    fn default() -> Self {
        Self::One(None)
    }
}

impl From<IpAddr> for Askers {
    fn from(client: IpAddr) -> Self {
        Self::One(Some(client))
    }
}

// === impl Company ===

impl Company {
    /// From now on these wait as well.
    #[must_use]
    pub fn enter(&self, askers: &Askers) -> Presence {
        let mut presence = Presence { company: self.clone(), askers: askers.watch(), noted: Vec::new() };
        presence.note();
        presence
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.present.borrow().is_empty()
    }

    pub(crate) fn watch(&self) -> Watch {
        Askers::Company(self.clone()).watch()
    }

    /// Notes who has come and who has gone.
    fn change(&self, come: &[Who], gone: &[Who]) {
        self.0.present.send_if_modified(|present| {
            let before = present.len();
            for who in come {
                *present.entry(*who).or_default() += 1;
            }
            let with = present.len();
            for who in gone {
                if let Entry::Occupied(mut waits) = present.entry(*who) {
                    *waits.get_mut() -= 1;
                    if *waits.get() == 0 {
                        waits.remove();
                    }
                }
            }
            before < with || present.len() < with
        });
    }
}

// === impl Presence ===

impl Presence {
    /// Waits for an answer. Those for whom it is waited may be a company as well, which changes meanwhile.
    ///
    /// Cancel safe: who cancels has left.
    pub async fn wait<T>(mut self, answer: impl Future<Output = T>) -> T {
        tokio::pin!(answer);
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                () = self.askers.changed() => self.note(),
            }
        }
    }

    fn note(&mut self) {
        let now = self.askers.now();
        self.company.change(&now, &self.noted);
        self.noted = now;
    }
}

impl Clone for Presence {
    fn clone(&self) -> Self {
        self.company.change(&self.noted, &[]);
        Self { company: self.company.clone(), askers: self.askers.clone(), noted: self.noted.clone() }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.company.change(&[], &self.noted);
    }
}

// === impl Watch ===

impl Watch {
    pub(crate) fn now(&self) -> Vec<Who> {
        self.askers.now()
    }

    /// Waits until others are there, or not all any more.
    ///
    /// Cancel safe.
    pub(crate) async fn changed(&mut self) {
        let changed = match &mut self.changes {
            Some(changes) => changes.changed().await.is_ok(),
            None => false,
        };
        if !changed {
            pending::<()>().await;
        }
    }
}
