//! How many manifests each account may still GET.

use std::{collections::HashMap, sync::Mutex};

use hyper::{Method, StatusCode};

use super::{auth::ANONYMOUS, digest_of, journal::Recorded, reply::Reply};

/// What is left, by account. A window never ends by itself.
pub(super) struct Budgets {
    /// What each account begins with; without it nothing is counted or said.
    first: Option<u64>,
    left: Mutex<HashMap<String, u64>>,
}

// === impl Budgets ===

impl Budgets {
    pub(super) fn new(first: Option<u64>) -> Self {
        Self { first, left: Mutex::default() }
    }

    pub(super) fn left(&self, account: &str) -> u64 {
        let first = self.first.expect("this registry counts nothing");
        self.left.lock().unwrap().get(account).copied().unwrap_or(first)
    }

    pub(super) fn set(&self, account: &str, left: u64) {
        self.left.lock().unwrap().insert(account.to_owned(), left);
    }

    /// Counts an answer with a manifest, says what is left, and says 429 where nothing is. HEADs are free to the end.
    pub(super) fn count(&self, request: &Recorded, reply: Reply) -> Reply {
        let Some(first) = self.first else { return reply };
        if reply.status != StatusCode::OK {
            return reply;
        }
        let left = self.left(&request.account);
        let (left, reply) = match left.checked_sub(1) {
            _ if request.method == Method::HEAD => (left, reply),
            Some(left) => (left, reply),
            None => (0, Reply::error(429, "TOOMANYREQUESTS")),
        };
        self.set(&request.account, left);
        reply
            .header("ratelimit-limit", &format!("{first};w=21600"))
            .header("ratelimit-remaining", &format!("{left};w=21600"))
            .header("docker-ratelimit-source", &source(&request.account))
    }
}

/// An address, or the UUID of a user.
fn source(account: &str) -> String {
    if account == ANONYMOUS {
        return "127.0.0.1".to_owned();
    }
    let digest = digest_of(account.as_bytes());
    let hex = digest.trim_start_matches("sha256:");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]].join("-")
}
