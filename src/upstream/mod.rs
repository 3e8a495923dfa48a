//! One registry as larder asks it: who we are to it, where it sends us, how long we wait, when it wants to be left alone.
//!
//! Floor 1. Nothing here knows of the store or of clients. A question goes downward: `request` words it, `in_turn` chooses the
//! address (`endpoint`), `send` the account (`accounts`), `auth` gets the `token`, `client` carries it where the `guard` lets it.

mod accounts;
mod auth;
mod behalf;
mod body;
mod breaker;
mod budget;
mod cache_status;
mod challenge;
mod client;
mod counts;
mod credentials;
mod endpoint;
mod error;
mod found;
mod gate;
mod guard;
mod headers;
mod hop;
mod in_turn;
#[cfg(debug_assertions)]
mod names;
mod options;
mod pace;
mod pause;
pub(crate) mod pem;
mod ping;
mod places;
mod proxied;
mod public_url;
mod quota;
mod rate_limits;
mod request;
mod resolver;
mod send;
mod tls;
mod token;
mod trust;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reqwest::Url;

use crate::clock::{Clock, Timestamp};
use crate::current::Current;
use crate::metrics::Metrics;
use crate::oci::RepositoryName;

use accounts::Account;
use auth::{Login, LoginKey};
use counts::Counts;
use endpoint::Endpoint;
use pace::Limits;
use places::Places;
use quota::Quota;
use resolver::Resolver;
use trust::Trust;

pub use crate::allowance::Rate;
pub use crate::room::{Askers, Company, Presence, Who};
pub use accounts::Accounts;
pub use behalf::{Behalf, ClientCredential, CredentialKey};
pub use body::{Body, Source};
pub use budget::BudgetReport;
pub use cache_status::CacheStatus;
pub use counts::PUBLIC;
pub use credentials::AccountOptions;
pub use error::Error;
pub use found::{Found, Speaks};
pub use hop::{Astray, Hop};
#[cfg(debug_assertions)]
pub use names::Names;
pub use options::{AuthMode, DOCKER_HUB, Options, WELL_KNOWN};
pub use pause::pause;
pub use ping::Ping;
pub use places::Aside;
pub use public_url::{PublicUrl, is_loopback};
pub use quota::Spent;
pub use request::{Asking, BlobAnswer, ManifestAnswer, ReferrersAnswer, Span, TagsAnswer};
pub use send::Shortcut;
pub(crate) use tls::for_others as tls;

/// A registry. Offline is a kind of upstream: it is there and answers nothing.
pub struct Upstream {
    name: Arc<str>,
    /// Who we are in `Via`.
    hop: Option<Hop>,
    /// In the order in which they are asked; none if it is offline.
    endpoints: Vec<Arc<Endpoint>>,
    accounts: Current<Accounts>,
    quota: Arc<Quota>,
    /// Its own, and that of all upstreams together.
    rates: [Arc<Rate>; 2],
    /// It was found to refuse HEAD of blobs, and to give their bytes.
    refuses_blob_head: AtomicBool,
    places: Arc<Places>,
    hedge_after: Duration,
    limits: Limits,
    clock: Clock,
    counts: Counts,
}

/// With less, a piece would be waited for longer than a client waits.
pub const LEAST_RATE: u64 = 64 << 10;
/// So much of blobs may come at once after a time in which less has come.
const AHEAD: Duration = Duration::from_millis(500);

/// What all registries have in common that nobody has configured: clients may name any number of them, and all together are asked no
/// more at a time than one that is configured.
#[derive(Clone)]
pub struct Commons {
    places: Arc<Places>,
    resolver: Resolver,
}

/// An upstream is not asked before this, for this reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftAlone {
    pub until: Timestamp,
    pub why: String,
}

// === impl Upstream ===

