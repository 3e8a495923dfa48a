//! What goes wrong, and for which requests.

use std::{ops::ControlFlow, time::Duration};

use bytes::Bytes;
use hyper::{Method, header};

use super::{
    journal::{Listener, Recorded},
    reply::Reply,
};

/// One thing that goes wrong with an answer. Several may go wrong with the same answer.
///
/// `after` counts bytes of this answer's body: at 0 the headers are sent and nothing else, and an offset
/// at or past the promised end never comes. `at` is an offset in the whole content: a range that holds the
/// byte shows the fault as well.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// This answer instead of the right one.
    Status { code: u16, headers: Vec<(&'static str, String)>, body: Bytes },
    /// Waits before the headers.
    Latency(Duration),
    /// At most so many bytes of the body per second.
    Bandwidth(u64),
    /// Closes the connection in mid-body, with FIN; all bytes before it arrive.
    Cut { after: usize },
    /// Closes the connection in mid-body, with RST; bytes before it may be lost on the way.
    Reset { after: usize },
    /// Sends no more and keeps the connection open; `release()` closes it.
    Stall { after: usize },
    /// Sends no more until `release()`, then the rest.
    Gate { after: usize },
    /// Sends no headers; `release()` closes the connection.
    Hang,
    /// Another byte in this place; the length stays right.
    Corrupt { at: usize },
    /// Other content under the same digest and with a right length.
    WrongBody(Bytes),
    /// 200 and everything, whatever part was asked for.
    IgnoreRange,
    /// A chunked body without `Content-Length`.
    NoLength,
    /// No `Docker-Content-Digest`.
    NoDigestHeader,
    /// Claims that the body is so encoded. It is not, unless a `WrongBody` beside it is.
    ContentEncoding(&'static str),
}

/// Which requests a rule is for: those of one method and listener whose path contains a text.
#[derive(Clone, Debug)]
pub struct Match {
    listener: Listener,
    method: Option<Method>,
    part: String,
    ranged: bool,
    authorized: bool,
    query: String,
    account: Option<String>,
    skip: usize,
    times: usize,
}

/// All rules, in the order in which they were made.
#[derive(Default)]
pub(super) struct Rules {
    rules: Vec<(Match, Vec<Fault>)>,
}

// === impl Fault ===

impl Fault {
    /// An answer with this status and nothing else.
    pub fn status(code: u16) -> Self {
        Self::answer(code, &[], "")
    }

    pub fn answer(code: u16, headers: &[(&'static str, &str)], body: impl Into<Bytes>) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned()));
        Self::Status { code, headers: headers.collect(), body: body.into() }
    }

    /// What Docker Hub says to those who ask thousands of times a minute.
    pub fn too_many_requests() -> Self {
        Self::answer(429, &[("content-type", "text/plain")], "Too Many Requests")
    }

    /// Changes what can be changed before anything is sent. A `Status` is the whole answer: it goes
    /// first, and what comes after it changes that.
    pub(super) fn rewrite(&self, reply: &mut Reply) {
        match self {
            Self::Status { code, headers, body } => {
                *reply = Reply::new(*code).body(body.clone());
                for (name, value) in headers {
                    reply.headers.append(*name, value.parse().expect("a header's value"));
                }
            }
            Self::WrongBody(bytes) => reply.body = bytes.clone(),
            Self::Corrupt { at } => {
                let mut bytes = reply.body.to_vec();
                if let Some(byte) = bytes.get_mut(*at) {
                    *byte ^= 0x01;
                }
                reply.body = bytes.into();
            }
            Self::NoDigestHeader => {
                reply.headers.remove("docker-content-digest");
            }
            Self::ContentEncoding(encoding) => {
                let encoding = header::HeaderValue::from_static(encoding);
                reply.headers.insert(header::CONTENT_ENCODING, encoding);
            }
            _ => {}
        }
    }
}

/// So that one fault can stand where several could.
impl From<Fault> for Vec<Fault> {
    fn from(fault: Fault) -> Self {
        vec![fault]
    }
}

// === impl Match ===

impl Match {
    /// GETs at the front of paths that contain `part`.
    pub fn get(part: impl Into<String>) -> Self {
        Self::new(Listener::Front, Some(Method::GET), part)
    }

    /// HEADs at the front of paths that contain `part`.
    pub fn head(part: impl Into<String>) -> Self {
        Self::new(Listener::Front, Some(Method::HEAD), part)
    }

    /// All requests at the front for paths that contain `part`.
    pub fn any(part: impl Into<String>) -> Self {
        Self::new(Listener::Front, None, part)
    }

    /// Requests to which the front has redirected: their paths end in the digest.
    pub fn storage(part: impl Into<String>) -> Self {
        Self::new(Listener::Storage, None, part)
    }

    /// Requests to which the gateway has redirected.
    pub fn backend(part: impl Into<String>) -> Self {
        Self::new(Listener::Backend, None, part)
    }

    /// Requests for a token.
    pub fn token() -> Self {
        Self::new(Listener::Token, None, "")
    }

    fn new(listener: Listener, method: Option<Method>, part: impl Into<String>) -> Self {
        Self {
            listener,
            method,
            part: part.into(),
            query: String::new(),
            ranged: false,
            authorized: false,
            account: None,
            skip: 0,
            times: usize::MAX,
        }
    }

    /// Only those whose query contains `part`.
    pub fn asking(self, part: &str) -> Self {
        Self { query: part.to_owned(), ..self }
    }

    /// Only those with a `Range`.
    pub fn ranged(self) -> Self {
        Self { ranged: true, ..self }
    }

    /// Only those with an `Authorization`.
    pub fn authorized(self) -> Self {
        Self { authorized: true, ..self }
    }

    /// Only those of this account.
    pub fn by(self, account: &str) -> Self {
        Self { account: Some(account.to_owned()), ..self }
    }

    /// Not the first `n` of them: what a sweep over the n-th request counts up.
    pub fn skip(self, n: usize) -> Self {
        Self { skip: n, ..self }
    }

    /// Only so many of them; then the rule is used up.
    pub fn times(self, n: usize) -> Self {
        Self { times: n, ..self }
    }

    fn is(&self, request: &Recorded) -> bool {
        self.listener == request.listener
            && self.method.as_ref().is_none_or(|method| *method == request.method)
            && request.path.contains(&self.part)
            && request.query.contains(&self.query)
            && (!self.ranged || request.range().is_some())
            && (!self.authorized || request.authorization().is_some())
            && self.account.as_ref().is_none_or(|account| *account == request.account)
    }

    /// Counts a request that matches; breaks where the rule applies to it.
    fn count(&mut self) -> ControlFlow<()> {
        if self.skip > 0 {
            self.skip -= 1;
            ControlFlow::Continue(())
        } else if self.times > 0 {
            self.times -= 1;
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

// === impl Rules ===

impl Rules {
    pub(super) fn push(&mut self, which: Match, mut faults: Vec<Fault>) {
        // The sort is stable: a `Status` goes first, as it replaces what others would have changed.
        faults.sort_by_key(|fault| !matches!(fault, Fault::Status { .. }));
        self.rules.push((which, faults));
    }

    /// The faults of the first rule that is for this request and not used up.
    pub(super) fn take(&mut self, request: &Recorded) -> Vec<Fault> {
        for (which, faults) in &mut self.rules {
            if which.is(request) && which.count().is_break() {
                return faults.clone();
            }
        }
        Vec::new()
    }
}
