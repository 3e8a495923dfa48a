//! Whether larder could do its work here, found out without starting it: beside one that runs, nothing is touched.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;

use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::mirror::Registries;
use crate::server::Terms;
use crate::store;
use crate::upstream::{Error, Hop, Ping};

use super::audit_file;
use super::registries::registries;

/// One thing that was looked at, and what was found: in a line each.
pub struct Finding {
    pub what: String,
    /// `Err` says what to do as well.
    pub outcome: Result<String, String>,
}

/// More would make certificates and tokens seem to have expired, or to begin in the future.
const MOST_AHEAD: Duration = Duration::from_mins(1);

/// Looks at the files that `config` names, at the disk, at each upstream as each account, and at the clock.
///
/// Cancel safe.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for listener in config.server.listeners() {
        let outcome = Terms::of(&listener).map(|_| "what it names can be used".to_owned());
        findings.push(Finding { what: format!("listener {}", listener.listen), outcome });
    }
    if !config.admin.users_file.as_os_str().is_empty() {
        let outcome = Terms::of_operator(&config.admin.users_file).map(|_| "its users can be used".to_owned());
        findings.push(Finding { what: "the operator's listener".into(), outcome });
    }
    findings.push(Finding { what: "disk".into(), outcome: store::survey(&config.cache) });
    if !config.log.audit_file.as_os_str().is_empty() {
        let outcome = audit_file::try_out(&config.log.audit_file).map(|()| "can be written".to_owned());
        findings.push(Finding { what: "audit log".into(), outcome });
    }
    match registries(config, &Hop::unique(), &Clock::system(), &Metrics::new()) {
        Ok(_) if config.mirror.offline => {
            findings.push(Finding { what: "upstreams".into(), outcome: Ok("none is asked (mirror.offline)".into()) });
        }
        Ok(registries) => findings.extend(upstreams(config, &registries).await),
        Err(why) => findings.push(Finding { what: "upstreams".into(), outcome: Err(why) }),
    }
    findings
}

async fn upstreams(config: &Config, registries: &Registries) -> Vec<Finding> {
    let configured = config.upstream.keys().filter_map(|name| Some((name, registries.configured(name)?)));
    let pings = join_all(configured.map(async |(name, registry)| {
        let pings = registry.upstream.ping().await;
        let client_logs_in = registry.public_url.is_some();
        pings.into_iter().map(move |ping| (name.clone(), client_logs_in, ping))
    }));
    let pings: Vec<_> = pings.await.into_iter().flatten().collect();
    let clock = clock(pings.iter().filter_map(|(.., ping)| ping.date));
    let findings = pings.into_iter().map(|(name, client_logs_in, ping)| {
        let Ping { what, outcome, took, .. } = ping;
        let outcome = match outcome {
            Ok(()) => Ok(format!("answers {what} after {} ms", took.as_millis())),
            Err(Error::Credentials(_) | Error::Denied) if client_logs_in => {
                Ok(format!("asks {what} for a login, which clients bring"))
            }
            Err(error) => Err(format!("{what}: {error}; {}", advice(&error))),
        };
        Finding { what: format!("upstream {name}"), outcome }
    });
    findings.chain([clock]).collect()
}

fn advice(error: &Error) -> &'static str {
    match error.cause() {
        Error::Credentials(_) | Error::Denied => "look at its username, password_file, docker_config or credential_helper",
        Error::RateLimited { .. } => "wait, or give it an account",
        Error::Loop => "give as its url that of the registry",
        _ => "look at its url, proxy and ca_file, and whether this machine reaches it",
    }
}

/// Of several clocks the one that is nearest says how wrong ours is at least.
fn clock(dates: impl Iterator<Item = SystemTime>) -> Finding {
    let now = SystemTime::now();
    let apart = |date: SystemTime| now.duration_since(date).unwrap_or_else(|behind| behind.duration());
    let outcome = match dates.map(apart).min() {
        None => Ok("nobody was there to compare it with".into()),
        Some(apart) if apart <= MOST_AHEAD => Ok("goes with those of the upstreams".into()),
        Some(apart) => Err(format!(
            "is {} away from those of all upstreams; set it (timedatectl set-ntp true)",
            humantime::format_duration(Duration::from_secs(apart.as_secs()))
        )),
    };
    Finding { what: "clock".into(), outcome }
}
