//! Clients that bring their own credentials: what they show, and how they get a token
//! (<https://distribution.github.io/distribution/spec/auth/token/>).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Response, header};

use crate::mirror::{Refusal, Shown};
use crate::upstream::ClientCredential;

use super::body::Body;
use super::handler::{Asked, Handler};
use super::log::AccessLine;
use super::respond::{self, Kind};

// === impl Handler ===

impl Handler {
    /// `/v2/`. Some clients learn only here that they have to log in.
    pub(super) async fn ping(&self, asked: &Asked<'_>, line: &mut AccessLine) -> Response<Body> {
        let Some(gate) = self.mirror.registries().gate(asked.host) else { return respond::ping() };
        match self.mirror.identify(&gate, &shown(&asked.head.headers), None, asked.from.ip()).await {
            Ok(_) => respond::ping(),
            Err(refusal) => self.refuse(&refusal, Kind::Login, line),
        }
    }

    /// `/token`. Who shows nothing may be let in as nobody.
    pub(super) async fn token(&self, asked: &Asked<'_>, line: &mut AccessLine) -> Response<Body> {
        let Some(gate) = self.mirror.registries().gate(asked.host) else { return respond::not_found() };
        line.kind = "token";
        let token = match shown(&asked.head.headers) {
            Shown::Login(client) => {
                line.login = client.parts().map(|(name, _)| name.into());
                self.mirror.login(&gate, &client, asked.from.ip()).await
            }
            Shown::Nothing => self.mirror.login(&gate, &ClientCredential::nobody(), asked.from.ip()).await,
            Shown::Token(_) | Shown::Other => Err(Refusal::WrongLogin("it is no user name with a password".into())),
        };
        match token {
            Ok(token) => respond::token(&token, self.clock.now()),
            Err(refusal) => self.refuse(&refusal, Kind::Login, line),
        }
    }
}

/// As much as a head of 8 KiB has room for, in base64, which is what registries take.
const LONGEST: usize = 6000;

/// What `Authorization` shows (RFC 7617, RFC 6750). What is longer than any registry takes is not shown to one.
pub(super) fn shown(headers: &HeaderMap) -> Shown {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Shown::Nothing };
    let Some((scheme, value)) = value.to_str().ok().and_then(|value| value.split_once(' ')) else { return Shown::Other };
    if scheme.eq_ignore_ascii_case("bearer") {
        return Shown::Token(value.trim().into());
    }
    let basic = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(value.trim()).ok()).flatten();
    let basic = basic.filter(|bytes| bytes.len() <= LONGEST).and_then(|bytes| String::from_utf8(bytes).ok());
    match basic.as_deref().and_then(|text| text.split_once(':')) {
        Some((username, password)) => Shown::Login(ClientCredential::new(username.into(), password.into())),
        None => Shown::Other,
    }
}
