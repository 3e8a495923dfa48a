//! For the operator: what larder knows of itself, and what it can be told to do, for people as a page, for programs as JSON. A listener
//! of its own, apart from the clients'.
//!
//! Who may look, and who may change something, is said in `guard`.

mod guard;
mod guide;
mod page;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::clock::Timestamp;
use crate::dashboard::{Dashboard, ImagesQuery, Sort, Span, Witness};
use crate::metrics::Metrics;
use crate::mirror::{Health, Mirror, Trouble};
use crate::oci::{ErrorCode, ImageName};
use crate::orders::{self, NotRefreshed, Order, Reports};
use crate::setup::Offer;
use crate::upstream::{BudgetReport, LeftAlone, Upstream};

use super::audit::Audit;
use super::body::Body;
use super::buffers::Buffers;
use super::connections::{Limits, accept_all};
use super::door::{Client, Door, Listener, Terms};
use super::metrics;
use super::pace::Least;
use super::place::Place;
use super::respond::{self, Kind};
use super::shares::Shares;

use guard::Guard;

pub(super) use page::Page;

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminOptions {
    /// The address for the operator: a page, metrics, health, an API. Empty: none.
    #[serde(with = "address_or_none")]
    pub listen: Option<SocketAddr>,
    /// Host names by which it is reached, besides addresses and localhost.
    pub hosts: Vec<String>,
    /// Users and their passwords, as `htpasswd -B` writes them. Empty: nobody is asked, and who is not on this machine may change
    /// nothing.
    pub users_file: PathBuf,
    /// Who is on this machine may change something without being a user. False where a proxy here lets others in and adds none of the
    /// headers Via, Forwarded, X-Forwarded-* and X-Real-IP, by which larder would know.
    pub trust_loopback: bool,
}

/// What the operator is answered with.
pub struct Office {
    pub terms: Arc<Terms>,
    pub hosts: Vec<String>,
    pub trust_loopback: bool,
    pub dashboard: Dashboard,
    pub guide: Guide,
    pub audit: Audit,
}

/// What clients can be told of this larder.
pub struct Guide {
    /// Where it listens for them, and whether by TLS.
    pub places: Vec<(Place, bool)>,
    /// What there is to say to those who reach it by this URL.
    pub offer: Box<OfferAt>,
}

type OfferAt = dyn Fn(&str) -> Result<Offer, String> + Send + Sync;

struct Admin {
    dashboard: Dashboard,
    guide: Guide,
    guard: Guard,
    audit: Audit,
}

/// No more than a few tools speak to it.
const MOST_CONNECTIONS: usize = 100;
const WRITE_IDLE: Duration = Duration::from_mins(1);
const GRACE: Duration = Duration::from_secs(5);
/// How many images there are on a page, unless another number is asked for.
const ROWS: usize = 50;
const WHICH: &str = "say which image: ?image=nginx:1.27";
/// What is there to be looked at,
const PAGES: [&str; 10] = [
    "/",
    "/livez",
    "/readyz",
    "/metrics",
    "/api/now",
    "/api/history",
    "/api/images",
    "/api/upstreams",
    "/api/errors",
    "/api/setup",
];
/// and what changes something.
const ORDERS: [&str; 6] = ["/api/pin", "/api/unpin", "/api/remove", "/api/verify", "/api/pull", "/api/refresh"];

// === impl AdminOptions ===

