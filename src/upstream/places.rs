//! How much is asked of an upstream at one time, and by whom.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use crate::allowance::Allowance;
use crate::room::{Askers, Manner, Room, Seat, Standing};

use super::error::Error;

/// Room for so many requests and transfers; who comes when it is full waits in line, as long as the line is not too long: who waits
/// costs memory, and what it waits for may be whatever a client makes up. Some of it is never given to the bodies of blobs, which
/// last: what a pull begins with does not wait for them.
pub(super) struct Places {
    all: Room,
    bodies: Room,
    /// Bodies that come as slowly as one client reads: half of all bodies at most, so that who reads slowly, as often as he
    /// likes, leaves the others room. A client of an image that is pulled lazily has a few of them, for as long as its range
    /// takes. Nobody is ever seated here: each stands in line as long as it lasts, and where that is full, the client who has most
    /// in it makes room for who has fewer. `None`: there is one body at a time, however slow.
    asides: Option<Asides>,
    /// The right to go on with a list beyond its first page: all of it is in memory until it ends.
    pub(super) long_lists: Semaphore,
    patience: Duration,
    vain: Arc<Allowance>,
}

struct Asides {
    room: Room,
    /// For those who have as many of them as anyone, and wait until someone leaves his. Then each of them tries: who has become one with
    /// fewer has one given up for him.
    waiting: Room,
    left: Arc<Notify>,
}

/// Room for one, as long as it is held.
pub(super) struct Place {
    _all: Seat,
    _body: Option<Seat>,
    vain: Arc<Allowance>,
}

/// The right to one body apart from what all share, as long as it is held and no other client has a better one. `None`: it is the
/// only body that there is.
pub struct Aside(Option<(Standing, Left)>);

/// Who waits for such a right is told when it is gone.
struct Left(Arc<Notify>);

/// So long after each other: five hundred questions a second may be in vain.
const VAIN: Duration = Duration::from_millis(if cfg!(fuzzing) { 0 } else { 2 });
const LONG_LISTS: usize = 8;
/// How many may wait for each place: for so long a line nobody's patience lasts.
const LINE: usize = 18;

// === impl Places ===

impl Places {
    /// `most`: at least 1. `patience`: how long one waits in line.
    pub(super) fn new(most: usize, patience: Duration) -> Self {
        let bodies = (most - most.div_ceil(8)).max(1);
        let with_line = |seats: usize| Room::new(seats, seats.saturating_mul(LINE));
        Self {
            // Those who wait for the body of a blob have a line of their own, so that the rest does not find this one full of them.
            all: with_line(most),
            bodies: with_line(bodies),
            asides: (bodies > 1).then(|| Asides::new(bodies / 2)),
            long_lists: Semaphore::new(LONG_LISTS),
            patience,
            vain: Arc::default(),
        }
    }

    /// Waits for room. `held_back`: whether those who have it wait for larder itself, which lets no more come; then one waits for as
    /// long as it takes.
    ///
    /// Cancel safe, but who cancels has waited in vain.
    ///
    /// # Errors
    /// [`Error::Busy`] if there is none in time or too many wait already, [`Error::Left`] if no asker does any more.
    pub(super) async fn take(&self, askers: &Askers, for_body: bool, held_back: impl Fn() -> bool) -> Result<Place, Error> {
        if let Some(place) = self.take_spare(askers, for_body) {
            return Ok(place);
        }
        let place = async {
            let (body, all) = if for_body {
                // Of those who have this there are few enough.
                (Some(self.bodies.take(askers).await?), self.all.take_at_last(askers).await?)
            } else {
                (None, self.all.take(askers).await?)
            };
            Ok::<_, Error>(self.place(all, body))
        };
        tokio::pin!(place);
        loop {
            match timeout(self.patience, &mut place).await {
                Ok(place) => return place,
                Err(_) if held_back() => {}
                Err(_) => return Err(Error::Busy),
            }
        }
    }

