//! What is small, is in memory, and outlives larder: each has a file of its own, which follows it.

use std::io;
use std::sync::Arc;

use crate::sync::{Mutex, MutexGuard};

use super::{Store, lock};

/// Something that fits into a small text.
pub trait Text: Clone + Default + Send + 'static {
    /// Of its file, which no other has.
    const NAME: &'static str;

    fn written(&self) -> String;

    /// `None`: the text is not what [`Text::written`] makes.
    fn read(text: &str) -> Option<Self>;
}

/// In memory, and on the disk as it was when it was last written there. What a kill takes is what has changed since.
#[derive(Default)]
pub struct Kept<T>(Mutex<State<T>>);

#[derive(Default)]
struct State<T> {
    now: T,
    /// It has changed since it was written.
    dirty: bool,
}

// === impl Kept ===

impl<T: Text> Kept<T> {
    pub fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.lock().now)
    }

    /// `change` says whether there is something to write.
    pub fn change(&self, change: impl FnOnce(&mut T) -> bool) {
        let mut state = self.lock();
        state.dirty |= change(&mut state.now);
    }

    /// Takes what a larder before this one has written. A file that is none of larder's, or cannot be read, is set aside, as it is no
    /// reason not to start.
    ///
    /// Cancel safe.
    pub async fn recall(&self, store: &Store) {
        let why = match store.text(T::NAME).await {
            Ok(None) => return,
            Ok(Some(text)) => match T::read(&text) {
                Some(kept) => {
                    self.lock().now = kept;
                    return;
                }
                None => "it is not what larder has written".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        let aside = store.set_text_aside(T::NAME).await.err().map(|error| error.to_string());
        tracing::warn!(why, aside, "the file `{0}` cannot be used; it is set aside as {0}.damaged", T::NAME);
    }

    /// Writes it, if it has changed since that was done last. What cannot be written is written the next time.
    ///
    /// Cancel safe: it is written all the same.
    pub async fn keep(&self, store: &Store) {
        let now = {
            let mut state = self.lock();
            if !std::mem::take(&mut state.dirty) {
                return;
            }
            state.now.clone()
        };
        // It may be long, and whoever needs it meanwhile does not wait until it is a text.
        if let Err(error) = store.set_text(T::NAME, move || now.written()).await {
            self.lock().dirty = true;
            tracing::error!(%error, "the file `{}` could not be written; it is tried again", T::NAME);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.0)
    }
}

// === impl Store ===

impl Store {
    async fn text(&self, name: &'static str) -> io::Result<Option<String>> {
        let store = Arc::clone(&self.0);
        let read = self.0.writes.run(move || match store.disk.read(name) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        });
        read.await?
    }

    async fn set_text(&self, name: &'static str, text: impl FnOnce() -> String + Send + 'static) -> io::Result<()> {
        let store = Arc::clone(&self.0);
        self.0.writes.run(move || store.disk.replace(name, text().as_bytes())).await?
    }

    async fn set_text_aside(&self, name: &'static str) -> io::Result<()> {
        let store = Arc::clone(&self.0);
        self.0.writes.run(move || store.disk.move_aside(name)).await?
    }
}
