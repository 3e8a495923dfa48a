//! What a test decides about a registry before it starts.

use std::time::Duration;

/// The registry as it is in health. What goes wrong is told to [`Registry::on`](super::Registry::on).
#[derive(Clone, Debug, Default)]
pub struct Setup {
    pub auth: Auth,
    /// Answers GETs of blobs with a 307 to the storage, which refuses whoever shows it a credential.
    pub redirect_blobs: bool,
    /// Waited before the headers of every answer about a blob, at the front and at the storage.
    pub latency: Duration,
    /// Bytes per second and connection that the body of a blob gets.
    pub bandwidth: Option<u64>,
}

/// Whom the front lets in.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// Everybody.
    #[default]
    None,
    Basic {
        user: &'static str,
        password: &'static str,
    },
    /// Those with a token for `repository:<name>:pull`.
    Bearer {
        /// Who may have a token; with `None` the one who shows no credential.
        user: Option<(&'static str, &'static str)>,
        /// Said to the client, never enforced: a token ends with
        /// [`expire_tokens`](super::Registry::expire_tokens). Without it the answer holds the bare token.
        expires_in: Option<u64>,
    },
}
