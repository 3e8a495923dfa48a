//! A port that can be closed and opened again, and the connections on it.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use hyper::{
    Request, Response,
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
};

use super::body::{Body, Closed};

pub(super) struct Port {
    address: SocketAddr,
    /// Bound and never listening. While it lives the kernel gives the port to nobody who does not ask
    /// for it by number, so a registry that is down comes back on its own port, in a crowd of tests too.
    _reservation: TcpSocket,
    running: Mutex<Option<Running>>,
}

struct Running {
    stop: oneshot::Sender<()>,
    accepting: JoinHandle<()>,
}

/// What a body may know of and do to the connection that carries it.
#[derive(Clone)]
pub(super) struct Wire {
    /// Counts the moments at which all that hyper had written was in the kernel's hands.
    flushes: watch::Sender<u64>,
    reset: Arc<AtomicBool>,
}

struct Connection {
    stream: TokioIo<TcpStream>,
    wire: Wire,
}

// === impl Port ===

impl Port {
    pub(super) fn reserve() -> Self {
        let reservation = bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = reservation.local_addr().expect("a bound socket has an address");
        Self { address, _reservation: reservation, running: Mutex::default() }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn open<S, F>(&self, service: S)
    where
        S: Fn(Request<Incoming>, Wire) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Response<Body>, Closed>> + Send + 'static,
    {
        let listener = bind(self.address).listen(1024).expect("the port is reserved");
        let (stop, stopped) = oneshot::channel();
        let accepting = tokio::spawn(accept(listener, stopped, service));
        *self.running.lock().unwrap() = Some(Running { stop, accepting });
    }

    /// Returns when the port refuses connections and those that were open are closed.
    pub(super) async fn close(&self) {
        let running = self.running.lock().unwrap().take();
        if let Some(Running { stop, accepting }) = running {
            drop(stop);
            accepting.await.expect("the listener ran until now");
        }
    }
}

fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("SO_REUSEADDR");
    socket.bind(address).expect("a port on loopback");
    socket
}

/// Accepts until `stopped` is dropped at its other end, by `close` or with the whole registry.
async fn accept<S, F>(listener: TcpListener, mut stopped: oneshot::Receiver<()>, service: S)
where
    S: Fn(Request<Incoming>, Wire) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<Body>, Closed>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(serve(stream, service.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn serve<S, F>(stream: TcpStream, service: S)
where
    S: Fn(Request<Incoming>, Wire) -> F,
    F: Future<Output = Result<Response<Body>, Closed>>,
{
    let _ = stream.set_nodelay(true);
    let wire = Wire { flushes: watch::Sender::new(0), reset: Arc::default() };
    let connection = Connection { stream: TokioIo::new(stream), wire: wire.clone() };
    let service = service_fn(move |request| service(request, wire.clone()));
    // Errors are what scripts and leaving clients are made of; the tests look at the other end.
    let _ = http1::Builder::new().serve_connection(connection, service).await;
}

// === impl Wire ===

impl Wire {
    /// Waits until the bytes that the body has given so far are in the kernel's hands: closing then
    /// loses none of them.
    pub(super) async fn flushed(&self) {
        let mut flushes = self.flushes.subscribe();
        // hyper may have been on its way out after a flush when it polled the body; the extra turn
        // makes it go through its whole loop, which flushes after it has polled the body.
        tokio::task::yield_now().await;
        let _ = flushes.changed().await;
    }

    /// Lets the connection end with RST when it closes.
    pub(super) fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }
}

// === impl Connection ===

impl Read for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.wire.flushes.send_modify(|flushes| *flushes += 1);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.wire.reset.load(Ordering::Relaxed) {
            let _ = self.stream.inner().set_zero_linger();
        }
    }
}
