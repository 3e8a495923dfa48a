//! What one reader fetches for itself, past the fill that all share.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::mirror::Origin;
use crate::mirror::fill::Tries;
use crate::oci::{Digest, Hasher};
use crate::store::{Cut, TAIL};
use crate::upstream::{self, Aside, Span, pause};

use super::Broken;
use super::paced::Paced;

/// A part of a blob from the upstream, taken up again where it breaks.
pub(super) struct Fetch {
    pub(super) at: u64,
    end: Option<u64>,
    /// The right to its first body, where it was had beforehand.
    aside: Option<Aside>,
    body: Option<Paced>,
    tries: Tries,
}

/// Fetches the rest of a blob for one reader and verifies it: the hash of what came before is continued over all that comes.
pub(super) struct Lagged {
    /// `None` once all is there and right.
    hasher: Option<Hasher>,
    /// What came before, until it has come again.
    known: Option<Known>,
    fetch: Fetch,
    /// More than this is wrong, and must not push out what waits for the digest.
    size: Option<u64>,
    /// Bytes before this have been sent already.
    send_from: u64,
    /// Not released before more has come or the digest is right.
    held: VecDeque<Bytes>,
    held_bytes: u64,
}

/// Bytes `from..to` of a blob that have come before, and must be the same when they come again.
pub(super) struct Known {
    from: u64,
    to: u64,
    /// What they hashed to.
    digest: Digest,
    /// The state of the hash of those that have come again.
    again: Hasher,
}

/// A range ahead is taken up again so often without progress; after that it can wait for its fill.
const AHEAD: u32 = 1;
/// The rest of a blob, for which there is nothing else to wait.
const BEHIND: u32 = 5;
/// For so long.
const LONGEST: Duration = Duration::from_hours(1);

// === impl Lagged ===

impl Lagged {
    /// Goes on behind `cut` with the bytes from `send_from` on.
    ///
    /// `size`: of the whole blob, if it is known.
    pub(super) fn from(cut: &Cut, size: Option<u64>, send_from: u64) -> Self {
        Self {
            hasher: Some(cut.hasher.clone()),
            known: None,
            size,
            fetch: Fetch::to_the_end(cut.from),
            send_from,
            held: VecDeque::new(),
            held_bytes: 0,
        }
    }

    /// Fetches all of it anew, as what has come cannot be read again.
    pub(super) fn from_zero(digest: &Digest, known: Option<Known>, size: Option<u64>, send_from: u64) -> Self {
        let begin = Cut { from: 0, hasher: Hasher::new(digest.algorithm()) };
        Self { known, ..Self::from(&begin, size, send_from) }
    }

