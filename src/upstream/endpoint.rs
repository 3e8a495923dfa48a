//! One address of an upstream: connections, tokens, and how it fares.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reqwest::Url;

use crate::clock::Clock;

use super::auth::{Auth, LoginKey};
use super::breaker::{self, Breaker};
use super::budget::Budget;
use super::client::Client;
use super::error::Error;
use super::options::Options;
use super::trust::Trust;

/// A place where the registry is to be had.
pub(super) struct Endpoint {
    pub(super) client: Arc<Client>,
    pub(super) auth: Auth,
    /// larder's credentials may be shown here.
    pub(super) trusted: bool,
    /// An address may answer and yet send no blob to its end. It is then asked after the others, and not left alone: it may be
    /// the fault of one blob.
    bodies: Breaker,
    /// By account.
    budgets: Vec<Mutex<Budget>>,
    /// Of clients who come with credentials of their own.
    clients: moka::sync::Cache<LoginKey, Arc<Mutex<Budget>>>,
    clock: Clock,
}

/// Budgets of clients that are remembered.
const REMEMBERED: u64 = 10_000;

// === impl Endpoint ===

impl Endpoint {
    pub(super) fn new(url: Url, options: &Options, trust: &Arc<Trust>, accounts: usize, clock: Clock) -> Result<Self, String> {
        let trusted = trust.permits(&url);
        let client = Arc::new(Client::new(url, options, trusted, clock.clone())?);
        let auth = Auth::new(Arc::clone(&client), Arc::clone(trust), clock.clone());
        let budgets = (0..accounts).map(|_| Mutex::default()).collect();
        // As long as can be, as a transfer waits before it is taken up again.
        let bodies = Breaker::new(breaker::LONGEST);
        let clients = moka::sync::Cache::new(REMEMBERED);
        Ok(Self { client, auth, trusted, bodies, budgets, clients, clock })
    }

    /// Whether others are to be asked for a blob before it.
    pub(super) fn breaks_off(&self) -> bool {
        self.bodies.admit(self.clock.now()).is_err()
    }

    /// A blob has come, or enough of it.
    pub(super) fn body_came(&self) {
        self.bodies.succeeded();
    }

    /// A blob has broken off.
    pub(super) fn body_broke(&self, why: &Error) {
        if self.bodies.failed(self.clock.now(), why) {
            tracing::warn!(host = %self.client.host(), %why, "blobs break off again and again; others are asked first for moments");
        }
    }

    /// Looks at, or changes, the budget of a login.
    pub(super) fn budget<T>(&self, login: LoginKey, look: impl FnOnce(&mut Budget) -> T) -> T {
        match login {
            LoginKey::Account(index) => look(&mut lock(&self.budgets[index])),
            LoginKey::Client(_) => look(&mut lock(&self.clients.get_with(login, Arc::default))),
        }
    }
}

fn lock(budget: &Mutex<Budget>) -> MutexGuard<'_, Budget> {
    budget.lock().unwrap_or_else(PoisonError::into_inner)
}
