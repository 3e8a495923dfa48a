//! Connections: a place for each, room for one more, the way out for all.

use std::collections::HashMap;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, interval, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;

use super::body::Body;
use super::certificate::common_name;
use super::door::{Client, Door, Peer, Terms};
use super::pace::Least;
use super::passage::{Buffers, Passage};
use super::respond;
use super::shares::Shares;
use super::streams::{self, Streams};
use super::tls::{Handshakes, Tls};
use super::wire::{Line, Wire};

/// What connections may take, and for how long.
#[derive(Clone)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) least: Least,
    pub(super) buffers: Buffers,
    pub(super) shares: Shares,
    /// How long answers under way may take to end when larder stops.
    pub(super) grace: Duration,
    pub(super) metrics: Metrics,
}

/// The connections that came by some doors.
struct Connections<H> {
    limits: Limits,
    handle: H,
    http: auto::Builder<Streams>,
    places: Arc<Semaphore>,
    handshakes: Handshakes,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    tasks: TaskTracker,
    /// No new requests.
    stopping: CancellationToken,
    /// No more of those under way either.
    cut: CancellationToken,
}

/// One connection as seen by others.
struct Connection {
    /// Requests under way.
    busy: AtomicUsize,
    /// Counts the moments in which connections became idle: the lower, the longer ago.
    idle_since: AtomicU64,
    since: Instant,
    /// It has been asked something.
    asked: AtomicBool,
    /// Told to end when it has answered what it was asked.
    leave: CancellationToken,
}

/// A request is under way until this is dropped.
pub(super) struct Underway(Arc<Connection>);

/// A connection is among the open ones until this is dropped.
struct Open<H> {
    connections: Arc<Connections<H>>,
    number: u64,
    connection: Arc<Connection>,
    _place: OwnedSemaphorePermit,
}

/// How a connection came to its end.
enum End {
    /// As HTTP ends one, or because the client left.
    Http,
    /// The client took nothing for too long.
    Lost,
    /// larder stops, or has no time for it.
    Cut,
}

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// And how long from its first byte to the last of its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often files are looked at that doors are made of.
const LOOK: Duration = Duration::from_secs(1);
/// hyper's own default lets a slow reader hold 400 KiB; podman sends heads of 20 KiB.
const LARGEST_BUFFER: usize = 64 << 10;
const LARGEST_HEAD: u32 = 64 << 10;
const H2_STREAMS: u32 = 128;
/// So many streams may a client have opened and reset before larder has looked at them (CVE-2023-44487),
const PENDING_RESETS: usize = 20;
/// and so many may it make larder reset by breaking the rules (CVE-2025-8671). Then the connection is closed.
const OWN_RESETS: usize = 128;
/// For so long a new connection is not closed for another.
const FIRST_WORDS: Duration = Duration::from_secs(1);
/// After a failed accept, for want of descriptors for one, trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection beyond the limit waits for a place.
const WAIT_FOR_PLACE: Duration = Duration::from_millis(50);
/// How many such connections there may be at once; more wait to be accepted.
const MOST_WAITING: usize = 256;
/// How long one that is refused may take to ask something, and to close.
const REFUSAL: Duration = Duration::from_secs(1);
/// After the last connection has been cut, for its task to end.
const LAST_STEPS: Duration = Duration::from_millis(200);

/// Answers what comes by `doors` until `stop` resolves; answers under way may then take the grace. Returns how many
/// connections were cut off.
pub(super) async fn accept_all<H, F>(doors: Vec<Door>, limits: Limits, handle: H, stop: impl Future<Output = ()>) -> usize
where
    H: Fn(Request<Incoming>, Arc<Client>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let connections = Arc::new(Connections {
        http: http(limits.least),
        places: Arc::new(Semaphore::new(limits.connections)),
        limits,
        handle,
        handshakes: Handshakes::default(),
        open: Mutex::default(),
        next: AtomicU64::new(0),
        tasks: TaskTracker::new(),
        stopping: CancellationToken::new(),
        cut: CancellationToken::new(),
    });
    let waiting = Arc::new(Semaphore::new(MOST_WAITING));
    let looking = look(doors.iter().map(|door| Arc::clone(&door.terms)).collect());
    let accepting = join_all(doors.into_iter().map(|door| Arc::clone(&connections).accept(door, Arc::clone(&waiting))));
    tokio::select! {
        () = stop => {}
        _ = accepting => {}
        () = looking => {}
    }
    connections.end().await
}

/// Sees to it that changed files are read anew.
async fn look(terms: Vec<Arc<Terms>>) {
    let terms = Arc::new(terms);
    let mut due = interval(LOOK);
    loop {
        due.tick().await;
        let terms = Arc::clone(&terms);
        // Where no thread is to be had for it, there is one the next time.
        let _ = tokio::task::spawn_blocking(move || terms.iter().for_each(|terms| terms.look())).await;
    }
}

fn http(least: Least) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams(least));
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(LARGEST_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS)
        .max_send_buf_size(LARGEST_BUFFER)
        .max_header_list_size(LARGEST_HEAD)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(OWN_RESETS)
        .keep_alive_interval(Duration::from_secs(20));
    builder
}

