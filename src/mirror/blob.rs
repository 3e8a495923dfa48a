//! Blobs: from the cache, from a fill, or by a new one; and who may have them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::oci::Digest;
use crate::store::{self, BlobReader, Growth, Held, Kind, Pieces, TAIL};
use crate::upstream::{self, Speaks};

use super::body::{ByteStream, Reading};
use super::fill::{For, Interest, Joined};
use super::prefetch;
use super::proofs::{By, Proven, Said};
use super::{Mirror, Origin, Refusal, Served, Thing};

/// A blob that can be read, whole or in parts.
#[derive(Clone)]
pub struct Blob {
    pub served: Served,
    pub(super) mirror: Mirror,
    pub(super) digest: Digest,
    /// Where and as whom to ask for what the source cannot give, or not in time.
    pub(super) origin: Origin,
    pub(super) source: Source,
    /// Some of its bytes have gone out: those that follow must be of the same copy.
    pub(super) given: Arc<AtomicBool>,
    pub(super) detours: Detours,
    pub(super) client: Option<prefetch::Client>,
}

/// How many ranges ahead of a fill may still be fetched apart from it, of all that one client has asked for at once.
#[derive(Clone)]
pub(super) struct Detours(Arc<AtomicUsize>);

/// From where a blob is read.
#[derive(Clone)]
pub(super) enum Source {
    Cache(store::Blob),
    /// The cache, of which nobody knows yet that it is right.
    Doubtful(Growth),
    Fill(Growth, Interest),
}

/// What HEAD tells of a blob.
pub struct BlobSize {
    pub served: Served,
    /// `None`: the upstream does not say.
    pub size: Option<u64>,
}

/// So long a request waits until a file is verified that a stop may have damaged. A larger one goes out meanwhile, but for its
/// end.
const VERIFY_WAIT: Duration = Duration::from_secs(2);
/// How often it is told how far a fill is.
const TELL: Duration = Duration::from_millis(100);

// === impl Mirror ===

