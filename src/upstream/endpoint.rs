//! One address of an upstream: connections, tokens, and how it fares.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::Url;

use crate::clock::{Clock, Timestamp};
use crate::current::Current;
use crate::oci::Digest;

use super::LeftAlone;
use super::accounts::{Account, Accounts};
use super::auth::{Auth, LoginKey};
use super::budget::{Budget, Purpose};
use super::client::Client;
use super::counts::Counts;
use super::error::Error;
use super::gate::{Failure, Gate, LONGEST, Seldom};
use super::options::Options;
use super::rate_limits::RateLimits;
use super::resolver::Resolver;
use super::trust::Trust;

/// A place where the registry is to be had.
pub(super) struct Endpoint {
    pub(super) client: Arc<Client>,
    pub(super) auth: Auth,
    /// larder's credentials may be shown here.
    pub(super) trusted: bool,
    /// An address may answer and yet send no blob to its end. It is then asked after the others, and not left alone: it may be
    /// the fault of one blob.
    bodies: Mutex<Gate>,
    /// An address that another has outrun by far is likewise asked after that one for moments.
    starts: Mutex<Gate>,
    /// Of those on the way to an answer: `/v2/`, and whoever the registry sends on to.
    pub(super) rate_limits: RateLimits<LoginKey>,
    /// Blobs of which it has given wrong bytes, and until when others are asked for them first.
    wrong: moka::sync::Cache<Digest, Timestamp>,
    warned: Seldom,
    /// By the numbers of accounts.
    budgets: Current<BTreeMap<usize, Arc<Mutex<Budget>>>>,
    /// Of clients who come with credentials of their own.
    clients: moka::sync::Cache<LoginKey, Arc<Mutex<Budget>>>,
    clock: Clock,
}

/// Budgets of clients that are remembered, and blobs that were wrong.
const REMEMBERED: u64 = 10_000;
/// For how long it is remembered that the bytes of a blob were wrong.
const WRONG: Duration = Duration::from_mins(1);

// === impl Endpoint ===

impl Endpoint {
    pub(super) fn new(
        url: Url,
        options: &Options,
        trust: &Arc<Trust>,
        accounts: &Accounts,
        resolver: Resolver,
        clock: Clock,
        counts: Counts,
    ) -> Result<Self, String> {
        let trusted = trust.permits(&url);
        let client = Arc::new(Client::new(url, options, trusted, resolver, clock.clone(), counts)?);
        let auth = Auth::new(Arc::clone(&client), Arc::clone(trust), clock.clone());
        let (bodies, starts, rate_limits) = (Mutex::default(), Mutex::default(), RateLimits::default());
        let (wrong, clients) = (moka::sync::Cache::new(REMEMBERED), moka::sync::Cache::new(REMEMBERED));
        let (warned, budgets) = (Seldom::default(), Current::default());
        let endpoint = Self { client, auth, trusted, bodies, starts, rate_limits, wrong, warned, budgets, clients, clock };
        endpoint.set_accounts(accounts);
        Ok(endpoint)
    }

    /// Counts for these accounts from now on; those that it knows go on with what they have left.
    pub(super) fn set_accounts(&self, accounts: &Accounts) {
        let before = self.budgets.get();
        let budget = |account: &Arc<Account>| (account.number, before.get(&account.number).cloned().unwrap_or_default());
        self.budgets.set(accounts.iter().map(budget).collect());
    }

    /// Whether others are to be asked before it: for the bytes of this blob, or for anything else.
    pub(super) fn is_second_choice(&self, blob: Option<&Digest>) -> bool {
        let now = self.clock.now();
        let for_blob = |digest| lock(&self.bodies).admit(now).is_err() || self.gave_wrong(digest);
        lock(&self.starts).admit(now).is_err() || blob.is_some_and(for_blob)
    }

    /// It has begun to answer.
    pub(super) fn answered(&self) {
        *lock(&self.starts) = Gate::default();
    }

    /// Another has answered what it was asked long before.
    pub(super) fn was_outrun(&self) {
        let why = Error::timed_out("another answered before it");
        lock(&self.starts).failed(self.clock.now(), &why, Failure::Silent, LONGEST);
    }

    /// A blob has come, or enough of it.
    pub(super) fn body_came(&self) {
        *lock(&self.bodies) = Gate::default();
    }

    /// A blob has broken off.
    pub(super) fn body_broke(&self, why: &Error) {
        let now = self.clock.now();
        // To wait once more until it falls silent is too much.
        let failure = if matches!(why, Error::Unavailable { timed_out: true, .. }) { Failure::Silent } else { Failure::Any };
        // As long as can be, as a transfer waits before it is taken up again.
        if lock(&self.bodies).failed(now, why, failure, LONGEST) && self.warned.is_due(now) {
            tracing::warn!(host = %self.client.host(), %why, "blobs break off; others are asked first for moments");
        }
    }

    /// Whether it has lately given wrong bytes of this blob.
    pub(super) fn gave_wrong(&self, digest: &Digest) -> bool {
        self.wrong.get(digest).is_some_and(|until| self.clock.now() < until)
    }

    pub(super) fn gave_wrong_bytes(&self, digest: &Digest) {
        self.wrong.insert(digest.clone(), self.clock.now() + WRONG);
    }

    /// For how long it is left alone after `now`: as it does not answer, or lets no account ask.
    pub(super) fn cool_down(&self, now: Timestamp) -> Duration {
        let budgets = self.budgets.get();
        let limited = budgets.iter().map(|(account, budget)| {
            let elsewhere = self.rate_limits.for_everyone(now, &LoginKey::Account(*account));
            lock(budget).admit(Purpose::Blob, now).err().max(elsewhere).unwrap_or_default()
        });
        limited.min().max(self.client.left_alone(now).map(|(until, _)| until)).unwrap_or_default().since(now)
    }

    /// Until when that is, and why.
    pub(super) fn left_alone(&self, now: Timestamp) -> Option<LeftAlone> {
        let until = now + self.cool_down(now);
        let why = self
            .client
            .left_alone(now)
            .map_or_else(|| "it limits the rate of requests".to_owned(), |(_, error)| error.to_string());
        (until > now).then_some(LeftAlone { until, why })
    }

    /// Looks at, or changes, the budget of a login.
    pub(super) fn budget<T>(&self, login: LoginKey, look: impl FnOnce(&mut Budget) -> T) -> T {
        match login {
            // One that is gone may still be asking.
            LoginKey::Account(number) => look(&mut lock(&self.budgets.get().get(&number).cloned().unwrap_or_default())),
            LoginKey::Client(_) => look(&mut lock(&self.clients.get_with(login, Arc::default))),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
