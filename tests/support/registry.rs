//! A scripted registry: a real HTTP/1.1 server that speaks the pull half of the distribution spec,
//! does what it is told to do wrong, and remembers everything that it was asked.
//!
//! Four listeners, as with the registries of this world: the *front* (`/v2/…`), the *token* service
//! that it challenges for, the *storage* (a CDN) to which it may redirect, and the *backend*, a second
//! registry for a front that is only a gateway.
//!
//! Reads downward: [`Registry`] is the handle; [`Setup`] says what it is in health, and [`Like`] what those
//! of this world are; `answer` makes one answer of routes, rules and faults; `front`, `lists`, `auth`,
//! `tokens`, `limit` and `storage` know what is right, `fault` what is wrong; `body` sends it, `port` carries it.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use larder::clock::Clock;
use tokio::time::timeout;

use super::{
    PATIENCE,
    images::{digest_of, noise},
    secrets,
};

use self::{
    answer::{Addresses, Shared},
    fault::Rules,
    port::Port,
};

mod answer;
mod auth;
mod body;
mod content;
mod fault;
mod front;
mod gzip;
mod journal;
mod like;
mod limit;
mod lists;
mod port;
mod reply;
mod setup;
mod storage;
mod tokens;

pub use self::{
    auth::ANONYMOUS,
    fault::{Fault, Match},
    journal::{Listener, Recorded},
    like::Like,
    setup::{
        Advertised, Auth, Blobs, HeadBlob, Life, Link, Lists, Manifests, Missing, Page, Redirect, Scope, Setup, Target,
        TokenHost, TokenService, UnacceptedIndex,
    },
};

/// A registry under the test's hand. Dropped, it closes its ports and connections.
pub struct Registry {
    shared: Arc<Shared>,
    front: Port,
    storage: Port,
    token: Port,
    backend: Port,
}

// === impl Registry: life ===

impl Registry {
    /// A registry that anyone may read and that sends blobs itself.
    pub async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    /// One that behaves as this one does.
    pub async fn like(like: Like) -> Self {
        Self::with(like.setup()).await
    }

    pub async fn with(setup: Setup) -> Self {
        let [front, storage, token, backend] = [(); 4].map(|()| Port::reserve());
        let addresses =
            Addresses { front: front.address(), storage: storage.address(), token: token.address(), backend: backend.address() };
        setup.passwords().into_iter().for_each(secrets::assert_marked);
        let shared = Shared::new(setup, addresses);
        let registry = Self { shared: Arc::new(shared), front, storage, token, backend };
        registry.restart().await;
        registry
    }

    /// Refuses connections from now on and closes those that are open, in the middle of a body too.
    /// The ports stay reserved: nobody else gets them before [`restart`](Self::restart).
    pub async fn stop(&self) {
        for (port, _) in self.ports() {
            port.close().await;
        }
    }

    /// Listens again on the same ports; content, rules, tokens and journal are as they were.
    pub async fn restart(&self) {
        self.stop().await;
        for (port, listener) in self.ports() {
            let shared = Arc::clone(&self.shared);
            port.open(move |request, wire| answer::answer(Arc::clone(&shared), listener, request, wire));
        }
    }

    fn ports(&self) -> [(&Port, Listener); 4] {
        [
            (&self.front, Listener::Front),
            (&self.storage, Listener::Storage),
            (&self.token, Listener::Token),
            (&self.backend, Listener::Backend),
        ]
    }

    /// By which it dates its tokens; a larder that is given a clone of it agrees with it.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    pub fn address(&self) -> SocketAddr {
        self.front.address()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn storage_url(&self) -> String {
        format!("http://{}", self.storage.address())
    }

    pub fn token_url(&self) -> String {
        format!("http://{}", self.token.address())
    }
}

// === impl Registry: what it holds ===

