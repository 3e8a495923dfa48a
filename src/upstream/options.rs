//! `[upstream."name"]`

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::oci::{Pattern, TagTtl};

use super::credentials::AccountOptions;
use super::guard;
use super::public_url::PublicUrl;

/// One registry that larder stands before. The table's name is how clients name it: `docker.io`, `registry.corp:5000`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Where it is. Empty: `https://` and the name.
    pub url: String,
    /// Where else it is to be had, asked in turn while `url` fails. They see the credentials only if `token_hosts` lists them.
    pub fallbacks: Vec<String>,
    /// Other names that mean the same registry in `ns` and as a path prefix.
    pub aliases: Vec<String>,
    /// Host names under which larder is reached by clients that want this upstream.
    pub hosts: Vec<String>,
    /// The repositories that may be had: `library/*`, `myorg/**`. Empty: all.
    pub allow: Vec<Pattern>,
    /// The repositories that may not, also of those that `allow` names.
    pub deny: Vec<Pattern>,
    /// Whose credentials the upstream is shown.
    pub auth: AuthMode,
    /// The URL of larder for the clients of an upstream with `auth = "passthrough"`; its host belongs to that upstream alone.
    pub public_url: String,
    /// The user larder is to the upstream. Empty: nobody.
    pub username: String,
    /// The file that holds the password; a line end at its end does not count.
    pub password_file: PathBuf,
    /// The environment variable that holds the password.
    pub password_env: String,
    /// A Docker `config.json` with the credentials, or with the helpers that know them.
    pub docker_config: PathBuf,
    /// The helper that knows the credentials: `ecr-login` for the program `docker-credential-ecr-login`.
    pub credential_helper: String,
    /// The repositories for which these credentials are used, as patterns; empty: all. Where no account is for one, larder is
    /// nobody.
    pub repositories: Vec<Pattern>,
    /// More accounts. For a repository the one whose pattern says most about it is used; of several that say as much, the next
    /// when the budget of one is used up.
    pub account: Vec<AccountOptions>,
    /// Hosts besides the upstream that may see the credentials, with the port unless it is the scheme's own: token services,
    /// fallbacks.
    pub token_hosts: Vec<String>,
    /// A file of certificates (PEM) to trust beside the system's.
    pub ca_file: PathBuf,
    /// The certificate (PEM) that larder shows to the upstream, and the file of its key.
    pub client_cert_file: PathBuf,
    pub client_key_file: PathBuf,
    /// The proxy on the way to the upstream. Empty: as the environment says; `none`: none. It is the proxy that resolves the names to
    /// which the upstream sends larder; larder refuses those of which it can tell that they are on the inside, and the proxy should.
    pub proxy: String,
    /// The upstream may name private addresses: in redirects, and as its token service. Those of this link, and those at which
    /// clouds tell a machine its secrets, it may not.
    pub allow_private: bool,
    /// For how long a tag of this upstream is fresh; 0s: as `mirror.tag_ttl` says.
    #[serde(with = "humantime_serde")]
    pub tag_ttl: Duration,
    /// Other TTLs for tags that match a pattern, as in `mirror.tag_ttls` and before those.
    pub tag_ttls: Vec<TagTtl>,
    /// How many bytes of blobs may be fetched from it within the window; `0B`: any number.
    pub byte_quota: ByteSize,
    #[serde(with = "humantime_serde")]
    pub byte_quota_window: Duration,
    /// How long a connection may take to come about.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long the upstream may take to begin its answer.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// After how long without an answer the next of `fallbacks` is asked as well; whichever is first answers.
    #[serde(with = "humantime_serde")]
    pub hedge_after: Duration,
    /// How long a body may be silent. A manifest or list has to be there after twice as long.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How much of a body must come in a second, averaged over twice `idle_timeout`; `0B`: anything.
    pub min_rate: ByteSize,
    /// How many bytes of blobs may come from it in a second, all transfers together, each of which gets its share; `0B`: any number.
    pub max_rate: ByteSize,
    /// How many requests and transfers may be under way at one time. Others wait, as long as for an answer, and the client that has
    /// fewest is next; eighteen for each, and of more who waits for most is answered 503. Of those of which nothing comes, five hundred a second.
    pub max_transfers: usize,
    /// A client named it, not the operator: only public addresses are dialled, its own too. No option in the file.
    #[serde(skip)]
    pub public_only: bool,
    /// Where names lead in tests. No option in the file.
    #[cfg(debug_assertions)]
    #[serde(skip)]
    pub names: super::Names,
}

/// Whose credentials an upstream is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// larder's own, for all clients.
    #[default]
    Own,
    /// Those of each client, for that client.
    Passthrough,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: String::new(),
            fallbacks: Vec::new(),
            aliases: Vec::new(),
            hosts: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            auth: AuthMode::Own,
            public_url: String::new(),
            username: String::new(),
            password_file: PathBuf::new(),
            password_env: String::new(),
            docker_config: PathBuf::new(),
            credential_helper: String::new(),
            repositories: Vec::new(),
            account: Vec::new(),
            token_hosts: Vec::new(),
            ca_file: PathBuf::new(),
            client_cert_file: PathBuf::new(),
            client_key_file: PathBuf::new(),
            proxy: String::new(),
            allow_private: false,
            tag_ttl: Duration::ZERO,
            tag_ttls: Vec::new(),
            byte_quota: ByteSize(0),
            byte_quota_window: Duration::from_hours(30 * 24),
            connect_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(30),
            hedge_after: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            min_rate: ByteSize::kib(1),
            max_rate: ByteSize::b(0),
            max_transfers: 64,
            public_only: false,
            #[cfg(debug_assertions)]
            names: super::Names::default(),
        }
    }
}

