//! HTTP in: connections, requests, answers, drain.
//!
//! One listener for clients, one for the operator. Floor 3. It turns requests into questions to the mirror and its answers
//! into responses, and decides nothing else.

mod admin;
mod body;
mod handler;
mod log;
mod login;
mod metrics;
mod options;
mod range;
mod respond;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::mirror::Mirror;
use crate::upstream::Hop;

use body::Body;
use handler::Handler;

pub use admin::{AdminOptions, serve_admin};
pub use options::Options;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// hyper's own default lets a slow reader hold 400 KiB; podman sends heads of 20 KiB.
const LARGEST_BUFFER: usize = 64 << 10;
/// How much of an answer the kernel may hold beyond what the network has taken.
const UNSENT: u32 = 128 << 10;
const LARGEST_HEAD: u32 = 64 << 10;
const H2_STREAMS: u32 = 128;
/// After a failed accept, for want of descriptors for one, trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `mirror` on `listener` until `stop` resolves, then lets answers under way end for as long as the options say.
/// Returns how many connections were cut off.
pub async fn serve(
    listener: TcpListener,
    options: &Options,
    mirror: Mirror,
    hop: Hop,
    clock: Clock,
    stop: impl Future<Output = ()>,
) -> usize {
    let handler = Handler { mirror, hop, clock };
    let handle = move |request, client| {
        let handler = handler.clone();
        async move { handler.handle(request, client).await }
    };
    accept_all(listener, options.max_connections, options.shutdown_grace, handle, stop).await
}

/// Answers what comes by `listener` until `stop` resolves; answers under way may then take `grace`. Returns how many
/// connections were cut off.
async fn accept_all<F>(
    listener: TcpListener,
    max_connections: usize,
    grace: Duration,
    handle: impl Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + 'static,
    stop: impl Future<Output = ()>,
) -> usize
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let builder = builder();
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(max_connections));
    let stopping = CancellationToken::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let (stream, client, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let handle = handle.clone();
        let service = service_fn(move |request| {
            let answer = handle(request, client);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let (builder, watcher, stopping) = (builder.clone(), graceful.watcher(), stopping.clone());
        tokio::spawn(async move {
            // hyper's limit on the time for a head begins with the first byte.
            tokio::select! {
                Ok(Ok(())) = tokio::time::timeout(HEAD_TIMEOUT, stream.readable()) => {}
                () = stopping.cancelled() => return,
                else => return,
            }
            let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%client, %error, "a connection ended badly");
            }
            drop(place);
        });
    }
    drop(listener);
    stopping.cancel();
    tokio::select! {
        () = graceful.shutdown() => 0,
        () = tokio::time::sleep(grace) => max_connections - places.available_permits(),
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, client) = listener.accept().await?;
    // Answers are written in large pieces; what remains small must not wait for more.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
    Ok((stream, client, place))
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(LARGEST_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS)
        .max_send_buf_size(LARGEST_BUFFER)
        .max_header_list_size(LARGEST_HEAD)
        .keep_alive_interval(Duration::from_secs(20));
    builder
}
