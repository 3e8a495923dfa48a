//! Room for so many at a time, shared fairly among clients: who has fewest of those who wait gets the next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::network::{SIZES, network};

use super::askers::{Askers, Who};

/// Seats, and a line of those who wait for one. Nobody has so many that none is left for who has none yet.
///
/// One client may have many addresses of IPv6, so that all who are in one network have no more than one who is not: the largest networks
/// are compared first, and then those in them.
#[derive(Clone)]
pub(super) struct Room(Arc<Mutex<Seats>>);

struct Seats {
    free: usize,
    /// How many may wait.
    line: usize,
    crowds: HashMap<Crowd, Count>,
    /// In the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
    /// Of what waits, what each wants.
    wanted_by: HashMap<Who, BTreeSet<u64>>,
    next: u64,
}

/// All who are in one network, of one of the [`SIZES`].
type Crowd = (Who, u8);

#[derive(Default)]
struct Count {
    /// Seats.
    has: usize,
    /// Places in line.
    waits: usize,
}

/// Something that waits for a seat, which is given to whichever of its askers has the best right to one.
struct Waiting {
    send: oneshot::Sender<Seat>,
    askers: BTreeSet<Who>,
    /// He whose place in line it has.
    by: Who,
}

pub(super) struct Seat {
    room: Room,
    who: Who,
}

/// Waits as long as it is held.
struct InLine<'a> {
    room: &'a Room,
    number: u64,
}

/// Nobody has more than so many times what is free: of fifty-six, one has fifty at most.
const TIMES_FREE: usize = 8;

// === impl Room ===

impl Room {
    /// `line`: how many may wait.
    pub(super) fn new(seats: usize, line: usize) -> Self {
        let (crowds, waiting, wanted_by) = (HashMap::new(), BTreeMap::new(), HashMap::new());
        Self(Arc::new(Mutex::new(Seats { free: seats, line, crowds, waiting, wanted_by, next: 0 })))
    }

    /// Waits for a seat. Who joins the askers meanwhile waits for it as well, with as good a right as if it were for him alone. `None`:
    /// too many wait, or no asker does any more.
    ///
    /// Cancel safe.
    pub(super) async fn take(&self, askers: &Askers) -> Option<Seat> {
        self.wait(askers, false).await
    }

    /// Likewise, however many wait.
    pub(super) async fn take_at_last(&self, askers: &Askers) -> Option<Seat> {
        self.wait(askers, true).await
    }

    async fn wait(&self, askers: &Askers, at_last: bool) -> Option<Seat> {
        let mut askers = askers.watch();
        let (send, mut seat) = oneshot::channel();
        let mut noted = askers.now();
        let number = self.seats().queue(&noted, send, at_last)?;
        let _in_line = InLine { room: self, number };
        self.serve();
        loop {
            tokio::select! {
                seat = &mut seat => return seat.ok(),
                () = askers.changed() => {
                    let now = askers.now();
                    if now.is_empty() {
                        return None;
                    }
                    // They may be thousands: what has changed is found out without the lock.
                    let (come, gone) = (beside(&now, &noted), beside(&noted, &now));
                    self.seats().change(number, &come, &gone);
                    if !come.is_empty() {
                        self.serve();
                    }
                    noted = now;
                }
            }
        }
    }

