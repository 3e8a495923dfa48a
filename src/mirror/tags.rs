//! Tags: how fresh is fresh, and what is served when the upstream cannot say.

use std::sync::Arc;

use crate::oci::{Digest, Reference, Tag};
use crate::store::{Kind, Proof, TagRecord};
use crate::upstream;

use super::freshness::Age;
use super::manifest::{Manifest, Verified};
use super::{Mirror, Origin, Refusal, Served, Thing};

/// What the upstream said of a tag.
#[derive(Clone)]
pub(super) enum Checked {
    /// It still points where it did.
    Same(Digest),
    /// It points here now.
    Moved(Arc<Verified>),
}

/// What the upstream says of a tag now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refreshed {
    pub digest: Digest,
    /// It points elsewhere than larder knew, or larder did not know it.
    pub moved: bool,
}

// === impl Mirror ===

impl Mirror {
    pub(super) async fn manifest_by_tag(&self, origin: &Origin, tag: &Tag) -> Result<Manifest, Refusal> {
        let Some((record, again)) = self.0.store.ask_tag(&origin.repository, tag) else {
            return match Box::pin(self.check_tag(origin, tag, None)).await? {
                Checked::Moved(verified) => Ok(verified.served()),
                Checked::Same(digest) => self.manifest_by_digest(origin, &digest).await,
            };
        };
        let age = self.age(origin, tag, &record);
        if age != Age::Old {
            if age == Age::Aging && again {
                self.ask_ahead(origin, tag, &record);
            }
            match self.manifest_by_digest(origin, &record.digest).await {
                // What it pointed to is gone, here and there: by now it may point elsewhere.
                Err(Refusal::Upstream(error)) if error.is_definitive() => {}
                answer => return answer,
            }
        }
        // On its own, as each request has room for what it may come to, and most do not come to this.
        Box::pin(self.manifest_by_old_tag(origin, tag, &record)).await
    }

    /// The manifest of a tag of which the upstream is to be asked first.
    async fn manifest_by_old_tag(&self, origin: &Origin, tag: &Tag, record: &TagRecord) -> Result<Manifest, Refusal> {
        // Who has an old answer does not wait long for a new one, which goes on without the client.
        let mut checked = self.in_time(self.check_tag(origin, tag, Some(record))).await;
        if let Err(why @ Refusal::Upstream(upstream::Error::Unavailable { timed_out: true, .. })) = checked {
            checked = match self.stale(origin, record, why).await {
                Ok(manifest) => return Ok(manifest),
                // What cannot be served is no answer: this client waits like any other.
                Err(_) => self.check_tag(origin, tag, Some(record)).await,
            };
        }
        match checked {
            Ok(Checked::Moved(verified)) => Ok(verified.served()),
            Ok(Checked::Same(digest)) => match self.manifest_by_digest(origin, &digest).await {
                Ok(manifest) if manifest.served == Served::Hit => Ok(Manifest { served: Served::Revalidated, ..manifest }),
                Err(Refusal::Upstream(error)) if error.is_definitive() => {
                    self.forget_tag(origin, tag, &error);
                    Err(error.into())
                }
                answer => answer,
            },
            Err(Refusal::Upstream(error)) if error.is_definitive() => Err(error.into()),
            Err(refusal) => self.stale(origin, record, refusal).await,
        }
    }

    /// Asks the upstream for a tag now, however fresh it is and however lately the upstream has failed.
    ///
    /// Cancel safe: the question goes on.
    ///
    /// # Errors
    /// See [`Refusal`]. If the upstream has no such tag, it is forgotten.
    pub async fn refresh(&self, origin: &Origin, tag: &Tag) -> Result<Refreshed, Refusal> {
        let known = || self.0.store.tag(&origin.repository, tag);
        let before = known().map(|record| record.digest);
        loop {
            let check = |origin| self.clone().check_tag_and_note(origin, tag.clone(), known());
            let (checked, ours) = self.0.tags.ask_or_join(origin, tag, check, false).await;
            // Another's question may have been answered before the tag moved of which we are told now.
            if ours {
                let digest = match checked? {
                    Checked::Same(digest) => digest,
                    Checked::Moved(verified) => verified.digest.clone(),
                };
                return Ok(Refreshed { moved: before.as_ref() != Some(&digest), digest });
            }
        }
    }

    pub(super) fn age(&self, origin: &Origin, tag: &Tag, record: &TagRecord) -> Age {
        let now = self.0.clock.now();
        // A date in the future was written by a clock that was wrong.
        if now < record.checked {
            return Age::Old;
        }
        let budget = || origin.upstream().budget_share(&origin.repository.name);
        origin.registry.freshness.get().judge(tag, now.since(record.checked), budget)
    }

    /// A tag is asked for more than once, and is not fresh for much longer. The upstream is asked ahead of time, so that nobody waits
    /// for it: at most once, as the next answer begins a new TTL.
    fn ask_ahead(&self, origin: &Origin, tag: &Tag, record: &TagRecord) {
        let (key, flight) = ((origin.repository.clone(), tag.clone()), (origin.view(), tag.clone()));
        let is_done = origin.is_offline() || self.0.ahead.get(&key) == Some(record.checked);
        if !is_done && self.0.held_off.check(&flight, self.0.clock.now(), true).is_none() {
            self.0.ahead.insert(key, record.checked);
            let check = |origin| self.clone().check_tag_and_note(origin, tag.clone(), Some(record.clone()));
            self.0.tags.start(origin, tag, check);
        }
    }

