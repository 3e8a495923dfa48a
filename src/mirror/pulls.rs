//! How often images were pulled: each GET of a manifest counts, HEAD asks for none.
//!
//! Clients may ask for whatever there is, so it is bounded: where it is full, what was pulled least often goes.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::oci::Digest;

use super::Mirror;

#[derive(Default)]
pub(super) struct Pulls(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    of: HashMap<Digest, u64>,
    /// They have changed since they were written.
    dirty: bool,
}

/// When there are so many, half of them go.
const MOST: usize = 40_000;
const NAME: &str = "pulls";
const HEADER: &str = "larder pulls 1\n";

// === impl Mirror ===

impl Mirror {
    /// How often this manifest was pulled.
    #[must_use]
    pub fn pulls(&self, digest: &Digest) -> u64 {
        self.0.pulls.lock().of.get(digest).copied().unwrap_or_default()
    }

    /// A client was given this manifest.
    pub fn note_pull(&self, digest: &Digest) {
        self.0.pulls.lock().add(digest);
    }

    /// Reads what a larder before this one has counted.
    pub async fn recall_pulls(&self) {
        match self.0.store.text(NAME).await {
            Ok(text) => self.0.pulls.lock().of = text.as_deref().map(read).unwrap_or_default(),
            Err(error) => tracing::warn!(%error, "how often images were pulled before cannot be read"),
        }
    }

    /// Writes down what has been counted since it was written last.
    pub async fn keep_pulls(&self) {
        let text = {
            let mut pulls = self.0.pulls.lock();
            if !std::mem::take(&mut pulls.dirty) {
                return;
            }
            written(&pulls.of)
        };
        if let Err(error) = self.0.store.set_text(NAME, text).await {
            self.0.pulls.lock().dirty = true;
            tracing::warn!(%error, "how often images were pulled could not be written down");
        }
    }
}

// === impl Pulls ===

impl Pulls {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Counts ===

impl Counts {
    fn add(&mut self, digest: &Digest) {
        self.dirty = true;
        if let Some(count) = self.of.get_mut(digest) {
            *count = count.saturating_add(1);
            return;
        }
        if self.of.len() >= MOST {
            let mut counts: Vec<u64> = self.of.values().copied().collect();
            let middle = *counts.select_nth_unstable(MOST / 2).1;
            let mut left = MOST / 2;
            self.of
                .retain(|_, count| *count > middle || *count == middle && left.checked_sub(1).map(|less| left = less).is_some());
        }
        self.of.insert(digest.clone(), 1);
    }
}

fn written(counts: &HashMap<Digest, u64>) -> String {
    let mut text = String::from(HEADER);
    // Writing to a string does not fail.
    counts.iter().for_each(|(digest, count)| _ = writeln!(text, "{digest} {count}"));
    text
}

/// Of what cannot be read nothing is believed.
fn read(text: &str) -> HashMap<Digest, u64> {
    let line = |line: &str| line.split_once(' ').and_then(|(digest, count)| Some((digest.parse().ok()?, count.parse().ok()?)));
    text.strip_prefix(HEADER).map(|lines| lines.lines().filter_map(line).take(MOST).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pulled_often_outlives_what_was_pulled_once() {
        let digest = |n: usize| Digest::sha256(&n.to_le_bytes());
        let mut counts = Counts::default();
        (0..3).for_each(|_| counts.add(&digest(0)));
        (1..2 * MOST).for_each(|n| counts.add(&digest(n)));
        assert!(counts.of.len() <= MOST, "{}", counts.of.len());
        assert_eq!((counts.of[&digest(0)], counts.of[&digest(2 * MOST - 1)]), (3, 1));
        assert_eq!(read(&written(&counts.of)), counts.of);
        assert!(read("larder pulls 2\n").is_empty());
    }
}
