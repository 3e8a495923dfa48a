//! What may happen, and how such histories are drawn at random.

use std::time::Duration;

use larder::store::faults::Loss;
use proptest::prelude::*;

use super::world;

#[derive(Clone, Debug)]
pub(super) struct History {
    /// The cache is smaller than all blobs together.
    pub(super) tight: bool,
    pub(super) ops: Vec<Op>,
}

/// Repositories, blobs and versions of images are meant by their numbers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    /// So many clients at once want a blob; with `leaves`, the first of them leaves after so many bytes.
    Get {
        repository: usize,
        blob: usize,
        clients: usize,
        leaves: Option<usize>,
    },
    /// Per thousand of the blob's size.
    Range {
        repository: usize,
        blob: usize,
        start: usize,
        end: usize,
    },
    HeadBlob {
        repository: usize,
        blob: usize,
    },
    Manifest {
        repository: usize,
        version: usize,
    },
    Tag {
        repository: usize,
        head: bool,
    },
    /// A client stops reading after some bytes; it goes on later, or leaves.
    Stall {
        repository: usize,
        blob: usize,
        after: usize,
    },
    Resume,
    Abort,
    MoveTag {
        repository: usize,
        version: Option<usize>,
    },
    Upstream(Trouble),
    Heal,
    /// One operation of the disk goes wrong: the n-th from now on.
    Disk {
        n: usize,
        how: DiskFault,
    },
    /// The disk answers again.
    Mend,
    Restart {
        stop: Stop,
        /// It then asks nobody, until it is restarted.
        offline: bool,
        jump: Option<Jump>,
    },
    /// A file of the stopped larder is damaged, which is then started again.
    Damage {
        blob: usize,
        how: Damage,
    },
    /// One bit of a blob's file turns over, at so much per thousand of its length.
    Flip {
        blob: usize,
        at: usize,
        found_by: FoundBy,
    },
    Tick {
        seconds: u64,
    },
    Upkeep,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Trouble {
    /// One or two transfers of blobs break off here or fall silent; clients must not notice.
    Glitch {
        after: usize,
        how: Glitch,
        times: usize,
    },
    /// One transfer has a wrong byte here.
    Corrupt {
        at: usize,
    },
    /// Until it is healed:
    Down,
    Unavailable,
    TooManyRequests,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Glitch {
    Cut,
    Reset,
    Stall,
    NoLength,
    IgnoreRange,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum DiskFault {
    NoSpace,
    Io,
    ReadOnly,
    Short,
    /// It does not come back until the disk answers again.
    Hang,
    DieBefore,
    DieAfter,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stop {
    Clean,
    Kill,
    Power(Loss),
}

/// Of the machine's clock, while no larder runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Jump {
    Back(Duration),
    Ahead(Duration),
}

/// Who notices a flipped bit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum FoundBy {
    /// The first reader after a stop that was not clean.
    Reader,
    /// The round in idle time, two weeks later.
    Scrub,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Damage {
    Gone,
    Short,
    Empty,
    Long,
}

fn op() -> impl Strategy<Value = Op> {
    let repository = || 0..world::REPOSITORIES.len();
    let blob = || 0..world::BLOBS;
    let version = || 0..world::VERSIONS;
    let size = || prop_oneof![Just(0_usize), 1..2_000_usize, 10_000..200_000_usize, 200_000..2_000_000_usize];
    let get = (repository(), blob(), 1..4_usize, proptest::option::weighted(0.2, size()));
    let range = (repository(), blob(), 0..1000_usize, 1..1001_usize);
    prop_oneof![
        10 => get.prop_map(|(repository, blob, clients, leaves)| Op::Get { repository, blob, clients, leaves }),
        4 => range.prop_map(|(repository, blob, start, len)| Op::Range { repository, blob, start, end: (start + len).min(1000) }),
        2 => (repository(), blob()).prop_map(|(repository, blob)| Op::HeadBlob { repository, blob }),
        3 => (repository(), version()).prop_map(|(repository, version)| Op::Manifest { repository, version }),
        4 => (repository(), any::<bool>()).prop_map(|(repository, head)| Op::Tag { repository, head }),
        2 => (repository(), blob(), size()).prop_map(|(repository, blob, after)| Op::Stall { repository, blob, after }),
        1 => Just(Op::Resume),
        1 => Just(Op::Abort),
        2 => (repository(), proptest::option::weighted(0.8, version()))
            .prop_map(|(repository, version)| Op::MoveTag { repository, version }),
        4 => trouble().prop_map(Op::Upstream),
        3 => Just(Op::Heal),
        4 => (0..40_usize, disk_fault()).prop_map(|(n, how)| Op::Disk { n, how }),
        1 => Just(Op::Mend),
        3 => (stop(), proptest::bool::weighted(0.2), proptest::option::weighted(0.2, jump()))
            .prop_map(|(stop, offline, jump)| Op::Restart { stop, offline, jump }),
        1 => (blob(), damage()).prop_map(|(blob, how)| Op::Damage { blob, how }),
        1 => (blob(), 0..1000_usize, prop_oneof![Just(FoundBy::Reader), Just(FoundBy::Scrub)])
            .prop_map(|(blob, at, found_by)| Op::Flip { blob, at, found_by }),
        2 => prop_oneof![1..10_u64, 30..120_u64, 600..9000_u64].prop_map(|seconds| Op::Tick { seconds }),
        1 => Just(Op::Upkeep),
    ]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    use Glitch::{Cut, IgnoreRange, NoLength, Reset, Stall};
    let how = prop_oneof![Just(Cut), Just(Reset), Just(Stall), Just(NoLength), Just(IgnoreRange)];
    let glitch = (prop_oneof![0..700_usize, 10_000..200_000_usize, 200_000..2_000_000_usize], how, 1..3_usize);
    prop_oneof![
        4 => glitch.prop_map(|(after, how, times)| Trouble::Glitch { after, how, times }),
        2 => (0..120_000_usize).prop_map(|at| Trouble::Corrupt { at }),
        1 => Just(Trouble::Down),
        1 => Just(Trouble::Unavailable),
        1 => Just(Trouble::TooManyRequests),
    ]
}

fn disk_fault() -> impl Strategy<Value = DiskFault> {
    use DiskFault::{DieAfter, DieBefore, Hang, Io, NoSpace, ReadOnly, Short};
    prop_oneof![Just(NoSpace), Just(Io), Just(ReadOnly), Just(Short), Just(Hang), Just(DieBefore), Just(DieAfter)]
}

fn stop() -> impl Strategy<Value = Stop> {
    let power = prop_oneof![Just(Loss::Cut), Just(Loss::Zeroed), Just(Loss::Renames)];
    prop_oneof![Just(Stop::Clean), Just(Stop::Kill), power.prop_map(Stop::Power)]
}

fn jump() -> impl Strategy<Value = Jump> {
    let far = || prop_oneof![1..100_u64, 1_000..9_000_u64, 100_000..1_000_000_u64].prop_map(Duration::from_secs);
    prop_oneof![far().prop_map(Jump::Back), far().prop_map(Jump::Ahead)]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![Just(Damage::Gone), Just(Damage::Short), Just(Damage::Empty), Just(Damage::Long)]
}

pub(super) fn history() -> impl Strategy<Value = History> {
    let ops = proptest::collection::vec(op(), 1..16);
    (proptest::bool::weighted(0.3), ops).prop_map(|(tight, ops)| History { tight, ops })
}

// === impl History ===

impl History {
    /// Whether the disk is to be waited for no longer than need be.
    pub(super) fn hangs(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Disk { how: DiskFault::Hang, .. }))
    }
}
