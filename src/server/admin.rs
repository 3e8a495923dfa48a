//! For the operator: what larder knows of itself, and what it can be told to do. A listener of its own, apart from the
//! clients'.
//!
//! Whoever reaches it may use it; so it is on loopback unless it is put elsewhere. A browser on the same machine reaches it as
//! well, on behalf of whatever page is open in it. Therefore a request must be addressed to an IP address, to localhost or to a
//! name in `hosts`, which no page has whose name was made to resolve to this machine; and what does something needs the
//! header `X-Larder`, which a browser does not let a page of another origin send.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::uri::Authority;
use http::{Method, Request, Response, header};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::clock::{Clock, Timestamp};
use crate::metrics::Metrics;
use crate::mirror::{Health, Mirror, Trouble};
use crate::oci::ErrorCode;
use crate::orders::{self, NotRefreshed};
use crate::upstream::{BudgetReport, Upstream};

use super::body::Body;
use super::connections::{Limits, accept_all};
use super::door::{Door, Listener, Terms};
use super::metrics;
use super::pace::Least;
use super::passage::Buffers;
use super::respond::{self, Kind};
use super::shares::Shares;

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminOptions {
    /// The address for the operator: metrics, health, and asking for a tag now. Empty: none.
    #[serde(with = "address_or_none")]
    pub listen: Option<SocketAddr>,
    /// Host names by which it is reached, besides addresses and localhost.
    pub hosts: Vec<String>,
}

#[derive(Clone)]
struct Admin {
    mirror: Mirror,
    clock: Clock,
    hosts: Arc<[String]>,
}

/// No more than a few tools speak to it.
const MOST_CONNECTIONS: usize = 100;
const WRITE_IDLE: Duration = Duration::from_mins(1);
const GRACE: Duration = Duration::from_secs(5);

// === impl AdminOptions ===

impl Default for AdminOptions {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 5001))), hosts: Vec::new() }
    }
}

mod address_or_none {
    use std::net::SocketAddr;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::ref_option, reason = "serde gives it so")]
    pub(super) fn serialize<S: Serializer>(address: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&address.map_or_else(String::new, |address| address.to_string()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                D::Error::custom(format_args!("{text:?} is no address such as 127.0.0.1:5001; leave it empty to have none"))
            }),
        }
    }
}

/// Serves the operator on `listener` until `stop` resolves.
pub async fn serve_admin(
    listener: TcpListener,
    options: AdminOptions,
    mirror: Mirror,
    clock: Clock,
    stop: impl Future<Output = ()>,
) {
    let admin = Admin { mirror, clock, hosts: options.hosts.into() };
    let handle = move |request, _| {
        let admin = admin.clone();
        async move { admin.handle(request).await }
    };
    // The operator's tools are not among the clients.
    let aside = Metrics::new();
    let limits = Limits {
        connections: MOST_CONNECTIONS,
        least: Least { idle: WRITE_IDLE, rate: 0 },
        buffers: Buffers::new(u64::MAX, aside.clone()),
        grace: GRACE,
        shares: Shares::unlimited(),
        metrics: aside,
    };
    let door = Door::new(Listener::Tcp(listener), Terms::none().into());
    accept_all(vec![door], limits, handle, stop).await;
}

// === impl Admin ===

