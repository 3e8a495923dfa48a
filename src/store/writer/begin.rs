//! How a blob's way in begins: in a file of its own, with what an earlier writer has left of it.

use std::io;
use std::sync::Arc;

use crate::oci::{Digest, Hasher};

use super::super::books::Claim;
use super::super::growing::Growing;
use super::super::room::Reservation;
use super::super::{Shared, Store, lock};
use super::jobs::Jobs;
use super::partial::PartialFile;
use super::{BlobWriter, Bypass, Target};

/// How much of a partial file is read again at a time.
const STRETCH: u64 = 32 << 20;

// === impl Store ===

impl Store {
    /// How many bytes an earlier writer has left of what `sender` sent of a blob, as the books have it: the file is not looked at.
    #[must_use]
    pub fn left_from(&self, sender: &str, digest: &Digest) -> u64 {
        lock(&self.0.books).left_of(&gathering(sender, digest))
    }

    /// Begins to bring a blob in, from its first byte, whatever must go for it.
    pub async fn begin(&self, digest: Digest) -> BlobWriter {
        let partial = digest.clone();
        BlobWriter::begin(Arc::clone(&self.0), digest, partial, 0, false).await
    }

    /// Likewise as `sender` sends it, who may send anything: nobody else waits for that, or goes on from what is left of it. `at`: where
    /// the sender goes on; what is left before that is read again, and may be less than [`left_from`](Self::left_from) has told. What has
    /// been used again goes for it only as it comes, and half of the cache does not.
    pub async fn begin_from(&self, sender: &str, digest: Digest, at: u64) -> BlobWriter {
        let partial = gathering(sender, &digest);
        BlobWriter::begin(Arc::clone(&self.0), digest, partial, at, true).await
    }

    /// Begins to bring a blob in whose digest is known when all of it is here: see [`BlobWriter::call`]. `name` says which of these
    /// it is, of which one is brought at a time.
    pub async fn begin_unnamed(&self, name: &str) -> BlobWriter {
        // The bytes gather under the digest of something else, which nobody asks for.
        self.begin(Digest::sha256(format!("a blob of larder's without a digest: {name}").as_bytes())).await
    }
}

/// Under what name the bytes gather that `sender` sends of a blob.
fn gathering(sender: &str, digest: &Digest) -> Digest {
    Digest::sha256(format!("what {sender} has sent of {digest}").as_bytes())
}

// === impl BlobWriter ===

impl BlobWriter {
    /// Begins, or goes on with the first `most` bytes of what an earlier writer left in this partial file: those are hashed again and can
    /// be followed at once. `sent`: an upstream sends it.
    async fn begin(store: Arc<Shared>, digest: Digest, partial: Digest, most: u64, sent: bool) -> Self {
        let (claim, reserved) = {
            let mut books = lock(&store.books);
            let claim = if books.is_counted() {
                books.claim(&store.books, &partial, &digest).ok_or(Bypass::Busy)
            } else {
                Err(Bypass::Starting)
            };
            let reserved = if claim.is_ok() { books.take_partial(&partial) } else { 0 };
            (claim, reserved)
        };
        let reservation = Reservation::of(&store.books, reserved);
        let opened = match claim {
            Ok(claim) => open(&store, &partial, reservation, claim).await,
            Err(why) => Err(why),
        };
        let (target, length) = match opened {
            Ok((partial, length)) => (Target::File(partial), length),
            Err(why) => (Target::Memory(why), 0),
        };
        let mut writer = Self {
            growing: Growing::new(),
            hasher: Hasher::new(digest.algorithm()),
            target,
            sent,
            accepted: 0,
            size: None,
            to_allocate: None,
            too_long: false,
            batch: Vec::new(),
            batch_bytes: 0,
            jobs: Jobs::new(&store, &Hasher::new(digest.algorithm())),
            store,
            digest,
            claim: None,
        };
        match &writer.target {
            Target::File(partial) => {
                let partial = Arc::clone(partial);
                writer.read_again(&partial, length, most).await;
                writer.growing.set_file(Arc::clone(partial.handle()));
                writer.growing.advance(writer.accepted, writer.hasher.clone());
            }
            Target::Memory(why) => writer.go_on_in_memory(why.clone()),
        }
        writer
    }

    /// Hashes what an earlier writer left, `most` bytes of it, a stretch at a time, as a disk that is slow does not hang. What is more
    /// or cannot be read is cut off; what cannot be cut off is forgotten with all that is before it.
    async fn read_again(&mut self, partial: &Arc<PartialFile>, length: u64, most: u64) {
        while self.accepted < length.min(most) {
            let (at, end) = (self.accepted, length.min(most).min(self.accepted + STRETCH));
            let (reading, mut hasher) = (Arc::clone(partial), self.hasher.clone());
            let read = self.store.writes.soon(move || {
                let to = reading.hash(&mut hasher, at, end)?;
                io::Result::Ok((hasher, to))
            });
            match read.await.map_err(io::Error::from).flatten() {
                Ok((hasher, to)) => (self.hasher, self.accepted) = (hasher, to),
                Err(error) => {
                    tracing::warn!(digest = %self.digest, %error, at, "a partial file can be read up to here");
                    break;
                }
            }
        }
        if self.accepted < length {
            let (cut, at) = (Arc::clone(partial), self.accepted);
            let cut = self.store.writes.soon(move || cut.truncate(at));
            if let Err(error) = cut.await.map_err(io::Error::from).flatten() {
                // Nobody has been told of these bytes, and the upstream need not go on with them.
                (self.accepted, self.hasher) = (0, Hasher::new(self.digest.algorithm()));
                let why = self.store.disk_failed("truncate", &error);
                self.bypass(why);
            }
        }
    }
}

/// Opens the file and tells how much there is of it.
async fn open(
    store: &Arc<Shared>,
    name: &Digest,
    reservation: Reservation,
    claim: Claim,
) -> Result<(Arc<PartialFile>, u64), Bypass> {
    let (shared, name) = (Arc::clone(store), name.clone());
    let opened = store.writes.soon(move || PartialFile::open(&shared, &name, reservation, claim));
    opened.await.map_err(io::Error::from).flatten().map_err(|error| store.disk_failed("open", &error))
}
