//! What the caches before an answer have said of it (RFC 9211).

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;

/// The members of a `Cache-Status` list, the one nearest to the registry first. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheStatus(Arc<str>);

/// More than a chain of a few caches has to say, in bytes.
const LONGEST: usize = 512;

// === impl CacheStatus ===

impl CacheStatus {
    /// What the headers of an answer say; `None` for what is no such list, or a long one.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let values: Result<Vec<&str>, _> = headers.get_all("cache-status").iter().map(|value| value.to_str()).collect();
        let text = values.ok()?.join(", ");
        (text.len() <= LONGEST && is_list(&text)).then(|| Self(text.into()))
    }
}

impl fmt::Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `name;key=value, "other name"; key`: a list of items with parameters (RFC 9651), as far as it can be appended to.
fn is_list(text: &str) -> bool {
    let mut rest = text;
    loop {
        let Some(after) = item(rest.trim_start()) else { return false };
        rest = after.trim_start();
        while let Some(parameter) = rest.strip_prefix(';') {
            let Some(after) = token(parameter.trim_start()) else { return false };
            rest = match after.strip_prefix('=').map(item) {
                None => after,
                Some(Some(after)) => after,
                Some(None) => return false,
            }
            .trim_start();
        }
        rest = match rest.strip_prefix(',') {
            Some(more) => more,
            None => return rest.is_empty(),
        };
    }
}

/// What follows a token or a string.
fn item(text: &str) -> Option<&str> {
    let Some(mut rest) = text.strip_prefix('"') else { return token(text) };
    loop {
        let end = rest.find(['"', '\\'])?;
        match (&rest[end..=end], rest.get(end + 1..)?) {
            ("\"", after) => return Some(after),
            (_, after) => rest = after.strip_prefix(['"', '\\'])?,
        }
    }
}

/// What follows a token, a number or a boolean.
fn token(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"!#$%&'*+-.^_`|~:/?".contains(c)).unwrap_or(text.len());
    (end > 0).then(|| &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| _ = headers.append("cache-status", value.parse().unwrap()));
        CacheStatus::of(&headers).map(|status| status.to_string())
    }

    #[test]
    fn a_list_is_taken_as_it_is() {
        for text in ["larder; hit", "larder;fwd=miss;stored", r#""My \"CDN\", 2"; hit; ttl=-5, x;detail="a, b""#, "a ; b = c"] {
            let legal = !text.contains(" = ");
            assert_eq!(of(&[text]), legal.then(|| text.to_owned()), "{text}");
        }
        assert_eq!(of(&["a;hit", "b; fwd=miss"]).as_deref(), Some("a;hit, b; fwd=miss"));
    }

    #[test]
    fn what_is_none_is_left_out() {
        let long = "x".repeat(513);
        for text in ["", ",", "a,", "a;", "a;=b", "a b", r#""open"#, r#""\x""#, "a;b=", "ä", "<a>", &long] {
            assert_eq!(of(&[text]), None, "{text}");
        }
        assert_eq!(of(&[]), None);
    }
}
