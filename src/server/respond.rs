//! Answers: the one place where outcomes become statuses and headers.

mod refusal;

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use serde::Serialize;

use crate::clock::Timestamp;
use crate::mirror::{self, ByteStream, Pieces, Served};
use crate::oci::{Digest, ErrorCode};

use super::admin::Page;
use super::body::Body;
use super::range::Ranges;

pub(super) use refusal::{
    astray, invalid, no_place, not_found, overloaded, panicked, read_only, refusal, too_many, too_many_headers, wants_tls,
};

/// What kind of thing a request was for; the same trouble is told differently of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Blob,
    /// A blob, for a client that sleeps when it is told of a rate limit, and asks another registry when it is told of overload.
    BlobOrSleep,
    Tags,
    Referrers,
    /// A client that says who it is.
    Login,
}

/// Those that are built on containers/image, which before it asks another registry sleeps through every 429 it gets.
const SLEEPERS: [&str; 6] = ["containers/", "libpod/", "podman/", "buildah/", "skopeo/", "cri-o/"];

/// How many headers an answer has; room for them at once is less work than bit by bit.
const USUAL: usize = 12;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const REGISTRY_2: HeaderValue = HeaderValue::from_static("registry/2.0");
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");
const BY_ACCEPT: HeaderValue = HeaderValue::from_static("accept");

const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const IMMUTABLE: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");

// === what is there ===

/// `/v2/`: 200 without a challenge, or clients would show us their passwords.
pub(super) fn ping() -> Response<Body> {
    let mut response = json(StatusCode::OK, b"{}".to_vec());
    cache_status(&mut response, None);
    response
}

/// A client's token, for it alone.
pub(super) fn token(token: &mirror::Token, now: Timestamp) -> Response<Body> {
    // To the nearest: whole seconds are what clients read.
    let life = token.until.since(now) + Duration::from_millis(500);
    let body = serde_json::json!({
        "token": token.text,
        "access_token": token.text,
        "expires_in": life.as_secs(),
        "issued_at": humantime::format_rfc3339_seconds(now.into()).to_string(),
    });
    let mut response = json(StatusCode::OK, body.to_string().into_bytes());
    response.headers_mut().insert(header::CACHE_CONTROL, NO_STORE);
    cache_status(&mut response, None);
    response
}

pub(super) fn manifest(manifest: mirror::Manifest, headers: &HeaderMap, by_tag: bool) -> Response<Body> {
    let mut told = told(&manifest);
    let unchanged = none_match(headers, &manifest.digest);
    if unchanged {
        told.remove(header::CONTENT_TYPE);
        told.remove(header::CONTENT_LENGTH);
    }
    told.insert(header::CACHE_CONTROL, if by_tag { NO_CACHE } else { IMMUTABLE });
    if by_tag {
        told.insert(header::VARY, BY_ACCEPT);
    }
    let mut response = if unchanged { status(StatusCode::NOT_MODIFIED) } else { Response::new(Body::bytes(manifest.bytes)) };
    *response.headers_mut() = told;
    cache_status(&mut response, Some(&manifest.served));
    response
}

/// What is told with a manifest in every answer. It is made once, but where another repository calls the same bytes by another type.
fn told(manifest: &mirror::Manifest) -> HeaderMap {
    let tell = || {
        let mut told = HeaderMap::with_capacity(USUAL);
        if let Ok(media_type) = HeaderValue::try_from(&*manifest.media_type) {
            told.insert(header::CONTENT_TYPE, media_type);
        }
        told.insert(header::CONTENT_LENGTH, manifest.bytes.len().into());
        identify(&mut told, &manifest.digest);
        standard(&mut told);
        told
    };
    let told = manifest.told.headers.get_or_init(tell);
    let is_so = told.get(header::CONTENT_TYPE).is_some_and(|told| told.as_bytes() == manifest.media_type.as_bytes());
    if is_so { told.clone() } else { tell() }
}

pub(super) fn blob_head(size: Option<u64>, served: &Served, digest: &Digest, headers: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    if none_match(headers, digest) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        describe_blob(&mut response);
        size.iter().for_each(|size| set(&mut response, header::CONTENT_LENGTH, &size.to_string()));
    }
    identify(response.headers_mut(), digest);
    response.headers_mut().insert(header::CACHE_CONTROL, IMMUTABLE);
    cache_status(&mut response, Some(served));
    response
}

