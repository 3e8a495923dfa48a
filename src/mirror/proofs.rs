//! Who may read a digest: a repository of which the upstream has said that it holds it, and for how long that is believed.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::oci::{Digest, Reference, Repository};
use crate::store::{Kind, Proof};
use crate::upstream::{self, CacheStatus, Speaks};

use super::{Mirror, Origin, Refusal, Served, Thing};

/// A repository holds a digest.
pub(super) enum Proven {
    /// The upstream says yes, and this of it; which need not be what was asked about.
    Now(Said),
    /// It once said so and cannot be asked now, for this reason.
    Before(String),
}

/// What an upstream says of something that it has.
#[derive(Clone)]
pub(super) struct Said {
    /// In bytes.
    pub(super) size: Option<u64>,
    pub(super) speaks: Speaks,
    pub(super) cache_status: Option<CacheStatus>,
}

/// How an upstream is asked for a proof where there has been none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// As costs it least.
    Head,
    /// A client wants the thing itself. It is asked for as what is not here would be, with one question that is as soon answered:
    /// a no must not tell by its time that the bytes are here.
    Get,
}

/// The upstream of a repository could not be asked for a proof.
#[derive(Debug, Clone)]
pub(super) struct Unasked {
    /// It is not asked again before, where there is an old proof.
    until: Timestamp,
    why: Refusal,
}

/// For how long an upstream that could not be asked is left alone with such questions.
const WAIT: Duration = Duration::from_secs(3);

// === impl Mirror ===

impl Mirror {
    /// What is known of a digest in a repository, unless that was said too long ago.
    pub(super) fn proof(&self, origin: &Origin, digest: &Digest, kind: Kind) -> Option<Proof> {
        self.old_proof(origin, digest, kind).filter(|proof| self.is_believed(origin, proof))
    }

    /// What is known of a digest in a repository, however long ago it was said.
    pub(super) fn old_proof(&self, origin: &Origin, digest: &Digest, kind: Kind) -> Option<Proof> {
        self.0.store.proof(&origin.repository, digest, kind)
    }

    /// Notes that the upstream has just answered for a digest in a repository.
    pub fn set_proof(&self, repository: &Repository, digest: &Digest, size: u64, media_type: Option<Arc<str>>) {
        let proof = Proof { size, media_type, proven: self.0.clock.now() };
        self.0.store.set_proof(repository, digest, proof);
    }

    /// Access may be taken away where it is not everyone's.
    fn is_believed(&self, origin: &Origin, proof: &Proof) -> bool {
        let ttl = self.0.options.proof_ttl;
        let expires = (origin.upstream().has_credentials() || !origin.speaks_for_all()) && !ttl.is_zero();
        if !expires {
            return true;
        }
        let now = self.0.clock.now();
        // A date in the future was written by a clock that was wrong.
        proof.proven <= now && now.since(proof.proven) < ttl
    }

    /// Whether what was said so long ago may still be gone by where the upstream cannot be asked.
    pub(super) fn may_be_stale(&self, proof: &Proof) -> bool {
        self.0.clock.now().since(proof.proven) <= self.0.options.proof_ttl.saturating_add(self.0.options.max_stale)
    }

    /// Asks the upstream whether the repository holds a digest, once for all who wait. Where it has said so before, it is not
    /// waited for long, and its trouble is not the client's.
    pub(super) async fn prove(&self, origin: &Origin, digest: &Digest, kind: Kind, by: By) -> Result<Proven, Refusal> {
        let Some(old) = self.old_proof(origin, digest, kind) else {
            return self.ask_for_proof(origin, digest, kind, by, false).await.map(Proven::Now);
        };
        let now = self.0.clock.now();
        let why = match self.0.unasked.get(&origin.view()).filter(|unasked| now < unasked.until) {
            Some(unasked) => unasked.why,
            None => match self.in_time(self.ask_for_proof(origin, digest, kind, By::Head, true)).await {
                // A manifest shows itself for as little. And what is too old to be served is fetched, if it can be.
                Ok(said) if said.speaks == Speaks::OfIt || kind == Kind::Manifest || !self.may_be_stale(&old) => {
                    return Ok(Proven::Now(said));
                }
                Ok(_) => upstream::Error::something_else().into(),
                Err(Refusal::Upstream(error)) if error.is_definitive() => return Err(error.into()),
                Err(why) => {
                    // Where nobody is asked it costs nothing to try.
                    if !matches!(why, Refusal::Upstream(upstream::Error::LeftAlone(_))) {
                        self.0.unasked.insert(origin.view(), Unasked { until: now + WAIT, why: why.clone() });
                    }
                    why
                }
            },
        };
        if self.may_be_stale(&old) { Ok(Proven::Before(why.told())) } else { Err(why) }
    }

