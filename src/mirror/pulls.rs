//! How often images were pulled: each GET of a manifest counts, HEAD asks for none.
//!
//! Clients may ask for whatever there is, so it is bounded: where it is full, what was pulled least often goes.

use std::fmt::Write as _;

use hashbrown::HashMap;

use crate::oci::Digest;
use crate::store::Text;

use super::Mirror;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Pulls(HashMap<Digest, u64>);

/// When there are so many, half of them go.
const MOST: usize = 40_000;
const HEADER: &str = "larder pulls 1\n";

// === impl Mirror ===

impl Mirror {
    /// How often this manifest was pulled.
    #[must_use]
    pub fn pulls(&self, digest: &Digest) -> u64 {
        self.0.pulls.look(|pulls| pulls.0.get(digest).copied().unwrap_or_default())
    }

    /// A client was given this manifest.
    pub fn note_pull(&self, digest: &Digest) {
        self.0.pulls.change(|pulls| {
            pulls.add(digest);
            true
        });
    }

    /// Reads what a larder before this one has counted.
    pub async fn recall_pulls(&self) {
        self.0.pulls.recall(&self.0.store).await;
    }

    /// Writes down what has been counted since it was written last.
    pub async fn keep_pulls(&self) {
        self.0.pulls.keep(&self.0.store).await;
    }
}

// === impl Pulls ===

impl Pulls {
    fn add(&mut self, digest: &Digest) {
        let Self(of) = self;
        if let Some(count) = of.get_mut(digest) {
            *count = count.saturating_add(1);
            return;
        }
        if of.len() >= MOST {
            let mut counts: Vec<u64> = of.values().copied().collect();
            let middle = *counts.select_nth_unstable(MOST / 2).1;
            let mut left = MOST / 2;
            of.retain(|_, count| *count > middle || *count == middle && left.checked_sub(1).map(|less| left = less).is_some());
        }
        of.insert(digest.clone(), 1);
    }
}

impl Text for Pulls {
    const NAME: &'static str = "pulls";

    fn written(&self) -> String {
        let mut text = String::from(HEADER);
        // Writing to a string does not fail.
        self.0.iter().for_each(|(digest, count)| _ = writeln!(text, "{digest} {count}"));
        text
    }

    /// What of it cannot be read is passed over.
    fn read(text: &str) -> Option<Self> {
        let line =
            |line: &str| line.split_once(' ').and_then(|(digest, count)| Some((digest.parse().ok()?, count.parse().ok()?)));
        text.strip_prefix(HEADER).map(|lines| Self(lines.lines().filter_map(line).take(MOST).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pulled_often_outlives_what_was_pulled_once() {
        let digest = |n: usize| Digest::sha256(&n.to_le_bytes());
        let mut pulls = Pulls::default();
        (0..3).for_each(|_| pulls.add(&digest(0)));
        (1..2 * MOST).for_each(|n| pulls.add(&digest(n)));
        assert!(pulls.0.len() <= MOST, "{}", pulls.0.len());
        assert_eq!((pulls.0[&digest(0)], pulls.0[&digest(2 * MOST - 1)]), (3, 1));
        assert_eq!(Pulls::read(&pulls.written()), Some(pulls));
        assert_eq!(Pulls::read("larder pulls 2\n"), None);
    }
}
