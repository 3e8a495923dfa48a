//! Wiring: builds the store, the upstreams, the mirror and the server from the configuration, owns their tasks, and drains.

mod audit_file;
mod bound;
mod check;
mod inherited;
mod log;
mod offer;
mod registries;
mod running;
mod traces;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::config::Config;
use crate::dashboard::Dashboard;
use crate::metrics::Metrics;
use crate::mirror::{self, Mirror, Registries};
use crate::orders::Orders;
use crate::server::{self, Guide, Office, Place, Service, Shares, Terms};
use crate::store::{self, Store, Tally};
use crate::upstream::{Hop, Spent, Upstream};

use audit_file::AuditFile;
use bound::{bind, bind_for_operator, listen};
use registries::registries;
use traces::Exporter;

pub use check::{Finding, check};
pub use log::{LogFormat, LogLevel, LogOptions};
pub use offer::offer;
pub use running::{Reloaded, Running};
pub use traces::TraceOptions;

/// A running larder. To be ended with [`App::stop`]; dropped, its tasks go on.
pub struct App {
    listening: Vec<Listening>,
    admin_address: Option<SocketAddr>,
    store: Store,
    mirror: Mirror,
    dashboard: Dashboard,
    running: Arc<Running>,
    stop: CancellationToken,
    ends: JoinHandle<Drained>,
}

/// Where clients come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    pub place: Place,
    /// Whether they speak TLS there.
    pub tls: bool,
}

/// A cache that is open for the operator alone: nobody else asks, and nothing is done of itself. To be ended with
/// [`Alone::close`]; dropped, the next start looks at every file.
pub struct Alone {
    orders: Orders,
    mirror: Mirror,
    store: Store,
}

/// What a stop had to cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    pub connections: usize,
    pub fills: usize,
}

