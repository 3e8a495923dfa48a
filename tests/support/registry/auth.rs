//! Who asks, and whether the front lets them in.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Method;

use super::{
    front::Route,
    journal::Recorded,
    reply::Reply,
    setup::{Advertised, Auth, HeadBlob, Setup},
    tokens::Tokens,
};

/// The account of all who show nothing, or nothing true.
pub const ANONYMOUS: &str = "anonymous";

/// Whose request it is.
pub(super) fn account(auth: &Auth, tokens: &Tokens, request: &Recorded) -> String {
    let known = match auth {
        Auth::Basic { user, password } if shows_login(request, user, password) => Some((*user).to_owned()),
        _ => tokens.account(request),
    };
    known.unwrap_or_else(|| ANONYMOUS.to_owned())
}

/// The 401 for a request at the front that may not pass.
pub(super) fn refuse(setup: &Setup, tokens: &Tokens, request: &Recorded) -> Option<Reply> {
    let refusal = Reply::error(401, "UNAUTHORIZED");
    let route = Route::of(&request.path);
    let challenge = match &setup.auth {
        Auth::None => return None,
        Auth::Basic { user, password } => {
            if shows_login(request, user, password) {
                return None;
            }
            "Basic realm=\"registry.test\"".to_owned()
        }
        Auth::Bearer { .. } | Auth::Tokens(_) => {
            let closed = setup.blobs.head == HeadBlob::Unauthorized;
            let challenge = match tokens.check(request, route.name()) {
                Ok(()) if closed && request.method == Method::HEAD && matches!(route, Route::Blob(..)) => {
                    tokens.challenge(route.name(), None)
                }
                Ok(()) => return None,
                Err(error) => tokens.challenge(route.name(), error),
            };
            match (tokens.advertised(), route) {
                (Advertised::Everywhere, _) | (_, Route::Base) => challenge,
                (Advertised::AtBase, _) => return Some(refusal),
                (Advertised::AtBaseElseBasic, _) => "Basic realm=\"registry.test\"".to_owned(),
            }
        }
    };
    Some(refusal.header("www-authenticate", &challenge))
}

pub(super) fn shows_login(request: &Recorded, user: &str, password: &str) -> bool {
    let expected = STANDARD.encode(format!("{user}:{password}"));
    let shown = request.authorization().and_then(|value| value.strip_prefix("Basic "));
    shown == Some(expected.as_str())
}
