//! Random histories of a larder against a model of what it must be: whatever clients, upstream, disk and process go through,
//! and in whatever order, the invariants hold after each step.
//!
//! Reads downward: a [`History`] is a list of what happens; `world` lets it happen to the real thing; `clients` says of each
//! answer whether it may be; `trouble` is the upstream's, and what happens to the disk and the process is in `machine`;
//! `invariants` looks at what is left after each step, and `order` at what had to go.
//!
//! Histories that failed once are in `known`, or kept as seeds in `regressions.txt` and run first. `PROPTEST_CASES=5000` runs as
//! many new ones.

mod clients;
mod history;
mod invariants;
mod known;
mod machine;
mod order;
mod trouble;
mod world;

use std::time::Duration;

use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestRunner};

use self::history::{History, history};
use self::world::World;

/// Lets a history happen, and checks everything after each step.
fn run(history: &History) {
    // One of its own: what a failed history leaves running ends with it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(history).await;
        for op in &history.ops {
            let done = tokio::time::timeout(Duration::from_mins(1), world.step(*op)).await;
            assert!(done.is_ok(), "{op:?} takes for ever");
        }
        world.end().await;
    });
    runtime.shutdown_background();
}

#[test]
fn whatever_happens_in_whatever_order_the_invariants_hold() {
    let config = Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/it/model/regressions.txt"))),
        max_shrink_iters: 300,
        ..Config::default()
    };
    // New ones, as many as the command says; or as many as there is time for in every run, always the same, so that no change
    // fails by a history that has nothing to do with it.
    let same = Config { cases: 48, rng_seed: RngSeed::Fixed(4), ..config.clone() };
    let config = if std::env::var_os("PROPTEST_CASES").is_some() { config } else { same };
    let tried = TestRunner::new(config).run(&history(), |history| {
        run(&history);
        Ok(())
    });
    if let Err(failure) = tried {
        panic!("{failure}");
    }
}
