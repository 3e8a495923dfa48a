//! Where an account's credentials come from, kept fresh.
//!
//! A source is a password in a file or in the environment, a Docker config.json, or a credential helper
//! (<https://github.com/docker/docker-credential-helpers>). Files are looked at again when what was read is 10 s old; whoever
//! asks waits for that. What a helper has said is kept until shortly before it expires and then renewed in the background.
//! Where nothing new is to be had, the old holds on for as long as it may still be good.

mod docker_config;
mod expiry;
mod helper;
mod options;
mod source;
mod state;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt as _;
use http::HeaderValue;
use reqwest::Url;

use crate::clock::Clock;
use crate::flight::Flights;

use super::error::Error;
use docker_config::Registry;
use helper::Runner;
use source::{Says, Source};
use state::{Cause, Failure, Held, State};

pub(super) use expiry::jwt_expiry;
pub use options::AccountOptions;
pub(crate) use source::warn_of_readers;

/// A user and a password. It has no `Debug`, so that it cannot get into a log.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credential {
    pub(super) username: String,
    pub(super) password: String,
}

/// The credentials of one account: where they come from, and what they were when last looked at. Clones share it.
#[derive(Clone)]
pub(super) struct Credentials(Arc<Inner>);

struct Inner {
    source: Source,
    registry: Registry,
    runner: Runner,
    /// The upstream's name and the account's, for logs.
    upstream: String,
    label: String,
    clock: Clock,
    state: Mutex<State>,
    /// At most one look at a time. It tells whether it was one for a refusal.
    looks: Flights<(), bool>,
}

/// The user whose password is an identity token, as Docker writes it.
const IDENTITY_TOKEN: &str = "<token>";

// === impl Credential ===

impl Credential {
    pub(super) fn basic(&self) -> HeaderValue {
        let text = STANDARD.encode(format!("{}:{}", self.username, self.password));
        let mut header = HeaderValue::try_from(format!("Basic {text}")).expect("base64 is visible ASCII");
        header.set_sensitive(true);
        header
    }

    /// The password, if it is an `OAuth2` refresh token.
    pub(super) fn identity_token(&self) -> Option<&str> {
        (self.username == IDENTITY_TOKEN).then_some(&self.password)
    }
}

// === impl Credentials ===

impl Credentials {
    /// The credentials that `options` name for the upstream `name` at `url`. `None`: they name none.
    ///
    /// # Errors
    /// One line that begins with the option that is wrong, or whose file cannot be read.
    pub(super) fn new(options: &AccountOptions, name: &str, url: &Url, clock: Clock) -> Result<Option<Self>, String> {
        Self::with(options, name, url, clock, Runner::default())
    }

    fn with(options: &AccountOptions, name: &str, url: &Url, clock: Clock, runner: Runner) -> Result<Option<Self>, String> {
        let Some(source) = Source::new(options)? else { return Ok(None) };
        let registry = Registry::new(name, url);
        source.warn_of_readers();
        let held = match source.read(&registry)? {
            says @ Says::Is(_) => Some(Arc::new(Held::read(says, state::reread_at(&source, clock.now())))),
            // It is asked when someone wants to know.
            Says::Ask { .. } => None,
        };
        let (upstream, label) = (name.into(), source.label());
        let state = Mutex::new(State { held, ..State::default() });
        Ok(Some(Self(Arc::new(Inner { source, registry, runner, upstream, label, clock, state, looks: Flights::default() }))))
    }

    /// A word for logs and metrics: the user name where it is configured, else the kind of the source.
    pub(super) fn label(&self) -> &str {
        &self.0.label
    }

    /// What they are now. `None`: the source knows none for this registry.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Error::Credentials`] if they are not to be had, and what is held has expired.
    pub(super) async fn get(&self) -> Result<Option<Credential>, Error> {
        let now = self.0.clock.now();
        let state = self.0.state();
        let due = state.calls_for(&Cause::Due, now);
        if let Some(held) = state.held.filter(|held| now < held.stale_at) {
            if due {
                // It is started and not waited for.
                let _ = self.look(Cause::Due).now_or_never();
            }
            return Ok(held.credential.clone());
        }
        if due {
            self.look(Cause::Due).await;
        }
        self.0.state().answer(self.0.clock.now())
    }

    /// The upstream has refused `refused`: looks at the source at once, once for all who ask. What it holds, if that is
    /// something else; `None` if it is the same still, or nothing.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Error::Credentials`] if the source cannot be looked at.
    pub(super) async fn renew(&self, refused: &Credential) -> Result<Option<Credential>, Error> {
        let cause = Cause::Refused(refused.clone());
        // The first look may be one that was under way, and has seen the source before it changed.
        for _ in 0..2 {
            let called_for = self.0.state().calls_for(&cause, self.0.clock.now());
            if !called_for || self.look(cause.clone()).await {
                break;
            }
        }
        let state = self.0.state();
        match (state.held, state.failure) {
            (Some(held), _) if held.credential.as_ref() != Some(refused) => Ok(held.credential.clone()),
            (_, Some(failure)) => Err(Error::Credentials(failure.why)),
            _ => Ok(None),
        }
    }

    /// Joins the look that is under way, or starts one, in a task of its own. True if it was for a refusal.
    async fn look(&self, cause: Cause) -> bool {
        let inner = Arc::clone(&self.0);
        // A look that panicked has changed nothing.
        self.0.looks.join((), || inner.look(cause)).await.unwrap_or(false)
    }
}

// === impl Inner ===

impl Inner {
    fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn look(self: Arc<Self>, cause: Cause) -> bool {
        let state = self.state();
        // The look that called for this one may have ended only just.
        if !state.calls_for(&cause, self.clock.now()) {
            return false;
        }
        let for_refusal = matches!(cause, Cause::Refused(_));
        let found = self.find(state.held.as_deref(), &cause).await;
        let now = self.clock.now();
        if let Err(why) = &found {
            let old = if state.usable(now).is_some() { "the old ones are used" } else { "there are none to use" };
            tracing::warn!(upstream = self.upstream, account = self.label, why, "credentials cannot be renewed; {old}");
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if for_refusal {
            state.refused_at = Some(now);
        }
        match found {
            Ok(held) => {
                state.held = Some(Arc::new(held));
                state.failure = None;
            }
            Err(why) => state.failure = Some(Failure { why, at: now }),
        }
        for_refusal
    }

    async fn find(self: &Arc<Self>, before: Option<&Held>, cause: &Cause) -> Result<Held, String> {
        let inner = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || inner.source.read(&inner.registry));
        let read = tokio::time::timeout(self.runner.time_limit, read).await;
        let says = read.map_err(|_| "its file cannot be read in time")?.map_err(|error| error.to_string())??;
        let reread_at = state::reread_at(&self.source, self.clock.now());
        let Says::Ask { helper, otherwise } = &says else { return Ok(Held::read(says, reread_at)) };
        let before = before.filter(|before| before.says == says);
        if let (Some(before), Cause::Due) = (before, cause)
            && self.clock.now() < before.renew_at
        {
            return Ok(Held { reread_at, ..before.clone() });
        }
        let answer = self.runner.ask(helper, &self.registry.server).await?;
        let now = self.clock.now();
        // Some helpers, that of ECR among them, say so also when they could not ask.
        if answer.is_none() && before.is_some_and(|before| before.credential != *otherwise && now < before.stale_at) {
            return Err(format!("docker-credential-{helper} knows no credentials any more"));
        }
        Ok(Held::answered(says.clone(), answer, reread_at, now))
    }
}
