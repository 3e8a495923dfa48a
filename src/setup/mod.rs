//! What leads clients to a larder: which of their files say what, and what else is to be known. Floor 0.
//!
//! `larder setup` writes it into the files of a machine; the operator's page shows it for others.

mod clients;
mod merge;
mod yaml;

use std::path::PathBuf;

pub use clients::{Client, Plan, Way};

/// One way into a larder: where it is, what it asks of clients, and which registries it stands before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub tls: bool,
    /// Host and port, as they stand in a URL.
    pub authority: String,
    /// Who comes there is asked for a password,
    pub asks_for_users: bool,
    /// or for a certificate.
    pub asks_for_certificates: bool,
    /// The registries that it stands before, with the URL that clients take when there is no larder.
    pub registries: Vec<(String, String)>,
    /// What it takes a client for that names no registry.
    pub default: String,
    /// Registries that are had under a URL of their own, where clients log in.
    pub apart: Vec<(String, String)>,
}

/// What is to stand in a file, made of what stands there.
pub struct Edit<'a> {
    pub path: PathBuf,
    pub merge: Box<Merge<'a>>,
}

type Merge<'a> = dyn Fn(Option<&str>) -> Result<String, String> + 'a;

// === impl Offer ===

impl Offer {
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}
