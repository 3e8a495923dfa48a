//! Clients that log in: at the gate of an upstream that they read with credentials of their own.
//!
//! A client shows its user name and password, the upstream says whether it knows them, and the client gets a token that stands
//! for them here, and for nothing anywhere else. All of it is in memory: after a restart clients log in again.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use sha2::{Digest as _, Sha256};

use crate::brake::Brake;
use crate::clock::Timestamp;
use crate::flight::Flights;
use crate::upstream::{ClientCredential, CredentialKey, Error, PublicUrl};

use super::names::Registry;
use super::{Mirror, Refusal};

/// The one way to an upstream that clients read with credentials of their own.
#[derive(Clone)]
pub struct Gate {
    registry: Arc<Registry>,
    public_url: PublicUrl,
}

/// How a client is told to log in (RFC 6750, section 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Where. It is always larder: what a client knows must get nowhere else by mistake.
    pub realm: String,
    pub service: String,
    pub scope: Option<String>,
    pub error: Option<&'static str>,
}

/// What a request shows of its client.
pub enum Shown {
    Nothing,
    Login(ClientCredential),
    /// What it says is a token of ours.
    Token(String),
    /// Something that cannot be read.
    Other,
}

/// Stands for a client's credential at the gate where it was given.
#[derive(Clone)]
pub struct Token {
    pub text: String,
    /// It is worth nothing from here on.
    pub until: Timestamp,
}

/// What is known of logins.
pub(super) struct Logins {
    said: Cache<Login, Said>,
    /// Upstreams that cannot be asked about any, as they limit the rate, or would have them shown where they may not be; until when
    /// that is believed.
    closed: Cache<Arc<str>, (Timestamp, Error)>,
    checking: Flights<Login, Result<Token, Refusal>>,
    /// By the digest of the token.
    sessions: Cache<[u8; 32], Session>,
    brake: Brake,
}

/// A credential at an upstream.
type Login = (Arc<str>, CredentialKey);

/// What the upstream has said of it. That it was right once is remembered also when it has to be asked again.
#[derive(Clone)]
enum Said {
    Right {
        until: Timestamp,
        token: Token,
    },
    /// `known`: it is right as far as is known, and there was no answer.
    No {
        until: Timestamp,
        why: Refusal,
        known: bool,
    },
}

#[derive(Clone)]
struct Session {
    upstream: Arc<str>,
    client: ClientCredential,
    until: Timestamp,
}

/// The life of a token.
const LIFE: Duration = Duration::from_mins(5);
/// For how long it is believed that a login is right, and that it is not, or cannot be asked about.
const RIGHT: Duration = Duration::from_mins(1);
const WRONG: Duration = Duration::from_secs(5);
/// How many logins are remembered, and how much memory the sessions may take.
const REMEMBERED: u64 = 10_000;
const SESSION_BYTES: u64 = 16 << 20;

// === impl Gate ===

impl Gate {
    pub(super) fn of(registry: &Arc<Registry>) -> Option<Self> {
        let public_url = registry.public_url.clone()?;
        Some(Self { registry: Arc::clone(registry), public_url })
    }

    /// Tells a client where to log in. `name`: the repository that it wants, as it calls it.
    pub(super) fn challenge(&self, name: Option<&str>, error: Option<&'static str>) -> Refusal {
        Refusal::LogIn(Challenge {
            realm: format!("{}/token", self.public_url.as_str()),
            service: self.public_url.authority().into(),
            scope: name.map(|name| format!("repository:{name}:pull")),
            error,
        })
    }

    fn upstream(&self) -> &Arc<str> {
        self.registry.upstream.name()
    }
}

// === impl Mirror ===

impl Mirror {
    /// Who it is that shows this at the gate. `name`: the repository that it wants, as it calls it.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// A challenge, unless it shows a token that is good or a login that the upstream takes.
    pub async fn identify(
        &self,
        gate: &Gate,
        shown: &Shown,
        name: Option<&str>,
        from: IpAddr,
    ) -> Result<ClientCredential, Refusal> {
        match shown {
            Shown::Login(client) => match self.login(gate, client, from).await {
                Ok(_) => Ok(client.clone()),
                Err(Refusal::WrongLogin(_)) => Err(gate.challenge(name, None)),
                Err(refusal) => Err(refusal),
            },
            Shown::Token(text) => {
                let session = self.0.logins.sessions.get(&digest(text));
                let session =
                    session.filter(|session| session.upstream == *gate.upstream() && self.0.clock.now() < session.until);
                session.map(|session| session.client).ok_or_else(|| gate.challenge(name, Some("invalid_token")))
            }
            Shown::Nothing | Shown::Other => Err(gate.challenge(name, None)),
        }
    }

