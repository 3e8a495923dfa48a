//! Blobs of an archive that have come whole and are being kept. Small ones several at once: to sync many of them takes a disk as long
//! as to sync one.

use tokio::task::JoinSet;

use crate::store::{BlobWriter, Finished};

use super::super::archive::Entry;
use super::blobs::{refused, wrong};

/// What becomes of them, as far as it is bad.
#[derive(Default)]
pub(super) struct Commits(JoinSet<Result<(), String>>);

/// As many as there are threads for the disk.
const AT_ONCE: usize = 16;
/// In bytes. What is larger takes the disk as long as it is.
const SMALL: u64 = 1 << 20;

// === impl Commits ===

impl Commits {
    /// Keeps a blob that is right; a small one once there is room for one more.
    ///
    /// # Errors
    /// What went wrong with it, or with one of those before.
    pub(super) async fn begin(&mut self, writer: BlobWriter, entry: &Entry) -> Result<(), String> {
        if entry.size > SMALL {
            return kept(writer, entry).await;
        }
        while self.0.len() >= AT_ONCE {
            self.next().await.unwrap_or(Ok(()))?;
        }
        let entry = entry.clone();
        self.0.spawn(async move { kept(writer, &entry).await });
        Ok(())
    }

    /// Waits for all that have begun, also where one has failed: nobody is to find a blob later of which nothing is to be left.
    pub(super) async fn end(&mut self) -> Result<(), String> {
        let mut all = Ok(());
        while let Some(one) = self.next().await {
            all = all.and(one);
        }
        all
    }

    async fn next(&mut self) -> Option<Result<(), String>> {
        let ended = self.0.join_next().await?;
        Some(ended.unwrap_or_else(|panic| Err(format!("a blob is not kept: {panic}"))))
    }
}

async fn kept(writer: BlobWriter, entry: &Entry) -> Result<(), String> {
    match writer.finish().await {
        Finished::Kept => Ok(()),
        Finished::Mismatch => Err(wrong(entry)),
        Finished::Passed(why) => Err(refused(entry, &why)),
    }
}
