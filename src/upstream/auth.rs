//! Proving to a registry who we are: Basic, and Bearer by way of a token service.
//!
//! <https://distribution.github.io/distribution/spec/auth/token/>

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};
use reqwest::Response;

use crate::clock::{Clock, Timestamp};
use crate::flight::Flights;
use crate::oci::RepositoryName;
use crate::room::Askers;

use super::behalf::{ClientCredential, CredentialKey};
use super::breaker::Breaker;
use super::budget::cool_down;
use super::challenge::{Challenge, TokenKey};
use super::client::Client;
use super::credentials::Credential;
use super::error::Error;
use super::gate::Failure;
use super::rate_limits::RateLimits;
use super::token::{self, Token};
use super::trust::Trust;

/// Knows how each repository at one address wants to be asked, and holds the tokens for it.
pub(super) struct Auth {
    client: Arc<Client>,
    trust: Arc<Trust>,
    /// What has been asked for, by repository.
    challenges: moka::sync::Cache<RepositoryName, Challenge>,
    tokens: moka::sync::Cache<(LoginKey, TokenKey), Token>,
    fetching: Flights<(LoginKey, TokenKey), Result<Token, Error>>,
    /// How token services fare, by realm: one that is down is not waited for by everyone.
    services: moka::sync::Cache<String, Arc<Breaker>>,
    /// Which of them limit the rate for whom.
    rate_limits: Arc<RateLimits<(LoginKey, String)>>,
    /// How it fares to ask about logins, of which clients make up any number.
    checks: Arc<Breaker>,
    clock: Clock,
}

/// As whom a registry is asked.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) key: LoginKey,
    pub(super) credential: Option<Credential>,
}

/// Tells logins apart, whatever their password is today.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LoginKey {
    /// One of larder's own accounts, by its number.
    Account(usize),
    Client(CredentialKey),
}

/// What is shown in `Authorization`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) header: HeaderValue,
    /// When the token was asked for; `None`: it is Basic.
    asked: Option<Timestamp>,
}

const NEW: Duration = Duration::from_secs(10);
/// Token services that are remembered.
const SERVICES: u64 = 100;
/// A token service that has taken this long to give nothing is not asked again for moments.
const LONG: Duration = Duration::from_secs(1);
/// How much memory the tokens may take, and the challenges: how long each is, the upstream says.
const TOKEN_BYTES: u64 = 16 << 20;
const CHALLENGE_BYTES: u64 = 4 << 20;

// === impl Auth ===

impl Auth {
    pub(super) fn new(client: Arc<Client>, trust: Arc<Trust>, clock: Clock) -> Self {
        let of_challenge = |repository: &RepositoryName, challenge: &Challenge| {
            let key = if let Challenge::Bearer(key) = challenge { key.weight() } else { 0 };
            weight(repository.as_str().len() + key)
        };
        let of_token = |(_, key): &(LoginKey, TokenKey), token: &Token| weight(key.weight() + token.header.len());
        let challenges = moka::sync::Cache::builder().max_capacity(CHALLENGE_BYTES).weigher(of_challenge).build();
        let tokens = moka::sync::Cache::builder().max_capacity(TOKEN_BYTES).weigher(of_token).build();
        let (services, rate_limits) = (moka::sync::Cache::new(SERVICES), Arc::default());
        let (fetching, checks) = (Flights::default(), Breaker::new(clock.clone()));
        Self { client, trust, challenges, tokens, fetching, services, rate_limits, checks, clock }
    }

    /// What to show with a request for `repository`, as far as it is known what is wanted.
    pub(super) async fn proof(
        &self,
        login: &Login,
        repository: &RepositoryName,
        askers: &Askers,
    ) -> Result<Option<Proof>, Error> {
        match self.challenges.get(repository) {
            Some(challenge) => self.meet(&challenge, login, askers).await,
            None => Ok(None),
        }
    }

    /// What to show where this is wanted.
    pub(super) async fn meet(&self, challenge: &Challenge, login: &Login, askers: &Askers) -> Result<Option<Proof>, Error> {
        match challenge {
            Challenge::Basic => Ok(login.credential.as_ref().map(|known| Proof { header: known.basic(), asked: None })),
            Challenge::Bearer(key) => self.token(login, key, askers).await.map(Some),
        }
    }

