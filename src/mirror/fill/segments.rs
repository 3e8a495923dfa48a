//! One blob by several connections: where one brings it slowly, as registries and their CDNs limit each, others bring what comes
//! after, a segment each. The bytes are taken in their order, so that who reads at the front never waits for the end.

use std::collections::VecDeque;
use std::future::pending;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use crate::upstream::{Aside, Body, Error, Shortcut, Source, Span};

use super::brought::{Bringing, Brought, pipe};
use super::running::Fill;

/// The bytes of a blob from one place on.
pub(super) struct Segments {
    fill: Arc<Fill>,
    /// Where the next bytes are.
    at: u64,
    front: Front,
    /// What comes after, each behind the one before; the first of them behind the front.
    ahead: VecDeque<Segment>,
    /// How many connections there may be in all.
    most: usize,
    begun: Begun,
    sources: Sources,
    shortcut: Arc<Shortcut>,
}

enum Front {
    /// To the end of the blob; and what it has brought beyond the first segment.
    Body(Box<Body>, Option<Bytes>),
    Segment(Segment),
}

/// A part of the blob, on its way into memory.
struct Segment {
    span: Range<u64>,
    brought: Brought,
    /// Has the right to it as long as it is there, which bounds also what is in memory, of all fills of an upstream.
    _task: AbortOnDropHandle<()>,
}

struct Begun {
    when: Instant,
    at: u64,
}

/// Who has sent what there is.
type Sources = Arc<Mutex<Vec<Source>>>;

/// What one connection brings at once, and may have in memory.
const SEGMENT: u64 = 4 << 20;
/// With less missing, one connection is soon done.
const WORTH_IT: u64 = 32 << 20;
/// One that would bring the rest within this time is quick enough,
const SOON: Duration = Duration::from_secs(1);
/// as far as can be told after this one.
const GLANCE: Duration = Duration::from_millis(100);

// === impl Segments ===

impl Segments {
    /// `at`: where `body` goes on. `most`: how many connections there may be.
    pub(super) fn new(fill: &Arc<Fill>, body: Body, at: u64, most: usize) -> Self {
        Self {
            fill: Arc::clone(fill),
            at,
            sources: Arc::new(Mutex::new(vec![body.source()])),
            shortcut: Arc::default(),
            front: Front::Body(Box::new(body), None),
            ahead: VecDeque::new(),
            most,
            begun: Begun { when: Instant::now(), at },
        }
    }

