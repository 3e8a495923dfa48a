//! `[cache]`

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Where the cache is and how large it may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The directory; larder makes it and is the only one to use it.
    pub dir: PathBuf,
    /// The disk space that the cache never exceeds.
    pub max_size: ByteSize,
    /// The free space that the cache leaves on its file system: bytes or a percentage.
    pub min_free: Floor,
    /// How long a client waits for the disk. After it, what the client wants goes past the cache, until the disk answers.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
    /// In idle time every blob is verified again once in two weeks, and first of all what an unclean stop may have damaged: so
    /// many bytes a second. 0: never.
    pub scrub_rate: ByteSize,
    /// Nothing is evicted. No option in the file: it is so while larder is offline, where nothing could be fetched anew.
    #[serde(skip)]
    pub sealed: bool,
    /// The cache is held for one command alone; a larder that is to serve waits for it. No option in the file either.
    #[serde(skip)]
    pub passing: bool,
    /// How many files are kept open with nobody reading them. No option in the file: it follows from how many a process may open.
    #[serde(skip)]
    pub max_recent: usize,
    /// What tests let go wrong with the disk. No option in the file.
    #[cfg(debug_assertions)]
    #[serde(skip)]
    pub faults: super::faults::Faults,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Floor {
    Bytes(u64),
    Percent(u8),
}

/// Less than this is no cache for images.
const SMALLEST: u64 = 16 << 20;

// === impl Options ===

impl Options {
    /// What blobs and partial files may take. Directories, records and the index come out of the rest.
    pub(super) fn budget(&self) -> u64 {
        let max = self.max_size.as_u64();
        max - (max / 64).max(2 << 20).min(max / 2)
    }

    /// # Errors
    /// Says in one line what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.max_size.as_u64() < SMALLEST {
            return Err(format!("cache.max_size is {}; it must be at least {}", self.max_size, ByteSize(SMALLEST)));
        }
        Ok(())
    }
}

impl Default for Options {
    fn default() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = if rustix::process::geteuid().is_root() {
            PathBuf::from("/var/lib/larder")
        } else {
            let cache = var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
            cache.unwrap_or_else(std::env::temp_dir).join("larder")
        };
        Self {
            dir,
            max_size: ByteSize::gib(50),
            min_free: Floor::Percent(5),
            patience: Duration::from_secs(5),
            scrub_rate: ByteSize::mib(32),
            sealed: false,
            passing: false,
            max_recent: 256,
            #[cfg(debug_assertions)]
            faults: super::faults::Faults::default(),
        }
    }
}

// === impl Floor ===

impl Floor {
    /// In bytes, of a file system of `total`.
    pub(super) fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

impl FromStr for Floor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither a size such as \"10GiB\" nor a percentage such as \"5%\"");
        match text.strip_suffix('%') {
            Some(percent) => match percent.trim().parse() {
                Ok(percent @ 0..=99) => Ok(Self::Percent(percent)),
                _ => Err(wrong()),
            },
            None => text.parse::<ByteSize>().map(|size| Self::Bytes(size.as_u64())).map_err(|_| wrong()),
        }
    }
}

impl TryFrom<String> for Floor {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Floor> for String {
    fn from(floor: Floor) -> Self {
        match floor {
            Floor::Bytes(bytes) => ByteSize(bytes).to_string(),
            Floor::Percent(percent) => format!("{percent}%"),
        }
    }
}