    /// The registry has answered 401 to a request that carried `sent`: what it wants instead. `None`: there is nothing else to
    /// show.
    pub(super) async fn wanted(
        &self,
        login: &Login,
        repository: &RepositoryName,
        headers: &HeaderMap,
        sent: Option<&Proof>,
        askers: &Askers,
    ) -> Result<Option<Challenge>, Error> {
        let told = Challenge::parse(headers);
        let without_a_word = told.is_none();
        let basic_refused = sent.is_some_and(Proof::is_basic);
        let challenge = match (told, self.challenges.get(repository)) {
            (Some(bearer @ Challenge::Bearer(_)), _) => bearer,
            (Some(Challenge::Basic), _) if login.credential.is_some() && !basic_refused => Challenge::Basic,
            // Some say only at `/v2/` what they want, some offer Basic where tokens alone have rights.
            (_, Some(known @ Challenge::Bearer(_))) => known,
            _ => match self.ask_base(askers).await?.1 {
                Some(Challenge::Bearer(key)) => {
                    let scope = key.scope.or_else(|| Some(format!("repository:{repository}:pull")));
                    Challenge::Bearer(TokenKey { scope, ..key })
                }
                _ if basic_refused => return Err(refused()),
                _ => return Ok(None),
            },
        };
        if let (Challenge::Bearer(key), Some(sent)) = (&challenge, sent) {
            // The token that was refused is worth nothing, unless someone has renewed it meanwhile.
            let key = (login.key, key.clone());
            if let Some(token) = self.tokens.get(&key).filter(|token| token.header == sent.header) {
                // Refused without a word, a token that is still new is not made better by another.
                if without_a_word && self.clock.now().since(token.asked) < NEW {
                    return Ok(None);
                }
                self.tokens.invalidate(&key);
            }
        }
        self.challenges.insert(repository.clone(), challenge.clone());
        Ok(Some(challenge))
    }

    /// A new token for `repository` in place of one that was refused, unless someone has renewed it meanwhile.
    pub(super) async fn renewed(
        &self,
        login: &Login,
        repository: &RepositoryName,
        sent: Option<&Proof>,
        askers: &Askers,
    ) -> Result<Option<Proof>, Error> {
        self.forget_if(login.key, repository, |token| sent.is_some_and(|sent| sent.header == token.header));
        self.proof(login, repository, askers).await
    }

    /// Throws away the token for `repository` if it is as old as this.
    pub(super) fn forget(&self, login: LoginKey, repository: &RepositoryName, age: Duration) {
        self.forget_if(login, repository, |token| self.clock.now().since(token.asked) >= age);
    }

    fn forget_if(&self, login: LoginKey, repository: &RepositoryName, which: impl FnOnce(Token) -> bool) {
        let Some(Challenge::Bearer(key)) = self.challenges.get(repository) else { return };
        let key = (login, key);
        if self.tokens.get(&key).is_some_and(which) {
            self.tokens.invalidate(&key);
        }
    }

    /// Whether `login` is known to the registry, whatever it may read there: what is said of it.
    ///
    /// # Errors
    /// It was not shown to anyone.
    pub(super) async fn check(&self, login: &Login, askers: &Askers) -> Result<Result<(), Error>, Error> {
        self.checks.admit(askers, || self.client.knock()).await?;
        let said = self.ask_about(login, askers).await;
        match &said {
            Err(Error::NoSocket(_) | Error::LeftAlone(_)) | Ok(Err(Error::NoSocket(_) | Error::LeftAlone(_))) => {}
            Err(why @ Error::Unavailable { .. }) => _ = self.checks.failed(why, Failure::Any),
            Ok(Err(why @ Error::Unavailable { .. })) => {
                _ = self.checks.failed_for(askers, why, Failure::Any, || self.client.knock());
            }
            _ => self.checks.succeeded(),
        }
        said
    }

    async fn ask_about(&self, login: &Login, askers: &Askers) -> Result<Result<(), Error>, Error> {
        match self.ask_base(askers).await? {
            (_, Some(Challenge::Bearer(key))) => {
                // That there was a token for it a while ago does not say that it is right today.
                self.tokens.invalidate(&(login.key, key.clone()));
                match self.token(login, &key, askers).await {
                    Err(error @ Error::UnlistedTokenHost(_)) => Err(error),
                    said => Ok(said.map(|_| ())),
                }
            }
            (_, Some(Challenge::Basic)) => {
                let Some(credential) = &login.credential else { return Ok(Err(refused())) };
                Ok(self.ask_base_as(credential, askers).await)
            }
            // It is open to everyone, so no login is wrong.
            (200..=299, None) => Ok(Ok(())),
            (status, None) => Err(Error::unavailable(format!("it answers {status} and does not say what it wants"))),
        }
    }

