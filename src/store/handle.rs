//! One open file, shared by all who read it.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use bytes::Bytes;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::books::Books;
use super::disk::File;
use super::lock;
use super::pool::{Pool, caught};

/// An open file of the cache. Its bytes are read by offset, so that all readers share it.
pub(super) struct Handle {
    /// There until it is closed.
    file: Option<File>,
    reads: Pool,
    /// Closes it: to close the last of a removed file is work for the disk.
    writes: Pool,
    books: Arc<Mutex<Books>>,
    /// What the file still takes of the disk although its name is gone.
    lingers: AtomicU64,
    /// It was found to have wrong bytes.
    spoiled: AtomicBool,
}

// === impl Handle ===

impl Handle {
    pub(super) fn new(file: File, reads: Pool, writes: Pool, books: Arc<Mutex<Books>>) -> Arc<Self> {
        Arc::new(Self { file: Some(file), reads, writes, books, lingers: AtomicU64::new(0), spoiled: AtomicBool::new(false) })
    }

    pub(super) fn file(&self) -> &File {
        self.file.as_ref().expect("it is closed only when nobody holds it")
    }

    /// Says that the name is gone: the bytes count until the last holder lets go.
    pub(super) fn unlinked(&self, books: &mut Books, charge: u64) {
        // Who removes it and who has just opened it may both say so; the sum is moved once.
        if self.lingers.swap(charge, Ordering::Relaxed) == 0 {
            books.linger(charge);
        }
        // Nobody will open it again by its name.
        books.forget(self);
    }

    /// Says that its bytes are wrong: nobody who reads it may take them for whole.
    pub(super) fn spoil(&self) {
        self.spoiled.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_spoiled(&self) -> bool {
        self.spoiled.load(Ordering::Relaxed)
    }

    pub(super) fn is_unlinked(&self) -> bool {
        self.lingers.load(Ordering::Relaxed) > 0
    }

    /// Closes the file now, if nobody else holds it. Not to be called where the disk may not be waited for.
    pub(super) fn close(self: Arc<Self>) {
        if let Some(mut handle) = Arc::into_inner(self) {
            let closing = handle.closing();
            closing();
        }
    }

    /// Some bytes at `offset`, at least one, at most `limit`. What is in the page cache is read at once; only for the rest
    /// does a thread wait.
    ///
    /// Cancel safe.
    pub(super) async fn read(self: &Arc<Self>, offset: u64, limit: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; limit];
        let n = if let Some(n) = caught(|| self.file().read_cached(offset, &mut buffer))? {
            n
        } else {
            let handle = Arc::clone(self);
            let read = self.reads.soon(move || {
                let n = handle.file().read_at(offset, &mut buffer)?;
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

    /// Whether the kernel can send all of these bytes without waiting for the disk. `length`: at least one.
    pub(super) fn is_sendable(&self, offset: u64, length: usize) -> io::Result<bool> {
        Ok(!self.is_spoiled() && caught(|| self.file().is_cached(offset, length))?)
    }

    fn closing(&mut self) -> impl FnOnce() + Send + 'static {
        let (file, charge, books) = (self.file.take(), std::mem::take(self.lingers.get_mut()), Arc::clone(&self.books));
        move || {
            drop(file);
            if charge > 0 {
                lock(&books).closed(charge);
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.file.is_some() {
            let closing = self.closing();
            self.writes.start(closing);
        }
    }
}
