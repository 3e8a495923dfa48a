//! What goes past the cache: it comes as slowly as it is read, and is in memory meanwhile, so that others are left room beside it.

use std::future::pending;
use std::sync::Arc;

use crate::store::Growth;
use crate::sync::start_task;
use crate::upstream::{Aside, Error};

use super::running::Fill;

/// The right of a fill to be beside the cache, and the memory that it has by that: who loses the one lets go of the other. Both last
/// as long as anyone reads, also where all has come.
pub(super) struct Beside {
    fill: Arc<Fill>,
    growth: Growth,
    /// `None`: there is no need yet, or it is another's.
    aside: Option<Aside>,
}

// === impl Beside ===

impl Beside {
    pub(super) fn new(fill: &Arc<Fill>, growth: Growth) -> Self {
        Self { fill: Arc::clone(fill), growth, aside: None }
    }

    /// Takes the right, where it is to be had at once.
    ///
    /// # Errors
    /// [`Error::Busy`] if it is not.
    pub(super) fn take(&mut self) -> Result<(), Error> {
        if self.aside.is_none() {
            self.aside = if_anyone_reads(self.fill.origin.upstream().aside(&self.fill.origin.behalf))?;
        }
        Ok(())
    }

    /// Likewise, and waits for it. Who does should hold no place of the upstream's.
    ///
    /// # Errors
    /// [`Error::Busy`] if it is not to be had in time.
    pub(super) async fn wait(&mut self) -> Result<(), Error> {
        if self.aside.is_none() {
            self.aside = if_anyone_reads(self.fill.origin.upstream().aside_in_turn(&self.fill.origin.behalf).await)?;
        }
        Ok(())
    }

    /// Waits until the right is another's, and lets go of the memory: who has not read it goes on alone.
    ///
    /// Cancel safe.
    pub(super) async fn lost(&mut self) {
        match &mut self.aside {
            Some(aside) => drop(aside.lost().await),
            None => pending().await,
        }
        self.aside = None;
        self.growth.let_go();
    }
}

/// Nobody is there to read slowly what nobody reads.
fn if_anyone_reads(aside: Result<Aside, Error>) -> Result<Option<Aside>, Error> {
    match aside {
        Err(Error::Left) => Ok(None),
        aside => aside.map(Some),
    }
}

/// Keeps the right as long as anyone reads and nobody else has a better one.
async fn outlast_readers(fill: Arc<Fill>, mut aside: Aside) {
    let mut company = fill.company.watch();
    while !fill.company.is_empty() {
        tokio::select! {
            () = company.changed() => {}
            _ = aside.lost() => return,
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let (fill, growth) = (Arc::clone(&self.fill), self.growth.clone());
        let Some(aside) = self.aside.take() else { return growth.let_go() };
        start_task(async move {
            outlast_readers(fill, aside).await;
            growth.let_go();
        });
    }
}
