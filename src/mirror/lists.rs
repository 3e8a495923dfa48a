//! Lists that only the upstream knows: the tags of a repository, the referrers of a digest.

use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::heavy;
use crate::oci::{Accept, BadManifest, Digest, INDEX_TYPE, Page, Reference, ReferrersByType, Tag};
use crate::room::Askers;
use crate::upstream::{self, CacheStatus};

use super::{Manifest, Mirror, Origin, Refusal, Served, Thing};

/// A page of tags.
pub struct TagList {
    pub served: Served,
    pub tags: Arc<[String]>,
    pub next: Option<Page>,
}

/// An index of what refers to a digest.
pub struct Referrers {
    pub served: Served,
    pub index: Bytes,
    /// Only what has the artifact type that was asked for is in it.
    pub filtered: bool,
}

/// A list as the upstream gave it.
#[derive(Clone)]
pub(super) struct Cached {
    at: Timestamp,
    list: List,
    /// What the upstream said of its cache.
    cache_status: Option<CacheStatus>,
}

#[derive(Clone)]
enum List {
    Tags(Arc<[String]>, Option<Page>),
    /// As they came; and parsed, once for all who ask for some of them.
    Referrers(Bytes, Result<Arc<ReferrersByType>, BadManifest>),
}

/// About what a list takes of the memory, in bytes.
pub(super) fn weight(key: &str, cached: &Cached) -> u32 {
    let bytes = match &cached.list {
        List::Tags(tags, _) => weight_of_tags(tags),
        List::Referrers(index, by_type) => index.len() + by_type.as_ref().map_or(0, |by_type| by_type.weight()),
    };
    u32::try_from(200 + key.len() + bytes).unwrap_or(u32::MAX)
}

fn weight_of_tags(tags: &[String]) -> usize {
    tags.iter().map(|tag| tag.len() + size_of::<String>()).sum()
}

/// The longest page that is asked for; some registries refuse longer ones.
const LONGEST_PAGE: u64 = 1000;

// === impl Mirror ===