impl Default for AdminOptions {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 5001))),
            hosts: Vec::new(),
            users_file: PathBuf::new(),
            trust_loopback: true,
        }
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
pub async fn serve_admin(listener: TcpListener, office: Office, stop: impl Future<Output = ()>) {
    let Office { terms, hosts, trust_loopback, dashboard, guide, audit } = office;
    let guard = Guard::new(Arc::clone(&terms), hosts, trust_loopback, dashboard.clock().clone());
    let admin = Arc::new(Admin { dashboard, guide, guard, audit });
    let handle = move |request, client| {
        let admin = Arc::clone(&admin);
        async move { admin.handle(request, client).await }
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
    accept_all(vec![Door::new(Listener::Tcp(listener), terms)], limits, handle, stop).await;
}

// === impl Admin ===

impl Admin {
    async fn handle(&self, request: Request<Incoming>, client: Arc<Client>) -> Response<Body> {
        let (head, _) = request.into_parts();
        let response = match self.guard.check(&head, &client).await {
            Ok(user) => self.answer(&head, &client, user.as_deref()).await,
            Err(refused) => *refused,
        };
        respond::for_operator(response)
    }

    async fn answer(&self, head: &Parts, client: &Client, user: Option<&str>) -> Response<Body> {
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/") => respond::page(page::page()),
            (&Method::GET, "/metrics") => {
                metrics::page(self.mirror(), &self.budgets(), self.dashboard.clock().now(), &head.headers).await
            }
            (&Method::GET, "/livez") => respond::document(&json!({ "status": "ok" })),
            (&Method::GET, "/readyz") => respond::document(&self.health()),
            (&Method::GET, "/api/now") => {
                let mut now = json!(self.dashboard.now());
                now["may_change"] = self.guard.may_change(head, client).is_ok().into();
                respond::document(&now)
            }
            (&Method::GET, "/api/history") => match parameter(head, "span").unwrap_or_default().parse::<Span>() {
                Ok(span) => respond::document(&json!(self.dashboard.history(span))),
                Err(why) => respond::invalid(ErrorCode::Unsupported, &why),
            },
            (&Method::GET, "/api/images") => match images_query(head) {
                Ok(query) => respond::document(&json!(self.dashboard.images(&query).await)),
                Err(why) => respond::invalid(ErrorCode::Unsupported, &why),
            },
            (&Method::GET, "/api/upstreams") => respond::document(&self.upstreams()),
            (&Method::GET, "/api/errors") => respond::document(&json!({ "errors_seen": self.dashboard.incidents() })),
            (&Method::GET, "/api/setup") => self.guide.answer(head),
            (&Method::POST, path) if ORDERS.contains(&path) => match self.guard.may_change(head, client) {
                Ok(()) if path == "/api/refresh" => self.refresh(head, by(client, user)).await,
                Ok(()) => self.order(path, head, by(client, user)).await,
                Err(why) => respond::forbidden(&why),
            },
            (_, path) if PAGES.contains(&path) => respond::wrong_method("GET"),
            (_, path) if ORDERS.contains(&path) => respond::wrong_method("POST"),
            _ => respond::not_for_operators(),
        }
    }

    /// `POST /api/pin?image=nginx:1.27`, and likewise for `unpin`, `remove`, `verify` and `pull`. The last two go on when this is
    /// answered, and `/api/now` tells how far they have come.
    async fn order(&self, path: &str, head: &Parts, by: String) -> Response<Body> {
        let image = match image(head) {
            Ok(image) => image,
            Err(refused) => return *refused,
        };
        let images = vec![image.clone()];
        let audit = self.audit.clone();
        let witness: Witness = Box::new(move |order, reports| {
            let ordered = audit.ordered(by, order, reports);
            Box::new(move || ordered.done())
        });
        let order = match path {
            "/api/pin" => Order::Pin { images },
            "/api/unpin" => Order::Unpin { images },
            "/api/remove" => Order::Remove { images },
            "/api/verify" => return begun(self.dashboard.begin_verify(image, witness)),
            _ => {
                let platforms = parameter(head, "platform")
                    .map_or_else(|| Vec::<String>::new().try_into(), |platform| vec![platform].try_into());
                return match platforms {
                    Ok(platforms) => begun(self.dashboard.begin_pull(image, platforms, witness)),
                    Err(why) => respond::invalid(ErrorCode::Unsupported, &why.to_string()),
                };
            }
        };
        match self.dashboard.carry_out(order, witness).await {
            Ok(report) => respond::document(&json!(report)),
            Err(why) => respond::not_done(&why),
        }
    }

    /// `POST /api/refresh?image=nginx:1.27`: asks for the tag upstream, however fresh it is.
    async fn refresh(&self, head: &Parts, by: String) -> Response<Body> {
        let Some(image) = parameter(head, "image") else { return respond::invalid(ErrorCode::NameInvalid, WHICH) };
        let ordered = self.audit.ordered(by, &Order::Refresh { images: vec![image.clone()] }, &Reports::channel().0);
        let refreshed = orders::refresh(self.mirror(), &image).await;
        if refreshed.is_ok() {
            ordered.done();
        } else {
            ordered.failed();
        }
        match refreshed {
            Ok(refreshed) => respond::document(&json!(refreshed)),
            Err(NotRefreshed::Refused(refusal)) => {
                respond::refusal(&refusal, Kind::Manifest, |until| until.since(self.dashboard.clock().now()))
            }
            Err(why @ NotRefreshed::Digest) => respond::invalid(ErrorCode::TagInvalid, &why.to_string()),
            Err(why @ NotRefreshed::Name(_)) => respond::invalid(ErrorCode::NameInvalid, &why.to_string()),
        }
    }

    /// `GET /readyz`. Whatever is wrong, larder serves: what it cannot keep it passes on. When it stops, nobody listens here.
    fn health(&self) -> Value {
        let Health { counting, disk, left_alone } = self.mirror().health();
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
        let left_alone = |LeftAlone { until, why }| json!({ "until": date(until), "why": why });
        let upstream = |(name, upstream): (&str, &Upstream)| {
            json!({
                "name": name,
                "offline": upstream.is_offline(),
                "left_alone": upstream.left_alone().map(left_alone),
                "accounts": accounts(upstream),
            })
        };
        json!({ "upstreams": self.by_name().into_iter().map(upstream).collect::<Vec<_>>() })
    }

    fn mirror(&self) -> &Mirror {
        self.dashboard.mirror()
    }

    fn budgets(&self) -> Vec<(&str, BudgetReport)> {
        let budgets = |(name, upstream): (_, &Upstream)| upstream.budgets().into_iter().map(move |report| (name, report));
        self.by_name().into_iter().flat_map(budgets).collect()
    }

    fn by_name(&self) -> BTreeMap<&str, &Upstream> {
        self.mirror().registries().upstreams().map(|upstream| (&**upstream.name(), upstream)).collect()
    }
}

