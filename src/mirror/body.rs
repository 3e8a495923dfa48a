//! The bytes of a blob on their way to a client: from the store, and from the upstream where the store cannot give them, or
//! not in time.

mod fetch;
mod paced;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::{Stream, stream};

use crate::oci::{Algorithm, Digest, Hasher};
use crate::store::{BlobReader, Cut, Damage, Held, OpenFile, Piece, Pieces, ReadError, TAIL};
use crate::upstream;

use super::blob::{Blob, Detours, Source};
use super::fill::For;
use super::prefetch;
use super::{Mirror, Origin};
use fetch::{Fetch, Known, Lagged};

/// The bytes of one range. It ends with an error where not all of them can be had, or some are wrong.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Piece, Broken>> + Send>>;

/// The body ends short, so that no client takes it for whole. The reason is in the log.
#[derive(Debug, thiserror::Error)]
#[error("the blob cannot be completed")]
pub struct Broken;

/// One range of a blob, as one client reads it. What cannot be read here is fetched, on behalf of this client, who need not be
/// the one for whom the blob first came.
pub(super) struct Reading {
    mirror: Mirror,
    origin: Origin,
    digest: Digest,
    /// `None` once the rest comes from the upstream alone.
    source: Option<Source>,
    state: State,
    /// `None`: to the end of a blob whose size is not known.
    end: Option<u64>,
    /// What was sent although nobody had verified it; compared with what is verified in the end.
    sent: Option<Sent>,
    /// How often it has begun anew.
    begun_anew: u8,
    pieces: Pieces,
    /// Bytes of this copy of the blob have been sent, by this reading or another of the same answer.
    given: Arc<AtomicBool>,
    detours: Detours,
    _client: Option<prefetch::Client>,
    /// Of many ranges most are read when the fill has come farther than it was when they were asked for.
    begun: bool,
}

/// From where the bytes come at the moment.
///
/// ```text
/// state    what happens                     what follows
/// Store    the range ends                   the end, clean
///          the disk fails                   the blob is found anew: then compare, or Store or Ahead if nothing is to be compared
///          .. again and again, or where     Lagged, from zero
///             nothing is verified yet
///          a doubtful blob was damaged      the same as if the disk failed
///          another blob does not get whole  Store, of what is fetched in its place, if nothing was given; else the end, short
///          it falls behind the memory       Lagged, from where that was
/// Ahead    the range ends before the tail   the end, clean
///          it comes to the tail             compare
///          the upstream fails               Store if nothing was sent; else compare
/// Lagged   all is right, or is not          the end, clean or short
///
/// compare, when the blob is verified:
///          what was sent is the same        Store
///          it is not, or the fill failed    the end, short
///          the blob is not kept             Lagged, from zero
///          the disk fails                   the blob is found anew: then compare, or Lagged as above
/// ```
///
/// There is something to compare while `sent` is there; a `Lagged` takes it along. Where the blob cannot be found anew, the answer
/// ends short.
enum State {
    Store(BlobReader),
    /// From the upstream, for this reader alone.
    Lagged(Box<Lagged>),
    /// From the upstream ahead of a fill, up to the blob's tail, which is let go when what was sent turns out right.
    Ahead {
        fetch: Box<Fetch>,
        /// A fill does not go on for nobody.
        _rest: BlobReader,
    },
}

/// Bytes that have been sent, and what they hash to.
struct Sent {
    from: u64,
    hasher: Hasher,
}

/// So far behind the place where a range begins, a fill is waited for; farther, the upstream is asked.
const NEAR: u64 = 16 << 20;

/// So often a reader begins anew with what all share, when what it reads from fails. After that it fetches for itself.
const ANEW: u8 = 2;

// === impl Reading ===

