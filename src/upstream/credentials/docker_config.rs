//! A Docker config.json: which credentials, or which helper, it names for a registry.
//!
//! <https://docs.docker.com/reference/cli/docker/login/>; which entry wins is as in docker/cli, `cli/config/configfile`.

use std::collections::BTreeMap;
use std::iter;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use serde::Deserialize;

use super::source::Says;
use super::{Credential, IDENTITY_TOKEN, helper};
use crate::upstream::options::DOCKER_HUB;
use crate::upstream::trust::authority;

/// A registry as config files and helpers call it.
pub(super) struct Registry {
    /// Its names, the likeliest first.
    names: Vec<String>,
    /// What a helper is asked for.
    pub(super) server: String,
}

/// Other keys than these are none of our business.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    auths: Option<BTreeMap<String, Entry>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What Docker calls its Hub.
const HUB_SERVER: &str = "https://index.docker.io/v1/";
const HUB_NAMES: [&str; 3] = ["index.docker.io", DOCKER_HUB, "registry-1.docker.io"];

// === impl Registry ===

impl Registry {
    pub(super) fn new(upstream: &str, url: &Url) -> Self {
        let host = url.host_str().unwrap_or_default();
        let authority = authority(url);
        // First as the place is called that gets them, then as the operator calls it.
        let mut names = vec![authority.clone()];
        names.extend(url.port_or_known_default().map(|port| format!("{host}:{port}")));
        if HUB_NAMES.contains(&host) {
            names.splice(0..0, HUB_NAMES.map(String::from));
        }
        names.push(upstream.to_ascii_lowercase());
        if HUB_NAMES.contains(&upstream) {
            names.extend(HUB_NAMES.map(String::from));
        }
        let is_hub = HUB_NAMES.contains(&upstream) || HUB_NAMES.contains(&host);
        Self { names, server: if is_hub { HUB_SERVER.into() } else { authority } }
    }

    /// The values of a map that are for this registry, the best first.
    fn values<'a, T>(&'a self, map: &'a BTreeMap<String, T>) -> impl Iterator<Item = &'a T> {
        let of_name = |name: &'a String| map.iter().filter(move |(key, _)| host_of(key) == *name).map(|(_, value)| value);
        self.names.iter().flat_map(move |name| map.get(name).into_iter().chain(of_name(name)))
    }
}

/// The host in a key: of `https://host/v1/` as of `host`. A key with another path, as podman has for parts of a registry,
/// keeps it, and so is no host.
fn host_of(key: &str) -> String {
    let key = key.to_ascii_lowercase();
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(&key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key).to_owned()
}

/// What a config.json says of a registry. A helper for the registry wins over the store for all, and both over `auths`.
///
/// # Errors
/// What is wrong with it, without any of its text: all of it may be secret.
pub(super) fn says(text: &str, registry: &Registry) -> Result<Says, String> {
    let config: DockerConfig =
        serde_json::from_str(text).map_err(|error| format!("is no Docker config.json (line {})", error.line()))?;
    let auths = config.auths.unwrap_or_default();
    let credential = registry.values(&auths).map(Entry::credential).find_map(Result::transpose).transpose()?;
    let helpers = config.cred_helpers.unwrap_or_default();
    // An empty name is how Docker is told to leave the store aside for a registry.
    let helper = registry.values(&helpers).chain(iter::once(&config.creds_store.unwrap_or_default())).next().cloned();
    match helper.filter(|helper| !helper.is_empty()) {
        Some(helper) if helper::is_name(&helper) => Ok(Says::Ask { helper, otherwise: credential }),
        Some(helper) => Err(format!("names the helper {helper:?}, which no helper is called")),
        None => Ok(Says::Is(credential)),
    }
}

// === impl Entry ===