/// Who gives an order, for the audit log.
fn by(client: &Client, user: Option<&str>) -> String {
    user.map_or_else(|| client.peer.to_string(), |user| format!("{user} from {}", client.peer))
}

/// The value of a parameter of the query.
fn parameter(head: &Parts, name: &str) -> Option<String> {
    let query = head.uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// Which image is meant, by a name that means one.
fn image(head: &Parts) -> Result<String, Box<Response<Body>>> {
    let image = parameter(head, "image").ok_or_else(|| respond::invalid(ErrorCode::NameInvalid, WHICH))?;
    match image.parse::<ImageName>() {
        Ok(_) => Ok(image),
        Err(invalid) => Err(respond::invalid(ErrorCode::NameInvalid, &invalid.to_string()).into()),
    }
}

fn images_query(head: &Parts) -> Result<ImagesQuery, String> {
    let number = |name: &str, default: usize| match parameter(head, name) {
        Some(text) => text.parse().map_err(|_| format!("{name} is a number")),
        None => Ok(default),
    };
    Ok(ImagesQuery {
        search: parameter(head, "search").unwrap_or_default().trim().to_owned(),
        sort: parameter(head, "sort").map_or(Ok(Sort::Name), |sort| sort.parse())?,
        descending: match parameter(head, "order").as_deref() {
            None | Some("asc") => false,
            Some("desc") => true,
            Some(_) => return Err("order is asc or desc".into()),
        },
        offset: number("offset", 0)?,
        limit: number("limit", ROWS)?,
    })
}

fn begun(begun: Result<u64, String>) -> Response<Body> {
    match begun {
        Ok(errand) => respond::begun(&json!({ "errand": errand })),
        Err(why) => respond::not_done(&why),
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
