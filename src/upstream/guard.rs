//! Where packets may go when a server chose the address.
//!
//! A redirect or a token realm may name any host. It is followed to public addresses, and to the addresses of the upstream
//! itself; never to others on the inside, such as a cloud's metadata service. Names are checked after resolution, on the
//! address that is dialled, so that a name cannot mean one address when checked and another when used.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use reqwest::Url;

/// The rule for one upstream.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    /// The upstream's own host, wherever the operator has put it. Empty: there is none.
    own_host: Arc<str>,
    /// The operator's proxies, which are where they are as well.
    proxies: Arc<[String]>,
    /// The operator trusts the upstream to name hosts on the inside.
    allow_private: bool,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the upstream names {0}, which is not a public address")]
    Private(String),
    #[error("the upstream names an address without a host")]
    NoHost,
    #[error("the upstream is https but names a plain http address")]
    Downgrade,
    #[error("the upstream names an address that is neither http nor https")]
    Scheme,
}

// === impl Guard ===

impl Guard {
    /// `proxy`: the option of the upstream; empty for those that the environment names.
    pub(super) fn new(upstream: &Url, allow_private: bool, proxy: &str) -> Result<Self, String> {
        let proxies = match proxy {
            "" => proxies(),
            "none" => Vec::new(),
            url => vec![proxy_host(url).ok_or("proxy must be a URL such as http://proxy.corp:3128, or none")?],
        };
        Ok(Self { own_host: upstream.host_str().unwrap_or_default().into(), proxies: proxies.into(), allow_private })
    }

    /// The rule for an upstream that no operator has put anywhere.
    pub(super) fn public_only() -> Self {
        Self { own_host: "".into(), proxies: Arc::new([]), allow_private: false }
    }

    /// Checks all that can be told before resolution: the scheme, and a host that is an address already.
    pub(super) fn check(&self, from: &Url, to: &Url) -> Result<(), Refused> {
        match (from.scheme(), to.scheme()) {
            ("https", "http") => return Err(Refused::Downgrade),
            (_, "http" | "https") => {}
            _ => return Err(Refused::Scheme),
        }
        // The parser has already made one of all spellings of an address: 127.1, 0x7f000001, [::ffff:127.0.0.1].
        let host = to.host_str().ok_or(Refused::NoHost)?;
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match address {
            Ok(address) if !self.permits(address, host) => Err(Refused::Private(host.into())),
            _ => Ok(()),
        }
    }

    fn permits(&self, address: IpAddr, host: &str) -> bool {
        self.allow_private || *host == *self.own_host || is_public(address)
    }

    /// The upstream's own host, if it has one.
    pub(super) fn own_host(&self) -> Option<&str> {
        Some(&*self.own_host).filter(|host| !host.is_empty())
    }

    /// Whether an address may be dialled to which `host` leads. `own`: those to which the upstream's own host does.
    pub(super) fn permits_resolved(&self, address: IpAddr, host: &str, own: &[IpAddr]) -> bool {
        self.permits(address, host) || own.contains(&address) || self.proxies.iter().any(|proxy| proxy == host)
    }
}

/// The hosts of the proxies that the environment names. They are dialled in place of what a server has named.
fn proxies() -> Vec<String> {
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let values = names.iter().flat_map(|name| [std::env::var(name), std::env::var(name.to_ascii_lowercase())]);
    values.flatten().filter_map(|value| proxy_host(&value)).collect()
}

fn proxy_host(value: &str) -> Option<String> {
    let url: Option<Url> = value.parse().ok().filter(Url::has_host).or_else(|| format!("http://{value}").parse().ok());
    url?.host_str().map(str::to_ascii_lowercase)
}

/// True for addresses of the open internet: not loopback, private, shared, link-local, reserved, multicast.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let shared = a == 100 && (64..128).contains(&b); // RFC 6598
    let protocol = (a, b, c) == (192, 0, 0); // RFC 6890
    let benchmark = a == 198 && (18..20).contains(&b); // RFC 2544
    let relay = (a, b, c) == (192, 88, 99); // RFC 7526
    !(a == 0
        || a >= 240
        || v4.is_loopback()
        || v4.is_private()
        || v4.is_link_local()
        || v4.is_multicast()
        || v4.is_documentation()
        || shared
        || protocol
        || benchmark
        || relay)
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    if let Some(v4) = v6.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    match v6.segments() {
        // NAT64 (RFC 6052) and 6to4 (RFC 3056) lead to an IPv4 address.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            is_public_v4(Ipv4Addr::new(a, b, c, d))
        }
        [0x2001, 0xdb8 | 0, ..] => false,
        // Global unicast is 2000::/3; all else is local, reserved or multicast.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn no_spelling_of_an_inner_address_passes() {
        let upstream = url("https://registry.example");
        let guard = Guard::new(&upstream, false, "none").unwrap();
        for host in [
            "127.0.0.1",
            "127.1",
            "0x7f000001",
            "2130706433",
            "0.0.0.0",
            "169.254.169.254",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[fc00::1]",
            "[ff02::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:a9fe:a9fe]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[2001:db8::1]",
        ] {
            assert!(guard.check(&upstream, &url(&format!("https://{host}/x"))).is_err(), "{host}");
        }
        for host in ["93.184.215.14", "[2606:4700::1111]", "cdn.example"] {
            assert!(guard.check(&upstream, &url(&format!("https://{host}/x"))).is_ok(), "{host}");
        }
    }

    #[test]
    fn the_upstreams_own_address_is_where_the_operator_put_it() {
        let upstream = url("http://127.0.0.1:5000");
        let guard = Guard::new(&upstream, false, "none").unwrap();
        assert!(guard.check(&upstream, &url("http://127.0.0.1:6000/x")).is_ok());
        assert!(guard.check(&upstream, &url("http://127.0.0.2:6000/x")).is_err());
    }

    #[test]
    fn https_never_becomes_http() {
        let upstream = url("https://registry.example");
        let guard = Guard::new(&upstream, true, "none").unwrap();
        assert!(matches!(guard.check(&upstream, &url("http://registry.example/x")), Err(Refused::Downgrade)));
        assert!(matches!(guard.check(&upstream, &url("file:///etc/passwd")), Err(Refused::Scheme)));
    }
}