pub(super) async fn blob(blob: &mirror::Blob, digest: &Digest, headers: &HeaderMap, version: Version) -> Response<Body> {
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = range.filter(|_| if_range(headers, digest));
    // Only a range needs to know the size; for all of it we need not wait.
    let mut size = if range.is_some() { blob.size().await } else { blob.known_size() };
    // In HTTP/1.0 a body without a length ends with the connection, so that a short one would look whole.
    let must_be_known = size.is_none() && version == Version::HTTP_10;
    if must_be_known {
        size = blob.verified_size().await;
    }
    let mut response = if none_match(headers, digest) {
        status(StatusCode::NOT_MODIFIED)
    } else {
        match (range, size) {
            (Some(range), Some(size)) => ranged(blob, Ranges::parse(range, size), size),
            (_, None) if must_be_known => {
                error(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, "the upstream does not say how large the blob is")
            }
            // Where the size cannot be known in time, a range is passed over, as it may be.
            (_, size) => whole(blob, size),
        }
    };
    // Nobody may keep a refusal for the blob.
    if response.status().is_success() || response.status() == StatusCode::NOT_MODIFIED {
        identify(response.headers_mut(), digest);
        // A part may go out before the whole is known to be right.
        let may_be_wrong = response.status() == StatusCode::PARTIAL_CONTENT && !blob.is_verified();
        response.headers_mut().insert(header::CACHE_CONTROL, if may_be_wrong { NO_STORE } else { IMMUTABLE });
    } else {
        set(&mut response, DIGEST, &digest.text());
    }
    cache_status(&mut response, Some(&blob.served));
    response
}

fn whole(blob: &mirror::Blob, size: Option<u64>) -> Response<Body> {
    let mut response = Response::new(match size {
        Some(0) => Body::empty(),
        _ => Body::streamed(|pieces| blob.read_all(pieces)),
    });
    describe_blob(&mut response);
    size.iter().for_each(|size| set(&mut response, header::CONTENT_LENGTH, &size.to_string()));
    response
}

fn ranged(blob: &mirror::Blob, ranges: Ranges, size: u64) -> Response<Body> {
    match ranges {
        Ranges::Whole => whole(blob, Some(size)),
        Ranges::One(range) => {
            let mut response = Response::new(Body::streamed(|pieces| blob.read(range.start, range.end, pieces)));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            describe_blob(&mut response);
            set(&mut response, header::CONTENT_RANGE, &content_range(&range, size));
            response.headers_mut().insert(header::CONTENT_LENGTH, (range.end - range.start).into());
            response
        }
        Ranges::Many(ranges) => multipart(blob, ranges, size),
        Ranges::Unsatisfiable => {
            let mut response = error(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::RangeInvalid, "no byte is in that range");
            set(&mut response, header::CONTENT_RANGE, &format!("bytes */{size}"));
            response
        }
        Ranges::TooMany => error(StatusCode::BAD_REQUEST, ErrorCode::RangeInvalid, "too many ranges; ask for fewer at once"),
    }
}

/// `multipart/byteranges`, one part for each range, in order. Some clients take no boundary but of letters and digits.
fn multipart(blob: &mirror::Blob, ranges: Vec<std::ops::Range<u64>>, size: u64) -> Response<Body> {
    const BOUNDARY: &str = "larderf2e4a90b7c3d41e58f6a";
    let head = move |range: &std::ops::Range<u64>| {
        format!(
            "\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Range: {}\r\n\r\n",
            content_range(range, size)
        )
    };
    let end = format!("\r\n--{BOUNDARY}--\r\n");
    let length: u64 = ranges.iter().map(|range| head(range).len() as u64 + range.end - range.start).sum();
    let length = length + end.len() as u64;
    let parts = |pieces: &Pieces| -> ByteStream {
        let (blob, pieces) = (blob.clone(), pieces.clone());
        // One is read when the one before has ended: a reader takes more memory than a client's words for it.
        let parts = stream::iter(ranges).flat_map(move |range| {
            let head = Bytes::from(head(&range));
            stream::iter([Ok(head.into())]).chain(blob.read(range.start, range.end, &pieces))
        });
        Box::pin(parts.chain(stream::iter([Ok(Bytes::from(end).into())])))
    };
    let mut response = Response::new(Body::streamed(parts));
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    set(&mut response, header::CONTENT_TYPE, &format!("multipart/byteranges; boundary={BOUNDARY}"));
    set(&mut response, header::CONTENT_LENGTH, &length.to_string());
    response
}

