//! How much is asked of an upstream at one time, and by whom.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

use crate::allowance::Allowance;

use super::askers::Askers;
use super::error::Error;
use super::room::{Room, Seat};

/// Room for so many requests and transfers; who comes when it is full waits in line, as long as the line is not too long: who waits
/// costs memory, and what it waits for may be whatever a client makes up. Some of it is never given to the bodies of blobs, which
/// last: what a pull begins with does not wait for them.
pub(super) struct Places {
    all: Room,
    bodies: Room,
    /// Bodies that come as slowly as one client reads: half of all bodies at most, so that who reads slowly, as often as he
    /// likes, leaves the others room. A client of an image that is pulled lazily has a few of them, for as long as its range
    /// takes. `None`: there is one body at a time, however slow.
    asides: Option<Room>,
    /// The right to go on with a list beyond its first page: all of it is in memory until it ends.
    pub(super) long_lists: Semaphore,
    patience: Duration,
    vain: Arc<Allowance>,
}

/// Room for one, as long as it is held.
pub(super) struct Place {
    all: Seat,
    _body: Option<Seat>,
    aside: Option<Aside>,
    asides: Option<Room>,
    vain: Arc<Allowance>,
}

/// The right to one body apart from what all share, as long as it is held.
pub struct Aside {
    _right: Seat,
}

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
            asides: (bodies > 1).then(|| Room::new(bodies / 2, 0)),
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
            Ok(self.place(all, body))
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

    /// The right to one more body for one client alone, if not too many have it.
    pub(super) fn take_aside(&self, askers: &Askers) -> Option<Aside> {
        Some(Aside { _right: self.asides.as_ref()?.take_spare(askers)? })
    }

    /// Room for one more, if nobody has to wait for that.
    pub(super) fn take_spare(&self, askers: &Askers, for_body: bool) -> Option<Place> {
        let body = if for_body { Some(self.bodies.take_spare(askers)?) } else { None };
        Some(self.place(self.all.take_spare(askers)?, body))
    }

    fn place(&self, all: Seat, body: Option<Seat>) -> Place {
        Place { all, _body: body, aside: None, asides: self.asides.clone(), vain: Arc::clone(&self.vain) }
    }
}

// === impl Place ===

impl Place {
    /// From now on what it is for goes at the pace of one who reads; false if enough does already.
    pub(super) fn go_aside(&mut self) -> bool {
        let Some(asides) = &self.asides else { return true };
        if self.aside.is_none() {
            self.aside = asides.take_spare(&self.all.taker()).map(|right| Aside { _right: right });
        }
        self.aside.is_some()
    }

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
