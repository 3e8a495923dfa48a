//! The socket in the cache directory, by which the operator's commands reach the larder that holds it.
//!
//! Whoever may write to its file may give orders; the directory and the file let only larder's own user and root. An order is the
//! body of a request, and its reports are the lines of the answer, each as soon as it is there. Who hangs up takes the order
//! back: what is done stays done.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::orders::{Input, ORDERS_PATH, Order, Orders, Report, Reports};

/// More commands at once than anyone types.
const MOST_CONNECTIONS: usize = 32;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest order, in bytes: it may name many images.
const LARGEST_ORDER: usize = 16 << 20;
const LAST_WORD: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The lines of an answer.
enum Lines {
    Reports {
        reports: mpsc::Receiver<Report>,
        /// Whoever hangs up ends the work.
        _work: DropGuard,
    },
    Refusal(Option<Bytes>),
}

/// The bytes of a request.
struct BodyStream(Incoming);

/// Takes orders by `listener` until `stop` resolves; orders under way are taken back then.
pub async fn serve_orders(listener: UnixListener, orders: Orders, stop: impl Future<Output = ()>) {
    let (places, tasks, stopping) = (Arc::new(Semaphore::new(MOST_CONNECTIONS)), TaskTracker::new(), CancellationToken::new());
    tokio::pin!(stop);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(std::io::Error::other)?;
            std::io::Result::Ok((listener.accept().await?.0, place))
        };
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let (orders, stopping) = (orders.clone(), stopping.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        () = stopping.cancelled() => {}
                        () = speak(stream, orders) => {}
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a command could not be let in");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stopping.cancel();
    tasks.close();
    tasks.wait().await;
}

async fn speak(stream: UnixStream, orders: Orders) {
    let service = service_fn(move |request| {
        let orders = orders.clone();
        async move { Ok::<_, Infallible>(answer(request, orders).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a command hung up");
    }
}

async fn answer(request: Request<Incoming>, orders: Orders) -> Response<Lines> {
    let (head, body) = request.into_parts();
    if head.method != Method::POST || head.uri.path() != ORDERS_PATH {
        return refuse(StatusCode::NOT_FOUND, "this takes orders, as the larder command gives them");
    }
    let mut body = BodyStream(body);
    let Some((order, rest)) = read(&mut body).await else {
        return refuse(StatusCode::BAD_REQUEST, "the order did not come whole, or is too large");
    };
    let order: Order = match serde_json::from_slice(&order) {
        Ok(order) => order,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let (send, reports) = Reports::channel();
    let work = CancellationToken::new();
    let ended = work.clone();
    tokio::spawn(async move {
        let mut input: Input = Box::pin(stream::iter([Ok(rest)]).chain(body));
        let work = async {
            orders.carry_out(order, &mut input, &send).await;
            // Whoever is still sending is to hear the last report before the connection breaks.
            let _ = timeout(LAST_WORD, async { while let Some(Ok(_)) = input.next().await {} }).await;
        };
        ended.run_until_cancelled(work).await
    });
    Response::new(Lines::Reports { reports, _work: work.drop_guard() })
}

/// The line of a request that is the order, and what has come of what follows it. `None` if it does not come whole, or is too large.
async fn read(body: &mut BodyStream) -> Option<(Vec<u8>, Bytes)> {
    let mut bytes = Vec::new();
    while let Some(more) = body.next().await {
        let (more, before) = (more.ok()?, bytes.len());
        bytes.extend_from_slice(&more);
        if let Some(end) = more.iter().position(|byte| *byte == b'\n') {
            let rest = Bytes::copy_from_slice(&bytes[before + end + 1..]);
            bytes.truncate(before + end);
            return Some((bytes, rest));
        }
        if bytes.len() > LARGEST_ORDER {
            return None;
        }
    }
    Some((bytes, Bytes::new()))
}

fn refuse(status: StatusCode, why: &str) -> Response<Lines> {
    let mut response = Response::new(Lines::Refusal(Some(Bytes::copy_from_slice(why.as_bytes()))));
    *response.status_mut() = status;
    response
}

// === impl BodyStream ===

impl Stream for BodyStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()).map_err(io::Error::other)))
    }
}

// === impl Lines ===

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut *self {
            Self::Refusal(why) => why.take(),
            Self::Reports { reports, .. } => ready!(reports.poll_recv(cx)).map(|report| report.sent()),
        };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }
}
