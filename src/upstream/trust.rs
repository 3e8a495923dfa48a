//! Who may see an upstream's credentials. Where they go is the operator's to decide, never a server's.

use reqwest::Url;

/// The upstream's own address, and the hosts that the operator has listed.
pub(super) struct Trust {
    own: Url,
    /// As `host` or `host:port`.
    listed: Vec<String>,
}

// === impl Trust ===

impl Trust {
    pub(super) fn new(own: Url, listed: Vec<String>) -> Self {
        Self { own, listed }
    }

    pub(super) fn permits(&self, url: &Url) -> bool {
        let listed = |host: &String| url.host_str() == Some(host) || authority(url) == *host;
        let secure = url.scheme() == "https" || self.own.scheme() == "http";
        url.origin() == self.own.origin() || (secure && self.listed.iter().any(listed))
    }
}

/// The host, and the port where it is not the scheme's own.
pub(super) fn authority(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().into(),
    }
}