impl Registry {
    /// Puts a blob there and returns its digest.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = digest_of(&bytes);
        self.put_blob_under(repository, &digest, bytes);
        digest
    }

    /// Puts a blob there under this digest, which may be of another algorithm, or a lie.
    pub fn put_blob_under(&self, repository: &str, digest: &str, bytes: impl Into<Bytes>) {
        let mut content = self.shared.content.lock().unwrap();
        content.put_blob(repository, digest, bytes.into());
    }

    /// Puts a manifest there, tagged or not, and returns its digest.
    pub fn put_manifest(&self, repository: &str, tag: Option<&str>, media_type: &str, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = digest_of(&bytes);
        self.put_manifest_under(repository, &digest, media_type, bytes);
        if let Some(tag) = tag {
            self.tag(repository, tag, &digest);
        }
        digest
    }

    /// Puts a manifest there under this digest, which may be of another algorithm, or a lie.
    pub fn put_manifest_under(&self, repository: &str, digest: &str, media_type: &str, bytes: impl Into<Bytes>) {
        let mut content = self.shared.content.lock().unwrap();
        content.put_manifest(repository, digest, media_type, bytes.into());
    }

    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        self.shared.content.lock().unwrap().tag(repository, tag, digest);
    }

    pub fn untag(&self, repository: &str, tag: &str) {
        self.shared.content.lock().unwrap().untag(repository, tag);
    }

    /// Forgets the blob or manifest of this digest in this repository: 404 from now on.
    pub fn remove(&self, repository: &str, digest: &str) {
        self.shared.content.lock().unwrap().remove(repository, digest);
    }

    /// Lets only these accounts read the repository, as far as tokens are what opens it.
    pub fn restrict(&self, repository: &str, readers: &[&str]) {
        self.shared.content.lock().unwrap().restrict(repository, readers);
    }

    /// Gives the repository the referrers API, with this index for this subject; without one, and for
    /// any other subject, the index is empty. A repository that was never given one answers a plain 404.
    pub fn put_referrers(&self, repository: &str, subject: &str, index: Option<Bytes>) {
        let mut content = self.shared.content.lock().unwrap();
        content.put_referrers(repository, subject, index);
    }
}

// === impl Registry: what it does wrong ===

impl Registry {
    /// Applies these faults, all of them together, to the requests that match. The first rule that
    /// matches and is not used up decides; rules see only requests that got past the authorization.
    pub fn on(&self, which: Match, faults: impl Into<Vec<Fault>>) {
        self.shared.rules.lock().unwrap().push(which, faults.into());
    }

    /// Forgets all rules. Answers that have begun keep their faults.
    pub fn heal(&self) {
        *self.shared.rules.lock().unwrap() = Rules::default();
    }

    /// Lets go every request that has arrived so far and waits, or will wait, at a
    /// [`Fault::Gate`], [`Fault::Stall`] or [`Fault::Hang`]. A request with two gates needs two calls.
    pub fn release(&self) {
        self.shared.releases.send_modify(|generation| *generation += 1);
    }

    /// No token issued so far opens anything any more.
    pub fn expire_tokens(&self) {
        self.shared.tokens.expire();
    }

    /// Lets this account GET so many manifests from now on.
    pub fn set_budget(&self, account: &str, left: u64) {
        self.shared.budgets.set(account, left);
    }

    /// No redirect issued so far leads anywhere any more: 403 from the storage.
    pub fn expire_signatures(&self) {
        self.shared.storage.expire();
    }
}

// === impl Registry: what it saw ===

impl Registry {
    /// Every request so far on all listeners, in the order of arrival, refused ones too.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.journal.all()
    }

    /// How often the front was asked with this method for a path that contains `part`.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.count_at(Listener::Front, method, part)
    }

    pub fn count_at(&self, listener: Listener, method: &str, part: &str) -> usize {
        self.shared.journal.count(listener, method, part)
    }

    /// How often a token was asked for.
    pub fn token_requests(&self) -> usize {
        self.count_at(Listener::Token, "GET", "") + self.count_at(Listener::Token, "POST", "")
    }

    /// How often this account asked for a token for this scope.
    pub fn tokens(&self, account: &str, scope: &str) -> usize {
        let asked = |request: &&Recorded| {
            request.listener == Listener::Token
                && request.account == account
                && request.parameters("scope").iter().any(|asked| asked == scope)
        };
        self.requests().iter().filter(asked).count()
    }

    /// How many manifests this account may still GET.
    pub fn budget(&self, account: &str) -> u64 {
        self.shared.budgets.left(account)
    }

    /// Forgets the requests so far, so that a test counts only what follows.
    pub fn forget_requests(&self) {
        self.shared.journal.clear();
    }

    /// Waits until the front was asked this for the `times`-th time.
    pub async fn seen(&self, method: &str, part: &str, times: usize) {
        let waited = timeout(PATIENCE, self.shared.journal.reached(method, part, times)).await;
        assert!(waited.is_ok(), "not {times} times {method} …{part}… but {:#?}", self.requests());
    }

    /// Waits until `requests` requests wait for [`release`](Self::release) at one moment: the bytes
    /// before a gate or a stall are then sent.
    pub async fn held(&self, requests: usize) {
        let mut held = self.shared.held.subscribe();
        let waited = timeout(PATIENCE, held.wait_for(|held| *held >= requests)).await;
        assert!(waited.is_ok(), "not {requests} held requests but {}", *self.shared.held.borrow());
    }

    /// How many requests wait for `release` now. One whose client left no longer does.
    pub fn held_now(&self) -> usize {
        *self.shared.held.borrow()
    }

    /// The most bodies that were under way at one moment.
    pub fn max_concurrent(&self) -> usize {
        self.shared.in_flight.most()
    }

    /// How many bytes of bodies were given to the connections so far, at the front and at the storage.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.in_flight.bytes()
    }
}
