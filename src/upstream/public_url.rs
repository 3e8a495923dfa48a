//! Where the clients of an upstream reach larder, if they bring their own credentials.

use std::net::IpAddr;

use reqwest::Url;

use super::trust::authority;

/// The URL of larder as the clients of one upstream see it: a host and perhaps a port, no path. They send passwords there, so
/// it is https; http goes to the same machine only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    url: String,
    authority: String,
}

// === impl PublicUrl ===

impl PublicUrl {
    /// # Errors
    /// One line that begins with the option's name.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // It may hold a password, so it is not told again.
        let wrong = |what: &str| format!("public_url {what}, such as https://hub.mirror.example");
        if text.is_empty() {
            return Err("public_url is missing beside auth = \"passthrough\": clients must know where to send their \
                        credentials, such as https://hub.mirror.example"
                .into());
        }
        let url: Url = text.parse().map_err(|_| wrong("must be a URL"))?;
        match url.scheme() {
            "https" => {}
            "http" if is_local(&url) => {}
            _ => return Err(wrong("must begin with https://, as passwords are sent there")),
        }
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !bare || !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("must be a host and nothing else"));
        }
        let authority = authority(&url);
        Ok(Self { url: format!("{}://{authority}", url.scheme()), authority })
    }

    /// Without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.url
    }

    /// The host, and the port where it is not the scheme's own: what clients send as `Host`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

fn is_local(url: &Url) -> bool {
    // RFC 6761, section 6.3.
    url.host_str().is_some_and(|host| is_loopback(host) || host.ends_with(".localhost"))
}

/// Whether the host of a URL is this machine, without asking anyone.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_host_that_passwords_may_be_sent_to() {
        for (text, authority) in [
            ("https://Hub.Mirror.Example", "hub.mirror.example"),
            ("https://hub.mirror.example:443/", "hub.mirror.example"),
            ("https://hub.mirror.example:8443", "hub.mirror.example:8443"),
            ("http://localhost:5000", "localhost:5000"),
            ("http://hub.localhost", "hub.localhost"),
            ("http://127.0.0.1:5000", "127.0.0.1:5000"),
            ("http://[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(PublicUrl::parse(text).unwrap().authority(), authority, "{text}");
        }
        for text in [
            "",
            "hub.mirror.example",
            "http://hub.mirror.example",
            "http://10.0.0.1:5000",
            "http://localhost.example",
            "ftp://hub.mirror.example",
            "https://hub.mirror.example/path",
            "https://hub.mirror.example/?x=y",
            "https://bob:secret@hub.mirror.example",
        ] {
            let error = PublicUrl::parse(text).unwrap_err();
            assert!(error.starts_with("public_url ") && !error.contains('\n') && !error.contains("secret"), "{error}");
        }
    }
}
