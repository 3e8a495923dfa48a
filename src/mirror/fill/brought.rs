//! What a connection of a fill has brought and nobody has taken yet: in memory for as long as it has the right to that.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::upstream::Error;

/// The end at which it is taken.
pub(super) struct Brought(Arc<Pipe>);

/// The end at which it is brought. When it is dropped no more comes.
pub(super) struct Bringing(Arc<Pipe>);

#[derive(Default)]
struct Pipe {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// Nothing comes after them.
    ended: Option<Result<(), Error>>,
}

pub(super) fn pipe() -> (Bringing, Brought) {
    let pipe = Arc::default();
    (Bringing(Arc::clone(&pipe)), Brought(pipe))
}

// === impl Brought ===

impl Brought {
    /// The next bytes; `None` at the end.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// Why no more comes.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(next) = self.0.lock().next() {
                return next;
            }
            self.0.changed.notified().await;
        }
    }
}

// === impl Bringing ===

impl Bringing {
    pub(super) fn push(&self, bytes: Bytes) {
        self.0.change(|state| state.chunks.push_back(bytes));
    }

    pub(super) fn fail(&self, error: Error) {
        self.0.change(|state| state.ended = Some(Err(error)));
    }

    /// Lets go of what has been brought as well.
    pub(super) fn lose(&self, error: Error) {
        self.0.change(|state| *state = State { chunks: VecDeque::new(), ended: Some(Err(error)) });
    }

    /// No more comes.
    pub(super) fn end(&self) {
        self.0.change(|state| _ = state.ended.get_or_insert(Ok(())));
    }
}

impl Drop for Bringing {
    fn drop(&mut self) {
        self.end();
    }
}

// === impl Pipe ===

impl Pipe {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        // One takes it.
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// `None`: it is still to come.
    fn next(&mut self) -> Option<Result<Option<Bytes>, Error>> {
        match self.chunks.pop_front() {
            Some(bytes) => Some(Ok(Some(bytes))),
            None => self.ended.clone().map(|ended| ended.map(|()| None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_brought_is_taken_in_its_order_and_then_ends_as_it_did() {
        for end in [None, Some(Error::Busy)] {
            let (bringing, mut brought) = pipe();
            let taken = tokio::spawn(async move {
                let mut taken = Vec::new();
                while let Some(bytes) = brought.next().await? {
                    taken.extend_from_slice(&bytes);
                }
                assert_eq!(taken, b"abc");
                Ok(())
            });
            for bytes in ["a", "b", "c"] {
                bringing.push(bytes.into());
                tokio::task::yield_now().await;
            }
            end.clone().into_iter().for_each(|error| bringing.fail(error));
            drop(bringing);
            assert_eq!(taken.await.unwrap(), end.map_or(Ok(()), Err));
        }
    }

    #[tokio::test]
    async fn who_loses_the_right_to_it_has_it_in_memory_no_longer() {
        let (bringing, mut brought) = pipe();
        let memory = Arc::new([1; 1000]);
        bringing.push(Bytes::from_owner(Owned(Arc::clone(&memory))));
        bringing.push("more".into());
        bringing.lose(Error::Busy);
        assert_eq!(Arc::strong_count(&memory), 1);
        assert_eq!(brought.next().await, Err(Error::Busy));
        assert_eq!(brought.next().await, Err(Error::Busy), "however often it is asked");
    }

    struct Owned(Arc<[u8; 1000]>);

    impl AsRef<[u8]> for Owned {
        fn as_ref(&self) -> &[u8] {
            &*self.0
        }
    }
}
