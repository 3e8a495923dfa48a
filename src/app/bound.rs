//! Addresses of larder's own that let nobody in yet. What another may still come to have is found out when they do: two may be bound to
//! one address, of which one listens, and a socket in the file system is made when all else stands.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, chmod, unlink};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket, UnixStream};

use crate::server::{Door, Listener, Options, Place, Terms};

use super::StartError;
use super::inherited;

/// A socket that is bound to its place.
pub(super) struct Bound {
    option: &'static str,
    /// Where it is: with the port that the kernel has chosen, the path that systemd has.
    pub(super) place: Place,
    socket: Socket,
}

pub(super) enum Socket {
    Tcp(TcpSocket),
    /// To be made at this path.
    Unix(PathBuf),
    /// It listens already; who comes waits.
    Listens(Listener),
}

/// A socket in the file system. Dropped, it is removed, if it is still the same.
pub(super) struct Made {
    path: PathBuf,
    file: (u64, u64),
}

const ADMIN_LISTEN: &str = "admin.listen";
/// So many connections may wait to be accepted.
const BACKLOG: u32 = 1024;
/// For larder's user and group; whom else it lets in is for the directory to say.
const SOCKET_MODE: Mode = Mode::from_raw_mode(0o660);

// === impl Bound ===

impl Bound {
    /// The sockets of a place: one, but for those of systemd.
    pub(super) async fn to(option: &'static str, place: &Place) -> Result<Vec<Self>, StartError> {
        let bound = match place {
            Place::Tcp(address) => socket_at(*address).map(|socket| vec![Socket::Tcp(socket)]),
            Place::Unix(path) => is_free(path).await.map(|_| vec![Socket::Unix(path.clone())]),
            Place::Systemd(name) => inherited::take(name.as_deref()),
        };
        let failed = |error| StartError::Listen { option, place: place.clone(), error };
        let sockets = bound.map_err(failed)?.into_iter();
        sockets.map(|socket| Self::of(option, socket).map_err(failed)).collect()
    }

    fn of(option: &'static str, socket: Socket) -> io::Result<Self> {
        let place = match &socket {
            Socket::Tcp(socket) => Place::Tcp(socket.local_addr()?),
            Socket::Listens(Listener::Tcp(listener)) => Place::Tcp(listener.local_addr()?),
            Socket::Listens(Listener::Unix(listener)) => {
                Place::Unix(listener.local_addr()?.as_pathname().unwrap_or(Path::new("")).to_owned())
            }
            Socket::Unix(path) => Place::Unix(path.clone()),
        };
        Ok(Self { option, place, socket })
    }

    /// Lets clients in. What is returned besides is to be kept as long as it listens.
    pub(super) async fn listen(self) -> Result<(Listener, Option<Made>), StartError> {
        let Self { option, place, socket } = self;
        let listening = match socket {
            Socket::Tcp(socket) => socket.listen(BACKLOG).map(|listener| (Listener::Tcp(listener), None)),
            Socket::Unix(path) => unix(path).await.map(|(listener, made)| (Listener::Unix(listener), Some(made))),
            Socket::Listens(listener) => Ok((listener, None)),
        };
        listening.map_err(|error| StartError::Listen { option, place, error })
    }
}

/// Binds all that clients may come by, listener by listener.
pub(super) async fn bind(options: &Options) -> Result<Vec<(Arc<Terms>, Vec<Bound>)>, StartError> {
    let mut bound = Vec::new();
    for listener in options.listeners() {
        let terms = Arc::new(Terms::of(&listener).map_err(StartError::Listener)?);
        let option = if Some(&listener.listen) == options.listen.as_ref() { "server.listen" } else { "server.listener.listen" };
        bound.push((terms, Bound::to(option, &listener.listen).await?));
    }
    Ok(bound)
}

/// Binds the address at which the operator comes.
pub(super) fn bind_for_operator(address: SocketAddr) -> Result<(TcpSocket, SocketAddr), StartError> {
    let bound = socket_at(address).and_then(|socket| Ok((socket.local_addr()?, socket)));
    match bound {
        Ok((address, socket)) => Ok((socket, address)),
        Err(error) => Err(StartError::Listen { option: ADMIN_LISTEN, place: Place::Tcp(address), error }),
    }
}

/// Lets clients and the operator in. What lies in the file system for it is to be kept as long.
pub(super) async fn listen(
    clients: Vec<(Arc<Terms>, Vec<Bound>)>,
    operator: Option<(TcpSocket, SocketAddr)>,
) -> Result<(Vec<Door>, Vec<Made>, Option<TcpListener>), StartError> {
    let failed = |address, error| StartError::Listen { option: ADMIN_LISTEN, place: Place::Tcp(address), error };
    let admin = operator.map(|(socket, address)| socket.listen(BACKLOG).map_err(|error| failed(address, error))).transpose()?;
    let (mut doors, mut made) = (Vec::new(), Vec::new());
    for (terms, sockets) in clients {
        for bound in sockets {
            let (listener, file) = bound.listen().await?;
            doors.push(Door::new(listener, Arc::clone(&terms)));
            made.extend(file);
        }
    }
    Ok((doors, made, admin))
}

fn socket_at(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Of a larder that has just ended, connections may linger at the address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Whether a socket may be made at a path; one that was left there is in the way.
async fn is_free(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => return Err(error),
    }
    // A larder that was killed leaves its socket, to which nobody answers.
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Ok(_) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// Made in one go, once the cache is this larder's: a socket that does not listen yet looks like one that was left, and another larder
/// that starts beside would take it away.
async fn unix(path: PathBuf) -> io::Result<(UnixListener, Made)> {
    if !is_free(&path).await? {
        unlink(&path)?;
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(&path)?;
    let made = Made { file: file(&path)?, path };
    chmod(&made.path, SOCKET_MODE)?;
    Ok((socket.listen(BACKLOG)?, made))
}

/// Which file it is that lies there.
fn file(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

// === impl Made ===

impl Drop for Made {
    fn drop(&mut self) {
        // A successor may have put its own there.
        if file(&self.path).is_ok_and(|found| found == self.file) {
            let _ = unlink(&self.path);
        }
    }
}
