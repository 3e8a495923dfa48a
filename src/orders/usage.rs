//! `larder du`: what takes the disk, and what would leave it first.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Reference, Repository, Tag};
use crate::store::{Account, Known, Leaving};

use super::{Orders, Report, Reports, date};

/// What takes the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    pub repositories: Vec<RepositoryReport>,
    #[serde(flatten)]
    pub cache: CacheReport,
}

/// What the cache takes of the disk, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheReport {
    /// What it may take, and what it takes;
    pub limit: u64,
    pub used: u64,
    /// of that, what is never evicted, what may be, what is on its way in, what was found damaged, and what has left and is still read.
    pub pinned: u64,
    pub evictable: u64,
    pub partial: u64,
    pub quarantined: u64,
    pub leaving: u64,
    pub blobs: usize,
    /// What eviction would take first.
    pub next_to_leave: Vec<LeavingReport>,
}

/// What a repository takes. Of two that share a blob, both are said to have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryReport {
    pub upstream: String,
    pub repository: String,
    pub images: usize,
    pub bytes: u64,
    /// Of these, what no other repository has.
    pub own: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeavingReport {
    pub digest: String,
    pub bytes: u64,
    pub used: String,
    /// The image, or for a layer a repository that has it.
    pub of: Option<String>,
    /// It is no layer.
    pub manifest: bool,
}

#[derive(Default)]
struct Sum {
    images: usize,
    bytes: u64,
    own: u64,
}

const LEAVING_SHOWN: usize = 10;

// === impl Orders ===

impl Orders {
    pub(super) async fn usage(&self, reports: &Reports) {
        let orders = self.clone();
        if let Ok(usage) = tokio::task::spawn_blocking(move || orders.usage_now()).await {
            reports.tell(Report::Usage(usage)).await;
        }
    }

    fn usage_now(&self) -> UsageReport {
        let mut held: HashMap<Digest, Vec<Repository>> = HashMap::new();
        self.store.each_known(|known| {
            if let Known::Proof(repository, digest, _) = known
                && self.store.size(&digest).is_some()
            {
                let by = held.entry(digest).or_default();
                // A digest may be there as a blob and as a manifest.
                if !by.contains(&repository) {
                    by.push(repository);
                }
            }
        });
        let mut sums: BTreeMap<&Repository, Sum> = BTreeMap::new();
        for (digest, by) in &held {
            let size = self.store.size(digest).unwrap_or_default();
            for repository in by {
                let sum = sums.entry(repository).or_default();
                sum.bytes += size;
                sum.own += if by.len() == 1 { size } else { 0 };
            }
        }
        let images = self.images();
        images.iter().for_each(|image| sums.entry(&image.repository).or_default().images += 1);
        let repositories = sums.into_iter().map(|(repository, Sum { images, bytes, own })| RepositoryReport {
            upstream: repository.upstream.to_string(),
            repository: repository.name.to_string(),
            images,
            bytes,
            own,
        });
        UsageReport { repositories: repositories.collect(), cache: self.cache(LEAVING_SHOWN) }
    }

    /// What the cache takes, with so many of those that would leave it first.
    #[must_use]
    pub fn cache(&self, leaving: usize) -> CacheReport {
        let Account { budget, used, pinned, evictable, partial, quarantined, leaving: left } = self.store.account();
        CacheReport {
            limit: budget,
            used,
            pinned,
            evictable,
            partial,
            quarantined,
            leaving: left,
            blobs: self.store.usage().map_or(0, |(_, blobs)| blobs),
            next_to_leave: self.store.next_to_leave(leaving).into_iter().map(|leaving| self.leaving(leaving)).collect(),
        }
    }

    fn leaving(&self, Leaving { digest, charge, used }: Leaving) -> LeavingReport {
        let image = |(repository, tags): (Repository, Vec<Tag>)| {
            tags.into_iter().min().map_or_else(|| repository.to_string(), |tag| repository.image(&Reference::Tag(tag)))
        };
        let as_manifest = self.store.named(&digest).into_iter().next().map(image);
        let manifest = as_manifest.is_some();
        let holder = || Some(self.store.held_by(&digest).into_iter().next()?.0.to_string());
        LeavingReport { of: as_manifest.or_else(holder), manifest, digest: digest.to_string(), bytes: charge, used: date(used) }
    }
}