impl Mirror {
    /// The blob `digest` of a repository. On a miss this returns as soon as the upstream has begun to answer.
    ///
    /// Cancel safe: a fill that was begun goes on.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn blob(&self, origin: &Origin, digest: &Digest) -> Result<Blob, Refusal> {
        let mut blob = self.find_blob(origin, digest, For::Answer, false).await;
        match &mut blob {
            Ok(blob) => {
                if matches!(blob.served, Served::Miss(_) | Served::Joined(_)) {
                    self.prefetch(origin, digest);
                }
                blob.client = (self.0.options.prefetch > 0).then(|| self.0.prefetches.read(digest));
            }
            Err(Refusal::Upstream(upstream::Error::Offline)) => self.lacks_blob(origin, digest),
            Err(_) => {}
        }
        blob
    }

    /// Likewise; `unreadable`: the cache may have it, but not so that it can be read.
    ///
    /// Each round looks into the cache first, and where that cannot serve, joins the fill or starts one. A further round follows
    /// where what was joined came to an end that says nothing of this request: the blob has just come in or was found damaged,
    /// or the fill failed for another repository or client.
    pub(super) async fn find_blob(
        &self,
        origin: &Origin,
        digest: &Digest,
        what_for: For,
        mut unreadable: bool,
    ) -> Result<Blob, Refusal> {
        // A fill has already come to nothing for this request; it may have one more.
        let mut in_vain = false;
        // It has already joined a fill that failed for who began it.
        let mut anothers = false;
        let blob = |served, source| {
            let (mirror, digest, origin) = (self.clone(), digest.clone(), origin.clone());
            Blob { served, mirror, digest, origin, source, given: Arc::default(), detours: Detours::new(), client: None }
        };
        'find: loop {
            // The upstream has answered for it in this repository, which gives the right to it, here or in a fill of others.
            let (proof, held) = (self.proof(origin, digest, Kind::Blob), self.0.store.size(digest));
            let mut proven = proof.is_some();
            // What is here is not for it, as its upstream's word is no proof and the bytes may be others': it is fetched as if it
            // were not here.
            let mut foreign = !proven && !origin.is_taken_at_its_word();
            let mut served = if origin.is_offline() { Served::Offline } else { Served::Hit };
            if !unreadable && !foreign && !proven && held.is_some() {
                let said = self.prove(origin, digest, Kind::Blob, By::Get).await?;
                proven = said.is_of_it();
                (served, foreign) = (said.served(), !proven);
            }
            if !unreadable && !foreign && proven {
                match self.0.store.get(digest).await {
                    // The upstream has answered with something else, as a page is: of this it has said nothing.
                    Ok(Some(Held::Verified(cached))) if proof.is_some_and(|proof| proof.size != cached.size()) => {
                        (proven, foreign) = (false, true);
                    }
                    Ok(Some(Held::Verified(cached))) => return Ok(blob(served, Source::Cache(cached))),
                    Ok(Some(Held::Doubtful(growth))) => {
                        let verified = tokio::time::timeout(VERIFY_WAIT, growth.verified()).await;
                        if !matches!(verified, Ok(false)) {
                            return Ok(blob(served, Source::Doubtful(growth)));
                        }
                        // It was damaged and is gone; or it cannot be told.
                        unreadable = self.0.store.size(digest).is_some();
                    }
                    Ok(None) => {}
                    // The disk's trouble is not the client's: the upstream has the blob as well.
                    Err(_) => unreadable = true,
                }
            }
            self.check_missing(origin, Thing::Blob(digest.clone()))?;
            let (interest, started) = match self.join_fill(origin, digest, what_for, unreadable || foreign) {
                Joined::Fill { interest, started } => (interest, started),
                Joined::Settled => continue,
                Joined::Ending(landed) => {
                    landed.cancelled().await;
                    continue;
                }
            };
            if !started {
                origin.behalf.trace.shares(&interest.origin().behalf.trace);
            }
            let own = interest.origin().view() == origin.view();
            let mut size_told = None;
            if interest.origin().repository != origin.repository && !proven {
                // The bytes come by another repository; the right to them does not.
                match self.prove(origin, digest, Kind::Blob, By::Get).await? {
                    Proven::Now(Said { speaks: Speaks::OfNone | Speaks::OfAnother, .. }) => return Err(incomplete()),
                    Proven::Now(said) => size_told = said.size,
                    Proven::Before(_) => {}
                }
            }
            match interest.begun().await {
                // By now it is known of what size it is.
                Ok(Some(begun)) if size_told.is_some_and(|told| begun.growth.known_size().is_some_and(|size| size != told)) => {
                    return Err(incomplete());
                }
                Ok(Some(mut begun)) => {
                    // Of so small a blob nothing can go out before it is verified: there is still time for a status.
                    while begun.growth.known_size().is_some_and(|size| size <= TAIL) && !begun.growth.verified().await {
                        match interest.begun_anew(&begun.growth).await {
                            Some(anew) => begun = anew,
                            // What was fetched in place of wrong bytes may be here by now.
                            None if !in_vain && !foreign && self.0.store.size(digest).is_some() => {
                                (unreadable, in_vain) = (false, true);
                                continue 'find;
                            }
                            None => return Err(incomplete()),
                        }
                    }
                    let served = match begun.bypass {
                        Some(why) => Served::Bypass(why, begun.cache_status),
                        None if started => Served::Miss(begun.cache_status),
                        None => Served::Joined(begun.cache_status),
                    };
                    return Ok(blob(served, Source::Fill(begun.growth, interest)));
                }
                // One who stands in another's line, or has come another's way, asks once for himself.
                Err(refusal) if own && (started || anothers || !refusal.is_of_who_asked()) => return Err(refusal),
                Ok(None) if started => {
                    interest.landed().await;
                    // One request starts one fill, or two if the cache cannot be read.
                    if in_vain || self.0.store.size(digest).is_none() {
                        return Err(incomplete());
                    }
                    (unreadable, in_vain) = (false, true);
                }
                // It is over; or it failed for another repository or client, and now it is for ours.
                joined => {
                    anothers |= own && joined.is_err();
                    interest.landed().await;
                }
            }
        }
    }

    /// The size of a blob, without fetching it.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn blob_size(&self, origin: &Origin, digest: &Digest) -> Result<BlobSize, Refusal> {
        let proof = self.proof(origin, digest, Kind::Blob);
        let held = match &proof {
            Some(_) => self.held_size(digest).await,
            // To look at the file takes time, and before there is a proof nothing is to tell that it is there.
            None => self.0.store.size(digest).filter(|_| origin.is_taken_at_its_word()),
        };
        if let (Some(size), Some(proof)) = (held, &proof) {
            let size = if size == proof.size {
                Some(size)
            } else {
                // One of them is wrong: the upstream's word, or what a stop has left of the file.
                self.blob(origin, digest).await?.verified_size().await
            };
            let served = if origin.is_offline() { Served::Offline } else { Served::Hit };
            return Ok(BlobSize { served, size });
        }
        self.check_missing(origin, Thing::Blob(digest.clone()))?;
        if origin.is_offline() && held.is_none() {
            self.lacks_blob(origin, digest);
            return Err(upstream::Error::Offline.into());
        }
        if let Some(proof) = proof {
            return Ok(BlobSize { served: Served::Hit, size: Some(proof.size) });
        }
        let proven = self.prove(origin, digest, Kind::Blob, By::Head).await?;
        // What is not the client's has to look as if it were not here.
        if let Proven::Now(Said { speaks: Speaks::OfAnother, .. }) = &proven {
            return Err(incomplete());
        }
        if let Proven::Now(said) = &proven
            && (held.is_none() || said.speaks != Speaks::OfIt)
        {
            return Ok(BlobSize { served: Served::Miss(said.cache_status.clone()), size: said.size });
        }
        let held = if held.is_some() { self.held_size(digest).await } else { None };
        let known = self.old_proof(origin, digest, Kind::Blob).map(|proof| proof.size);
        Ok(BlobSize { served: proven.served(), size: held.or(known) })
    }

    /// The size of a file that is here, by a look at it: what GET would find gone or cut is not promised.
    async fn held_size(&self, digest: &Digest) -> Option<u64> {
        match self.0.store.get_unverified(digest).await {
            Ok(blob) => blob.map(|blob| blob.size()),
            Err(_) => self.0.store.size(digest),
        }
    }
}