    /// The answer of last time, although the upstream could not be asked.
    async fn stale(&self, origin: &Origin, record: &TagRecord, why: Refusal) -> Result<Manifest, Refusal> {
        let offline = why == Refusal::Upstream(upstream::Error::Offline);
        let age = self.0.clock.now().since(record.checked);
        if age > self.0.options.max_stale && !offline {
            return Err(why);
        }
        match self.held_manifest(origin, &record.digest, self.old_proof(origin, &record.digest, Kind::Manifest)).await {
            Some(manifest) if offline => Ok(manifest),
            Some(manifest) => Ok(Manifest { served: Served::Stale(why.told()), ..manifest }),
            None => Err(why),
        }
    }

    /// Asks the upstream for a tag, once for all who wait, unless it has failed a moment ago. `seen`: what the caller knows and
    /// wants to know better.
    async fn check_tag(&self, origin: &Origin, tag: &Tag, seen: Option<&TagRecord>) -> Result<Checked, Refusal> {
        self.check_missing(origin, Thing::Tag(tag.clone()))?;
        let key = (origin.view(), tag.clone());
        if let Some(why) = self.0.held_off.check(&key, self.0.clock.now(), seen.is_some()) {
            return Err(why);
        }
        let check = |origin| self.clone().check_tag_and_note(origin, tag.clone(), seen.cloned());
        // Who has an older answer does not wait for long, and those who come next want to know as well.
        self.0.tags.ask_for(origin, tag, check, seen.is_some()).await
    }

    async fn check_tag_and_note(self, origin: Origin, tag: Tag, seen: Option<TagRecord>) -> Result<Checked, Refusal> {
        let checked = self.check_tag_now(&origin, &tag, seen.as_ref()).await;
        let (key, now) = ((origin.view(), tag), self.0.clock.now());
        match &checked {
            Ok(_) => self.0.held_off.answered(&key, now),
            Err(Refusal::Upstream(error)) if error.is_definitive() => {
                self.0.held_off.answered(&key, now);
                self.forget_tag(&origin, &key.1, error);
            }
            // A loop is one of the way that this request has come; another may come by another. Where nobody is asked it costs nothing to
            // try.
            Err(
                Refusal::Upstream(
                    upstream::Error::Offline
                    | upstream::Error::Loop
                    | upstream::Error::LeftAlone(_)
                    | upstream::Error::Busy
                    | upstream::Error::Left
                    | upstream::Error::NoSocket(_),
                )
                | Refusal::Interrupted,
            ) => {}
            Err(why) => self.0.held_off.failed(key, now, why),
        }
        checked
    }

    async fn check_tag_now(&self, origin: &Origin, tag: &Tag, seen: Option<&TagRecord>) -> Result<Checked, Refusal> {
        let reference = Reference::Tag(tag.clone());
        let known = self.0.store.tag(&origin.repository, tag);
        if let Some(record) = &known {
            // Someone else's question has been answered meanwhile.
            if Some(record) != seen {
                return Ok(Checked::Same(record.digest.clone()));
            }
            // A HEAD is free where pulls are counted. What it says is only that the tag has moved, or has not.
            match origin.ask().head_manifest(&reference).await?.digest {
                Some(digest) if digest == record.digest => {
                    self.confirm_tag(origin, tag, &digest);
                    return Ok(Checked::Same(digest));
                }
                // Asked for by digest, as the tag may move on meanwhile.
                Some(digest) => {
                    let verified = self.fetch_manifest(origin, &digest).await.map_err(|refusal| match refusal {
                        // That is said of the digest, which another replica may have; not of the tag.
                        Refusal::Upstream(error) if error.is_definitive() => Refusal::Upstream(upstream::Error::Unavailable {
                            why: format!("the tag points to {digest}, for which it answers: {error}"),
                            timed_out: false,
                        }),
                        other => other,
                    })?;
                    tracing::info!(repository = %origin.repository, %tag, from = %record.digest, to = %digest, "a tag has moved");
                    self.point(origin, tag, &digest);
                    return Ok(Checked::Moved(verified));
                }
                None => {}
            }
        }
        let answer = origin.ask().manifest(&reference).await?;
        let verified = self.admit_manifest(origin, None, answer).await?;
        self.point(origin, tag, &verified.digest);
        Ok(Checked::Moved(verified))
    }

    /// The upstream has said where a tag points. If that is where it pointed, it is fresh again.
    pub(super) fn confirm_tag(&self, origin: &Origin, tag: &Tag, digest: &Digest) {
        if self.0.store.tag(&origin.repository, tag).is_none_or(|record| record.digest != *digest) {
            return;
        }
        // So the repository still holds what it points to.
        if let Some(Proof { size, media_type, .. }) = self.old_proof(origin, digest, Kind::Manifest) {
            self.set_proof(&origin.repository, digest, size, media_type);
        }
        self.point(origin, tag, digest);
    }

    pub fn point(&self, origin: &Origin, tag: &Tag, digest: &Digest) {
        let record = TagRecord { digest: digest.clone(), checked: self.0.clock.now() };
        self.0.store.set_tag(&origin.repository, tag, &record);
    }

    /// The upstream has no such tag.
    fn forget_tag(&self, origin: &Origin, tag: &Tag, error: &upstream::Error) {
        if origin.speaks_for_all() {
            self.0.store.remove_tag(&origin.repository, tag);
        }
        self.note_failure(origin, Thing::Tag(tag.clone()), error);
    }
}
