//! `[server]`

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Where larder listens and how it treats connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The address for clients: HTTP/1.1 and cleartext HTTP/2.
    pub listen: SocketAddr,
    /// How many connections are held at once. For one more an idle one is closed; where none is idle, it is answered 503.
    pub max_connections: usize,
    /// How much of answers may be in memory on its way to clients. Beyond it blobs are answered 503.
    pub max_buffers: ByteSize,
    /// For how long a client may take nothing of its answer.
    #[serde(with = "humantime_serde")]
    pub write_idle: Duration,
    /// How much a client takes per second at least, averaged over `write_idle`; 0: any amount will do.
    pub min_rate: ByteSize,
    /// How long answers under way may take to end when larder is stopped.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
}

impl Options {
    /// # Errors
    /// Says in one line what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=1_000_000).contains(&self.max_connections) {
            return Err(format!("server.max_connections is {}; it must be from 1 to 1000000", self.max_connections));
        }
        if self.write_idle.is_zero() {
            return Err("server.write_idle is 0; every client takes some time".into());
        }
        Ok(())
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 5000)),
            max_connections: 10_000,
            max_buffers: ByteSize::mib(256),
            write_idle: Duration::from_mins(1),
            min_rate: ByteSize::kib(1),
            shutdown_grace: Duration::from_mins(1),
        }
    }
}
