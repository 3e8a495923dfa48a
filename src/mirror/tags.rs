//! Tags: how fresh is fresh, and what is served when the upstream cannot say.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::oci::{Digest, Reference, Repository, Tag};
use crate::store::TagRecord;
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

/// The upstream failed when it was asked for a tag.
#[derive(Debug, Clone)]
pub(super) struct Wait {
    failures: u32,
    /// It is not asked again before.
    until: Timestamp,
    why: Refusal,
}

const SHORTEST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_mins(5);

// === impl Mirror ===

impl Mirror {
    pub(super) async fn manifest_by_tag(&self, origin: &Origin, tag: &Tag) -> Result<Manifest, Refusal> {
        let Some(record) = self.0.store.tag(&origin.repository, tag) else {
            self.check_missing(&origin.repository, Thing::Tag(tag.clone()))?;
            return match self.check_tag(origin, tag).await? {
                Checked::Moved(verified) => Ok(verified.served(Served::Miss)),
                Checked::Same(digest) => self.manifest_by_digest(origin, &digest).await,
            };
        };
        if self.age(origin, tag, &record) != Age::Old {
            return self.manifest_by_digest(origin, &record.digest).await;
        }
        // Who has an old answer does not wait long for a new one, which goes on without the client.
        let wait = self.0.options.revalidate_wait;
        let why = match tokio::time::timeout(wait, self.check_tag(origin, tag)).await {
            Ok(Ok(Checked::Moved(verified))) => return Ok(verified.served(Served::Miss)),
            Ok(Ok(Checked::Same(digest))) => {
                let manifest = self.manifest_by_digest(origin, &digest).await?;
                let served = if manifest.served == Served::Hit { Served::Revalidated } else { manifest.served };
                return Ok(Manifest { served, ..manifest });
            }
            Ok(Err(Refusal::Upstream(error))) if error.is_definitive() => {
                self.0.store.remove_tag(&origin.repository, tag);
                return Err(error.into());
            }
            Ok(Err(refusal)) => refusal,
            Err(_) => Refusal::Upstream(upstream::Error::Unavailable {
                why: format!("it has not answered within {}", humantime::format_duration(wait)),
                timed_out: true,
            }),
        };
        self.stale(origin, &record, why).await
    }

    fn age(&self, origin: &Origin, tag: &Tag, record: &TagRecord) -> Age {
        let now = self.0.clock.now();
        // A date in the future was written by a clock that was wrong.
        if now < record.checked {
            return Age::Old;
        }
        let budget = || origin.upstream().budget_share(&origin.repository.name);
        origin.registry.freshness.judge(tag, now.since(record.checked), budget)
    }

    /// The answer of last time, although the upstream could not be asked.
    async fn stale(&self, origin: &Origin, record: &TagRecord, why: Refusal) -> Result<Manifest, Refusal> {
        let offline = why == Refusal::Upstream(upstream::Error::Offline);
        let age = self.0.clock.now().since(record.checked);
        if age > self.0.options.max_stale && !offline {
            return Err(why);
        }
        match self.held_manifest(origin, &record.digest).await {
            Some(manifest) if offline => Ok(manifest),
            Some(manifest) => Ok(Manifest { served: Served::Stale(why.to_string()), ..manifest }),
            None => Err(why),
        }
    }

    /// Asks the upstream for a tag, once for all who wait.
    async fn check_tag(&self, origin: &Origin, tag: &Tag) -> Result<Checked, Refusal> {
        let key = (origin.repository.clone(), tag.clone());
        if let Some(wait) = self.0.waits.get(&key).filter(|wait| self.0.clock.now() < wait.until) {
            return Err(wait.why);
        }
        let (mirror, origin, tag) = (self.clone(), origin.clone(), tag.clone());
        let checked = self.0.tags.join(key.clone(), || async move {
            let checked = mirror.check_tag_now(&origin, &tag).await;
            match &checked {
                Ok(_) => mirror.0.waits.invalidate(&key),
                Err(Refusal::Upstream(error)) if error.is_definitive() => {
                    mirror.note_failure(&origin.repository, Thing::Tag(tag), error);
                }
                Err(Refusal::Upstream(upstream::Error::Offline) | Refusal::Interrupted) => {}
                Err(why) => mirror.hold_off(key, why),
            }
            checked
        });
        checked.await?
    }

    async fn check_tag_now(&self, origin: &Origin, tag: &Tag) -> Result<Checked, Refusal> {
        let reference = Reference::Tag(tag.clone());
        let known = self.0.store.tag(&origin.repository, tag);
        if let Some(record) = &known {
            // Someone else's question may have been answered meanwhile.
            if self.age(origin, tag, record) != Age::Old {
                return Ok(Checked::Same(record.digest.clone()));
            }
            // A HEAD is free where pulls are counted. What it says is only that the tag has moved, or has not.
            match origin.ask().head_manifest(&reference).await?.digest {
                Some(digest) if digest == record.digest => {
                    self.point(origin, tag, &digest);
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
                    self.point(origin, tag, &digest);
                    return Ok(Checked::Moved(verified));
                }
                None => {}
            }
        }
        let answer = origin.ask().manifest(&reference).await?;
        let verified = self.admit_manifest(origin, None, answer.content_type.as_deref(), answer.bytes)?;
        self.point(origin, tag, &verified.digest);
        Ok(Checked::Moved(verified))
    }

    fn point(&self, origin: &Origin, tag: &Tag, digest: &Digest) {
        let record = TagRecord { digest: digest.clone(), checked: self.0.clock.now() };
        self.0.store.set_tag(&origin.repository, tag, &record);
    }

    /// After a failure the upstream is left alone: for as long as it says, or longer each time if there is an old answer.
    fn hold_off(&self, key: (Repository, Tag), why: &Refusal) {
        let failures = self.0.waits.get(&key).map_or(0, |wait| wait.failures.saturating_add(1));
        let doubled = if self.0.store.tag(&key.0, &key.1).is_some() { failures.min(6) } else { 0 };
        let until = match why {
            Refusal::Upstream(upstream::Error::RateLimited { until }) => *until,
            _ => self.0.clock.now() + (SHORTEST_WAIT * (1 << doubled)).min(LONGEST_WAIT),
        };
        self.0.waits.insert(key, Wait { failures, until, why: why.clone() });
    }
}
