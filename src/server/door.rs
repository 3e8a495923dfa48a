//! A door: a listener, and what is asked of those who come by it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::HeaderMap;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::clock::Clock;
use crate::mirror::{Refusal, Shown};

use super::forwarded::{self, Network};
use super::fresh::Look;
use super::login::shown;
use super::options::{ClientCert, ListenerOptions};
use super::proxy;
use super::rules::{Identity, Rule, Rules};
use super::tls::Tls;
use super::users::Users;

/// Where clients come in.
pub struct Door {
    pub(super) listener: Listener,
    pub(super) terms: Arc<Terms>,
}

/// A socket that listens.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What is asked of clients, the same at each socket of a listener.
pub struct Terms {
    pub(super) tls: Option<Tls>,
    users: Option<Arc<Users>>,
    /// Whether clients must show a certificate. `None`: they are not asked for one.
    certificates: Option<ClientCert>,
    pub(super) rules: Rules,
    /// Who is believed to speak for others.
    proxies: Vec<Network>,
    /// They say for whom before anything else.
    proxy_protocol: bool,
}

/// Why it is not known who comes by a proxy.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unknown {
    #[error("it is none of the proxies")]
    Stranger,
    #[error(transparent)]
    Wrong(#[from] io::Error),
}

/// Who is at the other end of a connection, as far as the connection tells.
pub(super) struct Client {
    pub(super) peer: Peer,
    /// The same in text, made once for all that it asks.
    shown: Arc<str>,
    /// The name in the certificate that it has shown.
    pub(super) certificate: Option<Arc<str>>,
    pub(super) terms: Arc<Terms>,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Net(SocketAddr),
    /// Someone on this machine, by a Unix socket.
    Local,
    /// Someone for whom a proxy speaks.
    Behind(IpAddr),
}

/// How much of an answer the kernel may hold beyond what the network has taken.
const UNSENT: u32 = 128 << 10;

/// How congestion is met where there is none, within a machine. Every kernel has it. Where machines are told to use BBR, that would have
/// a timer send each 64 KiB, which takes half of the processor time of a large answer.
const UNPACED: &[u8] = b"reno";

// === impl Door ===

impl Door {
    #[must_use]
    pub fn new(listener: Listener, terms: Arc<Terms>) -> Self {
        listener.shape();
        Self { listener, terms }
    }
}

// === impl Terms ===

impl Terms {
    /// Reads what `options` names.
    ///
    /// # Errors
    /// One line that says which option is wrong.
    pub fn of(options: &ListenerOptions) -> Result<Self, String> {
        let read = || {
            let users = (options.users_file.clone(), options.groups_file.clone());
            let no_users = users.0.as_os_str().is_empty();
            Ok(Self {
                tls: options.has_tls().then(|| Tls::of(options)).transpose()?,
                users: (!no_users).then(|| Users::new(&options.listen.to_string(), users.0, users.1)).transpose()?.map(Arc::new),
                certificates: options.certificates(),
                rules: Rules::new(options.rule.clone()),
                proxies: options.proxies.clone(),
                proxy_protocol: options.proxy_protocol,
            })
        };
        read().map_err(|why: String| format!("server.listener at {}: {why}", options.listen))
    }

    /// Whether it is believed to speak for others.
    pub(super) fn trusts(&self, peer: Peer) -> bool {
        self.proxies.iter().any(|network| network.has(peer))
    }

    /// Whom a proxy says that it speaks for on a new connection, where proxies say so before anything else. `None`: for itself.
    ///
    /// Not cancel safe.
    ///
    /// # Errors
    /// It does not, or it is none of them.
    pub(super) async fn who_comes(&self, stream: &mut TcpStream, peer: Peer) -> Result<Option<Peer>, Unknown> {
        if !self.proxy_protocol {
            return Ok(None);
        }
        if !self.trusts(peer) {
            return Err(Unknown::Stranger);
        }
        Ok(proxy::read(stream).await?.map(Peer::Net))
    }

    /// For whom a request is made. What speaks the PROXY protocol looks into no HTTP: the header there is its client's.
    pub(super) fn who_asks(&self, client: &Client, headers: &HeaderMap) -> Peer {
        if self.proxy_protocol { client.peer } else { forwarded::client(client.peer, headers, &self.proxies) }
    }

    /// Who it is that asks, once that is certain; anybody, where nobody is asked. `from`: where it comes from.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// It has to log in, or its login is wrong, or there were too many tries. Never where there are no users.
    pub(super) async fn identify(
        &self,
        client: &Client,
        from: Peer,
        headers: &HeaderMap,
        clock: &Clock,
    ) -> Result<Identity, Refusal> {
        let certificate = client.certificate.clone();
        if certificate.is_none() && self.certificates == Some(ClientCert::Required) && !self.rules.are_none() {
            return Err(Refusal::NotAllowed("the certificate has no common name by which rules could know its owner".into()));
        }
        let suffices = self.users.is_none() || self.certificates == Some(ClientCert::Optional);
        if let Some(name) = certificate.clone().filter(|_| suffices) {
            return Ok(Identity { groups: self.groups(&name), user: Some(name), certificate });
        }
        let Some(users) = &self.users else { return Ok(Identity::default()) };
        let Shown::Login(login) = shown(headers) else {
            return Err(Refusal::WrongLogin("there is none; a user name and a password are needed".into()));
        };
        Box::pin(users.check(&login, from.ip(), clock.now())).await?;
        let user: Arc<str> = login.parts().map_or("", |(name, _)| name).into();
        Ok(Identity { groups: self.groups(&user), user: Some(user), certificate })
    }