impl Reading {
    /// Of `blob` from `at` to `end`.
    pub(super) fn new(blob: &Blob, at: u64, end: Option<u64>, pieces: &Pieces) -> Self {
        let Blob { mirror, digest, origin, source, given, detours, client, .. } = blob;
        Self {
            mirror: mirror.clone(),
            origin: origin.clone(),
            digest: digest.clone(),
            source: Some(source.clone()),
            state: State::Store(source.read(at, end, pieces)),
            end,
            sent: None,
            begun_anew: 0,
            pieces: pieces.clone(),
            given: Arc::clone(given),
            detours: detours.clone(),
            _client: client.clone(),
            begun: false,
        }
    }

    pub(super) fn stream(self) -> ByteStream {
        Box::pin(stream::unfold(Some(self), |reading| async move {
            let mut reading = reading?;
            match reading.next().await? {
                Ok(bytes) => {
                    reading.given.store(true, Ordering::Relaxed);
                    Some((Ok(bytes), Some(reading)))
                }
                Err(Broken) => Some((Err(Broken), None)),
            }
        }))
    }

    async fn next(&mut self) -> Option<Result<Piece, Broken>> {
        if let (false, State::Store(reader)) = (std::mem::replace(&mut self.begun, true), &self.state) {
            self.go_on_at(reader.position());
        }
        loop {
            let gone_on = match &mut self.state {
                // What is sent unverified is looked at on its way.
                State::Store(reader) if self.sent.is_some() => match reader.next().await? {
                    Ok(bytes) => return Some(Ok(self.send(bytes))),
                    Err(error) => self.reader_failed(error).await,
                },
                State::Store(reader) => match reader.next_piece().await? {
                    Ok(piece) => return Some(Ok(piece)),
                    Err(error) => self.reader_failed(error).await,
                },
                State::Lagged(lagged) => {
                    return lagged.next(&self.origin, &self.digest, self.end).await.map(|next| next.map(Piece::Bytes));
                }
                State::Ahead { fetch, .. } => match fetch.next(&self.origin, &self.digest).await {
                    Ok(Some(bytes)) => return Some(Ok(self.send(bytes))),
                    Ok(None) if self.end.is_some_and(|end| fetch.at >= end) => return None,
                    Ok(None) => {
                        let at = fetch.at;
                        self.compare(at).await
                    }
                    Err(error) => {
                        let at = fetch.at;
                        self.fetch_failed(at, &error).await
                    }
                },
            };
            if let Err(broken) = gone_on {
                return Some(Err(broken));
            }
        }
    }

    fn send(&mut self, bytes: Bytes) -> Piece {
        self.sent.iter_mut().for_each(|sent| sent.hasher.update(&bytes));
        Piece::Bytes(bytes)
    }

    /// Decides from where the bytes from `at` on come.
    fn go_on_at(&mut self, at: u64) {
        let Some(source) = &self.source else { return };
        if let (Source::Fill(growth, _), Some(end), Some(size)) = (source, self.end, source.known_size()) {
            let tail = size.saturating_sub(TAIL);
            let far = at > growth.front().saturating_add(NEAR) && at < tail;
            // To compare with the verified blob, it must be there to be read again.
            let comparable = end <= tail || !growth.is_in_memory();
            if far
                && comparable
                && let Some(aside) = self.origin.upstream().spare_aside(&self.origin.behalf)
                && self.detours.take()
            {
                let until = end.min(tail);
                self.sent = Some(Sent { from: at, hasher: Hasher::new(self.digest.algorithm()) });
                self.state = State::Ahead {
                    fetch: Box::new(Fetch::ahead(at, until, aside)),
                    _rest: source.read(until, Some(end), &self.pieces),
                };
                return;
            }
        }
        self.sent = match source {
            Source::Doubtful(growth) if !growth.is_verified() => {
                Some(Sent { from: at, hasher: Hasher::new(self.digest.algorithm()) })
            }
            _ => None,
        };
        self.state = State::Store(source.read(at, self.end, &self.pieces));
    }