    /// Who has sent bytes, or was about to.
    pub(super) fn into_sources(self) -> Vec<Source> {
        std::mem::take(&mut self.sources.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The next bytes; `None` at the end. `size`: of the blob, if it is known.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// Of the transfer at the front, which may be taken up again.
    pub(super) async fn chunk(&mut self, size: Option<u64>) -> Result<Option<Bytes>, Error> {
        if let Some(size) = size
            && self.is_worth_it(size)
        {
            self.look_ahead(size);
        }
        loop {
            let next = self.ahead.front_mut().filter(|next| next.span.start == self.at);
            match (&mut self.front, next) {
                // The body is let go when there is something in its place.
                (Front::Body(..), Some(next)) => match next.brought.next().await {
                    Ok(Some(bytes)) => {
                        self.at += bytes.len() as u64;
                        self.take_next();
                        return Ok(Some(bytes));
                    }
                    Err(_) | Ok(None) => self.go_on_alone(),
                },
                (Front::Body(body, beyond), None) => {
                    let bytes = match beyond.take() {
                        Some(bytes) => bytes,
                        None => match body.chunk().await? {
                            Some(bytes) => bytes,
                            None => return Ok(None),
                        },
                    };
                    let end = self.ahead.front().map_or(u64::MAX, |next| next.span.start);
                    let fits = bytes.len().min(usize::try_from(end - self.at).unwrap_or(usize::MAX));
                    *beyond = Some(bytes.slice(fits..)).filter(|rest| !rest.is_empty());
                    self.at += fits as u64;
                    return Ok(Some(bytes.slice(..fits)));
                }
                (Front::Segment(segment), next) if segment.span.end == self.at => {
                    if size == Some(self.at) {
                        return Ok(None);
                    }
                    // There was no place for another: one connection takes the transfer up again.
                    next.ok_or_else(Error::ended_early)?;
                    self.take_next();
                }
                (Front::Segment(segment), _) => {
                    let bytes = segment.brought.next().await?.ok_or_else(Error::ended_early)?;
                    self.at += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
            }
        }
    }

    /// Whether one connection alone would take long for what is missing. Once it would, it is not asked again.
    fn is_worth_it(&self, size: u64) -> bool {
        if self.most < 2 {
            return false;
        }
        if matches!(self.front, Front::Segment(_)) || !self.ahead.is_empty() {
            return true;
        }
        // Nor would several be quicker where larder takes as much as it may; and one of them has no more than others' fills.
        if self.fill.origin.upstream().is_held_back() {
            return false;
        }
        let (elapsed, come, missing) = (self.begun.when.elapsed(), self.at - self.begun.at, size.saturating_sub(self.at));
        // It would take `missing / (come / elapsed)`.
        let slow = u128::from(missing) * elapsed.as_nanos() > u128::from(come) * SOON.as_nanos();
        missing >= WORTH_IT && elapsed >= GLANCE && slow
    }

    /// Sees to it that as many segments are on their way as may be.
    fn look_ahead(&mut self, size: u64) {
        // Where larder takes as much as it may: what is needed so that the one goes on when the other ends.
        let most = if self.fill.origin.upstream().is_held_back() { self.most.min(2) } else { self.most };
        while self.ahead.len() + 1 < most {
            let start = match (self.ahead.back(), &self.front) {
                (Some(last), _) => last.span.end,
                (None, Front::Segment(front)) => front.span.end,
                // What a connection has in flight when it is let go is lost: that is little beside a segment.
                (None, Front::Body(..)) => self.at + SEGMENT,
            };
            if start >= size {
                return;
            }
            let Some(aside) = self.fill.origin.upstream().spare_aside(&self.fill.origin.behalf) else { return };
            self.ahead.push_back(self.segment(start..size.min(start + SEGMENT), aside));
        }
    }

    fn take_next(&mut self) {
        if let Some(next) = self.ahead.pop_front() {
            self.front = Front::Segment(next);
        }
    }

    /// What others bring is not to be had, or not in parts.
    fn go_on_alone(&mut self) {
        self.ahead.clear();
        self.most = 1;
    }

    fn segment(&self, span: Range<u64>, mut aside: Aside) -> Segment {
        let (bringing, brought) = pipe();
        let (fill, sources, shortcut) = (Arc::clone(&self.fill), Arc::clone(&self.sources), Arc::clone(&self.shortcut));
        let asked = Span { start: span.start, end: Some(span.end) };
        let task = tokio::spawn(async move {
            let all = async {
                match bring(&fill, asked, &shortcut, &sources, &bringing).await {
                    Ok(()) => bringing.end(),
                    Err(error) => bringing.fail(error),
                }
                // It is in memory until it is taken.
                pending::<()>().await;
            };
            tokio::select! {
                () = all => {}
                error = aside.lost() => bringing.lose(error),
            }
        });
        Segment { span, brought, _task: AbortOnDropHandle::new(task) }
    }
}

async fn bring(
    fill: &Fill,
    span: Span,
    shortcut: &Shortcut,
    sources: &Mutex<Vec<Source>>,
    bringing: &Bringing,
) -> Result<(), Error> {
    let length = span.end.unwrap_or(span.start) - span.start;
    let answer = fill.origin.ask().part_of_blob(&fill.digest, span, shortcut).await?;
    if answer.offset != span.start {
        return Err(Error::Unsupported(200));
    }
    let mut body = answer.body;
    sources.lock().unwrap_or_else(PoisonError::into_inner).push(body.source());
    let mut missing = usize::try_from(length).unwrap_or(usize::MAX);
    while missing > 0 {
        let mut bytes = body.chunk().await?.ok_or_else(Error::ended_early)?;
        bytes.truncate(missing);
        missing -= bytes.len();
        bringing.push(bytes);
    }
    Ok(())
}
