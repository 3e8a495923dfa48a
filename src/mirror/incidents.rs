//! What has lately kept clients from what they wanted, or would have, had it not been here: for the operator to see.
//!
//! The same again is counted and told once, so that a fleet that asks for what cannot be had is one line of it.

use std::cmp::Reverse;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Timestamp;
use crate::oci::Repository;
use crate::upstream::{Error, PUBLIC};

use super::{Mirror, Origin, Refusal, Served};

/// Something that went wrong, once or again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    pub cause: Cause,
    /// Its configured name; [`PUBLIC`] where a client has named it, as it may name as many as it likes. Empty where it is none's.
    pub upstream: String,
    /// In larder's words, or the upstream's, the last time.
    pub why: String,
    /// What was wanted then: `docker.io/library/nginx`. Empty where that is not known.
    pub of: String,
    pub times: u64,
    pub first: Timestamp,
    pub last: Timestamp,
}

/// What an operator would do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Unavailable,
    RateLimited,
    QuotaSpent,
    Denied,
    Credentials,
    Unsupported,
    WrongContent,
    /// A transfer broke and could not be taken up again.
    BrokenOff,
    Loop,
    Busy,
    NoSocket,
    Sealed,
    UnknownUpstream,
    NotAllowed,
    TooManyLogins,
    /// What is here was served without asking, as the upstream could not be asked.
    Stale,
    /// What came was passed on and not kept.
    Bypass,
}

/// By cause and upstream, in no order.
#[derive(Default)]
pub(super) struct Incidents(Mutex<Vec<Incident>>);

/// So many are remembered; the one that was last seen longest ago makes room.
const MOST: usize = 50;
/// An upstream may say much.
const LONGEST: usize = 300;

// === impl Mirror ===

impl Mirror {
    /// What has gone wrong lately, the newest first.
    #[must_use]
    pub fn incidents(&self) -> Vec<Incident> {
        let mut all = self.0.incidents.lock().clone();
        all.sort_by_key(|incident| Reverse((incident.last, incident.times)));
        all
    }

    /// A client was refused something. What is not there, and what a client has yet to show, is nothing that went wrong.
    pub fn note_refusal(&self, refusal: &Refusal, of: Option<&Repository>) {
        if let Some(cause) = Cause::of(refusal) {
            self.note(cause, of, &refusal.to_string());
        }
    }

    /// A client was served, if not as it should be.
    pub fn note_served(&self, served: &Served, of: Option<&Repository>) {
        match served {
            Served::Stale(why) => self.note(Cause::Stale, of, why),
            Served::Bypass(why, _) => self.note(Cause::Bypass, of, why),
            _ => {}
        }
    }

    pub(super) fn note_broken_off(&self, origin: &Origin, error: &Error) {
        self.note(Cause::BrokenOff, Some(&origin.repository), &error.to_string());
    }

    pub(super) fn note_wrong_bytes(&self, origin: &Origin) {
        let why = "it sent other bytes than the digest promises";
        self.note(Cause::WrongContent, Some(&origin.repository), why);
    }

    fn note(&self, cause: Cause, of: Option<&Repository>, why: &str) {
        let now = self.0.clock.now();
        let (upstream, of) = of.map_or(("", String::new()), |of| (&*of.upstream, of.to_string()));
        let is_anyones = !upstream.is_empty() && self.registries().configured(upstream).is_none();
        let upstream = if is_anyones { PUBLIC } else { upstream };
        let mut all = self.0.incidents.lock();
        add(&mut all, Incident { cause, upstream: upstream.to_owned(), why: plain(why), of, times: 1, first: now, last: now });
    }
}

fn add(all: &mut Vec<Incident>, new: Incident) {
    let same = |known: &&mut Incident| known.cause == new.cause && known.upstream == new.upstream;
    if let Some(known) = all.iter_mut().find(same) {
        *known = Incident { times: known.times.saturating_add(1), first: known.first, ..new };
        return;
    }
    if all.len() >= MOST
        && let Some(oldest) = (0..all.len()).min_by_key(|at| all[*at].last)
    {
        all.swap_remove(oldest);
    }
    all.push(new);
}

/// On one line, and no longer than a line.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

// === impl Incidents ===

impl Incidents {
    fn lock(&self) -> MutexGuard<'_, Vec<Incident>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Cause ===

impl Cause {
    fn of(refusal: &Refusal) -> Option<Self> {
        Some(match refusal {
            Refusal::UnknownUpstream(_) => Self::UnknownUpstream,
            Refusal::NotAllowed(_) => Self::NotAllowed,
            Refusal::TooManyLogins { .. } => Self::TooManyLogins,
            Refusal::WrongContent(_) => Self::WrongContent,
            Refusal::Upstream(error) => match error.cause() {
                Error::NotFound | Error::Left => return None,
                Error::Unsupported(_) => Self::Unsupported,
                Error::Denied => Self::Denied,
                Error::Credentials(_) | Error::UnlistedTokenHost(_) => Self::Credentials,
                Error::RateLimited { .. } => Self::RateLimited,
                Error::QuotaSpent { .. } => Self::QuotaSpent,
                Error::Unavailable { .. } | Error::RefusedElsewhere(_) | Error::LeftAlone(_) => Self::Unavailable,
                Error::NoSocket(_) => Self::NoSocket,
                Error::Busy => Self::Busy,
                Error::Loop => Self::Loop,
                Error::Offline => Self::Sealed,
            },
            Refusal::InvalidName(_)
            | Refusal::Elsewhere(_)
            | Refusal::LogIn(_)
            | Refusal::WrongLogin(_)
            | Refusal::NotAccepted(_)
            | Refusal::Interrupted => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incident(upstream: usize, at: u64) -> Incident {
        let at = Timestamp::from_unix_millis(at);
        let upstream = format!("r{upstream}.example");
        Incident {
            cause: Cause::Denied,
            why: at.unix_millis().to_string(),
            of: upstream.clone(),
            upstream,
            times: 1,
            first: at,
            last: at,
        }
    }

    #[test]
    fn the_same_again_is_counted_and_the_oldest_makes_room() {
        let mut all = Vec::new();
        (1..=3).for_each(|at| add(&mut all, incident(0, at)));
        let expected = Incident { times: 3, first: Timestamp::from_unix_millis(1), ..incident(0, 3) };
        assert_eq!(all, [expected]);
        (1..=MOST).for_each(|n| add(&mut all, incident(n, 10 + n as u64)));
        assert_eq!(all.len(), MOST);
        assert!(all.iter().all(|known| known.upstream != "r0.example"));
    }

    #[test]
    fn what_an_upstream_says_is_one_line() {
        assert_eq!(plain("a\nb\u{1b}[2J"), "a b [2J");
        assert_eq!(plain(&"x".repeat(2 * LONGEST)).len(), LONGEST);
    }
}
