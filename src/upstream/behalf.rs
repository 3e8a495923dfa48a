//! For whom an upstream is asked.

use std::fmt;
use std::sync::{Arc, LazyLock};

use http::HeaderValue;
use sha2::{Digest as _, Sha256};

use crate::room::Askers;
use crate::traces::Trace;

use super::credentials::Credential;

/// What a request takes along of the client that caused it. By default nothing: it is made for larder itself.
#[derive(Clone, Default)]
pub struct Behalf {
    /// Who waits for the answer, none of whom gets more than his share of what is asked at one time.
    pub askers: Askers,
    /// The proxies that the client's request has come through, as its `Via` told (RFC 9110, section 7.6.3).
    pub via: Option<HeaderValue>,
    /// The client's own credential, where the upstream is to be asked with that and not with larder's.
    pub client: Option<ClientCredential>,
    /// The trace in which that is told.
    pub trace: Trace,
}

/// What a client has shown of itself: a user and a password, or that it is nobody. It has no `Debug`, so that it cannot get
/// into a log. Cheap to clone.
#[derive(Clone)]
pub struct ClientCredential(Arc<Shown>);

struct Shown {
    credential: Option<Credential>,
    key: CredentialKey,
}

/// Tells credentials apart without telling them: a digest that is good in this process alone, so that nobody who sees one can
/// try out passwords.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CredentialKey([u8; 32]);

static SECRET: LazyLock<[u8; 32]> = LazyLock::new(|| {
    let mut secret = [0; 32];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut secret).expect("there is randomness, or there is no TLS either");
    secret
});

// === impl ClientCredential ===

impl ClientCredential {
    #[must_use]
    pub fn nobody() -> Self {
        Self(Arc::new(Shown { credential: None, key: CredentialKey([0; 32]) }))
    }

    #[must_use]
    pub fn new(username: String, password: String) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(*SECRET);
        // The length keeps `a` and `bc` apart from `ab` and `c`.
        hasher.update((username.len() as u64).to_be_bytes());
        hasher.update(&username);
        hasher.update(&password);
        let key = CredentialKey(hasher.finalize().into());
        Self(Arc::new(Shown { credential: Some(Credential { username, password }), key }))
    }

    #[must_use]
    pub fn is_nobody(&self) -> bool {
        self.0.credential.is_none()
    }

    /// What it takes of the memory, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let text = |credential: &Credential| credential.username.len() + credential.password.len();
        size_of::<Shown>() + self.0.credential.as_ref().map_or(0, text)
    }

    #[must_use]
    pub fn key(&self) -> CredentialKey {
        self.0.key
    }

    /// The user and the password, unless it is nobody.
    #[must_use]
    pub fn parts(&self) -> Option<(&str, &str)> {
        self.credential().map(|credential| (credential.username.as_str(), credential.password.as_str()))
    }

    pub(super) fn credential(&self) -> Option<&Credential> {
        self.0.credential.as_ref()
    }
}

// === impl CredentialKey ===

/// Says nothing: who has the digest of a password can try out passwords.
impl fmt::Debug for CredentialKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialKey")
    }
}
