//! Who has how much of something that there is only so much of.

use std::hash::Hash;
use std::net::IpAddr;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use crate::network::{Crowd, SMALLEST, crowd, sizes};

/// How much of it each client has. What several answers share, by its key, counts once in all, and once for each client, however many
/// they are. A client is named by the first of its addresses; `None`: the operator. As one client may have many addresses of IPv6, the
/// networks that it may be in count as well.
pub(super) struct Holders<K> {
    each: HashMap<Crowd, u64>,
    /// How many answers share the same, and how many of each client.
    shared: HashMap<K, usize>,
    theirs: HashMap<(K, Crowd), usize>,
}

// === impl Holders ===

impl<K: Hash + Eq + Clone> Holders<K> {
    /// Whether a client has more than its share where so much is left. None is given more than is left: one that takes as much as it can
    /// leaves half of all to others, and the next such one half of that.
    pub(super) fn has_enough(&self, client: Option<IpAddr>, left: u64) -> bool {
        client.is_some() && crowds(client).any(|crowd| self.each.get(&crowd).is_some_and(|held| *held > left))
    }

    pub(super) fn add(&mut self, client: Option<IpAddr>, amount: u64) {
        crowds(client).for_each(|crowd| self.give(crowd, amount));
    }

    pub(super) fn remove(&mut self, client: Option<IpAddr>, amount: u64) {
        crowds(client).for_each(|crowd| self.take(crowd, amount));
    }

    /// One more answer has what this key is for. Returns whether none had it.
    pub(super) fn share(&mut self, key: &K, client: Option<IpAddr>, amount: u64) -> bool {
        for crowd in crowds(client) {
            if enters(&mut self.theirs, (key.clone(), crowd)) {
                self.give(crowd, amount);
            }
        }
        enters(&mut self.shared, key.clone())
    }

    /// One less. Returns whether none has it any more.
    pub(super) fn let_go(&mut self, key: &K, client: Option<IpAddr>, amount: u64) -> bool {
        for crowd in crowds(client) {
            if leaves(&mut self.theirs, (key.clone(), crowd)) {
                self.take(crowd, amount);
            }
        }
        leaves(&mut self.shared, key.clone())
    }

    /// Whether any answer has what this key is for.
    pub(super) fn is_shared(&self, key: &K) -> bool {
        self.shared.contains_key(key)
    }

    fn give(&mut self, crowd: Crowd, amount: u64) {
        *self.each.entry(crowd).or_default() += amount;
    }

    fn take(&mut self, crowd: Crowd, amount: u64) {
        if let Entry::Occupied(mut held) = self.each.entry(crowd) {
            *held.get_mut() -= amount;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }

    /// How many things are shared.
    pub(super) fn shared(&self) -> u64 {
        self.shared.len() as u64
    }
}

impl<K> Default for Holders<K> {
    fn default() -> Self {
        Self { each: HashMap::default(), shared: HashMap::default(), theirs: HashMap::default() }
    }
}

/// Those that a client is of.
fn crowds(client: Option<IpAddr>) -> impl Iterator<Item = Crowd> {
    client.map_or(&[SMALLEST][..], sizes).iter().map(move |size| crowd(client, *size))
}

/// One more; whether it is the first.
fn enters<K: Eq + Hash>(answers: &mut HashMap<K, usize>, key: K) -> bool {
    let answers = answers.entry(key).or_default();
    *answers += 1;
    *answers == 1
}

/// One less; whether it was the last.
fn leaves<K: Eq + Hash>(answers: &mut HashMap<K, usize>, key: K) -> bool {
    let Entry::Occupied(mut answers) = answers.entry(key) else { return false };
    *answers.get_mut() -= 1;
    let is_last = *answers.get() == 0;
    if is_last {
        answers.remove();
    }
    is_last
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn the_many_networks_of_one_client_have_together_what_one_has_and_what_they_share_once() {
        let of_many = |n: u16| Some(Ipv6Addr::new(0x2001, 0xdb8, 1, n, 0, 0, 0, 0).into());
        let [other, v4] = [Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0).into(), Ipv4Addr::LOCALHOST.into()].map(Some);
        let mut holders = Holders::default();
        (0..300).for_each(|n| holders.add(of_many(n), 1));
        assert!(holders.has_enough(of_many(400), 299) && !holders.has_enough(of_many(400), 300));
        assert!(!holders.has_enough(other, 0) && !holders.has_enough(v4, 0) && !holders.has_enough(None, 0));
        (0..300).for_each(|n| holders.remove(of_many(n), 1));
        assert_eq!((0..300).filter(|n| holders.share(&"file", of_many(*n), 1)).count(), 1);
        assert!(holders.share(&"another", v4, 1) && holders.is_shared(&"file"));
        assert!(!holders.has_enough(of_many(0), 1) && holders.has_enough(of_many(0), 0));
        assert_eq!((0..300).filter(|n| holders.let_go(&"file", of_many(*n), 1)).count(), 1);
        assert!(holders.let_go(&"another", v4, 1));
        assert!(holders.each.is_empty() && holders.theirs.is_empty() && holders.shared.is_empty());
    }
}