impl Mirror {
    /// The tags of a repository. Always asked upstream, as a cache knows only what was pulled; an old list stands in when the
    /// upstream fails.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn tag_list(&self, origin: &Origin, page: &Page) -> Result<TagList, Refusal> {
        if page.n == Some(0) {
            return Ok(TagList { served: Served::Hit, tags: Arc::default(), next: None });
        }
        let page = Page { n: page.n.map(|n| n.min(LONGEST_PAGE)), ..page.clone() };
        let key = format!("tags {page:?}");
        let list = self.list(origin, key, false, |mirror, origin| {
            let asked = page.clone();
            async move {
                let answer = origin.ask().tags(&asked).await?;
                let weight = weight_of_tags(&answer.tags);
                let cut = move || cut(answer.tags, answer.next, &asked);
                let (tags, next) = heavy::work(&origin.behalf.askers, weight, cut).await?;
                let at = mirror.0.clock.now();
                Ok(Cached { at, list: List::Tags(tags.into(), next), cache_status: answer.cache_status })
            }
        });
        match list.await? {
            (served, List::Tags(tags, next)) => Ok(TagList { served, tags, next }),
            (_, List::Referrers(..)) => Err(Refusal::Interrupted),
        }
    }

    /// What refers to `digest`: by the referrers API, or where there is none by the tag that stands in for it.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn referrers(&self, origin: &Origin, digest: &Digest, artifact_type: Option<&str>) -> Result<Referrers, Refusal> {
        let key = format!("referrers {digest}");
        let list = self.list(origin, key, true, |mirror, origin| {
            let asked = digest.clone();
            async move {
                let (index, cache_status) = match origin.ask().referrers(&asked).await? {
                    Some(answer) => (answer.index, answer.cache_status),
                    None => {
                        (mirror.referrers_by_tag(&origin, &asked).await?.map_or_else(no_referrers, |index| index.bytes), None)
                    }
                };
                Ok(Cached { at: mirror.0.clock.now(), list: parse(&origin.behalf.askers, index).await?, cache_status })
            }
        });
        let (served, list) = match list.await {
            Err(Refusal::Upstream(upstream::Error::Offline)) => (Served::Offline, self.offline_referrers(origin, digest).await?),
            listed => listed?,
        };
        match (list, artifact_type) {
            (List::Referrers(index, _), None) => Ok(Referrers { served, index, filtered: false }),
            (List::Referrers(_, by_type), Some(artifact_type)) => {
                let by_type = by_type.map_err(|bad| Refusal::WrongContent(bad.to_string()))?;
                let (length, artifact_type) = (by_type.filtered_length(artifact_type), artifact_type.to_owned());
                let index = heavy::work(&origin.behalf.askers, length, move || by_type.filter(&artifact_type)).await?.into();
                Ok(Referrers { served, index, filtered: true })
            }
            (List::Tags(..), _) => Err(Refusal::Interrupted),
        }
    }

    /// Those that the tag here names. They too are parsed once for many, as long as it names the same.
    async fn offline_referrers(&self, origin: &Origin, digest: &Digest) -> Result<List, Refusal> {
        let Some(index) = self.referrers_by_tag(origin, digest).await? else {
            return parse(&origin.behalf.askers, no_referrers()).await;
        };
        let list = self.list(origin, format!("referrers in {}", index.digest), true, |mirror, origin| {
            let bytes = index.bytes.clone();
            async move {
                Ok(Cached { at: mirror.0.clock.now(), list: parse(&origin.behalf.askers, bytes).await?, cache_status: None })
            }
        });
        Ok(list.await?.1)
    }

    /// The index that the tag names which stands in for the API, if there is one.
    async fn referrers_by_tag(&self, origin: &Origin, digest: &Digest) -> Result<Option<Manifest>, Refusal> {
        let tag = Reference::Tag(Tag::of_referrers(digest));
        // Boxed: a manifest's future holds this one where it is a list.
        let index = Box::pin(self.find_manifest(origin, &tag, Accept::anything())).await;
        match index {
            Ok(manifest) => Ok(Some(manifest).filter(|manifest| *manifest.media_type == *INDEX_TYPE)),
            Err(Refusal::Upstream(error)) if error.is_definitive() || error == upstream::Error::Offline => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Asks for a list, once for all who wait. `fresh_will_do`: an answer younger than a tag may be is as good. When the upstream
    /// fails, an older one stands in.
    async fn list<F>(
        &self,
        origin: &Origin,
        key: String,
        fresh_will_do: bool,
        ask: impl Fn(Self, Origin) -> F,
    ) -> Result<(Served, List), Refusal>
    where
        F: Future<Output = Result<Cached, Refusal>> + Send + 'static,
    {
        let thing = Thing::List(key.clone());
        let key = (origin.view(), key);
        let cached = self.0.lists.get(&key);
        let age = cached.as_ref().map(|cached| self.0.clock.now().since(cached.at));
        if let (true, Some(cached), Some(age)) = (fresh_will_do, &cached, age)
            && age < origin.registry.freshness.get().list_ttl()
        {
            return Ok((Served::Hit, cached.list.clone()));
        }
        self.check_missing(origin, thing.clone())?;
        let listing = |origin| {
            let (asked, lists, for_key) = (ask(self.clone(), origin), self.0.lists.clone(), key.clone());
            async move {
                let cached = asked.await?;
                lists.insert(for_key, cached.clone());
                Ok(cached)
            }
        };
        match (self.0.listing.ask(origin, &key.1, listing).await, cached, age) {
            (Ok(answer), _, _) => Ok((Served::Miss(answer.cache_status), answer.list)),
            (Err(Refusal::Upstream(error)), _, _) if error.is_definitive() => {
                self.0.lists.invalidate(&key);
                self.note_failure(origin, thing, &error);
                Err(error.into())
            }
            (Err(Refusal::Upstream(upstream::Error::Offline)), Some(cached), _) => Ok((Served::Offline, cached.list)),
            (Err(refusal), Some(cached), Some(age)) if age < self.0.options.max_stale => {
                Ok((Served::Stale(refusal.told()), cached.list))
            }
            (Err(refusal), _, _) => Err(refusal),
        }
    }
}

/// Holds a page to what was asked, where the upstream gives more than that: some pass over the query.
fn cut(mut tags: Vec<String>, next: Option<Page>, asked: &Page) -> (Vec<String>, Option<Page>) {
    let n = asked.n.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let passed_over = asked.last.as_ref().is_some_and(|last| tags.contains(last));
    if next.is_some() || asked.next.is_some() || (!passed_over && tags.len() <= n) {
        return (tags, next);
    }
    // The whole list, in whatever order: its pages need one in which they follow each other.
    if passed_over || asked.last.is_none() {
        tags.sort();
    }
    if let Some(last) = asked.last.as_ref().filter(|_| passed_over) {
        tags.retain(|tag| tag > last);
    }
    let more = tags.len() > n;
    tags.truncate(n);
    let next = if more { tags.last().map(|last| Page { n: asked.n, last: Some(last.clone()), ..Page::default() }) } else { None };
    (tags, next)
}

async fn parse(askers: &Askers, index: Bytes) -> Result<List, Refusal> {
    let bytes = index.clone();
    let by_type = heavy::work(askers, index.len(), move || ReferrersByType::read(&bytes)).await?;
    Ok(List::Referrers(index, by_type.map(Arc::new)))
}

fn no_referrers() -> Bytes {
    Bytes::from(format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX_TYPE}","manifests":[]}}"#))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(n: Option<u64>, last: Option<&str>) -> Page {
        Page { n, last: last.map(Into::into), ..Page::default() }
    }

    fn tags(names: &str) -> Vec<String> {
        names.chars().map(String::from).collect()
    }

    #[test]
    fn a_page_is_no_longer_than_was_asked_for() {
        assert_eq!(cut(tags("cab"), None, &page(None, None)), (tags("cab"), None), "as the upstream has it");
        assert_eq!(cut(tags("cab"), None, &page(Some(2), None)), (tags("ab"), Some(page(Some(2), Some("b")))));
        assert_eq!(cut(tags("cab"), None, &page(Some(2), Some("a"))), (tags("bc"), None));
        let theirs = Some(page(Some(2), Some("x")));
        assert_eq!(cut(tags("xy"), theirs.clone(), &page(Some(2), None)), (tags("xy"), theirs));
    }
}
