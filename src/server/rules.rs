//! What each client may have, by who it is.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::current::Current;
use crate::mirror::Refusal;
use crate::oci::{Pattern, Repository};

/// Who asks, as far as a door has made sure of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// As whom it has logged in, or the name in its certificate where that suffices. `None`: anybody.
    pub(super) user: Option<Arc<str>>,
    /// The name in the certificate that it has shown, whoever it is besides.
    pub(super) certificate: Option<Arc<str>>,
    /// Of the user.
    pub(super) groups: Arc<[String]>,
}

/// `[[server.listener.rule]]`: what these may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Whom it is for; empty: everyone.
    #[serde(default)]
    pub who: Vec<Who>,
    /// The repositories that they may have, with their upstream: `docker.io/library/*`. Empty: none by this rule, which then only
    /// denies.
    #[serde(default)]
    pub allow: Vec<Pattern>,
    /// Those that they may not, whatever else allows them.
    #[serde(default)]
    pub deny: Vec<Pattern>,
}

/// `user:NAME`, `group:NAME`, `cert:NAME`; a name may be a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Who {
    User(Pattern),
    Group(Pattern),
    /// Who has shown a certificate of this name.
    Cert(Pattern),
}

/// Why a text names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nobody; write user:NAME, group:NAME or cert:NAME")]
pub struct InvalidWho(String);

/// The rules of one listener.
pub(super) struct Rules(Current<Vec<Rule>>);

// === impl Rules ===

impl Rules {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        Self(Current::new(rules))
    }

    pub(super) fn set(&self, rules: Vec<Rule>) {
        self.0.set(rules);
    }

    pub(super) fn are_none(&self) -> bool {
        self.0.get().is_empty()
    }

    /// Some rule for the client must allow the repository, and none deny it. Where there are no rules, all is allowed.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub(super) fn check(&self, identity: &Identity, repository: &Repository) -> Result<(), Refusal> {
        let rules = self.0.get();
        if rules.is_empty() {
            return Ok(());
        }
        let name = repository.to_string();
        let for_client = || rules.iter().filter(|rule| rule.is_for(identity));
        let no = |why: String| Err(Refusal::NotAllowed(why));
        if let Some(pattern) = for_client().flat_map(|rule| &rule.deny).find(|pattern| pattern.matches(&name)) {
            return no(format!("{name} is denied to {identity} by \"{pattern}\" of a rule"));
        }
        if !for_client().flat_map(|rule| &rule.allow).any(|pattern| pattern.matches(&name)) {
            return no(format!("no rule allows {name} to {identity}"));
        }
        Ok(())
    }
}

// === impl Rule ===

impl Rule {
    fn is_for(&self, identity: &Identity) -> bool {
        self.who.is_empty() || self.who.iter().any(|who| who.is(identity))
    }

    pub(crate) fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.allow.iter().chain(&self.deny)
    }

    /// Whether nobody may have anything of this upstream, whatever else may be allowed.
    pub(super) fn shuts_out(&self, upstream: &str) -> bool {
        self.who.is_empty() && self.deny.iter().any(|pattern| pattern.to_string().strip_suffix("/**") == Some(upstream))
    }
}

// === impl Identity ===

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.user, &self.certificate) {
            (Some(user), Some(certificate)) if user != certificate => {
                write!(f, "{} with the certificate of {}", user.escape_debug(), certificate.escape_debug())
            }
            (Some(name), _) | (None, Some(name)) => name.escape_debug().fmt(f),
            (None, None) => f.write_str("anybody"),
        }
    }
}

// === impl Who ===

impl Who {
    fn is(&self, identity: &Identity) -> bool {
        let Identity { user, certificate, groups } = identity;
        match self {
            Self::User(pattern) => user.iter().any(|name| pattern.matches(name)),
            Self::Group(pattern) => groups.iter().any(|group| pattern.matches(group)),
            Self::Cert(pattern) => certificate.iter().any(|name| pattern.matches(name)),
        }
    }
}

impl FromStr for Who {
    type Err = InvalidWho;

    fn from_str(text: &str) -> Result<Self, InvalidWho> {
        let parts = text.split_once(':').and_then(|(kind, name)| Some((kind, name.parse::<Pattern>().ok()?.across())));
        match parts {
            Some(("user", name)) => Ok(Self::User(name)),
            Some(("group", name)) => Ok(Self::Group(name)),
            Some(("cert", name)) => Ok(Self::Cert(name)),
            _ => Err(InvalidWho(text.into())),
        }
    }
}

