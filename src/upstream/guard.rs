//! Where packets may go when a server chose the address.
//!
//! A redirect or a token realm may name any host. It is followed to public addresses, and to the addresses of the upstream
//! itself; never to others on the inside, such as a cloud's metadata service. Names are checked after resolution, on the
//! address that is dialled, so that a name cannot mean one address when checked and another when used.
//!
//! Where a proxy is on the way, it is the proxy's address that is dialled, and the proxy resolves the name. Then a name is refused that
//! is none of the internet's, or that leads to the inside as far as larder itself can tell; the rest is for the proxy to refuse.

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
    /// The operator trusts the upstream to name hosts on the inside. That does not make a registry of a metadata service.
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

    /// Checks all that can be told before resolution: the scheme, and a host that is an address already. `proxied`: a proxy will
    /// resolve the name, so that nothing more can be told later.
    pub(super) fn check(&self, from: &Url, to: &Url, proxied: bool) -> Result<(), Refused> {
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
            // A proxy is there for larder to ask, not for a server to send it to.
            Err(_) if *host != *self.own_host && self.is_proxy(host) => Err(Refused::Private(host.into())),
            Err(_) if proxied && !self.is_for(Reach::of_name(host), host) => Err(Refused::Private(host.into())),
            _ => Ok(()),
        }
    }

    fn permits(&self, address: IpAddr, host: &str) -> bool {
        self.is_for(Reach::of(address), host)
    }

    fn is_for(&self, reach: Reach, host: &str) -> bool {
        *host == *self.own_host
            || match reach {
                Reach::Public => true,
                Reach::Private => self.allow_private,
                Reach::Never => false,
            }
    }

    fn is_proxy(&self, host: &str) -> bool {
        self.proxies.iter().any(|proxy| proxy == host)
    }

    /// The upstream's own host, if it has one.
    pub(super) fn own_host(&self) -> Option<&str> {
        Some(&*self.own_host).filter(|host| !host.is_empty())
    }

    /// Whether an address may be dialled to which `host` leads. `own`: those to which the upstream's own host does.
    pub(super) fn permits_resolved(&self, address: IpAddr, host: &str, own: &[IpAddr]) -> bool {
        self.permits(address, host) || own.contains(&address) || self.is_proxy(host)
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

/// Whether no registry can be where this leads, as far as its spelling tells: it is a metadata service, or an address of this link or of
/// many.
pub(super) fn is_never(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    matches!(address.map_or_else(|_| Reach::of_name(host), Reach::of), Reach::Never)
}

/// From where an address can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Public,
    /// On the inside: of this machine, or of its network.
    Private,
    /// No registry is there: of this link alone, of many, of none, or what tells a cloud's machine its own secrets.
    Never,
}

/// Where clouds tell a machine its secrets, as far as that is not link-local.
const METADATA: [IpAddr; 8] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),                       // Alibaba
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),                         // Azure
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),                           // Oracle
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),       // Google
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)), // Oracle
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),        // Scaleway
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200)),  // Alibaba
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1)),    // Akamai
];

/// By what names, as far as those are not of the inside.
const METADATA_NAMES: [&str; 5] =
    ["metadata", "instance-data", "metadata.google.internal", "metadata.goog", "metadata.tencentyun.com"];

/// What the internet has no names below: RFC 6761, RFC 6762 (appendix G), RFC 8375, and `internal`.
const INNER: [&str; 10] =
    ["localhost", "localdomain", "local", "internal", "intranet", "private", "corp", "home", "lan", "home.arpa"];

// === impl Reach ===

impl Reach {
    /// As its spelling tells.
    fn of_name(host: &str) -> Self {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let is_below = |top: &&str| host.strip_suffix(*top).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if METADATA_NAMES.contains(&&*host) {
            Self::Never
        } else if !host.contains('.') || INNER.iter().any(is_below) {
            Self::Private
        } else {
            Self::Public
        }
    }

