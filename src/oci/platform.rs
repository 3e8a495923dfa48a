//! The platforms that images are for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and an architecture, in Go's words: `linux/amd64`, `linux/arm/v7`.
///
/// <https://github.com/opencontainers/image-spec/blob/main/image-index.md>
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

/// Some platforms, or all there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub enum Platforms {
    All,
    These(Vec<Platform>),
}

/// Why a text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no platform; write one such as linux/amd64, or all")]
pub struct InvalidPlatform(String);

// === impl Platform ===

impl Platform {
    /// The one that larder runs on.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: std::env::consts::OS.into(), architecture: architecture.into(), variant: None }
    }

    /// True if `self` is what `wanted` asks for: any variant, unless it names one.
    fn suits(&self, wanted: &Self) -> bool {
        let variant = wanted.variant.is_none() || wanted.variant == self.variant;
        self.os == wanted.os && self.architecture == wanted.architecture && variant
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let is_word = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'_');
        let parts: Vec<&str> = text.split('/').filter(is_word).collect();
        let platform = |os: &str, architecture: &str, variant: Option<&str>| Self {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.map(Into::into),
        };
        match parts[..] {
            [os, architecture] if text.matches('/').count() == 1 => Ok(platform(os, architecture, None)),
            [os, architecture, variant] if text.matches('/').count() == 2 => Ok(platform(os, architecture, Some(variant))),
            _ => Err(InvalidPlatform(text.into())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

// === impl Platforms ===

impl Platforms {
    /// Whether the image for `platform` is among them. One that does not say what it is for may be for any.
    #[must_use]
    pub fn take(&self, platform: Option<&Platform>) -> bool {
        match (self, platform) {
            (Self::All, _) | (_, None) => true,
            (Self::These(wanted), Some(platform)) => wanted.iter().any(|wanted| platform.suits(wanted)),
        }
    }
}

impl Default for Platforms {
    fn default() -> Self {
        Self::These(vec![Platform::of_this_machine()])
    }
}

/// None means the machine's own.
impl TryFrom<Vec<String>> for Platforms {
    type Error = InvalidPlatform;

    fn try_from(texts: Vec<String>) -> Result<Self, InvalidPlatform> {
        if texts.is_empty() {
            return Ok(Self::default());
        }
        if texts == ["all"] {
            return Ok(Self::All);
        }
        texts.iter().map(|text| text.parse()).collect::<Result<_, _>>().map(Self::These)
    }
}

impl From<Platforms> for Vec<String> {
    fn from(platforms: Platforms) -> Self {
        match platforms {
            Platforms::All => vec!["all".into()],
            Platforms::These(platforms) => platforms.iter().map(ToString::to_string).collect(),
        }
    }
}

impl fmt::Display for Platforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Vec::from(self.clone()).join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platforms(texts: &[&str]) -> Result<Platforms, InvalidPlatform> {
        texts.iter().map(ToString::to_string).collect::<Vec<_>>().try_into()
    }

    #[test]
    fn platforms_take_their_own_and_what_may_be() {
        let takes = |wanted: &[&str], platform: &str| platforms(wanted).unwrap().take(Some(&platform.parse().unwrap()));
        assert!(takes(&["linux/amd64", "linux/arm64"], "linux/arm64"));
        assert!(takes(&["linux/arm64"], "linux/arm64/v8"));
        assert!(takes(&["linux/arm/v7"], "linux/arm/v7"));
        assert!(takes(&["all"], "windows/amd64") && takes(&["all"], "unknown/unknown"));
        assert!(!takes(&["linux/amd64"], "windows/amd64") && !takes(&["linux/arm/v7"], "linux/arm/v6"));
        assert!(!takes(&["linux/amd64"], "unknown/unknown"), "an attestation");
        assert!(platforms(&["linux/amd64"]).unwrap().take(None));
        assert!(platforms(&[]).unwrap().take(Some(&Platform::of_this_machine())), "none: this machine's");
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["", "amd64", "linux/", "/amd64", "linux//v7", "linux/arm/v7/x", "lin ux/amd64"] {
            assert_eq!(platforms(&[text]), Err(InvalidPlatform(text.into())));
        }
        assert!(platforms(&["all", "linux/amd64"]).is_err());
    }
}
