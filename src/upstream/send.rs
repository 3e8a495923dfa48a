//! Sending a request to an address: as the first account that may ask, with the proof that is wanted.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::{HeaderMap, Method, StatusCode, header};
use reqwest::{Response, Url};

use crate::clock::Timestamp;
use crate::oci::{Digest, RepositoryName};
use crate::room::Askers;
use crate::traces::{Span, SpanKind};

use super::accounts::Account;
use super::auth::{Login, LoginKey, Proof, refused};
use super::budget::{Purpose, cool_down};
use super::client::Followed;
use super::endpoint::Endpoint;
use super::error::Error;
use super::{Behalf, DOCKER_HUB, Upstream};

/// What is asked, of whichever address.
pub(super) struct Question<'a> {
    pub(super) method: Method,
    pub(super) repository: &'a RepositoryName,
    pub(super) behalf: &'a Behalf,
    /// After `/v2/`.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) purpose: Purpose,
    /// The blob whose bytes are wanted, if they are.
    pub(super) blob: Option<&'a Digest>,
    /// The body is to be read to its end if it is no longer than this, in bytes.
    pub(super) whole: Option<usize>,
    /// Where earlier questions for parts of the blob were sent on to.
    pub(super) shortcut: Option<&'a Shortcut>,
    /// How often it has been sent.
    pub(super) sent: AtomicU32,
}

/// Where a registry sends on who asks for a blob: for its next part it need not be asked again, as long as the way is open.
#[derive(Default)]
pub struct Shortcut(Mutex<Option<(String, Url)>>);

/// As whom to ask.
enum Principal {
    Account(Arc<Account>),
    Client(Login),
}

// === impl Upstream ===

impl Upstream {
    /// Asks as each account in turn until one is let in that has not used up its budget.
    pub(super) async fn send_to(&self, endpoint: &Endpoint, question: &Question<'_>) -> Result<Response, Error> {
        let askers = &question.behalf.askers;
        endpoint.client.check(askers)?;
        let (mut limited, mut shut_out): (Option<Timestamp>, Option<Error>) = (None, None);
        let mut told_now = false;
        for principal in self.principals(question) {
            let (key, now) = (principal.key(), self.clock.now());
            let admitted = endpoint.budget(key, |budget| budget.admit(question.purpose, now));
            let until = match admitted.and_then(|()| endpoint.rate_limits.check(now, &key, askers)) {
                Ok(()) => match self.send_as(endpoint, &principal, question).await {
                    Err(Error::RateLimited { until }) => {
                        tracing::warn!(upstream = %self.name, host = %endpoint.client.host(), "the upstream limits the rate of requests; it is left alone for a while");
                        told_now = true;
                        until
                    }
                    Err(Error::LeftAlone(why)) if let Error::RateLimited { until } = *why => until,
                    Err(error @ Error::Credentials(_)) => {
                        shut_out.get_or_insert(error);
                        continue;
                    }
                    // The account that was shut out might have been told otherwise.
                    Err(error) if error.is_definitive() => return Err(shut_out.unwrap_or(error)),
                    outcome => return outcome,
                },
                Err(until) => until,
            };
            limited = Some(limited.map_or(until, |earliest| earliest.min(until)));
        }
        let limited = limited.map(|until| Error::RateLimited { until });
        let limited = limited.map(|why| if told_now { why } else { why.left_alone() });
        Err(limited.or(shut_out).unwrap_or(Error::Offline))
    }

    fn principals(&self, question: &Question<'_>) -> Vec<Principal> {
        if let Some(client) = &question.behalf.client {
            return vec![Principal::Client(Login::of(client))];
        }
        self.accounts.get().of(question.repository).into_iter().map(Principal::Account).collect()
    }

    /// Asks as this account; once more where it has a new password.
    async fn send_as(&self, endpoint: &Endpoint, principal: &Principal, question: &Question<'_>) -> Result<Response, Error> {
        let mut login = principal.login().await?;
        if !endpoint.trusted {
            login.credential = None;
        }
        match (self.send_with(endpoint, &login, question).await, principal, &login.credential) {
            (Err(Error::Credentials(why)), Principal::Account(account), Some(credential)) => {
                match account.renew(credential).await? {
                    Some(renewed) => {
                        let login = Login { credential: Some(renewed), ..login };
                        self.send_with(endpoint, &login, question).await
                    }
                    None => Err(Error::Credentials(why)),
                }
            }
            // They are not larder's; it is the client who may not.
            (Err(Error::Credentials(_)), Principal::Client(_), _) => Err(Error::Denied),
            (outcome, ..) => outcome,
        }
    }

