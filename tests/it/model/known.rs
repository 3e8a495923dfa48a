//! Histories that failed once, each with what was wrong.

use larder::store::faults::Loss;

use super::history::{Damage, DiskFault, History, Op, Stop};

const REPOSITORY: usize = 1;
const BLOB: usize = 2;

const GET: Op = Op::Get { repository: REPOSITORY, blob: BLOB, clients: 1, leaves: None };

fn restart(stop: Stop) -> Op {
    Op::Restart { stop, offline: false, jump: None }
}

/// A process that dies between setting space aside and its first byte leaves a partial file that takes space and is empty.
#[test]
fn a_partial_file_may_have_space_and_no_bytes() {
    for n in 0..12 {
        let dies = Op::Disk { n, how: DiskFault::DieAfter };
        super::run(&History { tight: false, ops: vec![dies, GET, restart(Stop::Kill), GET] });
    }
}

/// Once the directory of a new blob is on the disk, a power loss does not bring back the damaged one that was moved away.
#[test]
fn what_was_set_aside_does_not_come_back() {
    let damage = Op::Damage { blob: BLOB, how: Damage::Short };
    super::run(&History { tight: false, ops: vec![GET, damage, GET, restart(Stop::Power(Loss::Renames)), GET] });
}