/// Why larder does not start. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Upstream(String),
    #[error("cannot listen on {place}: {error}; give another address as {option}")]
    Listen { option: &'static str, place: Place, error: std::io::Error },
    #[error("{0}")]
    Listener(String),
    #[error("{0}")]
    Audit(String),
    #[error("{0}")]
    Traces(String),
    #[error(transparent)]
    Cache(#[from] store::OpenError),
}

/// How often it is looked whether a command has let go of the cache.
const HELD_IN_PASSING: Duration = Duration::from_millis(200);
const UNTIL_SAID: Duration = Duration::from_millis(500);
const UPKEEP: Duration = Duration::from_mins(1);
/// How often a disk that has failed is looked at.
const PROBE: Duration = Duration::from_secs(2);
/// How long fills and the store may take to put down what they have, all together. A hung disk must not hold the process.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// But after the grace is over they have only this long together.
const AFTER_GRACE: Duration = Duration::from_millis(900);

// === impl App ===

impl App {
    /// Starts larder. It serves when this returns; until then connections are refused, so that clients go elsewhere while the
    /// disk lets wait.
    ///
    /// Cancel safe, but for the mark of a clean stop: the next start may look at every file.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        let (hop, metrics, told) = (Hop::unique(), Metrics::new(), config.clone());
        let registries = registries(&config, &hop, &clock, &metrics).map_err(StartError::Upstream)?;
        let clients = bind(&config.server).await?;
        let operator = config.admin.listen.map(bind_for_operator).transpose()?;
        let operators = Terms::of_operator(&config.admin.users_file).map_err(StartError::Listener)?;
        inherited::close_rest();
        let (audit_file, audit) = AuditFile::open(&config.log.audit_file, &metrics).map_err(StartError::Audit)?;
        let (exporter, tracer) = Exporter::start(&config.traces, &metrics).map_err(StartError::Traces)?;
        let (store, mirror) = open(config.cache, config.mirror, registries, &clock, metrics).await?;
        running::tell_doubts(&told, &Config::default());
        let listening = clients
            .iter()
            .flat_map(|(terms, bound)| bound.iter().map(|bound| Listening { place: bound.place.clone(), tls: terms.has_tls() }));
        let listening: Vec<Listening> = listening.collect();
        let guide = guide(&told, &listening);
        let admin_address = operator.as_ref().map(|(_, address)| *address);
        let shares = Shares::within(&config.server);
        let terms = clients.iter().map(|(terms, _)| Arc::clone(terms)).collect();
        let running = Running { config: told.into(), terms, shares: shares.clone(), mirror: mirror.clone(), audit_file };
        let (doors, made, admin) = match listen(clients, operator).await {
            Ok(listening) => listening,
            Err(error) => {
                // As it was found: else the next start looks at every file.
                store.close(true).await;
                return Err(error);
            }
        };
        let stop = CancellationToken::new();
        let beside = TaskTracker::new();
        beside.spawn(mirror.clone().keep(stop.clone()));
        let dashboard = Dashboard::new(mirror.clone(), store.clone(), clock.clone());
        dashboard.recall().await;
        beside.spawn(dashboard.clone().run(stop.clone()));
        if let Some(listener) = admin {
            let stopped = stop.clone().cancelled_owned();
            let office = Office {
                terms: operators.into(),
                hosts: config.admin.hosts,
                trust_loopback: config.admin.trust_loopback,
                dashboard: dashboard.clone(),
                guide,
                audit: audit.clone(),
            };
            beside.spawn(server::serve_admin(listener, office, stopped));
        }
        match store.listen().await.and_then(UnixListener::from_std) {
            Ok(listener) => {
                let orders = Orders::new(mirror.clone(), store.clone());
                beside.spawn(server::serve_orders(listener, orders, audit.clone(), stop.clone().cancelled_owned()));
            }
            Err(error) => tracing::error!(%error, "there is no socket in the cache directory; no command reaches this larder"),
        }
        beside.spawn(scrub(store.clone(), stop.clone()));
        beside.close();
        let (stopped, grace) = (stop.clone().cancelled_owned(), config.server.shutdown_grace);
        let service = Service { mirror: mirror.clone(), shares, audit, tracer, hop, clock };
        let clients = async move {
            let cut = server::serve(doors, &config.server, service, stopped).await;
            drop(made);
            cut
        };
        let running_on = run(clients, grace, beside, dashboard.clone(), store.clone(), stop.clone());
        let ends = tokio::spawn(async move {
            let drained = running_on.await;
            if let Some(exporter) = exporter {
                exporter.end().await;
            }
            drained
        });
        Ok(Self { listening, admin_address, store, mirror, dashboard, running: Arc::new(running), stop, ends })
    }

    /// Where it listens, first at `server.listen`.
    #[must_use]
    pub fn listening(&self) -> &[Listening] {
        &self.listening
    }

    /// The first address of TCP at which it listens.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.listening.iter().find_map(Listening::address)
    }

    /// Where it listens for its operator, if it does.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    #[must_use]
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// What is known for the operator's page.
    #[must_use]
    pub fn dashboard(&self) -> &Dashboard {
        &self.dashboard
    }

    /// What a changed configuration is given to.
    #[must_use]
    pub fn running(&self) -> Arc<Running> {
        Arc::clone(&self.running)
    }

    /// Stops listening, lets answers under way end, stops fills, and writes down what only memory knows.
    pub async fn stop(self) -> Drained {
        self.stop.cancel();
        self.ends.await.unwrap_or_default()
    }
}

// === impl Alone ===

impl Alone {
    /// Opens a cache that no larder serves.
    ///
    /// Cancel safe as [`App::start`] is.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn open(config: Config, clock: Clock) -> Result<Self, StartError> {
        let (hop, metrics) = (Hop::unique(), Metrics::new());
        let registries = registries(&config, &hop, &clock, &metrics).map_err(StartError::Upstream)?;
        let cache = store::Options { passing: true, ..config.cache };
        let (store, mirror) = open(cache, config.mirror, registries, &clock, metrics).await?;
        Ok(Self { orders: Orders::new(mirror.clone(), store.clone()), mirror, store })
    }

    #[must_use]
    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// Stops fills, leaving what they have for the next time, and writes down what only memory knows.
    pub async fn close(self) {
        let fills = self.mirror.stop(LAST_WRITES).await;
        note_spent(&self.mirror, &self.store);
        let _ = timeout(LAST_WRITES, self.mirror.keep_lacking()).await;
        if timeout(LAST_WRITES, self.store.close(fills == 0)).await.is_err() {
            tracing::error!("the disk does not answer; the next start looks at every file");
        }
    }
}

// === impl Listening ===

impl Listening {
    /// Where it is reached over the network.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        if let Place::Tcp(address) = self.place { Some(address) } else { None }
    }
}

