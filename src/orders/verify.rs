//! `larder verify`: what is here is hashed again, all of it or some images, by the verification that also runs in idle time.

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, ImageName, Reference, Repository};
use crate::store::Kind;

use super::{Orders, Report, Reports, absent};

/// What has come of hashing the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VerifyReport {
    /// How many blobs are what their digests promise,
    pub right: u64,
    /// how many were not,
    pub damaged: u64,
    /// how many of these have been fetched anew,
    pub repaired: u64,
    /// and how many could not be read just now, or have left the cache meanwhile.
    pub skipped: u64,
    pub bytes: u64,
}

/// Where nothing is verified in idle time, this many bytes a second are when it is asked for.
const RATE: u64 = 32 << 20;

// === impl Orders ===

impl Orders {
    pub(super) async fn verify(&self, repair: bool, rate: Option<u64>, images: &[String], reports: &Reports) {
        let rate = rate.or(self.store.scrub_rate()).unwrap_or(RATE).max(1);
        let (all, missing) = if images.is_empty() {
            let store = self.store.clone();
            (tokio::task::spawn_blocking(move || store.all()).await.unwrap_or_default(), HashSet::new())
        } else {
            self.made_of(images, reports).await
        };
        let of = all.iter().filter_map(|digest| self.store.size(digest)).sum();
        let (mut verified, mut bytes) = (VerifyReport::default(), 0);
        let mut told = Instant::now();
        for digest in &all {
            let size = self.store.size(digest).unwrap_or_default();
            match self.store.check(digest, Some(rate)).await {
                Some(true) => (verified.right, verified.bytes) = (verified.right + 1, verified.bytes + size),
                Some(false) => {
                    verified.damaged += 1;
                    verified.repaired += u64::from(self.damaged(digest, repair, reports).await);
                }
                None => {
                    verified.skipped += 1;
                    if self.store.size(digest).is_some() {
                        let why = "it cannot be read just now, so nobody knows whether it is right; the log says why".into();
                        reports.tell(Report::Failed { what: digest.to_string(), why }).await;
                    }
                }
            }
            bytes += size;
            if told.elapsed().as_millis() >= 100 {
                told = Instant::now();
                reports.try_tell(Report::Verifying { bytes, of });
            }
        }
        // Of images, what they lack and was found damaged before; of all, whatever was.
        let of_all = images.is_empty();
        let (mut seen, mut needed): (HashSet<Digest>, HashSet<Digest>) = (all.into_iter().collect(), missing);
        while let Some(digest) = self.lost(&seen, &needed, of_all).filter(|_| repair) {
            verified.damaged += 1;
            verified.repaired += u64::from(self.damaged(&digest, repair, reports).await);
            // A manifest that comes again tells what it needs.
            if let Ok(parts) = self.parts(&digest, None, None).await {
                needed.extend(parts.named());
            }
            seen.insert(digest);
        }
        reports.tell(Report::Verified(verified)).await;
    }

    /// What some images are made of: what is here, and what is not.
    async fn made_of(&self, images: &[String], reports: &Reports) -> (Vec<Digest>, HashSet<Digest>) {
        let (mut here, mut missing) = (BTreeSet::new(), HashSet::new());
        for image in images {
            let parts = match self.named(image) {
                Ok((repository, reference)) => match self.digest_of(&repository, &reference) {
                    Some(digest) => self.parts(&digest, None, None).await,
                    None => Err(absent(image)),
                },
                Err(why) => Err(why),
            };
            match parts {
                Ok(parts) => {
                    here.extend(parts.here().map(|(digest, _)| digest.clone()));
                    missing.extend(parts.named().filter(|digest| self.store.size(digest).is_none()));
                    missing.extend(parts.missing.into_keys());
                }
                Err(why) => reports.tell(Report::Failed { what: image.clone(), why }).await,
            }
        }
        // What is here and cannot be read is hashed as well.
        here.extend(missing.iter().filter(|digest| self.store.size(digest).is_some()).cloned());
        (here.into_iter().collect(), missing)
    }

    /// One that was found damaged before, has not come again, and is `needed`, or `of_all` by what is here; none of those that were
    /// `seen`.
    fn lost(&self, seen: &HashSet<Digest>, needed: &HashSet<Digest>, of_all: bool) -> Option<Digest> {
        let is_wanted = |digest: &Digest| {
            let is_manifest = |(_, kind): &(Repository, Kind)| *kind == Kind::Manifest;
            !seen.contains(digest)
                && self.store.size(digest).is_none()
                && (needed.contains(digest)
                    || of_all && (self.store.is_named(digest) || self.store.held_by(digest).iter().any(is_manifest)))
        };
        self.store.in_quarantine().into_iter().find(is_wanted)
    }

    /// A blob was damaged and is in the cache no more. True if it is there again.
    async fn damaged(&self, digest: &Digest, repair: bool, reports: &Reports) -> bool {
        self.mirror.forget_bytes(digest);
        let held_by = self.store.held_by(digest);
        let of = held_by.first().map(|(repository, _)| repository.to_string());
        let mut why = if repair { "no repository is known that has it".to_owned() } else { "--repair fetches it anew".into() };
        for (repository, kind) in held_by.into_iter().filter(|_| repair) {
            let registry = Some(repository.upstream.to_string());
            let name = ImageName { registry, repository: repository.name, reference: Reference::Digest(digest.clone()) };
            let restored = match self.mirror.registries().resolve(&name) {
                Ok(origin) => self.mirror.restore(&origin, digest, kind).await,
                Err(refusal) => Err(refusal.to_string()),
            };
            match restored {
                Ok(()) => {
                    reports.tell(Report::Repaired { digest: digest.to_string(), of }).await;
                    return true;
                }
                Err(error) => why = format!("it could not be fetched anew: {error}"),
            }
        }
        let what = of.map_or_else(|| digest.to_string(), |of| format!("{of}@{digest}"));
        reports.tell(Report::Failed { what, why: format!("it was damaged, and is in quarantine/; {why}") }).await;
        false
    }
}
