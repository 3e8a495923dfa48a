//! `larder du`: what takes the disk, and what would leave it first.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Reference, Repository};
use crate::store::{Account, Known, Leaving};

use super::{Orders, Report, Reports, date};

/// What the cache takes of the disk, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    pub repositories: Vec<RepositoryReport>,
    /// What the cache may take, and what it takes;
    pub limit: u64,
    pub used: u64,
    /// of that, what is never evicted, what may be, what is on its way in, and what was found damaged.
    pub pinned: u64,
    pub evictable: u64,
    pub partial: u64,
    pub quarantined: u64,
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
        let mut names: HashMap<&Digest, String> = HashMap::new();
        for image in &images {
            sums.entry(&image.repository).or_default().images += 1;
            names.entry(&image.digest).or_insert_with(|| image.name());
        }
        let repositories = sums.into_iter().map(|(repository, Sum { images, bytes, own })| RepositoryReport {
            upstream: repository.upstream.to_string(),
            repository: repository.name.to_string(),
            images,
            bytes,
            own,
        });
        let leaving = |Leaving { digest, charge, used }: Leaving| {
            let by = held.get(&digest).and_then(|by| by.first()).map(|by| by.image(&Reference::Digest(digest.clone())));
            LeavingReport { of: names.get(&digest).cloned().or(by), digest: digest.to_string(), bytes: charge, used: date(used) }
        };
        let Account { budget, used, pinned, evictable, partial, quarantined } = self.store.account();
        UsageReport {
            repositories: repositories.collect(),
            limit: budget,
            used,
            pinned,
            evictable,
            partial,
            quarantined,
            next_to_leave: self.store.next_to_leave(LEAVING_SHOWN).into_iter().map(leaving).collect(),
        }
    }
}
