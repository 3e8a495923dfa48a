//! placeholder until the real one lands
use super::error::Error;
use crate::clock::{Clock, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountOptions {
    pub username: String,
    pub password_file: PathBuf,
    pub password_env: String,
    pub docker_config: PathBuf,
    pub credential_helper: String,
    pub repositories: Vec<String>,
}
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credential {
    pub(super) username: String,
    pub(super) password: String,
}
impl Credential {
    pub(super) fn basic(&self) -> HeaderValue {
        let text = STANDARD.encode(format!("{}:{}", self.username, self.password));
        let mut header = HeaderValue::try_from(format!("Basic {text}")).expect("base64 is visible ASCII");
        header.set_sensitive(true);
        header
    }
    pub(super) fn identity_token(&self) -> Option<&str> {
        (self.username == "<token>").then_some(&self.password)
    }
}
#[derive(Clone)]
pub(super) struct Credentials(Credential);
impl Credentials {
    pub(super) fn new(options: &AccountOptions, _: &str, _: &Url, _: Clock) -> Result<Option<Self>, String> {
        let file = &options.password_file;
        let by_file = !file.as_os_str().is_empty();
        let by_env = !options.password_env.is_empty();
        if options.username.is_empty() {
            let misplaced = by_file || by_env;
            return if misplaced { Err("username is missing beside the password".into()) } else { Ok(None) };
        }
        let password = match (by_file, by_env) {
            (true, false) => std::fs::read_to_string(file)
                .map_err(|error| format!("password_file {} cannot be read: {error}", file.display()))?,
            (false, true) => std::env::var(&options.password_env)
                .map_err(|_| format!("password_env names {}, which is not set", options.password_env))?,
            (true, true) => return Err("password_file and password_env are both given; one is enough".into()),
            (false, false) => return Err("password_file or password_env is missing beside username".into()),
        };
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        Ok(Some(Self(Credential { username: options.username.clone(), password })))
    }
    pub(super) fn label(&self) -> &str {
        &self.0.username
    }
    pub(super) async fn get(&self) -> Result<Option<Credential>, Error> {
        Ok(Some(self.0.clone()))
    }
    pub(super) async fn renew(&self, refused: &Credential) -> Result<Option<Credential>, Error> {
        Ok((*refused != self.0).then(|| self.0.clone()))
    }
}
pub(super) fn jwt_expiry(_: &str) -> Option<Timestamp> {
    None
}
