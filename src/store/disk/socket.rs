//! The socket in the cache directory: who may write there may tell its larder what to do, and nobody else.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Disk, Operation};

const NAME: &str = "socket";
/// The kernel takes addresses of no more than 107 bytes.
const LONGEST: usize = 100;
const BACKLOG: i32 = 32;

/// A path by which the socket of a cache directory is reached.
pub struct SocketPath {
    path: PathBuf,
    /// Where the path leads through it.
    _dir: Option<OwnedFd>,
}

// === impl SocketPath ===

impl SocketPath {
    /// # Errors
    /// When there is no such directory, or it may not be looked at.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let path = dir.join(NAME);
        if path.as_os_str().len() <= LONGEST {
            return Ok(Self { path, _dir: None });
        }
        let fd = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { path: format!("/proc/self/fd/{}/{NAME}", fd.as_raw_fd()).into(), _dir: Some(fd) })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

// === impl Disk ===

impl Disk {
    /// Listens there. What a larder has left that was killed is replaced: this process holds the directory.
    pub(in crate::store) fn listen(&self) -> io::Result<UnixListener> {
        let path = self.root.join(NAME);
        match self.gate.pass(Operation::Remove, &path, || fs::remove_file(&path)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.gate.pass(Operation::Create, &path, || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
            socket.bind(&SockAddr::unix(SocketPath::of(&self.root)?.path())?)?;
            // Until it listens nobody is let in.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
    }
}
