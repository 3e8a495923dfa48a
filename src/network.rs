//! Which addresses one client may have.

use std::net::{IpAddr, Ipv6Addr};

/// How many bits the addresses of a network of IPv6 have in common, the largest first. One of the smallest is given to one client, but
/// who gets larger ones has any number of those.
pub(crate) const SIZES: [u8; 3] = [48, 56, SMALLEST];
pub(crate) const SMALLEST: u8 = 64;

/// All who are in one network, of one of the [`SIZES`], by the first of its addresses. `None`: who has none.
pub(crate) type Crowd = (Option<IpAddr>, u8);

/// The first address of the network that an address is in. Of IPv4 each is by itself.
#[must_use]
pub(crate) fn network(address: IpAddr, bits: u8) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let rest = 128 - u32::from(bits);
            Ipv6Addr::from(v6.to_bits() >> rest << rest).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The first of all addresses that one client may have.
#[must_use]
pub(crate) fn block(address: IpAddr) -> IpAddr {
    network(address, SMALLEST)
}

/// Those of the [`SIZES`] that make a difference for an address, the largest first.
#[must_use]
pub(crate) fn sizes(address: IpAddr) -> &'static [u8] {
    if address.to_canonical().is_ipv6() { &SIZES } else { &[SMALLEST] }
}

/// The crowd of this size that one is of.
#[must_use]
pub(crate) fn crowd(who: Option<IpAddr>, size: u8) -> Crowd {
    (who.map(|address| network(address, size)), size)
}
