//! Bytes of an archive become blobs, each only if it is what its name promises.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;

use crate::oci::Digest;
use crate::store::{BlobWriter, Bypass, Finished, Holds};

use super::super::archive::{Archive, Entry, shown};
use super::super::hashing::Hashing;
use super::super::{Orders, Report, Reports};
use super::Read;

/// How often it is looked whether another has brought what it brings, and after how many times it is said that it is waited for.
const AGAIN: Duration = Duration::from_millis(20);
const SAID: u32 = 100;

/// With what files begin that are compressed, and how much of a beginning tells.
const BEGINNING: usize = 4;
const COMPRESSED: [&[u8]; 4] = [&[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd], &[0xfd, b'7', b'z'], b"BZh"];

/// Waiting for another who brings the same.
#[derive(Default)]
struct Waiting(u32);

// === impl Orders ===

impl Orders {
    /// Admits the bytes of a file as a blob, which is kept by and by. If it was here, and is right, they are verified all the same.
    pub(super) async fn take_blob(
        &self,
        archive: &mut Archive<'_>,
        entry: &Entry,
        digest: &Digest,
        read: &mut Read,
        holds: &Holds,
        reports: &Reports,
    ) -> Result<(), String> {
        let mut waiting = Waiting::default();
        holds.bring(digest);
        let writer = loop {
            // An archive is also how what is damaged is had again where nobody can be asked, or cannot be read.
            if let Some(size) = self.store.size(digest)
                && self.store.check(digest, None).await == Some(true)
            {
                holds.named(digest);
                if size != entry.size {
                    return Err(wrong(entry));
                }
                let mut hashing = Hashing::new(digest.algorithm());
                while let Some(bytes) = archive.data().await? {
                    hashing.update(bytes).await;
                }
                return if hashing.finish().await.as_ref() == Some(digest) { Ok(()) } else { Err(wrong(entry)) };
            }
            let writer = self.store.begin(digest.clone()).await;
            match writer.bypassed() {
                Some(Bypass::Busy) => waiting.wait(digest, reports).await,
                _ => break writer,
            }
        };
        let (mut writer, _) = filled(writer, archive, entry).await?;
        // What comes behind it is of no use then.
        if writer.digest_so_far().await != *digest {
            writer.discard().await;
            return Err(wrong(entry));
        }
        // Where it is not kept after all, nothing of the archive is.
        read.added.insert(digest.clone());
        read.commits.begin(writer, entry).await
    }

    /// Admits the bytes of a layer that has no digest for a name. It lies on the disk before it is known whether it was here.
    pub(super) async fn take_layer(
        &self,
        archive: &mut Archive<'_>,
        entry: &Entry,
        read: &mut Read,
        holds: &Holds,
        reports: &Reports,
    ) -> Result<Digest, String> {
        let mut waiting = Waiting::default();
        let writer = loop {
            let writer = self.store.begin_unnamed(&entry.path).await;
            match writer.bypassed() {
                Some(Bypass::Busy) => waiting.wait(&shown(&entry.path), reports).await,
                _ => break writer,
            }
        };
        let (mut writer, beginning) = filled(writer, archive, entry).await?;
        if COMPRESSED.iter().any(|compressed| beginning.starts_with(compressed)) {
            writer.discard().await;
            return Err(refused(entry, &"it is compressed, and so no layer that docker save wrote"));
        }
        let digest = writer.digest_so_far().await;
        holds.bring(&digest);
        loop {
            if self.store.check(&digest, None).await == Some(true) {
                writer.discard().await;
                // Unless this very archive has brought it, by another name.
                if !read.added.contains(&digest) {
                    holds.named(&digest);
                }
                return Ok(digest);
            }
            if writer.call(&digest) {
                break;
            }
            waiting.wait(&digest, reports).await;
        }
        match writer.finish().await {
            Finished::Kept => {
                read.added.insert(digest.clone());
                Ok(digest)
            }
            Finished::Mismatch => Err(refused(entry, &"its bytes are not those that have come")),
            Finished::Passed(why) => Err(refused(entry, &why)),
        }
    }

    /// Keeps what was made of an archive: a manifest or a config.
    pub(super) async fn put_made(
        &self,
        made: String,
        read: &mut Read,
        holds: &Holds,
        reports: &Reports,
    ) -> Result<Digest, String> {
        let (digest, made, mut waiting) = (Digest::sha256(made.as_bytes()), Bytes::from(made), Waiting::default());
        read.files.insert(digest.clone(), made.len() as u64);
        if read.added.contains(&digest) {
            return Ok(digest);
        }
        holds.bring(&digest);
        loop {
            if self.store.size(&digest).is_some() {
                holds.named(&digest);
                return Ok(digest);
            }
            match self.store.put(&digest, made.clone(), &[]).await {
                Finished::Kept => {
                    read.added.insert(digest.clone());
                    return Ok(digest);
                }
                Finished::Passed(Bypass::Busy) => waiting.wait(&digest, reports).await,
                Finished::Passed(why) => return Err(format!("a manifest is not kept: {why}")),
                Finished::Mismatch => return Err("a manifest is not kept".into()),
            }
        }
    }
}

/// A writer that has all of a file, and how that begins. What does not come whole is not kept.
async fn filled(mut writer: BlobWriter, archive: &mut Archive<'_>, entry: &Entry) -> Result<(BlobWriter, Vec<u8>), String> {
    writer.expect(entry.size).await;
    let mut beginning = Vec::new();
    loop {
        if let Some(why) = writer.bypassed() {
            return Err(refused(entry, &why.clone()));
        }
        tokio::select! {
            () = writer.progress(), if writer.is_busy() => {}
            read = archive.data(), if !writer.is_full() => match read {
                Ok(Some(bytes)) => {
                    beginning.extend(bytes.iter().take(BEGINNING - beginning.len()));
                    writer.push(bytes);
                }
                Ok(None) => return Ok((writer, beginning)),
                Err(why) => {
                    writer.discard().await;
                    return Err(why);
                }
            },
        }
    }
}

pub(super) fn wrong(entry: &Entry) -> String {
    refused(entry, &"its bytes are not those that its name promises")
}

pub(super) fn refused(entry: &Entry, why: &dyn Display) -> String {
    format!("{:?}: {why}", shown(&entry.path))
}

// === impl Waiting ===

impl Waiting {
    async fn wait(&mut self, what: &(dyn Display + Sync), reports: &Reports) {
        self.0 += 1;
        if self.0 == SAID {
            reports.tell(Report::Waiting { why: format!("{what} is being brought by another just now") }).await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
