//! Who has which seats, who waits, and who is next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::iter;

use tokio::sync::oneshot;

use crate::network::{Crowd, SIZES, SMALLEST, crowd};

use super::{Seat, Who};

pub(super) struct Seats {
    pub(super) free: usize,
    /// So many of those that are free are for who has none yet.
    spared: usize,
    /// How many may wait.
    line: usize,
    crowds: HashMap<Crowd, Count>,
    /// In the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
    /// Of what waits, what each wants.
    wanted_by: HashMap<Who, BTreeSet<u64>>,
    next: u64,
}

/// How one comes into the line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Where it is not full, or who waits for most makes room.
    InTurn,
    /// Where nobody need make room. Of more than eight places, one in eight is for who has none yet.
    IfSpare,
    /// However long it is.
    AtLast,
}

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
    /// It came where nobody had to make room.
    spare: bool,
}

// === impl Seats ===

impl Seats {
    pub(super) fn new(seats: usize, line: usize) -> Self {
        let (crowds, waiting, wanted_by) = (HashMap::new(), BTreeMap::new(), HashMap::new());
        Self { free: seats, spared: spared_of(seats), line, crowds, waiting, wanted_by, next: 0 }
    }

    /// A seat, if there is one for any of these.
    pub(super) fn give(&mut self, askers: &[Who]) -> Option<Who> {
        let who = askers.iter().copied().min_by_key(|who| self.has(*who))?;
        self.seat(who)
    }

    /// Takes a seat for the next of those who wait.
    pub(super) fn serve_one(&mut self) -> Option<(Who, oneshot::Sender<Seat>)> {
        if self.free == 0 {
            return None;
        }
        let waiting = self.wanted_by.iter().filter_map(|(who, wants)| Some((self.has(*who), *wants.first()?, *who)));
        let (_, number, who) = waiting.min()?;
        let who = self.seat(who)?;
        Some((who, self.call(number)?.send))
    }

    fn seat(&mut self, who: Who) -> Option<Who> {
        if self.free <= spared_for(self.has(who), self.spared) {
            return None;
        }
        self.free -= 1;
        self.count(who, |count| count.has += 1);
        Some(who)
    }

    pub(super) fn unseat(&mut self, who: Who) {
        self.free += 1;
        self.count(who, |count| count.has -= 1);
    }

    pub(super) fn queue(&mut self, askers: &[Who], send: oneshot::Sender<Seat>, manner: Manner) -> Option<u64> {
        let by = askers.iter().copied().min_by_key(|who| self.waits(*who))?;
        let left = self.line.saturating_sub(self.waiting.len());
        match manner {
            // Before who has most is refused, he gives up what he can spare.
            Manner::InTurn if left == 0 => {
                let last = self.outdone_by(by).or_else(|| self.last_of(by).filter(|last| self.waiting[last].spare))?;
                self.leave(last);
            }
            Manner::IfSpare if left <= spared_for(self.waits(by), spared_of(self.line)) => return None,
            Manner::InTurn | Manner::IfSpare | Manner::AtLast => {}
        }
        let number = self.next;
        self.next += 1;
        self.count(by, |count| count.waits += 1);
        self.waiting.insert(number, Waiting { send, askers: BTreeSet::new(), by, spare: manner == Manner::IfSpare });
        self.change(number, askers, &[]);
        Some(number)
    }

    /// Something is waited for by others from now on. Its place in line is that of who has fewest there, who may be among them.
    pub(super) fn change(&mut self, number: u64, come: &[Who], gone: &[Who]) {
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
        let rivals: Vec<Who> = if gone.contains(&before) {
            waiting.askers.iter().copied().collect()
        } else {
            iter::once(&before).chain(come).copied().collect()
        };
        self.count(before, |count| count.waits -= 1);
        let by = rivals.into_iter().min_by_key(|who| self.waits(*who)).unwrap_or(before);
        self.count(by, |count| count.waits += 1);
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.by = by;
        }
    }

    /// Nothing waits under this number any more.
    pub(super) fn leave(&mut self, number: u64) {
        self.call(number);
    }

    fn call(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        waiting.askers.iter().for_each(|who| forget(&mut self.wanted_by, *who, number));
        self.count(waiting.by, |count| count.waits -= 1);
        Some(waiting)
    }

    /// How many are free, how many wait, and of how many crowds anything is known.
    #[cfg(test)]
    pub(super) fn state(&self) -> (usize, usize, usize) {
        assert_eq!(self.waiting.is_empty(), self.wanted_by.is_empty());
        (self.free, self.waiting.len(), self.crowds.len())
    }

    /// What leaves a full line for who has just come: the last of those who wait for most, if that is still as much as he has then.
    fn outdone_by(&self, newcomer: Who) -> Option<u64> {
        let smallest = self.crowds.iter().filter(|((_, size), count)| *size == SMALLEST && count.waits > 0);
        let mut rivals: Vec<Who> = smallest.map(|((who, _), _)| *who).collect();
        for (n, size) in SIZES.into_iter().enumerate() {
            let most = rivals.iter().copied().max_by_key(|who| (self.waits(*who), *who))?;
            if self.waits(most)[n] > self.waits(newcomer)[n] + 1 {
                return self.last_of(most);
            }
            rivals.retain(|who| crowd(*who, size) == crowd(newcomer, size));
        }
        None
    }

    /// The last of what waits for him and those who are the same to all others, and of that what he can spare.
    fn last_of(&self, who: Who) -> Option<u64> {
        let of_him = |waiting: &Waiting| crowd(waiting.by, SMALLEST) == crowd(who, SMALLEST);
        let his = || self.waiting.iter().rev().filter(|(_, waiting)| of_him(waiting));
        his().find(|(_, waiting)| waiting.spare).or_else(|| his().next()).map(|(number, _)| *number)
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

/// How many of so many are for who has none yet.
fn spared_of(all: usize) -> usize {
    all.saturating_sub(1) / 8
}

/// How many of these are not for who has so many, as his networks do.
fn spared_for([has, ..]: [usize; 3], spared: usize) -> usize {
    if has == 0 { 0 } else { spared }
}

fn forget(wanted_by: &mut HashMap<Who, BTreeSet<u64>>, who: Who, number: u64) {
    if let Some(wants) = wanted_by.get_mut(&who) {
        wants.remove(&number);
        if wants.is_empty() {
            wanted_by.remove(&who);
        }
    }
}
