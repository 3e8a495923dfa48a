//! What an account's options name as the source of its credentials.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::docker_config::{self, Registry};
use super::options::AccountOptions;
use super::{Credential, helper};

pub(super) enum Source {
    /// The environment, which nobody changes under us.
    Fixed(Credential),
    PasswordFile {
        username: String,
        path: PathBuf,
    },
    DockerConfig(PathBuf),
    Helper(String),
}

/// What a source says of a registry.
#[derive(Clone, PartialEq)]
pub(super) enum Says {
    Is(Option<Credential>),
    /// A helper is to be asked; if it knows nothing, `otherwise` holds.
    Ask {
        helper: String,
        otherwise: Option<Credential>,
    },
}

// === impl Source ===

impl Source {
    /// `None`: the options name none.
    ///
    /// # Errors
    /// One line that says which option is wrong.
    pub(super) fn new(options: &AccountOptions) -> Result<Option<Self>, String> {
        let AccountOptions { username, password_file, password_env, docker_config, credential_helper, .. } = options;
        let by_file = !password_file.as_os_str().is_empty();
        let by_env = !password_env.is_empty();
        if username.is_empty() && (by_file || by_env) {
            return Err("username is missing beside the password".into());
        }
        let sources = [
            ("username", !username.is_empty()),
            ("docker_config", !docker_config.as_os_str().is_empty()),
            ("credential_helper", !credential_helper.is_empty()),
        ];
        let mut given = sources.iter().filter(|(_, given)| *given).map(|(option, _)| option);
        if let (Some(one), Some(other)) = (given.next(), given.next()) {
            return Err(format!("{one} and {other} are both given; one is enough"));
        }
        if !docker_config.as_os_str().is_empty() {
            return Ok(Some(Self::DockerConfig(docker_config.clone())));
        }
        if !credential_helper.is_empty() {
            let legal = helper::is_name(credential_helper).then(|| Self::Helper(credential_helper.clone()));
            let wrong = || format!("credential_helper {credential_helper:?} may have letters, digits, '.', '_' and '-' only");
            return legal.ok_or_else(wrong).map(Some);
        }
        if username.is_empty() {
            return Ok(None);
        }
        let username = username.clone();
        match (by_file, by_env) {
            (true, false) => Ok(Some(Self::PasswordFile { username, path: password_file.clone() })),
            (false, true) => {
                let password =
                    std::env::var(password_env).map_err(|_| format!("password_env names {password_env}, which is not set"))?;
                Ok(Some(Self::Fixed(Credential { username, password: without_line_end(&password) })))
            }
            (true, true) => Err("password_file and password_env are both given; one is enough".into()),
            (false, false) => Err("password_file or password_env is missing beside username".into()),
        }
    }

    /// Says so if others than larder can read what it holds.
    pub(super) fn warn_of_readers(&self) {
        match self {
            Self::PasswordFile { path, .. } => warn_of_readers("password_file", path),
            Self::DockerConfig(path) => warn_of_readers("docker_config", path),
            Self::Fixed(_) | Self::Helper(_) => {}
        }
    }

    /// A word for logs and metrics.
    pub(super) fn label(&self) -> String {
        match self {
            Self::Fixed(Credential { username, .. }) | Self::PasswordFile { username, .. } => username.clone(),
            Self::DockerConfig(_) => "docker_config".into(),
            Self::Helper(helper) => format!("helper {helper}"),
        }
    }

    /// True if it may say something else the next time.
    pub(super) fn is_file(&self) -> bool {
        matches!(self, Self::PasswordFile { .. } | Self::DockerConfig(_))
    }

    /// What it says now. Blocks where it is a file.
    ///
    /// # Errors
    /// One line, without anything secret.
    pub(super) fn read(&self, registry: &Registry) -> Result<Says, String> {
        match self {
            Self::Fixed(credential) => Ok(Says::Is(Some(credential.clone()))),
            Self::Helper(helper) => Ok(Says::Ask { helper: helper.clone(), otherwise: None }),
            Self::PasswordFile { username, path } => {
                let password = without_line_end(&text("password_file", path)?);
                if password.is_empty() {
                    return Err(format!("password_file {} is empty", path.display()));
                }
                Ok(Says::Is(Some(Credential { username: username.clone(), password })))
            }
            Self::DockerConfig(path) => {
                let wrong = |what| format!("docker_config {} {what}", path.display());
                docker_config::says(&text("docker_config", path)?, registry).map_err(wrong)
            }
        }
    }
}

/// Says so if every user of this machine can read a file that holds a secret. It is used all the same: in a container, where
/// secrets are often mounted so, there is no other user.
pub(crate) fn warn_of_readers(option: &str, path: &Path) {
    if std::fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o004 != 0) {
        tracing::warn!("{option} {} can be read by every user of this machine; chmod 600 keeps it to its owner", path.display());
    }
}

fn text(option: &str, path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{option} {} cannot be read: {error}", path.display()))
}

fn without_line_end(password: &str) -> String {
    password.trim_end_matches(['\r', '\n']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tempfile::NamedTempFile;

    fn file(text: &str) -> (NamedTempFile, String) {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        (file, path)
    }

    #[test]
    fn wrong_options_are_named() {
        let registry = Registry::new("r.example", &"https://r.example".parse().unwrap());
        let ((_empty, empty), (_bad, bad)) = (file("\n"), file(r#"{"auths": hunter2"#));
        for (options, message) in [
            ("password_file = 'x'", "username is missing beside the password"),
            ("password_env = 'x'", "username is missing beside the password"),
            ("username = 'bob'", "password_file or password_env is missing beside username"),
            ("username = 'bob'\npassword_file = 'x'\npassword_env = 'x'", "password_file and password_env are both given"),
            ("username = 'bob'\npassword_file = 'x'\ndocker_config = 'x'", "username and docker_config are both given"),
            ("docker_config = 'x'\ncredential_helper = 'x'", "docker_config and credential_helper are both given"),
            ("username = 'bob'\npassword_env = 'NO_SUCH_VARIABLE'", "password_env names NO_SUCH_VARIABLE, which is not set"),
            ("username = 'bob'\npassword_file = '/nowhere/x'", "password_file /nowhere/x cannot be read: "),
            (&format!("username = 'bob'\npassword_file = '{empty}'"), &format!("password_file {empty} is empty")),
            ("docker_config = '/nowhere/x'", "docker_config /nowhere/x cannot be read: "),
            (&format!("docker_config = '{bad}'"), &format!("docker_config {bad} is no Docker config.json (line 1)")),
            ("credential_helper = '../sh'", "credential_helper \"../sh\" may have letters, digits, '.', '_' and '-' only"),
        ] {
            let source = Source::new(&toml::from_str(options).unwrap()).map(|source| source.expect("a source is given"));
            let Err(error) = source.and_then(|source| source.read(&registry)) else { panic!("{options} is taken") };
            assert!(error.starts_with(message) && !error.contains("hunter2"), "{options}: {error}");
        }
    }
}
