//! The index: sizes and order of use, so that a start need not look at every file. Disposable.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Arc, Weak};

use crate::clock::Timestamp;
use crate::oci::{Digest, MAX_MANIFEST, Manifest};

use super::books::Partial;
use super::lru::{Lru, STRETCH, Snapshot, charge};
use super::quarantine::Damage;
use super::{Shared, lock};

pub(super) const NAME: &str = "index";
const HEADER: &str = "larder index 3\n";
/// In bytes: the books can add and multiply sizes without a thought.
const LARGEST_DISK: u64 = 1 << 60;

/// One line an entry, those that go first in front:
/// `<digest> <size> <first used, ms> <used, ms> <1 if used again, - if it is absent> <verified, ms; 0 if that is not known>
/// <named digest>…`
fn write(text: &mut String, entry: Snapshot) {
    let Snapshot { digest, size, first_used, used, verified, again, absent, names } = entry;
    let [first_used, used, verified] = [first_used, used, verified].map(Timestamp::unix_millis);
    // Writing to a string does not fail.
    let place = if absent { "-" } else { ["0", "1"][usize::from(again)] };
    let _ = write!(text, "{digest} {size} {first_used} {used} {place} {verified}");
    names.into_iter().for_each(|name| _ = write!(text, " {name}"));
    text.push('\n');
}

/// `None` if any of it cannot be read, or it tells of more than any disk holds: then it is worth nothing.
pub(super) fn read(text: &str) -> Option<Vec<Snapshot>> {
    let entries: Vec<Snapshot> = text.strip_prefix(HEADER)?.lines().map(read_line).collect::<Option<_>>()?;
    let bytes = entries.iter().try_fold(0_u64, |sum, entry| sum.checked_add(charge(entry.size)))?;
    (bytes < LARGEST_DISK).then_some(entries)
}

fn read_line(line: &str) -> Option<Snapshot> {
    let mut words = line.split(' ');
    let (digest, size) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let first_used = Timestamp::from_unix_millis(words.next()?.parse().ok()?);
    let used = Timestamp::from_unix_millis(words.next()?.parse().ok()?);
    let place = words.next()?;
    Some(Snapshot {
        digest,
        size,
        first_used,
        used,
        again: place == "1",
        absent: place == "-",
        verified: Timestamp::from_unix_millis(words.next()?.parse().ok()?),
        names: words.map(str::parse).collect::<Result<_, _>>().ok()?,
    })
}

// === impl Shared ===

impl Shared {
    /// The index as it is to be. The books are read a stretch at a time, as every request needs them: what is used meanwhile may
    /// be where it was before, and what comes meanwhile is in the next index.
    pub(super) fn index(&self) -> String {
        let mut order = self.look_through(Lru::ranks);
        order.sort_unstable();
        let mut text = String::from(HEADER);
        for stretch in order.chunks(STRETCH) {
            let entries: Vec<Snapshot> = {
                let books = lock(&self.books);
                stretch.iter().filter_map(|(_, slot)| books.lru.snapshot(*slot)).collect()
            };
            entries.into_iter().for_each(|entry| write(&mut text, entry));
        }
        text
    }

    /// Counts what is there after a clean stop, by the index alone. False if it cannot be used.
    pub(super) fn count_by_index(&self) -> bool {
        let Some(entries) = self.disk.read(NAME).ok().and_then(|bytes| read(std::str::from_utf8(&bytes).ok()?)) else {
            return false;
        };
        let now = self.clock.now();
        let mut books = lock(&self.books);
        entries.into_iter().for_each(|entry| books.lru.restore(&entry.before(now)));
        books.counted.cancel();
        true
    }

    /// Counts what is there by looking at every file. An index, even an old one, tells the order of what it knows; the rest
    /// is ordered by the files' times. What the stop has left of their bytes nobody knows.
    pub(super) fn count_by_walk(self: &Arc<Self>) -> std::io::Result<()> {
        let index = self.disk.read(NAME).ok().and_then(|bytes| read(std::str::from_utf8(&bytes).ok()?)).unwrap_or_default();
        let mut index: HashMap<Digest, Snapshot> = index.into_iter().map(|entry| (entry.digest.clone(), entry)).collect();
        let (mut entries, mut damaged) = (Vec::<Snapshot>::new(), Vec::new());
        for found in self.disk.blobs()? {
            let modified = Timestamp::from(found.modified);
            entries.push(match index.remove(&found.digest) {
                Some(entry) => {
                    if entry.size != found.size {
                        damaged.push((found.digest, Damage::Size(found.size)));
                    }
                    Snapshot { used: entry.used.max(modified), verified: Timestamp::default(), absent: false, ..entry }
                }
                None => Snapshot {
                    digest: found.digest,
                    size: found.size,
                    first_used: modified,
                    used: modified,
                    verified: Timestamp::default(),
                    again: false,
                    absent: false,
                    names: Vec::new(),
                },
            });
        }
        entries.extend(index.into_values().filter(|entry| entry.absent));
        entries.sort_by_key(|entry| entry.used);
        let now = self.clock.now();
        let entries: Vec<Snapshot> = entries.into_iter().map(|entry| entry.before(now)).collect();
        {
            let mut books = lock(&self.books);
            entries.iter().for_each(|entry| books.lru.restore(entry));
        }
        self.link_unknown(entries);
        // Not before it is known what is pinned, as from here on there may be evictions.
        lock(&self.books).counted.cancel();
        damaged.iter().for_each(|(digest, damage)| self.quarantine(digest, None, damage));
        Ok(())
    }

