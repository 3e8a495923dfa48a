//! What a cache may take and whether anything of it may go, as the larder that serves it was told: kept in its directory, for
//! commands that are given without that larder's configuration.

use std::io;

use bytesize::ByteSize;

use super::disk::Disk;
use super::options::{Floor, Options};

pub(super) const NAME: &str = "limits";
const HEADER: &str = "larder limits 1\n";

#[derive(Debug, Clone, Copy, PartialEq)]
struct Limits {
    max_size: ByteSize,
    min_free: Floor,
    sealed: bool,
}

/// The options that hold for a cache. Who serves it says what they are. A command takes what it was not told itself from who served
/// it last: it never has less room than that, nor evicts where nothing is to be evicted.
pub(super) fn settle(disk: &Disk, options: Options) -> Options {
    let own = Limits::of(&options);
    let kept = match disk.read(NAME) {
        Ok(bytes) => Ok(Limits::read(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(None),
        Err(error) => Err(Some(error)),
    };
    let settled = match &kept {
        _ if !options.passing => own,
        Ok(Some(kept)) => kept.within(own),
        Err(None) => own,
        // Nobody knows whether it could be had again.
        Ok(None) | Err(Some(_)) => Limits { sealed: true, ..own },
    };
    let is_news = matches!(kept, Err(None)) || !options.passing && !matches!(kept, Ok(Some(kept)) if kept == own);
    if is_news && let Err(error) = disk.replace(NAME, own.text().as_bytes()) {
        tracing::warn!(%error, "what the cache may take could not be written down, for commands that are not told");
    }
    let Limits { max_size, min_free, sealed } = settled;
    Options { max_size, min_free, sealed, ..options }
}

// === impl Limits ===

impl Limits {
    fn of(options: &Options) -> Self {
        Self { max_size: options.max_size, min_free: options.min_free, sealed: options.sealed }
    }

    /// These, but for what a command was told otherwise. What it has by default nobody has told it.
    fn within(self, own: Self) -> Self {
        let default = Self::of(&Options::default());
        Self {
            max_size: if own.max_size == default.max_size { self.max_size } else { own.max_size.max(self.max_size) },
            min_free: if own.min_free == default.min_free { self.min_free } else { own.min_free },
            sealed: own.sealed || self.sealed,
        }
    }

    fn text(self) -> String {
        let Self { max_size, min_free, sealed } = self;
        let min_free = match min_free {
            Floor::Bytes(bytes) => bytes.to_string(),
            Floor::Percent(percent) => format!("{percent}%"),
        };
        format!("{HEADER}max_size {}\nmin_free {min_free}\nsealed {sealed}\n", max_size.as_u64())
    }

    /// `None` if any of it cannot be read.
    fn read(text: &str) -> Option<Self> {
        let mut lines = text.strip_prefix(HEADER)?.lines();
        let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
        Some(Self {
            max_size: ByteSize(value("max_size")?.parse().ok()?),
            min_free: value("min_free")?.parse().ok()?,
            sealed: value("sealed")?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When this changes, so must the version in the header.
    const GOLDEN: &str = "larder limits 1\nmax_size 536870912000\nmin_free 0%\nsealed true\n";

    #[test]
    fn the_format_is_what_it_was() {
        let limits = Limits::read(GOLDEN).unwrap();
        assert_eq!(limits, Limits { max_size: ByteSize::gib(500), min_free: Floor::Percent(0), sealed: true });
        assert_eq!(limits.text(), GOLDEN);
        let bytes = Limits { min_free: Floor::Bytes(1 << 30), ..limits };
        assert_eq!(Limits::read(&bytes.text()), Some(bytes));
        for end in 0..GOLDEN.len() - "true\n".len() {
            assert_eq!(Limits::read(&GOLDEN[..end]), None, "{end}");
        }
    }

    #[test]
    fn a_command_has_no_less_than_the_larder_and_more_if_it_is_told() {
        let default = Limits::of(&Options::default());
        let kept = Limits::read(GOLDEN).unwrap();
        assert_eq!(kept.within(default), kept);
        let told = |gib| Limits { max_size: ByteSize::gib(gib), min_free: Floor::Percent(1), sealed: false };
        assert_eq!(kept.within(told(20)), Limits { sealed: true, max_size: kept.max_size, ..told(20) });
        assert_eq!(kept.within(told(900)), Limits { sealed: true, ..told(900) });
    }
}
