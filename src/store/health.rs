//! Whether the disk does its work, and if not, since when and why.

use std::io;
use std::sync::{Mutex, PoisonError};

use crate::clock::Timestamp;

/// The disk failed when something was to be kept, and nothing has been kept since; or it does not let itself be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What was tried last, and what came of it.
    pub why: String,
    pub since: Timestamp,
}

#[derive(Default)]
pub(super) struct Health(Mutex<Option<Trouble>>);

// === impl Health ===

impl Health {
    pub(super) fn failed(&self, operation: &str, error: &io::Error, now: Timestamp) {
        let mut trouble = self.lock();
        let since = trouble.as_ref().map_or(now, |trouble| trouble.since);
        *trouble = Some(Trouble { why: format!("{operation}: {error}"), since });
    }

    pub(super) fn well(&self) {
        if self.lock().take().is_some() {
            tracing::info!("the disk takes what it is given again");
        }
    }

    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
