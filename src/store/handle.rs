//! One open file, shared by all who read it.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use bytes::Bytes;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::books::Books;
use super::disk::File;
use super::lock;
use super::pool::Pool;

/// An open file of the cache. Its bytes are read by offset, so that all readers share it.
pub(super) struct Handle {
    pub(super) file: File,
    pool: Pool,
    books: Arc<Mutex<Books>>,
    /// What the file still takes of the disk although its name is gone.
    lingers: AtomicU64,
    /// It was found to have wrong bytes.
    spoiled: AtomicBool,
}

// === impl Handle ===

impl Handle {
    pub(super) fn new(file: File, pool: Pool, books: Arc<Mutex<Books>>) -> Arc<Self> {
        Arc::new(Self { file, pool, books, lingers: AtomicU64::new(0), spoiled: AtomicBool::new(false) })
    }

    /// Says that the name is gone: the bytes count until the last holder lets go.
    pub(super) fn unlinked(&self, books: &mut Books, charge: u64) {
        if self.lingers.swap(charge, Ordering::Relaxed) == 0 {
            books.linger(charge);
        }
    }

    /// Says that its bytes are wrong: nobody who reads it may take them for whole.
    pub(super) fn spoil(&self) {
        self.spoiled.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_spoiled(&self) -> bool {
        self.spoiled.load(Ordering::Relaxed)
    }

    /// Some bytes at `offset`, at least one, at most `limit`. What is in the page cache is read at once; only for the rest
    /// does a thread wait.
    ///
    /// Cancel safe.
    pub(super) async fn read(self: &Arc<Self>, offset: u64, limit: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; limit];
        let n = if let Some(n) = self.file.read_cached(offset, &mut buffer)? {
            n
        } else {
            let handle = Arc::clone(self);
            let read = self.pool.run(move || {
                let n = handle.file.read_at(offset, &mut buffer)?;
                io::Result::Ok((n, buffer))
            });
            let (n, filled) = read.await??;
            buffer = filled;
            n
        };
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        buffer.truncate(n);
        Ok(buffer.into())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let charge = *self.lingers.get_mut();
        if charge > 0 {
            lock(&self.books).closed(charge);
        }
    }
}
