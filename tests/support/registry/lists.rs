//! Tags, page by page, and referrers.

use std::net::SocketAddr;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{
    content::Repository,
    journal::Recorded,
    reply::Reply,
    setup::{Link, Lists, Page},
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A page of at most `n` tags after the place that is asked for, and where the next one is.
pub(super) fn tags(lists: &Lists, name: &str, repository: &Repository, request: &Recorded, front: SocketAddr) -> Reply {
    let asked = match request.parameter("n").map(|n| n.parse::<usize>()) {
        None => usize::MAX,
        Some(Ok(n)) => n,
        Some(Err(_)) => return Reply::error(400, "PAGINATION_NUMBER_INVALID"),
    };
    let size = match lists.page {
        Page::Refused(most) if asked > most && request.parameter("n").is_some() => {
            return Reply::error(400, "PAGINATION_NUMBER_INVALID");
        }
        Page::Refused(most) | Page::Clamped(most) => asked.min(most),
        Page::AsAsked => asked,
    };
    let last = match lists.link {
        Link::Relative => request.parameter("last"),
        Link::Absolute => request.parameter("next_page").map(|token| unsealed(&token)),
    };
    let last = last.unwrap_or_default();
    let mut after = repository.tags.keys().filter(|tag| **tag > last);
    let page: Vec<&String> = after.by_ref().take(size).collect();
    let body = serde_json::json!({ "name": name, "tags": page });
    let reply = Reply::ok("application/json", body.to_string());
    match page.last() {
        Some(last) if after.next().is_some() => {
            let path = &request.path;
            let next = match lists.link {
                Link::Relative => format!("{path}?last={last}&n={size}"),
                Link::Absolute => format!("http://{front}{path}?n={size}&next_page={}", sealed(last)),
            };
            reply.header("link", &format!("<{next}>; rel=\"next\""))
        }
        _ => reply,
    }
}

/// A place that only the registry can read.
fn sealed(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(last)
}

fn unsealed(token: &str) -> String {
    let bytes = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn referrers(lists: &Lists, repository: Option<&Repository>, subject: &str) -> Reply {
    let known = repository.and_then(|repository| repository.referrers.as_ref());
    let Some(known) = known.filter(|_| !lists.no_referrers) else {
        return Reply::text(404, "404 page not found");
    };
    if let Some(index) = known.get(subject) {
        Reply::ok(INDEX, index.clone())
    } else {
        let empty = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] });
        Reply::ok(INDEX, empty.to_string())
    }
}
