//! What the records say, in memory: no more of it than clients have a use for, whatever an upstream answers them. What the
//! operator has pinned is not bounded.

mod held;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::clock::Timestamp;
use crate::metrics::Metrics;
use crate::oci::{Digest, Reference, Repository, Tag};

use super::super::changed::Changed;
use super::super::slots::Slots;
use super::line::Line;
use super::{Kind, Proof, TagRecord, Tally};

use held::{Held, Proven, find};

/// Tags, proofs, pins and tallies. Pure bookkeeping.
pub(super) struct Known {
    repositories: Repositories,
    proofs: Slots<Proven>,
    /// What is never evicted, by the name that it was pinned by. Only the operator pins.
    pins: Pins,
    tallies: HashMap<String, Tally>,
    /// Nobody could be asked again: nothing is forgotten because it is too much.
    sealed: bool,
    /// What has another tag than before, or is proven or pinned, unlike before.
    pub(super) changed: Changed,
    metrics: Metrics,
}

type Pins = BTreeMap<(Repository, Reference), Digest>;

/// The repositories of which something is known, by number.
#[derive(Default)]
struct Repositories {
    all: Vec<Named>,
    ids: HashMap<Repository, u32>,
    /// The numbers that are free.
    free: Vec<u32>,
    tags: usize,
    proofs: usize,
}

struct Named {
    repository: Repository,
    tags: HashMap<Tag, Tagged>,
    /// How many of these there may be. More than [`MOST_TAGS`] only where what is pinned is too much.
    most_tags: usize,
    /// How many proofs there are by it.
    proofs: usize,
}

struct Tagged {
    record: TagRecord,
    /// Someone has asked for it since that was recorded.
    asked: bool,
}

/// How far all that is known has been gone through.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// To this repository.
    Tags(usize),
    /// To this slot.
    Proofs(u32),
}

/// Of one repository. Who tags each of his builds and pulls it here has thousands, as long as they are in the cache.
const MOST_TAGS: usize = 10_000;
/// By so many repositories one digest may be known to be held: the empty layer is in nearly all there are.
const MOST_PROOFS: usize = 10_000;
/// Of these, so many go at once when there is one too many: those that were said longest ago.
const AT_ONCE: usize = 1_000;
/// Of all together, beside [`FOR_EACH`]; about 20 MB.
const SPARE: usize = 100_000;
/// For each blob in the cache. Most are held by one repository or two, and few have a tag.
const FOR_EACH: usize = 4;
/// So many are looked at before others may have the lock again, or all of one repository or digest if they are more.
const STRETCH: usize = 512;

// === impl Known ===

impl Known {
    pub(super) fn new(sealed: bool, metrics: Metrics) -> Self {
        Self {
            repositories: Repositories::default(),
            proofs: Slots::default(),
            pins: BTreeMap::new(),
            tallies: HashMap::new(),
            sealed,
            changed: Changed::default(),
            metrics,
        }
    }

    /// Tags and proofs.
    pub(super) fn len(&self) -> usize {
        self.repositories.tags + self.repositories.proofs
    }

    /// How many tags and proofs there should be at most, in a cache of so many blobs.
    pub(super) fn most(&self, blobs: usize) -> usize {
        if self.sealed { usize::MAX } else { SPARE + FOR_EACH * blobs }
    }

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Option<TagRecord> {
        self.repositories.at(self.repositories.id(repository)?).tags.get(tag).map(|tagged| tagged.record.clone())
    }

    /// The same for one who asks for it. True if someone has before, since it was recorded.
    pub(super) fn ask_tag(&mut self, repository: &Repository, tag: &Tag) -> Option<(TagRecord, bool)> {
        let id = self.repositories.id(repository)?;
        let tagged = self.repositories.all[id as usize].tags.get_mut(tag)?;
        Some((tagged.record.clone(), std::mem::replace(&mut tagged.asked, true)))
    }