    /// Waits for an upstream only as long as one does who has an older answer.
    pub(super) async fn in_time<T>(&self, answer: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        let wait = self.0.options.revalidate_wait;
        tokio::time::timeout(wait, answer).await.unwrap_or_else(|_| {
            let why = format!("it has not answered within {}", humantime::format_duration(wait));
            Err(upstream::Error::Unavailable { why, timed_out: true }.into())
        })
    }

    /// `anyhow`: the answer is wanted for who comes next, whoever leaves.
    async fn ask_for_proof(&self, origin: &Origin, digest: &Digest, kind: Kind, by: By, anyhow: bool) -> Result<Said, Refusal> {
        let thing = match kind {
            Kind::Blob => Thing::Blob(digest.clone()),
            Kind::Manifest => Thing::Manifest(digest.clone()),
        };
        self.check_missing(origin, thing.clone())?;
        let ask = |origin: Origin| {
            let (mirror, digest, thing) = (self.clone(), digest.clone(), thing.clone());
            async move {
                // Who is not taken at its word is told nothing of what others have brought here.
                let here = mirror.0.store.size(&digest).filter(|_| origin.is_taken_at_its_word());
                let held = here.or_else(|| mirror.0.fills.size(&origin, &digest));
                let ask = origin.ask();
                let answer = match (kind, by) {
                    // Of what is empty there is no first byte.
                    (Kind::Blob, By::Get) if held != Some(0) => mirror.ask_patiently(&origin, || ask.first_byte(&digest)).await,
                    (Kind::Blob, _) => ask.head_blob(&digest).await,
                    (Kind::Manifest, _) => ask.head_manifest(&Reference::Digest(digest.clone())).await,
                };
                let found = answer.inspect_err(|error| mirror.note_failure(&origin, thing, error))?;
                let said = Said { size: found.size, speaks: found.speaks(&digest, held), cache_status: found.cache_status };
                if matches!(said.speaks, Speaks::OfNone | Speaks::OfAnother) || !origin.is_taken_at_its_word() {
                    return Ok(said);
                }
                match (kind, held.or(said.size), mirror.old_proof(&origin, &digest, kind)) {
                    (Kind::Blob, Some(size), _) => mirror.set_proof(&origin.repository, &digest, size, None),
                    // What a manifest is its bytes have said, when it was first proven; no HEAD says it.
                    (Kind::Manifest, _, Some(Proof { size, media_type, .. })) if said.speaks == Speaks::OfIt => {
                        mirror.set_proof(&origin.repository, &digest, size, media_type);
                    }
                    _ => {}
                }
                Ok(said)
            }
        };
        self.0.proofs.ask_for(origin, &(digest.clone(), kind), ask, anyhow).await
    }

    /// The upstream has begun to send a blob, which proves that the repository holds it, unless it is of another size than the
    /// one that is here.
    pub(super) fn note_begun(&self, origin: &Origin, digest: &Digest, size: u64) {
        if origin.is_taken_at_its_word() && self.0.store.size(digest).is_none_or(|held| held == size) {
            self.set_proof(&origin.repository, digest, size, None);
        }
    }
}

// === impl Proven ===

impl Proven {
    /// Whether it opens what is here: who says yes and speaks of something else has not said that.
    pub(super) fn is_of_it(&self) -> bool {
        !matches!(self, Self::Now(said) if said.speaks != Speaks::OfIt)
    }

    /// How what is in the cache is then served.
    pub(super) fn served(self) -> Served {
        match self {
            Self::Now(_) => Served::Revalidated,
            Self::Before(why) => Served::Stale(why),
        }
    }
}
