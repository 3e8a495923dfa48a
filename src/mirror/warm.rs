//! Having a whole image in the cache before someone asks for it.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use crate::oci::{self, Accept, Descriptor, Digest, INDEX_TYPE, Platforms, Reference, Tag};
use crate::store::{Bypass, Finished, Holds, Kind};
use crate::upstream;

use super::fill::For;
use super::{Manifest, Mirror, Origin, Refusal, Served};

/// What of an image is to be here, and who is told how it goes.
#[derive(Clone, Copy)]
pub struct Warming<'a> {
    pub platforms: &'a Platforms,
    /// How many blobs are fetched at once.
    pub at_once: usize,
    /// What it needs is held by these.
    pub holds: &'a Holds,
    pub tell: &'a (dyn Fn(Step) + Send + Sync),
}

/// How far a blob has come that is being fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub digest: Digest,
    pub bytes: u64,
    /// `None`: the upstream does not say.
    pub size: Option<u64>,
    /// It is in the cache.
    pub done: bool,
}

/// What was done to have an image here.
#[derive(Debug, Default)]
pub struct Warmed {
    /// Of the index, or of the only manifest.
    pub digest: Option<Digest>,
    /// The manifests that are here now, the first one first.
    pub manifests: Vec<Digest>,
    /// How many manifests and blobs were here already.
    pub present: usize,
    /// How many were fetched, and their bytes.
    pub fetched: usize,
    pub bytes: u64,
    /// Why the upstream could not say whether the tag has moved, if it could not.
    pub stale: Option<String>,
    /// What could not be had, and why. The rest is here all the same.
    pub failed: Vec<(String, String)>,
}

/// What refers to an image: the names by which it is found, and what was done to have it here.
#[derive(Debug, Default)]
pub struct Referring {
    pub found: Vec<(Reference, Digest)>,
    pub warmed: Warmed,
}

/// How many blobs are fetched at once: nobody waits for them, and clients have misses of their own.
const AT_ONCE: usize = 2;
/// How long another may take to keep a manifest, and how often it is looked whether he has.
const MOST_BUSY: u32 = 1_000;
const BUSY: Duration = Duration::from_millis(10);
/// More manifests than any image has.
const MOST_MANIFESTS: usize = 1_000;
/// A signature may be signed, and that signature.
const DEPTH: u8 = 3;
/// What cosign adds to the tag of a digest.
const COSIGN: [&str; 3] = ["sig", "att", "sbom"];

// === impl Mirror ===

impl Mirror {
    /// Brings an image in by the ways that clients take, and tells nobody: its index, and for each of `platforms` the manifest,
    /// config and layers. What is here already counts as used now. A tag is revalidated when it is old.
    ///
    /// Cancel safe: what was brought in stays.
    pub async fn warm(&self, origin: &Origin, reference: &Reference, platforms: &Platforms) -> Warmed {
        let holds = self.0.store.holds();
        self.bring(origin, reference, Warming { platforms, at_once: AT_ONCE, holds: &holds, tell: &|_| {} }).await
    }

    /// Likewise, as `warming` says.
    ///
    /// Cancel safe: what was brought in stays.
    pub async fn bring(&self, origin: &Origin, reference: &Reference, warming: Warming<'_>) -> Warmed {
        let mut warmed = Warmed::default();
        let manifests = self.warm_manifests(origin, reference, warming, &mut warmed).await;
        let blobs: HashSet<Digest> =
            manifests.into_iter().filter(|manifest| manifest.children.is_empty()).flat_map(|manifest| manifest.names).collect();
        // Before the first of them comes, so that it is not to leave for the last.
        blobs.iter().for_each(|digest| warming.holds.hold(digest));
        let fetched = stream::iter(blobs).map(|digest| async move {
            let fetched = self.warm_blob(origin, &digest, warming.tell).await;
            (digest, fetched)
        });
        let mut fetched = fetched.buffer_unordered(warming.at_once);
        while let Some((digest, fetched)) = fetched.next().await {
            match fetched {
                Ok(None) => warmed.present += 1,
                Ok(Some(bytes)) => warmed.fetched(bytes),
                Err(why) => warmed.failed.push((digest.to_string(), why)),
            }
        }
        warmed
    }