    fn groups(&self, user: &str) -> Arc<[String]> {
        self.users.as_ref().map(|users| users.groups(user)).unwrap_or_default()
    }

    /// Whether what one client gets another may not.
    pub(super) fn are_for_some(&self) -> bool {
        self.users.is_some() || self.certificates.is_some() || !self.rules.are_none()
    }

    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// What is asked of the operator: a password, where there is a file of users.
    ///
    /// # Errors
    /// One line that says which option is wrong.
    pub fn of_operator(users_file: &Path) -> Result<Self, String> {
        let users = || Users::new("the operator", users_file.to_owned(), PathBuf::new());
        let no_users = users_file.as_os_str().is_empty();
        Ok(Self {
            tls: None,
            users: (!no_users).then(users).transpose().map_err(|why| format!("admin: {why}"))?.map(Arc::new),
            certificates: None,
            rules: Rules::new(Vec::new()),
            proxies: Vec::new(),
            proxy_protocol: false,
        })
    }

    /// Whether who comes is asked for a password.
    pub(super) fn has_users(&self) -> bool {
        self.users.is_some()
    }

    /// Lets these rules hold from now on, also on connections that are open.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        self.rules.set(rules);
    }

    /// What it is made of files, and to be looked at as long as it is in use.
    pub(super) fn files(&self) -> Vec<Arc<dyn Look>> {
        let (tls, users) = (self.tls.iter().map(Tls::files), self.users.iter().map(|users| users.files()));
        tls.chain(users).collect()
    }

    /// Reads files anew that have changed. May wait for the disk.
    pub fn renew(&self) {
        self.files().iter().for_each(|files| files.renew());
    }
}

// === impl Client ===

impl Client {
    pub(super) fn new(peer: Peer, certificate: Option<Arc<str>>, terms: Arc<Terms>) -> Self {
        Self { peer, shown: peer.to_string().into(), certificate, terms }
    }

    /// How one for whom it asks is told of.
    pub(super) fn tells_of(&self, asks: Peer) -> Arc<str> {
        if asks == self.peer { Arc::clone(&self.shown) } else { asks.to_string().into() }
    }
}

// === impl Listener ===

impl Listener {
    /// Says how connections carry answers: each has it from its listener.
    fn shape(&self) {
        let Self::Tcp(listener) = self else { return };
        let socket = SockRef::from(listener);
        // Answers are written in large pieces; what remains small must not wait for more.
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_notsent_lowat(UNSENT);
        if listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback()) {
            let _ = socket.set_tcp_congestion(UNPACED);
        }
    }

    /// Cancel safe.
    pub(super) async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                Ok((stream, Peer::Net(from)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                // A stream of bytes as any: what larder does with one the kernel does with both.
                let socket = OwnedFd::from(stream.into_std()?);
                Ok((TcpStream::from_std(socket.into())?, Peer::Local))
            }
        }
    }
}

// === impl Peer ===

impl Peer {
    /// The address by which it is told from others. All on this machine are one.
    pub(super) fn ip(self) -> IpAddr {
        match self {
            Self::Net(address) => address.ip(),
            Self::Behind(address) => address,
            Self::Local => Ipv4Addr::LOCALHOST.into(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(address) => address.fmt(f),
            Self::Behind(address) => address.fmt(f),
            Self::Local => f.write_str("unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a client's connection is that comes by a listener at `address`.
    async fn accepted(address: &str) -> TcpStream {
        let listener = Listener::Tcp(TcpListener::bind(address).await.unwrap());
        listener.shape();
        let Listener::Tcp(at) = &listener else { unreachable!() };
        let port = at.local_addr().unwrap().port();
        let (client, accepted) = tokio::join!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)), listener.accept());
        client.unwrap();
        accepted.unwrap().0
    }

    #[tokio::test]
    async fn a_connection_carries_answers_as_its_listener_was_told() {
        let stream = accepted("127.0.0.1:0").await;
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT);
    }

    #[tokio::test]
    async fn who_comes_by_a_loopback_address_is_not_paced_and_others_are_as_the_machine_says() {
        let told = |stream: &TcpStream| {
            let name = SockRef::from(stream).tcp_congestion().unwrap();
            name.split(|byte| *byte == 0).next().unwrap().to_vec()
        };
        assert_eq!(told(&accepted("127.0.0.1:0").await), UNPACED);
        let untold = tokio::net::TcpSocket::new_v4().unwrap();
        let machine = SockRef::from(&untold).tcp_congestion().unwrap();
        assert!(machine.starts_with(&told(&accepted("0.0.0.0:0").await)));
    }
}
