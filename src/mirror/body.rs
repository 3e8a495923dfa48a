//! The bytes of a blob on their way to a client: from the store, and from the upstream where the store cannot give them in
//! time.

use std::collections::VecDeque;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;

use crate::oci::{Digest, Hasher};
use crate::store::{BlobReader, Cut, Growth, ReadError, TAIL};
use crate::upstream::{self, Body, Span};

use super::Origin;
use super::fill::Interest;

/// The bytes of one range. It ends with an error where not all of them can be had, or some are wrong.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, Broken>> + Send>>;

/// The body ends short, so that no client takes it for whole. The reason is in the log.
#[derive(Debug, thiserror::Error)]
#[error("the blob cannot be completed")]
pub struct Broken;

/// From where the bytes come at the moment.
enum State {
    Store(BlobReader),
    /// Past a fill that has only its memory to stand on.
    Lagged(Lagged),
    /// Ahead of a fill.
    Ahead(Ahead),
}

struct Reading {
    state: State,
    end: u64,
    digest: Digest,
    /// Of the reader, who need not be the one for whom the fill was begun.
    origin: Origin,
    /// Held as long as the fill is read; it would stop for want of readers.
    interest: Option<Interest>,
}

/// Fetches the rest of a blob for one reader and verifies it: the fill's hash is continued over all that comes.
struct Lagged {
    /// `None` once all is there and right.
    hasher: Option<Hasher>,
    fetch: Fetch,
    /// Bytes before this have been sent already.
    send_from: u64,
    /// Not released before more has come or the digest is right.
    held: VecDeque<Bytes>,
    held_bytes: u64,
}

/// Fetches a range that the fill will not reach soon. Where it runs into the blob's tail, what was sent is compared with the
/// verified blob before the tail is let go.
struct Ahead {
    fetch: Fetch,
    start: u64,
    hasher: Hasher,
    growth: Growth,
    /// Reads what comes after. It is there from the beginning, as a fill does not go on for nobody.
    rest: BlobReader,
}

/// A part of a blob from the upstream, taken up again where it breaks.
struct Fetch {
    at: u64,
    end: Option<u64>,
    body: Option<Body>,
    tries: u8,
}

/// So far behind the place where a range begins, a fill is waited for; farther, the upstream is asked.
const NEAR: u64 = 16 << 20;
const TRIES: u8 = 3;

/// Streams `start..end` of a blob that is finished: no fill, no upstream.
pub(super) fn from_store(reader: BlobReader) -> ByteStream {
    Box::pin(stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await? {
            Ok(bytes) => Some((Ok(bytes), Some(reader))),
            Err(error) => {
                report(&error, reader.position());
                Some((Err(Broken), None))
            }
        }
    }))
}

/// Streams a blob of unknown size from its beginning to its end.
pub(super) fn whole(growth: &Growth, interest: Interest) -> ByteStream {
    let reader = growth.read(0, None);
    Box::pin(stream::unfold((Some(reader), interest), |(reader, interest)| async move {
        let mut reader = reader?;
        match reader.next().await? {
            Ok(bytes) => Some((Ok(bytes), (Some(reader), interest))),
            Err(error) => {
                report(&error, reader.position());
                Some((Err(Broken), (None, interest)))
            }
        }
    }))
}

/// Streams `start..end` of a growing blob of `size` bytes.
pub(super) fn growing(
    growth: &Growth,
    (start, end): (u64, u64),
    size: u64,
    digest: &Digest,
    origin: Origin,
    interest: Interest,
) -> ByteStream {
    let tail = size.saturating_sub(TAIL);
    let far = start > growth.front().saturating_add(NEAR) && start < tail;
    // To compare with the verified blob, it must be there to be read again.
    let comparable = end <= tail || !growth.is_in_memory();
    let state = if far && comparable {
        let until = end.min(tail);
        let (hasher, rest) = (Hasher::new(digest.algorithm()), growth.read(until, Some(end)));
        State::Ahead(Ahead { fetch: Fetch::new(start, Some(until)), start, hasher, growth: growth.clone(), rest })
    } else {
        State::Store(growth.read(start, Some(end)))
    };
    let reading = Reading { state, end, digest: digest.clone(), origin, interest: Some(interest) };
    Box::pin(stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        match reading.next().await? {
            Ok(bytes) => Some((Ok(bytes), Some(reading))),
            Err(Broken) => Some((Err(Broken), None)),
        }
    }))
}

fn report(error: &ReadError, at: u64) {
    match error {
        ReadError::Disk(error) => tracing::error!(%error, at, "a cached blob cannot be read; the answer ends short"),
        ReadError::Lagged(_) => tracing::warn!(at, "a reader fell behind; the answer ends short"),
        ReadError::Ended => tracing::debug!(at, "the fill has ended; the answer ends short"),
    }
}

// === impl Reading ===

