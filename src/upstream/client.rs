//! HTTP to one upstream: connections, TLS, redirects.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Response, Url, redirect};
use tokio::time::timeout;

use crate::clock::{Clock, Timestamp};
use crate::metrics::Fetched;
use crate::room::Askers;

use super::breaker::Breaker;
use super::counts::Counts;
use super::error::Error;
use super::gate::{Failure, Seldom};
use super::guard::{Guard, Refused};
use super::options::Options;
use super::pace::{Limits, Pace};
use super::proxied::Proxied;
use super::resolver::{Guarded, Resolver};
use super::tls;
use super::trust::authority;

/// HTTP/1.1: a transfer has a connection of its own, as CDNs limit the speed of each.
///
/// Two connection pools: one for the upstream itself, where the operator has put it; one for wherever it sends us.
pub(super) struct Client {
    upstream: Url,
    /// `/v2/` of it.
    base: Url,
    own: reqwest::Client,
    elsewhere: reqwest::Client,
    guard: Guard,
    proxied: Proxied,
    resolver: Resolver,
    public_only: bool,
    header_timeout: Duration,
    /// Of small bodies.
    pub(super) limits: Limits,
    breaker: Arc<Breaker>,
    warned: Seldom,
    /// Likewise, of what we are short of ourselves.
    short: Seldom,
    pub(super) counts: Counts,
    clock: Clock,
}

/// How many redirects are followed.
const HOPS: u8 = 5;
const IDLE_CONNECTION: Duration = Duration::from_secs(50);
/// So many idle connections to a registry that clients have named.
const IDLE_OF_PUBLIC: usize = 2;

// === impl Client ===

impl Client {
    /// `trusted`: it may see larder's credentials, the client certificate among them.
    pub(super) fn new(
        upstream: Url,
        options: &Options,
        trusted: bool,
        resolver: Resolver,
        clock: Clock,
        counts: Counts,
    ) -> Result<Self, String> {
        let base = format!("{}/v2/", upstream.as_str().trim_end_matches('/'));
        let base = base.parse().map_err(|error| format!("url {base:?} is no URL: {error}"))?;
        let public_only = options.public_only;
        let guard =
            if public_only { Guard::public_only() } else { Guard::new(&upstream, options.allow_private, &options.proxy)? };
        let builder = |tls| {
            let builder = reqwest::Client::builder();
            let builder = match &*options.proxy {
                "" => builder,
                "none" => builder.no_proxy(),
                url => builder.no_proxy().proxy(reqwest::Proxy::all(url).map_err(|_| "proxy must be a URL or none".to_owned())?),
            };
            let client = builder
                .tls_backend_preconfigured(tls)
                .redirect(redirect::Policy::none())
                .referer(false)
                .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(options.connect_timeout)
                .http1_only()
                .pool_idle_timeout(IDLE_CONNECTION);
            Ok::<_, String>(client)
        };
        let build = |builder: reqwest::ClientBuilder| builder.build().map_err(|error| error.to_string());
        let guarded = Arc::new(Guarded { resolver: resolver.clone(), guard: guard.clone() });
        let own = builder(tls::config(options, trusted)?)?;
        let own = if public_only { own.dns_resolver(Arc::clone(&guarded)) } else { own.dns_resolver(Arc::new(resolver)) };
        let elsewhere = builder(tls::config(options, false)?)?.dns_resolver(Arc::clone(&guarded));
        // Of what clients may name there is any number, and of hosts to which that sends us.
        let idle =
            |builder: reqwest::ClientBuilder, most| if public_only { builder.pool_max_idle_per_host(most) } else { builder };
        let (own, elsewhere) = (idle(own, IDLE_OF_PUBLIC), idle(elsewhere, 0));
        Ok(Self {
            own: build(own)?,
            elsewhere: build(elsewhere)?,
            upstream,
            base,
            guard,
            proxied: Proxied::by(&options.proxy),
            resolver: guarded.resolver.clone(),
            public_only,
            header_timeout: options.header_timeout,
            limits: Limits::of(options),
            breaker: Breaker::new(clock.clone()),
            warned: Seldom::default(),
            short: Seldom::default(),
            counts,
            clock,
        })
    }

    /// `/v2/`.
    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// What lies at `path` below `/v2/`.
    pub(super) fn url(&self, path: &str) -> Result<Url, Error> {
        format!("{}{path}", self.base).parse().map_err(|_| Error::unavailable("no URL can be made of the name"))
    }

