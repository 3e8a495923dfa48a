//! Who may read: the challenge at the front, and the service that gives tokens.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Method;

use super::{journal::Recorded, reply::Reply, setup::Auth};

const SERVICE: &str = "registry.test";

/// The tokens that open something, with the scopes for which they were issued.
pub(super) struct Tokens {
    address: SocketAddr,
    issued: AtomicUsize,
    valid: Mutex<HashMap<String, Vec<String>>>,
}

/// The 401 that tells how to come back, unless the request may pass to what needs `scope`.
pub(super) fn challenge(auth: &Auth, tokens: &Tokens, request: &Recorded, scope: Option<&str>) -> Option<Reply> {
    let challenge = match auth {
        Auth::None => return None,
        Auth::Basic { user, password } => {
            if shows_login(request, user, password) {
                return None;
            }
            format!("Basic realm=\"{SERVICE}\"")
        }
        Auth::Bearer { .. } => tokens.check(request, scope).err()?,
    };
    Some(Reply::error(401, "UNAUTHORIZED").header("www-authenticate", &challenge))
}

// === impl Tokens ===

impl Tokens {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, issued: AtomicUsize::new(0), valid: Mutex::default() }
    }

    pub(super) fn expire(&self) {
        self.valid.lock().unwrap().clear();
    }

    /// The token service: a new token for each request that may have one.
    pub(super) fn issue(&self, auth: &Auth, request: &Recorded) -> Reply {
        let Auth::Bearer { user, expires_in } = auth else {
            return Reply::text(404, "no tokens here");
        };
        if request.method != Method::GET || request.path != "/token" {
            return Reply::text(404, "404 page not found");
        }
        let allowed = match user {
            Some((user, password)) => shows_login(request, user, password),
            None => request.authorization().is_none(),
        };
        if !allowed || request.parameter("service").as_deref() != Some(SERVICE) {
            return Reply::error(401, "UNAUTHORIZED");
        }
        let number = self.issued.fetch_add(1, Ordering::Relaxed) + 1;
        let token = format!("scripted-token-{number}");
        let scopes = request.parameters("scope");
        self.valid.lock().unwrap().insert(token.clone(), scopes);
        let body = match expires_in {
            Some(seconds) => {
                serde_json::json!({ "token": token, "access_token": token, "expires_in": seconds })
            }
            None => serde_json::json!({ "token": token }),
        };
        Reply::ok("application/json", body.to_string())
    }

    /// Whether the request shows a token for this scope; the challenge for one if not.
    fn check(&self, request: &Recorded, scope: Option<&str>) -> Result<(), String> {
        let shown = request.authorization().and_then(|value| value.strip_prefix("Bearer "));
        let valid = self.valid.lock().unwrap();
        let error = match (shown, shown.and_then(|token| valid.get(token))) {
            (None, _) => None,
            (Some(_), None) => Some("invalid_token"),
            (Some(_), Some(scopes)) => {
                if scope.is_none_or(|scope| scopes.iter().any(|known| known == scope)) {
                    return Ok(());
                }
                Some("insufficient_scope")
            }
        };
        let mut challenge = format!("Bearer realm=\"http://{}/token\",service=\"{SERVICE}\"", self.address);
        for (key, value) in [("scope", scope), ("error", error)] {
            if let Some(value) = value {
                challenge += &format!(",{key}=\"{value}\"");
            }
        }
        Err(challenge)
    }
}

fn shows_login(request: &Recorded, user: &str, password: &str) -> bool {
    let expected = STANDARD.encode(format!("{user}:{password}"));
    let shown = request.authorization().and_then(|value| value.strip_prefix("Basic "));
    shown == Some(expected.as_str())
}
