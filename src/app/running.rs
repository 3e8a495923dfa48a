//! What of a running larder can change, and how a changed configuration is taken up.

use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::mirror::{Freshness, Mirror};
use crate::server::{Shares, Terms};
use crate::upstream::Hop;

use super::{access, registries};

/// The parts that a changed configuration reaches.
pub struct Running {
    /// What holds now.
    pub(super) config: Mutex<Config>,
    /// Of each listener.
    pub(super) terms: Vec<Arc<Terms>>,
    pub(super) shares: Shares,
    pub(super) mirror: Mirror,
}

// === impl Running ===

impl Running {
    /// Takes up what has changed and can change now: rules, what may be had of upstreams, TTLs of tags, what clients may take and
    /// what may come from upstreams. Files of listeners are looked at at once. Connections, answers and fills under way go on.
    /// Returns the options that wait for the next start.
    ///
    /// May wait for the disk.
    ///
    /// # Errors
    /// With this configuration larder would not start; says why in one line. Nothing has been changed.
    pub fn reload(&self, new: &Config) -> Result<Vec<String>, String> {
        try_out(new)?;
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        config.take_up(new);
        self.shares.set(&config.server);
        for (terms, options) in self.terms.iter().zip(config.server.listeners()) {
            terms.set_rules(options.rule);
            terms.renew();
        }
        for (name, options) in &config.upstream {
            let Some(registry) = self.mirror.registries().configured(name) else { continue };
            registry.access.set(access(options));
            registry.freshness.set(Freshness::of(&config.mirror, options));
            registry.upstream.set_max_rates(options.max_rate.as_u64(), config.mirror.max_rate.as_u64());
        }
        Ok(config.differences(new))
    }
}

/// Whether larder would start so, as far as that can be told beside one that runs.
fn try_out(config: &Config) -> Result<(), String> {
    registries(config, &Hop::unique(), &Clock::system(), &Metrics::new())?;
    config.server.listeners().iter().try_for_each(|listener| Terms::of(listener).map(|_| ()))
}