    /// Whether the upstream itself may be asked for one of these.
    ///
    /// # Errors
    /// What was wrong when it was asked last.
    pub(super) fn check(&self, askers: &Askers) -> Result<(), Error> {
        self.breaker.check(askers)
    }

    /// Until when the upstream itself is not asked, and what was wrong when it was asked last.
    pub(super) fn left_alone(&self, now: Timestamp) -> Option<(Timestamp, Error)> {
        self.breaker.open_until(now)
    }

    /// The upstream's host and port, to be shown.
    pub(super) fn host(&self) -> String {
        authority(&self.upstream)
    }

    /// One request, no redirect. To the upstream's own origin, or guarded to elsewhere.
    pub(super) async fn get(&self, url: &Url, headers: HeaderMap, askers: &Askers) -> Result<Response, Error> {
        self.send(Method::GET, url, self.is_own(url), headers, None, askers).await
    }

    /// Likewise, with a form.
    pub(super) async fn post(&self, url: &Url, mut headers: HeaderMap, form: String, askers: &Askers) -> Result<Response, Error> {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        self.send(Method::POST, url, self.is_own(url), headers, Some(form), askers).await
    }

    pub(super) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.upstream.origin()
    }

    /// `own`: it is asked as the upstream, and sees the client certificate.
    async fn send(
        &self,
        method: Method,
        url: &Url,
        own: bool,
        headers: HeaderMap,
        body: Option<String>,
        askers: &Askers,
    ) -> Result<Response, Error> {
        // It would be shown as a credential.
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::unavailable("it names an address with a user in it"));
        }
        if !own || self.public_only {
            let refused = |refused: Refused| Error::unavailable(refused.to_string());
            let proxied = self.proxied.is(url);
            self.guard.check(&self.upstream, url, proxied).map_err(refused)?;
            if proxied {
                self.check_by_name(url).await.map_err(refused)?;
            }
        }
        if own {
            self.breaker.admit(askers, || self.knock()).await?;
        }
        let client = if own { &self.own } else { &self.elsewhere };
        // Logins are made up as well as what is asked for.
        let chosen = *url != self.base || headers.contains_key(header::AUTHORIZATION);
        let request = client.request(method, url.clone()).headers(headers);
        let request = match body {
            Some(body) => request.body(body),
            None => request,
        };
        let (answered, nobody) = match timeout(self.header_timeout, request.send()).await {
            Ok(Ok(response)) => (Ok(response), None),
            Ok(Err(error)) => {
                let nobody = error.is_connect().then_some(if error.is_timeout() { Failure::Silent } else { Failure::Dead });
                (Err(error.into()), nobody)
            }
            Err(_) => {
                let why = format!("no answer within {}", humantime::format_duration(self.header_timeout));
                (Err(Error::timed_out(why)), None)
            }
        };
        match (&answered, nobody) {
            (Err(Error::NoSocket(why)), _) => self.has_no_socket(why),
            _ if !own => {}
            (Err(trouble), Some(nobody)) => self.tell(self.breaker.failed(trouble, nobody), trouble),
            _ => self.note(&answered, chosen.then_some((askers, url.path()))),
        }
        answered
    }

    /// Whether someone is there, whatever is asked for: `/v2/`.
    pub(super) fn knock(&self) -> impl Future<Output = Result<(), Error>> + use<> {
        let (request, patience) = (self.own.get(self.base.clone()), self.header_timeout);
        async move {
            match timeout(patience, request.send()).await {
                Ok(answered) => answered.map(drop).map_err(Error::from),
                Err(_) => Err(Error::timed_out("no answer")),
            }
        }
    }

    /// Where a proxy will resolve the name: whether it leads to the inside as far as can be told here.
    async fn check_by_name(&self, url: &Url) -> Result<(), Refused> {
        let Some(host) = url.domain() else { return Ok(()) };
        let addresses = self.resolver.tell(host).await.unwrap_or_default();
        if addresses.iter().all(|address| self.guard.permits_resolved(*address, host, &[])) {
            return Ok(());
        }
        let own = match self.guard.own_host() {
            Some(own) => self.resolver.tell(own).await.unwrap_or_default(),
            None => Vec::new(),
        };
        let permitted = addresses.iter().all(|address| self.guard.permits_resolved(*address, host, &own));
        if permitted { Ok(()) } else { Err(Refused::Private(host.into())) }
    }

    /// That is our own trouble: of the upstream nothing was found out.
    fn has_no_socket(&self, why: &str) {
        self.counts.no_socket();
        if self.short.is_due(self.clock.now()) {
            tracing::warn!(host = %self.host(), %why, "no socket is left to ask an upstream with; what is not here is refused");
        }
    }

    /// How the upstream itself fares, and at what, if someone has chosen that.
    fn note(&self, answered: &Result<Response, Error>, chosen: Option<(&Askers, &str)>) {
        let trouble = match answered {
            Err(error) => error.clone(),
            Ok(response) if matches!(response.status().as_u16(), 502..=504) => {
                Error::unavailable(format!("it answers {}", response.status()))
            }
            Ok(_) => return self.breaker.succeeded(),
        };
        let closed = match chosen {
            Some((askers, path)) => self.breaker.failed_for(askers, &trouble, Failure::Of(path), || self.knock()),
            None => self.breaker.failed(&trouble, Failure::Any),
        };
        self.tell(closed, &trouble);
    }

    fn tell(&self, closed: bool, trouble: &Error) {
        if closed && self.warned.is_due(self.clock.now()) {
            tracing::warn!(host = %self.host(), %trouble, "an upstream does not answer; it is left alone for moments");
        }
    }

    /// A request that follows redirects. `Authorization` goes to the upstream's own origin only, and no longer once the way has
    /// led elsewhere: who is there does not choose what is asked in larder's name.
    pub(super) async fn follow(
        &self,
        method: &Method,
        url: Url,
        headers: &HeaderMap,
        askers: &Askers,
    ) -> Result<Followed, Error> {
        let (mut at, mut own) = (url, true);
        for _ in 0..=HOPS {
            let mut sent = headers.clone();
            own &= self.is_own(&at);
            if !own {
                sent.remove(header::AUTHORIZATION);
            }
            let response = self.send(method.clone(), &at, own, sent, None, askers).await?;
            let Some(next) = redirect(&at, &response)? else { return Ok(Followed { response, own, at }) };
            at = next;
        }
        Err(Error::unavailable("it redirects too often"))
    }
}

