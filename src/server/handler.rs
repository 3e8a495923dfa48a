//! One request: parse, ask the mirror, respond. The match below shows all that can happen.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::{Body as _, Incoming};

use crate::clock::Clock;
use crate::heavy;
use crate::mirror::{Mirror, Origin, Refusal, Served, Wanted};
use crate::network::block;
use crate::oci::{Accept, Digest, ErrorCode, Page, Reference, Route, Target, namespace};
use crate::traces::Tracer;
use crate::upstream::Hop;

use super::audit::Audit;
use super::body::Body;
use super::buffers::Buffers;
use super::connections::Beside;
use super::door::{Client, Peer};
use super::files::Files;
use super::log::AccessLine;
use super::login::shown;
use super::respond::{self, Kind};
use super::rules::Identity;
use super::shares::Shares;

/// What a request is handled with.
pub(super) struct Handler {
    pub(super) mirror: Mirror,
    pub(super) hop: Hop,
    pub(super) clock: Clock,
    pub(super) buffers: Buffers,
    pub(super) files: Files,
    pub(super) shares: Shares,
    pub(super) audit: Audit,
    pub(super) tracer: Tracer,
}

/// A request as it has come.
pub(super) struct Asked<'a> {
    pub(super) head: &'a Parts,
    /// The proxies that it has come through.
    via: Option<HeaderValue>,
    client: &'a Client,
    /// Whence it comes, as far as that can be told.
    pub(super) from: Peer,
    /// Who it is that asks.
    identity: Identity,
    /// The host that the client speaks to.
    pub(super) host: Option<&'a str>,
}

/// What there may be too little of for a request: its name in metrics, and what the log says.
struct Lack(&'static str, &'static str);

const MEMORY: Lack = Lack("memory", "max_buffers are in memory for clients");
const FILES: Lack = Lack("files", "its client has as many files open as are left, or none is");

/// As many as hyper takes over HTTP/1.1. In HTTP/2 a byte may stand for one, which takes a hundred here.
const MOST_HEADERS: usize = 100;

// === impl Handler ===