impl Entry {
    /// `None`: it is there for show, as Docker leaves one behind where a store has the credentials.
    fn credential(&self) -> Result<Option<Credential>, String> {
        fn given(text: Option<&String>) -> Option<&String> {
            text.filter(|text| !text.is_empty())
        }
        if let Some(token) = given(self.identitytoken.as_ref()) {
            return Ok(Some(Credential { username: IDENTITY_TOKEN.into(), password: token.clone() }));
        }
        if let Some(auth) = given(self.auth.as_ref()) {
            let decoded = STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let parts = decoded.as_deref().and_then(|text| text.split_once(':')).filter(|(username, _)| !username.is_empty());
            let (username, password) = parts.ok_or("has an auth that is no base64 of user:password")?;
            // Some versions of Docker have padded it.
            return Ok(Some(Credential { username: username.into(), password: password.trim_matches('\0').into() }));
        }
        let both = given(self.username.as_ref()).zip(given(self.password.as_ref()));
        Ok(both.map(|(username, password)| Credential { username: username.clone(), password: password.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a config says of a registry: `user password`, or `helper else user password`.
    fn say(config: &str, upstream: &str, url: &str) -> String {
        let show = |credential: Option<Credential>| {
            credential.map_or("nobody".into(), |credential| format!("{} {}", credential.username, credential.password))
        };
        match says(config, &Registry::new(upstream, &url.parse().unwrap())) {
            Ok(Says::Is(credential)) => show(credential),
            Ok(Says::Ask { helper, otherwise }) => format!("{helper} else {}", show(otherwise)),
            Err(error) => format!("wrong: {error}"),
        }
    }

    fn auths(key: &str) -> String {
        format!(r#"{{"auths":{{"other.example":{{"auth":"b3RoZXI6b3RoZXI="}},"{key}":{{"auth":"Ym9iOmE6Yg=="}}}}}}"#)
    }

    #[test]
    fn a_registry_is_found_by_every_key_that_tools_write() {
        for key in ["r.example:5000", "https://r.example:5000", "http://r.example:5000/", "https://R.example:5000/v2/"] {
            assert_eq!(say(&auths(key), "r.example:5000", "https://r.example:5000"), "bob a:b", "{key}");
            assert_eq!(say(&auths(key), "corp", "https://r.example:5000"), "bob a:b", "{key}, by the URL");
            assert_eq!(say(&auths(key), "r.example:5000", "https://10.0.0.1"), "bob a:b", "{key}, by the name");
            assert_eq!(say(&auths(key), "corp", "https://r.example"), "nobody", "{key}, on another port");
        }
        assert_eq!(say(&auths("r.example:443"), "corp", "https://r.example"), "bob a:b");
        assert_eq!(say(&auths("r.example/team"), "corp", "https://r.example"), "nobody", "that is for a part of it");
        for key in ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io", "https://docker.io"] {
            assert_eq!(say(&auths(key), "docker.io", "https://registry-1.docker.io"), "bob a:b", "{key}");
        }
        let refresh = auths("https://index.docker.io/v1/refresh-token");
        assert_eq!(say(&refresh, "docker.io", "https://registry-1.docker.io"), "nobody");
    }

    #[test]
    fn an_entry_is_read_in_every_form() {
        let entry = |entry: &str| say(&format!(r#"{{"auths":{{"r.example":{entry}}}}}"#), "r.example", "https://r.example");
        assert_eq!(entry(r#"{"auth":"Ym9iOmE6Yg==","email":"x@y"}"#), "bob a:b");
        assert_eq!(entry(r#"{"username":"bob","password":"a:b"}"#), "bob a:b");
        assert_eq!(entry(r#"{"auth":"MDAwMDAwMDAtMDAwMDo=","identitytoken":"eyJ"}"#), "<token> eyJ");
        assert_eq!(entry("{}"), "nobody");
        assert_eq!(entry(r#"{"auth":"","username":null}"#), "nobody");
        for auth in ["!!!", "Ym9i", "OnBhc3M="] {
            assert!(entry(&format!(r#"{{"auth":"{auth}"}}"#)).starts_with("wrong: has an auth"), "{auth}");
        }
    }

    #[test]
    fn a_helper_for_the_registry_wins_over_the_store_and_the_store_over_auths() {
        let config = |more: &str| format!(r#"{{"HttpHeaders":{{}},{more}"auths":{{"r.example":{{"auth":"Ym9iOmE6Yg=="}}}}}}"#);
        let say = |more: &str| say(&config(more), "r.example", "https://r.example");
        assert_eq!(say(r#""credHelpers":{"r.example":"gcloud"},"credsStore":"pass","#), "gcloud else bob a:b");
        assert_eq!(say(r#""credHelpers":{"https://r.example":"gcloud"},"#), "gcloud else bob a:b");
        assert_eq!(say(r#""credHelpers":{"other.example":"gcloud"},"credsStore":"pass","#), "pass else bob a:b");
        assert_eq!(say(r#""credHelpers":{"r.example":""},"credsStore":"pass","#), "bob a:b");
        assert!(say(r#""credsStore":"../../bin/sh","#).starts_with("wrong: names the helper"));
    }

    #[test]
    fn what_is_no_config_is_told_without_its_text() {
        for text in ["", "{", "hunter2", r#"{"auths":"hunter2"}"#, r#"{"auths":{"r.example":{"auth":["hunter2"]}}}"#] {
            let said = say(text, "r.example", "https://r.example");
            assert!(said.starts_with("wrong: is no Docker config.json") && !said.contains("hunter2"), "{text:?}: {said}");
        }
    }

    #[test]
    fn a_helper_is_asked_for_the_host_and_for_docker_hub_in_its_own_way() {
        let server = |upstream: &str, url: &str| Registry::new(upstream, &url.parse().unwrap()).server;
        assert_eq!(server("docker.io", "https://registry-1.docker.io"), "https://index.docker.io/v1/");
        assert_eq!(server("hub", "https://registry-1.docker.io"), "https://index.docker.io/v1/");
        assert_eq!(server("corp", "http://r.example:5000/prefix"), "r.example:5000");
        assert_eq!(server("corp", "https://r.example"), "r.example");
    }
}
