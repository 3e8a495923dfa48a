//! larder's own accounts at an upstream: which one is used for which repository.

use std::sync::Arc;

use reqwest::Url;

use crate::clock::Clock;
use crate::oci::{Pattern, RepositoryName};

use super::auth::{Login, LoginKey};
use super::credentials::{AccountOptions, Credential, Credentials};
use super::error::Error;
use super::options::Options;

#[derive(Default)]
pub struct Accounts {
    all: Vec<Arc<Account>>,
    /// One of them is somebody, or larder shows a certificate.
    pub(super) have_credentials: bool,
    /// The number of the next new one.
    next: usize,
}

pub(super) struct Account {
    /// Tells it apart from all others that this upstream has had.
    pub(super) number: usize,
    options: AccountOptions,
    /// The repositories it is for.
    patterns: Vec<Pattern>,
    /// `None`: nobody.
    credentials: Option<Credentials>,
}

// === impl Accounts ===

impl Accounts {
    /// The accounts in the order of their options. Those that were there `before` stay who they are: with what is known of their
    /// passwords, tokens and budgets.
    ///
    /// # Errors
    /// One line that says which option is wrong.
    pub(super) fn of_options(before: &Self, options: &Options, name: &str, url: &Url, clock: &Clock) -> Result<Self, String> {
        let mut known = before.all.clone();
        let mut accounts = Self { all: Vec::new(), have_credentials: options.has_credentials(), next: before.next };
        for options in options.accounts() {
            let account = if let Some(at) = known.iter().position(|account| account.options == options) {
                known.remove(at)
            } else {
                let credentials = Credentials::new(&options, name, url, clock.clone())?;
                let (number, patterns) = (accounts.next, options.repositories.clone());
                accounts.next += 1;
                Arc::new(Account { number, options, patterns, credentials })
            };
            accounts.all.push(account);
        }
        Ok(accounts)
    }

    /// Those for `repository`, in the order in which they are to be used: they are the ones whose pattern says most about it.
    pub(super) fn of(&self, repository: &RepositoryName) -> Vec<Arc<Account>> {
        let weighed = || self.all.iter().filter_map(|account| Some((account.weight(repository)?, account)));
        let most = weighed().map(|(weight, _)| weight).max();
        weighed().filter(|(weight, _)| Some(*weight) == most).map(|(_, account)| Arc::clone(account)).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Account>> {
        self.all.iter()
    }
}

// === impl Account ===

impl Account {
    /// How much of the repository's name the account's patterns pin down; `None` if it is not for it.
    fn weight(&self, repository: &RepositoryName) -> Option<usize> {
        if self.patterns.is_empty() {
            return Some(0);
        }
        self.patterns.iter().filter(|pattern| pattern.matches(repository.as_str())).map(|pattern| pattern.weight() + 1).max()
    }

    /// A name to be shown.
    pub(super) fn label(&self) -> String {
        self.credentials.as_ref().map_or_else(|| "anonymous".into(), |credentials| credentials.label().to_owned())
    }

    pub(super) fn key(&self) -> LoginKey {
        LoginKey::Account(self.number)
    }

    pub(super) async fn login(&self) -> Result<Login, Error> {
        let credential = match &self.credentials {
            Some(credentials) => credentials.get().await?,
            None => None,
        };
        Ok(Login { key: self.key(), credential })
    }

    /// The registry has refused this credential: another one, if by now there is another.
    pub(super) async fn renew(&self, refused: &Credential) -> Result<Option<Credential>, Error> {
        match &self.credentials {
            Some(credentials) => credentials.renew(refused).await,
            None => Ok(None),
        }
    }
}