// === impl Connections ===

impl<H, F> Connections<H>
where
    H: Fn(Request<Incoming>, Arc<Client>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    /// Accepts what comes by a door, for ever.
    async fn accept(self: Arc<Self>, door: Door, waiting: Arc<Semaphore>) {
        loop {
            let Ok(waits) = Arc::clone(&waiting).acquire_owned().await else { return };
            match door.listener.accept().await {
                Ok((stream, peer)) => {
                    let (all, terms) = (Arc::clone(&self), Arc::clone(&door.terms));
                    self.tasks.spawn(async move { all.take(stream, peer, terms, waits).await });
                }
                Err(error) => {
                    self.limits.metrics.shed("descriptors");
                    self.make_room();
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Finds a place for a new connection, or tells it that there is none.
    async fn take(self: Arc<Self>, stream: TcpStream, peer: Peer, terms: Arc<Terms>, waits: OwnedSemaphorePermit) {
        let places = Arc::clone(&self.places);
        let mut place = Arc::clone(&places).try_acquire_owned().ok();
        if place.is_none() {
            self.make_room();
            place = timeout(WAIT_FOR_PLACE, places.acquire_owned()).await.ok().and_then(Result::ok);
        }
        if let Some(place) = place {
            drop(waits);
            return self.enter(place).serve(stream, peer, terms).await;
        }
        self.limits.metrics.shed("connections");
        tracing::debug!(client = %peer, "a connection is refused: there are max_connections");
        if terms.has_tls() {
            // Before the handshake it would not understand.
            return;
        }
        let refused = timeout(REFUSAL, answer_unasked(&stream, respond::no_place()));
        tokio::select! {
            _ = refused => {}
            () = self.stopping.cancelled() => {}
        }
    }

    fn enter(self: Arc<Self>, place: OwnedSemaphorePermit) -> Open<H> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let connection = Connection {
            busy: AtomicUsize::new(0),
            idle_since: AtomicU64::new(moment()),
            since: Instant::now(),
            asked: AtomicBool::new(false),
            leave: self.stopping.child_token(),
        };
        let connection = Arc::new(connection);
        self.open().insert(number, Arc::clone(&connection));
        self.limits.metrics.connected();
        Open { connections: self, number, connection, _place: place }
    }

    /// Lets everyone end, and cuts off who has not by the end of the grace. Returns how many.
    async fn end(&self) -> usize {
        self.tasks.close();
        self.stopping.cancel();
        if timeout(self.limits.grace, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let left = self.open().len();
        self.cut.cancel();
        let _ = timeout(LAST_STEPS, self.tasks.wait()).await;
        left
    }
}

impl<H> Connections<H> {
    /// Closes the connection that has been idle for longest, if any is.
    fn make_room(&self) {
        let open = self.open();
        let idle = open.values().filter(|connection| connection.is_idle() && !connection.leave.is_cancelled());
        if let Some(connection) = idle.min_by_key(|connection| connection.idle_since.load(Ordering::Relaxed)) {
            connection.leave.cancel();
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says this, once the client has said something: what comes before its question it would not understand.
async fn answer_unasked(stream: &TcpStream, answer: String) -> std::io::Result<()> {
    // Readiness alone may be a false alarm.
    if stream.peek(&mut [0]).await? == 0 {
        return Ok(());
    }
    // So little fits into any buffer.
    stream.try_write(answer.as_bytes())?;
    super::wire::close(stream).await;
    Ok(())
}

/// A number that is higher each time.
fn moment() -> u64 {
    static MOMENT: AtomicU64 = AtomicU64::new(0);
    MOMENT.fetch_add(1, Ordering::Relaxed)
}

// === impl Open ===

impl<H, F> Open<H>
where
    H: Fn(Request<Incoming>, Arc<Client>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    async fn serve(self, mut stream: TcpStream, peer: Peer, terms: Arc<Terms>) {
        let known = tokio::select! {
            known = timeout(HEAD_TIMEOUT, terms.who_comes(&mut stream, peer)) => known,
            () = self.connection.leave.cancelled() => return,
        };
        let peer = match known {
            Ok(Ok(peer)) => peer,
            Ok(Err(error)) => {
                self.connections.limits.metrics.unproxied();
                tracing::debug!(client = %peer, %error, "a connection is closed, as no proxy says for whom it is");
                return;
            }
            Err(_) => return,
        };
        let Some(_counted) = self.connections.limits.shares.connect(peer.ip()) else {
            self.connections.limits.metrics.shed("client_connections");
            tracing::debug!(client = %peer, "a connection is refused: its client has client_connections");
            if !terms.has_tls() {
                let _ = timeout(REFUSAL, answer_unasked(&stream, respond::no_place())).await;
            }
            return;
        };
        // hyper's limit on the time for a head begins with the first byte.
        let mut first = [0];
        let came = tokio::select! {
            // Readiness alone may be a false alarm.
            came = timeout(HEAD_TIMEOUT, stream.peek(&mut first)) => matches!(came, Ok(Ok(1))),
            () = self.connection.leave.cancelled() => false,
        };
        if !came {
            return;
        }
        // A method, in cleartext; a record of TLS begins with 22.
        if terms.has_tls() && first[0].is_ascii_uppercase() {
            let _ = timeout(REFUSAL, answer_unasked(&stream, respond::wants_tls())).await;
            return;
        }
        let (wire, line) = Wire::new(stream, self.connections.limits.least, terms.has_tls());
        let client = |certificate| Arc::new(Client { peer, certificate, terms: Arc::clone(&terms) });
        let end = match &terms.tls {
            None => self.speak(wire, &line, client(None)).await,
            Some(tls) => match self.shake_hands(tls, wire, peer).await {
                Ok(stream) => {
                    let certificate = stream.get_ref().1.peer_certificates().and_then(|shown| common_name(shown.first()?));
                    let certificate = certificate.map(Into::into);
                    self.speak(stream, &line, client(certificate)).await
                }
                Err(end) => end,
            },
        };
        match end {
            End::Http => {
                tokio::select! {
                    () = line.close() => {}
                    () = self.connection.leave.cancelled() => {}
                }
            }
            End::Lost => {
                tracing::debug!(client = %peer, "a client is given up: it takes nothing, or too little");
                line.abort();
            }
            End::Cut => {}
        }
    }

    /// Comes to speak TLS, and waits for the first byte of what is said by it: hyper would do so for ever.
    async fn shake_hands(&self, tls: &Tls, wire: Wire, peer: Peer) -> Result<TlsStream<Wire>, End> {
        let connection = &self.connection;
        let metrics = &self.connections.limits.metrics;
        let accepted = {
            let _underway = self.connections.handshakes.begin(connection.leave.clone());
            tokio::select! {
                accepted = timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(wire)) => accepted,
                () = connection.leave.cancelled() => {
                    metrics.handshake("given_up");
                    return Err(End::Cut);
                }
            }
        };
        let mut stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                metrics.handshake("failed");
                tracing::debug!(client = %peer, %error, "a TLS handshake failed");
                return Err(End::Http);
            }
            Err(_) => {
                metrics.handshake("slow");
                tracing::debug!(client = %peer, "a TLS handshake took too long");
                return Err(End::Cut);
            }
        };
        metrics.handshake("done");
        let first_byte = tokio::select! {
            said = timeout(HEAD_TIMEOUT, stream.fill_buf()) => matches!(said, Ok(Ok(said)) if !said.is_empty()),
            () = connection.leave.cancelled() => false,
        };
        if first_byte { Ok(stream) } else { Err(End::Cut) }
    }

    /// Speaks HTTP until the end.
    async fn speak<I>(&self, stream: I, line: &Arc<Line>, client: Arc<Client>) -> End
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let all = &self.connections;
        let (handle, connection, buffers) = (all.handle.clone(), Arc::clone(&self.connection), all.limits.buffers.clone());
        let (on_line, peer) = (Arc::clone(line), client.peer);
        let service = service_fn(move |request| {
            let underway = Underway::new(&connection);
            // On its own, as hyper moves what it is given several times, and keeps room for one as long as the connection lives.
            let answer = Box::pin(handle(request, Arc::clone(&client)));
            let (line, buffers) = (Arc::clone(&on_line), buffers.clone());
            async move {
                // A panic costs this answer; its reason is in the log.
                let answer = AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| respond::panicked());
                let passage = Passage { line, stream: streams::pace(), buffers, _underway: underway };
                let length = answer.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
                Ok::<_, Infallible>(answer.map(|body| body.over(passage, length)))
            }
        });
        let http = all.http.serve_connection(TokioIo::new(stream), service).into_owned();
        tokio::pin!(http);
        let mut leaves = false;
        loop {
            tokio::select! {
                ended = &mut http => {
                    if let Err(error) = ended {
                        tracing::debug!(client = %peer, %error, "a connection ended badly");
                    }
                    return End::Http;
                }
                () = self.connection.leave.cancelled(), if !leaves => {
                    leaves = true;
                    http.as_mut().graceful_shutdown();
                }
                () = line.pace.lost() => return End::Lost,
                () = all.cut.cancelled() => {
                    line.cut();
                    return End::Cut;
                }
            }
        }
    }
}

impl<H> Drop for Open<H> {
    fn drop(&mut self) {
        self.connections.open().remove(&self.number);
        self.connections.limits.metrics.disconnected();
    }
}

// === impl Connection ===

impl Connection {
    /// Nothing is under way. Who has just come is about to ask something.
    fn is_idle(&self) -> bool {
        let about_to_ask = !self.asked.load(Ordering::Relaxed) && self.since.elapsed() < FIRST_WORDS;
        self.busy.load(Ordering::Relaxed) == 0 && !about_to_ask
    }
}

// === impl Underway ===

impl Underway {
    fn new(connection: &Arc<Connection>) -> Self {
        connection.busy.fetch_add(1, Ordering::Relaxed);
        connection.asked.store(true, Ordering::Relaxed);
        Self(Arc::clone(connection))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.idle_since.store(moment(), Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}
