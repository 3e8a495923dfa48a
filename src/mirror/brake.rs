//! A brake on trying out passwords: each address may be wrong a number of times, and then as often as it takes to pay for it.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use moka::ops::compute::{CompResult, Op};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::clock::Timestamp;

use super::Refusal;

/// Until when each address pays for what it has tried.
pub struct Brake(Cache<IpAddr, Timestamp>);

/// An address pays so long for each login that was wrong, and may owe so much: thirty at once, then one each two seconds.
const PRICE: Duration = Duration::from_secs(2);
const CREDIT: Duration = Duration::from_mins(1);
/// How many addresses are remembered.
const REMEMBERED: u64 = 10_000;

// === impl Brake ===

impl Brake {
    /// Lets an address pay for a try beforehand, as many may come at once.
    ///
    /// # Errors
    /// It owes too much.
    pub fn charge(&self, from: IpAddr, now: Timestamp) -> Result<(), Refusal> {
        let charged = self.0.entry(block(from)).and_compute_with(|owed| {
            let owed = owed.map_or(now, |owed| owed.into_value().max(now));
            if owed + PRICE <= now + CREDIT { Op::Put(owed + PRICE) } else { Op::Nop }
        });
        match charged {
            CompResult::Unchanged(owed) => Err(Refusal::TooManyLogins { until: owed.into_value() + PRICE - CREDIT }),
            _ => Ok(()),
        }
    }

    /// It was no try at a password, or one that could not be made.
    pub fn refund(&self, from: IpAddr) {
        self.0.entry(block(from)).and_compute_with(|owed| owed.map_or(Op::Nop, |owed| Op::Put(owed.into_value() - PRICE)));
    }
}

impl Default for Brake {
    fn default() -> Self {
        Self(Cache::builder().eviction_policy(EvictionPolicy::lru()).max_capacity(REMEMBERED).build())
    }
}

/// All addresses that one client may have: a network of IPv6 is given to one.
#[must_use]
pub fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 64 << 64).into(),
        IpAddr::V4(v4) => v4.into(),
    }
}
