//! Clients that come through proxies: whom these say that they speak for, and which of them are believed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use http::HeaderMap;
use http::header::HeaderName;
use serde::{Deserialize, Serialize};

use super::door::Peer;

/// Addresses of proxies: `10.0.0.0/8`, `192.0.2.7`, or `unix` for who comes by a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Network {
    Net { address: IpAddr, prefix: u8 },
    Unix,
}

/// Why a text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network such as 10.0.0.0/8, 192.0.2.7 or unix")]
pub struct InvalidNetwork(String);

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// For whom a request is made that came from `peer`. Of the addresses that proxies have added at the end, each is as good as the
/// one who has added it: what stands before the first that is none of `proxies` may be anyone's invention.
pub(super) fn client(peer: Peer, headers: &HeaderMap, proxies: &[Network]) -> Peer {
    // Every request asks, and most larders have no proxies.
    if proxies.is_empty() {
        return peer;
    }
    let trusted = |peer: Peer| proxies.iter().any(|network| network.has(peer));
    let mut client = peer;
    for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        let Ok(value) = value.to_str() else { return client };
        for said in value.rsplit(',') {
            if !trusted(client) {
                return client;
            }
            let Some(address) = address(said.trim()) else { return client };
            client = Peer::Behind(address);
        }
    }
    client
}

/// An address as proxies write it: some with a port.
fn address(text: &str) -> Option<IpAddr> {
    let alone = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    alone.parse().ok().or_else(|| text.parse().map(|address: SocketAddr| address.ip()).ok())
}

// === impl Network ===

impl Network {
    /// Whether it has more addresses than one keeps for proxies.
    pub(super) fn is_wide(&self) -> bool {
        match self {
            Self::Unix => false,
            Self::Net { address: IpAddr::V4(address), prefix } => *prefix < 24 && !(address.is_loopback() && *prefix >= 8),
            Self::Net { address: IpAddr::V6(_), prefix } => *prefix < 64,
        }
    }

    pub(super) fn has(&self, peer: Peer) -> bool {
        let address = match (self, peer) {
            (Self::Unix, Peer::Local) => return true,
            (Self::Unix, _) | (_, Peer::Local) => return false,
            (_, Peer::Net(address)) => address.ip(),
            (_, Peer::Behind(address)) => address,
        };
        let Self::Net { address: network, prefix } = self else { return false };
        match (network, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                same(u128::from(network.to_bits()) << 96, u128::from(address.to_bits()) << 96, *prefix)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => same(network.to_bits(), address.to_bits(), *prefix),
            _ => false,
        }
    }
}

/// Whether two addresses begin with the same bits.
fn same(one: u128, other: u128, bits: u8) -> bool {
    (one ^ other).leading_zeros() >= u32::from(bits)
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        if text == "unix" {
            return Ok(Self::Unix);
        }
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| InvalidNetwork(text.into()))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(most), str::parse).ok().filter(|prefix| *prefix <= most);
        Ok(Self::Net { address, prefix: prefix.ok_or_else(|| InvalidNetwork(text.into()))? })
    }
}

impl TryFrom<String> for Network {
    type Error = InvalidNetwork;

    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net { address, prefix } => write!(f, "{address}/{prefix}"),
            Self::Unix => f.write_str("unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Peer {
        text.parse().map_or(Peer::Local, Peer::Net)
    }

    fn found(from: &str, headers: &[&str], proxies: &[&str]) -> String {
        let proxies: Vec<Network> = proxies.iter().map(|network| network.parse().unwrap()).collect();
        let mut map = HeaderMap::new();
        headers.iter().for_each(|value| _ = map.append(X_FORWARDED_FOR, value.parse().unwrap()));
        client(peer(from), &map, &proxies).to_string()
    }

    #[test]
    fn only_what_trusted_proxies_have_added_is_believed() {
        let near = ["10.0.0.0/8", "unix", "2001:db8::/32"];
        for (from, headers, expected) in [
            ("192.0.2.1:5", &["198.51.100.1"][..], "192.0.2.1:5"),
            ("10.0.0.1:5", &[], "10.0.0.1:5"),
            ("10.0.0.1:5", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1:5", &["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1:5", &["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1:5", &["1.1.1.1, 198.51.100.1,10.9.9.9 , 10.0.0.2"], "198.51.100.1"),
            ("10.0.0.1:5", &["198.51.100.1:4711"], "198.51.100.1"),
            ("10.0.0.1:5", &["[2001:db9::1]:80"], "2001:db9::1"),
            ("10.0.0.1:5", &["[2001:db9::1]"], "2001:db9::1"),
            ("10.0.0.1:5", &["198.51.100.1, unknown"], "10.0.0.1:5"),
            ("10.0.0.1:5", &["198.51.100.1, "], "10.0.0.1:5"),
            ("10.0.0.1:5", &["nonsense, 10.0.0.7"], "10.0.0.7"),
            ("[::ffff:10.0.0.1]:5", &["198.51.100.1"], "198.51.100.1"),
            ("[2001:db8::7]:5", &["198.51.100.1"], "198.51.100.1"),
            ("[2001:db9::7]:5", &["198.51.100.1"], "[2001:db9::7]:5"),
            ("unix", &["198.51.100.1"], "198.51.100.1"),
        ] {
            assert_eq!(found(from, headers, &near), expected, "{from} {headers:?}");
            if !headers.is_empty() {
                assert_eq!(found(from, headers, &[]), peer(from).to_string(), "where nobody is trusted");
            }
        }
    }

    #[test]
    fn a_network_has_its_addresses_and_no_others() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255:1", "11.0.0.0:1"),
            ("192.0.2.7", "192.0.2.7:1", "192.0.2.6:1"),
            ("192.0.2.7/31", "192.0.2.6:1", "192.0.2.8:1"),
            ("0.0.0.0/0", "255.1.2.3:1", "[::1]:1"),
            ("::/0", "[::1]:1", "10.0.0.1:1"),
            ("2001:db8::/33", "[2001:db8:7fff::]:1", "[2001:db8:8000::]:1"),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert!(parsed.has(peer(inside)) && !parsed.has(peer(outside)) && !parsed.has(Peer::Local), "{network}");
        }
        for text in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/", "10.0.0.0/-1", "any", "UNIX"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
