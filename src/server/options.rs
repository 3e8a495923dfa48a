//! `[server]`

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where larder listens and how it treats connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The address for clients: HTTP/1.1 and cleartext HTTP/2.
    pub listen: SocketAddr,
    /// How many connections are held at once; more wait to be accepted.
    pub max_connections: usize,
    /// How long answers under way may take to end when larder is stopped.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
}

impl Options {
    /// # Errors
    /// Says in one line what is wrong.
    pub fn check(&self) -> Result<(), String> {
        match self.max_connections {
            1..=1_000_000 => Ok(()),
            other => Err(format!("server.max_connections is {other}; it must be from 1 to 1000000")),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 5000)), max_connections: 10_000, shutdown_grace: Duration::from_mins(1) }
    }
}
