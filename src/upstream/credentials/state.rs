//! What is known of an account's credentials, and what is to be done about it. Nothing here waits.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::upstream::error::Error;

use super::Credential;
use super::expiry::expiry_of;
use super::source::{Says, Source};

#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) held: Option<Arc<Held>>,
    /// How the last look has failed, if it has.
    pub(super) failure: Option<Failure>,
    /// When the source was last looked at because an upstream had refused what is held.
    pub(super) refused_at: Option<Timestamp>,
}

/// What a look has found.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) says: Says,
    /// What comes of that: the same, or what the helper has answered.
    pub(super) credential: Option<Credential>,
    /// From here on the source is read again; what its helper has answered is not in question.
    pub(super) reread_at: Timestamp,
    /// From here on it is renewed, with nobody waiting.
    pub(super) renew_at: Timestamp,
    /// From here on whoever asks waits for a new one.
    pub(super) stale_at: Timestamp,
    /// When it says that it ends.
    pub(super) expires_at: Option<Timestamp>,
}

#[derive(Clone)]
pub(super) struct Failure {
    pub(super) why: String,
    pub(super) at: Timestamp,
}

/// Why a source is looked at.
#[derive(Clone)]
pub(super) enum Cause {
    Due,
    Refused(Credential),
}

/// For how long what was read from a file is taken to stand there still.
const REREAD: Duration = Duration::from_secs(10);
/// For how long an answer of a helper is good that does not say.
const UNKNOWN_LIFE: Duration = Duration::from_mins(10);
/// After this a helper that has failed, or has known nothing, is asked again, where something old will do meanwhile.
const RETRY: Duration = Duration::from_secs(30);
/// The same where nothing will do.
const PAUSE: Duration = Duration::from_secs(5);
const NEVER: Timestamp = Timestamp::from_unix_millis(u64::MAX);

// === impl State ===

impl State {
    /// Whether the source is to be looked at.
    pub(super) fn calls_for(&self, cause: &Cause, now: Timestamp) -> bool {
        match (cause, &self.held) {
            (Cause::Due, held) => {
                let due = held.as_ref().is_none_or(|held| now >= held.reread_at.min(held.renew_at));
                due && self.failure.as_ref().is_none_or(|failure| now >= failure.at + self.pause(now))
            }
            (Cause::Refused(refused), Some(held)) => {
                // Reading a file is nothing; a helper is not started for each client of a wrong password.
                let just_asked = held.asks() && self.refused_at.is_some_and(|at| now < at + PAUSE);
                held.credential.as_ref() == Some(refused) && !just_asked
            }
            (Cause::Refused(_), None) => false,
        }
    }

    /// For how long a failure is not followed by another try.
    fn pause(&self, now: Timestamp) -> Duration {
        match self.usable(now) {
            Some(held) if held.asks() => RETRY,
            Some(_) => REREAD,
            None => PAUSE,
        }
    }

    /// What is held, if it may be used although no newer is to be had.
    pub(super) fn usable(&self, now: Timestamp) -> Option<&Held> {
        self.held.as_deref().filter(|held| held.expires_at.is_none_or(|at| now < at))
    }

    pub(super) fn answer(&self, now: Timestamp) -> Result<Option<Credential>, Error> {
        match (self.usable(now), &self.held, &self.failure) {
            (Some(held), ..) => Ok(held.credential.clone()),
            (None, _, Some(failure)) => Err(Error::Credentials(failure.why.clone())),
            // It was brought like this just now; the upstream's clock may be another.
            (None, Some(held), None) => Ok(held.credential.clone()),
            (None, None, None) => Err(Error::unavailable("its credentials could not be looked up")),
        }
    }
}

// === impl Held ===

impl Held {
    /// What stands in the source itself.
    pub(super) fn read(says: Says, reread_at: Timestamp) -> Self {
        let credential = if let Says::Is(credential) = &says { credential.clone() } else { None };
        Self { says, credential, reread_at, renew_at: reread_at, stale_at: reread_at, expires_at: None }
    }

    /// What a helper has answered `now`.
    pub(super) fn answered(says: Says, answer: Option<Credential>, reread_at: Timestamp, now: Timestamp) -> Self {
        let expires_at = answer.as_ref().and_then(|credential| expiry_of(&credential.password));
        let life = match (&answer, expires_at) {
            (None, _) => RETRY,
            (Some(_), None) => UNKNOWN_LIFE,
            // A helper with a cache of its own may bring what is about to end, again and again.
            (Some(_), Some(at)) => at.since(now).max(PAUSE),
        };
        let otherwise = if let Says::Ask { otherwise, .. } = &says { otherwise.clone() } else { None };
        let credential = answer.or(otherwise);
        Self { says, credential, reread_at, renew_at: now + life * 4 / 5, stale_at: now + life, expires_at }
    }

    fn asks(&self) -> bool {
        matches!(self.says, Says::Ask { .. })
    }
}

/// When what a source says now is to be read again.
pub(super) fn reread_at(source: &Source, now: Timestamp) -> Timestamp {
    if source.is_file() { now + REREAD } else { NEVER }
}
