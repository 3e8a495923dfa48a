//! What of a running larder can change, and how a changed configuration is taken up.

use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::mirror::{Freshness, Mirror, Registry};
use crate::server::{Shares, Terms};
use crate::upstream::{Accounts, Hop};

use super::LogLevel;
use super::audit_file::AuditFile;
use super::registries::{access, registries};

/// The parts that a changed configuration reaches.
pub struct Running {
    /// What holds now.
    pub(super) config: Mutex<Config>,
    /// Of each listener, as `server::Options::listeners` has them.
    pub(super) terms: Vec<Arc<Terms>>,
    pub(super) shares: Shares,
    pub(super) mirror: Mirror,
    pub(super) audit_file: AuditFile,
}

/// What a reload has not done, and what it has that may not have been meant.
pub struct Reloaded {
    /// What is to be logged from now on.
    pub level: LogLevel,
    /// The options that wait for the next start.
    pub waits: Vec<String>,
    /// Those that bounded something, and do so no more.
    pub lifted: Vec<String>,
}

// === impl Running ===

impl Running {
    /// Looks for the audit log under its name again, for it may have been moved away; whatever is in the configuration.
    pub fn open_audit_log_anew(&self) {
        self.audit_file.open_anew();
    }

    /// Takes up what has changed and can change now: rules, what may be had of upstreams and as whom they are asked, TTLs of tags, what
    /// clients may take and what may come from upstreams. Files of listeners are looked at at once. Connections, answers and fills under
    /// way go on.
    ///
    /// May wait for the disk, and for another reload: what is loaded later holds in the end.
    ///
    /// # Errors
    /// With this configuration larder would not start; says why in one line. Nothing has been changed.
    pub fn reload(&self, load: impl FnOnce() -> Result<Config, String>) -> Result<Reloaded, String> {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let new = &load()?;
        try_out(new)?;
        let before = config.clone();
        let mut taken = before.clone();
        taken.take_up(new);
        let accounts = self.accounts(&taken)?;
        *config = taken;
        self.shares.set(&config.server);
        for (terms, options) in self.terms.iter().zip(config.server.listeners()) {
            terms.set_rules(options.rule);
            terms.renew();
        }
        for (registry, accounts) in accounts {
            registry.upstream.set_accounts(accounts);
        }
        tell_doubts(&config, &before);
        for (name, options) in &config.upstream {
            let Some(registry) = self.mirror.registries().configured(name) else { continue };
            registry.access.set(access(options));
            registry.freshness.set(Freshness::of(&config.mirror, options));
            registry.upstream.set_max_rates(options.max_rate.as_u64(), config.mirror.max_rate.as_u64());
        }
        Ok(Reloaded { level: config.log.level, waits: config.differences(new), lifted: before.lifted_by(&config) })
    }

    /// As whom each upstream is to be asked.
    fn accounts(&self, config: &Config) -> Result<Vec<(Arc<Registry>, Accounts)>, String> {
        let registries =
            config.upstream.iter().filter_map(|(name, options)| Some((self.mirror.registries().configured(name)?, options)));
        registries.map(|(registry, options)| Ok((Arc::clone(registry), registry.upstream.accounts_of(options)?))).collect()
    }
}

/// Says what may not have been meant. `before`: the configuration of which that was said.
pub(super) fn tell_doubts(config: &Config, before: &Config) {
    let told = before.doubts();
    config.doubts().iter().filter(|doubt| !told.contains(doubt)).for_each(|doubt| tracing::warn!("{doubt}"));
}

/// Whether larder would start so, as far as that can be told beside one that runs.
fn try_out(config: &Config) -> Result<(), String> {
    registries(config, &Hop::unique(), &Clock::system(), &Metrics::new())?;
    config.server.listeners().iter().try_for_each(|listener| Terms::of(listener).map(|_| ()))
}
