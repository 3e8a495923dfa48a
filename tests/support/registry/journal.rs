//! What the registry was asked.

use http::request;
use hyper::{HeaderMap, Method, header};
use tokio::sync::watch;

use super::super::secrets;

/// What was asked. The storage and the token service may be on the front's own host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Listener {
    Front,
    Storage,
    Token,
    /// The registry to which a gateway sends what it does not answer itself.
    Backend,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub listener: Listener,
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    /// Of a POST.
    pub body: String,
    /// Whose request it was: the user whose password or token was shown and right, or
    /// [`ANONYMOUS`](super::ANONYMOUS).
    pub account: String,
}

/// All requests, in the order of their arrival; whoever waits for one is woken by it.
pub(super) struct Journal {
    requests: watch::Sender<Vec<Recorded>>,
}

// === impl Recorded ===

impl Recorded {
    /// A request of an account that is still to be found out.
    pub(super) fn new(listener: Listener, head: request::Parts, body: String) -> Self {
        // A signed URL is a secret, and the one that may be asked for.
        if listener != Listener::Storage {
            secrets::search("a URL that was asked for", head.uri.to_string().as_bytes());
        }
        Self {
            listener,
            method: head.method,
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            headers: head.headers,
            body,
            account: String::new(),
        }
    }

    /// The header's value, if it was sent and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn range(&self) -> Option<&str> {
        self.header(header::RANGE.as_str())
    }

    pub fn authorization(&self) -> Option<&str> {
        self.header(header::AUTHORIZATION.as_str())
    }

    /// Whether `Accept` names this media type; `*/*` names none.
    pub(super) fn accepts(&self, media_type: &str) -> bool {
        let values = self.headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut types = values.flat_map(|value| value.split(','));
        types.any(|accepted| accepted.split(';').next().is_some_and(|accepted| accepted.trim() == media_type))
    }

    /// All values of a parameter in the query or in the form, decoded.
    pub fn parameters(&self, name: &str) -> Vec<String> {
        let pairs = [&self.query, &self.body].into_iter().flat_map(|text| text.split('&'));
        let pairs = pairs.filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| {
                let spaced = value.replace('+', " ");
                let decoded = percent_encoding::percent_decode_str(&spaced);
                decoded.decode_utf8_lossy().into_owned()
            })
            .collect()
    }

    pub fn parameter(&self, name: &str) -> Option<String> {
        self.parameters(name).into_iter().next()
    }
}

// === impl Journal ===

impl Journal {
    pub(super) fn new() -> Self {
        Self { requests: watch::Sender::new(Vec::new()) }
    }

    pub(super) fn record(&self, request: Recorded) {
        self.requests.send_modify(|requests| requests.push(request));
    }

    pub(super) fn clear(&self) {
        self.requests.send_modify(Vec::clear);
    }

    pub(super) fn all(&self) -> Vec<Recorded> {
        self.requests.borrow().clone()
    }

    pub(super) fn count(&self, listener: Listener, method: &str, part: &str) -> usize {
        count(&self.requests.borrow(), listener, method, part)
    }

    pub(super) async fn reached(&self, method: &str, part: &str, times: usize) {
        let mut requests = self.requests.subscribe();
        let reached = requests.wait_for(|requests| count(requests, Listener::Front, method, part) >= times).await;
        reached.expect("the journal lives as long as the registry");
    }
}

fn count(requests: &[Recorded], listener: Listener, method: &str, part: &str) -> usize {
    let counted =
        requests.iter().filter(|request| request.listener == listener && request.method == method && request.path.contains(part));
    counted.count()
}
