//! `larder missing`: the list for the next delivery.

use serde::{Deserialize, Serialize};

use crate::mirror::Lacking;

use super::{Orders, Report, Reports, date};

/// An image that was asked for while nobody could be asked, and is not here whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingReport {
    /// Its whole name.
    pub image: String,
    pub times: u64,
    pub last: String,
}

// === impl Orders ===

impl Orders {
    pub(super) async fn missing(&self, reports: &Reports) {
        for Lacking { repository, reference, times, last } in self.mirror.lacking() {
            // It may have been delivered since.
            let delivered = match self.digest_of(&repository, &reference) {
                Some(digest) => self.parts(&digest, None, None).await.is_ok_and(|parts| parts.is_whole()),
                None => false,
            };
            if delivered {
                self.mirror.forget_lacking(&repository, &reference);
                continue;
            }
            let missing = MissingReport { image: repository.image(&reference), times, last: date(last) };
            reports.tell(Report::Missing(missing)).await;
        }
    }
}
