//! `GET /api/setup`: what leads each client to this larder, as `larder setup` shows it, for machines other than its own as well.

use std::path::Path;

use http::request::Parts;
use http::uri::Authority;
use http::{Response, header};
use serde_json::{Value, json};

use crate::oci::ErrorCode;
use crate::setup::{Client, Plan, Way};
use crate::upstream;

use super::super::body::Body;
use super::super::place::Place;
use super::super::respond;
use super::{Guide, parameter};

/// How clients reach larder, as far as that can be told.
struct Reached {
    url: String,
    /// What is to be known of that.
    note: Option<String>,
}

// === impl Guide ===

impl Guide {
    /// `url`: how clients reach larder, if not as can be told.
    pub(super) fn answer(&self, head: &Parts) -> Response<Body> {
        let reached = match parameter(head, "url").filter(|url| !url.trim().is_empty()) {
            Some(url) => Some(Reached { url: url.trim().trim_end_matches('/').to_owned(), note: None }),
            None => self.reached(host(head).as_deref()),
        };
        let Some(Reached { url, note }) = reached else {
            return respond::document(&json!({
                "url": null,
                "note": "larder listens at no address of the network. Say how clients reach it.",
                "clients": [],
            }));
        };
        match (self.offer)(&url) {
            Ok(offer) => {
                let way = Way { offer: &offer, ca: None, root: Path::new("/"), here: false };
                let clients: Vec<Value> = Client::ALL.into_iter().map(|client| shown(client, &way)).collect();
                respond::document(&json!({ "url": url, "note": note, "clients": clients }))
            }
            Err(why) => respond::invalid(ErrorCode::Unsupported, &why.replace("--url ", "")),
        }
    }

    /// By the name that the operator has come by, at the first port of the network, at one without TLS if there is one.
    fn reached(&self, host: Option<&str>) -> Option<Reached> {
        let at = |(place, tls): &(Place, bool)| if let Place::Tcp(address) = place { Some((*address, *tls)) } else { None };
        let addresses: Vec<_> = self.places.iter().filter_map(at).collect();
        let seen_from_outside = |address: &std::net::SocketAddr| !address.ip().to_canonical().is_loopback();
        let found = addresses.iter().find(|(address, tls)| seen_from_outside(address) && !tls);
        let found = found.or_else(|| addresses.iter().find(|(address, _)| seen_from_outside(address)));
        let (address, tls) = *found.or_else(|| addresses.first())?;
        let scheme = if tls { "https" } else { "http" };
        if !seen_from_outside(&address) {
            let note = format!(
                "larder listens on {address} alone, where only clients on its own machine reach it. For others set server.listen to \
                 0.0.0.0:{} and restart it.",
                address.port()
            );
            return Some(Reached { url: format!("{scheme}://{address}"), note: Some(note) });
        }
        let host = match host {
            Some(host) => host.to_owned(),
            None if address.ip().is_unspecified() => "127.0.0.1".into(),
            None => address.ip().to_string(),
        };
        let note = upstream::is_loopback(&host)
            .then(|| "This is how clients on larder's own machine reach it; for others put its name in place.".to_owned());
        Some(Reached { url: format!("{scheme}://{host}:{}", address.port()), note })
    }
}

fn shown(client: Client, way: &Way<'_>) -> Value {
    let plan = client.plan(way).and_then(|plan| {
        let Plan { edits, words, then, notes } = plan;
        let file = |edit: crate::setup::Edit| Ok(json!({ "path": edit.path.display().to_string(), "text": (edit.merge)(None)? }));
        let files = edits.into_iter().map(file).collect::<Result<Vec<_>, String>>()?;
        Ok(json!({ "client": client.word(), "files": files, "words": words, "then": then, "notes": notes }))
    });
    plan.unwrap_or_else(|why| json!({ "client": client.word(), "files": [], "words": [], "then": null, "notes": [why] }))
}

/// The name by which the operator has come.
fn host(head: &Parts) -> Option<String> {
    let named = head.headers.get(header::HOST).and_then(|value| value.to_str().ok()?.parse::<Authority>().ok());
    Some(head.uri.authority().cloned().or(named)?.host().to_owned())
}
