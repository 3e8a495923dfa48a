//! A connection below HTTP: sees how its client takes what is written, and closes it so that nothing written is lost.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::mirror::Outlet;

use super::buffers::Count;
use super::data;
use super::pace::{Least, Pace};

/// What hyper reads from and writes to.
pub(super) struct Wire(Arc<Line>);

/// A connection: its stream, which hyper and an answer's body share, and what there is to know of it.
pub(super) struct Line {
    pub(super) pace: Pace,
    /// There until it is closed.
    stream: Mutex<Option<TcpStream>>,
    /// Of what is encrypted, above here, what may not be written yet.
    encrypted: Option<Mutex<Vec<Count>>>,
    written: Mutex<Written>,
    cut: AtomicBool,
}

/// Whether all that hyper was given has gone to the kernel.
enum Written {
    All,
    NotAll,
    /// Someone waits for it.
    Awaited(Waker),
}

/// How long a client may take to close its side after we have closed ours.
const LINGER: Duration = Duration::from_secs(2);
/// So much of what is encrypted waits to be written at most: rustls takes no more, nor does what gathers frames.
const ENCRYPTED: usize = 64 << 10;
/// How much it may still send.
const LAST_WORDS: usize = 256 << 10;

// === impl Wire ===

impl Wire {
    pub(super) fn new(stream: TcpStream, least: Least, encrypted: bool) -> (Self, Arc<Line>) {
        let line = Line {
            pace: Pace::new(least),
            stream: Mutex::new(Some(stream)),
            encrypted: encrypted.then(Mutex::default),
            written: Mutex::new(Written::NotAll),
            cut: AtomicBool::new(false),
        };
        let line = Arc::new(line);
        (Self(Arc::clone(&line)), line)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.with(|stream| Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.watch(self.0.with(|stream| Pin::new(stream).poll_write(cx, bytes)))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let gone = data::gone(parts);
        if gone > 0 {
            return Poll::Ready(Ok(gone));
        }
        let bytes = parts.iter().position(|part| data::is_stand_in(part)).map_or(parts, |gone| &parts[..gone]);
        self.0.watch(self.0.with(|stream| Pin::new(stream).poll_write_vectored(cx, bytes)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper calls this when all that it had to write has been written, and TLS when it has nothing left that is encrypted.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.all_is_written();
        self.0.with(|stream| Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.with(|stream| Pin::new(stream).poll_shutdown(cx))
    }
}

// === impl Line ===

impl Line {
    fn with<T>(&self, poll: impl FnOnce(&mut TcpStream) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        lock(&self.stream).as_mut().map_or_else(|| Poll::Ready(Err(io::ErrorKind::NotConnected.into())), poll)
    }

    fn watch(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Pending => self.pace.waits(),
            Poll::Ready(Ok(bytes)) => self.pace.took(*bytes),
            Poll::Ready(Err(_)) => {}
        }
        written
    }

    /// The way for bytes that need not be seen on their way, if there is one.
    pub(super) fn outlet(self: &Arc<Self>) -> Option<Arc<dyn Outlet>> {
        if self.is_encrypted() { None } else { Some(Arc::clone(self) as _) }
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.encrypted.is_some()
    }

    /// Counts what is encrypted now until it is written.
    pub(super) fn keep(&self, count: Count) {
        let Some(encrypted) = &self.encrypted else { return };
        let mut encrypted = lock(encrypted);
        encrypted.push(count);
        // What came before the last of it is written.
        let mut room = ENCRYPTED;
        encrypted.iter_mut().rev().for_each(|count| room -= count.at_most(room));
        encrypted.retain_mut(|count| count.at_most(ENCRYPTED) > 0);
    }

    /// Says that hyper has something to write.
    pub(super) fn gives(&self) {
        *lock(&self.written) = Written::NotAll;
    }

    /// Waits until all that hyper was given has gone to the kernel.
    pub(super) fn poll_written(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut written = lock(&self.written);
        if matches!(*written, Written::All) {
            return Poll::Ready(());
        }
        *written = Written::Awaited(cx.waker().clone());
        Poll::Pending
    }

    fn all_is_written(&self) {
        if let Written::Awaited(waker) = std::mem::replace(&mut *lock(&self.written), Written::All) {
            waker.wake();
        }
        self.encrypted.iter().for_each(|encrypted| lock(encrypted).clear());
    }

    /// Whether all that hyper was given has gone to the kernel.
    pub(super) fn is_written(&self) -> bool {
        matches!(*lock(&self.written), Written::All)
    }

    /// Notes that larder stops before all has been said.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// From now on the tasks of `runtime` are told when there is something to read or room to write.
    ///
    /// # Errors
    /// The system's, and the line is closed.
    pub(super) fn move_to(&self, runtime: &Handle) -> io::Result<()> {
        let mut stream = lock(&self.stream);
        if let Some(moved) = stream.take() {
            *stream = Some(moved_to(moved, runtime)?);
        }
        Ok(())
    }

    /// Closes the connection, with which hyper has done.
    pub(super) async fn close(&self) {
        let stream = lock(&self.stream).take();
        if let Some(stream) = stream {
            close(&stream).await;
        }
    }

    /// Gives up a client that takes nothing: what the kernel holds for it is freed at once.
    pub(super) fn abort(&self) {
        if let Some(stream) = lock(&self.stream).take() {
            let _ = stream.set_zero_linger();
        }
    }
}

/// For HTTP/1.1, in which an answer has the line for itself.
impl Outlet for Line {
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        send: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_written(cx));
        self.watch(self.with(|stream| {
            loop {
                ready!(stream.poll_write_ready(cx))?;
                match stream.try_io(Interest::WRITABLE, || send(stream.as_fd())) {
                    Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                    sent => return Poll::Ready(sent),
                }
            }
        }))
    }

    fn cork(&self, corked: bool) {
        if let Some(stream) = lock(&self.stream).as_ref() {
            // What is no TCP has no packets.
            let _ = SockRef::from(stream).set_tcp_cork(corked);
        }
    }
}

/// The same stream, of which the tasks of `runtime` are told when there is something to read or room to write.
///
/// # Errors
/// The system's.
pub(super) fn moved_to(stream: TcpStream, runtime: &Handle) -> io::Result<TcpStream> {
    let stream = stream.into_std()?;
    let _there = runtime.enter();
    TcpStream::from_std(stream)
}

/// Closes with FIN. What the client still sends is then read: to that the kernel would answer with RST, which takes from the
/// client what it has not read yet.
pub(super) async fn close(stream: &TcpStream) {
    // It may be closed already.
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
    let _ = timeout(LINGER, read_out(stream)).await;
}

/// Reads until the other side closes.
async fn read_out(stream: &TcpStream) -> io::Result<()> {
    // Not here, where every connection would have it all its life; and nobody reads what is in it.
    let (mut buffer, mut left) = (Vec::with_capacity(4096), LAST_WORDS);
    while left > 0 {
        stream.readable().await?;
        buffer.clear();
        match stream.try_read_buf(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => left = left.saturating_sub(read),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