    /// Returns what was said of it before.
    pub(super) fn set_tag(&mut self, repository: &Repository, tag: &Tag, record: TagRecord) -> Option<TagRecord> {
        let id = self.repositories.id_or_new(repository);
        let Named { tags, most_tags, .. } = &mut self.repositories.all[id as usize];
        if tags.len() >= *most_tags && !self.sealed && !tags.contains_key(tag) {
            let pins = &self.pins;
            let is_loose = |tag: &&Tag| !pins.contains_key(&(repository.clone(), Reference::Tag((*tag).clone())));
            let loose = tags.iter().filter(|(tag, _)| is_loose(tag));
            let oldest = oldest(loose.map(|(tag, Tagged { record, .. })| (record.checked, tag.clone())));
            self.metrics.forgotten("tag", oldest.len());
            self.repositories.tags -= oldest.len();
            let gone = oldest.iter().filter_map(|tag| tags.remove(tag));
            gone.for_each(|tagged| self.changed.note(&tagged.record.digest));
            // Where all are pinned, it is not to be looked at each time.
            *most_tags = MOST_TAGS.max(tags.len() + AT_ONCE);
        }
        let digest = record.digest.clone();
        let before = tags.insert(tag.clone(), Tagged { record, asked: false }).map(|tagged| tagged.record);
        self.repositories.tags += usize::from(before.is_none());
        if before.as_ref().is_none_or(|before| before.digest != digest) {
            self.changed.note(&digest);
            before.iter().for_each(|before| self.changed.note(&before.digest));
            note_pinned(&mut self.changed, &self.pins, repository, tag);
        }
        before
    }

    /// True if there was one.
    pub(super) fn remove_tag(&mut self, repository: &Repository, tag: &Tag) -> bool {
        let Some(id) = self.repositories.id(repository) else { return false };
        let removed = self.repositories.all[id as usize].tags.remove(tag);
        self.repositories.tags -= usize::from(removed.is_some());
        self.repositories.forget_if_unused(id);
        if let Some(Tagged { record, .. }) = &removed {
            self.changed.note(&record.digest);
            note_pinned(&mut self.changed, &self.pins, repository, tag);
        }
        removed.is_some()
    }

    pub(super) fn proof(&self, repository: &Repository, digest: &Digest, kind: Kind) -> Option<Proof> {
        let id = self.repositories.id(repository)?;
        let held = &self.proofs.at(self.proofs.find(digest)?).by;
        Some(held[find(held, id, kind).ok()?].proof())
    }

    /// Returns what was said before.
    pub(super) fn set_proof(&mut self, repository: &Repository, digest: &Digest, proof: Proof) -> Option<Proof> {
        let id = self.repositories.id_or_new(repository);
        let slot = self.proofs.find(digest);
        let slot = slot.unwrap_or_else(|| self.proofs.add(Proven { digest: digest.clone(), by: SmallVec::new() }));
        let held = &mut self.proofs.at_mut(slot).by;
        let mut place = find(held, id, proof.kind());
        if let Ok(at) = place {
            return Some(std::mem::replace(&mut held[at], Held::of(id, proof)).proof());
        }
        self.changed.note(digest);
        // Before anything is removed: it is not to be taken for unused.
        self.repositories.proven(id);
        if held.len() >= MOST_PROOFS {
            let oldest = oldest(held.iter().map(|held| (held.proven(), held.key())));
            self.metrics.forgotten("proof", oldest.len());
            held.retain(|held| oldest.binary_search(&held.key()).is_err());
            oldest.iter().for_each(|(by, _)| self.repositories.unproven(*by));
            place = find(held, id, proof.kind());
        }
        let (Ok(at) | Err(at)) = place;
        held.insert(at, Held::of(id, proof));
        None
    }

    /// True if there was one.
    pub(super) fn remove_proof(&mut self, repository: &Repository, digest: &Digest, kind: Kind) -> bool {
        let Some(id) = self.repositories.id(repository) else { return false };
        let Some(slot) = self.proofs.find(digest) else { return false };
        let held = &mut self.proofs.at_mut(slot).by;
        let Ok(at) = find(held, id, kind) else { return false };
        held.remove(at);
        if held.is_empty() {
            // They may have been many.
            *held = SmallVec::new();
            self.proofs.remove(slot);
        }
        self.repositories.unproven(id);
        self.changed.note(digest);
        true
    }

