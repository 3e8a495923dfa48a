//! Having a whole image in the cache before someone asks for it.

use std::collections::HashSet;

use futures_util::{StreamExt as _, stream};

use crate::oci::{self, Accept, Digest, Platforms, Reference};
use crate::store::Kind;

use super::{Manifest, Mirror, Origin, Refusal, Served};

/// What was done to have an image here.
#[derive(Debug, Default)]
pub struct Warmed {
    /// Of the index, or of the only manifest.
    pub digest: Option<Digest>,
    /// How many manifests and blobs were here already.
    pub present: usize,
    /// How many were fetched, and their bytes.
    pub fetched: usize,
    pub bytes: u64,
    /// What could not be had, and why. The rest is here all the same.
    pub failed: Vec<(String, String)>,
}

/// How many blobs are fetched at once: nobody waits for them, and clients have misses of their own.
const AT_ONCE: usize = 2;
/// More manifests than any image has.
const MOST_MANIFESTS: usize = 1_000;

// === impl Mirror ===

impl Mirror {
    /// Brings an image in by the ways that clients take: its index, and for each of `platforms` the manifest, config and
    /// layers. What is here already counts as used now. A tag is revalidated when it is old.
    ///
    /// Cancel safe: what was brought in stays.
    pub async fn warm(&self, origin: &Origin, reference: &Reference, platforms: &Platforms) -> Warmed {
        let mut warmed = Warmed::default();
        let manifests = self.warm_manifests(origin, reference, platforms, &mut warmed).await;
        let blobs: HashSet<Digest> =
            manifests.into_iter().filter(|manifest| manifest.children.is_empty()).flat_map(|manifest| manifest.names).collect();
        let fetched = stream::iter(blobs).map(|digest| async move {
            let fetched = self.warm_blob(origin, &digest).await;
            (digest, fetched)
        });
        let mut fetched = fetched.buffer_unordered(AT_ONCE);
        while let Some((digest, fetched)) = fetched.next().await {
            match fetched {
                Ok(None) => warmed.present += 1,
                Ok(Some(bytes)) => warmed.fetched(bytes),
                Err(why) => warmed.failed.push((digest.to_string(), why)),
            }
        }
        warmed
    }

    async fn warm_manifests(
        &self,
        origin: &Origin,
        reference: &Reference,
        platforms: &Platforms,
        warmed: &mut Warmed,
    ) -> Vec<oci::Manifest> {
        let (mut manifests, mut seen) = (Vec::new(), HashSet::new());
        let mut wanted = vec![reference.clone()];
        while let Some(reference) = wanted.pop() {
            let parsed = match self.manifest(origin, &reference, &Accept::anything()).await {
                Ok(manifest) => {
                    warmed.digest.get_or_insert_with(|| manifest.digest.clone());
                    warmed.note(&manifest);
                    oci::Manifest::parse(Some(&manifest.media_type), &manifest.bytes).map_err(|bad| bad.to_string())
                }
                Err(refusal) => Err(refusal.to_string()),
            };
            let manifest = match parsed {
                Ok(manifest) => manifest,
                Err(why) => {
                    warmed.failed.push((reference.to_string(), why));
                    continue;
                }
            };
            let taken = manifest.children.iter().filter(|child| platforms.take(child.platform.as_ref()));
            let taken: Vec<Digest> = taken.filter_map(|child| child.digest.parse().ok()).collect();
            if taken.is_empty() && !manifest.children.is_empty() {
                warmed.failed.push((reference.to_string(), format!("it has no image for {platforms}")));
            }
            wanted.extend(taken.into_iter().filter(|digest| seen.insert(digest.clone())).map(Reference::Digest));
            manifests.push(manifest);
            if seen.len() > MOST_MANIFESTS {
                warmed.failed.push((reference.to_string(), format!("it has more than {MOST_MANIFESTS} manifests")));
                break;
            }
        }
        manifests
    }

    /// Brings a blob in, if it is not here. Returns its size if it was fetched.
    async fn warm_blob(&self, origin: &Origin, digest: &Digest) -> Result<Option<u64>, String> {
        let present = self.0.store.size(digest).is_some();
        if present && self.proof(origin, digest, Kind::Blob).is_some() {
            self.0.store.touch(digest);
            return Ok(None);
        }
        let blob = self.blob(origin, digest).await.map_err(|refusal: Refusal| refusal.to_string())?;
        if let Served::Bypass(why, _) = &blob.served {
            return Err(format!("it is not kept: {why}"));
        }
        let kept = blob.kept().await;
        match self.0.store.size(digest).filter(|_| kept) {
            Some(_) if present => Ok(None),
            Some(size) => Ok(Some(size)),
            None => Err("it did not come whole, or is not kept; the log says why".into()),
        }
    }
}

// === impl Warmed ===

impl Warmed {
    fn note(&mut self, manifest: &Manifest) {
        match manifest.served {
            Served::Miss(_) | Served::Joined(_) | Served::Bypass(..) => self.fetched(manifest.bytes.len() as u64),
            Served::Hit | Served::Revalidated | Served::Stale(_) | Served::Offline => self.present += 1,
        }
    }

    fn fetched(&mut self, bytes: u64) {
        self.fetched += 1;
        self.bytes += bytes;
    }
}
