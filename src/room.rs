//! Room for so many at a time, shared fairly among clients: who has fewest of those who wait gets the next. Floor 0.

mod askers;
mod seats;

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use seats::Seats;

pub use askers::{Askers, Company, Presence, Who};
pub(crate) use seats::Manner;

/// Seats, and a line of those who wait for one. Of more than eight, one in eight is for who has none yet.
///
/// One client may have many addresses of IPv6, so that all who are in one network have no more than one who is not: the largest networks
/// are compared first, and then those in them.
#[derive(Clone)]
pub(crate) struct Room(Arc<Mutex<Seats>>);

pub(crate) struct Seat {
    room: Room,
    who: Who,
}

/// A place in line for something that needs no seat, as long as it is held and nobody has pushed it out.
pub(crate) struct Standing(Pin<Box<dyn Future<Output = NoSeat> + Send + Sync>>);

/// Why there is no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSeat {
    /// Too many wait, and none of them for more than who has come.
    Full,
    /// No asker waits any more.
    Left,
}

/// Waits as long as it is held.
struct InLine<'a> {
    room: &'a Room,
    number: u64,
}

// === impl Room ===

impl Room {
    /// `line`: how many may wait.
    pub(crate) fn new(seats: usize, line: usize) -> Self {
        Self(Arc::new(Mutex::new(Seats::new(seats, line))))
    }

    /// Waits for a seat. Who joins the askers meanwhile waits for it as well, with as good a right as if it were for him alone.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`NoSeat::Full`] if too many wait, [`NoSeat::Left`] if no asker does any more.
    pub(crate) async fn take(&self, askers: &Askers) -> Result<Seat, NoSeat> {
        self.wait(askers, Manner::InTurn).await
    }

    /// Likewise, also where no asker waits any more: what was asked for when one did is there for who comes next.
    pub(crate) async fn take_all_the_same(&self, askers: &Askers) -> Result<Seat, NoSeat> {
        match self.take(askers).await {
            Err(NoSeat::Left) => self.take(&askers.beginner()).await,
            taken => taken,
        }
    }

    /// Likewise, however many wait.
    pub(crate) async fn take_at_last(&self, askers: &Askers) -> Result<Seat, NoSeat> {
        self.wait(askers, Manner::AtLast).await
    }

    /// A place in the line of a room that has no seats.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) fn stand(&self, askers: &Askers, manner: Manner) -> Result<Standing, NoSeat> {
        let (room, askers) = (self.clone(), askers.clone());
        let mut standing = Box::pin(async move { room.wait(&askers, manner).await.err().unwrap_or(NoSeat::Left) });
        match (&mut standing).now_or_never() {
            Some(why) => Err(why),
            None => Ok(Standing(standing)),
        }
    }

    async fn wait(&self, askers: &Askers, manner: Manner) -> Result<Seat, NoSeat> {
        let mut askers = askers.watch();
        let (send, mut seat) = oneshot::channel();
        let mut noted = askers.now();
        if noted.is_empty() {
            return Err(NoSeat::Left);
        }
        let number = self.seats().queue(&noted, send, manner).ok_or(NoSeat::Full)?;
        let _in_line = InLine { room: self, number };
        self.serve();
        loop {
            tokio::select! {
                // Another has been let into the line in its stead.
                seat = &mut seat => return seat.map_err(|_| NoSeat::Full),
                () = askers.changed() => {
                    let now = askers.now();
                    if now.is_empty() {
                        return Err(NoSeat::Left);
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

    pub(crate) fn take_spare(&self, askers: &Askers) -> Option<Seat> {
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

// === impl Standing ===

impl Standing {
    /// Waits until it is pushed out, or no asker is left. To be asked once.
    ///
    /// Cancel safe.
    pub(crate) async fn ended(&mut self) -> NoSeat {
        (&mut self.0).await
    }
}

/// Those of the ones who are not among the others; both in their order.
fn beside(ones: &[Who], others: &[Who]) -> Vec<Who> {
    ones.iter().copied().filter(|who| others.binary_search(who).is_err()).collect()
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

    use super::*;

    fn guest(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    /// In one of the many networks that one client has.
    fn of_many(n: u16) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, 1, n, 0, 0, 0, 0).into()
    }

    type Taking = Pin<Box<dyn Future<Output = Result<Seat, NoSeat>>>>;

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

    fn state(room: &Room) -> (usize, usize, usize) {
        room.seats().state()
    }

    #[test]
    fn whoever_has_taken_what_he_can_there_is_a_seat_for_who_has_none() {
        let room = Room::new(56, 0);
        let greedy = taken(&room, guest(0), 1_000);
        assert_eq!(greedy.len(), 50);
        let latecomers: Vec<_> = (1..7).flat_map(|n| taken(&room, guest(n), 100)).collect();
        assert_eq!((latecomers.len(), state(&room)), (6, (0, 0, 3 * 7)), "one each");
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
            let next = waiting.iter_mut().enumerate().find_map(|(at, (_, seat))| Some((at, seat.now_or_never()?.ok()?)));
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
        assert!(other.now_or_never().is_some_and(|seat| seat.is_ok()));
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
        let seat = (&mut own[0]).now_or_never().and_then(Result::ok).expect("it came first");
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
        assert!(matches!((&mut shared).now_or_never(), Some(Err(NoSeat::Left))));
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
        assert!(matches!((&mut shared).now_or_never(), Some(Err(NoSeat::Full))), "now it is");
        let mut at_last = Box::pin(room.take_at_last(&other));
        assert!((&mut at_last).now_or_never().is_none(), "the line is full, and waits none the less");
        drop((own, newcomer, newcomers, first, at_last));
        assert_eq!(state(&room), (0, 0, 3));
    }

    #[test]
    fn where_all_stand_who_has_most_makes_room_and_for_what_can_be_spared_nobody_does() {
        let room = Room::new(0, 28);
        let stand = |n, manner| room.stand(&Askers::from(guest(n)), manner);
        let mut spare: Vec<_> = (0..100).map_while(|_| stand(0, Manner::IfSpare).ok()).collect();
        assert_eq!((spare.len(), stand(1, Manner::IfSpare).is_ok()), (25, true), "three are for who has none");
        let mut needed: Vec<_> = (0..28).map_while(|_| stand(0, Manner::InTurn).ok()).collect();
        let pushed_out = |standing: &mut [Standing]| {
            let ended = standing.iter_mut().filter_map(|standing| standing.ended().now_or_never());
            ended.inspect(|why| assert_eq!(*why, NoSeat::Full)).count()
        };
        assert_eq!((needed.len(), pushed_out(&mut spare)), (28, 25), "what he needs goes before what he can spare");
        assert!(stand(0, Manner::InTurn).is_err() && stand(1, Manner::IfSpare).is_err());
        let others: Vec<_> = (0..100).map_while(|_| stand(1, Manner::InTurn).ok()).collect();
        assert_eq!((others.len(), pushed_out(&mut needed[14..]), pushed_out(&mut needed[..14])), (14, 14, 0), "the last first");
        drop((spare, needed, others));
        assert_eq!(state(&room), (0, 0, 0));
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