    /// Brings in what refers to `digest`: signatures, attestations, SBOMs, by the referrers API and by cosign's tags. The list of
    /// them stays under the tag that stands in for the API, so that it is there also when nobody can be asked.
    ///
    /// Cancel safe: what was brought in stays.
    pub async fn bring_referrers(&self, origin: &Origin, digest: &Digest, warming: Warming<'_>) -> Referring {
        let all = Warming { platforms: &Platforms::All, ..warming };
        let mut referring = Referring::default();
        let (mut wanted, mut seen) = (vec![(digest.clone(), DEPTH)], HashSet::from([digest.clone()]));
        while let Some((digest, depth)) = wanted.pop() {
            let mut referrers = Vec::new();
            match self.keep_referrers(origin, &digest, warming.holds).await {
                Ok(None) => {}
                Ok(Some((index, listed))) => {
                    referring.found.push((Reference::Tag(Tag::of_referrers(&digest)), index));
                    for referrer in listed {
                        let brought = self.bring(origin, &Reference::Digest(referrer.clone()), all).await;
                        referring.warmed.add(brought);
                        referrers.push(referrer);
                    }
                }
                Err(why) => referring.warmed.failed.push((format!("what refers to {digest}"), why.to_string())),
            }
            for kind in COSIGN {
                let Ok(tag) = format!("{}.{kind}", Tag::of_referrers(&digest)).parse::<Tag>() else { continue };
                let tag = Reference::Tag(tag);
                match self.find_manifest(origin, &tag, Accept::anything()).await {
                    Ok(manifest) => {
                        referring.warmed.add(self.bring(origin, &tag, all).await);
                        referring.found.push((tag, manifest.digest.clone()));
                        referrers.push(manifest.digest);
                    }
                    // Most images have none; a sealed larder has what it has.
                    Err(Refusal::Upstream(upstream::Error::NotFound | upstream::Error::Offline)) => {}
                    Err(why) => referring.warmed.failed.push((tag.to_string(), why.to_string())),
                }
            }
            if depth > 1 {
                wanted
                    .extend(referrers.into_iter().filter(|digest| seen.insert(digest.clone())).map(|digest| (digest, depth - 1)));
            }
        }
        referring
    }

    /// Keeps the list of what refers to a digest. Returns its own digest, and what is in it; `None` if nothing refers to it.
    async fn keep_referrers(
        &self,
        origin: &Origin,
        digest: &Digest,
        holds: &Holds,
    ) -> Result<Option<(Digest, Vec<Digest>)>, Refusal> {
        let bytes = self.referrers(origin, digest, None).await?.index;
        let index = oci::Manifest::parse(Some(INDEX_TYPE), &bytes).map_err(|bad| Refusal::WrongContent(bad.to_string()))?;
        if index.names.is_empty() {
            return Ok(None);
        }
        let own = Digest::sha256(&bytes);
        holds.hold(&own);
        self.keep_manifest(&own, &bytes, &index.names).await.map_err(Refusal::WrongContent)?;
        self.set_proof(&origin.repository, &own, bytes.len() as u64, Some(INDEX_TYPE.into()));
        self.point(origin, &Tag::of_referrers(digest), &own);
        Ok(Some((own, index.names)))
    }

    /// Fetches anew what the cache had and has lost.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// Says in one line why it is not here.
    pub async fn restore(&self, origin: &Origin, digest: &Digest, kind: Kind) -> Result<(), String> {
        match kind {
            Kind::Blob => self.warm_blob(origin, digest, &|_| {}).await.map(drop),
            Kind::Manifest => {
                let reference = Reference::Digest(digest.clone());
                let manifest = self.find_manifest(origin, &reference, Accept::anything()).await;
                self.warm_manifest(&manifest.map_err(|refusal| refusal.to_string())?).await.map(drop)
            }
        }
    }