fn content_range(range: &std::ops::Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
}

fn describe_blob(response: &mut Response<Body>) {
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
}

/// `link`: where the list goes on, as this server's own path.
pub(super) fn tag_list(name: &str, list: &mirror::TagList, link: Option<&str>) -> Response<Body> {
    #[derive(Serialize)]
    struct Page<'a> {
        name: &'a str,
        tags: &'a [String],
    }
    let body = serde_json::to_vec(&Page { name, tags: &list.tags });
    let mut response = json(StatusCode::OK, body.unwrap_or_default());
    link.iter().for_each(|link| set(&mut response, header::LINK, &format!("<{link}>; rel=\"next\"")));
    cache_status(&mut response, Some(&list.served));
    response
}

pub(super) fn referrers(referrers: mirror::Referrers) -> Response<Body> {
    let length = referrers.index.len();
    let mut response = Response::new(Body::bytes(referrers.index));
    set(&mut response, header::CONTENT_TYPE, crate::oci::INDEX_TYPE);
    set(&mut response, header::CONTENT_LENGTH, &length.to_string());
    if referrers.filtered {
        set(&mut response, HeaderName::from_static("oci-filters-applied"), "artifactType");
    }
    cache_status(&mut response, Some(&referrers.served));
    response
}

// === for the operator ===

pub(super) fn document(document: &serde_json::Value) -> Response<Body> {
    json(StatusCode::OK, document.to_string().into_bytes())
}

/// What was asked for has begun, and goes on.
pub(super) fn begun(document: &serde_json::Value) -> Response<Body> {
    json(StatusCode::ACCEPTED, document.to_string().into_bytes())
}

/// It could not be done as things are; says why.
pub(super) fn not_done(why: &str) -> Response<Body> {
    error(StatusCode::CONFLICT, ErrorCode::Denied, why)
}

pub(super) fn page(page: &'static Page) -> Response<Body> {
    let mut response = Response::new(Body::bytes(page.html.as_str()));
    set(&mut response, header::CONTENT_TYPE, "text/html; charset=utf-8");
    set(&mut response, header::CONTENT_LENGTH, &page.html.len().to_string());
    set(&mut response, header::CONTENT_SECURITY_POLICY, &page.policy);
    response
}

/// What every answer to the operator has: no page of others shows it, and nobody keeps it.
pub(super) fn for_operator(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CONTENT_SECURITY_POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    }
    response
}

pub(super) fn metrics(page: String, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::bytes(page));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(super) fn forbidden(why: &str) -> Response<Body> {
    error(StatusCode::FORBIDDEN, ErrorCode::Denied, why)
}

pub(super) fn wrong_method(allow: &'static str) -> Response<Body> {
    let mut response =
        error(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, "this is asked for in another way; see Allow");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

pub(super) fn not_for_operators() -> Response<Body> {
    error(
        StatusCode::NOT_FOUND,
        ErrorCode::Unsupported,
        "there is nothing here; there are /, /livez, /readyz, /metrics, and below /api/ now, history, images, upstreams, errors, \
         setup, refresh, pin, unpin, remove, verify and pull",
    )
}

// === parts ===

/// An answer that is for one client: no cache on the way may keep it for others.
pub(super) fn keep_private(response: &mut Response<Body>) {
    let caching = response.headers().get(header::CACHE_CONTROL).and_then(|value| value.to_str().ok());
    let caching = caching.map_or("private".into(), |caching| format!("private, {caching}"));
    set(response, header::CACHE_CONTROL, &caching);
}

/// A blob as this client wants to be told of it.
pub(super) fn blob_for(headers: &HeaderMap) -> Kind {
    let agent = headers.get(header::USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
    let sleeps =
        SLEEPERS.iter().any(|name| agent.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name.as_bytes())));
    if sleeps { Kind::BlobOrSleep } else { Kind::Blob }
}

