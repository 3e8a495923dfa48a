//! TLS to an upstream: whom larder trusts, and as whom it shows itself.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::RootCertStore;
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::credentials::warn_of_readers;
use super::options::Options;

/// Trusts what the system trusts, and `ca_file` where one is given. `trusted`: for who may see the client
/// certificate: the upstream itself, and nobody to whom it sends us.
///
/// # Errors
/// One line that says which option is wrong.
pub(super) fn config(options: &Options, trusted: bool) -> Result<rustls::ClientConfig, String> {
    let mut roots = system_roots().clone();
    for certificate in certificates("ca_file", &options.ca_file)? {
        roots.add(certificate).map_err(|error| unreadable("ca_file", &options.ca_file, &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let (chain, key) = (&options.client_cert_file, &options.client_key_file);
    match (chain.as_os_str().is_empty(), key.as_os_str().is_empty()) {
        (true, true) => return Ok(builder.with_no_client_auth()),
        (false, false) => {}
        _ => return Err("client_cert_file and client_key_file go together; one of them is missing".into()),
    }
    let chain = certificates("client_cert_file", chain)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("client_key_file", key, &error))?;
    if !trusted {
        return Ok(builder.with_no_client_auth());
    }
    warn_of_readers("client_key_file", &options.client_key_file);
    builder.with_client_auth_cert(chain, key).map_err(|error| format!("client_cert_file does not fit client_key_file: {error}"))
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    if path.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, Error>>);
    read.map_err(|error| unreadable(option, path, &error))
}

fn unreadable(option: &str, path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{option} {} cannot be read: {error}", path.display())
}

fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        roots
    })
}