impl Handler {
    pub(super) async fn handle(&self, request: Request<Incoming>, client: Arc<Client>) -> Response<Body> {
        let (head, body) = request.into_parts();
        #[cfg(all(debug_assertions, not(fuzzing)))]
        assert!(!head.headers.contains_key("x-larder-panic"), "a test has asked for it");
        let from = client.terms.who_asks(&client, &head.headers);
        // Apart, as it goes with the answer, which is handed on from one to the next a dozen times.
        let mut line =
            Box::new(AccessLine::new(client.tells_of(from), &head.method, self.mirror.metrics().clone(), self.audit.clone()));
        line.span = self.tracer.request(|| Some(head.headers.get("traceparent")?.to_str().ok()?.to_owned()));
        let is_beside = is_beside(&head);
        let is_too_much = is_beside && self.buffers.are_full_for(from.ip());
        let count = (is_beside && !is_too_much).then(|| self.buffers.count(weight(&head), Some(from.ip())));
        let mut response = match self.shares.ask(from.ip()) {
            _ if head.headers.len() > MOST_HEADERS => {
                line.why = Some("it has more headers than any client sends".into());
                respond::too_many_headers()
            }
            // The first of each connection is heard, or nobody could begin a pull.
            _ if is_too_much => self.overloaded(&MEMORY, &mut line),
            Ok(()) => self.hear(&head, &client, from, &mut line).await,
            Err(wait) => {
                self.mirror.metrics().shed("client_requests");
                line.why = Some("its client asks more often than client_requests allows".into());
                respond::too_many(wait)
            }
        };
        if !body.is_end_stream() {
            // A body is not read. Where it ends, someone on the way may see otherwise: nothing that follows it is a request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let ns = head.uri.query().and_then(namespace);
        response = respond::finish(response, &head.method, ns.as_deref());
        (line.status, line.code) = (Some(response.status()), respond::code_of(&response));
        line.digest = self.audit.is_kept().then(|| respond::digest_of(&response)).flatten();
        response.map(|body| body.taken_by(from.ip(), self.shares.of(from.ip()), count).logged(line))
    }

    /// A request that its client may make.
    async fn hear(&self, head: &Parts, client: &Client, from: Peer, line: &mut AccessLine) -> Response<Body> {
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        match self.hop.received(&head.headers) {
            // Before anything else: each time round would be one more.
            Err(astray) => {
                line.why = Some(astray.to_string());
                respond::astray(astray)
            }
            // Nothing that changes something gets further.
            Ok(_) if !reads => respond::read_only(),
            Ok(_) if is_of_two_hosts(head) => {
                line.why = Some("it names two hosts".into());
                respond::invalid(ErrorCode::Unsupported, "the request names two hosts")
            }
            Ok(via) => match client.terms.identify(client, from, &head.headers, &self.clock).await {
                Ok(identity) => {
                    line.user = identity.user.clone().or_else(|| identity.certificate.clone());
                    line.certificate.clone_from(&identity.certificate);
                    self.answer(&Asked { head, via, client, from, identity, host: host(head) }, line).await
                }
                Err(refusal) => self.refuse(&refusal, Kind::Login, line),
            },
        }
    }

    async fn answer(&self, asked: &Asked<'_>, line: &mut AccessLine) -> Response<Body> {
        let uri = &asked.head.uri;
        // What manifests are is asked for most; of the others each is on its own, or all would have room for the largest.
        let mut response = match Route::parse(uri.path(), uri.query()) {
            Route::Ping => Box::pin(self.ping(asked, line)).await,
            Route::Token => Box::pin(self.token(asked, line)).await,
            Route::Manifest(target, reference) => {
                (line.kind, line.reference) = ("manifest", Some((&reference).into()));
                self.manifest(asked, &target, &reference, line).await
            }
            Route::Blob(target, digest) => {
                (line.kind, line.reference) = ("blob", Some((*digest.text()).into()));
                Box::pin(self.blob(asked, &target, &digest, line)).await
            }
            Route::Tags(target, page) => {
                line.kind = "tags";
                Box::pin(self.tags(asked, &target, &page, line)).await
            }
            Route::Referrers(target, digest, artifact_type) => {
                (line.kind, line.reference) = ("referrers", Some((*digest.text()).into()));
                Box::pin(self.referrers(asked, &target, &digest, artifact_type.as_deref(), line)).await
            }
            Route::Unsupported => respond::read_only(),
            Route::Invalid(code, message) => respond::invalid(code, &message),
            Route::NotFound => respond::not_found(),
        };
        // Only now it is known how much it is.
        let at_hand = response.body().at_hand();
        if asked.head.method == Method::GET && self.buffers.are_full_for_whole(at_hand, asked.from.ip()) {
            response = self.overloaded(&MEMORY, line);
        }
        if self.mirror.registries().gate(asked.host).is_some() || asked.client.terms.are_for_some() {
            respond::keep_private(&mut response);
        }
        response
    }

    async fn manifest(&self, asked: &Asked<'_>, target: &Target, reference: &Reference, line: &mut AccessLine) -> Response<Body> {
        let headers = &asked.head.headers;
        let wanted = Wanted::Manifest(reference.clone());
        let manifest = match self.locate(asked, target, &wanted, line).await {
            Ok(origin) => self.mirror.manifest(&origin, reference, Accept::of(headers)).await,
            Err(refusal) => Err(refusal),
        };
        match manifest {
            Ok(manifest) => {
                self.mirror.note_served(&manifest.served, line.repository.as_ref());
                line.served = Some(manifest.served.clone());
                let digest = manifest.digest.clone();
                let response = respond::manifest(manifest, headers, matches!(reference, Reference::Tag(_)));
                // Who has it already, and is told so, does not pull it.
                if asked.head.method == Method::GET && response.status() == StatusCode::OK {
                    self.mirror.note_pull(&digest);
                }
                response
            }
            Err(refusal) => self.refuse(&refusal, Kind::Manifest, line),
        }
    }

    async fn blob(&self, asked: &Asked<'_>, target: &Target, digest: &Digest, line: &mut AccessLine) -> Response<Body> {
        let head = asked.head;
        let kind = || respond::blob_for(&head.headers);
        let origin = match self.locate(asked, target, &Wanted::Blob(digest.clone()), line).await {
            Ok(origin) => origin,
            Err(refusal) => return self.refuse(&refusal, kind(), line),
        };
        if head.method == Method::HEAD {
            return match self.mirror.blob_size(&origin, digest).await {
                Ok(found) => {
                    line.served = Some(found.served.clone());
                    respond::blob_head(found.size, &found.served, digest, &head.headers)
                }
                Err(refusal) => self.refuse(&refusal, kind(), line),
            };
        }
        if self.buffers.are_full_for(asked.from.ip()) {
            return self.overloaded(&MEMORY, line);
        }
        // What is first on a connection is bounded as connections are.
        let Ok(file) = is_beside(head).then(|| self.files.open(digest, asked.from.ip())).transpose() else {
            return self.overloaded(&FILES, line);
        };
        match self.mirror.blob(&origin, digest).await {
            Ok(blob) => {
                self.mirror.note_served(&blob.served, line.repository.as_ref());
                line.served = Some(blob.served.clone());
                respond::blob(&blob, digest, &head.headers, head.version).await.map(|body| body.reading(file))
            }
            Err(refusal) => self.refuse(&refusal, kind(), line),
        }
    }

    async fn tags(&self, asked: &Asked<'_>, target: &Target, page: &Page, line: &mut AccessLine) -> Response<Body> {
        let list = match self.locate(asked, target, &Wanted::Tags, line).await {
            Ok(origin) => self.mirror.tag_list(&origin, page).await,
            Err(refusal) => Err(refusal),
        };
        match list {
            Ok(list) => {
                line.served = Some(list.served.clone());
                let link = list.next.as_ref().map(|next| next_link(target, next));
                let (path, length) = (target.path.clone(), list.tags.iter().map(String::len).sum());
                let askers = block(asked.from.ip()).into();
                let listed = heavy::work(&askers, length, move || respond::tag_list(&path, &list, link.as_deref())).await;
                listed.unwrap_or_else(|_| respond::panicked())
            }
            Err(refusal) => self.refuse(&refusal, Kind::Tags, line),
        }
    }

    async fn referrers(
        &self,
        asked: &Asked<'_>,
        target: &Target,
        digest: &Digest,
        artifact_type: Option<&str>,
        line: &mut AccessLine,
    ) -> Response<Body> {
        let wanted = Wanted::Manifest(Reference::Digest(digest.clone()));
        let referrers = match self.locate(asked, target, &wanted, line).await {
            Ok(origin) => self.mirror.referrers(&origin, digest, artifact_type).await,
            Err(refusal) => Err(refusal),
        };
        match referrers {
            Ok(referrers) => {
                line.served = Some(referrers.served.clone());
                respond::referrers(referrers)
            }
            Err(refusal) => self.refuse(&refusal, Kind::Referrers, line),
        }
    }

    /// The repository that is meant, once it is certain that the client may read it.
    async fn locate(
        &self,
        asked: &Asked<'_>,
        target: &Target,
        wanted: &Wanted,
        line: &mut AccessLine,
    ) -> Result<Origin, Refusal> {
        let mut origin = self.mirror.registries().locate(target, asked.host)?;
        origin.behalf.askers = block(asked.from.ip()).into();
        origin.behalf.via.clone_from(&asked.via);
        origin.behalf.trace = line.span.trace();
        line.repository = Some(origin.repository.clone());
        asked.client.terms.rules.check(&asked.identity, &origin.repository)?;
        if let Some(gate) = origin.gate() {
            let shown = shown(&asked.head.headers);
            let client = Box::pin(self.mirror.identify(&gate, &shown, Some(&target.path), asked.from.ip())).await?;
            line.login = client.parts().map(|(name, _)| name.into());
            origin.behalf.client = Some(client);
            Box::pin(self.mirror.authorize(&origin, wanted, &target.path)).await?;
        }
        Ok(origin)
    }

    fn overloaded(&self, &Lack(what, why): &Lack, line: &mut AccessLine) -> Response<Body> {
        self.mirror.metrics().shed(what);
        (line.served, line.why) = (None, Some(why.into()));
        respond::overloaded()
    }

    pub(super) fn refuse(&self, refusal: &Refusal, kind: Kind, line: &mut AccessLine) -> Response<Body> {
        line.why = Some(refusal.to_string());
        self.mirror.note_refusal(refusal, line.repository.as_ref());
        respond::refusal(refusal, kind, |until| until.since(self.clock.now()))
    }
}

/// Whether it was asked while its connection had something else under way.
fn is_beside(head: &Parts) -> bool {
    head.extensions.get::<Beside>().is_some()
}

/// About how much of the memory a request takes as long as it is answered, in bytes: its stream, its task, and its head twice.
fn weight(head: &Parts) -> usize {
    const ITSELF: usize = 8 << 10;
    ITSELF + 2 * head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>()
}

/// The host that a client speaks to.
fn host(head: &Parts) -> Option<&str> {
    let Parts { uri, headers, .. } = head;
    uri.authority().map(http::uri::Authority::as_str).or_else(|| headers.get(header::HOST)?.to_str().ok())
}

/// Whether someone on the way may have let it pass as meant for another host than the one that larder takes it to be for (RFC 9112,
/// section 3.2; RFC 9113, section 8.3.1).
fn is_of_two_hosts(head: &Parts) -> bool {
    let headers = head.headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    let mut hosts = head.uri.authority().map(|authority| authority.as_str().as_bytes()).into_iter().chain(headers);
    hosts.next().is_some_and(|first| hosts.any(|other| !other.eq_ignore_ascii_case(first)))
}

/// Where a list goes on: relative, and with all that the client needs to come back to the same upstream.
fn next_link(target: &Target, next: &Page) -> String {
    let mut query = next.link();
    if let Some(ns) = &target.ns {
        let ns: String = form_urlencoded::byte_serialize(ns.as_bytes()).collect();
        query.push_str(&format!("&ns={ns}"));
    }
    let prefix = target.prefix.as_ref().map_or(String::new(), |prefix| format!("/{prefix}"));
    format!("{prefix}/v2/{}/tags/list?{query}", target.path)
}

// === impl Served ===

impl Served {
    /// The one word.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Joined(_) => "joined",
            Self::Miss(_) => "miss",
            Self::Revalidated => "revalidated",
            Self::Stale(_) => "stale",
            Self::Offline => "offline",
            Self::Bypass(..) => "bypass",
        }
    }
}
