//! Sockets that systemd has opened and handed over (`sd_listen_fds(3)`): from descriptor 3 on, `LISTEN_FDS` of them, for the
//! process `LISTEN_PID`, with the names `LISTEN_FDNAMES`.

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::io::{FdFlags, fcntl_setfd};
use socket2::{Domain, SockRef, Type};
use tokio::net::{TcpListener, UnixListener};

use crate::server::Listener;

use super::bound::Socket;

/// Those that nobody has taken yet, by their names.
static INHERITED: LazyLock<Mutex<Vec<(String, OwnedFd)>>> = LazyLock::new(|| Mutex::new(handed_over()));

const FIRST: RawFd = 3;
/// systemd itself hands over no more than this.
const MOST: i32 = 4096;

/// Takes those of this name, or all.
///
/// # Errors
/// There are none, or one is no socket that listens for streams.
pub(super) fn take(name: Option<&str>) -> io::Result<Vec<Socket>> {
    let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    let meant = |(known, _): &mut (String, OwnedFd)| name.is_none_or(|name| name == known);
    let taken: Vec<_> = inherited.extract_if(.., meant).collect();
    if taken.is_empty() {
        return Err(io::Error::other("systemd has handed over no such socket"));
    }
    taken.into_iter().map(|(_, socket)| listener(socket).map(Socket::Listens)).collect()
}

/// Closes those that no listener is for: whoever came there would wait for ever.
pub(super) fn close_rest() {
    for (name, _socket) in INHERITED.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        tracing::warn!(name, "a socket that systemd has handed over is closed, as no listener is systemd:NAME for it");
    }
}

fn listener(socket: OwnedFd) -> io::Result<Listener> {
    let about = SockRef::from(&socket);
    if about.r#type()? != Type::STREAM || !about.is_listener()? {
        return Err(io::Error::other("what systemd has handed over is no socket that listens for streams"));
    }
    about.set_nonblocking(true)?;
    if about.domain()? == Domain::UNIX {
        UnixListener::from_std(StdUnixListener::from(socket)).map(Listener::Unix)
    } else {
        TcpListener::from_std(StdTcpListener::from(socket)).map(Listener::Tcp)
    }
}

fn handed_over() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    // What is meant for another process, such as the one that has started this one, is not.
    if number("LISTEN_PID") != i32::try_from(std::process::id()).ok() {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let count = number("LISTEN_FDS").unwrap_or_default().clamp(0, MOST);
    let each = (FIRST..FIRST + count).map(|descriptor| {
        #[expect(unsafe_code, reason = "descriptors are handed over as numbers")]
        // SAFETY: by the protocol they are open and this process's, and each is taken here once.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        // Helpers that are asked for credentials are not to have it.
        let _ = fcntl_setfd(&socket, FdFlags::CLOEXEC);
        (names.next().unwrap_or_default().to_owned(), socket)
    });
    each.collect()
}