    /// A token for a client that the upstream knows. `from`: the address that it comes from.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// See [`Refusal`]; the upstream does not know it or cannot be asked, or there were too many tries.
    pub async fn login(&self, gate: &Gate, client: &ClientCredential, from: IpAddr) -> Result<Token, Refusal> {
        let login = (Arc::clone(gate.upstream()), client.key());
        let (said, now) = (self.0.logins.said.get(&login), self.0.clock.now());
        match &said {
            Some(Said::Right { until, token }) if now < *until => return Ok(token.clone()),
            Some(Said::No { until, why, .. }) if now < *until => return Err(why.clone()),
            _ => {}
        }
        // Who asks so costs the upstream a question, and pays nothing for it. Nobody has nothing to show where it may not be.
        let closed = self.0.logins.closed.get(gate.upstream()).filter(|(until, _)| now < *until);
        if let Some((_, error)) = closed.filter(|(_, error)| !client.is_nobody() || !matches!(error, Error::UnlistedTokenHost(_)))
        {
            return Err(error.into());
        }
        // Who was known a while ago does not try out passwords, and nobody has none.
        let known = matches!(said, Some(Said::Right { .. } | Said::No { known: true, .. })) || client.is_nobody();
        let (mirror, gate, client) = (self.clone(), gate.clone(), client.clone());
        let checked = self.0.logins.checking.join(login.clone(), || async move {
            let brake = &mirror.0.logins.brake;
            if !known {
                brake.charge(from, now).map_err(|until| Refusal::TooManyLogins { until })?;
            }
            let refund = || {
                if !known {
                    brake.refund(from);
                }
            };
            let (checked, logins) = (gate.registry.upstream.check_login(&client, from).await, &mirror.0.logins);
            let asked_again = mirror.0.clock.now() + WRONG;
            let (until, why, known) = match checked {
                Ok(Ok(())) => {
                    refund();
                    return logins.open(login, client, now, mirror.0.clock.now());
                }
                Ok(Err(Error::Credentials(why))) => (asked_again, Refusal::WrongLogin(why), false),
                Ok(Err(error @ (Error::Denied | Error::Unsupported(_)))) => {
                    (asked_again, Refusal::WrongLogin(error.to_string()), false)
                }
                // Said of this login, and maybe of no other: who makes up others pays for each.
                Ok(Err(error @ Error::RateLimited { until })) => (until, error.into(), known),
                Ok(Err(error)) | Err(error) => {
                    refund();
                    match error {
                        Error::RateLimited { until } => logins.closed.insert(login.0, (until, error.clone())),
                        Error::UnlistedTokenHost(_) => logins.closed.insert(login.0, (asked_again, error.clone())),
                        _ => {}
                    }
                    return Err(error.into());
                }
            };
            logins.said.insert(login, Said::No { until, why: why.clone(), known });
            Err(why)
        });
        checked.await?
    }
}

// === impl Logins ===

impl Logins {
    /// Opens a session for a login that was right when it was asked about.
    fn open(&self, login: Login, client: ClientCredential, asked: Timestamp, now: Timestamp) -> Result<Token, Refusal> {
        let mut secret = [0; 32];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut secret).map_err(|_| Refusal::Interrupted)?;
        let token = Token { text: URL_SAFE_NO_PAD.encode(secret), until: now + LIFE };
        let session = Session { upstream: Arc::clone(&login.0), client, until: token.until };
        self.sessions.insert(digest(&token.text), session);
        self.said.insert(login, Said::Right { until: asked + RIGHT, token: token.clone() });
        Ok(token)
    }
}

impl Default for Logins {
    fn default() -> Self {
        let weight = |_: &[u8; 32], session: &Session| u32::try_from(100 + session.client.weight()).unwrap_or(u32::MAX);
        // What has just been given must be there, so that only what was used least recently may go.
        let sessions = Cache::builder().eviction_policy(EvictionPolicy::lru()).max_capacity(SESSION_BYTES);
        Self {
            said: Cache::builder().eviction_policy(EvictionPolicy::lru()).max_capacity(REMEMBERED).build(),
            closed: Cache::new(REMEMBERED),
            checking: Flights::default(),
            sessions: sessions.weigher(weight).time_to_live(LIFE).build(),
            brake: Brake::default(),
        }
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

// === impl Challenge ===

/// As it stands in `WWW-Authenticate`.
impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bearer realm=\"{}\",service=\"{}\"", self.realm, self.service)?;
        self.scope.iter().try_for_each(|scope| write!(f, ",scope=\"{scope}\""))?;
        self.error.iter().try_for_each(|error| write!(f, ",error=\"{error}\""))
    }
}