/// As a URL, where there is one for it.
impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place, self.tls) {
            (Place::Tcp(address), false) => write!(f, "http://{address}"),
            (Place::Tcp(address), true) => write!(f, "https://{address}"),
            (place, _) => place.fmt(f),
        }
    }
}

/// What clients are told of a larder that listens there.
fn guide(config: &Config, listening: &[Listening]) -> Guide {
    let config = config.clone();
    let places = listening.iter().map(|listening| (listening.place.clone(), listening.tls)).collect();
    Guide { places, offer: Box::new(move |url| offer(&config, Some(url))) }
}

/// The cache, and what stands before it.
async fn open(
    cache: store::Options,
    options: mirror::Options,
    registries: Registries,
    clock: &Clock,
    metrics: Metrics,
) -> Result<(Store, Mirror), StartError> {
    // What a sealed larder loses it cannot have again.
    let cache = store::Options { sealed: options.offline, ..cache };
    let since = Instant::now();
    let store = loop {
        match Store::open(&cache, clock.clone(), metrics.clone()).await {
            // A service must not fail because someone looks at its cache while it starts. Who has just taken the lock may not
            // have said yet what for.
            Err(store::OpenError::Held { passing, holder, .. })
                if !cache.passing && (passing || since.elapsed() < UNTIL_SAID) =>
            {
                if passing {
                    tracing::info!(holder, "a command holds the cache; larder starts when that has ended");
                }
                tokio::time::sleep(HELD_IN_PASSING).await;
            }
            opened => break opened?,
        }
    };
    for upstream in registries.upstreams() {
        if let Some(Tally { since, amount }) = store.tally(&tally_name(upstream)) {
            upstream.resume_spent(Spent { since, bytes: amount });
        }
    }
    let mirror = Mirror::new(options, store.clone(), registries, clock.clone(), metrics);
    mirror.recall_lacking().await;
    Ok((store, mirror))
}

async fn run(
    clients: impl Future<Output = usize>,
    grace: Duration,
    beside: TaskTracker,
    dashboard: Dashboard,
    store: Store,
    stop: CancellationToken,
) -> Drained {
    let mirror = dashboard.mirror().clone();
    let upkeep = tokio::spawn(upkeep(dashboard.clone(), store.clone(), stop.clone()));
    let end = async {
        stop.cancelled().await;
        Instant::now() + grace + AFTER_GRACE
    };
    let (connections, end) = tokio::join!(clients, end);
    // Each may take a part of the time that is left.
    let share = |part: u32| (end.saturating_duration_since(Instant::now()) / part).min(LAST_WRITES);
    let _ = timeout(share(3), beside.wait()).await;
    let fills = mirror.stop(share(2)).await;
    upkeep.abort();
    note_spent(&mirror, &store);
    let written = async { tokio::join!(mirror.keep_lacking(), dashboard.keep()) };
    let _ = timeout(share(2), written).await;
    // Clients that were cut off wrote nothing.
    if timeout(share(1), store.close(fills == 0)).await.is_err() {
        tracing::error!("the disk does not answer; the next start looks at every file");
    }
    Drained { connections, fills }
}

async fn upkeep(dashboard: Dashboard, store: Store, stop: CancellationToken) {
    let mirror = dashboard.mirror();
    let mut due = tokio::time::interval(UPKEEP);
    due.tick().await;
    let mut probe = tokio::time::interval(PROBE);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = probe.tick() => store.probe().await,
            _ = due.tick() => {
                note_spent(mirror, &store);
                mirror.keep_lacking().await;
                dashboard.keep().await;
                store.upkeep().await;
            }
        }
    }
}

/// Verifies what is in the cache, in idle time.
async fn scrub(store: Store, stop: CancellationToken) {
    let mut due = tokio::time::interval(UPKEEP);
    due.tick().await;
    let rounds = async {
        loop {
            due.tick().await;
            store.scrub_once().await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = rounds => {}
    }
}

/// Writes down what has been spent of byte quotas, which last longer than a process.
fn note_spent(mirror: &Mirror, store: &Store) {
    for upstream in mirror.registries().upstreams() {
        if let Some(Spent { since, bytes }) = upstream.spent() {
            store.set_tally(&tally_name(upstream), Tally { since, amount: bytes });
        }
    }
}

fn tally_name(upstream: &Upstream) -> String {
    format!("bytes-from-{}", upstream.name())
}
