//! What a `WWW-Authenticate` header asks for (RFC 9110, section 11.6.1; RFC 6750, section 3).

use http::{HeaderMap, header};

/// A challenge that can be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer(TokenKey),
}

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
}

/// In bytes. Realms are remembered by the hundred.
const LONGEST_REALM: usize = 2 << 10;

// === impl Challenge ===

impl Challenge {
    /// The challenge that can be met, Bearer rather than Basic: where both are offered, tokens alone may have a scope.
    pub(super) fn parse(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::WWW_AUTHENTICATE);
        let mut basic = None;
        for value in values.iter().filter_map(|value| value.to_str().ok()) {
            let Some((scheme, parameters)) = value.split_once(' ').or(Some((value, ""))) else { continue };
            if scheme.eq_ignore_ascii_case("bearer") {
                let parameter = |name| parameter(parameters, name);
                let realm = parameter("realm").filter(|realm| realm.len() <= LONGEST_REALM)?;
                return Some(Self::Bearer(TokenKey { realm, service: parameter("service"), scope: parameter("scope") }));
            }
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Self::Basic);
            }
        }
        basic
    }
}

// === impl TokenKey ===

impl TokenKey {
    /// How long its texts are, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.realm.len() + [&self.service, &self.scope].into_iter().flatten().map(String::len).sum::<usize>()
    }
}

/// The value of `name` in `a="x",b=y`, where quoted values may hold commas.
fn parameter(text: &str, name: &str) -> Option<String> {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', ',', '\t']);
        let (key, after) = rest.split_once('=')?;
        let (value, tail) = match after.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.find('"')?;
                (&quoted[..end], &quoted[end + 1..])
            }
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::parse(&headers)
    }

    #[test]
    fn a_challenge_is_read_as_registries_write_it() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let Some(Challenge::Bearer(key)) = challenge(&[hub]) else { panic!("no token is asked for") };
        assert_eq!(key.realm, "https://auth.docker.io/token");
        assert_eq!(key.service.as_deref(), Some("registry.docker.io"));
        assert_eq!(key.scope.as_deref(), Some("repository:a/b:pull,push"));
        let bare = "bearer Realm=https://r.example/token , service=x";
        assert!(matches!(challenge(&["Basic realm=\"x\"", bare]), Some(Challenge::Bearer(key)) if key.scope.is_none()));
        assert_eq!(challenge(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Negotiate", "Bearer", "Bearer realm=\"unclosed"]), None);
        let of_length = |length| challenge(&[&*format!("Bearer realm=\"{}\"", "x".repeat(length))]).is_some();
        assert_eq!([LONGEST_REALM, LONGEST_REALM + 1].map(of_length), [true, false]);
        assert_eq!(challenge(&[]), None);
    }
}