    /// The right to one more body that comes as slowly as these read it.
    ///
    /// # Errors
    /// [`Error::Busy`] if too many have it, and none of them more than these, [`Error::Left`] if no asker is there any more.
    pub(super) fn take_aside(&self, askers: &Askers) -> Result<Aside, Error> {
        self.asides.as_ref().map_or(Ok(Aside(None)), |asides| asides.take(askers, Manner::InTurn))
    }

    /// Likewise, and waits for it: others read their bodies to the end.
    ///
    /// Cancel safe, but who cancels has waited in vain.
    ///
    /// # Errors
    /// As [`take_aside`](Self::take_aside), if it is not to be had in time or too many wait already.
    pub(super) async fn wait_aside(&self, askers: &Askers) -> Result<Aside, Error> {
        match (self.take_aside(askers), &self.asides) {
            (Err(Error::Busy), Some(asides)) => timeout(self.patience, asides.wait(askers)).await.unwrap_or(Err(Error::Busy)),
            (taken, _) => taken,
        }
    }

    /// The right to one beside another that they have, if nobody has to give up his for that.
    pub(super) fn take_spare_aside(&self, askers: &Askers) -> Option<Aside> {
        // It is soon over, whoever comes and goes meanwhile.
        let who = *askers.answerable().first()?;
        self.asides.as_ref()?.take(&Askers::One(who), Manner::IfSpare).ok()
    }

    /// Room for one more, if nobody has to wait for that.
    pub(super) fn take_spare(&self, askers: &Askers, for_body: bool) -> Option<Place> {
        let body = if for_body { Some(self.bodies.take_spare(askers)?) } else { None };
        Some(self.place(self.all.take_spare(askers)?, body))
    }

    fn place(&self, all: Seat, body: Option<Seat>) -> Place {
        Place { _all: all, _body: body, vain: Arc::clone(&self.vain) }
    }
}

// === impl Asides ===

impl Asides {
    fn new(most: usize) -> Self {
        Self { room: Room::new(0, most), waiting: Room::new(0, most.saturating_mul(LINE)), left: Arc::default() }
    }

    fn take(&self, askers: &Askers, manner: Manner) -> Result<Aside, Error> {
        let standing = self.room.stand(askers, manner)?;
        Ok(Aside(Some((standing, Left(Arc::clone(&self.left))))))
    }

    async fn wait(&self, askers: &Askers) -> Result<Aside, Error> {
        let mut in_line = self.waiting.stand(askers, Manner::InTurn)?;
        let mut left = pin!(self.left.notified());
        loop {
            left.as_mut().enable();
            match self.take(askers, Manner::InTurn) {
                Err(Error::Busy) => tokio::select! {
                    () = left.as_mut() => {}
                    why = in_line.ended() => return Err(why.into()),
                },
                taken => return taken,
            }
            left.set(self.left.notified());
        }
    }
}

// === impl Place ===

impl Place {
    /// Nothing was had of it: clients make up questions, and leave, faster than any upstream should have to answer. Such places are free
    /// again one after the other; who has asked need not wait for that.
    pub(super) fn rest(self) {
        let free = self.vain.overspend(VAIN, Duration::ZERO, Instant::now());
        // Where larder has stopped already, nobody waits for it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                sleep_until(free).await;
                drop(self);
            });
        }
    }
}

// === impl Aside ===

impl Aside {
    /// Waits until the right is another client's, or no asker is there any more. To be asked once.
    ///
    /// Cancel safe.
    pub async fn lost(&mut self) -> Error {
        match &mut self.0 {
            Some((standing, _)) => standing.ended().await.into(),
            None => pending().await,
        }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[tokio::test]
    async fn five_hundred_questions_a_second_are_in_vain_and_keep_nobody_else_waiting() {
        let client = |n| Askers::from(IpAddr::from(Ipv4Addr::from_bits(n)));
        let places = Places::new(64, Duration::from_secs(10));
        let (maker_up, other, begun) = (client(1), client(2), Instant::now());
        for asked in 1..=200 {
            places.take(&maker_up, true, || false).await.expect("its turn comes").rest();
            assert!(asked % 50 > 0 || places.take_spare(&other, true).is_some(), "{asked}");
        }
        assert!(begun.elapsed() >= VAIN * (200 - 50), "but for those that rest");
    }
}