impl Reading {
    async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        loop {
            match &mut self.state {
                State::Store(reader) => match reader.next().await? {
                    Ok(bytes) => return Some(Ok(bytes)),
                    Err(ReadError::Lagged(cut)) => {
                        let at = reader.position();
                        tracing::debug!(digest = %self.digest, at, "a reader fell behind; it is answered by the upstream");
                        self.state = State::Lagged(Lagged::new(&cut, at));
                        self.interest = None;
                    }
                    Err(error) => {
                        report(&error, reader.position());
                        return Some(Err(Broken));
                    }
                },
                State::Lagged(lagged) => return lagged.next(&self.origin, &self.digest, self.end).await,
                State::Ahead(ahead) => match ahead.fetch.next(&self.origin, &self.digest).await {
                    Ok(Some(bytes)) => {
                        ahead.hasher.update(&bytes);
                        return Some(Ok(bytes));
                    }
                    Ok(None) if ahead.fetch.at >= self.end => return None,
                    Ok(None) => match ahead.compare().await {
                        Ok(()) => {
                            let rest = ahead.growth.read(ahead.fetch.at, Some(self.end));
                            self.state = State::Store(std::mem::replace(&mut ahead.rest, rest));
                        }
                        Err(broken) => return Some(Err(broken)),
                    },
                    // Nothing is lost but time: the fill will come there.
                    Err(error) if ahead.fetch.at == ahead.start => {
                        tracing::debug!(digest = %self.digest, at = ahead.start, %error, "a range waits for its fill");
                        self.state = State::Store(ahead.growth.read(ahead.start, Some(self.end)));
                    }
                    Err(error) => {
                        tracing::warn!(digest = %self.digest, at = ahead.fetch.at, %error, "a range cannot be completed");
                        return Some(Err(Broken));
                    }
                },
            }
        }
    }
}

// === impl Lagged ===

impl Lagged {
    fn new(cut: &Cut, send_from: u64) -> Self {
        Self {
            hasher: Some(cut.hasher.clone()),
            fetch: Fetch::new(cut.from, None),
            send_from,
            held: VecDeque::new(),
            held_bytes: 0,
        }
    }

    async fn next(&mut self, origin: &Origin, digest: &Digest, end: u64) -> Option<Result<Bytes, Broken>> {
        loop {
            if self.send_from >= end {
                return None;
            }
            // The tail waits for the digest.
            if self.hasher.is_none() || self.held_bytes > TAIL {
                let Some(mut bytes) = self.held.pop_front() else { return Some(Err(Broken)) };
                if self.hasher.is_some() {
                    let free = usize::try_from(self.held_bytes - TAIL).unwrap_or(usize::MAX);
                    if free < bytes.len() {
                        self.held.push_front(bytes.split_off(free));
                    }
                }
                self.held_bytes -= bytes.len() as u64;
                bytes.truncate(usize::try_from(end - self.send_from).unwrap_or(usize::MAX));
                self.send_from += bytes.len() as u64;
                return Some(Ok(bytes));
            }
            match self.fetch.next(origin, digest).await {
                Ok(Some(mut bytes)) => {
                    self.hasher.iter_mut().for_each(|hasher| hasher.update(&bytes));
                    let before = self.fetch.at - bytes.len() as u64;
                    let sent = self.send_from + self.held_bytes;
                    let known = usize::try_from(sent.saturating_sub(before)).unwrap_or(usize::MAX).min(bytes.len());
                    let new = bytes.split_off(known);
                    if !new.is_empty() {
                        self.held_bytes += new.len() as u64;
                        self.held.push_back(new);
                    }
                }
                Ok(None) => {
                    if self.hasher.take().is_none_or(|hasher| hasher.finish() != *digest) {
                        tracing::error!(%digest, "the upstream sent other bytes than the digest promises");
                        return Some(Err(Broken));
                    }
                }
                Err(error) => {
                    tracing::warn!(%digest, at = self.fetch.at, %error, "the rest of a blob cannot be had");
                    return Some(Err(Broken));
                }
            }
        }
    }
}

// === impl Ahead ===

impl Ahead {
    /// Waits for the fill and makes sure that what was sent is what it has verified.
    async fn compare(&mut self) -> Result<(), Broken> {
        if !self.growth.verified().await {
            return Err(Broken);
        }
        let mut verified = Hasher::new(match &self.hasher {
            Hasher::Sha256(_) => crate::oci::Algorithm::Sha256,
            Hasher::Sha512(_) => crate::oci::Algorithm::Sha512,
        });
        let mut reader = self.growth.read(self.start, Some(self.fetch.at));
        while let Some(bytes) = reader.next().await {
            verified.update(&bytes.map_err(|error| {
                report(&error, self.start);
                Broken
            })?);
        }
        if verified.finish() == self.hasher.clone().finish() { Ok(()) } else { Err(Broken) }
    }
}

// === impl Fetch ===

impl Fetch {
    fn new(at: u64, end: Option<u64>) -> Self {
        Self { at, end, body: None, tries: 0 }
    }

    /// The next bytes from the upstream; `None` at the end.
    async fn next(&mut self, origin: &Origin, digest: &Digest) -> Result<Option<Bytes>, upstream::Error> {
        loop {
            if self.end.is_some_and(|end| self.at >= end) {
                return Ok(None);
            }
            let error = match &mut self.body {
                None => match self.open(origin, digest).await {
                    Ok(body) => {
                        self.body = Some(body);
                        continue;
                    }
                    Err(error) => error,
                },
                Some(body) => match body.chunk().await {
                    Ok(Some(mut bytes)) => {
                        bytes.truncate(self.end.map_or(usize::MAX, |end| usize::try_from(end - self.at).unwrap_or(usize::MAX)));
                        self.at += bytes.len() as u64;
                        self.tries = 0;
                        return Ok(Some(bytes));
                    }
                    Ok(None) if self.end.is_none() => return Ok(None),
                    Ok(None) => upstream::Error::ended_early(),
                    Err(error) => error,
                },
            };
            self.body = None;
            self.tries += 1;
            if self.tries > TRIES {
                return Err(error);
            }
        }
    }

    async fn open(&self, origin: &Origin, digest: &Digest) -> Result<Body, upstream::Error> {
        let span = Span { start: self.at, end: self.end };
        let answer = origin.ask().blob(digest, Some(span)).await?;
        if answer.offset == self.at {
            Ok(answer.body)
        } else {
            Err(upstream::Error::Unavailable { why: "it does not answer ranges".into(), timed_out: false })
        }
    }
}
