//! The pull half of the distribution spec, as a healthy registry answers it.

use std::net::SocketAddr;

use hyper::{Method, StatusCode};

use super::{
    content::{Content, Manifest, Repository},
    gzip::gzip,
    journal::Recorded,
    limit::Budgets,
    lists::{referrers, tags},
    reply::Reply,
    setup::{HeadBlob, Setup, UnacceptedIndex},
    storage::Storage,
};

/// What a path asks for. Names may hold any word, so it is read from its right end.
#[derive(Clone, Copy)]
pub(super) enum Route<'a> {
    Base,
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    Tags(&'a str),
    Referrers(&'a str, &'a str),
    Unknown,
}

/// All that an answer is made of.
pub(super) struct Front<'a> {
    pub(super) setup: &'a Setup,
    pub(super) content: &'a mut Content,
    pub(super) storage: &'a Storage,
    pub(super) budgets: &'a Budgets,
    pub(super) address: SocketAddr,
    pub(super) backend: SocketAddr,
}

/// Where the backend keeps what the gateway has sent it.
const BACKEND: &str = "/v2/k8s-artifacts-prod/images";

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

    /// The repository, where it is about one.
    pub(super) fn name(&self) -> Option<&'a str> {
        match self {
            Self::Manifest(name, _) | Self::Blob(name, _) | Self::Referrers(name, _) | Self::Tags(name) => Some(name),
            Self::Base | Self::Unknown => None,
        }
    }
}

// === impl Front ===

impl Front<'_> {
    pub(super) fn answer(&mut self, request: &Recorded) -> Reply {
        match self.elsewhere(&request.path) {
            Some(redirect) => redirect,
            None => self.here(Route::of(&request.path), request),
        }
    }

    /// What the gateway's redirects find.
    pub(super) fn answer_as_backend(&mut self, request: &Recorded) -> Reply {
        match request.path.strip_prefix(BACKEND) {
            Some(rest) => self.here(Route::of(&format!("/v2{rest}")), request),
            None => Reply::text(404, "404 page not found"),
        }
    }

    fn elsewhere(&self, path: &str) -> Option<Reply> {
        match Route::of(path) {
            Route::Manifest(..) | Route::Tags(_) | Route::Referrers(..) if self.setup.gateway => {
                let rest = path.strip_prefix("/v2")?;
                Some(Reply::redirect(307, &format!("http://{}{BACKEND}{rest}", self.backend)))
            }
            Route::Manifest(name, _) | Route::Blob(name, _) => {
                let (project, short) = name.split_once('/')?;
                let applies = self.setup.hub_project == Some(project) && !short.contains('/');
                let rest = path.strip_prefix("/v2/")?.strip_prefix(name)?;
                applies.then(|| Reply::redirect(301, &format!("/v2/{project}/library/{short}{rest}")))
            }
            _ => None,
        }
    }

    fn here(&mut self, route: Route<'_>, request: &Recorded) -> Reply {
        if request.method != Method::GET && request.method != Method::HEAD {
            return Reply::error(405, "UNSUPPORTED").header("allow", "GET, HEAD");
        }
        let repository = route.name().and_then(|name| self.content.repository(name));
        let lists = &self.setup.lists;
        let reply = match (route, repository) {
            (Route::Base, _) => Reply::ok("application/json", "{}"),
            (Route::Unknown, _) => Reply::text(404, "404 page not found"),
            (Route::Referrers(_, subject), repository) => referrers(lists, repository, subject),
            (_, None) => Reply::error(404, "NAME_UNKNOWN"),
            (Route::Manifest(_, reference), Some(repository)) => self.manifest(repository, reference, request),
            (Route::Tags(name), Some(repository)) => tags(lists, name, repository, request, self.address),
            (Route::Blob(name, digest), Some(_)) => self.blob(name, digest, request),
        };
        reply.header("docker-distribution-api-version", "registry/2.0").without(match route {
            Route::Manifest(..) => self.setup.manifests.lacks,
            Route::Blob(..) => self.setup.blobs.lacks,
            _ => &[],
        })
    }

    fn manifest(&self, repository: &Repository, reference: &str, request: &Recorded) -> Reply {
        let setup = &self.setup.manifests;
        if setup.no_head && request.method == Method::HEAD {
            return Reply::error(405, "UNSUPPORTED").header("allow", "GET");
        }
        let Some(mut manifest) = repository.manifest(reference) else {
            return Reply::error(404, "MANIFEST_UNKNOWN");
        };
        if manifest.is_index() && !request.accepts(&manifest.media_type) {
            match setup.unaccepted_index {
                UnacceptedIndex::Index => {}
                UnacceptedIndex::Child => manifest = child(repository, reference, manifest),
                UnacceptedIndex::NotFound => return Reply::error(404, "MANIFEST_UNKNOWN"),
            }
        }
        let reply = Reply::ok(&manifest.media_type, manifest.bytes.clone())
            .header("docker-content-digest", &manifest.digest)
            .header("etag", &format!("\"{}\"", manifest.digest));
        let reply = if setup.gzip { reply.body(gzip(&manifest.bytes)).header("content-encoding", "gzip") } else { reply };
        self.budgets.count(request, reply)
    }

    fn blob(&mut self, name: &str, digest: &str, request: &Recorded) -> Reply {
        let setup = &self.setup.blobs;
        let is_head = request.method == Method::HEAD;
        let repository = self.content.repository_mut(name);
        let Some(bytes) = repository.blobs.get(digest).cloned() else {
            return Reply::error(404, "BLOB_UNKNOWN");
        };
        if !is_head {
            repository.fetched.insert(digest.to_owned());
        } else if setup.head == HeadBlob::AfterGet && !repository.fetched.contains(digest) {
            return Reply::error(404, "BLOB_UNKNOWN");
        }
        match setup.redirect {
            Some(redirect) if !is_head || setup.head == HeadBlob::Redirected => {
                Reply::redirect(redirect.status, &self.storage.sign(redirect.to, name, digest))
            }
            _ => Reply::ok("application/octet-stream", bytes)
                .header("accept-ranges", "bytes")
                .header("docker-content-digest", digest)
                .header("etag", &format!("\"{digest}\"")),
        }
    }
}

/// The child of an index for linux/amd64. What was asked for by digest is never another.
fn child<'a>(repository: &'a Repository, reference: &str, index: &'a Manifest) -> &'a Manifest {
    let parsed: serde_json::Value = serde_json::from_slice(&index.bytes).expect("an index is JSON");
    let children = parsed["manifests"].as_array().into_iter().flatten();
    let amd64 = children.filter(|child| child["platform"]["architecture"] == "amd64").find_map(|child| child["digest"].as_str());
    let child = amd64.filter(|_| reference != index.digest).and_then(|digest| repository.manifests.get(digest));
    child.unwrap_or(index)
}
