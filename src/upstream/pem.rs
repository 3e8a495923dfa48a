//! Certificates and keys in files, as PEM (RFC 7468).

use std::path::Path;

use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub(crate) use super::credentials::warn_of_readers;

/// The certificates in a file, at least one; none if there is no path.
///
/// # Errors
/// One line that names the option.
pub(crate) fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    if path.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, Error>>);
    match read {
        Ok(none) if none.is_empty() => Err(unreadable(option, path, &"there is no certificate in it")),
        read => read.map_err(|error| unreadable(option, path, &error)),
    }
}

/// The key in a file.
///
/// # Errors
/// One line that names the option.
pub(crate) fn key(option: &str, path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(option, path, &error))
}

pub(super) fn unreadable(option: &str, path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{option} {} cannot be read: {error}", path.display())
}