    async fn warm_manifests(
        &self,
        origin: &Origin,
        reference: &Reference,
        Warming { platforms, holds, .. }: Warming<'_>,
        warmed: &mut Warmed,
    ) -> Vec<oci::Manifest> {
        let (mut manifests, mut seen) = (Vec::new(), HashSet::new());
        let mut wanted = vec![reference.clone()];
        while let Some(reference) = wanted.pop() {
            let parsed = match self.find_manifest(origin, &reference, Accept::anything()).await {
                Ok(manifest) => {
                    warmed.digest.get_or_insert_with(|| manifest.digest.clone());
                    warmed.manifests.push(manifest.digest.clone());
                    warmed.note(&manifest);
                    holds.hold(&manifest.digest);
                    self.warm_manifest(&manifest).await
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
            let taken: Vec<&Descriptor> =
                manifest.children.iter().filter(|child| platforms.take(child.platform.as_ref())).collect();
            if taken.is_empty() && !manifest.children.is_empty() {
                warmed.failed.push((reference.to_string(), format!("it has no image for {platforms}")));
            }
            let taken = taken.into_iter().filter_map(|child| child.digest.parse::<Digest>().ok());
            wanted.extend(taken.filter(|digest| seen.insert(digest.clone())).map(Reference::Digest));
            manifests.push(manifest);
            if seen.len() > MOST_MANIFESTS {
                warmed.failed.push((reference.to_string(), format!("it has more than {MOST_MANIFESTS} manifests")));
                break;
            }
        }
        manifests
    }

    /// Makes sure that a manifest is in the cache: it may have been served from memory, and is kept behind the answer.
    async fn warm_manifest(&self, manifest: &Manifest) -> Result<oci::Manifest, String> {
        let parsed = oci::Manifest::parse(Some(&manifest.media_type), &manifest.bytes).map_err(|bad| bad.to_string())?;
        self.keep_manifest(&manifest.digest, &manifest.bytes, &parsed.names).await?;
        Ok(parsed)
    }

    async fn keep_manifest(&self, digest: &Digest, bytes: &Bytes, names: &[Digest]) -> Result<(), String> {
        let mut busy = 0;
        while self.0.store.size(digest).is_none() {
            match self.0.store.put(digest, bytes.clone(), names).await {
                Finished::Kept => return Ok(()),
                // Another is at it.
                Finished::Passed(Bypass::Busy) if busy < MOST_BUSY => {
                    busy += 1;
                    tokio::time::sleep(BUSY).await;
                }
                other => return Err(format!("it is not kept: {other:?}")),
            }
        }
        Ok(())
    }

    /// Brings a blob in, if it is not here. Returns its size if it was fetched.
    async fn warm_blob(
        &self,
        origin: &Origin,
        digest: &Digest,
        tell: &(dyn Fn(Step) + Send + Sync),
    ) -> Result<Option<u64>, String> {
        let present = self.0.store.size(digest).is_some();
        if present && self.proof(origin, digest, Kind::Blob).is_some() {
            self.0.store.touch(digest);
            return Ok(None);
        }
        let blob = self.find_blob(origin, digest, For::Cache, false).await.map_err(|refusal: Refusal| refusal.to_string())?;
        if let Served::Bypass(why, _) = &blob.served {
            return Err(format!("it is not kept: {why}"));
        }
        let step = |bytes, size, done| tell(Step { digest: digest.clone(), bytes, size, done });
        if !present {
            step(0, blob.known_size(), false);
        }
        let kept = blob.kept(|bytes, size| step(bytes, size, false)).await;
        match self.0.store.size(digest).filter(|_| kept) {
            Some(_) if present => Ok(None),
            Some(size) => {
                step(size, Some(size), true);
                Ok(Some(size))
            }
            None => Err("it did not come whole, or is not kept; the log says why".into()),
        }
    }
}

// === impl Warmed ===

impl Warmed {
    fn note(&mut self, manifest: &Manifest) {
        match &manifest.served {
            Served::Miss(_) | Served::Joined(_) | Served::Bypass(..) => self.fetched(manifest.bytes.len() as u64),
            Served::Stale(why) => {
                self.stale.get_or_insert_with(|| why.clone());
                self.present += 1;
            }
            Served::Hit | Served::Revalidated | Served::Offline => self.present += 1,
        }
    }

    fn fetched(&mut self, bytes: u64) {
        self.fetched += 1;
        self.bytes += bytes;
    }

    /// Adds what was done for another image.
    pub fn add(&mut self, other: Self) {
        self.manifests.extend(other.manifests);
        self.present += other.present;
        self.fetched += other.fetched;
        self.bytes += other.bytes;
        self.stale = self.stale.take().or(other.stale);
        self.failed.extend(other.failed);
    }
}
