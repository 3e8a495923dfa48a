//! The service that gives tokens, and what the tokens open.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::Method;
use larder::clock::Clock;
use serde_json::json;

use super::{
    auth::{ANONYMOUS, shows_login},
    content::Content,
    journal::Recorded,
    reply::Reply,
    setup::{Advertised, Life, Missing, Scope, Setup, TokenHost, TokenService},
};

/// The tokens that open something.
pub(super) struct Tokens {
    /// `None` where tokens open nothing.
    service: Option<TokenService>,
    missing: Missing,
    realm: String,
    clock: Clock,
    issued: AtomicUsize,
    valid: Mutex<HashMap<String, Grant>>,
}

struct Grant {
    account: String,
    scopes: Vec<String>,
}

// === impl Tokens ===

impl Tokens {
    pub(super) fn new(setup: &Setup, front: SocketAddr, token: SocketAddr, clock: Clock) -> Self {
        let service = setup.auth.token_service();
        let realm = service.as_ref().map(|service| {
            let host = if service.host == TokenHost::Own { front } else { token };
            format!("http://{host}{}", service.path)
        });
        Self {
            service,
            missing: setup.missing,
            realm: realm.unwrap_or_default(),
            clock,
            issued: AtomicUsize::new(0),
            valid: Mutex::default(),
        }
    }

    pub(super) fn expire(&self) {
        self.valid.lock().unwrap().clear();
    }

    /// Whether the front is asked for a token by this path.
    pub(super) fn at_front(&self, path: &str) -> bool {
        self.service.as_ref().is_some_and(|service| service.host == TokenHost::Own && service.path == path)
    }

    pub(super) fn advertised(&self) -> Advertised {
        self.service.as_ref().map_or(Advertised::Everywhere, |service| service.advertised)
    }

    /// The user whose password or token is shown.
    pub(super) fn account(&self, request: &Recorded) -> Option<String> {
        if let Some(token) = bearer(request) {
            return Some(self.valid.lock().unwrap().get(token)?.account.clone());
        }
        let service = self.service.as_ref()?;
        let refresh = request.parameter("refresh_token").filter(|_| service.posts && request.method == Method::POST);
        let shows =
            |(user, password): &&(&str, &str)| refresh.as_deref() == Some(*password) || shows_login(request, user, password);
        service.logins.iter().find(shows).map(|(user, _)| (*user).to_owned())
    }

    /// The token service: a new token for each request that may have one.
    pub(super) fn issue(&self, content: &Content, request: &Recorded) -> Reply {
        let Some(service) = self.service.as_ref().filter(|service| service.path == request.path) else {
            return Reply::text(404, "404 page not found");
        };
        match request.method {
            Method::GET => {}
            Method::POST if service.posts => {
                if request.parameter("grant_type").as_deref() != Some("refresh_token") {
                    return Reply::error(400, "UNSUPPORTED");
                }
            }
            _ => return Reply::text(404, "404 page not found"),
        }
        let shows_nothing = request.authorization().is_none() && request.method == Method::GET;
        let allowed = if request.account == ANONYMOUS { service.anonymous && shows_nothing } else { true };
        if !allowed || request.parameter("service").as_deref() != Some(service.service) {
            return Reply::error(401, "UNAUTHORIZED");
        }
        let asked = request.parameters("scope");
        let scopes: Vec<String> = asked.iter().filter(|scope| self.grants(content, scope, &request.account)).cloned().collect();
        if self.missing == Missing::NoToken && scopes.len() < asked.len() {
            return Reply::error(403, "DENIED");
        }
        let token = self.token(service, request, &scopes);
        self.valid.lock().unwrap().insert(token.clone(), Grant { account: request.account.clone(), scopes });
        let mut answer: serde_json::Map<String, serde_json::Value> =
            service.members.iter().map(|member| ((*member).to_owned(), json!(token))).collect();
        if let Life::ExpiresIn(seconds) = service.life {
            answer.insert("expires_in".to_owned(), json!(seconds));
        }
        Reply::ok("application/json", json!(answer).to_string())
    }

    /// Whether the token that is shown opens this repository; any will do where there is none. `Err` says what is wrong
    /// with it, and nothing if there is none.
    pub(super) fn check(&self, request: &Recorded, repository: Option<&str>) -> Result<(), Option<&'static str>> {
        let token = bearer(request).ok_or(None)?;
        let valid = self.valid.lock().unwrap();
        let grant = valid.get(token).ok_or(Some("invalid_token"))?;
        let Some(needed) = self.scope(repository) else { return Ok(()) };
        let by_project = self.service.as_ref().is_some_and(|service| matches!(service.scope, Scope::Project));
        let opens = |scope: &String| *scope == needed || (by_project && project(scope) == project(&needed));
        if grant.scopes.iter().any(opens) { Ok(()) } else { Err(Some("insufficient_scope")) }
    }

    /// Where a token is to be had that opens this repository.
    pub(super) fn challenge(&self, repository: Option<&str>, error: Option<&str>) -> String {
        let service = self.service.as_ref().map_or("", |service| service.service);
        let mut challenge = format!("Bearer realm=\"{}\",service=\"{service}\"", self.realm);
        for (key, value) in [("scope", self.scope(repository).as_deref()), ("error", error)] {
            if let Some(value) = value {
                challenge += &format!(",{key}=\"{value}\"");
            }
        }
        challenge
    }

    fn scope(&self, repository: Option<&str>) -> Option<String> {
        match self.service.as_ref()?.scope {
            Scope::Fixed(scope) => Some(scope.to_owned()),
            Scope::Repository | Scope::Project => repository.map(|name| format!("repository:{name}:pull")),
        }
    }

    fn grants(&self, content: &Content, scope: &str, account: &str) -> bool {
        let Some(name) = scope.strip_prefix("repository:").and_then(|rest| rest.split(':').next()) else {
            return true;
        };
        match content.repository(name) {
            Some(repository) => repository.lets(account),
            None => self.missing == Missing::NotFound,
        }
    }

    fn token(&self, service: &TokenService, request: &Recorded, scopes: &[String]) -> String {
        let number = self.issued.fetch_add(1, Ordering::Relaxed) + 1;
        let Life::Jwt(seconds) = service.life else { return format!("canary-token-{number}") };
        let now = self.clock.now().unix_millis() / 1000;
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": "scripted" });
        let claims = json!({
            "iss": service.service, "aud": service.service, "sub": request.account, "jti": format!("canary-{number}"),
            "iat": now, "nbf": now, "exp": now + seconds, "access": scopes,
        });
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        // As long as a signature is, and nobody but its maker can check one.
        let signature = URL_SAFE_NO_PAD.encode(super::noise(number as u64, 256));
        format!("{header}.{claims}.{signature}")
    }
}

fn bearer(request: &Recorded) -> Option<&str> {
    request.authorization().and_then(|value| value.strip_prefix("Bearer "))
}

/// `repository:team` of `repository:team/app:pull`.
fn project(scope: &str) -> &str {
    scope.split('/').next().unwrap_or(scope)
}
