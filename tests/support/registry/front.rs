//! The pull half of the distribution spec, as a healthy registry answers it.

use hyper::{Method, StatusCode};

use super::{
    content::{Content, Repository},
    journal::Recorded,
    reply::Reply,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What a path asks for. Names may hold any word, so it is read from its right end.
pub(super) enum Route<'a> {
    Base,
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    Tags(&'a str),
    Referrers(&'a str, &'a str),
    Unknown,
}

// === impl Route ===

impl<'a> Route<'a> {
    pub(super) fn of(path: &'a str) -> Self {
        let Some(rest) = path.strip_prefix("/v2") else {
            return Self::Unknown;
        };
        if matches!(rest, "" | "/") {
            return Self::Base;
        }
        let parts = rest.strip_prefix('/').and_then(|rest| {
            let (rest, last) = rest.rsplit_once('/')?;
            let (repository, kind) = rest.rsplit_once('/')?;
            Some((repository, kind, last))
        });
        match parts {
            Some((repository, "manifests", reference)) => Self::Manifest(repository, reference),
            Some((repository, "blobs", digest)) => Self::Blob(repository, digest),
            Some((repository, "tags", "list")) => Self::Tags(repository),
            Some((repository, "referrers", digest)) => Self::Referrers(repository, digest),
            _ => Self::Unknown,
        }
    }

    /// What a token must allow; any token will do for a route without a repository.
    pub(super) fn scope(&self) -> Option<String> {
        self.name().map(|name| format!("repository:{name}:pull"))
    }

    fn name(&self) -> Option<&'a str> {
        match self {
            Self::Manifest(name, _) | Self::Blob(name, _) | Self::Referrers(name, _) | Self::Tags(name) => Some(name),
            Self::Base | Self::Unknown => None,
        }
    }
}

/// `redirect` gives the place to which a GET of a blob is sent, if it is to be sent anywhere.
pub(super) fn front(content: &Content, request: &Recorded, redirect: impl FnOnce(&str, &str) -> Option<String>) -> Reply {
    if request.method != Method::GET && request.method != Method::HEAD {
        return Reply::error(405, "UNSUPPORTED").header("allow", "GET, HEAD");
    }
    let route = Route::of(&request.path);
    let repository = route.name().and_then(|name| content.repository(name));
    let reply = match (route, repository) {
        (Route::Base, _) => Reply::ok("application/json", "{}"),
        (Route::Unknown, _) => Reply::text(404, "404 page not found"),
        (Route::Referrers(_, subject), repository) => referrers(repository, subject),
        (_, None) => Reply::error(404, "NAME_UNKNOWN"),
        (Route::Manifest(_, reference), Some(repository)) => manifest(repository, reference),
        (Route::Tags(name), Some(repository)) => tags(name, repository, request),
        (Route::Blob(name, digest), Some(repository)) => {
            let blob = blob(repository, digest);
            let redirects = blob.status == StatusCode::OK && request.method == Method::GET;
            match redirects.then(|| redirect(name, digest)).flatten() {
                Some(location) => Reply::new(307).header("location", &location),
                None => blob,
            }
        }
    };
    reply.header("docker-distribution-api-version", "registry/2.0")
}

fn manifest(repository: &Repository, reference: &str) -> Reply {
    match repository.manifest(reference) {
        Some(manifest) => Reply::ok(&manifest.media_type, manifest.bytes.clone())
            .header("docker-content-digest", &manifest.digest)
            .header("etag", &format!("\"{}\"", manifest.digest)),
        None => Reply::error(404, "MANIFEST_UNKNOWN"),
    }
}

fn blob(repository: &Repository, digest: &str) -> Reply {
    match repository.blobs.get(digest) {
        Some(bytes) => Reply::ok("application/octet-stream", bytes.clone())
            .header("accept-ranges", "bytes")
            .header("docker-content-digest", digest)
            .header("etag", &format!("\"{digest}\"")),
        None => Reply::error(404, "BLOB_UNKNOWN"),
    }
}

/// A page of at most `n` tags after `last`, and where the next one is.
fn tags(name: &str, repository: &Repository, request: &Recorded) -> Reply {
    let last = request.parameter("last").unwrap_or_default();
    let size = match request.parameter("n").map(|n| n.parse::<usize>()) {
        None => usize::MAX,
        Some(Ok(n)) => n,
        Some(Err(_)) => return Reply::error(400, "PAGINATION_NUMBER_INVALID"),
    };
    let mut after = repository.tags.keys().filter(|tag| **tag > last);
    let page: Vec<&String> = after.by_ref().take(size).collect();
    let body = serde_json::json!({ "name": name, "tags": page });
    let reply = Reply::ok("application/json", body.to_string());
    match page.last() {
        Some(last) if after.next().is_some() => {
            let link = format!("</v2/{name}/tags/list?last={last}&n={size}>; rel=\"next\"");
            reply.header("link", &link)
        }
        _ => reply,
    }
}

fn referrers(repository: Option<&Repository>, subject: &str) -> Reply {
    let Some(known) = repository.and_then(|repository| repository.referrers.as_ref()) else {
        return Reply::text(404, "404 page not found");
    };
    if let Some(index) = known.get(subject) {
        Reply::ok(INDEX, index.clone())
    } else {
        let empty = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] });
        Reply::ok(INDEX, empty.to_string())
    }
}