impl Upstream {
    /// # Errors
    /// One line that says which option is wrong.
    pub fn new(name: &str, options: &Options, hop: Hop, clock: Clock, metrics: Metrics) -> Result<Self, String> {
        let counts = if options.public_only { Counts::of_public(metrics) } else { Counts::new(metrics, name.into()) };
        Self::with(name, options, hop, &Commons::new(options, &clock, &counts), clock, counts)
    }

    /// The registry of this name, which a client has named.
    ///
    /// # Errors
    /// One line that says why there is none of this name.
    pub fn of_public(name: &str, hop: Hop, commons: &Commons, clock: Clock, metrics: Metrics) -> Result<Self, String> {
        Self::with(name, &Options::of_public(name), hop, commons, clock, Counts::of_public(metrics))
    }

    fn with(name: &str, options: &Options, hop: Hop, commons: &Commons, clock: Clock, counts: Counts) -> Result<Self, String> {
        let wrong = |what: String| format!("upstream.\"{name}\".{what}");
        let url = parse("url", &options.url).map_err(wrong)?;
        let mut urls = vec![url.clone()];
        for fallback in &options.fallbacks {
            urls.push(parse("fallbacks", fallback).map_err(wrong)?);
        }
        let accounts = Accounts::of_options(&Accounts::default(), options, name, &url, &clock).map_err(wrong)?;
        let trust = Arc::new(Trust::new(url, options.token_hosts.clone()));
        let name: Arc<str> = name.into();
        let endpoint = |url| {
            let resolver = commons.resolver.clone();
            Endpoint::new(url, options, &trust, &accounts, resolver, clock.clone(), counts.clone()).map(Arc::new)
        };
        let endpoints = urls.into_iter().map(endpoint).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        let quota = Arc::new(Quota::new(options.byte_quota.as_u64(), options.byte_quota_window));
        if options.max_transfers == 0 {
            return Err(wrong("max_transfers must be at least 1".into()));
        }
        if (1..LEAST_RATE).contains(&options.max_rate.as_u64()) {
            return Err(wrong(format!("max_rate is {}; it must be 0B or at least 64KiB", options.max_rate)));
        }
        Ok(Self {
            name,
            hop: Some(hop),
            endpoints,
            accounts: Current::new(accounts),
            quota,
            rates: [rate(options.max_rate.as_u64()), rate(0)],
            refuses_blob_head: AtomicBool::new(false),
            places: Arc::clone(&commons.places),
            hedge_after: options.hedge_after,
            limits: Limits::of(options),
            clock,
            counts,
        })
    }

    /// An upstream that is never asked.
    #[must_use]
    pub fn offline(name: &str, clock: Clock) -> Self {
        Self {
            name: name.into(),
            hop: None,
            endpoints: Vec::new(),
            accounts: Current::default(),
            quota: Arc::new(Quota::new(0, Duration::ZERO)),
            rates: [rate(0), rate(0)],
            refuses_blob_head: AtomicBool::new(false),
            places: Arc::new(Places::new(1, Duration::ZERO)),
            hedge_after: Duration::ZERO,
            limits: Limits::of(&Options::default()),
            clock,
            counts: Counts::new(Metrics::new(), name.into()),
        }
    }

    /// The same, which with all others that are given it keeps within `all`.
    #[must_use]
    pub fn within(mut self, all: &Arc<Rate>) -> Self {
        self.rates[1] = Arc::clone(all);
        self
    }

    /// Changes how many bytes may come from it in a second, and from all upstreams together; 0: any number.
    pub fn set_max_rates(&self, its_own: u64, all: u64) {
        self.rates[0].set(its_own);
        self.rates[1].set(all);
    }

    /// Counts that what came of it did not hash to its digest.
    pub fn note_mismatch(&self) {
        self.counts.mismatched();
    }

