//! One registry as larder asks it: who we are to it, where it sends us, how long we wait, when it wants to be left alone.
//!
//! Floor 1. Nothing here knows of the store or of clients.

mod auth;
mod behalf;
mod client;
mod error;
mod guard;
mod options;
mod request;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;

use crate::clock::{Clock, Timestamp};

use auth::{Auth, Credential};
use client::Client;

pub use behalf::{Behalf, ClientCredential, CredentialKey};
pub use error::Error;
pub use options::{DOCKER_HUB, Options, WELL_KNOWN};
pub use request::{Asking, BlobAnswer, Body, Found, ManifestAnswer, Span, TagsAnswer};

/// A registry. Offline is a kind of upstream: it is there and answers nothing.
pub struct Upstream {
    name: Arc<str>,
    reach: Option<Reach>,
    idle_timeout: Duration,
    clock: Clock,
}

struct Reach {
    url: Url,
    client: Arc<Client>,
    auth: Auth,
    /// Nothing is asked before this.
    cool_until: Mutex<Timestamp>,
}

/// A registry that limits the rate and does not say for how long.
const COOL_DOWN: Duration = Duration::from_secs(30);
/// However long it says.
const LONGEST_COOL_DOWN: Duration = Duration::from_mins(10);

// === impl Upstream ===

impl Upstream {
    /// # Errors
    /// One line that says which option is wrong.
    pub fn new(name: &str, options: &Options, clock: Clock) -> Result<Self, String> {
        let wrong = |what: &str| format!("upstream.\"{name}\".{what}");
        let url: Url = options.url.parse().map_err(|error| wrong(&format!("url {:?} is no URL: {error}", options.url)))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(wrong(&format!("url {:?} must begin with https:// or http://", options.url)));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("url must be without user, query and fragment; give username and password_file"));
        }
        let client = Arc::new(Client::new(url.clone(), options).map_err(|error| wrong(&error))?);
        let credential = credential(options).map_err(|error| wrong(&error))?;
        let auth = Auth::new(url.clone(), credential, options.token_hosts.clone(), Arc::clone(&client), clock.clone());
        let reach = Reach { url, client, auth, cool_until: Mutex::default() };
        Ok(Self { name: name.into(), reach: Some(reach), idle_timeout: options.idle_timeout, clock })
    }

    /// An upstream that is never asked.
    #[must_use]
    pub fn offline(name: &str, clock: Clock) -> Self {
        Self { name: name.into(), reach: None, idle_timeout: Duration::ZERO, clock }
    }

    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.reach.is_none()
    }

    /// What can be asked, unless we are offline or the upstream wants to be left alone.
    fn reach(&self) -> Result<&Reach, Error> {
        let reach = self.reach.as_ref().ok_or(Error::Offline)?;
        let until = *reach.cool_until.lock().unwrap_or_else(PoisonError::into_inner);
        if self.clock.now() < until { Err(Error::RateLimited { until }) } else { Ok(reach) }
    }

    fn cool_down(&self, reach: &Reach, retry_after: Option<Duration>) -> Error {
        let until = self.clock.now() + retry_after.unwrap_or(COOL_DOWN).min(LONGEST_COOL_DOWN);
        *reach.cool_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        tracing::warn!(upstream = %self.name, "the upstream limits the rate of requests; it is left alone for a while");
        Error::RateLimited { until }
    }
}

fn credential(options: &Options) -> Result<Option<Credential>, String> {
    let file = &options.password_file;
    let by_file = !file.as_os_str().is_empty();
    let by_env = !options.password_env.is_empty();
    if options.username.is_empty() {
        let misplaced = by_file || by_env;
        return if misplaced { Err("username is missing beside the password".into()) } else { Ok(None) };
    }
    let password = match (by_file, by_env) {
        (true, false) => {
            std::fs::read_to_string(file).map_err(|error| format!("password_file {} cannot be read: {error}", file.display()))?
        }
        (false, true) => std::env::var(&options.password_env)
            .map_err(|_| format!("password_env names {}, which is not set", options.password_env))?,
        (true, true) => return Err("password_file and password_env are both given; one is enough".into()),
        (false, false) => return Err("password_file or password_env is missing beside username".into()),
    };
    let password = password.trim_end_matches(['\r', '\n']).to_owned();
    Ok(Some(Credential { username: options.username.clone(), password }))
}
