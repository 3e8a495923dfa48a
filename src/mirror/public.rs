//! Registries that nobody configured: an upstream is made for each public one that a client names.

use std::sync::Arc;

use moka::policy::EvictionPolicy;

use super::Registry;

/// The upstreams that were made on demand; those that are not asked for give way.
pub(super) struct Public {
    made: moka::sync::Cache<String, Arc<Registry>>,
    make: Make,
}

/// Makes the upstream of this name.
pub type Make = Box<dyn Fn(&str) -> Option<Registry> + Send + Sync>;

const MOST: u64 = 256;

// === impl Public ===

impl Public {
    pub(super) fn new(make: Make) -> Self {
        let made = moka::sync::Cache::builder().max_capacity(MOST).eviction_policy(EvictionPolicy::lru()).build();
        Self { made, make }
    }

    /// The upstream of an [`identity`].
    pub(super) fn get(&self, identity: &str) -> Option<Arc<Registry>> {
        self.made.optionally_get_with_by_ref(identity, || (self.make)(identity).map(Arc::new))
    }
}

/// A registry on the internet by the one name it has here: its host in lower case, and its port unless that is 443. `None` for
/// what cannot be one, by its name alone: an address, a host of one label, what is no host.
pub(super) fn identity(name: &str) -> Option<String> {
    let (host, port) = match name.split_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port.parse().ok().filter(|port| *port > 0)?),
        Some(_) => return None,
        None => (name, 443),
    };
    let host = host.to_ascii_lowercase();
    // No top-level domain begins with a digit, and every IPv4 address ends with a number.
    let (_, top) = host.rsplit_once('.')?;
    let public = host.len() <= 253 && host.split('.').all(is_label) && top.starts_with(|c: char| c.is_ascii_alphabetic());
    let port: u16 = port;
    public.then(|| if port == 443 { host } else { format!("{host}:{port}") })
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::current::Current;
    use crate::upstream::Upstream;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_public_registry_has_one_name() {
        for (name, one) in [
            ("quay.example", "quay.example"),
            ("Quay.Example", "quay.example"),
            ("quay.example:443", "quay.example"),
            ("quay.example:0443", "quay.example"),
            ("quay.example:5000", "quay.example:5000"),
            ("a-b.c1.xn--p1ai:1", "a-b.c1.xn--p1ai:1"),
        ] {
            assert_eq!(identity(name).as_deref(), Some(one), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_a_public_registry_is_none() {
        let (label, host) = (format!("{}.example", "a".repeat(64)), format!("{}example", "a.".repeat(124)));
        for name in [
            "",
            ".",
            "localhost",
            "localhost:5000",
            "registry",
            "127.0.0.1",
            "127.0.0.1:443",
            "8.8.8.8",
            "1.2.3.0x4",
            "[::1]:443",
            "[2606:4700::1111]",
            "::1",
            "a..example",
            ".example.com",
            "example.com.",
            "-a.example",
            "a-.example",
            "a_b.example",
            "ä.example",
            "a.example:",
            "a.example:0",
            "a.example:65536",
            "a.example:+80",
            "a.example:80:80",
            "a.example:x",
            "a.example/x",
            "user@a.example",
            "a.example?x",
            "a.example#x",
            "a .example",
            "a.example\n",
            "a%2eexample.com",
            &label,
            &host,
        ] {
            assert_eq!(identity(name), None, "{name:?}");
        }
    }

    #[test]
    fn no_more_are_kept_than_is_bearable_and_those_in_use_stay() {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&made);
        let public = Public::new(Box::new(move |name| {
            counted.fetch_add(1, Ordering::Relaxed);
            let upstream = Upstream::offline(name, Clock::system());
            let freshness =
                crate::mirror::Freshness::of(&crate::mirror::Options::default(), &crate::upstream::Options::default());
            Some(Registry {
                upstream,
                public_url: None,
                access: Current::default(),
                freshness: Current::new(freshness),
                anyones: true,
            })
        }));
        for i in 0..2000 {
            public.get("used.example").unwrap();
            public.get(&format!("r{i}.example")).unwrap();
            public.made.run_pending_tasks();
        }
        assert_eq!(public.made.entry_count(), MOST);
        assert_eq!(made.load(Ordering::Relaxed), 2001, "one of them all along");
    }
}