    fn of(address: IpAddr) -> Self {
        match address {
            address if METADATA.contains(&address) => Self::Never,
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    fn of_v4(v4: Ipv4Addr) -> Self {
        let [a, b, c, _] = v4.octets();
        let shared = a == 100 && (64..128).contains(&b); // RFC 6598
        let protocol = (a, b, c) == (192, 0, 0); // RFC 6890
        let benchmark = a == 198 && (18..20).contains(&b); // RFC 2544
        let relay = (a, b, c) == (192, 88, 99); // RFC 7526
        if a == 0 || a >= 240 || v4.is_link_local() || v4.is_multicast() {
            return Self::Never;
        }
        let private = v4.is_loopback() || v4.is_private() || v4.is_documentation() || shared || protocol || benchmark || relay;
        if private { Self::Private } else { Self::Public }
    }

    fn of_v6(v6: Ipv6Addr) -> Self {
        let embedded = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Self::of(Ipv4Addr::new(a, b, c, d).into())
        };
        match v6.segments() {
            // IPv4-mapped (RFC 4291), NAT64 (RFC 6052) and 6to4 (RFC 3056) lead to an IPv4 address.
            [0, 0, 0, 0, 0, 0xffff, high, low]
            | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
            | [0x2002, high, low, ..]
            // ISATAP (RFC 5214) as well.
            | [0x2000..=0x3fff, _, _, _, 0 | 0x200, 0x5efe, high, low] => embedded(high, low),
            [0, 0, 0, 0, 0, 0, 0, 1] | [0xfc00..=0xfdff, ..] => {
                // All of Amazon's services of a machine, and of what runs in it.
                if v6.segments().starts_with(&[0xfd00, 0xec2]) { Self::Never } else { Self::Private }
            }
            // IETF protocol assignments, Teredo among them (RFC 4380), and documentation (RFC 3849, RFC 9637).
            [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Self::Never,
            // Global unicast is 2000::/3; all else is local, reserved or multicast.
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Never,
        }
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
            "0177.0.0.1",
            "127.0.0.1.",
            "0X7F.1",
            "%31%32%37.0.0.1",
            "127\u{3002}0\u{3002}0\u{3002}1",
            "\u{ff11}\u{ff12}\u{ff17}.0.0.1",
            "1\u{b2}7.1",
            "0",
            "240.0.0.1",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "192.88.99.1",
            "[::127.0.0.1]",
            "[::ffff:0:127.0.0.1]",
            "[0:0:0:0:0:ffff:7f00:0001]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b:1::7f00:1]",
            "[2002:a9fe:a9fe::1]",
            "[2001:0:5ef5:79fb::80ff:fffe]",
            "[2606:4700::5efe:10.0.0.1]",
            "[2606:4700::200:5efe:169.254.169.254]",
            "[fd00:ec2::254]",
            "[fd20:ce::254]",
            "[fec0::1]",
            "[3fff::1]",
            "[4000::1]",
            "127.0.0.0x",
        ] {
            assert!(guard.check(&upstream, &url(&format!("https://{host}/x")), false).is_err(), "{host}");
        }
        for host in ["93.184.215.14", "[2606:4700::1111]", "cdn.example", "[64:ff9b::5db8:d70e]", "[::ffff:93.184.215.14]"] {
            assert!(guard.check(&upstream, &url(&format!("https://{host}/x")), false).is_ok(), "{host}");
        }
        for host in ["[fe80::1%25eth0]", "[fe80::1%eth0]", "127.0.0.1:80:80", "1.2.3.4.5", "256.256.256.256", "a b"] {
            let host: Result<Url, _> = format!("https://{host}/x").parse();
            assert!(host.is_err(), "{host:?} is a host");
        }
    }

    #[test]
    fn an_operator_lets_an_upstream_name_the_inside_and_no_metadata_service() {
        let upstream = url("https://registry.example");
        let guard = Guard::new(&upstream, true, "none").unwrap();
        for (host, passes) in [
            ("127.0.0.1", true),
            ("10.0.0.1", true),
            ("100.64.0.1", true),
            ("[::1]", true),
            ("[fd00::1]", true),
            ("[::ffff:10.0.0.1]", true),
            ("169.254.169.254", false),
            ("[::ffff:169.254.169.254]", false),
            ("[fe80::a9fe:a9fe]", false),
            ("168.63.129.16", false),
            ("100.100.100.200", false),
            ("[::ffff:100.100.100.200]", false),
            ("[fd00:ec2::254]", false),
            ("[fd00:ec2::23]", false),
            ("[fd20:ce::254]", false),
            ("[fd00:c1::a9fe:a9fe]", false),
            ("[fd00:42::42]", false),
            ("[fd00:100::100:200]", false),
            ("[fd00:a9fe:a9fe::1]", false),
            ("[fd00:ec3::254]", true),
            ("0.0.0.0", false),
            ("[::]", false),
            ("224.0.0.1", false),
            ("[ff02::1]", false),
        ] {
            assert_eq!(guard.check(&upstream, &url(&format!("https://{host}/x")), false).is_ok(), passes, "{host}");
        }
    }

    #[test]
    fn where_no_registry_can_be_an_operators_url_tells_as_well() {
        for (host, never) in [
            ("169.254.169.254", true),
            ("2852039166", true),
            ("[fe80::1]:5000", true),
            ("[fd00:ec2::254]", true),
            ("100.100.100.200", true),
            ("0.0.0.0:5000", true),
            ("metadata.google.internal", true),
            ("METADATA", true),
            ("127.0.0.1:5000", false),
            ("10.0.0.1", false),
            ("[fd00::1]", false),
            ("registry.corp", false),
            ("registry.example", false),
        ] {
            assert_eq!(is_never(&url(&format!("http://{host}/v2/"))), never, "{host}");
        }
    }

    #[test]
    fn by_way_of_a_proxy_no_name_of_the_inside_is_asked_for() {
        let upstream = url("https://registry.corp");
        let guard = |allow_private| Guard::new(&upstream, allow_private, "http://proxy.example:3128").unwrap();
        for (host, passes, allowed) in [
            ("cdn.example", true, true),
            ("corp.example", true, true),
            ("mylocal.example", true, true),
            ("registry.corp", true, true),
            ("other.corp", false, true),
            ("auth", false, true),
            ("localhost", false, true),
            ("LOCALHOST.", false, true),
            ("a.b.local", false, true),
            ("vault.internal.", false, true),
            ("router.home.arpa", false, true),
            ("10.0.0.1", false, true),
            ("proxy.example", false, false),
            ("metadata", false, false),
            ("metadata.google.internal", false, false),
            ("Metadata.Google.Internal.", false, false),
            ("169.254.169.254", false, false),
        ] {
            let to = url(&format!("https://{host}/x"));
            assert_eq!(guard(false).check(&upstream, &to, true).is_ok(), passes, "{host}");
            assert_eq!(guard(true).check(&upstream, &to, true).is_ok(), allowed, "{host}, allowed");
            let direct = Guard::new(&upstream, false, "none").unwrap();
            assert!(
                direct.check(&upstream, &to, false).is_ok() || host.ends_with(|c: char| c.is_ascii_digit()),
                "its address tells"
            );
        }
    }

    #[test]
    fn the_upstreams_own_address_is_where_the_operator_put_it() {
        let upstream = url("http://127.0.0.1:5000");
        let guard = Guard::new(&upstream, false, "none").unwrap();
        assert!(guard.check(&upstream, &url("http://127.0.0.1:6000/x"), false).is_ok());
        assert!(guard.check(&upstream, &url("http://127.0.0.2:6000/x"), false).is_err());
    }

    #[test]
    fn https_never_becomes_http() {
        let upstream = url("https://registry.example");
        let guard = Guard::new(&upstream, true, "none").unwrap();
        assert!(matches!(guard.check(&upstream, &url("http://registry.example/x"), false), Err(Refused::Downgrade)));
        assert!(matches!(guard.check(&upstream, &url("file:///etc/passwd"), false), Err(Refused::Scheme)));
    }
}
