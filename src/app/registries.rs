//! The upstreams of a configuration, by all names that clients may call them.

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::Config;
use crate::current::Current;
use crate::metrics::Metrics;
use crate::mirror::{self, Access, Freshness, Registries, Registry};
use crate::upstream::{self, Commons, Hop, PublicUrl, Upstream};

/// # Errors
/// One line that says which option is wrong.
pub(super) fn registries(config: &Config, hop: &Hop, clock: &Clock, metrics: &Metrics) -> Result<Registries, String> {
    let rate = upstream::rate(config.mirror.max_rate.as_u64());
    let mut all = Vec::new();
    for (name, options) in &config.upstream {
        let public_url = options.passthrough().map_err(|what| format!("upstream.\"{name}\".{what}"))?;
        // Also a sealed larder says what is wrong with its configuration.
        let upstream = Upstream::new(name, options, hop.clone(), clock.clone(), metrics.clone())?.within(&rate);
        let upstream = if config.mirror.offline { Upstream::offline(name, clock.clone()) } else { upstream };
        all.push((name, options, Arc::new(registry(upstream, public_url, options, &config.mirror))));
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
        let commons = Commons::of_public(&clock, &metrics);
        registries.open_to_public(Box::new(move |name| {
            let upstream = Upstream::of_public(name, hop.clone(), &commons, clock.clone(), metrics.clone()).ok()?;
            let upstream = if mirror.offline { Upstream::offline(name, clock.clone()) } else { upstream.within(&rate) };
            Some(registry(upstream, None, &upstream::Options::of_public(name), &mirror))
        }));
    }
    for image in &config.mirror.keep {
        registries.resolve(image).map_err(|refusal| format!("mirror.keep: {image}: {refusal}"))?;
    }
    Ok(registries)
}

fn registry(
    upstream: Upstream,
    public_url: Option<PublicUrl>,
    options: &upstream::Options,
    mirror: &mirror::Options,
) -> Registry {
    let (access, freshness) = (Current::new(access(options)), Current::new(Freshness::of(mirror, options)));
    Registry { upstream, public_url, access, freshness, anyones: options.public_only }
}

pub(super) fn access(options: &upstream::Options) -> Access {
    Access { allow: options.allow.clone(), deny: options.deny.clone() }
}
