//! larder's own accounts at an upstream: which one is used for which repository.

use reqwest::Url;

use crate::clock::Clock;
use crate::oci::{Pattern, RepositoryName};

use super::auth::{Login, LoginKey};
use super::credentials::{AccountOptions, Credential, Credentials};
use super::error::Error;

#[derive(Default)]
pub(super) struct Accounts(Vec<Account>);

pub(super) struct Account {
    /// The repositories it is for.
    patterns: Vec<Pattern>,
    /// `None`: nobody.
    credentials: Option<Credentials>,
}

// === impl Accounts ===

impl Accounts {
    /// The accounts in the order of their options.
    ///
    /// # Errors
    /// One line that says which option is wrong.
    pub(super) fn new(options: &[AccountOptions], name: &str, url: &Url, clock: &Clock) -> Result<Self, String> {
        let account = |options: &AccountOptions| {
            let patterns = options.repositories.clone();
            Ok(Account { patterns, credentials: Credentials::new(options, name, url, clock.clone())? })
        };
        options.iter().map(account).collect::<Result<_, String>>().map(Self)
    }

    /// Those for `repository`, in the order in which they are to be used: they are the ones whose pattern says most about it.
    pub(super) fn of(&self, repository: &RepositoryName) -> Vec<(usize, &Account)> {
        let weighed =
            || self.0.iter().enumerate().filter_map(|(index, account)| Some((account.weight(repository)?, index, account)));
        let most = weighed().map(|(weight, ..)| weight).max();
        weighed().filter(|(weight, ..)| Some(*weight) == most).map(|(_, index, account)| (index, account)).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Account> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
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

    pub(super) async fn login(&self, index: usize) -> Result<Login, Error> {
        let credential = match &self.credentials {
            Some(credentials) => credentials.get().await?,
            None => None,
        };
        Ok(Login { key: LoginKey::Account(index), credential })
    }

    /// The registry has refused this credential: another one, if by now there is another.
    pub(super) async fn renew(&self, refused: &Credential) -> Result<Option<Credential>, Error> {
        match &self.credentials {
            Some(credentials) => credentials.renew(refused).await,
            None => Ok(None),
        }
    }
}
