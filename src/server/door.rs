//! A door: a listener, and what is asked of those who come by it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream, UnixListener};

use super::options::ListenerOptions;
use super::tls::Tls;

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
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Net(SocketAddr),
    /// Someone on this machine, by a Unix socket.
    Local,
}

/// How much of an answer the kernel may hold beyond what the network has taken.
const UNSENT: u32 = 128 << 10;

// === impl Door ===

impl Door {
    #[must_use]
    pub fn new(listener: Listener, terms: Arc<Terms>) -> Self {
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
        let tls = options.has_tls().then(|| Tls::of(options)).transpose();
        Ok(Self { tls: tls.map_err(|why| format!("server.listener at {}: {why}", options.listen))? })
    }

    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Nothing is asked of anyone.
    pub(super) fn none() -> Self {
        Self { tls: None }
    }

    /// Looks whether files have changed, and reads those anew. May wait for the disk.
    pub(super) fn look(&self) {
        self.tls.iter().for_each(Tls::look);
    }
}

// === impl Listener ===

impl Listener {
    /// Cancel safe.
    pub(super) async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                // Answers are written in large pieces; what remains small must not wait for more.
                let _ = stream.set_nodelay(true);
                let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
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
            Self::Local => Ipv4Addr::LOCALHOST.into(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(address) => address.fmt(f),
            Self::Local => f.write_str("unix"),
        }
    }
}