impl TryFrom<String> for Who {
    type Error = InvalidWho;

    fn try_from(text: String) -> Result<Self, InvalidWho> {
        text.parse()
    }
}

impl From<Who> for String {
    fn from(who: Who) -> Self {
        who.to_string()
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user:{name}"),
            Self::Group(name) => write!(f, "group:{name}"),
            Self::Cert(name) => write!(f, "cert:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a user, and of a certificate, where these are not empty.
    fn identity(user: &str, certificate: &str, groups: &[&str]) -> Identity {
        let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
        let [user, certificate] = [user, certificate].map(|name| (!name.is_empty()).then(|| name.into()));
        Identity { user, certificate, groups: groups.into() }
    }

    #[test]
    fn some_rule_must_allow_and_none_may_deny() {
        let rule = |who: &[&str], allow: &[&str], deny: &[&str]| Rule {
            who: who.iter().map(|who| who.parse().unwrap()).collect(),
            allow: allow.iter().map(|pattern| pattern.parse().unwrap()).collect(),
            deny: deny.iter().map(|pattern| pattern.parse().unwrap()).collect(),
        };
        let rules = Rules::new(vec![
            rule(&[], &["docker.io/library/*"], &["**/secret"]),
            rule(&["user:alice", "cert:build-*"], &["ghcr.io/**"], &[]),
            rule(&["group:ops"], &["**"], &["docker.io/library/old"]),
            rule(&["user:dave"], &[], &["docker.io/library/old"]),
            rule(&["cert:contractor-*", "cert:host?web*", "user:guest*"], &[], &["docker.io/library/new"]),
        ]);
        let may = |who: &Identity, upstream: &str, name: &str| {
            rules.check(who, &Repository { upstream: upstream.into(), name: name.parse().unwrap() }).is_ok()
        };
        let anybody = identity("", "", &[]);
        assert!(may(&anybody, "docker.io", "library/app") && !may(&anybody, "ghcr.io", "org/app"));
        assert!(!may(&anybody, "docker.io", "library/secret") && !may(&identity("alice", "", &[]), "ghcr.io", "org/secret"));
        assert!(may(&identity("alice", "", &[]), "ghcr.io", "org/app") && !may(&identity("bob", "", &[]), "ghcr.io", "org/app"));
        assert!(may(&identity("build-7", "build-7", &[]), "ghcr.io", "org/app"));
        assert!(!may(&identity("build-7", "", &[]), "ghcr.io", "org/app"), "a user of that name has shown no certificate");
        let ops = identity("carol", "", &["dev", "ops"]);
        assert!(may(&ops, "quay.io", "any/thing") && !may(&ops, "docker.io", "library/old"));
        assert!(!may(&identity("ops", "", &[]), "quay.io", "any/thing"), "a user is no group");
        let dave = identity("dave", "", &[]);
        assert!(may(&dave, "docker.io", "library/app") && !may(&dave, "docker.io", "library/old"));
        assert!(!may(&dave, "quay.io", "any/thing"), "what only denies allows nothing");
        assert!(may(&dave, "docker.io", "library/new"));
        let contractors = identity("dave", "contractor-3", &[]);
        assert!(!may(&contractors, "docker.io", "library/new"), "also who has logged in has shown its certificate");
        assert!(may(&identity("dave", "build-7", &[]), "ghcr.io", "org/app"));
        assert!(!may(&identity("dave", "host/web1/x", &[]), "docker.io", "library/new"), "a name is no path");
        assert!(!may(&identity("guest/of/dave", "", &[]), "docker.io", "library/new"));
        assert!(
            Rules::new(Vec::new()).check(&anybody, &Repository { upstream: "x".into(), name: "a/b".parse().unwrap() }).is_ok()
        );
    }

    #[test]
    fn whom_a_rule_is_for_is_written_as_it_is_read() {
        for text in ["user:alice", "group:ci-*", "cert:build.corp"] {
            assert_eq!(String::from(text.parse::<Who>().unwrap()), text);
        }
        for text in ["alice", "user:", "users:alice", "cert:a b", ""] {
            assert!(text.parse::<Who>().is_err(), "{text}");
        }
    }
}
