//! Proving to an upstream who we are: Basic, and Bearer by way of a token service.
//!
//! <https://distribution.github.io/distribution/spec/auth/token/>

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, header};
use reqwest::Url;
use serde::Deserialize;

use crate::clock::{Clock, Timestamp};
use crate::flight::Flights;
use crate::oci::RepositoryName;

use super::client::{Client, read_limited};
use super::error::Error;

/// Knows how each repository of one upstream wants to be asked, and holds the tokens for it.
pub(super) struct Auth {
    upstream: Url,
    credential: Option<Credential>,
    /// Hosts that may see the credential, as `host` or `host:port`.
    token_hosts: Vec<String>,
    /// What the upstream has asked for, by repository.
    challenges: moka::sync::Cache<RepositoryName, Challenge>,
    tokens: moka::sync::Cache<TokenKey, Token>,
    fetching: Flights<TokenKey, Result<Token, Error>>,
    client: Arc<Client>,
    clock: Clock,
}

/// A user and a password. It has no `Debug`, so that it cannot get into a log.
#[derive(Clone)]
pub(super) struct Credential {
    pub(super) username: String,
    pub(super) password: String,
}

/// What a `WWW-Authenticate` header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer(TokenKey),
}

/// What a token is good for. One upstream has one credential, so it needs no part in this.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    /// From here on a new one is fetched: somewhat before it expires.
    renew_at: Timestamp,
    /// Until here it will do where no new one is to be had.
    expires_at: Timestamp,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// What the token specification says of a token that does not tell.
const DEFAULT_LIFE: u64 = 60;
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
const LARGEST_ANSWER: usize = 64 << 10;

// === impl Auth ===

impl Auth {
    pub(super) fn new(
        upstream: Url,
        credential: Option<Credential>,
        token_hosts: Vec<String>,
        client: Arc<Client>,
        clock: Clock,
    ) -> Self {
        Self {
            upstream,
            credential,
            token_hosts,
            challenges: moka::sync::Cache::new(10_000),
            tokens: moka::sync::Cache::new(10_000),
            fetching: Flights::default(),
            client,
            clock,
        }
    }

    /// The `Authorization` to send with a request for `repository`, as far as it is known what is wanted.
    pub(super) async fn header(&self, repository: &RepositoryName) -> Result<Option<HeaderValue>, Error> {
        match self.challenges.get(repository) {
            None => Ok(None),
            Some(challenge) => self.answer(&challenge).await.map(Some),
        }
    }

    /// The upstream has answered 401 to a request that carried `sent`: what to send instead, or why not to ask again.
    pub(super) async fn challenged(
        &self,
        repository: &RepositoryName,
        headers: &HeaderMap,
        sent: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        let Some(challenge) = Challenge::parse(headers) else { return Err(Error::Denied) };
        if let (Challenge::Bearer(key), Some(sent)) = (&challenge, sent) {
            // The token that was refused is worth nothing, unless someone has renewed it meanwhile.
            if self.tokens.get(key).is_some_and(|token| token.header == *sent) {
                self.tokens.invalidate(key);
            }
        }
        if challenge == Challenge::Basic && sent.is_some() {
            return Err(Error::Credentials("it does not take the user name and password".into()));
        }
        self.challenges.insert(repository.clone(), challenge.clone());
        self.answer(&challenge).await
    }

    /// A new token for `repository` in place of the one that is held.
    pub(super) async fn renewed(&self, repository: &RepositoryName) -> Result<Option<HeaderValue>, Error> {
        if let Some(Challenge::Bearer(key)) = self.challenges.get(repository) {
            self.tokens.invalidate(&key);
        }
        self.header(repository).await
    }

    async fn answer(&self, challenge: &Challenge) -> Result<HeaderValue, Error> {
        match (challenge, &self.credential) {
            (Challenge::Basic, Some(credential)) => Ok(credential.basic()),
            (Challenge::Basic, None) => Err(Error::Denied),
            (Challenge::Bearer(key), _) => self.token(key).await.map(|token| token.header),
        }
    }

    async fn token(&self, key: &TokenKey) -> Result<Token, Error> {
        let held = self.tokens.get(key);
        if let Some(token) = held.as_ref().filter(|token| self.clock.now() < token.renew_at) {
            return Ok(token.clone());
        }
        let request = self.request(key)?;
        let (client, clock) = (Arc::clone(&self.client), self.clock.clone());
        let with_credential = request.1.is_some();
        let tokens = self.tokens.clone();
        let for_key = key.clone();
        let fetched = self.fetching.join(key.clone(), || async move {
            let fetched = tokio::time::timeout(TOKEN_TIMEOUT, fetch(&client, request, &clock, with_credential)).await;
            let token = fetched.unwrap_or_else(|_| Err(Error::timed_out("the token service does not answer")))?;
            tokens.insert(for_key, token.clone());
            Ok(token)
        });
        let fetched = fetched.await.unwrap_or_else(|lost| Err(Error::unavailable(lost.to_string())));
        match (fetched, held) {
            (Err(Error::Unavailable { .. }), Some(held)) if self.clock.now() < held.expires_at => Ok(held),
            (fetched, _) => fetched,
        }
    }

