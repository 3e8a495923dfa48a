//! How much is asked of an upstream at one time, and by whom.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::allowance::Allowance;

use super::error::Error;

/// Room for so many requests and transfers; who comes when it is full waits in line, as long as the line is not too long: who waits
/// costs memory, and what it waits for may be whatever a client makes up. Some of it is never given to the bodies of blobs, which
/// last: what a pull begins with does not wait for them.
pub(super) struct Places {
    all: Room,
    bodies: Room,
    /// Bodies that come as slowly as one client reads: half of all bodies at most, so that who reads slowly, as often as he
    /// likes, leaves the others room. A client of an image that is pulled lazily has a few of them, for as long as its range
    /// takes.
    asides: Room,
    /// Places in line, for bodies and for the rest, which is not to find the line full of those.
    lines: [Room; 2],
    /// The right to go on with a list beyond its first page: all of it is in memory until it ends.
    pub(super) long_lists: Semaphore,
    patience: Duration,
    vain: Arc<Allowance>,
}

/// Room for one, as long as it is held.
pub(super) struct Place {
    _all: Seat,
    _body: Option<Seat>,
    vain: Arc<Allowance>,
}

/// The right to one body apart from what all share, as long as it is held.
pub struct Aside {
    _right: Seat,
}

/// For whom a place is taken, by address; `None` is larder itself.
type Who = Option<IpAddr>;

/// Seats. Who has fewest of those who wait gets the next, and nobody so many that none is left for who has none yet.
#[derive(Clone)]
struct Room(Arc<Mutex<Seats>>);

struct Seats {
    free: usize,
    guests: HashMap<Who, Guest>,
    /// Of those who wait, who comes next has this number.
    next: u64,
}

/// Someone who has seats or waits for some.
#[derive(Default)]
struct Guest {
    has: usize,
    /// In the order in which they came.
    waiting: VecDeque<(u64, oneshot::Sender<Seat>)>,
}

struct Seat {
    room: Room,
    who: Who,
}

/// Waits as long as it is held.
struct Waiting<'a> {
    room: &'a Room,
    who: Who,
    number: u64,
}

/// Nobody has more than so many times what is free: of fifty-six, one has fifty at most.
const TIMES_FREE: usize = 8;
/// So long after each other: five hundred questions a second may be in vain.
const VAIN: Duration = Duration::from_millis(if cfg!(fuzzing) { 0 } else { 2 });
const LONG_LISTS: usize = 8;
/// How many may wait for each place, sixteen of them of one client: for so long a line nobody's patience lasts.
const LINE: usize = 18;

// === impl Places ===

