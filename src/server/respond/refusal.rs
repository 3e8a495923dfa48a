//! What is not there, or not for the one who asks: why, as clients best understand it.

use std::time::Duration;

use http::header;
use http::{HeaderValue, Response, StatusCode};

use crate::clock::Timestamp;
use crate::mirror::Refusal;
use crate::oci::ErrorCode;
use crate::server::body::Body;
use crate::upstream::{self, Astray};

use super::{CACHE_STATUS, Kind, NO_STORE, cache_status, error, set};

const OVERLOADED: &str = "larder has too much to do; ask again in a moment";
/// podman sleeps for as long as it is told before it asks another registry.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(10);

/// Any method that would change something.
pub(in crate::server) fn read_only() -> Response<Body> {
    let mut response =
        error(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, "this is a mirror; push to the registry itself");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    cache_status(&mut response, None);
    response
}

/// A request that goes round in circles, whatever it asks for.
pub(in crate::server) fn astray(astray: Astray) -> Response<Body> {
    let mut response = error(StatusCode::LOOP_DETECTED, ErrorCode::Unavailable, &astray.to_string());
    set(&mut response, CACHE_STATUS, "larder; detail=refused");
    response
}

pub(in crate::server) fn invalid(code: ErrorCode, message: &str) -> Response<Body> {
    let mut response = error(StatusCode::BAD_REQUEST, code, message);
    cache_status(&mut response, None);
    response
}

pub(in crate::server) fn not_found() -> Response<Body> {
    let mut response =
        error(StatusCode::NOT_FOUND, ErrorCode::Unsupported, "there is nothing here; a registry's paths begin with /v2/");
    cache_status(&mut response, None);
    response
}

/// There is too much to do; in a moment there may be less.
pub(in crate::server) fn overloaded() -> Response<Body> {
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, OVERLOADED);
    set(&mut response, header::RETRY_AFTER, "1");
    set(&mut response, CACHE_STATUS, "larder; detail=refused");
    response
}

/// A client asks too often; after this time it may ask again.
pub(in crate::server) fn too_many(wait: Duration) -> Response<Body> {
    let mut response = error(StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests, "too many requests from this address");
    set(&mut response, header::RETRY_AFTER, &wait.min(LONGEST_RETRY_AFTER).as_secs().max(1).to_string());
    set(&mut response, CACHE_STATUS, "larder; detail=refused");
    response
}

/// A few bytes stand for a header that came before, so that a head is small on its way and large here.
pub(in crate::server) fn too_many_headers() -> Response<Body> {
    let mut response =
        error(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, ErrorCode::Unsupported, "the request has too many headers");
    set(&mut response, CACHE_STATUS, "larder; detail=refused");
    response
}

/// What is said to a connection for which there is no place, as it goes over HTTP/1.1.
pub(in crate::server) fn no_place() -> String {
    unasked("503 Service Unavailable\r\nretry-after: 1", ErrorCode::Unavailable, OVERLOADED)
}

/// To who speaks HTTP where it must be HTTPS.
pub(in crate::server) fn wants_tls() -> String {
    unasked("400 Bad Request", ErrorCode::Unsupported, "this port speaks https; ask again by that")
}

/// An answer over HTTP/1.1 to a request that is not read.
fn unasked(status: &str, code: ErrorCode, message: &str) -> String {
    let body = String::from_utf8_lossy(&code.body(message)).into_owned();
    format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\ncache-status: larder; detail=refused\r\n\r\n{body}",
        body.len()
    )
}

/// The answer to a request that made larder panic.
pub(in crate::server) fn panicked() -> Response<Body> {
    let mut response =
        error(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unavailable, "larder has failed in a way it should not; see its log");
    set(&mut response, CACHE_STATUS, "larder; detail=failed");
    response
}

