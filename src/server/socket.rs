//! The socket in the cache directory, by which the operator's commands reach the larder that holds it.
//!
//! Whoever may write to its file may give orders; the directory and the file let only larder's own user and root. An order is the
//! body of a request, and its reports are the lines of the answer, each as soon as it is there. Who hangs up takes the order
//! back: what is done stays done.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

use super::audit::Audit;

/// More commands at once than anyone types.
const MOST_CONNECTIONS: usize = 32;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest order, in bytes: it may name many images.
const LARGEST_ORDER: usize = 16 << 20;
const LAST_WORD: Duration = Duration::from_secs(10);
/// An order of whose reports nobody takes any for so long is taken back, as it holds what it needs.
const UNREAD: Duration = Duration::from_mins(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What orders are taken with.
#[derive(Clone)]
struct Takes {
    orders: Orders,
    audit: Audit,
    /// Who gives them.
    by: String,
    /// Each ends when the larder stops.
    tasks: TaskTracker,
}

/// The lines of an answer.
enum Lines {
    Reports {
        reports: mpsc::Receiver<Report>,
        /// How many have gone out.
        taken: Arc<AtomicU64>,
        /// Whoever hangs up ends the work.
        _work: DropGuard,
    },
    Refusal(Option<Bytes>),
}

/// The bytes of a request.
struct BodyStream(Incoming);

/// Takes orders by `listener` until `stop` resolves; orders under way are taken back then.
pub async fn serve_orders(listener: UnixListener, orders: Orders, audit: Audit, stop: impl Future<Output = ()>) {
    let (places, tasks, stopping) = (Arc::new(Semaphore::new(MOST_CONNECTIONS)), TaskTracker::new(), CancellationToken::new());
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let place = Arc::clone(&places).try_acquire_owned().ok();
                let by = stream.peer_cred().map_or_else(|_| "nobody knows whom".into(), |by| format!("uid {}", by.uid()));
                let takes =
                    place.is_some().then(|| Takes { orders: orders.clone(), audit: audit.clone(), by, tasks: tasks.clone() });
                let stopping = stopping.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        () = stopping.cancelled() => {}
                        () = speak(stream, takes) => {}
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

async fn speak(stream: UnixStream, takes: Option<Takes>) {
    let service = service_fn(move |request| {
        let takes = takes.clone();
        async move { Ok::<_, Infallible>(answer(request, takes).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a command hung up");
    }
}

async fn answer(request: Request<Incoming>, takes: Option<Takes>) -> Response<Lines> {
    let Some(Takes { orders, audit, by, tasks }) = takes else {
        let why = format!("carries out {MOST_CONNECTIONS} orders already; give this one again when some of them have ended");
        return refuse(StatusCode::SERVICE_UNAVAILABLE, &why);
    };
    let (head, body) = request.into_parts();
    if head.method != Method::POST || head.uri.path() != ORDERS_PATH {
        return refuse(StatusCode::NOT_FOUND, "this takes orders, as the larder command gives them");
    }
    let mut body = BodyStream(body);
    let Some((order, rest)) = read(&mut body).await else {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "takes no order that is so large; give it in parts");
    };
    let order: Order = match serde_json::from_slice(&order) {
        Ok(order) => order,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let (send, reports) = Reports::channel();
    let work = CancellationToken::new();
    let (ended, taken) = (work.clone(), Arc::<AtomicU64>::default());
    let ordered = audit.ordered(by, &order, &send);
    tasks.spawn(unread(send.clone(), Arc::clone(&taken), work.clone()));
    tasks.spawn(async move {
        let mut input: Input = Box::pin(stream::iter([Ok(rest)]).chain(body));
        let work = async {
            orders.carry_out(order, &mut input, &send).await;
            ordered.done();
            // Whoever is still sending is to hear the last report before the connection breaks.
            let _ = timeout(LAST_WORD, async { while let Some(Ok(_)) = input.next().await {} }).await;
        };
        ended.run_until_cancelled(work).await;
    });
    Response::new(Lines::Reports { reports, taken, _work: work.drop_guard() })
}

/// Takes an order back when its reports wait and nobody takes any.
async fn unread(reports: Reports, taken: Arc<AtomicU64>, work: CancellationToken) {
    let waits_in_vain = async {
        loop {
            let before = taken.load(Ordering::Relaxed);
            tokio::time::sleep(UNREAD).await;
            if reports.are_waiting() && taken.load(Ordering::Relaxed) == before {
                return;
            }
        }
    };
    if work.run_until_cancelled(waits_in_vain).await.is_some() {
        tracing::warn!("an order was taken back, as nobody reads what comes of it");
        work.cancel();
    }
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
            Self::Reports { reports, taken, .. } => {
                let report = ready!(reports.poll_recv(cx));
                taken.fetch_add(1, Ordering::Relaxed);
                report.map(|report| report.sent())
            }
        };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }
}