/// The public registries that are there without being configured.
pub const WELL_KNOWN: [&str; 9] = [
    DOCKER_HUB,
    "ghcr.io",
    "quay.io",
    "registry.k8s.io",
    "gcr.io",
    "mcr.microsoft.com",
    "public.ecr.aws",
    "registry.gitlab.com",
    "nvcr.io",
];

pub const DOCKER_HUB: &str = "docker.io";

impl Options {
    /// All accounts: that of the upstream's own section first, unless it names none and others follow; and nobody for what
    /// none of them is for.
    #[must_use]
    pub(super) fn accounts(&self) -> Vec<AccountOptions> {
        let own = AccountOptions {
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            password_env: self.password_env.clone(),
            docker_config: self.docker_config.clone(),
            credential_helper: self.credential_helper.clone(),
            repositories: self.repositories.clone(),
        };
        let named = own != AccountOptions::default() || self.account.is_empty();
        let mut accounts: Vec<_> = named.then_some(own).into_iter().chain(self.account.iter().cloned()).collect();
        if accounts.iter().all(|account| !account.repositories.is_empty()) {
            accounts.push(AccountOptions::default());
        }
        accounts
    }

    /// True if larder is somebody to the upstream: what it can read there, not everyone can.
    #[must_use]
    pub fn has_credentials(&self) -> bool {
        let nobody = |account: &AccountOptions| {
            AccountOptions { repositories: Vec::new(), ..account.clone() } == AccountOptions::default()
        };
        let certificate = self.auth == AuthMode::Own && !self.client_cert_file.as_os_str().is_empty();
        certificate || !self.accounts().iter().all(nobody)
    }

    /// Those of a registry that a client has named and no operator. A proxy would resolve its name itself, unguarded.
    #[must_use]
    pub fn of_public(name: &str) -> Self {
        Self { public_only: true, proxy: "none".into(), ..Self::default() }.with_presets(name)
    }

    /// Where clients reach larder that bring their own credentials; `None` if they need none.
    ///
    /// # Errors
    /// One line that begins with the option that is wrong.
    pub fn passthrough(&self) -> Result<Option<PublicUrl>, String> {
        match self.auth {
            AuthMode::Own if self.public_url.is_empty() => Ok(None),
            AuthMode::Own => Err("public_url is for clients that bring their own credentials; add auth = \"passthrough\"".into()),
            AuthMode::Passthrough if self.accounts() != [AccountOptions::default()] => {
                Err("auth is \"passthrough\": clients bring their own credentials; remove username and the like".into())
            }
            AuthMode::Passthrough => PublicUrl::parse(&self.public_url).map(Some),
        }
    }

    /// What an operator may not have meant of the upstream `name`, in a sentence each that says what to do. larder does it all the same.
    #[must_use]
    pub fn doubts(&self, name: &str) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.has_credentials() && self.allow.is_empty() {
            doubts.push(format!(
                "upstream.{name:?} has credentials and no allow-list: whoever reaches larder can read all that they can; \
                 say in upstream.{name:?}.allow what may be read"
            ));
        }
        let urls = [("url", &self.url)].into_iter().chain(self.fallbacks.iter().map(|url| ("fallbacks", url)));
        let nowhere = urls.filter(|(_, url)| url.parse().is_ok_and(|url| guard::is_never(&url)));
        doubts.extend(nowhere.map(|(option, url)| {
            format!(
                "upstream.{name:?}.{option} is {url}, where no registry can be: it is of this link alone, or it is where clouds tell \
                 a machine its secrets, which whoever reaches larder could then ask for; name the registry's own address"
            )
        }));
        doubts
    }

    /// Takes from `new` what can change while larder serves: nothing, if what may be had there changes with who asks.
    pub fn take_up(&mut self, new: &Self) {
        let taken = Self {
            allow: new.allow.clone(),
            deny: new.deny.clone(),
            tag_ttl: new.tag_ttl,
            tag_ttls: new.tag_ttls.clone(),
            max_rate: new.max_rate,
            username: new.username.clone(),
            password_file: new.password_file.clone(),
            password_env: new.password_env.clone(),
            docker_config: new.docker_config.clone(),
            credential_helper: new.credential_helper.clone(),
            repositories: new.repositories.clone(),
            account: new.account.clone(),
            ..self.clone()
        };
        if taken == *new {
            *self = taken;
        }
    }

    /// What is known of the registry `name`, under what the operator says of it.
    #[must_use]
    pub fn with_presets(mut self, name: &str) -> Self {
        let (url, aliases, token_hosts): (&str, &[&str], &[&str]) = match name {
            DOCKER_HUB => (
                "https://registry-1.docker.io",
                &["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"],
                &["auth.docker.io"],
            ),
            "registry.gitlab.com" => ("", &[], &["gitlab.com"]),
            "nvcr.io" => ("", &[], &["authn.nvidia.com"]),
            _ => ("", &[], &[]),
        };
        if self.url.is_empty() {
            self.url = if url.is_empty() { format!("https://{name}") } else { url.into() };
        }
        self.aliases.extend(aliases.iter().map(ToString::to_string));
        self.token_hosts.extend(token_hosts.iter().map(ToString::to_string));
        self
    }
}
