//! A connection below HTTP: sees how its client takes what is written, and closes it so that nothing written is lost.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::pace::{Least, Pace};

/// What hyper reads from and writes to.
pub(super) struct Wire {
    stream: Option<TcpStream>,
    line: Arc<Line>,
}

/// What there is to know of a connection besides its bytes.
pub(super) struct Line {
    pub(super) pace: Pace,
    flush: Mutex<Flush>,
    cut: AtomicBool,
    /// After hyper has let go of it.
    released: Mutex<Option<TcpStream>>,
}

/// Someone waits until all that was written has gone to the kernel.
enum Flush {
    Unwanted,
    Wanted(Waker),
    Done,
}

/// How long a client may take to close its side after we have closed ours.
const LINGER: Duration = Duration::from_secs(2);
/// How much it may still send.
const LAST_WORDS: usize = 256 << 10;

// === impl Wire ===

impl Wire {
    pub(super) fn new(stream: TcpStream, least: Least) -> (Self, Arc<Line>) {
        let line = Line {
            pace: Pace::new(least),
            flush: Mutex::new(Flush::Unwanted),
            cut: AtomicBool::new(false),
            released: Mutex::default(),
        };
        let line = Arc::new(line);
        (Self { stream: Some(stream), line: Arc::clone(&line) }, line)
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn watch(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Pending => self.line.pace.waits(),
            Poll::Ready(Ok(bytes)) => self.line.pace.took(*bytes),
            Poll::Ready(Err(_)) => {}
        }
        written
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write(cx, bytes);
        self.watch(written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write_vectored(cx, parts);
        self.watch(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper calls this when all that it had to write has been written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.line.flushed();
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        *lock(&self.line.released) = self.stream.take();
    }
}

// === impl Line ===

impl Line {
    /// Waits until all that was given to hyper before has gone to the kernel.
    pub(super) fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut flush = lock(&self.flush);
        if matches!(*flush, Flush::Done) {
            *flush = Flush::Unwanted;
            return Poll::Ready(());
        }
        *flush = Flush::Wanted(cx.waker().clone());
        Poll::Pending
    }

    fn flushed(&self) {
        let mut flush = lock(&self.flush);
        if let Flush::Wanted(waker) = &*flush {
            waker.wake_by_ref();
            *flush = Flush::Done;
        }
    }

    /// Notes that larder stops before all has been said.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// Closes the connection, with which hyper has done.
    pub(super) async fn close(&self) {
        let stream = lock(&self.released).take();
        if let Some(stream) = stream {
            close(&stream).await;
        }
    }

    /// Gives up a client that takes nothing: what the kernel holds for it is freed at once.
    pub(super) fn abort(&self) {
        if let Some(stream) = lock(&self.released).take() {
            let _ = stream.set_zero_linger();
        }
    }
}

/// Closes with FIN. What the client still sends is then read: to that the kernel would answer with RST, which takes from the
/// client what it has not read yet.
pub(super) async fn close(stream: &TcpStream) {
    // It may be closed already.
    let _ = socket2::SockRef::from(stream).shutdown(Shutdown::Write);
    let _ = timeout(LINGER, read_out(stream)).await;
}

/// Reads until the other side closes.
async fn read_out(stream: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut left = LAST_WORDS;
    while left > 0 {
        stream.readable().await?;
        match stream.try_read(&mut buffer) {
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
