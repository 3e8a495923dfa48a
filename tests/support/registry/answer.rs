//! One request, one answer: recorded, authorized, answered rightly, then spoilt as the rules say.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, Request, Response, body::Incoming};
use tokio::{sync::watch, time::sleep};

use super::{
    auth::{Tokens, challenge},
    body::{Body, Closed, Hold, InFlight, Script},
    content::Content,
    fault::{Fault, Rules},
    front::{Route, front},
    journal::{Journal, Listener, Recorded},
    port::Wire,
    reply::Reply,
    setup::Setup,
    storage::Storage,
};

/// What the listeners share with each other and with the test.
pub(super) struct Shared {
    setup: Setup,
    pub(super) content: Mutex<Content>,
    pub(super) rules: Mutex<Rules>,
    pub(super) journal: Journal,
    pub(super) tokens: Tokens,
    pub(super) storage: Storage,
    /// Counts the calls of `release`.
    pub(super) releases: watch::Sender<u64>,
    /// How many requests wait for one.
    pub(super) held: watch::Sender<usize>,
    pub(super) in_flight: InFlight,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(setup: Setup, storage: SocketAddr, token: SocketAddr) -> Self {
        Self {
            setup,
            content: Mutex::default(),
            rules: Mutex::default(),
            journal: Journal::new(),
            tokens: Tokens::new(token),
            storage: Storage::new(storage),
            releases: watch::Sender::new(0),
            held: watch::Sender::new(0),
            in_flight: InFlight::default(),
        }
    }

    /// What a healthy registry would say, and the faults that this answer gets. One that is not
    /// admitted gets none: a rule for a blob is about the blob, not about the challenge before it.
    fn decide(&self, request: &Recorded) -> (Reply, Vec<Fault>) {
        if request.listener == Listener::Front {
            let scope = Route::of(&request.path).scope();
            let challenge = challenge(&self.setup.auth, &self.tokens, request, scope.as_deref());
            if let Some(challenge) = challenge {
                return (challenge, Vec::new());
            }
        }
        let faults = self.rules.lock().unwrap().take(request);
        let content = self.content.lock().unwrap();
        let reply = match request.listener {
            Listener::Front => front(&content, request, |repository, digest| {
                let redirects = self.setup.redirect_blobs;
                redirects.then(|| self.storage.sign(repository, digest))
            }),
            Listener::Storage => self.storage.answer(&content, request),
            Listener::Token => self.tokens.issue(&self.setup.auth, request),
        };
        (reply, faults)
    }
}

/// The service of all three listeners.
pub(super) async fn answer(
    shared: Arc<Shared>,
    listener: Listener,
    request: Request<Incoming>,
    wire: Wire,
) -> Result<Response<Body>, Closed> {
    let request = Recorded::new(listener, &request);
    let mut hold = Hold { releases: shared.releases.subscribe(), held: shared.held.clone() };
    shared.journal.record(request.clone());
    let (mut reply, faults) = shared.decide(&request);

    if let Some(latency) = latency(&shared.setup, &request, &faults) {
        sleep(latency).await;
    }
    if faults.contains(&Fault::Hang) {
        hold.wait().await;
        return Err(Closed);
    }

    for fault in &faults {
        fault.rewrite(&mut reply);
    }
    if let Some(range) = request.range()
        && request.method == Method::GET
        && !faults.contains(&Fault::IgnoreRange)
    {
        reply = reply.ranged(range);
    }
    let (head, bytes) = reply.into_parts(!faults.contains(&Fault::NoLength));
    let body = if request.method == Method::HEAD || bytes.is_empty() {
        let empty = Empty::<Bytes>::new().map_err(|never| match never {});
        empty.boxed_unsync()
    } else {
        let bandwidth = shared.setup.bandwidth.filter(|_| is_for_blob(&request));
        Script::new(bytes, &faults, bandwidth, wire, hold, &shared.in_flight).into_body()
    };
    Ok(Response::from_parts(head, body))
}

/// What to wait before the headers; `None` for nothing, as a sleep of nothing takes up to a millisecond.
fn latency(setup: &Setup, request: &Recorded, faults: &[Fault]) -> Option<Duration> {
    let healthy = Some(setup.latency).filter(|_| is_for_blob(request));
    let faulty = faults.iter().filter_map(|fault| match fault {
        Fault::Latency(latency) => Some(*latency),
        _ => None,
    });
    let latency: Duration = healthy.into_iter().chain(faulty).sum();
    Some(latency).filter(|latency| !latency.is_zero())
}

fn is_for_blob(request: &Recorded) -> bool {
    request.listener == Listener::Storage || request.path.contains("/blobs/")
}
