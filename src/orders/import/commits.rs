//! Blobs of an archive that have come whole and are being kept while the next ones come. Several at once: to sync many small ones
//! takes a disk as long as to sync one.

use tokio::task::JoinSet;

use crate::store::{BlobWriter, Finished};

use super::super::archive::Entry;
use super::blobs::{refused, wrong};

/// What becomes of them, as far as it is bad; and how many bytes are under way.
#[derive(Default)]
pub(super) struct Commits {
    all: JoinSet<(u64, Result<(), String>)>,
    bytes: u64,
}

/// As many as there are threads for the disk.
const AT_ONCE: usize = 16;
/// For more bytes than these nobody goes on: the disk is then what is waited for.
const MOST_BYTES: u64 = 512 << 20;

// === impl Commits ===

impl Commits {
    /// Keeps a blob that is right, once there is room for one more.
    ///
    /// # Errors
    /// What went wrong with one of those before.
    pub(super) async fn begin(&mut self, writer: BlobWriter, entry: &Entry) -> Result<(), String> {
        while self.all.len() >= AT_ONCE || (self.bytes > 0 && self.bytes.saturating_add(entry.size) > MOST_BYTES) {
            self.next().await.unwrap_or(Ok(()))?;
        }
        self.bytes += entry.size;
        let entry = entry.clone();
        self.all.spawn(async move { (entry.size, kept(writer, &entry).await) });
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
        match self.all.join_next().await? {
            Ok((bytes, kept)) => {
                self.bytes -= bytes;
                Some(kept)
            }
            Err(panic) => Some(Err(format!("a blob is not kept: {panic}"))),
        }
    }
}

async fn kept(writer: BlobWriter, entry: &Entry) -> Result<(), String> {
    match writer.finish().await {
        Finished::Kept => Ok(()),
        Finished::Mismatch => Err(wrong(entry)),
        Finished::Passed(why) => Err(refused(entry, &why)),
    }
}
