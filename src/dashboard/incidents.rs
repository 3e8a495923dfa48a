//! What has gone wrong lately, in words that say what to do.

use serde::Serialize;

use crate::mirror::{Cause, Health, Incident};
use crate::upstream::PUBLIC;

use super::Dashboard;

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IncidentReport {
    pub what: String,
    /// In larder's words, or the upstream's.
    pub why: String,
    pub to_do: String,
    /// What was wanted the last time.
    pub of: String,
    pub times: u64,
    /// In milliseconds since 1970.
    pub first: u64,
    pub last: u64,
}

// === impl Dashboard ===

impl Dashboard {
    /// First what is wrong now, then what went wrong, the newest first.
    #[must_use]
    pub fn incidents(&self) -> Vec<IncidentReport> {
        let Health { disk, .. } = self.0.mirror.health();
        let now = self.0.clock.now().unix_millis();
        let disk = disk.map(|trouble| IncidentReport {
            what: "The disk fails".into(),
            why: trouble.why,
            to_do: "Clients are served past the cache meanwhile. Look at the disk and its free space; larder tries it again every few \
                    seconds and goes on by itself."
                .into(),
            of: String::new(),
            times: 1,
            first: trouble.since.unix_millis(),
            last: now,
        });
        disk.into_iter().chain(self.0.mirror.incidents().into_iter().map(told)).collect()
    }
}

fn told(incident: Incident) -> IncidentReport {
    let Incident { cause, upstream, why, of, times, first, last } = incident;
    let upstream = match upstream.as_str() {
        "" => "the upstream",
        PUBLIC => "a registry that a client has named",
        upstream => upstream,
    };
    let (what, to_do) = words(cause, upstream);
    IncidentReport { what, why, to_do, of, times, first: first.unix_millis(), last: last.unix_millis() }
}

/// What it is, and what to do about it.
fn words(cause: Cause, upstream: &str) -> (String, String) {
    let option = format!("upstream.\"{upstream}\"");
    match cause {
        Cause::Unavailable => (
            format!("{upstream} could not be reached"),
            format!("What is here is served. Look whether {upstream} is up and reachable from larder's machine: `larder check` says where it ends. {option}.fallbacks names other addresses."),
        ),
        Cause::RateLimited => (
            format!("{upstream} limits the rate of requests"),
            format!("What is here is served. Give larder an account there ({option}.username and password_file), or more than one; or let tags live longer (mirror.tag_ttl)."),
        ),
        Cause::QuotaSpent => (
            format!("The byte_quota of {upstream} is used up"),
            format!("What is here is served. Raise {option}.byte_quota, or wait until the window is over."),
        ),
        Cause::Denied => (
            format!("{upstream} denied something"),
            format!("It is private, or there is no such repository. Where larder may have it, give it an account that may read it ({option}.username and password_file)."),
        ),
        Cause::Credentials => (
            format!("The credentials for {upstream} cannot be used"),
            format!("Look at {option}: the user, the file or helper with the password, and whether the password has expired. `larder check` tries them."),
        ),
        Cause::Unsupported => (
            format!("{upstream} answered in a way that is of no use"),
            format!("Look whether {option}.url is a registry; a proxy on the way may answer in its place."),
        ),
        Cause::WrongContent => (
            format!("{upstream} sent something wrong"),
            "Nothing of it was kept or passed on. If it goes on, something on the way changes bytes, or the registry's storage is damaged: tell who runs it.".into(),
        ),
        Cause::BrokenOff => (
            format!("A transfer from {upstream} broke, and could not be taken up again"),
            format!("Clients try again, and what has come is not fetched twice. If it goes on, look at the line to {upstream}."),
        ),
        Cause::Loop => (
            format!("{upstream} leads back to larder itself"),
            format!("{option}.url must be the registry's own address, and not one that this or another larder answers at."),
        ),
        Cause::Busy => (
            format!("Too much was asked of {upstream} at once"),
            format!("Clients try again. {option}.max_transfers says how much may be under way."),
        ),
        Cause::NoSocket => (
            "There was no socket left to ask upstreams with".into(),
            "Give its process more open files (LimitNOFILE in its unit, ulimit -n), or let fewer clients in (server.max_connections).".into(),
        ),
        Cause::Sealed => (
            "Something was asked for that is not here, and larder asks nobody".into(),
            "`larder missing` lists what was asked for in vain. Pull it where there is a network, `larder export` it, and `larder import` it here.".into(),
        ),
        Cause::UnknownUpstream => (
            "A registry was asked for that larder does not stand before".into(),
            "Add a section [upstream.\"NAME\"] for it, or set mirror.any_public for all that are public.".into(),
        ),
        Cause::NotAllowed => (
            "Something was asked for that is not allowed".into(),
            "Nothing, if it was meant so. The rules are allow and deny of the upstream, and rule of the listener.".into(),
        ),
        Cause::TooManyLogins => (
            "Too many wrong passwords came from one address".into(),
            "Somebody guesses, or a client has an old password. The log names the address.".into(),
        ),
        Cause::Stale => (
            format!("{upstream} could not be asked whether tags have moved"),
            "What is here was served all the same, and may be outdated. If it goes on, look at the upstream's health above.".into(),
        ),
        Cause::Bypass => (
            format!("Something from {upstream} was passed on and not kept"),
            "Clients got it. Look at the disk: what the cache may take (cache.max_size), what is pinned, what is free.".into(),
        ),
    }
}