    async fn ask_base_as(&self, credential: &Credential, askers: &Askers) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::AUTHORIZATION, credential.basic());
        let answer = self.client.get(self.client.base(), headers, askers).await?;
        match answer.status().as_u16() {
            401 | 403 => Err(refused()),
            200..=299 => Ok(()),
            429 => Err(self.limited(&answer)),
            status => Err(Error::of_login("it", status)),
        }
    }

    fn limited(&self, answer: &Response) -> Error {
        Error::RateLimited { until: self.clock.now() + cool_down(answer.headers()) }
    }

    /// The status of `/v2/`, and what it asks for.
    async fn ask_base(&self, askers: &Askers) -> Result<(u16, Option<Challenge>), Error> {
        let answer = self.client.get(self.client.base(), HeaderMap::new(), askers).await?;
        match answer.status().as_u16() {
            401 => Ok((401, Challenge::parse(answer.headers()))),
            429 => Err(self.limited(&answer)),
            status @ 500.. => Err(Error::unavailable(format!("it answers {status}"))),
            status => Ok((status, None)),
        }
    }

    async fn token(&self, login: &Login, key: &TokenKey, askers: &Askers) -> Result<Proof, Error> {
        let held = self.tokens.get(&(login.key, key.clone()));
        if let Some(token) = held.as_ref().filter(|token| self.clock.now() < token.renew_at) {
            return Ok(Proof::of(token));
        }
        let request =
            token::Request::new(key, login.credential.as_ref(), &self.trust).map_err(|error| match (login.key, &error) {
                (LoginKey::Account(_), Error::UnlistedTokenHost(_)) => Error::Credentials(error.to_string()),
                _ => error,
            })?;
        let (client, clock, tokens) = (Arc::clone(&self.client), self.clock.clone(), self.tokens.clone());
        let (for_key, for_realm) = ((login.key, key.clone()), (login.key, key.realm.clone()));
        let (rate_limits, askers) = (Arc::clone(&self.rate_limits), askers.clone());
        let service = self.services.get_with(key.realm.clone(), || Breaker::new(self.clock.clone()));
        let fetched = self.fetching.join(for_key.clone(), || async move {
            let limited = rate_limits.check(clock.now(), &for_realm, &askers);
            limited.map_err(|until| Error::RateLimited { until }.left_alone())?;
            let knock = || request.knock(&client);
            service.admit(&askers, knock).await?;
            let began = Instant::now();
            let fetched = request.send(&client, &clock, &askers).await;
            client.counts.token_asked(&fetched);
            // What a service says depends on the scope and on the login, both of which clients make up.
            match &fetched {
                Err(why @ Error::Unavailable { timed_out, .. }) => {
                    let failure = if *timed_out || began.elapsed() >= LONG { Failure::Silent } else { Failure::Any };
                    service.failed_for(&askers, why, failure, knock);
                }
                Err(Error::NoSocket(_) | Error::LeftAlone(_)) => {}
                _ => service.succeeded(),
            }
            if let Err(Error::RateLimited { until }) = fetched {
                rate_limits.told(clock.now(), &for_realm, &askers, until);
            }
            tokens.insert(for_key, fetched.clone()?);
            fetched
        });
        let fetched = fetched.await.unwrap_or_else(|lost| Err(Error::unavailable(lost.to_string())));
        match (fetched, held) {
            (Err(error), Some(held))
                if matches!(error.cause(), Error::Unavailable { .. } | Error::NoSocket(_) | Error::RateLimited { .. })
                    && self.clock.now() < held.expires_at =>
            {
                Ok(Proof::of(&held))
            }
            (fetched, _) => fetched.map(|token| Proof::of(&token)),
        }
    }
}

// === impl Login ===

impl Login {
    pub(super) fn of(client: &ClientCredential) -> Self {
        Self { key: LoginKey::Client(client.key()), credential: client.credential().cloned() }
    }
}

// === impl Proof ===

impl Proof {
    fn of(token: &Token) -> Self {
        Self { header: token.header.clone(), asked: Some(token.asked) }
    }

    pub(super) fn is_basic(&self) -> bool {
        self.asked.is_none()
    }

    /// It is a token, and was not asked for before `since`.
    pub(super) fn is_token_since(&self, since: Timestamp) -> bool {
        self.asked.is_some_and(|asked| asked >= since)
    }
}

/// About what an entry with so much text takes of the memory, in bytes.
fn weight(text: usize) -> u32 {
    u32::try_from(200 + text).unwrap_or(u32::MAX)
}

pub(super) fn refused() -> Error {
    Error::Credentials("it does not take the user name and password".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::options::Options;

    /// A token may be as long as its service's answer, a challenge as long as a header.
    #[test]
    fn long_tokens_and_challenges_are_not_remembered_by_the_thousand() {
        let (url, options): (reqwest::Url, _) = ("https://registry.example".parse().unwrap(), Options::default());
        let counts = super::super::counts::Counts::new(crate::metrics::Metrics::new(), "x".into());
        let resolver = super::super::resolver::Resolver::new(&options, Clock::system(), counts.clone());
        let client = Arc::new(Client::new(url.clone(), &options, true, resolver, Clock::system(), counts).unwrap());
        let auth = Auth::new(client, Arc::new(Trust::new(url, Vec::new())), Clock::system());
        let now = auth.clock.now();
        for number in 0..500 {
            let (realm, scope) = ("x".repeat(60_000), Some(format!("repository:team/app{number}:pull")));
            let header = realm.parse().unwrap();
            let key = TokenKey { realm, service: None, scope };
            auth.challenges.insert(format!("team/app{number}").parse().unwrap(), Challenge::Bearer(key));
            let key = TokenKey { realm: String::new(), service: None, scope: Some(number.to_string()) };
            auth.tokens.insert((LoginKey::Account(0), key), Token { header, asked: now, renew_at: now, expires_at: now });
        }
        auth.challenges.run_pending_tasks();
        auth.tokens.run_pending_tasks();
        for (kept, all) in [(auth.challenges.entry_count(), 500), (auth.tokens.entry_count(), 500)] {
            assert!(0 < kept && kept * 60_000 <= TOKEN_BYTES && kept < all, "{kept}");
        }
    }
}
