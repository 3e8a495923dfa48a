//! What has changed since somebody looked.

use std::collections::HashSet;

use crate::oci::Digest;

/// The digests of which something is not as it was: for who keeps a view of the cache that is dear to make anew. While nobody
/// looks, some are gathered, and then none.
#[derive(Default)]
pub(super) struct Changed(Option<HashSet<Digest>>);

/// With more than these, all is looked at as quickly.
const MOST: usize = 10_000;

// === impl Changed ===

impl Changed {
    pub(super) fn note(&mut self, digest: &Digest) {
        let Some(known) = &mut self.0 else { return };
        known.insert(digest.clone());
        if known.len() > MOST {
            self.0 = None;
        }
    }

    /// Those since this was last asked. `None`: any may have changed.
    pub(super) fn take(&mut self) -> Option<HashSet<Digest>> {
        self.0.replace(HashSet::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_looks_at_takes_no_room() {
        let (mut changed, digest) = (Changed::default(), |n: usize| Digest::sha256(&n.to_le_bytes()));
        changed.note(&digest(0));
        assert_eq!(changed.take(), None);
        assert_eq!(changed.take(), Some(HashSet::new()));
        (0..3).for_each(|n| changed.note(&digest(n % 2)));
        assert_eq!(changed.take(), Some(HashSet::from([digest(0), digest(1)])));
        (0..=MOST).for_each(|n| changed.note(&digest(n)));
        assert!(changed.0.is_none());
        assert_eq!(changed.take(), None);
    }
}
