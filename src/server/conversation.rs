//! What is said on one connection, from who it is to the last answer. It goes by phases, each of which has one deadline: whom a proxy
//! speaks for, the handshake, the first request, all others, leaving.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::server::TlsStream;

use super::body::Body;
use super::certificate::common_name;
use super::connections::{Open, Underway, answer_unasked};
use super::door::{Client, Peer, Terms};
use super::gathered::Gathered;
use super::line_ends::LineEnds;
use super::passage::Passage;
use super::respond;
use super::shares::Connected;
use super::streams;
use super::tls::Tls;
use super::wire::{Line, Wire, moved_to};

/// How long a client may take to send the head of a request, HTTP/2's preface before the first included; and a proxy to say for whom
/// it speaks.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// And how long from its first byte to the last of its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Who has shown a certificate shows it again after this, as it may have ended.
const CERTIFIED: Duration = Duration::from_hours(1);
/// Who is told to leave, and asks for nothing, may take so long.
const LEAVING: Duration = Duration::from_secs(10);
const FOR_EVER: Duration = Duration::from_hours(24 * 365);

/// Where a conversation by HTTP is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing has been asked yet. Of itself hyper waits for ever for what may become HTTP/2's preface.
    Begun,
    Asked,
    /// Told to end when it has answered what it was asked.
    Leaving,
}

/// How it came to its end.
enum End {
    /// As HTTP ends one, or because the client left, or should have.
    Http,
    /// The client took nothing for too long.
    Lost,
    /// larder stops, or has no time for it.
    Cut,
}

/// Why a phase came to nothing.
enum Cut {
    Late,
    /// It makes room for another, or larder stops.
    Told,
}

/// The certificate that a client has shown.
struct Certified {
    /// Whose it is, if it says so.
    name: Option<Arc<str>>,
    /// Tells when it must be shown anew, as who signs them may have changed.
    renewed: watch::Receiver<Arc<ServerConfig>>,
}

// === impl Open ===