    /// Finds out what an image is made of where the index did not know: from its manifest.
    fn link_unknown(&self, entries: Vec<Snapshot>) {
        let unknown = entries.into_iter().filter(|entry| entry.names.is_empty()).map(|entry| entry.digest);
        let manifests: HashSet<Digest> = self.records.manifests().into_iter().collect();
        self.link_all(unknown.filter(|digest| manifests.contains(digest)).collect());
    }

    fn link_all(&self, manifests: Vec<Digest>) {
        let mut unread = Vec::new();
        for digest in manifests {
            let names = self.disk.open_blob(&digest).and_then(|file| {
                let mut bytes = vec![0; usize::try_from(file.length()?).unwrap_or(0).min(MAX_MANIFEST)];
                let n = file.read_at(0, &mut bytes)?;
                bytes.truncate(n);
                Ok(Manifest::parse(None, &bytes).map(|manifest| manifest.names).unwrap_or_default())
            });
            match names {
                Ok(names) => self.link(&digest, &names),
                Err(error) => {
                    tracing::error!(%digest, %error, "what a manifest names cannot be told");
                    unread.push(digest);
                }
            }
        }
        let books = lock(&self.books);
        // By now it is known which of them are a part of what is pinned.
        unread.retain(|digest| books.lru.is_pinned(digest));
        drop(books);
        *lock(&self.unlinked) = unread;
    }

    /// Tries again to find out what those manifests name. Due every few seconds.
    pub(super) fn link_unlinked(&self) {
        let unlinked = lock(&self.unlinked).clone();
        if !unlinked.is_empty() {
            self.link_all(unlinked);
        }
    }

    /// Counts the partial files. What may have lost bytes with the machine is removed, as nobody has synced it: before all of it
    /// has come anew nobody could tell.
    pub(super) fn count_partials(&self, rebooted: bool) -> std::io::Result<()> {
        let now = self.clock.now();
        for found in self.disk.partials()? {
            if rebooted {
                self.disk.remove_partial(&found.digest)?;
            } else {
                let since = Timestamp::from(found.modified).min(now);
                let charge = charge(found.size).max(found.taken);
                let partial = Partial { charge, length: found.size, since, open: Weak::new() };
                lock(&self.books).add_partial(found.digest, partial);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When this changes, so must the version in the header: an older index would be misread.
    const GOLDEN: &str = "larder index 3\n\
        sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 0 1 2 0 0\n\
        sha256:4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a 1 3 4 1 5 \
        sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n";

    #[test]
    fn the_format_is_what_it_was() {
        let entries = read(GOLDEN).unwrap();
        assert_eq!(entries[1].names, [entries[0].digest.clone()]);
        let mut text = String::from(HEADER);
        entries.into_iter().for_each(|entry| write(&mut text, entry));
        assert_eq!(text, GOLDEN);
    }

    /// A larder whose index had a wrong digit did not start.
    #[test]
    fn an_index_of_more_than_any_disk_holds_is_worth_nothing() {
        let sizes = |first: u64, second: u64| {
            GOLDEN.replace("5 0 1 2", &format!("5 {first} 1 2")).replace("a 1 3", &format!("a {second} 3"))
        };
        assert!(read(&sizes(5, 6)).is_some());
        for (first, second) in [(u64::MAX, 1), (1 << 63, 1 << 63), (1 << 59, 1 << 59), (5, 1 << 60)] {
            assert_eq!(read(&sizes(first, second)), None, "{first} {second}");
        }
    }

    #[test]
    fn a_torn_index_is_worth_nothing() {
        for end in HEADER.len() + 1..GOLDEN.len() - 1 {
            let torn = &GOLDEN[..end];
            let whole_lines = GOLDEN.lines().scan(0, |at, line| {
                *at += line.len() + 1;
                Some(*at)
            });
            let at_line_end = whole_lines.into_iter().any(|at| at == end || at - 1 == end);
            assert!(at_line_end || read(torn).is_none() || read(torn).unwrap() != read(GOLDEN).unwrap(), "{end}");
        }
        assert_eq!(read(&GOLDEN.replace("index 3", "index 2")), None, "it did not tell of what is pinned and absent");
    }
}
