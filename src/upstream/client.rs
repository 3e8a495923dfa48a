//! HTTP to one upstream: connections, TLS, redirects.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::{Response, Url, redirect};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::error::Error;
use super::guard::Guard;
use super::options::Options;

/// HTTP/1.1: a transfer has a connection of its own, as CDNs limit the speed of each.
///
/// Two connection pools: one for the upstream itself, where the operator has put it; one for wherever it sends us.
pub(super) struct Client {
    upstream: Url,
    own: reqwest::Client,
    elsewhere: reqwest::Client,
    guard: Guard,
    header_timeout: Duration,
}

/// How many redirects are followed.
const HOPS: u8 = 5;
const IDLE_CONNECTION: Duration = Duration::from_secs(50);

// === impl Client ===

impl Client {
    pub(super) fn new(upstream: Url, options: &Options) -> Result<Self, String> {
        let tls = tls(&options.ca_file)?;
        let guard = Guard::new(&upstream, options.allow_private);
        let builder = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(redirect::Policy::none())
                .referer(false)
                .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(options.connect_timeout)
                .http1_only()
                .pool_idle_timeout(IDLE_CONNECTION)
        };
        let build = |builder: reqwest::ClientBuilder| builder.build().map_err(|error| error.to_string());
        Ok(Self {
            own: build(builder())?,
            elsewhere: build(builder().dns_resolver(Arc::new(guard.clone())))?,
            upstream,
            guard,
            header_timeout: options.header_timeout,
        })
    }

    /// One request, no redirect. To the upstream's own origin, or guarded to elsewhere.
    pub(super) async fn get(&self, url: &Url, headers: HeaderMap) -> Result<Response, Error> {
        self.send(Method::GET, url, headers).await
    }

    async fn send(&self, method: Method, url: &Url, headers: HeaderMap) -> Result<Response, Error> {
        let client = if url.origin() == self.upstream.origin() {
            &self.own
        } else {
            self.guard.check(&self.upstream, url).map_err(|refused| Error::unavailable(refused.to_string()))?;
            &self.elsewhere
        };
        let request = client.request(method, url.clone()).headers(headers).send();
        match tokio::time::timeout(self.header_timeout, request).await {
            Ok(answered) => Ok(answered?),
            Err(_) => Err(Error::timed_out(format!("no answer within {}", humantime::format_duration(self.header_timeout)))),
        }
    }

    /// A request that follows redirects. `Authorization` goes to the upstream's own origin only.
    pub(super) async fn follow(&self, method: &Method, url: Url, headers: &HeaderMap) -> Result<Followed, Error> {
        let mut at = url;
        for _ in 0..=HOPS {
            let mut sent = headers.clone();
            let own = at.origin() == self.upstream.origin();
            if !own {
                sent.remove(header::AUTHORIZATION);
            }
            let response = self.send(method.clone(), &at, sent).await?;
            let Some(next) = redirect(&at, &response)? else { return Ok(Followed { response, own }) };
            at = next;
        }
        Err(Error::unavailable("it redirects too often"))
    }
}

/// The answer at the end of a chain of redirects.
pub(super) struct Followed {
    pub(super) response: Response,
    /// It came from the upstream itself.
    pub(super) own: bool,
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

/// Reads a small body, whatever length it announces, as long as it is not silent for longer than `idle`.
pub(super) async fn read_limited(response: &mut Response, limit: usize, idle: Duration) -> Result<Bytes, Error> {
    let mut body = BytesMut::new();
    loop {
        let chunk = tokio::time::timeout(idle, response.chunk()).await;
        let Some(chunk) = chunk.map_err(|_| Error::timed_out("the body has fallen silent"))?? else { break };
        if body.len() + chunk.len() > limit {
            return Err(Error::unavailable(format!("its answer is larger than {limit} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Trusts what the system trusts, and `ca_file` where one is given.
fn tls(ca_file: &Path) -> Result<rustls::ClientConfig, String> {
    let mut roots = system_roots().clone();
    if !ca_file.as_os_str().is_empty() {
        let unreadable = |error: &dyn std::fmt::Display| format!("ca_file {} cannot be read: {error}", ca_file.display());
        let certificates = CertificateDer::pem_file_iter(ca_file).map_err(|error| unreadable(&error))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| unreadable(&error))?;
            roots.add(certificate).map_err(|error| unreadable(&error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        roots
    })
}
