//! TLS for clients: how larder shows itself, and handshakes, which cost most before anyone is known.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::upstream::pem;

use super::fresh::{Fresh, Look};
use super::options::{ClientCert, ListenerOptions};

/// The TLS of one listener.
#[derive(Clone)]
pub(super) struct Tls(Arc<Fresh<ServerConfig>>);

/// Handshakes under way. For one more than there may be, the one that has lasted longest is given up: it is the likeliest to be
/// nobody's, and who has to wait has not been kept out by it.
#[derive(Default)]
pub(super) struct Handshakes(Mutex<Underway>);

#[derive(Default)]
struct Underway {
    next: u64,
    /// What ends each.
    all: BTreeMap<u64, CancellationToken>,
}

/// A handshake is under way until this is dropped.
pub(super) struct Handshake<'a> {
    all: &'a Handshakes,
    number: u64,
}

/// So many handshakes may be under way.
const MOST_HANDSHAKES: usize = 1024;

// === impl Tls ===

impl Tls {
    pub(super) fn of(options: &ListenerOptions) -> Result<Self, String> {
        let files = vec![options.cert_file.clone(), options.key_file.clone(), options.client_ca_file.clone()];
        let what = format!("the certificate of {}", options.listen);
        pem::warn_of_readers("key_file", &options.key_file);
        let options = options.clone();
        Fresh::new(what, files, move || config(&options)).map(Arc::new).map(Self)
    }

    /// For one handshake; and what tells when its files are no longer those that it was made of.
    pub(super) fn acceptor(&self) -> (TlsAcceptor, watch::Receiver<Arc<ServerConfig>>) {
        let watch = self.0.watch();
        let config = Arc::clone(&watch.borrow());
        (TlsAcceptor::from(config), watch)
    }

    pub(super) fn files(&self) -> Arc<dyn Look> {
        Arc::clone(&self.0) as _
    }
}

fn config(options: &ListenerOptions) -> Result<ServerConfig, String> {
    let chain = pem::certificates("cert_file", &options.cert_file)?;
    let key = pem::key("key_file", &options.key_file)?;
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier(options, provider)?)
        .with_single_cert(chain, key)
        .map_err(|error| format!("cert_file does not fit key_file: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if options.asks_for_certificates() {
        // A ticket would stand for a certificate that is not looked at again: not whether it has ended, not who has signed it.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    } else {
        // Who comes again is spared the signature, and larder remembers nothing of anyone.
        config.ticketer = ring::Ticketer::new().map_err(|error| error.to_string())?;
    }
    Ok(config)
}

/// Who looks at the certificates of clients.
fn verifier(options: &ListenerOptions, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let authorities = pem::certificates("client_ca_file", &options.client_ca_file)?;
    if authorities.is_empty() {
        return Ok(WebPkiClientVerifier::no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|error| format!("client_ca_file: {error}"))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
    let optional = options.certificates() == Some(ClientCert::Optional);
    let verifier = if optional { verifier.allow_unauthenticated() } else { verifier };
    verifier.build().map_err(|error| format!("client_ca_file: {error}"))
}

// === impl Handshakes ===

impl Handshakes {
    /// Begins one that `end` ends, if it must make room.
    pub(super) fn begin(&self, end: CancellationToken) -> Handshake<'_> {
        let mut underway = self.underway();
        if underway.all.len() >= MOST_HANDSHAKES
            && let Some((_, oldest)) = underway.all.pop_first()
        {
            oldest.cancel();
        }
        let number = underway.next;
        underway.next += 1;
        underway.all.insert(number, end);
        Handshake { all: self, number }
    }

    fn underway(&self) -> MutexGuard<'_, Underway> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.all.underway().all.remove(&self.number);
    }
}