    /// Whether as much comes from it as may: what comes slowly then, would not come faster by another connection.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.rates.iter().any(|rate| rate.is_used_up())
    }

    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// larder shows credentials of its own there, so that what it can read is perhaps not for everyone.
    #[must_use]
    pub fn has_credentials(&self) -> bool {
        self.accounts.get().have_credentials
    }

    /// The accounts that `options` name, for [`Upstream::set_accounts`].
    ///
    /// # Errors
    /// One line that says which option is wrong.
    pub fn accounts_of(&self, options: &Options) -> Result<Accounts, String> {
        let accounts = parse("url", &options.url)
            .and_then(|url| Accounts::of_options(&self.accounts.get(), options, &self.name, &url, &self.clock));
        accounts.map_err(|what| format!("upstream.\"{}\".{what}", self.name))
    }

    /// From now on it is asked as these. What is under way ends as whom it began.
    pub fn set_accounts(&self, accounts: Accounts) {
        self.endpoints.iter().for_each(|endpoint| endpoint.set_accounts(&accounts));
        self.accounts.set(accounts);
    }

    /// Whether a client's credential is known there, whatever it may read. `from`: the address that the client comes from.
    ///
    /// # Errors
    /// See [`Error`]: the credential was shown to nobody, so that nothing was said of it. What is said of it is an error as well, unless
    /// it is known: [`Error::Credentials`] if it is not.
    pub async fn check_login(&self, client: &ClientCredential, from: IpAddr) -> Result<Result<(), Error>, Error> {
        let endpoints = self.endpoints()?;
        let askers = Askers::from(from);
        let place = self.place(&askers, false).await?;
        let login = Login::of(client);
        let mut said = Err(Error::Offline);
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.trusted) {
            said = endpoint.auth.check(&login, &askers).await;
            if !matches!(said.clone().flatten(), Err(Error::Unavailable { .. } | Error::LeftAlone(_))) {
                break;
            }
        }
        if !matches!(said, Ok(Ok(()))) {
            place.rest();
        }
        said
    }

    /// Lets the next question for `repository` on behalf of this client be asked with a new token, so that the answer is of
    /// what the client may do now, and not when the token was made. One made within the last second is new.
    pub fn forget_token(&self, client: &ClientCredential, repository: &RepositoryName) {
        let (login, age) = (LoginKey::Client(client.key()), Duration::from_secs(1));
        self.endpoints.iter().for_each(|endpoint| endpoint.auth.forget(login, repository, age));
    }

    /// How much of the budget for pulls is left for `repository`, of 1: that of the account that has most of it. `None` where
    /// nothing is counted, or nothing has been told yet.
    #[must_use]
    pub fn budget_share(&self, repository: &RepositoryName) -> Option<f64> {
        let endpoint = self.endpoints.first()?;
        let now = self.clock.now();
        let share = |account: Arc<Account>| endpoint.budget(account.key(), |budget| budget.share(now));
        // One account that is not counted is enough for everything.
        let shares: Option<Vec<f64>> = self.accounts.get().of(repository).into_iter().map(share).collect();
        shares?.into_iter().reduce(f64::max)
    }

    /// What each account has left, where that is counted.
    #[must_use]
    pub fn budgets(&self) -> Vec<BudgetReport> {
        let now = self.clock.now();
        let report = |endpoint: &Arc<Endpoint>| {
            let accounts = self.accounts.get();
            let report = |account: &Arc<Account>| endpoint.budget(account.key(), |budget| budget.report(account.label(), now));
            accounts.iter().filter_map(report).collect::<Vec<_>>()
        };
        self.endpoints.first().map(report).unwrap_or_default()
    }

    /// For how long it is left alone: its own address does not answer, or lets no account ask.
    #[must_use]
    pub fn cool_down(&self) -> Duration {
        let now = self.clock.now();
        self.endpoints.first().map(|endpoint| endpoint.cool_down(now)).unwrap_or_default()
    }

    /// Until when that is, and why; `None`: it is asked as usual.
    #[must_use]
    pub fn left_alone(&self) -> Option<LeftAlone> {
        self.endpoints.first()?.left_alone(self.clock.now())
    }

    /// What has been spent of the byte quota; `None` where there is none.
    #[must_use]
    pub fn spent(&self) -> Option<Spent> {
        self.quota.spent()
    }

    /// Goes on from what was spent of the byte quota before.
    pub fn resume_spent(&self, spent: Spent) {
        self.quota.resume(spent);
    }

    /// The right to fetch a blob at the pace of those who read it. Who has many such gives up one for who has fewer.
    ///
    /// # Errors
    /// [`Error::Busy`] if enough are fetched so by others who have no more of them, [`Error::Left`] if no asker is there any more.
    pub fn aside(&self, behalf: &Behalf) -> Result<Aside, Error> {
        self.places.take_aside(&behalf.askers)
    }

    /// Likewise, and waits for it as one waits for a place. Who does has no place meanwhile.
    ///
    /// Cancel safe, but who cancels has waited in vain.
    ///
    /// # Errors
    /// As [`aside`](Self::aside).
    pub async fn aside_in_turn(&self, behalf: &Behalf) -> Result<Aside, Error> {
        self.places.wait_aside(&behalf.askers).await.inspect_err(|error| {
            if matches!(error, Error::Busy) {
                self.counts.no_place();
            }
        })
    }

    /// The right to fetch a part of a blob besides. `None`: enough are fetched so at the moment, and the place of one more would be
    /// wanted by others.
    #[must_use]
    pub fn spare_aside(&self, behalf: &Behalf) -> Option<Aside> {
        self.places.take_spare_aside(&behalf.askers)
    }

    /// Where it can be asked, unless we are offline.
    fn endpoints(&self) -> Result<&[Arc<Endpoint>], Error> {
        if self.endpoints.is_empty() { Err(Error::Offline) } else { Ok(&self.endpoints) }
    }
}

