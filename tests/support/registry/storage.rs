//! The storage behind the front: a CDN that knows signatures and no users, or a place on the registry's own host.

use std::{collections::HashMap, net::SocketAddr, sync::Mutex};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::Method;

use super::{content::Content, journal::Recorded, noise, reply::Reply, setup::Target};

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

/// The part of the storage that is on the registry's own host.
const DOWNLOADS: &str = "/artifacts-downloads/";

// === impl Storage ===

impl Storage {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, signatures: Mutex::default() }
    }

    pub(super) fn expire(&self) {
        self.signatures.lock().unwrap().valid.clear();
    }

    /// Whether the front is asked for a blob by this path.
    pub(super) fn at_front(path: &str) -> bool {
        path.starts_with(DOWNLOADS)
    }

    /// A URL that gives this blob to whoever has it, and on the registry's own host shows a token too. Its path ends in
    /// the digest.
    pub(super) fn sign(&self, target: Target, repository: &str, digest: &str) -> String {
        let mut signatures = self.signatures.lock().unwrap();
        signatures.issued += 1;
        let signature = format!("canary-signature-{}", signatures.issued);
        let query = format!("expires=300&signature={signature}");
        let url = match target {
            Target::Storage => format!("http://{}/data/{digest}?{query}", self.address),
            Target::OwnHost => {
                // Artifact Registry's are about 2 KB long.
                let sealed = URL_SAFE_NO_PAD.encode(noise(signatures.issued as u64, 1_400));
                format!("{DOWNLOADS}namespaces/project/repositories/images/downloads/{sealed}/{digest}?{query}")
            }
        };
        let blob = (repository.to_owned(), digest.to_owned());
        signatures.valid.insert(signature, blob);
        url
    }

    pub(super) fn answer(&self, content: &Content, request: &Recorded) -> Reply {
        // S3 and Azure refuse a request that shows two credentials, the signature and a header.
        if request.authorization().is_some() && !Self::at_front(&request.path) {
            return Reply::text(400, "Only one auth mechanism allowed");
        }
        let signature = request.parameter("signature").unwrap_or_default();
        let signatures = self.signatures.lock().unwrap();
        let signed = signatures
            .valid
            .get(&signature)
            .filter(|(_, digest)| request.method == Method::GET && request.path.rsplit('/').next() == Some(digest.as_str()));
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