    /// A range ahead of its fill cannot be fetched on. Nothing is lost but time: the fill will come there.
    async fn fetch_failed(&mut self, at: u64, error: &upstream::Error) -> Result<(), Broken> {
        let (Some(source), Some(sent)) = (&self.source, &self.sent) else { return Err(Broken) };
        tracing::info!(digest = %self.digest, at, %error, "a range waits for its fill");
        if sent.from == at {
            self.state = State::Store(source.read(at, self.end, &self.pieces));
            self.sent = None;
            return Ok(());
        }
        self.compare(at).await
    }

    async fn reader_failed(&mut self, error: ReadError) -> Result<(), Broken> {
        let State::Store(reader) = &self.state else { return Err(Broken) };
        let at = reader.position();
        match error {
            ReadError::Lagged(cut) => {
                tracing::debug!(digest = %self.digest, at, "a reader fell behind; it is answered by the upstream");
                self.state = State::Lagged(Box::new(Lagged::from(&cut, self.size(), at)));
                self.source = None;
                Ok(())
            }
            ReadError::Disk(error) => {
                let (file, lost) = (reader.file(), reader.has_lost_what_was_sent());
                self.begin_anew(at, file, &error).await?;
                if lost {
                    tracing::warn!(digest = %self.digest, at, "a file was cut while it was sent; the answer ends short");
                    return Err(Broken);
                }
                self.go_on_anew(at).await
            }
            // It was damaged. What was sent of it may have been right all the same.
            ReadError::Ended if matches!(self.source, Some(Source::Doubtful(_))) => {
                self.begin_anew(at, None, &io::ErrorKind::InvalidData.into()).await?;
                self.go_on_anew(at).await
            }
            ReadError::Ended => {
                // Who was given nothing yet may have what is fetched in its place.
                if !self.given.load(Ordering::Relaxed)
                    && let Some(source) = self.fetched_anew().await
                {
                    self.source = Some(source);
                    self.go_on_at(at);
                    return Ok(());
                }
                tracing::debug!(digest = %self.digest, at, "the blob does not get complete; the answer ends short");
                Err(Broken)
            }
        }
    }

    /// Of the whole blob, as far as it is known.
    fn size(&self) -> Option<u64> {
        self.source.as_ref().and_then(Source::known_size)
    }

    async fn go_on_anew(&mut self, at: u64) -> Result<(), Broken> {
        if self.source.is_some() {
            if self.sent.as_ref().is_some_and(|sent| sent.from < at) {
                return self.compare(at).await;
            }
            self.go_on_at(at);
        }
        Ok(())
    }

    /// The bytes were wrong that nobody here has been given: waits for those that are fetched in their place, or have come by
    /// now. `None`: there are none.
    async fn fetched_anew(&self) -> Option<Source> {
        let Some(Source::Fill(growth, interest)) = &self.source else { return None };
        let source = match interest.begun_anew(growth).await {
            Some(begun) => Source::Fill(begun.growth, interest.clone()),
            None => match self.mirror.0.store.get(&self.digest).await.ok()?? {
                Held::Verified(blob) => Source::Cache(blob),
                Held::Doubtful(growth) => Source::Doubtful(growth),
            },
        };
        (source.known_size() == growth.known_size()).then_some(source)
    }