impl Admin {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, _) = request.into_parts();
        if let Err(why) = self.check(&head) {
            return respond::forbidden(&why);
        }
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/metrics") => metrics::page(&self.mirror, &self.budgets(), self.clock.now(), &head.headers).await,
            (&Method::GET, "/livez") => respond::document(&json!({ "status": "ok" })),
            (&Method::GET, "/readyz") => respond::document(&self.health()),
            (&Method::GET, "/api/upstreams") => respond::document(&self.upstreams()),
            (&Method::POST, "/api/refresh") => self.refresh(head.uri.query().unwrap_or_default()).await,
            (_, "/livez" | "/readyz" | "/metrics" | "/api/upstreams") => respond::wrong_method("GET"),
            (_, "/api/refresh") => respond::wrong_method("POST"),
            _ => respond::not_for_operators(),
        }
    }

    /// Refuses what a page in a browser may have sent.
    fn check(&self, head: &Parts) -> Result<(), String> {
        let named = head.headers.get(header::HOST).and_then(|value| value.to_str().ok()?.parse::<Authority>().ok());
        let host = head.uri.authority().cloned().or(named);
        if !host.is_some_and(|host| self.is_ours(host.host())) {
            return Err("the request is addressed to a name that is not in admin.hosts".into());
        }
        if head.method == Method::POST && !head.headers.contains_key("x-larder") {
            return Err("this needs the header X-Larder: 1, so that no web page can ask for it".into());
        }
        Ok(())
    }

    fn is_ours(&self, host: &str) -> bool {
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let listed = |name: &String| name.eq_ignore_ascii_case(host);
        address.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost") || self.hosts.iter().any(listed)
    }

    /// `POST /api/refresh?image=nginx:1.27`: asks for the tag upstream, however fresh it is.
    async fn refresh(&self, query: &str) -> Response<Body> {
        let image = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "image");
        let Some((_, image)) = image else {
            return respond::invalid(ErrorCode::NameInvalid, "say which image: ?image=nginx:1.27");
        };
        match orders::refresh(&self.mirror, &image).await {
            Ok(refreshed) => respond::document(&json!(refreshed)),
            Err(NotRefreshed::Refused(refusal)) => {
                respond::refusal(&refusal, Kind::Manifest, |until| until.since(self.clock.now()))
            }
            Err(why @ NotRefreshed::Digest) => respond::invalid(ErrorCode::TagInvalid, &why.to_string()),
            Err(why @ NotRefreshed::Name(_)) => respond::invalid(ErrorCode::NameInvalid, &why.to_string()),
        }
    }

    /// `GET /readyz`. Whatever is wrong, larder serves: what it cannot keep it passes on. When it stops, nobody listens here.
    fn health(&self) -> Value {
        let Health { counting, disk, left_alone } = self.mirror.health();
        let status = match (&disk, counting) {
            (Some(_), _) => "degraded",
            (None, true) => "counting",
            (None, false) => "ok",
        };
        let disk = disk.map(|Trouble { why, since }| json!({ "why": why, "since": date(since) }));
        json!({ "status": status, "disk": disk, "upstreams_left_alone": left_alone.iter().map(|name| &**name).collect::<Vec<_>>() })
    }

    /// `GET /api/upstreams`
    fn upstreams(&self) -> Value {
        let accounts = |upstream: &Upstream| upstream.budgets().iter().map(account).collect::<Vec<_>>();
        let upstream = |(name, upstream): (&str, &Upstream)| json!({ "name": name, "offline": upstream.is_offline(), "accounts": accounts(upstream) });
        json!({ "upstreams": self.by_name().into_iter().map(upstream).collect::<Vec<_>>() })
    }

    fn budgets(&self) -> Vec<(&str, BudgetReport)> {
        let budgets = |(name, upstream): (_, &Upstream)| upstream.budgets().into_iter().map(move |report| (name, report));
        self.by_name().into_iter().flat_map(budgets).collect()
    }

    fn by_name(&self) -> BTreeMap<&str, &Upstream> {
        self.mirror.registries().upstreams().map(|upstream| (&**upstream.name(), upstream)).collect()
    }
}

fn date(at: Timestamp) -> String {
    humantime::format_rfc3339_seconds(SystemTime::from(at)).to_string()
}

fn account(report: &BudgetReport) -> Value {
    let BudgetReport { account, limit, remaining, window, source, seen, resets } = report;
    json!({
        "account": account,
        "limit": limit,
        "remaining": remaining,
        "window_seconds": window.as_secs(),
        "source": source,
        "seen": date(*seen),
        "resets": resets.map(date),
    })
}