/// The answer at the end of a chain of redirects.
pub(super) struct Followed {
    pub(super) response: Response,
    /// It came from the upstream itself, and not by way of another.
    pub(super) own: bool,
    /// Where it ended.
    pub(super) at: Url,
}

fn redirect(at: &Url, response: &Response) -> Result<Option<Url>, Error> {
    let redirects = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    if !redirects.contains(&response.status()) {
        return Ok(None);
    }
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let next = location.and_then(|location| at.join(location).ok());
    let next = next.ok_or_else(|| Error::unavailable("it redirects to nowhere"))?;
    if at.scheme() == "https" && next.scheme() != "https" {
        return Err(Error::unavailable("it redirects from https to http"));
    }
    Ok(Some(next))
}

/// Reads a small body, whatever length it announces, as long as it comes within these limits. What drips would keep its place from others,
/// so that all of it has to come within the time over which a large one's rate is averaged.
pub(super) async fn read_limited(
    response: &mut Response,
    limit: usize,
    limits: Limits,
    fetched: &Fetched,
) -> Result<Bytes, Error> {
    let (mut body, mut pace) = (BytesMut::new(), Pace::new(limits));
    let whole = async {
        while let Some(chunk) = pace.chunk(response).await? {
            fetched.add(chunk.len());
            if body.len() + chunk.len() > limit {
                return Err(Error::unavailable(format!("its answer is larger than {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    };
    timeout(limits.window(), whole).await.unwrap_or_else(|_| Err(Error::timed_out("its answer comes too slowly")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_upstream_that_a_client_has_named_is_not_dialled_on_the_inside() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Counts::new(crate::metrics::Metrics::new(), "x".into());
        for host in ["localhost", "127.0.0.1"] {
            let url: Url = format!("https://{host}:{port}/v2/").parse().unwrap();
            let options = Options { url: url.to_string(), ..Options::of_public(host) };
            let resolver = Resolver::new(&options, Clock::system(), counts.clone());
            let error = Client::new(url.clone(), &options, true, resolver.clone(), Clock::system(), counts.clone())
                .unwrap()
                .get(&url, HeaderMap::new(), &Askers::default())
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("the upstream names {host}, which is not a public address")), "{error}");
            assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);

            let operators = Client::new(
                url.clone(),
                &Options { header_timeout: Duration::from_millis(50), ..Options::default() },
                true,
                resolver,
                Clock::system(),
                counts.clone(),
            );
            operators.unwrap().get(&url, HeaderMap::new(), &Askers::default()).await.unwrap_err();
            assert!(listener.accept().is_ok(), "what an operator has named is");
        }
    }
}
