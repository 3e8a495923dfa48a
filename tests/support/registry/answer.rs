//! One request, one answer: recorded, authorized, answered rightly, then spoilt as the rules say.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, Request, Response, body::Incoming};
use larder::clock::Clock;
use tokio::{sync::watch, time::sleep};

use super::{
    auth,
    body::{Body, Closed, Hold, InFlight, Script},
    content::Content,
    fault::{Fault, Rules},
    front::Front,
    journal::{Journal, Listener, Recorded},
    limit::Budgets,
    port::Wire,
    reply::Reply,
    setup::Setup,
    storage::Storage,
    tokens::Tokens,
};

/// What the listeners share with each other and with the test.
pub(super) struct Shared {
    setup: Setup,
    addresses: Addresses,
    pub(super) content: Mutex<Content>,
    pub(super) rules: Mutex<Rules>,
    pub(super) journal: Journal,
    pub(super) tokens: Tokens,
    pub(super) storage: Storage,
    pub(super) budgets: Budgets,
    pub(super) clock: Clock,
    /// Counts the calls of `release`.
    pub(super) releases: watch::Sender<u64>,
    /// How many requests wait for one.
    pub(super) held: watch::Sender<usize>,
    pub(super) in_flight: InFlight,
}

/// Where the listeners are.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub(super) front: SocketAddr,
    pub(super) storage: SocketAddr,
    pub(super) token: SocketAddr,
    pub(super) backend: SocketAddr,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(setup: Setup, addresses: Addresses) -> Self {
        let clock = Clock::system();
        Self {
            addresses,
            content: Mutex::default(),
            rules: Mutex::default(),
            journal: Journal::new(),
            tokens: Tokens::new(&setup, addresses.front, addresses.token, clock.clone()),
            storage: Storage::new(addresses.storage),
            budgets: Budgets::new(setup.budget),
            clock,
            releases: watch::Sender::new(0),
            held: watch::Sender::new(0),
            in_flight: InFlight::default(),
            setup,
        }
    }

    /// What is asked at this port by this path.
    fn asked(&self, port: Listener, path: &str) -> Listener {
        match port {
            Listener::Front if self.tokens.at_front(path) => Listener::Token,
            Listener::Front if Storage::at_front(path) => Listener::Storage,
            port => port,
        }
    }

    /// What a healthy registry would say, and the faults that this answer gets. One that is not
    /// admitted gets none: a rule for a blob is about the blob, not about the challenge before it.
    fn decide(&self, request: &Recorded) -> (Reply, Vec<Fault>) {
        if (request.listener == Listener::Front || Storage::at_front(&request.path))
            && let Some(refusal) = auth::refuse(&self.setup, &self.tokens, request)
        {
            return (refusal, Vec::new());
        }
        let faults = self.rules.lock().unwrap().take(request);
        let content = &mut *self.content.lock().unwrap();
        let reply = match request.listener {
            Listener::Storage => self.storage.answer(content, request),
            Listener::Token => self.tokens.issue(content, request),
            Listener::Front => self.front(content).answer(request),
            Listener::Backend => self.front(content).answer_as_backend(request),
        };
        (reply, faults)
    }

    fn front<'a>(&'a self, content: &'a mut Content) -> Front<'a> {
        Front {
            setup: &self.setup,
            content,
            storage: &self.storage,
            budgets: &self.budgets,
            address: self.addresses.front,
            backend: self.addresses.backend,
        }
    }
}

/// The service of all listeners.
pub(super) async fn answer(
    shared: Arc<Shared>,
    port: Listener,
    request: Request<Incoming>,
    wire: Wire,
) -> Result<Response<Body>, Closed> {
    let request = received(&shared, port, request).await?;
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
        let refused = shared.setup.blobs.one_range && range.contains(',');
        reply = if refused { Reply::text(400, "InvalidRange") } else { reply.ranged(range) };
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

async fn received(shared: &Shared, port: Listener, request: Request<Incoming>) -> Result<Recorded, Closed> {
    let (head, body) = request.into_parts();
    let listener = shared.asked(port, head.uri.path());
    let form = if head.method == Method::POST { body.collect().await.map_err(|_| Closed)?.to_bytes() } else { Bytes::new() };
    let mut request = Recorded::new(listener, head, String::from_utf8_lossy(&form).into_owned());
    request.account = auth::account(&shared.setup.auth, &shared.tokens, &request);
    Ok(request)
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
