//! What a sealed larder was asked for and does not have: the list for the next delivery.
//!
//! Who asks may ask for anything, so it is bounded: where it is full, what was asked for least often goes, and of that what was
//! last asked for longest ago.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::clock::Timestamp;
use crate::oci::{Digest, Reference, Repository};
use crate::store::{Kind, Text};

use super::{Mirror, Origin};

/// Something that was asked for and is not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    pub repository: Repository,
    pub reference: Reference,
    pub times: u64,
    pub last: Timestamp,
}

/// How often each was asked for, and when last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Shopping(HashMap<(Repository, Reference), (u64, Timestamp)>);

const MOST: usize = 1_000;
const HEADER: &str = "larder missing 1\n";

// === impl Mirror ===

impl Mirror {
    /// What was asked for and is not here, by name.
    #[must_use]
    pub fn lacking(&self) -> Vec<Lacking> {
        let lacking = |((repository, reference), (times, last)): (&(Repository, Reference), &(u64, Timestamp))| Lacking {
            repository: repository.clone(),
            reference: reference.clone(),
            times: *times,
            last: *last,
        };
        let mut all: Vec<Lacking> = self.0.shopping.look(|list| list.0.iter().map(lacking).collect());
        all.sort_by(|a, b| (&a.repository, &a.reference).cmp(&(&b.repository, &b.reference)));
        all
    }

    /// Forgets one of them: it is here by now.
    pub fn forget_lacking(&self, repository: &Repository, reference: &Reference) {
        self.0.shopping.change(|list| list.0.remove(&(repository.clone(), reference.clone())).is_some());
    }

    /// Reads what a larder before this one was asked for in vain.
    pub async fn recall_lacking(&self) {
        self.0.shopping.recall(&self.0.store).await;
    }

    /// Writes down what has come since it was written last.
    pub async fn keep_lacking(&self) {
        self.0.shopping.keep(&self.0.store).await;
    }

    pub(super) fn lacks(&self, origin: &Origin, reference: &Reference) {
        let now = self.0.clock.now();
        self.0.shopping.change(|list| {
            list.add((origin.repository.clone(), reference.clone()), now);
            true
        });
    }

    /// A blob is asked for by those who have its image: that is what is not here whole.
    pub(super) fn lacks_blob(&self, origin: &Origin, digest: &Digest) {
        let images = self.0.store.named_by(digest);
        let of_repository = |image: &&Digest| self.old_proof(origin, image, Kind::Manifest).is_some();
        if let Some(image) = images.iter().find(of_repository) {
            self.lacks(origin, &Reference::Digest(image.clone()));
        }
    }
}

// === impl Shopping ===

impl Shopping {
    fn add(&mut self, thing: (Repository, Reference), now: Timestamp) {
        let Self(all) = self;
        if all.len() >= MOST && !all.contains_key(&thing) {
            let least = all.iter().min_by_key(|(_, asked)| **asked).map(|(thing, _)| thing.clone());
            least.iter().for_each(|thing| _ = all.remove(thing));
        }
        let asked = all.entry(thing).or_default();
        *asked = (asked.0.saturating_add(1), now);
    }
}

impl Text for Shopping {
    const NAME: &'static str = "missing";

    fn written(&self) -> String {
        let mut text = String::from(HEADER);
        for ((Repository { upstream, name }, reference), (times, last)) in &self.0 {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{upstream} {name} {reference} {times} {}", last.unix_millis());
        }
        text
    }

    /// What of it cannot be read is passed over.
    fn read(text: &str) -> Option<Self> {
        let line = |line: &str| {
            let mut words = line.split(' ');
            let repository = Repository { upstream: words.next()?.into(), name: words.next()?.parse().ok()? };
            let reference = words.next()?.parse().ok()?;
            let (times, last) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some(((repository, reference), (times, Timestamp::from_unix_millis(last))))
        };
        text.strip_prefix(HEADER).map(|lines| Self(lines.lines().filter_map(line).take(MOST).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(n: usize) -> (Repository, Reference) {
        let repository = Repository { upstream: "docker.io".into(), name: format!("library/r{n}").parse().unwrap() };
        (repository, "v1".parse().unwrap())
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_millis(seconds * 1000)
    }

    #[test]
    fn what_is_asked_for_again_and_again_outlives_what_was_asked_for_once() {
        let mut list = Shopping::default();
        (0..3).for_each(|second| list.add(thing(0), at(second)));
        (1..3 * MOST).for_each(|n| list.add(thing(n), at(n as u64)));
        assert_eq!((list.0.len(), list.0[&thing(0)]), (MOST, (3, at(2))));
        assert!(list.0.contains_key(&thing(3 * MOST - 1)) && !list.0.contains_key(&thing(1)));
        assert_eq!(Shopping::read(&list.written()), Some(list));
        assert_eq!(Shopping::read("larder missing 2\ndocker.io library/x v1 1 1\n"), None);
    }
}
