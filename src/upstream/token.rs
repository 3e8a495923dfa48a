//! Tokens: how they are asked for and how long they last.
//!
//! <https://distribution.github.io/distribution/spec/auth/token/>, <https://distribution.github.io/distribution/spec/auth/oauth/>

use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, header};
use reqwest::Url;
use serde::Deserialize;

use crate::clock::{Clock, Timestamp};
use crate::room::Askers;

use super::budget::cool_down;
use super::challenge::TokenKey;
use super::client::{Client, read_limited};
use super::credentials::{Credential, jwt_expiry};
use super::error::Error;
use super::trust::{Trust, authority};

/// A token, ready to be sent.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    /// When it was asked for.
    pub(super) asked: Timestamp,
    /// From here on a new one is fetched: somewhat before it expires.
    pub(super) renew_at: Timestamp,
    /// Until here it will do where no new one is to be had.
    pub(super) expires_at: Timestamp,
}

/// A request to a token service.
pub(super) struct Request {
    realm: Url,
    service: Option<String>,
    scopes: Vec<String>,
    /// Goes nowhere but to who is trusted with it.
    credential: Option<Credential>,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// What a token service says to a request.
enum Said {
    Token(Token),
    /// 401, or 403: it does not know who asks, or will not give that to them.
    No(u16),
}

/// What the token specification says of a token that does not tell.
const DEFAULT_LIFE: u64 = 60;
const TIMEOUT: Duration = Duration::from_secs(10);
const LARGEST_ANSWER: usize = 64 << 10;

// === impl Request ===

impl Request {
    /// The server has chosen the place; it is ours to say whether the credential may go there.
    pub(super) fn new(key: &TokenKey, credential: Option<&Credential>, trust: &Trust) -> Result<Self, Error> {
        let realm: Url = key.realm.parse().map_err(|_| Error::unavailable("the token service has no valid URL"))?;
        if credential.is_some() && !trust.permits(&realm) {
            return Err(Error::UnlistedTokenHost(authority(&realm)));
        }
        // One parameter for each scope, as the reference client sends them.
        let scopes = key.scope.iter().flat_map(|scope| scope.split(' ')).map(String::from).collect();
        Ok(Self { realm, service: key.service.clone(), scopes, credential: credential.cloned() })
    }

    /// Whether someone is there, whatever is asked for.
    pub(super) fn knock(&self, client: &Arc<Client>) -> impl Future<Output = Result<(), Error>> + use<> {
        let (client, realm) = (Arc::clone(client), self.realm.clone());
        async move { client.get(&realm, HeaderMap::new(), &Askers::default()).await.map(drop) }
    }

    pub(super) async fn send(&self, client: &Client, clock: &Clock, askers: &Askers) -> Result<Token, Error> {
        let said = tokio::time::timeout(TIMEOUT, self.send_and_judge(client, clock, askers)).await;
        said.unwrap_or_else(|_| Err(Error::timed_out("the token service does not answer")))
    }

    async fn send_and_judge(&self, client: &Client, clock: &Clock, askers: &Askers) -> Result<Token, Error> {
        let refused = || Error::Credentials("its token service does not take them".into());
        match self.ask(client, clock, &self.scopes, askers).await? {
            Said::Token(token) => Ok(token),
            Said::No(_) if self.credential.is_none() => Err(Error::Denied),
            // ghcr.io says so of what is private or absent, and of a wrong password as well. Asked for nothing in particular, it
            // can only mean the password.
            Said::No(403) if !self.scopes.is_empty() => match self.ask(client, clock, &[], askers).await? {
                Said::Token(_) => Err(Error::Denied),
                Said::No(_) => Err(refused()),
            },
            Said::No(_) => Err(refused()),
        }
    }

    async fn ask(&self, client: &Client, clock: &Clock, scopes: &[String], askers: &Askers) -> Result<Said, Error> {
        let identity_token = self.credential.as_ref().and_then(Credential::identity_token);
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let asked = clock.now();
        // No redirect is followed: the answer is either here or not to be had.
        let mut response = match (identity_token, &self.credential) {
            (Some(token), _) => client.post(&self.realm, headers, self.form(token, scopes), askers).await?,
            (None, credential) => {
                credential.iter().for_each(|credential| _ = headers.insert(AUTHORIZATION, credential.basic()));
                client.get(&self.with_query(scopes), headers, askers).await?
            }
        };
        match response.status().as_u16() {
            200 => {}
            status @ (401 | 403) => return Ok(Said::No(status)),
            // So says OAuth of a refresh token that has expired.
            400 if identity_token.is_some() => return Ok(Said::No(400)),
            429 => return Err(Error::RateLimited { until: clock.now() + cool_down(response.headers()) }),
            status => return Err(Error::of_login("the token service", status)),
        }
        let body = read_limited(&mut response, LARGEST_ANSWER, client.limits, &client.counts.fetched(None)).await?;
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|_| Error::unavailable("the token service answers no JSON"))?;
        Token::of(answer, asked).map(Said::Token)
    }

    fn with_query(&self, scopes: &[String]) -> Url {
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            self.service.iter().for_each(|service| _ = query.append_pair("service", service));
            scopes.iter().for_each(|scope| _ = query.append_pair("scope", scope));
        }
        url
    }

    /// An identity token is a refresh token of OAuth 2 (RFC 6749, section 6).
    fn form(&self, identity_token: &str, scopes: &[String]) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token").append_pair("client_id", "larder");
        self.service.iter().for_each(|service| _ = form.append_pair("service", service));
        if !scopes.is_empty() {
            form.append_pair("scope", &scopes.join(" "));
        }
        form.append_pair("refresh_token", identity_token);
        form.finish()
    }
}

// === impl Token ===

impl Token {
    fn of(answer: Answer, asked: Timestamp) -> Result<Self, Error> {
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| Error::unavailable("the token service answers no token"))?;
        let mut header = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| Error::unavailable("the token service answers a token that no header can hold"))?;
        header.set_sensitive(true);
        let told = answer.expires_in.map(Duration::from_secs);
        // By a clock that is not ours.
        let within = jwt_expiry(&token).map(|expiry| expiry.since(asked));
        // What is over already says nothing.
        let lives = told.into_iter().chain(within).filter(|life| !life.is_zero());
        let life = lives.min().unwrap_or(Duration::from_secs(DEFAULT_LIFE));
        let early = (life / 5).min(Duration::from_secs(30));
        Ok(Self { header, asked, renew_at: asked + life.saturating_sub(early), expires_at: asked + life })
    }
}
