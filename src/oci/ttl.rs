//! For how long tags stay fresh, said of them by pattern: `latest=30s`, `v*=1d`, `v*.*.*=forever`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Pattern, Tag};

/// For how long what the upstream said of a tag is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    For(Duration),
    /// The tag never moves.
    Forever,
}

/// The TTL of the tags that a pattern matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TagTtl {
    pattern: Pattern,
    pub ttl: Ttl,
}

/// Why a text is no TTL of tags.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no TTL of tags; write a pattern and a duration such as latest=30s, or v*.*.*=forever")]
pub struct InvalidTagTtl(String);

// === impl TagTtl ===

impl TagTtl {
    #[must_use]
    pub fn matches(&self, tag: &Tag) -> bool {
        self.pattern.matches(tag.as_str())
    }
}

impl FromStr for TagTtl {
    type Err = InvalidTagTtl;

    fn from_str(text: &str) -> Result<Self, InvalidTagTtl> {
        let parse = || {
            let (pattern, ttl) = text.split_once('=')?;
            let ttl = match ttl.trim() {
                "forever" => Ttl::Forever,
                duration => Ttl::For(humantime::parse_duration(duration).ok()?),
            };
            Some(Self { pattern: pattern.trim().parse().ok()?, ttl })
        };
        parse().ok_or_else(|| InvalidTagTtl(text.into()))
    }
}

impl TryFrom<String> for TagTtl {
    type Error = InvalidTagTtl;

    fn try_from(text: String) -> Result<Self, InvalidTagTtl> {
        text.parse()
    }
}

impl From<TagTtl> for String {
    fn from(ttl: TagTtl) -> Self {
        ttl.to_string()
    }
}

impl fmt::Display for TagTtl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ttl {
            Ttl::For(duration) => write!(f, "{}={}", self.pattern, humantime::format_duration(duration)),
            Ttl::Forever => write!(f, "{}=forever", self.pattern),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_read_as_it_is_written() {
        for text in ["latest=30s", "v*=1day", "v*.*.*=forever", "*=0s"] {
            assert_eq!(text.parse::<TagTtl>().unwrap().to_string(), text);
        }
        let spaced: TagTtl = " v* = 1d ".parse().unwrap();
        assert_eq!(spaced.ttl, Ttl::For(Duration::from_hours(24)));
        assert!(spaced.matches(&"v1.2".parse().unwrap()) && !spaced.matches(&"latest".parse().unwrap()));
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["", "latest", "latest=", "=1s", "latest=soon", "latest=-1s", "a b=1s"] {
            assert_eq!(text.parse::<TagTtl>(), Err(InvalidTagTtl(text.into())));
        }
    }
}
