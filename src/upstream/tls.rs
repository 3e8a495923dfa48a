//! TLS to an upstream: whom larder trusts, and as whom it shows itself.

use std::sync::{Arc, OnceLock};

use rustls::RootCertStore;

use super::options::Options;
use super::pem;

/// Trusts what the system trusts, and `ca_file` where one is given. `trusted`: for who may see the client
/// certificate: the upstream itself, and nobody to whom it sends us.
///
/// # Errors
/// One line that says which option is wrong.
pub(super) fn config(options: &Options, trusted: bool) -> Result<rustls::ClientConfig, String> {
    let mut roots = Arc::clone(system_roots());
    for certificate in pem::certificates("ca_file", &options.ca_file)? {
        Arc::make_mut(&mut roots).add(certificate).map_err(|error| pem::unreadable("ca_file", &options.ca_file, &error))?;
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
    let chain = pem::certificates("client_cert_file", chain)?;
    let key = pem::key("client_key_file", key)?;
    if !trusted {
        return Ok(builder.with_no_client_auth());
    }
    pem::warn_of_readers("client_key_file", &options.client_key_file);
    builder.with_client_auth_cert(chain, key).map_err(|error| format!("client_cert_file does not fit client_key_file: {error}"))
}

/// For who is no upstream: trusts what the system trusts.
///
/// # Errors
/// There is no TLS to be had.
pub(crate) fn for_others() -> Result<rustls::ClientConfig, String> {
    config(&Options::default(), false)
}

/// Many upstreams share them.
fn system_roots() -> &'static Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Arc::new(roots)
    })
}
