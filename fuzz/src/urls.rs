//! Addresses that a server chooses, against a second opinion on what is inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;

use crate::guard::Guard;

/// What IANA's registries of special addresses say is not of the open internet, and what leads there.
const INSIDE: [&str; 30] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "::ffff:127.0.0.0/104",
    "::ffff:10.0.0.0/104",
    "::ffff:169.254.0.0/112",
    "64:ff9b::127.0.0.0/104",
    "64:ff9b::10.0.0.0/104",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/32",
    "2001:db8::/32",
    "2002:7f00::/24",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];

/// Four bytes are an IPv4 address, sixteen an IPv6 one; all else is where a registry at a public address sends us.
pub(crate) fn guard(bytes: &[u8]) {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        judged(Ipv4Addr::from(octets).into());
    }
    if let Ok(octets) = <[u8; 16]>::try_from(bytes) {
        judged(Ipv6Addr::from(octets).into());
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    let upstream: Url = "https://registry.example/v2/".parse().expect("a URL");
    let guard = Guard::new(&upstream, false, "none").expect("a guard");
    let anyone = Guard::public_only();
    let Ok(to) = upstream.join(text) else { return };
    for guard in [&guard, &anyone] {
        if guard.check(&upstream, &to, false).is_err() {
            continue;
        }
        assert_eq!(to.scheme(), "https", "{to}");
        let host = to.host_str().expect("it was checked").trim_matches(['[', ']']);
        // What looks like an address to anybody has been judged as one.
        match host.parse::<IpAddr>() {
            Ok(address) => assert!(!is_inside(address), "{to}"),
            Err(_) => assert!(!is_number(host.strip_suffix('.').unwrap_or(host).rsplit('.').next().unwrap_or_default()), "{to}"),
        }
    }
}

/// As the last part of a host, it makes all of it an address of IPv4.
fn is_number(part: &str) -> bool {
    if part.is_empty() {
        return false;
    }
    let hex = part.strip_prefix("0x").or(part.strip_prefix("0X"));
    part.bytes().all(|byte| byte.is_ascii_digit()) || hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn judged(address: IpAddr) {
    let dialled = Guard::public_only().permits_resolved(address, "any.example", &[]);
    assert!(!(dialled && is_inside(address)), "{address}");
}

fn is_inside(address: IpAddr) -> bool {
    INSIDE.iter().any(|network| {
        let (base, bits) = network.split_once('/').expect("a network");
        let (base, bits): (IpAddr, u32) = (base.parse().expect("an address"), bits.parse().expect("a length"));
        match (base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => (u32::from(base) ^ u32::from(address)).leading_zeros() >= bits,
            (IpAddr::V6(base), IpAddr::V6(address)) => (u128::from(base) ^ u128::from(address)).leading_zeros() >= bits,
            _ => false,
        }
    })
}
