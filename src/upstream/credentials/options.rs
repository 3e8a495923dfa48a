//! The options of an account.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::oci::Pattern;

/// Who larder is to an upstream. The same keys stand in `[upstream."x"]` itself, for its first account, and in
/// `[[upstream."x".account]]`. Only one kind of source may be given; none: larder is nobody.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountOptions {
    /// The user larder is to the upstream. `<token>`: the password is an identity token (a refresh token).
    pub username: String,
    /// The file that holds the password; a line end at its end does not count.
    pub password_file: PathBuf,
    /// The environment variable that holds the password.
    pub password_env: String,
    /// A Docker config.json: its auths, credHelpers and credsStore.
    pub docker_config: PathBuf,
    /// A program that knows the credentials: `ecr-login` runs docker-credential-ecr-login.
    pub credential_helper: String,
    /// The repositories that the account is for, as patterns. Empty: all. Where no account is for one, larder is nobody.
    pub repositories: Vec<Pattern>,
}
