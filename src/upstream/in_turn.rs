//! Whom to ask: one address after another, and two at once where the first lets one wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::{HeaderValue, Method, header};
use reqwest::Response;
use tokio::time::Instant;

use crate::oci::Digest;
use crate::room::Askers;

use super::budget::Purpose;
use super::client::read_limited;
use super::counts::Counts;
use super::endpoint::Endpoint;
use super::error::Error;
use super::pause::pause;
use super::places::Place;
use super::send::Question;
use super::{Behalf, Upstream};

/// A good answer, and where it came from.
pub(super) struct Answered {
    pub(super) response: Response,
    /// The body, where it was to be read.
    pub(super) bytes: Bytes,
    pub(super) endpoint: Arc<Endpoint>,
    /// To be held until the body has come.
    pub(super) place: Option<Place>,
}

/// What became of asking one address.
struct Outcome<'a> {
    /// The how-manieth was asked.
    turn: usize,
    endpoint: &'a Arc<Endpoint>,
    answer: Result<(Response, Bytes), Error>,
    /// It was asked beside another.
    hedge: Option<Hedge>,
}

/// A question that is asked beside another: the room that it takes, and how it is counted.
struct Hedge {
    counts: Counts,
    won: bool,
    _place: Place,
}

/// The place of a question that has no good answer yet. Where none comes, or nobody waits for one any more, it was in vain.
struct Unanswered<'a> {
    place: Option<Place>,
    /// How often it has gone out.
    sent: &'a AtomicU32,
}

/// A GET of a manifest is repeated so often where nobody could be asked: a client waits, and no registry counts what fails.
const AGAIN: u32 = 2;
/// And no more often than this, whatever for.
const MOST_GETS: u32 = 3;

// === impl Upstream ===

