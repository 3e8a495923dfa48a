//! The way of bytes that nobody here looks at: from the page cache into a client's socket, by the kernel, without a copy.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::handle::Handle;

/// A client's socket, as a reader sees it.
pub trait Outlet: Send + Sync {
    /// Has `send` write into the socket, once all that was given before is written and the socket takes something. `send`
    /// may be called more than once, or never.
    ///
    /// # Errors
    /// Of `send` or of the socket. `WouldBlock` of `send` means that the socket is full, and is waited for.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        send: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>>;
}

/// What a reader yields.
pub enum Piece {
    Bytes(Bytes),
    /// So many bytes have gone out by the [`Outlet`].
    Sent(usize),
}

/// The most that goes out at once,
const MOST: usize = 256 << 10;
/// unless no more than this is left: with a whole small blob at once its client is woken less often.
const LAST: usize = 1 << 20;
/// Less is copied in hardly more time.
const LEAST: usize = 64 << 10;

/// Sends some bytes of `file` from `at` on, at most `limit`, without reading them. `None`: they are too few, or not in memory,
/// or something is in the way, which whoever reads them meets as well.
///
/// Cancel safe.
///
/// # Errors
/// Of the disk.
pub(super) async fn send(outlet: &dyn Outlet, file: &Arc<Handle>, at: u64, limit: usize) -> io::Result<Option<usize>> {
    let limit = if limit > LAST { MOST } else { limit };
    if limit < LEAST {
        return Ok(None);
    }
    let mut failed = None;
    let mut send = |socket: BorrowedFd<'_>| match file.is_sendable(at, limit) {
        Ok(true) => file.file().send(socket, at, limit),
        Ok(false) => Err(ErrorKind::NotFound.into()),
        Err(error) => {
            failed = Some(error);
            Err(ErrorKind::Other.into())
        }
    };
    let sent = poll_fn(|cx| outlet.poll_send(cx, &mut send)).await;
    failed.map_or_else(|| Ok(sent.ok().filter(|sent| *sent > 0)), Err)
}

// === impl Piece ===

impl Piece {
    /// In bytes; a piece is never empty.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Sent(length) => *length,
        }
    }
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}
