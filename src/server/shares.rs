//! What each client may take, by the address that it comes from, where the operator has set limits: connections, requests, bytes.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::allowance::{Allowance, Rate, Turn};
use crate::current::Current;
use crate::network::block;

use super::options::Options;

/// The most that one client may have. 0: any number.
#[derive(Debug, Clone, Copy, Default)]
struct Most {
    connections: usize,
    /// In a second.
    requests: u32,
    /// Of blobs, in a second.
    bytes: u64,
}

/// The accounts of clients. Clones share them.
#[derive(Clone)]
pub struct Shares {
    most: Arc<Current<Most>>,
    accounts: Cache<IpAddr, Arc<Account>>,
}

/// What one client has.
struct Account {
    connections: AtomicUsize,
    requests: Allowance,
    bytes: Arc<Rate>,
}

/// A connection counts for its client until this is dropped.
pub(super) struct Connected(Option<Arc<Account>>);

/// One answer's part in what its client may take.
pub(super) struct Share {
    turn: Turn<1>,
    /// Until then.
    wait: Pin<Box<Sleep>>,
}

/// Requests may come so far ahead of their time: clients ask for much at once, and then for nothing.
const REQUESTS_AHEAD: Duration = Duration::from_secs(10);
/// And bytes.
const BYTES_AHEAD: Duration = Duration::from_secs(1);
/// How many clients are remembered.
const REMEMBERED: u64 = 100_000;

// === impl Shares ===

impl Shares {
    /// With the limits that `options` sets.
    #[must_use]
    pub fn within(options: &Options) -> Self {
        Self::new(Most::of(options))
    }

    /// Without any.
    pub(super) fn unlimited() -> Self {
        Self::new(Most::default())
    }

    fn new(most: Most) -> Self {
        Self {
            most: Arc::new(Current::new(most)),
            accounts: Cache::builder().eviction_policy(EvictionPolicy::lru()).max_capacity(REMEMBERED).build(),
        }
    }

    /// Changes the limits for connections, requests and answers to come.
    pub fn set(&self, options: &Options) {
        self.most.set(Most::of(options));
    }

    fn account(&self, client: IpAddr) -> Arc<Account> {
        self.accounts.get_with(block(client), || Arc::new(Account::new()))
    }

    /// A place for one more connection of this client, unless it has all that it may have.
    pub(super) fn connect(&self, client: IpAddr) -> Option<Connected> {
        let most = self.most.get().connections;
        if most == 0 {
            return Some(Connected::uncounted());
        }
        let account = self.account(client);
        let taken = account.connections.fetch_add(1, Ordering::Relaxed);
        let connected = Connected(Some(account));
        (taken < most).then_some(connected)
    }

    /// Counts a request.
    ///
    /// # Errors
    /// It is one too many; the next may come after this time.
    pub(super) fn ask(&self, client: IpAddr) -> Result<(), Duration> {
        let most = self.most.get().requests;
        if most == 0 {
            return Ok(());
        }
        let each = Duration::from_secs(1) / most;
        self.account(client).requests.spend(each, REQUESTS_AHEAD, Instant::now())
    }

    /// For an answer, if there is a limit to what its client may take.
    pub(super) fn of(&self, client: IpAddr) -> Option<Share> {
        let rate = self.most.get().bytes;
        (rate > 0).then(|| {
            let account = self.account(client);
            account.bytes.set(rate);
            let turn = Turn::new([Arc::clone(&account.bytes)]);
            Share { wait: Box::pin(sleep_until(turn.at)), turn }
        })
    }
}

// === impl Account ===

impl Account {
    fn new() -> Self {
        Self { connections: AtomicUsize::new(0), requests: Allowance::default(), bytes: Arc::new(Rate::new(0, BYTES_AHEAD)) }
    }
}

// === impl Most ===

impl Most {
    fn of(options: &Options) -> Self {
        Self { connections: options.client_connections, requests: options.client_requests, bytes: options.client_rate.as_u64() }
    }
}

// === impl Connected ===

impl Connected {
    /// One of nobody's in particular.
    pub(super) fn uncounted() -> Self {
        Self(None)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.iter().for_each(|account| _ = account.connections.fetch_sub(1, Ordering::Relaxed));
    }
}

// === impl Share ===

impl Share {
    /// Waits until the next piece may go.
    pub(super) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.wait.as_mut().poll(cx)
    }

    /// A piece has gone, or is about to.
    pub(super) fn took(&mut self, bytes: usize) {
        self.turn.took(bytes);
        self.wait.as_mut().reset(self.turn.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn connections_are_counted_for_each_client_until_they_end() {
        let shares = Shares::new(Most { connections: 2, ..Most::default() });
        let first = shares.connect(CLIENT);
        let second = shares.connect(CLIENT);
        assert!(first.is_some() && second.is_some() && shares.connect(CLIENT).is_none());
        assert!(shares.connect("192.0.2.2".parse().unwrap()).is_some());
        drop(first);
        let third = shares.connect(CLIENT);
        assert!(third.is_some() && shares.connect(CLIENT).is_none());
        // A network of IPv6 is one client's.
        let [one, other] = ["2001:db8::1", "2001:db8::ffff:1"].map(|address| address.parse().unwrap());
        let _held = [shares.connect(one), shares.connect(other)];
        assert!(shares.connect(one).is_none());
    }
}
