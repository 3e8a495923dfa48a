//! Who may see an upstream's credentials. Where they go is the operator's to decide, never a server's.

use reqwest::Url;

/// The upstream's own address, and the hosts that the operator has listed.
pub(super) struct Trust {
    own: Url,
    /// As `host`, for the scheme's own port, or `host:port`.
    listed: Vec<String>,
}

// === impl Trust ===

impl Trust {
    pub(super) fn new(own: Url, listed: Vec<String>) -> Self {
        Self { own, listed }
    }

    pub(super) fn permits(&self, url: &Url) -> bool {
        // Another port may be another's.
        let origin = |host: &String| format!("{}://{host}", url.scheme()).parse::<Url>().map(|listed| listed.origin());
        let listed = |host: &String| origin(host).is_ok_and(|listed| listed == url.origin());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_to_the_upstream_and_to_listed_origins() {
        let listed = ["auth.example", "Tokens.Example:8443", "[2001:db8::1]:444", "plain.example:443"];
        let trust = Trust::new("https://registry.example:5000".parse().unwrap(), listed.map(String::from).into());
        for (url, permitted) in [
            ("https://registry.example:5000/token", true),
            ("https://REGISTRY.example:5000/token", true),
            ("https://registry.example/token", false),
            ("http://registry.example:5000/token", false),
            ("https://auth.example/token", true),
            ("https://AUTH.example:443/token", true),
            ("https://auth.example:8443/token", false),
            ("http://auth.example/token", false),
            ("https://auth.example./token", false),
            ("https://x.auth.example/token", false),
            ("https://auth.example.evil/token", false),
            ("https://auth.example@evil/token", false),
            ("https://evil/auth.example", false),
            ("https://evil\\@auth.example/", false),
            ("https://tokens.example:8443/x", true),
            ("https://tokens.example/x", false),
            ("https://[2001:db8::1]:444/", true),
            ("https://plain.example/", true),
        ] {
            assert_eq!(trust.permits(&url.parse().unwrap()), permitted, "{url}");
        }
        let plain = Trust::new("http://registry.example".parse().unwrap(), vec!["auth.example".into()]);
        assert!(plain.permits(&"http://auth.example/token".parse().unwrap()), "where the upstream is plain, so may these be");
    }
}
