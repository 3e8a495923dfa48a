//! Connections: a place for each, room for one more, the way out for all.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use hashbrown::HashMap;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::background;
use crate::metrics::Metrics;

use super::body::Body;
use super::buffers::Buffers;
use super::conversation::HEAD_TIMEOUT;
use super::door::{Client, Door, Peer, Terms};
use super::fresh;
use super::pace::Least;
use super::respond;
use super::shares::{Connected, Shares};
use super::streams::Streams;
use super::tls::Handshakes;
use super::wire;

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
pub(super) struct Connections<H> {
    pub(super) limits: Limits,
    pub(super) handle: H,
    pub(super) http: auto::Builder<Streams>,
    places: Arc<Semaphore>,
    /// For those who are told that there is none for them.
    refusals: Semaphore,
    pub(super) handshakes: Handshakes,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    pub(super) tasks: TaskTracker,
    /// The threads that serve.
    pub(super) front: Handle,
    /// No new requests, but for those who have just come.
    pub(super) stopping: CancellationToken,
    /// No more of those under way either.
    pub(super) cut: CancellationToken,
}

/// One connection as seen by others.
pub(super) struct Connection {
    /// Requests under way.
    busy: AtomicUsize,
    /// Counts the moments in which connections became idle: the lower, the longer ago.
    idle_since: AtomicU64,
    since: Instant,
    /// It has been asked something.
    asked: AtomicBool,
    /// Told to end when it has answered what it was asked.
    pub(super) leave: CancellationToken,
}

/// A request is under way until this is dropped.
pub(super) struct Underway(Arc<Connection>);

/// Other requests of the same connection were under way when this one came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beside;

/// A connection is among the open ones until this is dropped.
pub(super) struct Open<H> {
    pub(super) connections: Arc<Connections<H>>,
    number: u64,
    pub(super) connection: Arc<Connection>,
    _place: OwnedSemaphorePermit,
}

/// hyper's own default lets a slow reader hold 400 KiB; podman sends heads of 20 KiB.
const LARGEST_BUFFER: usize = 64 << 10;
const LARGEST_HEAD: u32 = 32 << 10;
const H2_STREAMS: u32 = 128;
/// So many streams may a client have opened and reset before larder has looked at them (CVE-2023-44487),
const PENDING_RESETS: usize = 20;
/// and so many may it make larder reset by breaking the rules (CVE-2025-8671). Then the connection is closed.
const OWN_RESETS: usize = 128;
/// For so long a new connection is not closed for another, nor when larder stops.
const FIRST_WORDS: Duration = Duration::from_secs(1);
/// After a failed accept, for want of descriptors for one, trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection beyond the limit waits for a place.
const WAIT_FOR_PLACE: Duration = Duration::from_millis(50);
/// How many such connections there may be at once; more wait to be accepted.
const MOST_WAITING: usize = 256;
/// How many are told at once that there is no place for them; more are closed without a word.
const MOST_REFUSALS: usize = 256;
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
        refusals: Semaphore::new(MOST_REFUSALS),
        limits,
        handle,
        handshakes: Handshakes::default(),
        open: Mutex::default(),
        next: AtomicU64::new(0),
        tasks: TaskTracker::new(),
        front: Handle::current(),
        stopping: CancellationToken::new(),
        cut: CancellationToken::new(),
    });
    let waiting = Arc::new(Semaphore::new(MOST_WAITING));
    // Sockets of one place have the same terms, and stand beside each other.
    let mut terms: Vec<_> = doors.iter().map(|door| Arc::clone(&door.terms)).collect();
    terms.dedup_by(|one, other| Arc::ptr_eq(one, other));
    let files = join_all(terms.iter().flat_map(|terms| terms.files()).map(fresh::keep));
    let accepting = join_all(doors.into_iter().map(|door| Arc::clone(&connections).accept(door, Arc::clone(&waiting))));
    tokio::select! {
        () = stop => {}
        _ = async { tokio::join!(accepting, files) } => {}
    }
    connections.end().await
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
                    let aside = terms.has_tls();
                    let taken = self.tasks.track_future(async move { all.take(stream, peer, terms, waits).await });
                    drop(if aside { background::spawn(taken) } else { tokio::spawn(taken) });
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
        // Before a place is its own: who has all that it may have is not to take those of others. For whom a proxy speaks is
        // only known later.
        let Some(counted) = self.count(peer, &terms) else {
            drop(waits);
            return self.refuse("client_connections", &stream, peer, &terms).await;
        };
        let places = Arc::clone(&self.places);
        let mut place = Arc::clone(&places).try_acquire_owned().ok();
        if place.is_none() {
            self.make_room();
            place = timeout(WAIT_FOR_PLACE, places.acquire_owned()).await.ok().and_then(Result::ok);
        }
        drop(waits);
        match place {
            Some(place) => self.enter(place).serve(stream, peer, terms, counted).await,
            None => self.refuse("connections", &stream, peer, &terms).await,
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
    /// Counts a connection for its client. `None`: the client has all that it may have.
    pub(super) fn count(&self, client: Peer, terms: &Terms) -> Option<Connected> {
        // A proxy's connections are those of all its clients.
        if terms.trusts(client) { Some(Connected::uncounted()) } else { self.limits.shares.connect(client.ip()) }
    }

    /// Tells a client that there is no place for it.
    pub(super) async fn refuse(&self, why: &'static str, stream: &TcpStream, client: Peer, terms: &Terms) {
        self.limits.metrics.shed(why);
        tracing::debug!(%client, "a connection is refused: there are {why}");
        // Before the handshake it would not understand.
        let may_be_told = if terms.has_tls() { None } else { self.refusals.try_acquire().ok() };
        if may_be_told.is_some() {
            tokio::select! {
                () = answer_unasked(stream, respond::no_place()) => {}
                () = self.stopping.cancelled() => {}
            }
        }
    }

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
pub(super) async fn answer_unasked(stream: &TcpStream, answer: String) {
    let said = async {
        // Readiness alone may be a false alarm.
        if stream.peek(&mut [0]).await? > 0 {
            // So little fits into any buffer.
            stream.try_write(answer.as_bytes())?;
            wire::close(stream).await;
        }
        Ok::<_, io::Error>(())
    };
    let _ = timeout(REFUSAL, said).await;
}

/// A number that is higher each time.
fn moment() -> u64 {
    static MOMENT: AtomicU64 = AtomicU64::new(0);
    MOMENT.fetch_add(1, Ordering::Relaxed)
}

// === impl Open ===

impl<H> Drop for Open<H> {
    fn drop(&mut self) {
        self.connections.open().remove(&self.number);
        self.connections.limits.metrics.disconnected();
    }
}

// === impl Connection ===

impl Connection {
    /// It has been asked something.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// Until then who has just come is about to ask something.
    pub(super) fn first_words(&self) -> Instant {
        self.since + FIRST_WORDS
    }

    /// Nothing is under way. Who has just come is about to ask something.
    fn is_idle(&self) -> bool {
        let about_to_ask = !self.is_asked() && Instant::now() < self.first_words();
        !self.is_busy() && !about_to_ask
    }
}

// === impl Underway ===

impl Underway {
    pub(super) fn new(connection: &Arc<Connection>) -> (Self, Option<Beside>) {
        let beside = (connection.busy.fetch_add(1, Ordering::Relaxed) > 0).then_some(Beside);
        connection.asked.store(true, Ordering::Relaxed);
        (Self(Arc::clone(connection)), beside)
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.idle_since.store(moment(), Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}
