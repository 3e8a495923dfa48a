//! The storage behind the front: a CDN that knows signatures and no users.

use std::{collections::HashMap, net::SocketAddr, sync::Mutex};

use hyper::Method;

use super::{content::Content, journal::Recorded, reply::Reply};

/// The signatures that lead to a blob. They are made for GET, as S3 makes them: a HEAD is refused.
pub(super) struct Storage {
    address: SocketAddr,
    signatures: Mutex<Signatures>,
}

#[derive(Default)]
struct Signatures {
    issued: usize,
    /// Repository and digest, by signature.
    valid: HashMap<String, (String, String)>,
}

// === impl Storage ===

impl Storage {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, signatures: Mutex::default() }
    }

    pub(super) fn expire(&self) {
        self.signatures.lock().unwrap().valid.clear();
    }

    /// A URL that gives this blob to whoever has it.
    pub(super) fn sign(&self, repository: &str, digest: &str) -> String {
        let mut signatures = self.signatures.lock().unwrap();
        signatures.issued += 1;
        let signature = format!("scripted-signature-{}", signatures.issued);
        let url = format!("http://{}/data/{digest}?expires=300&signature={signature}", self.address);
        let blob = (repository.to_owned(), digest.to_owned());
        signatures.valid.insert(signature, blob);
        url
    }

    pub(super) fn answer(&self, content: &Content, request: &Recorded) -> Reply {
        // S3 and Azure refuse a request that shows two credentials, the signature and a header.
        if request.authorization().is_some() {
            return Reply::text(400, "Only one auth mechanism allowed");
        }
        let signature = request.parameter("signature").unwrap_or_default();
        let signatures = self.signatures.lock().unwrap();
        let signed = signatures
            .valid
            .get(&signature)
            .filter(|(_, digest)| request.method == Method::GET && request.path.strip_prefix("/data/") == Some(digest.as_str()));
        let Some((repository, digest)) = signed else {
            return Reply::text(403, "Request has expired");
        };
        let repository = content.repository(repository);
        match repository.and_then(|repository| repository.blobs.get(digest)) {
            Some(blob) => Reply::ok("application/octet-stream", blob.clone())
                .header("accept-ranges", "bytes")
                .header("etag", "\"not-the-digest\""),
            None => Reply::text(404, "NoSuchKey"),
        }
    }
}