    /// What the bytes were read from fails at `at`: takes the blob from elsewhere.
    async fn begin_anew(&mut self, at: u64, file: Option<OpenFile>, error: &io::Error) -> Result<(), Broken> {
        let digest = &self.digest;
        tracing::warn!(%digest, at, %error, "a blob cannot be read on; it goes on from the upstream");
        let damage = Damage::told_by(error);
        let (size, store) = (self.size(), &self.mirror.0.store);
        // While the cache is being counted nothing can be set aside.
        let unreadable = (file.is_some() && damage.is_none()) || store.usage().is_none();
        if let (Some(file), Some(damage)) = (file, damage) {
            store.quarantine(digest, file, damage).await;
        }
        self.begun_anew += 1;
        match self.source.take() {
            Some(Source::Fill(growth, _)) if !growth.is_verified() => {
                self.go_on_alone(at, size, growth.filed());
                return Ok(());
            }
            _ if self.begun_anew > ANEW => {
                self.go_on_alone(at, size, None);
                return Ok(());
            }
            // It is kept in a moment, unless the disk hangs.
            Some(Source::Fill(growth, interest)) => {
                if tokio::time::timeout(store.patience(), interest.landed()).await.is_err() {
                    self.go_on_alone(at, size, growth.filed());
                    return Ok(());
                }
            }
            Some(Source::Cache(_) | Source::Doubtful(_)) | None => {}
        }
        match self.mirror.find_blob(&self.origin, digest, For::Answer, unreadable).await {
            // An answer that has promised one size cannot go on with a blob of another.
            Ok(blob) if size.is_some() && blob.size().await != size => {
                tracing::error!(%digest, at, ?size, "a blob was of another size than it had here; the answer ends short");
                Err(Broken)
            }
            Ok(blob) => {
                self.source = Some(blob.into_source());
                Ok(())
            }
            Err(refusal) => {
                tracing::warn!(%digest, at, %refusal, "the rest of a blob cannot be had; the answer ends short");
                Err(Broken)
            }
        }
    }

    /// Fetches all of the blob for this reader alone: what was sent must come again, or what all could read, which is no less.
    fn go_on_alone(&mut self, at: u64, size: Option<u64>, filed: Option<Cut>) {
        let sent = self.sent.take().filter(|sent| sent.from < at).map(|Sent { from, hasher }| Known::new(from, at, hasher));
        let known = sent.or_else(|| filed.map(|cut| Known::new(0, cut.from, cut.hasher)));
        self.state = State::Lagged(Box::new(Lagged::from_zero(&self.digest, known, size, at)));
        self.source = None;
    }

    /// Makes sure that what has been sent up to `at` is what the blob has there, once that is verified; then goes on with it.
    async fn compare(&mut self, at: u64) -> Result<(), Broken> {
        let Some(Sent { from, hasher }) = self.sent.take() else { return Err(Broken) };
        let sent = hasher.clone().finish();
        loop {
            let source = self.source.as_ref().ok_or(Broken)?;
            // What is not kept cannot be read again, and its end does not come before someone reads.
            if let Source::Fill(growth, _) = source
                && !growth.settled().await
            {
                // What was fetched ahead of a fill shares its failure.
                if from > 0 && growth.has_failed() {
                    tracing::debug!(digest = %self.digest, at, "the blob does not get complete; the answer ends short");
                    return Err(Broken);
                }
                tracing::info!(digest = %self.digest, from, at, "a blob is not kept; what was sent of it is compared with what comes again");
                let size = self.size();
                self.sent = Some(Sent { from, hasher });
                self.go_on_alone(at, size, None);
                return Ok(());
            }
            if !source.verified().await {
                return Err(Broken);
            }
            let mut reader = source.read(from, Some(at), &Pieces::default());
            match hash(&mut reader, self.digest.algorithm()).await {
                Ok(verified) if verified == sent => {
                    self.state = State::Store(source.read(at, self.end, &self.pieces));
                    return Ok(());
                }
                Ok(_) => {
                    tracing::error!(digest = %self.digest, "wrong bytes of a blob were sent; the answer ends short");
                    return Err(Broken);
                }
                Err(ReadError::Disk(error)) => {
                    self.sent = Some(Sent { from, hasher: hasher.clone() });
                    self.begin_anew(at, reader.file(), &error).await?;
                    if self.source.is_none() {
                        return Ok(());
                    }
                    self.sent = None;
                }
                Err(ReadError::Lagged(_) | ReadError::Ended) => return Err(Broken),
            }
        }
    }
}

async fn hash(reader: &mut BlobReader, algorithm: Algorithm) -> Result<Digest, ReadError> {
    let mut hasher = Hasher::new(algorithm);
    while let Some(bytes) = reader.next().await {
        hasher.update(&bytes?);
    }
    Ok(hasher.finish())
}
