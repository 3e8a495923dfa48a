//! Patterns of repository names and tags, as an operator writes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `*` stands for any text within a path component, `**` for any text at all, `?` for one character: `library/*`,
/// `myorg/**`, `v1.*`. Everything else stands for itself, and the pattern is for the whole text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Char(char),
    /// One character of a component.
    One,
    /// One character.
    Any,
    /// Any number of characters of a component.
    Some,
    /// Any number of characters.
    All,
}

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no pattern; write one such as library/* or myorg/**")]
pub struct InvalidPattern(String);

// === impl Pattern ===

impl Pattern {
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        // Which places of the text may have been reached by the parts so far: no pattern takes longer than its product.
        let mut reached = vec![false; text.len() + 1];
        reached[0] = true;
        for part in &self.parts {
            let mut next = vec![false; text.len() + 1];
            for at in 0..=text.len() {
                let here = text.get(at);
                match part {
                    Part::Char(_) | Part::One | Part::Any if !reached[at] => {}
                    Part::Char(c) if here == Some(c) => next[at + 1] = true,
                    Part::One if here.is_some_and(|c| *c != '/') => next[at + 1] = true,
                    Part::Any if here.is_some() => next[at + 1] = true,
                    Part::Char(_) | Part::One | Part::Any => {}
                    Part::Some | Part::All => {
                        let passable = |c: char| *part == Part::All || c != '/';
                        next[at] |= reached[at] || at > 0 && next[at - 1] && passable(text[at - 1]);
                    }
                }
            }
            reached = next;
        }
        reached[text.len()]
    }

    /// The same for texts that are no paths, though there may be `/` in them: `*` stands for any text at all, `?` for any character.
    #[must_use]
    pub fn across(mut self) -> Self {
        self.parts.iter_mut().filter(|part| **part == Part::Some).for_each(|part| *part = Part::All);
        self.parts.iter_mut().filter(|part| **part == Part::One).for_each(|part| *part = Part::Any);
        self
    }

    /// The pattern up to its first `/`, if that is the same text for whatever it matches.
    #[must_use]
    pub fn first_component(&self) -> Option<&str> {
        let first = self.text.split('/').next().unwrap_or_default();
        (!first.contains(['*', '?'])).then_some(first)
    }

    /// How much it pins down, in characters: of several patterns that match, the one with most is meant.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.parts.iter().filter(|part| matches!(part, Part::Char(_) | Part::One | Part::Any)).count()
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        if text.is_empty() || text.len() > 512 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(InvalidPattern(text.into()));
        }
        let mut parts = Vec::new();
        for c in text.chars() {
            match (c, parts.last_mut()) {
                ('*', Some(last @ (Part::Some | Part::All))) => *last = Part::All,
                ('*', _) => parts.push(Part::Some),
                ('?', _) => parts.push(Part::One),
                (c, _) => parts.push(Part::Char(c)),
            }
        }
        Ok(Self { text: text.into(), parts })
    }
}

impl TryFrom<String> for Pattern {
    type Error = InvalidPattern;

    fn try_from(text: String) -> Result<Self, InvalidPattern> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(text)
    }

    #[test]
    fn one_star_stays_within_a_component_and_two_do_not() {
        for (pattern, text) in [
            ("library/*", "library/alpine"),
            ("myorg/**", "myorg/a/b"),
            ("**", "a/b/c"),
            ("*", "latest"),
            ("v*", "v1.2"),
            ("v?.*", "v1.2"),
            ("**/base", "team/x/base"),
            ("a*b*c", "aXbbYc"),
            ("exact", "exact"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("library/*", "library/a/b"),
            ("library/*", "library"),
            ("*", "a/b"),
            ("v?", "v"),
            ("exact", "exactly"),
            ("exact", "inexact"),
            ("a?b", "a/b"),
            ("a*b*c", "aXbbY"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn of_a_name_that_is_no_path_a_star_is_any_part() {
        for (pattern, text) in [("*", "host/web1"), ("team/*", "team/a/b"), ("a?b", "a/b"), ("build-*", "build-7")] {
            assert!(pattern.parse::<Pattern>().unwrap().across().matches(text), "{pattern} {text}");
        }
        assert!(!"build-*".parse::<Pattern>().unwrap().across().matches("host/build-7"));
    }

    #[test]
    fn no_pattern_takes_long() {
        let pattern = "*a".repeat(200);
        assert!(!matches(&pattern, &"a".repeat(128).replace('a', "ab")));
    }

    #[test]
    fn the_longest_pattern_pins_down_most() {
        let weight = |pattern: &str| pattern.parse::<Pattern>().unwrap().weight();
        assert!(weight("myorg/app") > weight("myorg/*"));
        assert!(weight("myorg/*") > weight("**"));
        assert!("".parse::<Pattern>().is_err());
        assert!("a b".parse::<Pattern>().is_err());
    }
}