    /// The next bytes, up to `end` or to the end of the blob.
    pub(super) async fn next(&mut self, origin: &Origin, digest: &Digest, end: Option<u64>) -> Option<Result<Bytes, Broken>> {
        loop {
            if end.is_some_and(|end| self.send_from >= end) {
                return None;
            }
            // The tail waits for the digest.
            if self.hasher.is_none() || self.held_bytes > TAIL {
                let Some(mut bytes) = self.held.pop_front() else { return end.map(|_| Err(Broken)) };
                if self.hasher.is_some() {
                    let free = usize::try_from(self.held_bytes - TAIL).unwrap_or(usize::MAX);
                    if free < bytes.len() {
                        self.held.push_front(bytes.split_off(free));
                    }
                }
                self.held_bytes -= bytes.len() as u64;
                bytes.truncate(end.map_or(usize::MAX, |end| usize::try_from(end - self.send_from).unwrap_or(usize::MAX)));
                self.send_from += bytes.len() as u64;
                return Some(Ok(bytes));
            }
            match self.fetch.next(origin, digest).await {
                Ok(Some(bytes)) => {
                    if self.size.is_some_and(|size| self.fetch.at > size) || !self.accept(bytes) {
                        tracing::error!(%digest, "the upstream sent other bytes than before");
                        return Some(Err(Broken));
                    }
                }
                Ok(None) => {
                    let right = self.hasher.take().is_some_and(|hasher| hasher.finish() == *digest);
                    if !right || self.known.is_some() {
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

    /// Hashes what has come and holds what is to be sent of it. False if it is not what came before.
    fn accept(&mut self, mut bytes: Bytes) -> bool {
        let Some(hasher) = &mut self.hasher else { return false };
        let before = self.fetch.at - bytes.len() as u64;
        hasher.update(&bytes);
        if self.known.as_mut().is_some_and(|known| !known.comes_again(before, &bytes)) {
            return false;
        }
        self.known.take_if(|known| known.to <= self.fetch.at);
        let sent = self.send_from + self.held_bytes;
        let new = bytes.split_off(usize::try_from(sent.saturating_sub(before)).unwrap_or(usize::MAX).min(bytes.len()));
        if !new.is_empty() {
            self.held_bytes += new.len() as u64;
            self.held.push_back(new);
        }
        true
    }
}

// === impl Known ===

impl Known {
    /// `hasher` is the state of their hash.
    pub(super) fn new(from: u64, to: u64, hasher: Hasher) -> Self {
        let digest = hasher.finish();
        Self { from, to, again: Hasher::new(digest.algorithm()), digest }
    }

    /// Looks at `bytes`, which have come for `at`; false if what is known has come and is not the same.
    fn comes_again(&mut self, at: u64, bytes: &[u8]) -> bool {
        let index = |place: u64| usize::try_from(place.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
        self.again.update(&bytes[index(self.from)..index(self.to)]);
        at + (bytes.len() as u64) < self.to || self.again.clone().finish() == self.digest
    }
}

// === impl Fetch ===

impl Fetch {
    pub(super) fn ahead(at: u64, end: u64, aside: Aside) -> Self {
        Self { at, end: Some(end), aside: Some(aside), body: None, tries: Tries::new(AHEAD, LONGEST, at) }
    }

    fn to_the_end(at: u64) -> Self {
        Self { at, end: None, aside: None, body: None, tries: Tries::new(BEHIND, LONGEST, at) }
    }

    /// The next bytes from the upstream; `None` at the end.
    pub(super) async fn next(&mut self, origin: &Origin, digest: &Digest) -> Result<Option<Bytes>, upstream::Error> {
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
                        return Ok(Some(bytes));
                    }
                    Ok(None) if self.end.is_none() => return Ok(None),
                    Ok(None) => upstream::Error::ended_early(),
                    Err(error) => error,
                },
            };
            self.body = None;
            let hopeless = error.is_final() || matches!(error, upstream::Error::Unsupported(_));
            if hopeless || !self.tries.broke(self.at, None) {
                return Err(error);
            }
            if self.tries.in_vain() > 0 {
                pause(self.tries.in_vain()).await;
            }
        }
    }

    async fn open(&mut self, origin: &Origin, digest: &Digest) -> Result<Paced, upstream::Error> {
        let aside = match (self.aside.take(), self.end) {
            (Some(aside), _) => aside,
            (None, Some(_)) => origin.upstream().spare_aside(&origin.behalf).ok_or(upstream::Error::Busy)?,
            (None, None) => origin.upstream().aside_in_turn(&origin.behalf).await?,
        };
        let span = Span { start: self.at, end: self.end };
        let mut answer = origin.ask().blob(digest, Some(span)).await?;
        // It ignores ranges. Who wants the rest can pass over what came before: should that differ, the digest will tell.
        if answer.offset == 0 && self.end.is_none() {
            answer.body.pass_over(self.at, |_| {}).await?;
            answer.offset = self.at;
        }
        if answer.offset == self.at { Ok(Paced::new(answer.body, aside)) } else { Err(upstream::Error::Unsupported(206)) }
    }
}