impl<H, F> Open<H>
where
    H: Fn(Request<Incoming>, Arc<Client>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    /// Where TLS is to be spoken, this is done behind the threads that serve, until that is so.
    pub(super) async fn serve(self, mut stream: TcpStream, peer: Peer, terms: Arc<Terms>, mut counted: Connected) {
        let (all, mut client) = (&self.connections, peer);
        if terms.has_tls() {
            let Ok(moved) = moved_to(stream, &Handle::current()) else { return };
            stream = moved;
        }
        match self.within(HEAD_TIMEOUT, terms.who_comes(&mut stream, peer)).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(named))) => {
                client = named;
                match all.limits.shares.connect(client.ip()) {
                    Some(connected) => counted = connected,
                    None => return all.refuse("client_connections", &stream, client, &terms).await,
                }
            }
            Ok(Err(error)) => {
                all.limits.metrics.unproxied();
                tracing::debug!(client = %peer, %error, "a connection is closed, as no proxy says for whom it is");
                return;
            }
            Err(_) => return,
        }
        if terms.has_tls() && !self.is_greeted(&stream).await {
            return;
        }
        let (wire, line) = Wire::new(stream, all.limits.least, terms.has_tls());
        let Some(tls) = &terms.tls else {
            let end = self.speak(wire, at_once, &line, client, None, &terms).await;
            self.part(end, &line, client).await;
            return drop(counted);
        };
        // On its own, as it needs far more room than HTTP alone, which a connection has for as long as it lives.
        match Box::pin(self.shake_hands(tls, wire, &line, client)).await {
            Ok((stream, certified)) => {
                let (front, tasks) = (all.front.clone(), all.tasks.clone());
                let conversation = async move {
                    let end = if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                        let (stream, gathered) = Gathered::new(stream);
                        self.speak(stream, move |cx| gathered.poll_out(cx), &line, client, certified, &terms).await
                    } else {
                        self.speak(stream, at_once, &line, client, certified, &terms).await
                    };
                    self.part(end, &line, client).await;
                    drop(counted);
                };
                drop(front.spawn(tasks.track_future(conversation)));
            }
            Err(end) => self.part(end, &line, client).await,
        }
    }

    /// Ends what has come to this end.
    async fn part(&self, end: End, line: &Line, client: Peer) {
        match end {
            End::Http => {
                tokio::select! {
                    () = line.close() => {}
                    () = self.connection.leave.cancelled() => {}
                }
            }
            End::Lost => {
                tracing::debug!(%client, "a client is given up: it takes nothing, or too little");
                line.abort();
            }
            End::Cut => {}
        }
    }

    /// What comes of a phase, unless it takes longer than it may, or there is no time for it.
    async fn within<P: Future>(&self, limit: Duration, phase: P) -> Result<P::Output, Cut> {
        tokio::select! {
            outcome = timeout(limit, phase) => outcome.map_err(|_| Cut::Late),
            () = self.told_to_leave() => Err(Cut::Told),
        }
    }

    /// Waits until it is to leave. When larder stops, who has just come is heard first: the next larder does not know them, and where
    /// systemd keeps the socket open nobody is to notice a restart.
    async fn told_to_leave(&self) {
        self.connection.leave.cancelled().await;
        if self.connections.stopping.is_cancelled() && !self.connection.is_asked() {
            sleep_until(self.connection.first_words()).await;
        }
    }

    /// Waits until a handshake begins. False: nothing comes that is to be waited for.
    async fn is_greeted(&self, stream: &TcpStream) -> bool {
        let mut first = [0];
        // Readiness alone may be a false alarm.
        if !matches!(self.within(HEAD_TIMEOUT, stream.peek(&mut first)).await, Ok(Ok(1))) {
            return false;
        }
        // A method, in cleartext; a record of TLS begins with 22.
        let is_clear = first[0].is_ascii_uppercase();
        if is_clear {
            answer_unasked(stream, respond::wants_tls()).await;
        }
        !is_clear
    }

    /// Comes to speak TLS, with the tasks that serve.
    async fn shake_hands(
        &self,
        tls: &Tls,
        wire: Wire,
        line: &Line,
        client: Peer,
    ) -> Result<(TlsStream<Wire>, Option<Certified>), End> {
        let metrics = &self.connections.limits.metrics;
        let _underway = self.connections.handshakes.begin(self.connection.leave.clone());
        let (acceptor, renewed) = tls.acceptor();
        match self.within(HANDSHAKE_TIMEOUT, acceptor.accept(wire)).await {
            Ok(Ok(stream)) => {
                metrics.handshake("done");
                let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let certified = shown.map(|shown| Certified { name: common_name(shown).map(Into::into), renewed });
                line.move_to(&self.connections.front).map_err(|_| End::Cut)?;
                Ok((stream, certified))
            }
            Ok(Err(error)) => {
                metrics.handshake("failed");
                tracing::debug!(%client, %error, "a TLS handshake failed");
                Err(End::Http)
            }
            Err(Cut::Late) => {
                metrics.handshake("slow");
                tracing::debug!(%client, "a TLS handshake took too long");
                Err(End::Cut)
            }
            Err(Cut::Told) => {
                metrics.handshake("given_up");
                Err(End::Cut)
            }
        }
    }

    /// Speaks HTTP until the end. `poll_out`: lets go out what has been written.
    async fn speak<I>(
        &self,
        stream: I,
        mut poll_out: impl FnMut(&mut Context<'_>) -> Poll<io::Result<()>>,
        line: &Arc<Line>,
        peer: Peer,
        certified: Option<Certified>,
        terms: &Arc<Terms>,
    ) -> End
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (all, lasts) = (&self.connections, if certified.is_some() { CERTIFIED } else { FOR_EVER });
        let (name, renewed) = certified.map(|Certified { name, renewed }| (name, renewed)).unzip();
        let client = Arc::new(Client::new(peer, name.flatten(), Arc::clone(terms)));
        let (handle, connection, buffers) = (all.handle.clone(), Arc::clone(&self.connection), all.limits.buffers.clone());
        let on_line = Arc::clone(line);
        let service = service_fn(move |mut request| {
            let (underway, beside) = Underway::new(&connection);
            beside.into_iter().for_each(|beside| _ = request.extensions_mut().insert(beside));
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
        let http = all.http.serve_connection(TokioIo::new(LineEnds::of(stream)), service).into_owned();
        let (mut phase, deadline) = (Phase::Begun, sleep(HEAD_TIMEOUT));
        tokio::pin!(http, deadline);
        let to_leave = async {
            tokio::select! {
                () = self.told_to_leave() => {}
                () = renewal(renewed) => {}
            }
        };
        tokio::pin!(to_leave);
        loop {
            let spoken = poll_fn(|cx| match (http.as_mut().poll(cx), poll_out(cx)) {
                (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error.into())),
                (ended, _) => ended,
            });
            let leaves = tokio::select! {
                ended = spoken => {
                    if let Err(error) = ended {
                        tracing::debug!(client = %peer, %error, "a connection ended badly");
                    }
                    return End::Http;
                }
                () = &mut to_leave, if phase != Phase::Leaving => true,
                () = line.pace.lost() => return End::Lost,
                () = all.cut.cancelled() => {
                    line.cut();
                    return End::Cut;
                }
                () = &mut deadline => match phase {
                    Phase::Begun if self.connection.is_asked() => false,
                    Phase::Asked => true,
                    Phase::Leaving if self.connection.is_busy() || !line.is_written() => true,
                    Phase::Begun | Phase::Leaving => return End::Http,
                },
            };
            let rest = if leaves { LEAVING } else { lasts };
            deadline.as_mut().reset(Instant::now() + rest);
            if leaves && phase != Phase::Leaving {
                http.as_mut().graceful_shutdown();
            }
            phase = if leaves { Phase::Leaving } else { Phase::Asked };
        }
    }
}

/// For a stream that holds nothing back.
fn at_once(_: &mut Context<'_>) -> Poll<io::Result<()>> {
    Poll::Ready(Ok(()))
}

/// Waits until the certificate must be shown anew, if there is one.
async fn renewal(renewed: Option<watch::Receiver<Arc<ServerConfig>>>) {
    match renewed {
        Some(mut renewed) => _ = renewed.changed().await,
        None => std::future::pending().await,
    }
}