impl Upstream {
    /// Asks, once there is room for it.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) async fn send(&self, question: Question<'_>) -> Result<Answered, Error> {
        self.endpoints()?;
        let place = self.place(&question.behalf.askers, question.blob.is_some()).await?;
        self.send_from(place, question).await
    }

    /// Waits for room to ask.
    ///
    /// # Errors
    /// As [`Places::take`](super::places::Places::take).
    pub(super) async fn place(&self, askers: &Askers, for_body: bool) -> Result<Place, Error> {
        let place = self.places.take(askers, for_body, || self.is_held_back()).await;
        if matches!(place, Err(Error::Busy)) {
            self.counts.no_place();
        }
        place
    }

    /// Asks, in the room that an earlier question has left.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) async fn send_from(&self, place: Place, mut question: Question<'_>) -> Result<Answered, Error> {
        // Bodies must arrive as they are stored; a digest is over those bytes.
        question.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(hop) = &self.hop {
            question.headers.insert(header::VIA, hop.onward(question.behalf.via.as_ref()));
        }
        let unanswered = Unanswered { place: Some(place), sent: &question.sent };
        let mut tries = 0;
        loop {
            let error = match self.ask_in_turn(&question).await {
                Ok((response, bytes, endpoint)) => {
                    return Ok(Answered { response, bytes, endpoint, place: unanswered.answered() });
                }
                Err(error) => error,
            };
            let worth_it = matches!(error, Error::Unavailable { timed_out: false, .. })
                && (question.purpose, &question.method) == (Purpose::Pull, &Method::GET)
                && tries < AGAIN
                && question.sent.load(Ordering::Relaxed) < MOST_GETS;
            if !worth_it || self.is_left_alone(question.behalf) {
                return Err(error);
            }
            pause(tries).await;
            tries += 1;
        }
    }

    /// Asks each address in turn until one answers: the next one when one has failed, or lets wait. What another than the
    /// first says, that there is nothing or that we may not, is not believed: it may be behind the first.
    async fn ask_in_turn(&self, question: &Question<'_>) -> Result<(Response, Bytes, Arc<Endpoint>), Error> {
        let mut order: Vec<_> = self.usable(question.behalf).collect();
        order.sort_by_cached_key(|endpoint| endpoint.is_second_choice(question.blob));
        let mut waiting = order.iter().copied().enumerate();
        let mut asked = FuturesUnordered::new();
        let (mut failed, mut trouble): (Vec<usize>, Option<(usize, Error)>) = (Vec::new(), None);
        let mut hedge_at = Instant::now();
        loop {
            if asked.is_empty() {
                let Some((turn, endpoint)) = waiting.next() else {
                    return Err(trouble.map_or(Error::Offline, |(_, error)| error));
                };
                asked.push(self.ask_one(turn, endpoint, question, None));
                hedge_at = Instant::now() + self.hedge_after;
            }
            tokio::select! {
                Some(Outcome { turn, endpoint, answer, hedge }) = asked.next() => match answer {
                    Ok((response, bytes)) => {
                        hedge.into_iter().for_each(Hedge::win);
                        endpoint.answered();
                        // Who was asked before it and has not answered yet would hold up others as well.
                        let outrun = (0..turn).filter(|earlier| !failed.contains(earlier));
                        outrun.for_each(|earlier| order[earlier].was_outrun());
                        return Ok((response, bytes, Arc::clone(endpoint)));
                    }
                    Err(
                        error @ (Error::Unavailable { .. }
                        | Error::LeftAlone(_)
                        | Error::RefusedElsewhere(_)
                        | Error::RateLimited { .. }
                        | Error::Credentials(_)
                        | Error::UnlistedTokenHost(_)
                        | Error::NoSocket(_)),
                    ) => {
                        // What the first one says counts: the others are asked for its sake.
                        if trouble.as_ref().is_none_or(|(earlier, _)| turn < *earlier) {
                            trouble = Some((turn, error));
                        }
                        failed.push(turn);
                    }
                    Err(error) if self.is_first(endpoint) => return Err(error),
                    Err(_) => failed.push(turn),
                },
                () = tokio::time::sleep_until(hedge_at), if waiting.len() > 0 => {
                    if let Some(place) = self.places.take_spare(&question.behalf.askers, question.blob.is_some())
                        && let Some((turn, endpoint)) = waiting.next()
                    {
                        let hedge = Hedge { counts: self.counts.clone(), won: false, _place: place };
                        asked.push(self.ask_one(turn, endpoint, question, Some(hedge)));
                    }
                    hedge_at = Instant::now() + self.hedge_after;
                }
            }
        }
    }

    async fn ask_one<'a>(
        &self,
        turn: usize,
        endpoint: &'a Arc<Endpoint>,
        question: &Question<'_>,
        hedge: Option<Hedge>,
    ) -> Outcome<'a> {
        let answer = async {
            let mut response = self.send_to(endpoint, question).await?;
            let bytes = match question.whole {
                Some(limit) => {
                    let fetched = self.counts.fetched(Some(question.purpose));
                    read_limited(&mut response, limit, self.limits, &fetched).await?
                }
                None => Bytes::new(),
            };
            Ok((response, bytes))
        };
        Outcome { turn, endpoint, answer: answer.await, hedge }
    }

    /// Where this may be asked. What a place gives that may not know who asks says nothing of whether that client may have it.
    fn usable(&self, behalf: &Behalf) -> impl Iterator<Item = &Arc<Endpoint>> {
        let known = behalf.client.is_some();
        self.endpoints.iter().filter(move |endpoint| endpoint.trusted || !known)
    }

    /// Whether no address is asked at this moment, so that it is in vain to wait for one.
    pub(super) fn is_left_alone(&self, behalf: &Behalf) -> bool {
        self.usable(behalf).all(|endpoint| endpoint.client.check(&behalf.askers).is_err())
    }

    /// Whether an address may be asked for a blob that has not lately given wrong bytes of it.
    pub(super) fn has_another(&self, behalf: &Behalf, digest: &Digest) -> bool {
        self.usable(behalf).any(|endpoint| !endpoint.gave_wrong(digest))
    }

    fn is_first(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.endpoints.first().is_some_and(|first| Arc::ptr_eq(first, endpoint))
    }
}

// === impl Unanswered ===

impl Unanswered<'_> {
    fn answered(mut self) -> Option<Place> {
        self.place.take()
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if self.sent.load(Ordering::Relaxed) > 0 {
            self.place.take().into_iter().for_each(Place::rest);
        }
    }
}

// === impl Hedge ===

impl Hedge {
    fn win(mut self) {
        self.won = true;
    }
}

impl Drop for Hedge {
    fn drop(&mut self) {
        self.counts.hedged(self.won);
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::Places;
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn who_leaves_before_the_answer_gives_the_place_back_in_its_turn() {
        let places = Places::new(1, Duration::ZERO);
        for (sent, answered, free) in [(0, false, true), (1, true, true), (1, false, false)] {
            let sent = AtomicU32::new(sent);
            let unanswered = Unanswered { place: places.take_spare(&Askers::default(), false), sent: &sent };
            if answered {
                drop(unanswered.answered());
            } else {
                drop(unanswered);
            }
            // What rests has no time to end before something is waited for.
            assert_eq!(places.take_spare(&Askers::default(), false).is_some(), free, "{sent:?} {answered}");
        }
    }
}