// === impl Commons ===

impl Commons {
    fn new(options: &Options, clock: &Clock, counts: &Counts) -> Self {
        let places = Arc::new(Places::new(options.max_transfers, options.header_timeout));
        Self { places, resolver: Resolver::new(options, clock.clone(), counts.clone()) }
    }

    /// Of the registries that clients may name.
    #[must_use]
    pub fn of_public(clock: &Clock, metrics: &Metrics) -> Self {
        Self::new(&Options::of_public(""), clock, &Counts::of_public(metrics.clone()))
    }
}

/// For transfers that share so many bytes of blobs in a second; 0: any number.
#[must_use]
pub fn rate(most: u64) -> Arc<Rate> {
    Arc::new(Rate::new(most, AHEAD))
}

fn parse(option: &str, text: &str) -> Result<Url, String> {
    // What is before an @ may be a password, and is not told again.
    let shown = text.rsplit('@').next().unwrap_or_default();
    let url: Url = text.parse().map_err(|error| format!("{option} {shown:?} is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("{option} {shown:?} must begin with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{option} must be without user, query and fragment; give username and password_file"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn however_many_registries_clients_name_all_together_are_asked_no_more_at_a_time_than_one() {
        let (clock, metrics) = (Clock::system(), Metrics::new());
        let commons = Commons::of_public(&clock, &metrics);
        let named = |n: usize| {
            let name = format!("r{n}.example");
            Upstream::of_public(&name, Hop::unique(), &commons, clock.clone(), metrics.clone()).unwrap()
        };
        let mut places = Vec::new();
        for (n, upstream) in (0..300).map(named).enumerate() {
            let client = std::net::IpAddr::from(std::net::Ipv4Addr::from_bits(u32::try_from(n).unwrap())).into();
            places.extend(upstream.places.take_spare(&client, true));
        }
        let one = Places::new(Options::default().max_transfers, Duration::ZERO);
        let of_one: Vec<_> = (0..300).filter_map(|_| one.take_spare(&Askers::default(), true)).collect();
        assert!((of_one.len()..=Options::default().max_transfers).contains(&places.len()), "{}", places.len());
    }
}