/// Why a mirror has no answer, as clients best understand it.
pub(in crate::server) fn refusal(refusal: &Refusal, kind: Kind, wait: impl Fn(Timestamp) -> Duration) -> Response<Body> {
    use upstream::Error;
    if let Refusal::Upstream(Error::LeftAlone(why)) = refusal {
        return self::refusal(&Refusal::Upstream((**why).clone()), kind, wait);
    }
    let unknown = match kind {
        Kind::Blob | Kind::BlobOrSleep => ErrorCode::BlobUnknown,
        // NAME_UNKNOWN makes podman fail where it looks for a signature that need not be there; oras where for referrers.
        Kind::Manifest | Kind::Referrers => ErrorCode::ManifestUnknown,
        Kind::Tags | Kind::Login => ErrorCode::NameUnknown,
    };
    let (status, code) = match refusal {
        Refusal::InvalidName(_) => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
        Refusal::LogIn(_) | Refusal::WrongLogin(_) => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
        // Whether a login is right is not known as long as nobody can be asked.
        Refusal::Upstream(
            Error::Unavailable { .. } | Error::UnlistedTokenHost(_) | Error::Offline | Error::RateLimited { .. },
        ) if kind == Kind::Login => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable),
        Refusal::Upstream(Error::RateLimited { .. }) if kind == Kind::BlobOrSleep => {
            (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
        }
        Refusal::UnknownUpstream(_)
        | Refusal::NotAccepted(_)
        | Refusal::Upstream(Error::NotFound | Error::Unsupported(_) | Error::Offline) => (StatusCode::NOT_FOUND, unknown),
        Refusal::NotAllowed(_) | Refusal::Elsewhere(_) | Refusal::Upstream(Error::Denied) => {
            (StatusCode::FORBIDDEN, ErrorCode::Denied)
        }
        Refusal::TooManyLogins { .. } | Refusal::Upstream(Error::RateLimited { .. }) => {
            (StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests)
        }
        Refusal::Upstream(Error::Unavailable { timed_out: true, .. }) => (StatusCode::GATEWAY_TIMEOUT, ErrorCode::Unavailable),
        Refusal::Upstream(
            Error::Unavailable { .. }
            | Error::LeftAlone(_)
            | Error::RefusedElsewhere(_)
            | Error::Credentials(_)
            | Error::UnlistedTokenHost(_),
        )
        | Refusal::WrongContent(_) => (StatusCode::BAD_GATEWAY, ErrorCode::Unavailable),
        // Passed on by each on the way round, and repeated by no client.
        Refusal::Upstream(Error::Loop) => (StatusCode::LOOP_DETECTED, ErrorCode::Unavailable),
        Refusal::Upstream(Error::QuotaSpent { .. } | Error::Busy | Error::Left | Error::NoSocket(_)) | Refusal::Interrupted => {
            (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
        }
    };
    let mut response = error(status, code, &refusal.told());
    let retry_after = match refusal {
        Refusal::TooManyLogins { until } | Refusal::Upstream(Error::RateLimited { until } | Error::QuotaSpent { until }) => {
            Some(wait(*until).min(LONGEST_RETRY_AFTER))
        }
        Refusal::Interrupted | Refusal::Upstream(Error::Busy | Error::Left | Error::NoSocket(_)) => Some(Duration::from_secs(1)),
        _ => None,
    };
    retry_after.iter().for_each(|after| set(&mut response, header::RETRY_AFTER, &after.as_secs().max(1).to_string()));
    let challenge = match refusal {
        Refusal::LogIn(challenge) => Some(challenge.to_string()),
        Refusal::WrongLogin(_) => Some("Basic realm=\"larder\"".into()),
        _ => None,
    };
    if let Some(challenge) = challenge {
        set(&mut response, header::WWW_AUTHENTICATE, &challenge);
        response.headers_mut().insert(header::CACHE_CONTROL, NO_STORE);
    }
    let detail = match refusal {
        Refusal::UnknownUpstream(_)
        | Refusal::InvalidName(_)
        | Refusal::NotAllowed(_)
        | Refusal::Elsewhere(_)
        | Refusal::LogIn(_)
        | Refusal::WrongLogin(_)
        | Refusal::TooManyLogins { .. } => "larder; detail=refused",
        Refusal::Upstream(Error::Offline) => "larder; detail=offline",
        _ => "larder; fwd=miss; detail=failed",
    };
    set(&mut response, CACHE_STATUS, detail);
    response
}
