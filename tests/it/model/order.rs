//! What goes when something must: never what was used later than something that stays.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use larder::clock::Timestamp;

use super::world::{SLACK, World};
use crate::support::{PutImage, TestMirror};

/// Uses of blobs as far as they can be told from outside, by the numbers of steps.
#[derive(Default)]
pub(super) struct Order {
    step: usize,
    uses: HashMap<String, Uses>,
    held: HashSet<String>,
}

#[derive(Clone, Copy)]
struct Uses {
    /// At the earliest.
    first: Timestamp,
    /// For sure.
    surely: Option<usize>,
    /// Perhaps.
    perhaps: usize,
    /// So long after the first that it may be protected.
    again: bool,
}

/// What is used again so much later is protected.
const AGAIN: Duration = Duration::from_mins(10);

// === impl Order ===

impl Order {
    /// These may be used now. If one of them is protected, all of them may be.
    pub(super) fn may_use<'a>(&mut self, mirror: Option<&TestMirror>, digests: impl IntoIterator<Item = &'a str>) {
        let now = mirror.expect("it runs").clock().now();
        let digests: Vec<&str> = digests.into_iter().collect();
        let mut again = false;
        for digest in &digests {
            // Of what is there and not known here, something may have happened before.
            let new = Uses { first: now, surely: None, perhaps: self.step, again: self.held.contains(*digest) };
            let uses = self.uses.entry((*digest).to_owned()).or_insert(new);
            uses.perhaps = self.step;
            uses.again |= now.since(uses.first) + SLACK >= AGAIN;
            again |= uses.again;
        }
        if again {
            for digest in digests {
                self.uses.entry(digest.to_owned()).and_modify(|uses| uses.again = true);
            }
        }
    }

    /// This one has been.
    pub(super) fn used(&mut self, digest: &str) {
        if let Some(uses) = self.uses.get_mut(digest) {
            uses.surely = Some(self.step);
        }
    }

    /// Ends a step. `evicts`: what has left the cache in it was evicted.
    pub(super) fn check(world: &mut World, evicts: bool) {
        let held: HashSet<String> =
            world.digests().filter(|digest| world.mirror().holds(digest)).map(ToOwned::to_owned).collect();
        // Who reads a blob keeps it; and what is damaged leaves for other reasons.
        let plain = world.is_quiet() && !world.disk_fails && world.damaged.is_empty();
        let hot = |digest: &str| {
            let names_it = |image: &&PutImage| image.blobs().any(|blob| blob.digest == digest);
            let is_hot = |image: &PutImage| world.order.uses.get(&image.digest).is_none_or(|uses| uses.again);
            world.images.iter().flatten().filter(names_it).any(is_hot)
        };
        let born_hot: Vec<String> = held.difference(&world.order.held).filter(|digest| hot(digest)).cloned().collect();
        let order = &mut world.order;
        for digest in born_hot {
            order.uses.entry(digest).and_modify(|uses| uses.again = true);
        }
        if evicts && plain {
            for gone in order.held.difference(&held) {
                let Some(used) = order.uses.get(gone).and_then(|uses| uses.surely) else { continue };
                for stays in order.held.intersection(&held) {
                    let older = order.uses.get(stays).filter(|uses| uses.perhaps < used && !uses.again);
                    assert!(older.is_none(), "{gone} had to go, which was used later than {stays}, which stays");
                }
            }
        }
        order.uses.retain(|digest, _| held.contains(digest));
        order.held = held;
        order.step += 1;
    }
}