    pub(super) fn tally(&self, name: &str) -> Option<Tally> {
        self.tallies.get(name).copied()
    }

    /// Returns what it was before.
    pub(super) fn set_tally(&mut self, name: &str, tally: Tally) -> Option<Tally> {
        self.tallies.insert(name.to_owned(), tally)
    }

    /// Returns what it was before.
    pub(super) fn set_pin(&mut self, repository: Repository, reference: Reference, digest: Digest) -> Option<Digest> {
        self.changed.note(&digest);
        let before = self.pins.insert((repository, reference), digest);
        before.iter().for_each(|before| self.changed.note(before));
        before
    }

    /// Returns what it was.
    pub(super) fn remove_pin(&mut self, repository: &Repository, reference: &Reference) -> Option<Digest> {
        let before = self.pins.remove(&(repository.clone(), reference.clone()));
        before.iter().for_each(|before| self.changed.note(before));
        before
    }

    pub(super) fn pins(&self) -> impl Iterator<Item = (&(Repository, Reference), &Digest)> {
        self.pins.iter()
    }

    /// What is as it is however old it is.
    pub(super) fn lasting(&self) -> Vec<Line> {
        let pin = |((repository, reference), digest): (&(Repository, Reference), &Digest)| {
            Line::Pin(repository.clone(), reference.clone(), digest.clone())
        };
        let tallies = self.tallies.iter().map(|(name, tally)| Line::Tally(name.clone(), *tally));
        tallies.chain(self.pins().map(pin)).collect()
    }

    /// By whom a digest is known to be held, and as what.
    pub(super) fn held_by(&self, digest: &Digest) -> Vec<(Repository, Kind)> {
        let held = self.proofs.find(digest).into_iter().flat_map(|slot| &self.proofs.at(slot).by);
        held.map(|held| (self.repositories.at(held.by).repository.clone(), held.kind())).collect()
    }

    /// The repositories that hold a digest as a manifest, each with the tags that mean it there.
    pub(super) fn named(&self, digest: &Digest) -> Vec<(Repository, Vec<Tag>)> {
        let held = self.proofs.find(digest).into_iter().flat_map(|slot| &self.proofs.at(slot).by);
        let manifests = held.filter(|held| held.kind() == Kind::Manifest).map(|held| self.repositories.at(held.by));
        let named = manifests.map(|Named { repository, tags, .. }| {
            let meant = tags.iter().filter(|(_, tagged)| tagged.record.digest == *digest);
            (repository.clone(), meant.map(|(tag, _)| tag.clone()).collect())
        });
        named.collect()
    }

    /// The digests that are manifests.
    pub(super) fn manifests(&self) -> Vec<Digest> {
        let manifests = self.proofs.all().filter(|proven| proven.by.iter().any(|held| held.kind() == Kind::Manifest));
        manifests.map(|proven| proven.digest.clone()).collect()
    }

    /// Goes through tags and proofs from `place` on, a stretch of them; forgets those that `keep` does not want, and puts the
    /// others with `kept`. Returns where it goes on, or `None` at the end.
    pub(super) fn stretch(
        &mut self,
        place: Place,
        mut keep: impl FnMut(&Digest, Timestamp) -> bool,
        kept: &mut Vec<Line>,
    ) -> Option<Place> {
        let mut looked_at = 0;
        let mut slot = match place {
            Place::Tags(mut id) => {
                while looked_at < STRETCH {
                    let Some(named) = self.repositories.all.get_mut(id) else { return Some(Place::Proofs(0)) };
                    let before = named.tags.len();
                    looked_at += 1 + before;
                    named.tags.retain(|tag, Tagged { record, .. }| {
                        let keeps = keep(&record.digest, record.checked);
                        if !keeps {
                            self.changed.note(&record.digest);
                            note_pinned(&mut self.changed, &self.pins, &named.repository, tag);
                        }
                        keeps
                    });
                    let line = |(tag, Tagged { record, .. }): (&Tag, &Tagged)| {
                        Line::Tag(named.repository.clone(), tag.clone(), record.clone())
                    };
                    kept.extend(named.tags.iter().map(line));
                    self.repositories.tags -= before - named.tags.len();
                    if before > named.tags.len() {
                        self.repositories.forget_if_unused(u32::try_from(id).unwrap_or(u32::MAX));
                    }
                    id += 1;
                }
                return Some(Place::Tags(id));
            }
            Place::Proofs(slot) => slot,
        };
        while looked_at < STRETCH {
            if slot as usize >= self.proofs.end() {
                return None;
            }
            let Proven { digest, by } = self.proofs.at_mut(slot);
            let before = by.len();
            looked_at += 1 + before;
            by.retain(|held| {
                let keeps = keep(digest, held.proven());
                if !keeps {
                    self.repositories.unproven(held.by);
                    self.changed.note(digest);
                }
                keeps
            });
            let record =
                |held: &Held| Line::Proof(self.repositories.at(held.by).repository.clone(), digest.clone(), held.proof());
            kept.extend(by.iter().map(record));
            if by.is_empty() && before > 0 {
                *by = SmallVec::new();
                self.proofs.remove(slot);
            }
            slot += 1;
        }
        Some(Place::Proofs(slot))
    }