/// What every answer has.
fn standard(headers: &mut HeaderMap) {
    // What is copied from another answer has it already.
    if !headers.contains_key(header::X_CONTENT_TYPE_OPTIONS) {
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        headers.insert(API_VERSION, REGISTRY_2);
    }
}

/// Adds what every answer has. HEAD is the same without the body.
pub(super) fn finish(mut response: Response<Body>, method: &Method, ns: Option<&str>) -> Response<Body> {
    let headers = response.headers_mut();
    standard(headers);
    if let Some(ns) = ns.and_then(|ns| HeaderValue::try_from(ns).ok()) {
        headers.insert(HeaderName::from_static("oci-namespace"), ns);
    }
    if method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

fn error(code: StatusCode, error: ErrorCode, message: &str) -> Response<Body> {
    let mut response = json(code, error.body(message));
    response.extensions_mut().insert(error);
    response
}

/// The digest of what is answered, of a manifest or a blob.
pub(super) fn digest_of(response: &Response<Body>) -> Option<String> {
    response.headers().get(DIGEST)?.to_str().ok().map(str::to_owned)
}

/// The code of an error that a client is answered.
pub(super) fn code_of(response: &Response<Body>) -> Option<ErrorCode> {
    response.extensions().get().copied()
}

fn json(code: StatusCode, body: Vec<u8>) -> Response<Body> {
    let length = body.len();
    let mut response = Response::new(Body::bytes(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    set(&mut response, header::CONTENT_LENGTH, &length.to_string());
    response
}

fn status(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = code;
    response
}

fn identify(headers: &mut HeaderMap, digest: &Digest) {
    let quoted = Bytes::from(["\"", &digest.text(), "\""].concat());
    let bare = quoted.slice(1..quoted.len() - 1);
    for (name, value) in [(DIGEST, bare), (header::ETAG, quoted)] {
        headers.insert(name, HeaderValue::from_maybe_shared(value).expect("a digest is plain"));
    }
}

/// RFC 9211: what the upstream says of its cache, then what there is to say of ours; and a warning where the answer may be outdated.
fn cache_status(response: &mut Response<Body>, served: Option<&Served>) {
    let (value, before) = match served {
        None => ("larder; detail=local", &None),
        Some(Served::Hit) => ("larder; hit", &None),
        Some(Served::Joined(before)) => ("larder; fwd=miss; collapsed", before),
        Some(Served::Miss(before)) => ("larder; fwd=miss; stored", before),
        Some(Served::Revalidated) => ("larder; hit; detail=revalidated", &None),
        Some(Served::Stale(_)) => ("larder; hit; detail=stale", &None),
        Some(Served::Offline) => ("larder; hit; detail=offline", &None),
        Some(Served::Bypass(_, before)) => ("larder; fwd=bypass", before),
    };
    match before {
        Some(before) => set(response, CACHE_STATUS, &format!("{before}, {value}")),
        None => _ = response.headers_mut().insert(CACHE_STATUS, HeaderValue::from_static(value)),
    }
    if let Some(Served::Stale(why)) = served {
        let why: String = why.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\') || *c == ' ').collect();
        set(response, header::WARNING, &format!("299 - \"this may be outdated: {why}\""));
    }
}

/// `If-None-Match` names this digest, with or without quotes.
fn none_match(headers: &HeaderMap, digest: &Digest) -> bool {
    if !headers.contains_key(header::IF_NONE_MATCH) {
        return false;
    }
    let digest = digest.text();
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|tag| {
        let tag = tag.trim();
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        tag == "*" || tag.trim_matches('"') == &*digest
    })
}

/// A range counts unless `If-Range` names something else (RFC 9110, section 13.1.5).
fn if_range(headers: &HeaderMap, digest: &Digest) -> bool {
    headers.get(header::IF_RANGE).is_none_or(|value| value.as_bytes() == format!("\"{digest}\"").as_bytes())
}

fn set(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(name, value);
    }
}