    /// Sends it, proving who we are when asked to, and tells the good answers from the others.
    async fn send_with(&self, endpoint: &Endpoint, login: &Login, question: &Question<'_>) -> Result<Response, Error> {
        let Question { method, repository, path, headers, purpose, behalf, .. } = question;
        let askers = &behalf.askers;
        let url: Url = endpoint.client.url(path)?;
        let mut headers = headers.clone();
        let began = self.clock.now();
        let mut sent = endpoint.auth.proof(login, repository, askers).await?;
        let (mut tries, mut asked_again) = (3, false);
        loop {
            match &sent {
                Some(proof) => headers.insert(header::AUTHORIZATION, proof.header.clone()),
                None => headers.remove(header::AUTHORIZATION),
            };
            question.sent.fetch_add(1, Ordering::Relaxed);
            let short = question.shortcut.and_then(|shortcut| shortcut.of(endpoint));
            let from = short.as_ref().unwrap_or(&url).clone();
            let (asked, mut span) = (Instant::now(), self.span(endpoint, question));
            let followed = endpoint.client.follow(method, from, &headers, askers).await;
            let outcome = followed.as_ref().map(|followed| followed.response.status());
            match outcome {
                Ok(status) => span.number("http.response.status_code", status.as_u16()),
                Err(error) => span.failed(error),
            }
            drop(span);
            self.counts.asked(*purpose, outcome, asked.elapsed());
            let came = followed.as_ref().is_ok_and(|followed| followed.response.status().is_success());
            if let Some(short) = short.filter(|_| !came) {
                // Its signature may have expired: the registry makes a new one.
                question.shortcut.iter().for_each(|shortcut| shortcut.forget(&short));
                self.counts.redirect_refreshed();
                continue;
            }
            let Followed { response, own, at } = followed?;
            // One that leads back here would be asked with our credentials, and another has chosen it.
            if let Some(shortcut) = question.shortcut.filter(|_| came && !endpoint.client.is_own(&at)) {
                shortcut.set(endpoint, at);
            }
            if own {
                let now = self.clock.now();
                endpoint
                    .budget(login.key, |budget| budget.note(*purpose, response.status(), response.headers(), now))
                    .map_err(|until| Error::RateLimited { until })?;
            }
            match response.status() {
                // First with nothing or what is held, then with what is asked for, then with what `/v2/` wants.
                StatusCode::UNAUTHORIZED if own && tries > 0 => {
                    let wanted = endpoint.auth.wanted(login, repository, response.headers(), sent.as_ref(), askers).await;
                    let better = match self.heeding(endpoint, login.key, askers, wanted)? {
                        Some(challenge) => endpoint.auth.meet(&challenge, login, askers).await?,
                        None => None,
                    };
                    if better.is_none() || (better == sent && sent.as_ref().is_some_and(Proof::is_basic)) {
                        return self.judge(&response, own, login.key, sent.as_ref()).map(|()| response);
                    }
                    // A registry that refuses what its token service has just given means the repository.
                    tries = if better.as_ref().is_some_and(|proof| proof.is_token_since(began)) { 0 } else { tries - 1 };
                    sent = better;
                }
                // Said of an old token, it may not be true of a new one.
                StatusCode::FORBIDDEN
                    if own && tries > 0 && sent.as_ref().is_some_and(|sent| !sent.is_basic() && !sent.is_token_since(began)) =>
                {
                    sent = endpoint.auth.renewed(login, repository, sent.as_ref(), askers).await?;
                    tries = 0;
                }
                // The signature of a redirect has expired: the registry makes a new one.
                StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED if !own && !asked_again => {
                    asked_again = true;
                    self.counts.redirect_refreshed();
                }
                _ => {
                    let judged = self.judge(&response, own, login.key, sent.as_ref());
                    return self.heeding(endpoint, login.key, askers, judged).map(|()| response);
                }
            }
        }
    }

    /// Where someone on the way to the answer limits the rate, nothing more is asked for as long as it says.
    fn heeding<T>(&self, endpoint: &Endpoint, login: LoginKey, askers: &Askers, said: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::RateLimited { until }) = said {
            endpoint.rate_limits.told(self.clock.now(), &login, askers, until);
        }
        said
    }

    fn span(&self, endpoint: &Endpoint, question: &Question<'_>) -> Span {
        let Question { method, repository, behalf, purpose, .. } = question;
        let mut span = behalf.trace.begin(|| format!("{method} {} upstream", purpose.word()), SpanKind::Client);
        span.text("http.request.method", || method.as_str());
        span.text("server.address", || endpoint.client.host());
        span.text("larder.upstream", || &self.name);
        span.text("larder.repository", || repository);
        span
    }

    fn judge(&self, response: &Response, own: bool, login: LoginKey, sent: Option<&Proof>) -> Result<(), Error> {
        match response.status().as_u16() {
            200 | 206 => Ok(()),
            404 => Err(Error::NotFound),
            status @ (400 | 405 | 406 | 410 | 416 | 501) => Err(Error::Unsupported(status)),
            401 if own && sent.is_some_and(Proof::is_basic) => Err(refused()),
            // Docker Hub says so of repositories that are not there, whoever asks. A client is told what Docker Hub tells it.
            401 if own && *self.name == *DOCKER_HUB && matches!(login, LoginKey::Account(_)) => Err(Error::NotFound),
            401 | 403 if own => Err(Error::Denied),
            status @ (401 | 403) => Err(Error::RefusedElsewhere(status)),
            429 => Err(Error::RateLimited { until: self.clock.now() + cool_down(response.headers()) }),
            508 => Err(Error::Loop),
            status => Err(Error::unavailable(format!("it answers {status}"))),
        }
    }
}

// === impl Shortcut ===

impl Shortcut {
    fn of(&self, endpoint: &Endpoint) -> Option<Url> {
        let host = endpoint.client.host();
        self.lock().as_ref().filter(|(from, _)| *from == host).map(|(_, url)| url.clone())
    }

    fn set(&self, endpoint: &Endpoint, url: Url) {
        *self.lock() = Some((endpoint.client.host(), url));
    }

    fn forget(&self, url: &Url) {
        self.lock().take_if(|(_, known)| known == url);
    }

    fn lock(&self) -> MutexGuard<'_, Option<(String, Url)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Principal ===

impl Principal {
    fn key(&self) -> LoginKey {
        match self {
            Self::Account(account) => account.key(),
            Self::Client(login) => login.key,
        }
    }

    async fn login(&self) -> Result<Login, Error> {
        match self {
            Self::Account(account) => account.login().await,
            Self::Client(login) => Ok(login.clone()),
        }
    }
}
