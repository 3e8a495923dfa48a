//! Wanting a blob that is on its way.

use std::sync::Arc;

use crate::store::Growth;
use crate::sync::atomic::Ordering;
use crate::upstream::{Askers, Presence};

use super::running::{Begun, Fill, Head};
use super::{Origin, Refusal};

/// Someone wants the blob. While nobody does, the fill is an orphan.
pub(in crate::mirror) struct Interest {
    fill: Arc<Fill>,
    what_for: For,
    presence: Presence,
}

/// For what a blob is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::mirror) enum For {
    /// A client waits for it.
    Answer,
    /// It is to be here: an order says so, or it is fetched ahead.
    Cache,
}

// === impl Interest ===

impl Interest {
    pub(super) fn of(fill: &Arc<Fill>, askers: &Askers, what_for: For) -> Self {
        // Whoever wants a blob is one: those of a company who come later would not be noted.
        debug_assert!(matches!(askers, Askers::One(_)), "a company wants a blob");
        Self::with(fill, fill.company.enter(askers), what_for)
    }

    fn with(fill: &Arc<Fill>, presence: Presence, what_for: For) -> Self {
        if what_for == For::Answer {
            fill.answers.fetch_add(1, Ordering::Relaxed);
        }
        Self { fill: Arc::clone(fill), what_for, presence }
    }

    pub(in crate::mirror) fn origin(&self) -> &Origin {
        &self.fill.origin
    }

    /// Waits until the upstream has answered. `None`: the fill has been given up.
    ///
    /// Cancel safe.
    pub(in crate::mirror) async fn begun(&self) -> Result<Option<Begun>, Refusal> {
        let mut head = self.fill.head.subscribe();
        let head = head.wait_for(|head| !matches!(head, Head::Waiting)).await.map_err(|_| Refusal::Interrupted)?;
        match &*head {
            Head::Begun(begun) if !begun.growth.has_failed() => Ok(Some(begun.clone())),
            Head::Failed(refusal) => Err(refusal.clone()),
            Head::Begun(_) | Head::Waiting => Ok(None),
        }
    }

    /// What was read of the fill was of `before`, which has failed. If it was wrong and is fetched anew, waits for that to begin.
    /// `None`: it is over.
    ///
    /// Cancel safe.
    pub(in crate::mirror) async fn begun_anew(&self, before: &Growth) -> Option<Begun> {
        self.begun().await.ok().flatten().filter(|begun| !begun.growth.is(before))
    }

    /// Waits until the fill is off the list, so that another may be started.
    ///
    /// Cancel safe.
    pub(in crate::mirror) async fn landed(self) {
        let landed = self.fill.landed.clone();
        drop(self);
        landed.cancelled().await;
    }
}

impl Clone for Interest {
    fn clone(&self) -> Self {
        Self::with(&self.fill, self.presence.clone(), self.what_for)
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        if self.what_for == For::Answer {
            self.fill.answers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
