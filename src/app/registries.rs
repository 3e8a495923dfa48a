//! The upstreams of a configuration, by all names that clients may call them.

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::Config;
use crate::current::Current;
use crate::metrics::Metrics;
use crate::mirror::{self, Access, Freshness, Registries, Registry};
use crate::upstream::{self, Hop, PublicUrl, Rate, Upstream};

/// # Errors
/// One line that says which option is wrong.
pub(super) fn registries(config: &Config, hop: &Hop, clock: &Clock, metrics: &Metrics) -> Result<Registries, String> {
    let rate = upstream::rate(config.mirror.max_rate.as_u64());
    let mut all = Vec::new();
    for (name, options) in &config.upstream {
        let registry = registry(name, options, &config.mirror, &rate, hop, clock, metrics)?;
        all.push((name, options, Arc::new(registry)));
    }
    let default = all.iter().find(|(name, ..)| **name == config.mirror.default_upstream);
    let (.., default) = default.ok_or("mirror.default_upstream is no upstream")?;
    let mut registries = Registries::new(Arc::clone(default));
    for (name, options, registry) in &all {
        for name in std::iter::once(*name).chain(&options.aliases) {
            registries.add_name(name, registry)?;
        }
        let public_url = registry.public_url.iter().map(PublicUrl::authority);
        options.hosts.iter().map(String::as_str).chain(public_url).try_for_each(|host| registries.add_host(host, registry))?;
    }
    if config.mirror.any_public {
        let (mirror, hop, clock, metrics) = (config.mirror.clone(), hop.clone(), clock.clone(), metrics.clone());
        registries.open_to_public(Box::new(move |name| {
            let options = upstream::Options::of_public(name);
            registry(name, &options, &mirror, &rate, &hop, &clock, &metrics).ok()
        }));
    }
    for image in &config.mirror.keep {
        registries.resolve(image).map_err(|refusal| format!("mirror.keep: {image}: {refusal}"))?;
    }
    Ok(registries)
}

fn registry(
    name: &str,
    options: &upstream::Options,
    mirror: &mirror::Options,
    rate: &Arc<Rate>,
    hop: &Hop,
    clock: &Clock,
    metrics: &Metrics,
) -> Result<Registry, String> {
    let public_url = options.passthrough().map_err(|what| format!("upstream.\"{name}\".{what}"))?;
    // Also a sealed larder says what is wrong with its configuration.
    let upstream = Upstream::new(name, options, hop.clone(), clock.clone(), metrics.clone())?.within(rate);
    let upstream = if mirror.offline { Upstream::offline(name, clock.clone()) } else { upstream };
    let (access, freshness) = (Current::new(access(options)), Current::new(Freshness::of(mirror, options)));
    Ok(Registry { upstream, public_url, access, freshness, anyones: options.public_only })
}

pub(super) fn access(options: &upstream::Options) -> Access {
    Access { allow: options.allow.clone(), deny: options.deny.clone() }
}
