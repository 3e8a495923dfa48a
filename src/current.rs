//! What may be exchanged while it is in use.

use std::sync::{Arc, PoisonError, RwLock};

/// A value as it is now. Who has got it goes on with it as it was then.
#[derive(Debug, Default)]
pub struct Current<T>(RwLock<Arc<T>>);

// === impl Current ===

impl<T> Current<T> {
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    #[must_use]
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}
