//! Telling systemd how far larder is, where that waits for it (`Type=notify`;
//! <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// It listens.
pub(super) const READY: &str = "READY=1";
/// It lets in nobody any more.
pub(super) const STOPPING: &str = "STOPPING=1";

/// Tells whoever has started this process, if it wants to know.
pub(super) fn tell(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(socket = %socket.display(), %error, "systemd could not be told {state}");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_encoded_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // It is not waited for.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}
