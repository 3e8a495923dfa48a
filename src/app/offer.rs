//! What clients are to be told of a larder: where it is, what it asks of them, and which registries it stands before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::Url;

use crate::config::Config;
use crate::server::{ListenerOptions, Place};
use crate::setup::Offer;
use crate::upstream::{AuthMode, DOCKER_HUB};

/// By the URL that clients reach it by; without one, for clients on the same machine, by the first address that asks nothing.
///
/// # Errors
/// One line that says what to give.
pub fn offer(config: &Config, url: Option<&str>) -> Result<Offer, String> {
    let listeners = config.server.listeners();
    let (tls, authority, port) = match url {
        Some(url) => parsed(url)?,
        None => local(&listeners)?,
    };
    // What stands before larder may have another port, and asks what it likes.
    let listener = listeners.iter().find(|listener| listener.has_tls() == tls && port_of(listener) == Some(port));
    let registries = config.upstream.iter().filter(|(_, options)| options.auth == AuthMode::Own);
    let apart = config.upstream.iter().filter(|(_, options)| options.auth == AuthMode::Passthrough);
    Ok(Offer {
        tls,
        authority,
        asks_for_users: listener.is_some_and(|listener| !listener.users_file.as_os_str().is_empty()),
        asks_for_certificates: listener.is_some_and(|listener| !listener.client_ca_file.as_os_str().is_empty()),
        registries: registries.map(|(name, _)| (name.clone(), own_url(name))).collect(),
        default: config.mirror.default_upstream.clone(),
        apart: apart.map(|(name, options)| (name.clone(), options.public_url.clone())).collect(),
    })
}

/// Where the clients themselves would go, whatever way larder takes.
fn own_url(name: &str) -> String {
    format!("https://{}", if name == DOCKER_HUB { "registry-1.docker.io" } else { name })
}

fn parsed(text: &str) -> Result<(bool, String, u16), String> {
    let wrong = || format!("--url {text:?} is no URL of larder's; write it as http://mirror.example:5000");
    let url: Url = text.parse().map_err(|_| wrong())?;
    let bare = matches!(url.scheme(), "http" | "https")
        && url.path() == "/"
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    let (Some(host), Some(port), true) = (url.host_str(), url.port_or_known_default(), bare) else { return Err(wrong()) };
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Ok((url.scheme() == "https", authority, port))
}

fn local(listeners: &[ListenerOptions]) -> Result<(bool, String, u16), String> {
    let addresses = || listeners.iter().filter_map(|listener| Some((listener, address_of(listener)?)));
    let asks_nothing = |listener: &ListenerOptions| {
        !listener.has_tls() && listener.users_file.as_os_str().is_empty() && listener.client_ca_file.as_os_str().is_empty()
    };
    let found = addresses().find(|(listener, _)| asks_nothing(listener)).or_else(|| addresses().next());
    let Some((listener, address)) = found else {
        return Err(
            "the configuration does not tell at which address larder listens; say how clients reach it, as --url URL".into()
        );
    };
    if listener.has_tls() {
        return Err(format!(
            "larder listens at {address} by TLS; say by which name its certificate is for, as --url https://NAME:{}",
            address.port()
        ));
    }
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok((false, SocketAddr::new(ip, address.port()).to_string(), address.port()))
}

fn address_of(listener: &ListenerOptions) -> Option<SocketAddr> {
    match listener.listen {
        Place::Tcp(address) if address.port() != 0 => Some(address),
        _ => None,
    }
}

fn port_of(listener: &ListenerOptions) -> Option<u16> {
    address_of(listener).map(|address| address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(toml: &str, url: Option<&str>) -> Result<Offer, String> {
        super::offer(&Config::from_toml(toml).unwrap(), url)
    }

    #[test]
    fn on_the_same_machine_it_is_the_address_that_asks_nothing() {
        assert_eq!(offer("", None).unwrap().url(), "http://127.0.0.1:5000");
        assert_eq!(offer("server.listen = \"0.0.0.0:80\"", None).unwrap().url(), "http://127.0.0.1:80");
        assert_eq!(offer("server.listen = \"[::]:5000\"", None).unwrap().url(), "http://[::1]:5000");
        let company = offer(include_str!("../../config/company.toml"), None).unwrap();
        assert_eq!((company.url().as_str(), company.asks_for_users), ("http://127.0.0.1:5000", false));
        for (listen, says) in [("unix:/run/larder.sock", "--url URL"), ("systemd", "--url URL"), ("127.0.0.1:0", "--url URL")] {
            let why = offer(&format!("server.listen = {listen:?}"), None).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn by_its_url_it_is_what_listens_at_that_port() {
        let company = |url| offer(include_str!("../../config/company.toml"), Some(url));
        let tls = company("https://mirror.example:5443/").unwrap();
        assert_eq!((tls.authority.as_str(), tls.tls, tls.asks_for_users), ("mirror.example:5443", true, true));
        assert!(tls.asks_for_certificates);
        let before = company("https://mirror.example").unwrap();
        assert_eq!((before.authority.as_str(), before.asks_for_users), ("mirror.example", false));
        for url in ["mirror.example:5000", "ftp://x", "http://a:b@x", "http://x/path", "http://x?y", "nonsense"] {
            assert!(company(url).unwrap_err().starts_with("--url "), "{url}");
        }
        let why = offer(
            "server.listen = \"\"\n[[server.listener]]\nlisten = \"0.0.0.0:5443\"\ncert_file = \"c\"\nkey_file = \"k\"",
            None,
        );
        assert!(why.unwrap_err().contains("--url https://NAME:5443"));
    }

    #[test]
    fn registries_where_clients_log_in_are_apart() {
        let offer = offer(include_str!("../../config/passthrough.toml"), None).unwrap();
        assert_eq!(offer.apart, [("registry.corp.example".into(), "https://registry.mirror.corp.example".into())]);
        assert_eq!(offer.registries[0], ("docker.io".into(), "https://registry-1.docker.io".into()));
        assert!(offer.registries.iter().all(|(name, _)| name != "registry.corp.example"));
    }
}