    pub(super) fn take_spare(&self, askers: &Askers) -> Option<Seat> {
        if self.seats().free == 0 {
            return None;
        }
        let who = self.seats().give(&askers.answerable())?;
        Some(Seat { room: self.clone(), who })
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
    /// A seat, if there is one for any of these.
    fn give(&mut self, askers: &[Who]) -> Option<Who> {
        let who = askers.iter().copied().min_by_key(|who| self.has(*who))?;
        self.seat(who)
    }

    /// Takes a seat for the next of those who wait.
    fn serve_one(&mut self) -> Option<(Who, oneshot::Sender<Seat>)> {
        if self.free == 0 {
            return None;
        }
        let waiting = self.wanted_by.iter().filter_map(|(who, wants)| Some((self.has(*who), *wants.first()?, *who)));
        let (_, number, who) = waiting.min()?;
        let who = self.seat(who)?;
        Some((who, self.leave(number)?.send))
    }

    fn seat(&mut self, who: Who) -> Option<Who> {
        let [has, ..] = self.has(who);
        if has >= TIMES_FREE.saturating_mul(self.free) {
            return None;
        }
        self.free -= 1;
        self.count(who, |count| count.has += 1);
        Some(who)
    }

    fn unseat(&mut self, who: Who) {
        self.free += 1;
        self.count(who, |count| count.has -= 1);
    }

    fn queue(&mut self, askers: &[Who], send: oneshot::Sender<Seat>, at_last: bool) -> Option<u64> {
        let by = askers.iter().copied().min_by_key(|who| self.waits(*who))?;
        if self.waiting.len() >= self.line && !at_last {
            let last = self.outdone_by(by)?;
            self.leave(last);
        }
        let number = self.next;
        self.next += 1;
        self.count(by, |count| count.waits += 1);
        self.waiting.insert(number, Waiting { send, askers: BTreeSet::new(), by });
        self.change(number, askers, &[]);
        Some(number)
    }

    /// Something is waited for by others from now on. Its place in line is that of who has fewest there, who may be among them.
    fn change(&mut self, number: u64, come: &[Who], gone: &[Who]) {
        // It may have been given a seat, or be told that there is none.
        let Some(waiting) = self.waiting.get_mut(&number) else { return };
        waiting.askers.extend(come);
        for who in come {
            self.wanted_by.entry(*who).or_default().insert(number);
        }
        for who in gone {
            waiting.askers.remove(who);
            forget(&mut self.wanted_by, *who, number);
        }
        let before = waiting.by;
        let rivals: Vec<Who> = if gone.contains(&before) { waiting.askers.iter().copied().collect() } else { come.to_vec() };
        self.count(before, |count| count.waits -= 1);
        let by = rivals.into_iter().min_by_key(|who| self.waits(*who));
        let by = by.filter(|by| gone.contains(&before) || self.waits(*by) < self.waits(before)).unwrap_or(before);
        self.count(by, |count| count.waits += 1);
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.by = by;
        }
    }

    fn leave(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        waiting.askers.iter().for_each(|who| forget(&mut self.wanted_by, *who, number));
        self.count(waiting.by, |count| count.waits -= 1);
        Some(waiting)
    }

    /// What leaves a full line for who has just come: the last of those who wait for most, if that is still as much as he has then.
    fn outdone_by(&self, newcomer: Who) -> Option<u64> {
        let smallest = self.crowds.iter().filter(|((_, size), count)| *size == SIZES[2] && count.waits > 0);
        let mut rivals: Vec<Who> = smallest.map(|((who, _), _)| *who).collect();
        for (n, size) in SIZES.into_iter().enumerate() {
            let most = rivals.iter().copied().max_by_key(|who| (self.waits(*who), *who))?;
            if self.waits(most)[n] > self.waits(newcomer)[n] + 1 {
                return self
                    .waiting
                    .iter()
                    .rev()
                    .find_map(|(number, waiting)| (crowd(waiting.by, SIZES[2]).0 == most).then_some(*number));
            }
            rivals.retain(|who| crowd(*who, size) == crowd(newcomer, size));
        }
        None
    }

    fn has(&self, who: Who) -> [usize; 3] {
        SIZES.map(|size| self.crowds.get(&crowd(who, size)).map_or(0, |count| count.has))
    }

    fn waits(&self, who: Who) -> [usize; 3] {
        SIZES.map(|size| self.crowds.get(&crowd(who, size)).map_or(0, |count| count.waits))
    }

    fn count(&mut self, who: Who, change: impl Fn(&mut Count)) {
        for crowd in SIZES.map(|size| crowd(who, size)) {
            let count = self.crowds.entry(crowd).or_default();
            change(count);
            if count.has == 0 && count.waits == 0 {
                self.crowds.remove(&crowd);
            }
        }
    }
}

fn crowd(who: Who, size: u8) -> Crowd {
    (who.map(|address| network(address, size)), size)
}

/// Those of the ones who are not among the others; both in their order.
fn beside(ones: &[Who], others: &[Who]) -> Vec<Who> {
    ones.iter().copied().filter(|who| others.binary_search(who).is_err()).collect()
}