    /// Where to ask for a token, with which credential. The server chose the place, so it is ours to say whether the
    /// credential may go there.
    fn request(&self, key: &TokenKey) -> Result<(Url, Option<HeaderValue>), Error> {
        let mut realm: Url = key.realm.parse().map_err(|_| Error::unavailable("the token service has no valid URL"))?;
        {
            let mut query = realm.query_pairs_mut();
            key.service.iter().for_each(|service| _ = query.append_pair("service", service));
            // One parameter for each scope, as the reference client sends them.
            key.scope.iter().flat_map(|scope| scope.split(' ')).for_each(|scope| _ = query.append_pair("scope", scope));
        }
        let Some(credential) = &self.credential else { return Ok((realm, None)) };
        let listed = |host: &String| realm.host_str() == Some(host) || authority(&realm) == *host;
        let secure = realm.scheme() == "https" || self.upstream.scheme() == "http";
        if realm.origin() == self.upstream.origin() || (secure && self.token_hosts.iter().any(listed)) {
            return Ok((realm, Some(credential.basic())));
        }
        let host = authority(&realm);
        Err(Error::Credentials(format!("it names {host} as its token service; if that is right, add it to token_hosts")))
    }
}

fn authority(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().into(),
    }
}

async fn fetch(
    client: &Client,
    (url, basic): (Url, Option<HeaderValue>),
    clock: &Clock,
    with_credential: bool,
) -> Result<Token, Error> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    if let Some(basic) = basic {
        headers.insert(AUTHORIZATION, basic);
    }
    // No redirect is followed: the answer is either here or not to be had.
    let mut response = client.get(&url, headers).await?;
    let asked = clock.now();
    match response.status().as_u16() {
        200 => {}
        401 | 403 if with_credential => return Err(Error::Credentials("its token service does not take them".into())),
        401 | 403 => return Err(Error::Denied),
        status => return Err(Error::unavailable(format!("the token service answers {status}"))),
    }
    let body = read_limited(&mut response, LARGEST_ANSWER, TOKEN_TIMEOUT).await?;
    let answer: TokenAnswer =
        serde_json::from_slice(&body).map_err(|_| Error::unavailable("the token service answers no JSON"))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| Error::unavailable("the token service answers no token"))?;
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| Error::unavailable("the token service answers a token that no header can hold"))?;
    header.set_sensitive(true);
    let life = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE));
    let early = (life / 5).min(Duration::from_secs(30));
    Ok(Token { header, renew_at: asked + life.saturating_sub(early), expires_at: asked + life })
}

// === impl Credential ===

impl Credential {
    fn basic(&self) -> HeaderValue {
        let text = STANDARD.encode(format!("{}:{}", self.username, self.password));
        let mut header = HeaderValue::try_from(format!("Basic {text}")).expect("base64 is visible ASCII");
        header.set_sensitive(true);
        header
    }
}

/// Whether a 401 says how to do better.
pub(super) fn has_challenge(headers: &HeaderMap) -> bool {
    Challenge::parse(headers).is_some()
}

// === impl Challenge ===

impl Challenge {
    /// The challenge that can be met, Bearer rather than Basic: where both are offered, tokens alone may have a scope.
    pub(super) fn parse(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::WWW_AUTHENTICATE);
        let mut basic = None;
        for value in values.iter().filter_map(|value| value.to_str().ok()) {
            let Some((scheme, parameters)) = value.split_once(' ').or(Some((value, ""))) else { continue };
            if scheme.eq_ignore_ascii_case("bearer") {
                let parameter = |name| parameter(parameters, name);
                let realm = parameter("realm")?;
                return Some(Self::Bearer(TokenKey { realm, service: parameter("service"), scope: parameter("scope") }));
            }
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Self::Basic);
            }
        }
        basic
    }
}

/// The value of `name` in `a="x",b=y`, where quoted values may hold commas.
fn parameter(text: &str, name: &str) -> Option<String> {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', ',', '\t']);
        let (key, after) = rest.split_once('=')?;
        let (value, tail) = match after.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.find('"')?;
                (&quoted[..end], &quoted[end + 1..])
            }
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::parse(&headers)
    }

    #[test]
    fn a_challenge_is_read_as_registries_write_it() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let Some(Challenge::Bearer(key)) = challenge(&[hub]) else { panic!("no token is asked for") };
        assert_eq!(key.realm, "https://auth.docker.io/token");
        assert_eq!(key.service.as_deref(), Some("registry.docker.io"));
        assert_eq!(key.scope.as_deref(), Some("repository:a/b:pull,push"));
        let bare = "bearer Realm=https://r.example/token , service=x";
        assert!(matches!(challenge(&["Basic realm=\"x\"", bare]), Some(Challenge::Bearer(key)) if key.scope.is_none()));
        assert_eq!(challenge(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Negotiate", "Bearer", "Bearer realm=\"unclosed"]), None);
        assert_eq!(challenge(&[]), None);
    }
}