    /// Takes what a line of the log says.
    pub(super) fn take(&mut self, line: Line) {
        match line {
            Line::Tag(repository, tag, record) => _ = self.set_tag(&repository, &tag, record),
            Line::Untag(repository, tag) => _ = self.remove_tag(&repository, &tag),
            Line::Proof(repository, digest, proof) => _ = self.set_proof(&repository, &digest, proof),
            Line::Unproof(repository, digest, kind) => _ = self.remove_proof(&repository, &digest, kind),
            Line::Pin(repository, reference, digest) => _ = self.set_pin(repository, reference, digest),
            Line::Unpin(repository, reference) => _ = self.remove_pin(&repository, &reference),
            Line::Tally(name, tally) => _ = self.set_tally(&name, tally),
        }
    }
}

/// What is pinned by a tag is known by it as long as that means nothing else.
fn note_pinned(changed: &mut Changed, pins: &Pins, repository: &Repository, tag: &Tag) {
    if let Some(pinned) = pins.get(&(repository.clone(), Reference::Tag(tag.clone()))) {
        changed.note(pinned);
    }
}

/// The keys of what is dated longest ago, in their order.
fn oldest<K: Ord>(dated: impl Iterator<Item = (Timestamp, K)>) -> Vec<K> {
    let mut all: Vec<_> = dated.collect();
    all.sort_unstable();
    let mut keys: Vec<K> = all.into_iter().take(AT_ONCE).map(|(_, key)| key).collect();
    keys.sort_unstable();
    keys
}

// === impl Repositories ===

impl Repositories {
    fn id(&self, repository: &Repository) -> Option<u32> {
        self.ids.get(repository).copied()
    }

    fn at(&self, id: u32) -> &Named {
        &self.all[id as usize]
    }

    fn id_or_new(&mut self, repository: &Repository) -> u32 {
        if let Some(id) = self.id(repository) {
            return id;
        }
        let named = Named { repository: repository.clone(), tags: HashMap::new(), most_tags: MOST_TAGS, proofs: 0 };
        let id = if let Some(id) = self.free.pop() {
            self.all[id as usize] = named;
            id
        } else {
            self.all.push(named);
            u32::try_from(self.all.len() - 1).expect("fewer than 2^32 repositories")
        };
        self.ids.insert(repository.clone(), id);
        id
    }

    fn proven(&mut self, id: u32) {
        self.proofs += 1;
        self.all[id as usize].proofs += 1;
    }

    fn unproven(&mut self, id: u32) {
        self.proofs -= 1;
        self.all[id as usize].proofs -= 1;
        self.forget_if_unused(id);
    }

    /// One of which nothing is known any more is none.
    fn forget_if_unused(&mut self, id: u32) {
        let named = &mut self.all[id as usize];
        if named.proofs == 0 && named.tags.is_empty() {
            // It may have grown.
            named.tags = HashMap::new();
            self.ids.remove(&named.repository);
            self.free.push(id);
        }
    }
}