fn incomplete() -> Refusal {
    Refusal::WrongContent("not all bytes of the blob, or others than its digest promises".into())
}

// === impl Blob ===

impl Blob {
    /// In bytes. Waits for the end of a blob whose upstream does not say its size; `None` if that end never comes, or cannot
    /// be waited for, as the blob is not kept.
    ///
    /// Cancel safe.
    pub async fn size(&self) -> Option<u64> {
        match &self.source {
            Source::Cache(blob) => Some(blob.size()),
            Source::Doubtful(growth) | Source::Fill(growth, _) => growth.size().await,
        }
    }

    /// Waits until the blob is in the cache, or is known not to get there, without reading it. True once it is there. Meanwhile
    /// `grown` is told from time to time how many bytes have come, and of how many.
    ///
    /// Cancel safe.
    pub(super) async fn kept(self, grown: impl Fn(u64, Option<u64>)) -> bool {
        let Self { mirror, digest, source, .. } = self;
        match source {
            Source::Cache(_) => true,
            Source::Doubtful(growth) => growth.verified().await,
            Source::Fill(mut growth, interest) => {
                // The interest is held until then, as a fill does not go on for nobody.
                while !settled(&growth, &grown).await {
                    match interest.begun_anew(&growth).await {
                        Some(begun) => growth = begun.growth,
                        None => return mirror.0.store.size(&digest).is_some(),
                    }
                }
                interest.landed().await;
                true
            }
        }
    }

    /// Whether every byte is known to be right.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        matches!(self.source, Source::Cache(_))
    }

    /// The size, if it is known by now.
    #[must_use]
    pub fn known_size(&self) -> Option<u64> {
        self.source.known_size()
    }

    /// The size of a blob of which every byte is verified. Where the bytes are not kept it cannot be waited for: `None`.
    ///
    /// Cancel safe.
    pub async fn verified_size(&self) -> Option<u64> {
        match &self.source {
            Source::Cache(blob) => Some(blob.size()),
            Source::Doubtful(growth) | Source::Fill(growth, _) => match growth.size().await {
                Some(size) if growth.verified().await => Some(size),
                _ => None,
            },
        }
    }

    /// The bytes `start..end`, in pieces of the size that is wished at the moment.
    #[must_use]
    pub fn read(&self, start: u64, end: u64, pieces: &Pieces) -> ByteStream {
        Reading::new(self, start, Some(end), pieces).stream()
    }

    /// All bytes, of a blob whose size may not be known.
    #[must_use]
    pub fn read_all(&self, pieces: &Pieces) -> ByteStream {
        Reading::new(self, 0, self.known_size(), pieces).stream()
    }

    pub(super) fn into_source(self) -> Source {
        self.source
    }
}

/// Waits for the end of a fill, and tells meanwhile how far it is.
async fn settled(growth: &Growth, grown: impl Fn(u64, Option<u64>)) -> bool {
    let settled = growth.settled();
    tokio::pin!(settled);
    loop {
        tokio::select! {
            settled = &mut settled => return settled,
            () = tokio::time::sleep(TELL) => grown(growth.front(), growth.known_size()),
        }
    }
}

// === impl Detours ===

impl Detours {
    /// podman asks for up to 1,024 ranges at once, and an upstream is no place to ask so often.
    const MOST: usize = 8;

    fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(Self::MOST)))
    }

    /// True if one more may be made, which it then is.
    pub(super) fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

// === impl Source ===

impl Source {
    /// Reads from `at` to `end`, or to the end of a blob whose size may not be known.
    pub(super) fn read(&self, at: u64, end: Option<u64>, pieces: &Pieces) -> BlobReader {
        let reader = match self {
            Self::Cache(blob) => blob.read(at..end.unwrap_or(blob.size())),
            Self::Doubtful(growth) | Self::Fill(growth, _) => growth.read(at, end),
        };
        reader.in_pieces(pieces)
    }

    pub(super) fn known_size(&self) -> Option<u64> {
        match self {
            Self::Cache(blob) => Some(blob.size()),
            Self::Doubtful(growth) | Self::Fill(growth, _) => growth.known_size(),
        }
    }

    /// Waits until it is known whether the bytes are right.
    ///
    /// Cancel safe.
    pub(super) async fn verified(&self) -> bool {
        match self {
            Self::Cache(_) => true,
            Self::Doubtful(growth) | Self::Fill(growth, _) => growth.verified().await,
        }
    }
}
