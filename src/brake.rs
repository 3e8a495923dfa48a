//! A brake on trying out passwords: each address may be wrong a number of times, and then as often as it takes to pay for it.

use std::net::IpAddr;
use std::time::Duration;

use moka::ops::compute::{CompResult, Op};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::clock::Timestamp;
use crate::network::{SIZES, network, sizes};

/// Until when each network pays for what was tried from it.
pub(crate) struct Brake(Cache<Network, Timestamp>);

/// Its first address, and how many bits all its addresses share.
type Network = (IpAddr, u8);

/// An address pays so long for each login that was wrong, and may owe so much: thirty at once, then one each two seconds.
const PRICE: Duration = Duration::from_secs(2);
const CREDIT: Duration = Duration::from_mins(1);
/// The larger networks, of the [`SIZES`] that one client may have, have so many times the credit, all that is in them together. The largest
/// is asked first: who is refused there leaves no trace of the smaller ones, with which it could make the larger be forgotten.
/// What a try costs it is a whole number of milliseconds, as time is counted.
const LARGER: [u32; 3] = [50, 8, 1];
/// How many networks are remembered.
const REMEMBERED: u64 = 30_000;

// === impl Brake ===

impl Brake {
    /// Whether an address may try.
    ///
    /// # Errors
    /// It owes too much; it may try again at this time.
    pub(crate) fn check(&self, from: IpAddr, now: Timestamp) -> Result<(), Timestamp> {
        for (network, price) in networks(from) {
            let owed = self.0.get(&network).unwrap_or(now).max(now);
            if owed + price > now + CREDIT {
                return Err(owed + price - CREDIT);
            }
        }
        Ok(())
    }

    /// Lets an address pay for a try beforehand, as many may come at once.
    ///
    /// # Errors
    /// See [`check`](Self::check).
    pub(crate) fn charge(&self, from: IpAddr, now: Timestamp) -> Result<(), Timestamp> {
        for (paid, (network, price)) in networks(from).enumerate() {
            let charged = self.0.entry(network).and_compute_with(|owed| {
                let owed = owed.map_or(now, |owed| owed.into_value().max(now));
                if owed + price <= now + CREDIT { Op::Put(owed + price) } else { Op::Nop }
            });
            if let CompResult::Unchanged(owed) = charged {
                self.repay(networks(from).take(paid));
                return Err(owed.into_value() + price - CREDIT);
            }
        }
        Ok(())
    }

    /// It was no try at a password, or one that could not be made.
    pub(crate) fn refund(&self, from: IpAddr) {
        self.repay(networks(from));
    }

    fn repay(&self, charged: impl Iterator<Item = (Network, Duration)>) {
        for (network, price) in charged {
            self.0.entry(network).and_compute_with(|owed| owed.map_or(Op::Nop, |owed| Op::Put(owed.into_value() - price)));
        }
    }
}

impl Default for Brake {
    fn default() -> Self {
        Self(Cache::builder().eviction_policy(EvictionPolicy::lru()).max_capacity(REMEMBERED).build())
    }
}

/// All that an address is in, and what a try costs each.
fn networks(address: IpAddr) -> impl Iterator<Item = (Network, Duration)> {
    let all = SIZES.into_iter().zip(LARGER).filter(move |(size, _)| sizes(address).contains(size));
    all.map(move |(size, times)| ((network(address, size), size), PRICE / times))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_millis(1_000_000_000);

    /// How many of so many tries are let through, each from the next of these addresses.
    fn heard(brake: &Brake, tries: u64, address: impl Fn(u64) -> String) -> usize {
        (0..tries).filter(|n| brake.charge(address(*n).parse().unwrap(), NOW).is_ok()).count()
    }

    #[test]
    fn thirty_are_heard_of_an_address_and_of_larger_networks_of_ipv6_several_times_as_many() {
        let brake = Brake::default();
        assert_eq!(heard(&brake, 100, |_| "192.0.2.1".into()), 30);
        assert_eq!(heard(&brake, 100, |_| "::ffff:192.0.2.1".into()), 0);
        assert_eq!(heard(&brake, 100, |n| format!("2001:db8:0:1::{n}")), 30, "one block");
        assert_eq!(heard(&brake, 1_000, |n| format!("2001:db8:1:{:x}::1", n % 256)), 240, "one /56");
        // All blocks of a /48, one after the other, so that the first is forgotten when its turn comes again.
        assert_eq!(heard(&brake, 140_000, |n| format!("2001:db8:2:{:x}::1", n % 65_536)), 1_500, "one /48");
        assert_eq!(heard(&brake, 10, |_| "2001:db8:3::1".into()), 10, "others are not slowed down");
    }

    #[test]
    fn who_owes_too_much_is_told_when_it_may_try_again_and_who_is_refunded_owes_nothing() {
        let (brake, from) = (Brake::default(), "2001:db8::1".parse().unwrap());
        for _ in 0..100 {
            brake.charge(from, NOW).unwrap();
            brake.refund(from);
        }
        assert_eq!(heard(&brake, 30, |_| "2001:db8::1".into()), 30);
        assert_eq!(brake.check(from, NOW), Err(NOW + PRICE));
        assert_eq!(brake.charge(from, NOW), Err(NOW + PRICE));
        assert_eq!(brake.check(from, NOW + PRICE), Ok(()));
    }
}