fn forget(wanted_by: &mut HashMap<Who, BTreeSet<u64>>, who: Who, number: u64) {
    if let Some(wants) = wanted_by.get_mut(&who) {
        wants.remove(&number);
        if wants.is_empty() {
            wanted_by.remove(&who);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.seats().unseat(self.who);
        self.room.serve();
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.room.seats().leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::pin::Pin;

    use futures_util::FutureExt as _;

    use super::*;

    fn guest(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    /// In one of the many networks that one client has.
    fn of_many(n: u16) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, 1, n, 0, 0, 0, 0).into()
    }

    type Taking = Pin<Box<dyn Future<Output = Option<Seat>>>>;

    fn take(room: &Room, askers: impl Into<Askers>) -> Taking {
        let (room, askers) = (room.clone(), askers.into());
        Box::pin(async move { room.take(&askers).await })
    }

    /// How many of so many that this guest would have it gets at once.
    fn taken(room: &Room, who: impl Into<Who>, wanted: usize) -> Vec<Seat> {
        let who = Askers::One(who.into());
        (0..wanted).map_while(|_| room.take_spare(&who)).collect()
    }

    /// How many wait in line of so many that this guest lets wait.
    fn in_line(room: &Room, who: IpAddr, wanted: usize) -> Vec<Taking> {
        let waiting = (0..wanted).map(|_| take(room, who));
        waiting.filter_map(|mut seat| (&mut seat).now_or_never().is_none().then_some(seat)).collect()
    }

    fn still(waiting: &mut Vec<Taking>) -> usize {
        waiting.retain_mut(|seat| seat.now_or_never().is_none());
        waiting.len()
    }

    /// How many are free, how many wait, and of how many crowds anything is known.
    fn state(room: &Room) -> (usize, usize, usize) {
        let seats = room.seats();
        assert_eq!(seats.waiting.is_empty(), seats.wanted_by.is_empty());
        (seats.free, seats.waiting.len(), seats.crowds.len())
    }

    #[test]
    fn whoever_has_taken_what_he_can_there_is_a_seat_for_who_has_none() {
        let room = Room::new(56, 0);
        let greedy = taken(&room, guest(0), 1_000);
        assert_eq!(greedy.len(), 50);
        let latecomers: Vec<_> = (1..7).flat_map(|n| taken(&room, guest(n), 1)).collect();
        assert_eq!((latecomers.len(), state(&room)), (6, (0, 0, 3 * 7)));
        drop((greedy, latecomers));
        assert_eq!(state(&room), (56, 0, 0));
        let of_a_network: Vec<_> = (0..1_000).flat_map(|n| taken(&room, of_many(n), 1)).collect();
        assert_eq!(of_a_network.len(), 50);
        for few in 1..=8 {
            assert_eq!(taken(&Room::new(few, 0), Who::None, 100).len(), few, "of few, one may have all");
        }
    }

    #[test]
    fn the_next_seat_is_for_who_has_fewest_of_those_who_wait() {
        let room = Room::new(4, 100);
        let mut seats = taken(&room, guest(1), 4);
        let mut waiting: Vec<_> = [1, 1, 1, 2, 2, 3].map(|n| (n, take(&room, guest(n)))).into();
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

    #[test]
    fn who_has_many_networks_is_served_as_one_who_has_one() {
        let room = Room::new(2, 1_000);
        let seats = taken(&room, of_many(0), 2);
        let _crowd: Vec<_> = (1..500).flat_map(|n| in_line(&room, of_many(n), 1)).collect();
        let mut other = take(&room, guest(1));
        assert!((&mut other).now_or_never().is_none());
        drop(seats);
        assert!(other.now_or_never().is_some_and(|seat| seat.is_some()));
    }

    #[test]
    fn who_joins_waits_with_his_own_right_and_what_nobody_wants_any_more_leaves_the_line() {
        let room = Room::new(2, 1_000);
        let (greedy, other) = (Askers::from(guest(1)), Askers::from(guest(2)));
        let mut seats = taken(&room, guest(1), 2);
        let mut own: Vec<_> = in_line(&room, guest(1), 2);
        let company = greedy.company();
        let first = company.enter(&greedy);
        let mut shared = take(&room, Askers::Company(company.clone()));
        assert!((&mut shared).now_or_never().is_none());
        seats.pop();
        let seat = (&mut own[0]).now_or_never().flatten().expect("it came first");
        assert!((&mut shared).now_or_never().is_none());
        let joined = company.enter(&other);
        assert!((&mut shared).now_or_never().is_none());
        drop(seat);
        assert_eq!(((&mut own[1]).now_or_never().is_none(), (&mut shared).now_or_never().is_some()), (true, true));
        drop((joined, first));
        seats.extend(taken(&room, guest(1), 2));
        let company = greedy.company();
        let first = company.enter(&greedy);
        let mut shared = take(&room, Askers::Company(company.clone()));
        assert!((&mut shared).now_or_never().is_none());
        let joined = company.enter(&other);
        drop(first);
        assert!((&mut shared).now_or_never().is_none());
        drop(joined);
        assert!(matches!((&mut shared).now_or_never(), Some(None)));
    }

    #[test]
    fn in_a_full_line_who_waits_for_most_makes_room_for_who_comes() {
        let room = Room::new(1, 100);
        let _seat = taken(&room, guest(0), 1);
        let mut greedy = in_line(&room, guest(1), 1_000);
        assert_eq!(greedy.len(), 100, "alone, one may have all of it");
        let mut crowd: Vec<_> = (0..200).flat_map(|n| in_line(&room, of_many(n), 1)).collect();
        assert_eq!((still(&mut greedy), still(&mut crowd)), (50, 50), "a network has no more than one address");
        let mut others: Vec<_> = (2..12).flat_map(|n| in_line(&room, guest(n), 3)).collect();
        assert_eq!((others.len(), still(&mut others)), (30, 30));
        assert_eq!((still(&mut greedy), still(&mut crowd)), (35, 35));
        let neighbours = in_line(&room, of_many(201), 3);
        assert_eq!(
            (neighbours.len(), still(&mut crowd)),
            (0, 35),
            "of a network whose addresses wait once each nobody makes room"
        );
        drop((greedy, crowd, others, neighbours));
        assert_eq!(state(&room), (0, 0, 3));
    }

    #[test]
    fn what_is_shared_has_the_place_in_line_of_who_wants_least_besides() {
        let room = Room::new(1, 4);
        let _seat = taken(&room, guest(0), 1);
        let (greedy, other) = (Askers::from(guest(1)), Askers::from(guest(2)));
        let mut own = in_line(&room, guest(1), 3);
        let company = greedy.company();
        let first = company.enter(&greedy);
        let mut shared = take(&room, Askers::Company(company.clone()));
        assert!((&mut shared).now_or_never().is_none());
        let joined = company.enter(&other);
        assert!((&mut shared).now_or_never().is_none());
        let newcomer = in_line(&room, guest(3), 1);
        assert_eq!((newcomer.len(), still(&mut own)), (1, 2));
        assert!((&mut shared).now_or_never().is_none(), "it is not the greedy one's last");
        drop(joined);
        assert!((&mut shared).now_or_never().is_none());
        let mut newcomers = in_line(&room, guest(3), 1);
        assert_eq!((still(&mut newcomers), still(&mut own)), (1, 2));
        assert!((&mut shared).now_or_never().is_some_and(|seat| seat.is_none()), "now it is");
        let mut at_last = Box::pin(room.take_at_last(&other));
        assert!((&mut at_last).now_or_never().is_none(), "the line is full, and waits none the less");
        drop((own, newcomer, newcomers, first, at_last));
        assert_eq!(state(&room), (0, 0, 3));
    }

    #[test]
    fn who_waits_no_longer_is_forgotten() {
        let room = Room::new(1, 1_000);
        let seat = taken(&room, Who::None, 1);
        for n in 0..100 {
            assert!(take(&room, guest(n)).now_or_never().is_none());
        }
        assert_eq!(state(&room), (0, 0, 3));
        let mut gone = take(&room, guest(1));
        assert!((&mut gone).now_or_never().is_none());
        drop(seat);
        // The seat is on its way.
        drop(gone);
        assert_eq!(state(&room), (1, 0, 0));
    }
}