impl Places {
    /// `most`: at least 1. `patience`: how long one waits in line.
    pub(super) fn new(most: usize, patience: Duration) -> Self {
        let bodies = (most - most.div_ceil(8)).max(1);
        let lines = [bodies, most].map(|places| Room::new(places.saturating_mul(LINE)));
        Self {
            all: Room::new(most),
            bodies: Room::new(bodies),
            asides: Room::new(bodies / 2),
            lines,
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
    /// [`Error::Busy`] if there is none in time, or too many wait already.
    pub(super) async fn take(&self, who: Who, for_body: bool, held_back: impl Fn() -> bool) -> Result<Place, Error> {
        if let Some(place) = self.take_spare(who, for_body) {
            return Ok(place);
        }
        let _in_line = self.lines[usize::from(!for_body)].take_spare(who).ok_or(Error::Busy)?;
        let place = async {
            let body = if for_body { Some(self.bodies.take(who).await?) } else { None };
            Some(Place { _all: self.all.take(who).await?, _body: body, vain: Arc::clone(&self.vain) })
        };
        tokio::pin!(place);
        loop {
            match timeout(self.patience, &mut place).await {
                Ok(place) => return place.ok_or(Error::Busy),
                Err(_) if held_back() => {}
                Err(_) => return Err(Error::Busy),
            }
        }
    }

    /// The right to one more body for one client alone, if not too many have it.
    pub(super) fn take_aside(&self, who: Who) -> Option<Aside> {
        Some(Aside { _right: self.asides.take_spare(who)? })
    }

    /// Room for one more, if nobody has to wait for that.
    pub(super) fn take_spare(&self, who: Who, for_body: bool) -> Option<Place> {
        let body = if for_body { Some(self.bodies.take_spare(who)?) } else { None };
        Some(Place { _all: self.all.take_spare(who)?, _body: body, vain: Arc::clone(&self.vain) })
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

// === impl Room ===

impl Room {
    fn new(seats: usize) -> Self {
        Self(Arc::new(Mutex::new(Seats { free: seats, guests: HashMap::new(), next: 0 })))
    }

    /// Waits for a seat.
    ///
    /// Cancel safe.
    async fn take(&self, who: Who) -> Option<Seat> {
        let (send, seat) = oneshot::channel();
        let number = self.seats().queue(who, send);
        let _waiting = Waiting { room: self, who, number };
        self.serve();
        seat.await.ok()
    }

    fn take_spare(&self, who: Who) -> Option<Seat> {
        self.seats().give(who).then(|| Seat { room: self.clone(), who })
    }

    /// Gives what is free to those who wait.
    fn serve(&self) {
        loop {
            let Some((who, send)) = self.seats().serve_one() else { return };
            // Who has just gone lets the seat fall, which is served anew: not under the lock.
            drop(send.send(Seat { room: self.clone(), who }));
        }
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Seats ===

impl Seats {
    fn queue(&mut self, who: Who, send: oneshot::Sender<Seat>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.guests.entry(who).or_default().waiting.push_back((number, send));
        number
    }

    /// Whether someone who has so many may have one more.
    fn may_have_one_more(&self, has: usize) -> bool {
        has < TIMES_FREE.saturating_mul(self.free)
    }

    /// A seat, if there is one for this guest.
    fn give(&mut self, who: Who) -> bool {
        let may = self.may_have_one_more(self.guests.get(&who).map_or(0, |guest| guest.has));
        if may {
            self.free -= 1;
            self.guests.entry(who).or_default().has += 1;
        }
        may
    }

    /// Takes a seat for the next of those who wait.
    fn serve_one(&mut self) -> Option<(Who, oneshot::Sender<Seat>)> {
        if self.free == 0 {
            return None;
        }
        let waiting = self.guests.iter().filter_map(|(who, guest)| Some((guest.has, guest.waiting.front()?.0, *who)));
        let (has, _, who) = waiting.min()?;
        if !self.may_have_one_more(has) {
            return None;
        }
        let guest = self.guests.get_mut(&who)?;
        let (_, send) = guest.waiting.pop_front()?;
        guest.has += 1;
        self.free -= 1;
        Some((who, send))
    }

    fn change(&mut self, who: Who, change: impl FnOnce(&mut Guest)) {
        let Some(guest) = self.guests.get_mut(&who) else { return };
        change(guest);
        if guest.has == 0 && guest.waiting.is_empty() {
            self.guests.remove(&who);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        {
            let mut seats = self.room.seats();
            seats.free += 1;
            seats.change(self.who, |guest| guest.has -= 1);
        }
        self.room.serve();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let number = self.number;
        self.room.seats().change(self.who, |guest| guest.waiting.retain(|(waiting, _)| *waiting != number));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt as _;

    use super::*;

    fn guest(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    /// How many of so many that this guest would have it gets at once.
    fn taken(room: &Room, who: Who, wanted: usize) -> Vec<Seat> {
        (0..wanted).map_while(|_| room.take(who).now_or_never().flatten()).collect()
    }

    /// How many are free, and how many guests there are.
    fn state(room: &Room) -> (usize, usize) {
        let seats = room.seats();
        (seats.free, seats.guests.len())
    }

    #[test]
    fn whoever_has_taken_what_he_can_there_is_a_seat_for_who_has_none() {
        let room = Room::new(56);
        let greedy = taken(&room, guest(0).into(), 1_000);
        assert_eq!(greedy.len(), 50);
        let latecomers: Vec<_> = (1..7).flat_map(|n| taken(&room, guest(n).into(), 1)).collect();
        assert_eq!((latecomers.len(), state(&room)), (6, (0, 7)));
        drop((greedy, latecomers));
        assert_eq!(state(&room), (56, 0));
        for few in 1..=8 {
            assert_eq!(taken(&Room::new(few), None, 100).len(), few, "of few, one may have all");
        }
    }

    #[test]
    fn the_next_seat_is_for_who_has_fewest_of_those_who_wait() {
        let room = Room::new(4);
        let mut seats = taken(&room, guest(1).into(), 4);
        let mut waiting: Vec<_> = [1, 1, 1, 2, 2, 3].map(|n| (n, Box::pin(room.take(guest(n).into())))).into();
        let mut served = Vec::new();
        for _ in 0..6 {
            assert!(waiting.iter_mut().all(|(_, seat)| seat.now_or_never().is_none()));
            seats.remove(0);
            let next = waiting.iter_mut().enumerate().find_map(|(at, (_, seat))| Some((at, seat.now_or_never()??)));
            let (at, seat) = next.expect("a seat that is left is given to someone");
            served.push(waiting.remove(at).0);
            seats.push(seat);
        }
        assert_eq!(served, [2, 3, 1, 1, 2, 1]);
    }

    #[tokio::test]
    async fn five_hundred_questions_a_second_are_in_vain_and_keep_nobody_else_waiting() {
        let places = Places::new(64, Duration::from_secs(10));
        let (maker_up, other, begun) = (Some(guest(1)), Some(guest(2)), Instant::now());
        for asked in 1..=200 {
            places.take(maker_up, true, || false).await.expect("its turn comes").rest();
            assert!(asked % 50 > 0 || places.take_spare(other, true).is_some(), "{asked}");
        }
        assert!(begun.elapsed() >= VAIN * (200 - 50), "but for those that rest");
    }

    #[test]
    fn who_waits_no_longer_is_forgotten() {
        let room = Room::new(1);
        let seat = taken(&room, None, 1);
        for n in 0..100 {
            assert!(room.take(guest(n).into()).now_or_never().is_none());
        }
        assert_eq!(state(&room), (0, 1));
        let mut gone = Box::pin(room.take(guest(1).into()));
        assert!((&mut gone).now_or_never().is_none());
        drop(seat);
        // The seat is on its way.
        drop(gone);
        assert_eq!(state(&room), (1, 0));
    }
}
