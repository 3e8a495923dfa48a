//! Manifests by digest: verified before a client sees the first byte.

use std::sync::Arc;

use bytes::Bytes;

use crate::flight::Lost;
use crate::heavy;
use crate::oci::{self, Accept, Digest, Reference};
use crate::room::Askers;
use crate::store::{Bypass, Damage, Finished, Kind, Proof, ReadError};
use crate::upstream::{self, CacheStatus, ManifestAnswer};

use super::hot::{Hot, Told};
use super::proofs::{By, Proven};
use super::{Mirror, Origin, Refusal, Served, Thing};

/// A manifest as it is served.
pub struct Manifest {
    pub served: Served,
    pub digest: Digest,
    pub media_type: Arc<str>,
    pub bytes: Bytes,
    pub told: Arc<Told>,
}

/// A manifest whose bytes hash to its digest.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) digest: Digest,
    pub(super) bytes: Bytes,
    pub(super) manifest: oci::Manifest,
    /// What the upstream said of its cache when it sent this.
    cache_status: Option<CacheStatus>,
}

// === impl Mirror ===

impl Mirror {
    /// A manifest by tag or digest. By digest it is served as it is; by tag in a form that the client takes.
    ///
    /// Cancel safe: what was asked upstream goes on.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn manifest(&self, origin: &Origin, reference: &Reference, accept: Accept<'_>) -> Result<Manifest, Refusal> {
        let manifest = self.find_manifest(origin, reference, accept).await;
        if let Err(Refusal::Upstream(upstream::Error::Offline)) = &manifest {
            self.lacks(origin, reference);
        }
        manifest
    }

    /// The same for larder itself, which keeps no list of what it looks for in vain.
    pub(super) async fn find_manifest(
        &self,
        origin: &Origin,
        reference: &Reference,
        accept: Accept<'_>,
    ) -> Result<Manifest, Refusal> {
        let tag = match reference {
            Reference::Digest(digest) => return self.manifest_by_digest(origin, digest).await,
            Reference::Tag(tag) => tag,
        };
        let manifest = self.manifest_by_tag(origin, tag).await?;
        if accept.takes(&manifest.media_type) {
            return Ok(manifest);
        }
        let Some(child) = default_child(&origin.behalf.askers, &manifest).await? else {
            return Err(Refusal::NotAccepted(manifest.media_type.to_string()));
        };
        let child = self.manifest_by_digest(origin, &child).await?;
        if accept.takes(&child.media_type) { Ok(child) } else { Err(Refusal::NotAccepted(manifest.media_type.to_string())) }
    }

    pub(super) async fn manifest_by_digest(&self, origin: &Origin, digest: &Digest) -> Result<Manifest, Refusal> {
        if let Some(manifest) = self.held_manifest(origin, digest, self.proof(origin, digest, Kind::Manifest)).await {
            return Ok(manifest);
        }
        // On its own, as each request has room for what it may come to, and most do not come to this.
        Box::pin(self.manifest_not_held(origin, digest)).await
    }

    async fn manifest_not_held(&self, origin: &Origin, digest: &Digest) -> Result<Manifest, Refusal> {
        // What the repository never had is asked for as if it were not here, whether it is or not: so nothing tells, and what it is
        // its bytes say.
        let old = self.old_proof(origin, digest, Kind::Manifest).filter(|_| self.0.store.size(digest).is_some());
        if let Some(old) = old.clone().filter(|_| origin.is_taken_at_its_word()) {
            let proven = self.prove(origin, digest, Kind::Manifest, By::Head).await?;
            let proof = match proven {
                Proven::Now(_) => self.proof(origin, digest, Kind::Manifest),
                Proven::Before(_) => Some(old),
            };
            if let Some(manifest) = self.held_manifest(origin, digest, proof).await {
                return Ok(Manifest { served: proven.served(), ..manifest });
            }
        }
        match self.fetch_manifest(origin, digest).await {
            Ok(verified) => Ok(verified.served()),
            // A page in place of it says no more than a HEAD that says nothing.
            Err(why @ Refusal::WrongContent(_)) if old.as_ref().is_some_and(|old| self.may_be_stale(old)) => {
                let manifest = self.held_manifest(origin, digest, old).await.ok_or(why.clone())?;
                Ok(Manifest { served: Served::Stale(why.told()), ..manifest })
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// A manifest of the cache, by this proof that the repository holds it.
    pub(super) async fn held_manifest(&self, origin: &Origin, digest: &Digest, proof: Option<Proof>) -> Option<Manifest> {
        let media_type = proof?.media_type?;
        let Hot { bytes, told } = match self.0.hot.get(digest) {
            Some(hot) => {
                self.0.store.touch(digest);
                hot
            }
            None => Box::pin(self.read_manifest(&origin.behalf.askers, digest)).await?,
        };
        let served = if origin.is_offline() { Served::Offline } else { Served::Hit };
        Some(Manifest { served, digest: digest.clone(), media_type, bytes, told })
    }

    async fn read_manifest(&self, askers: &Askers, digest: &Digest) -> Option<Hot> {
        let blob = self.0.store.get_unverified(digest).await.ok()??;
        let size = usize::try_from(blob.size()).ok().filter(|size| *size <= oci::MAX_MANIFEST)?;
        // So many clients may ask for so many of them that their bytes would fill the memory before one of them is there.
        let _turn = if size > heavy::LITTLE { Some(self.0.large.take_all_the_same(askers).await.ok()?) } else { None };
        let mut bytes = Vec::with_capacity(size);
        let mut reader = blob.read(0..blob.size());
        let damage = loop {
            match reader.next().await {
                Some(Ok(chunk)) => bytes.extend_from_slice(&chunk),
                Some(Err(ReadError::Disk(error))) => break Damage::told_by(&error)?,
                Some(Err(ReadError::Ended | ReadError::Lagged(_))) => return None,
                // To hash it costs microseconds here, and a damaged manifest would spoil a whole image.
                None => {
                    let (bytes, promised) = (Bytes::from(bytes), digest.clone());
                    let (is_right, bytes) =
                        heavy::work(askers, bytes.len(), move || (promised.matches(&bytes), bytes)).await.ok()?;
                    if is_right {
                        self.0.store.verified(digest);
                        let hot = Hot::from(bytes);
                        self.0.hot.put(digest, hot.clone());
                        return Some(hot);
                    }
                    break Damage::Bytes;
                }
            }
        };
        self.0.store.quarantine(digest, reader.file()?, damage).await;
        None
    }

    /// Fetches a manifest by its digest, once for all who ask.
    pub(super) async fn fetch_manifest(&self, origin: &Origin, digest: &Digest) -> Result<Arc<Verified>, Refusal> {
        self.check_missing(origin, Thing::Manifest(digest.clone()))?;
        let fetch = |origin: Origin| {
            let (mirror, digest) = (self.clone(), digest.clone());
            async move {
                // It may have come in between the caller's look and this.
                let proof = mirror.proof(&origin, &digest, Kind::Manifest);
                if let Some(held) = mirror.held_manifest(&origin, &digest, proof).await
                    && let Ok(manifest) = parse(&origin.behalf.askers, Some(&held.media_type), &held.bytes).await?
                {
                    return Ok(Arc::new(Verified { digest, bytes: held.bytes, manifest, cache_status: None }));
                }
                let reference = Reference::Digest(digest.clone());
                let answer = origin.ask().manifest(&reference).await.inspect_err(|error| {
                    mirror.note_failure(&origin, Thing::Manifest(digest.clone()), error);
                })?;
                mirror.admit_manifest(&origin, Some(digest), answer).await
            }
        };
        self.0.manifests.ask(origin, digest, fetch).await
    }

    /// Verifies a manifest that an upstream has sent and takes it in. It is kept in the background: the client need not wait
    /// for the disk, and trouble with it is not the client's.
    pub(super) async fn admit_manifest(
        &self,
        origin: &Origin,
        asked: Option<Digest>,
        answer: ManifestAnswer,
    ) -> Result<Arc<Verified>, Refusal> {
        let ManifestAnswer { bytes, content_type, cache_status } = answer;
        let of = bytes.clone();
        let hash = move || match asked {
            Some(asked) if asked.matches(&of) => Ok(asked),
            Some(asked) => Err((asked, Digest::sha256(&of))),
            None => Ok(Digest::sha256(&of)),
        };
        let digest = heavy::work(&origin.behalf.askers, bytes.len(), hash).await?.map_err(|(asked, found)| {
            tracing::error!(repository = %origin.repository, digest = %asked, %found, "the upstream sent another manifest");
            origin.upstream().note_mismatch();
            Refusal::WrongContent(format!("{found} instead of {asked}"))
        })?;
        let manifest = parse(&origin.behalf.askers, content_type.as_deref(), &bytes).await?.map_err(|bad| {
            tracing::error!(repository = %origin.repository, %digest, %bad, "the upstream sent no usable manifest");
            Refusal::WrongContent(format!("{digest}: {bad}"))
        })?;
        self.0.hot.put(&digest, bytes.clone().into());
        self.set_proof(&origin.repository, &digest, bytes.len() as u64, Some((*manifest.media_type).into()));
        let verified = Arc::new(Verified { digest, bytes, manifest, cache_status });
        let (store, keep) = (self.0.store.clone(), Arc::clone(&verified));
        self.0.tasks.spawn(async move {
            let Verified { digest, bytes, manifest, .. } = &*keep;
            match store.put(digest, bytes.clone(), &manifest.names).await {
                // Who is at it keeps it.
                Finished::Kept | Finished::Passed(Bypass::Busy) => {}
                other => tracing::warn!(%digest, ?other, "a manifest was not kept"),
            }
        });
        Ok(verified)
    }
}

/// What is served in place of this by tag to who knows no lists. It is looked for once: a list may be long, and so may be the line of
/// those who ask.
async fn default_child(askers: &Askers, manifest: &Manifest) -> Result<Option<Digest>, Lost> {
    let media_type = &*manifest.media_type;
    if !oci::is_docker_list(media_type) {
        return Ok(None);
    }
    let find = async || {
        let list = parse(askers, Some(media_type), &manifest.bytes).await?;
        Ok(list.ok().and_then(|list| list.default_child()))
    };
    manifest.told.default_child.get_or_try_init(find).await.cloned()
}

pub(super) async fn parse(
    askers: &Askers,
    content_type: Option<&str>,
    bytes: &Bytes,
) -> Result<Result<oci::Manifest, oci::BadManifest>, Lost> {
    let (content_type, of) = (content_type.map(str::to_owned), bytes.clone());
    heavy::work(askers, bytes.len(), move || oci::Manifest::parse(content_type.as_deref(), &of)).await
}

// === impl Verified ===

impl Verified {
    /// As it came from the upstream.
    pub(super) fn served(&self) -> Manifest {
        let served = Served::Miss(self.cache_status.clone());
        let (digest, media_type) = (self.digest.clone(), (*self.manifest.media_type).into());
        Manifest { served, digest, media_type, bytes: self.bytes.clone(), told: Arc::default() }
    }
}
