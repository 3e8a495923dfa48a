//! The lines of the log: what is so from then on, in words with spaces between them.

use std::fmt;

use crate::clock::Timestamp;
use crate::oci::{Digest, Reference, Repository, Tag};

use super::{Kind, Proof, TagRecord, Tally};

pub(super) enum Line {
    Tag(Repository, Tag, TagRecord),
    Untag(Repository, Tag),
    Proof(Repository, Digest, Proof),
    Unproof(Repository, Digest, Kind),
    Pin(Repository, Reference, Digest),
    Unpin(Repository, Reference),
    Tally(String, Tally),
}

impl Line {
    /// `None` if it is none. Nothing may follow: two lines that a full disk has run together are none either.
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let kind = words.next()?;
        let line = if kind == "tally" {
            let name = words.next()?.to_owned();
            Self::Tally(name, Tally { since: date(words.next()?)?, amount: words.next()?.parse().ok()? })
        } else {
            let repository = Repository { upstream: words.next()?.into(), name: words.next()?.parse().ok()? };
            match kind {
                "tag" => {
                    let tag = words.next()?.parse().ok()?;
                    let digest = words.next()?.parse().ok()?;
                    Self::Tag(repository, tag, TagRecord { digest, checked: date(words.next()?)? })
                }
                "untag" => Self::Untag(repository, words.next()?.parse().ok()?),
                "proof" => {
                    let digest = words.next()?.parse().ok()?;
                    let size = words.next()?.parse().ok()?;
                    let media_type = Some(words.next()?).filter(|text| *text != "-").map(Into::into);
                    // Once they had no date.
                    let proven = words.next().map_or(Some(Timestamp::default()), date)?;
                    Self::Proof(repository, digest, Proof { size, media_type, proven })
                }
                "unproof" => {
                    let digest = words.next()?.parse().ok()?;
                    let word = words.next()?;
                    let kind = [Kind::Blob, Kind::Manifest].into_iter().find(|kind| kind.word() == word)?;
                    Self::Unproof(repository, digest, kind)
                }
                "pin" => Self::Pin(repository, words.next()?.parse().ok()?, words.next()?.parse().ok()?),
                "unpin" => Self::Unpin(repository, words.next()?.parse().ok()?),
                _ => return None,
            }
        };
        words.next().is_none().then_some(line)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(Repository { upstream, name }, tag, TagRecord { digest, checked }) => {
                writeln!(f, "tag {upstream} {name} {tag} {digest} {}", checked.unix_millis())
            }
            Self::Untag(Repository { upstream, name }, tag) => writeln!(f, "untag {upstream} {name} {tag}"),
            Self::Proof(Repository { upstream, name }, digest, Proof { size, media_type, proven }) => {
                let media_type = media_type.as_deref().unwrap_or("-");
                writeln!(f, "proof {upstream} {name} {digest} {size} {media_type} {}", proven.unix_millis())
            }
            Self::Unproof(Repository { upstream, name }, digest, kind) => {
                writeln!(f, "unproof {upstream} {name} {digest} {}", kind.word())
            }
            Self::Pin(Repository { upstream, name }, reference, digest) => {
                writeln!(f, "pin {upstream} {name} {reference} {digest}")
            }
            Self::Unpin(Repository { upstream, name }, reference) => writeln!(f, "unpin {upstream} {name} {reference}"),
            Self::Tally(name, Tally { since, amount }) => writeln!(f, "tally {name} {} {amount}", since.unix_millis()),
        }
    }
}

fn date(word: &str) -> Option<Timestamp> {
    word.parse().ok().map(Timestamp::from_unix_millis)
}
