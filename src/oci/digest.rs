//! Digests: the only key to bytes.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use sha2::Digest as _;
use sha2::{Sha256, Sha512};

/// The content identifier `algorithm:hex` of the image specification, for the two registered algorithms that larder can
/// verify. It exists only if well formed: known algorithm, lower-case hex, exact length.
///
/// <https://github.com/opencontainers/image-spec/blob/main/descriptor.md#digests>
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    Sha256([u8; 32]),
    /// Boxed: rare, and every cached blob pays for the size of the larger variant.
    Sha512(Box<[u8; 64]>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    #[error("a digest is sha256: with 64 or sha512: with 128 lower-case hex digits")]
    Malformed,
    #[error("only sha256 and sha512 digests are served")]
    UnknownAlgorithm,
}

/// A digest as text, for which no memory is taken: digests are in every line, header and path.
pub struct DigestText {
    text: [u8; LONGEST],
    length: usize,
}

/// `sha512:` and its digits.
const LONGEST: usize = 7 + 128;

/// A running hash that becomes a [`Digest`]. Cloning it takes a snapshot of the state, about 200 bytes.
#[derive(Clone)]
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

// === impl Digest ===

impl Digest {
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::Sha256(Sha256::digest(bytes).into())
    }

    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// True if `bytes` hash to this digest, under its own algorithm.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::new(self.algorithm());
        hasher.update(bytes);
        hasher.finish() == *self
    }

    /// The part after the colon.
    #[must_use]
    pub fn hex(&self) -> String {
        self.text()[self.algorithm().name().len() + 1..].to_owned()
    }

    #[must_use]
    pub fn text(&self) -> DigestText {
        let (name, bytes) = (self.algorithm().name().as_bytes(), self.bytes());
        let begin = name.len() + 1;
        let mut text = [b':'; LONGEST];
        text[..name.len()].copy_from_slice(name);
        for (digits, byte) in text[begin..].chunks_exact_mut(2).zip(bytes) {
            digits.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
        }
        DigestText { text, length: begin + bytes.len() * 2 }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes.as_slice(),
        }
    }
}

/// One of sixteen.
fn digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'a' + value - 10 }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, hex) = text.split_once(':').ok_or(InvalidDigest::Malformed)?;
        match algorithm {
            "sha256" => Ok(Self::Sha256(unhex(hex)?)),
            "sha512" => Ok(Self::Sha512(Box::new(unhex(hex)?))),
            _ => Err(InvalidDigest::UnknownAlgorithm),
        }
    }
}

fn unhex<const N: usize>(hex: &str) -> Result<[u8; N], InvalidDigest> {
    fn digit(byte: u8) -> Result<u8, InvalidDigest> {
        match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(InvalidDigest::Malformed),
        }
    }
    if hex.len() != N * 2 {
        return Err(InvalidDigest::Malformed);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl DigestText ===

impl Deref for DigestText {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.text[..self.length]).unwrap_or_default()
    }
}

// === impl Algorithm ===

impl Algorithm {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

// === impl Hasher ===

impl Hasher {
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    #[must_use]
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Digest::Sha512(Box::new(hasher.finalize().into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_survives_the_way_to_text_and_back() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest, Digest::sha256(b""));
        assert!(digest.matches(b""));
        let long = format!("sha512:{}", "0f".repeat(64));
        assert_eq!(long.parse::<Digest>().unwrap().to_string(), long);
    }

    #[test]
    fn what_is_not_exactly_a_digest_is_refused() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:abc",
            &EMPTY.to_uppercase(),
            &EMPTY.replace("e3b0", "E3B0"),
            &format!("{EMPTY}0"),
            &EMPTY.replace("sha256", "sha512"),
            "sha256:../../../../../../../../../../../../../../../../../../../../../../../etc/passwd",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        assert_eq!("md5:d41d8cd98f00b204e9800998ecf8427e".parse::<Digest>(), Err(InvalidDigest::UnknownAlgorithm));
    }

    #[test]
    fn a_clone_of_a_hasher_is_a_snapshot() {
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(b"one");
        let snapshot = hasher.clone();
        hasher.update(b"two");
        assert_ne!(snapshot.finish(), hasher.finish());
    }
}
