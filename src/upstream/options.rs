//! `[upstream."name"]`

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One registry that larder stands before. The table's name is how clients name it: `docker.io`, `registry.corp:5000`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Where it is. Empty: `https://` and the name.
    pub url: String,
    /// Other names that mean the same registry in `ns` and as a path prefix.
    pub aliases: Vec<String>,
    /// Host names under which larder is reached by clients that want this upstream.
    pub hosts: Vec<String>,
    /// The user larder is to the upstream. Empty: nobody.
    pub username: String,
    /// The file that holds the password; a line end at its end does not count.
    pub password_file: PathBuf,
    /// The environment variable that holds the password.
    pub password_env: String,
    /// Hosts besides the upstream that may receive the password for a token.
    pub token_hosts: Vec<String>,
    /// A file of certificates (PEM) to trust beside the system's.
    pub ca_file: PathBuf,
    /// The upstream may name private addresses: in redirects, and as its token service.
    pub allow_private: bool,
    /// For how long a tag of this upstream is fresh; 0s: as `mirror.tag_ttl` says.
    #[serde(with = "humantime_serde")]
    pub tag_ttl: Duration,
    /// How long a connection may take to come about.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long the upstream may take to begin its answer.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// How long a body may be silent.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: String::new(),
            aliases: Vec::new(),
            hosts: Vec::new(),
            username: String::new(),
            password_file: PathBuf::new(),
            password_env: String::new(),
            token_hosts: Vec::new(),
            ca_file: PathBuf::new(),
            allow_private: false,
            tag_ttl: Duration::ZERO,
            connect_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
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
