//! The way of bytes that nobody here looks at: from the page cache into a client's socket, by the kernel, without a copy.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::task::yield_now;

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

    /// Whether what does not fill a packet is to wait for more, as the head of an answer for its body. It does not wait long.
    fn cork(&self, corked: bool);
}

/// What a reader yields.
pub enum Piece {
    Bytes(Bytes),
    /// So many bytes have gone out by the [`Outlet`].
    Sent(usize),
}

/// What goes out unread, piece after piece. What does not fill a packet waits for the next piece or, at most, until this is dropped.
pub(super) struct Flow {
    outlet: Arc<dyn Outlet>,
    /// How much has gone out since others had their turn.
    sent: usize,
}

/// The most that goes out at once, and before others have their turn: who wants little waits for that long.
const MOST: usize = 1 << 20;
/// Less is copied in hardly more time.
pub(super) const LEAST: usize = 64 << 10;

// === impl Flow ===

impl Flow {
    pub(super) fn by(outlet: &Arc<dyn Outlet>) -> Self {
        outlet.cork(true);
        Self { outlet: Arc::clone(outlet), sent: 0 }
    }

    /// Sends some bytes of `file` from `at` on, at most `limit`, without reading them. `None`: they are not in memory, or something
    /// is in the way, which whoever reads them meets as well.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// Of the disk.
    pub(super) async fn send(&mut self, file: &Arc<Handle>, at: u64, limit: usize) -> io::Result<Option<usize>> {
        if self.sent >= MOST {
            // A client that takes all at once would be the only one that is looked after.
            yield_now().await;
            self.sent = 0;
        }
        let (limit, mut failed) = (limit.min(MOST), None);
        let mut send = |socket: BorrowedFd<'_>| match file.is_sendable(at, limit) {
            Ok(true) => file.file().send(socket, at, limit),
            Ok(false) => Err(ErrorKind::NotFound.into()),
            Err(error) => {
                failed = Some(error);
                Err(ErrorKind::Other.into())
            }
        };
        let sent = poll_fn(|cx| self.outlet.poll_send(cx, &mut send)).await;
        if let Some(error) = failed {
            return Err(error);
        }
        let sent = sent.ok().filter(|sent| *sent > 0);
        self.sent += sent.unwrap_or_default();
        Ok(sent)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.outlet.cork(false);
    }
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
