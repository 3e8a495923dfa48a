//! Who may look, and who may change something.
//!
//! Whoever reaches the listener may look, unless there are users: then who is one. Who may look may also change something where there
//! are users, or where it is on this machine. What comes by a proxy there does not, where the proxy says that it is one; where it does
//! not say so nobody can tell, and the operator has to say that this machine is no better than others.
//!
//! A browser reaches it as well, on behalf of whatever page is open in it, and shows a password that it knows unasked. Therefore a request
//! must be addressed to an IP address, to localhost or to a name in `hosts`, which no page has whose name was made to resolve to this
//! machine; what the browser says of whence it comes must be larder's own page; and what does something needs the header `X-Larder`,
//! which a browser does not let a page of another origin send.

use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;
use http::uri::Authority;
use http::{Method, Response, header};

use crate::clock::{Clock, Timestamp};

use super::super::body::Body;
use super::super::door::{Client, Terms};
use super::super::respond::{self, Kind};

pub(super) struct Guard {
    terms: Arc<Terms>,
    hosts: Vec<String>,
    /// Who is on this machine may change something.
    loopback: bool,
    clock: Clock,
}

/// Those who ask whether a service is well are shown nothing else, and have no password.
const FOR_ANYONE: [&str; 2] = ["/livez", "/readyz"];
/// Whoever writes these speaks for somebody else,
const FORWARDED: [&str; 3] = ["forwarded", "via", "x-real-ip"];
/// or one that begins so.
const FORWARDED_ALSO: &str = "x-forwarded-";

// === impl Guard ===

impl Guard {
    pub(super) fn new(terms: Arc<Terms>, hosts: Vec<String>, loopback: bool, clock: Clock) -> Self {
        Self { terms, hosts, loopback, clock }
    }

    /// Whether it may be answered; and as whom it is known, where it has been asked.
    ///
    /// # Errors
    /// The answer that it gets in place of one.
    pub(super) async fn check(&self, head: &Parts, client: &Client) -> Result<Option<Arc<str>>, Box<Response<Body>>> {
        self.check_origin(head).map_err(|why| respond::forbidden(&why))?;
        if FOR_ANYONE.contains(&head.uri.path()) {
            return Ok(None);
        }
        let identified = self.terms.identify(client, client.peer, &head.headers, &self.clock).await;
        let wait = |until: Timestamp| until.since(self.clock.now());
        let identity = identified.map_err(|refusal| respond::refusal(&refusal, Kind::Login, wait))?;
        Ok(identity.user)
    }

    /// Whether who asks may change something.
    ///
    /// # Errors
    /// Says in a sentence what to do.
    pub(super) fn may_change(&self, head: &Parts, client: &Client) -> Result<(), String> {
        let forwarded =
            head.headers.keys().any(|name| FORWARDED.contains(&name.as_str()) || name.as_str().starts_with(FORWARDED_ALSO));
        let is_local = self.loopback && !forwarded && client.peer.ip().to_canonical().is_loopback();
        if self.terms.has_users() || is_local {
            return Ok(());
        }
        Err("from here nothing can be changed until admin.users_file says who may".into())
    }

    /// Refuses what a page in a browser may have sent, unless it is larder's own.
    fn check_origin(&self, head: &Parts) -> Result<(), String> {
        let text = |name| head.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        let named = text(header::HOST).and_then(|host| host.parse::<Authority>().ok());
        let Some(host) = head.uri.authority().cloned().or(named).filter(|host| self.is_ours(host.host())) else {
            return Err("the request is addressed to a name that is not in admin.hosts".into());
        };
        if head.method == Method::POST && !head.headers.contains_key("x-larder") {
            return Err("this needs the header X-Larder: 1, so that no web page can ask for it".into());
        }
        // Whoever follows a link to the page comes from anywhere.
        if head.uri.path() == "/" {
            return Ok(());
        }
        let whence = head.headers.get("sec-fetch-site").map(|site| site.to_str().unwrap_or_default());
        if !whence.is_none_or(|site| matches!(site, "same-origin" | "none")) {
            return Err("a page of another origin may not ask for this".into());
        }
        // What stands before larder may speak TLS: the scheme may be another.
        let origin = head.headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
        let is_own =
            |origin: &str| origin.split_once("://").is_some_and(|(_, origin)| origin.eq_ignore_ascii_case(host.as_str()));
        if !origin.is_none_or(is_own) {
            return Err("a page of another origin may not ask for this".into());
        }
        Ok(())
    }

    fn is_ours(&self, host: &str) -> bool {
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let listed = |name: &String| name.eq_ignore_ascii_case(host);
        address.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost") || self.hosts.iter().any(listed)
    }
}
