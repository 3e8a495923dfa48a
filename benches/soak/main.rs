//! A soak: clients of every kind pull through a cache that is too small, from an upstream that fails all the time, while larder
//! is killed and stopped now and then. In the end everything must be as it was at the start, and nobody may ever have got a
//! wrong byte that ended well.
//!
//! `cargo bench --bench soak [-- 20m [SEED]]`; a minute, if nothing is said. It fails where a promise was broken.

#![expect(clippy::cast_precision_loss, clippy::print_stdout, reason = "a bench prints figures")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "it has nothing to do after a failure but fail")]

use std::{
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{runtime::Builder, task::LocalSet, time::sleep};

use rig::{Larder, MIB, Sampler};
use watch::Watch;
use world::World;

mod pulls;
#[path = "../rig/mod.rs"]
mod rig;
#[path = "../../tests/support/mod.rs"]
mod support;
mod trouble;
mod watch;
mod world;

/// Clients that pull at any moment.
const CLIENTS: u64 = 10;
/// A quarter of what is pulled.
const MAX_SIZE: u64 = 48 << 20;
/// Answers that are under way when larder is stopped.
const GRACE: Duration = Duration::from_secs(3);
/// How soon after its start larder answers.
const SERVES_WITHIN: Duration = Duration::from_secs(1);
/// After the last fault: time for what larder remembers of an upstream that failed.
const RECOVERS_WITHIN: Duration = Duration::from_secs(5);

/// What happened to larder itself.
#[derive(Default)]
struct Lives {
    kills: u32,
    stops: u32,
    slowest_start: Duration,
    slowest_stop: Duration,
}

fn main() -> ExitCode {
    let time = rig::argument(0, humantime::Duration::from(Duration::from_mins(1)));
    let seed = rig::argument(1, 1);
    println!("{time} with seed {seed}; {CLIENTS} clients; at most {:.0} MiB on the disk", MAX_SIZE as f64 / MIB);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let broken = LocalSet::new().block_on(&runtime, soak(*time, seed));
    for finding in &broken {
        println!("BROKEN: {finding}");
    }
    println!("{}: {} promises broken", rig::verdict(broken.is_empty()), broken.len());
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns what was found to be wrong.
async fn soak(time: Duration, seed: u64) -> Vec<String> {
    let world = Rc::new(World::new(seed).await);
    let options = format!(
        "cache.max_size = \"{MAX_SIZE} B\"\ncache.min_free = \"0%\"\nserver.shutdown_grace = \"3s\"\nmirror.tag_ttl = \"1s\"\n\
         mirror.negative_ttl = \"1s\"\nmirror.revalidate_wait = \"500ms\"\nlog.level = \"warn\"\n\
         upstream.\"docker.io\".connect_timeout = \"1s\"\nupstream.\"docker.io\".header_timeout = \"2s\"\n\
         upstream.\"docker.io\".idle_timeout = \"1s\""
    );
    let larder = Larder::start(&world.upstream.url(), &options).await;
    let sampler = Sampler::every(Duration::from_millis(100), larder.cache_dir());
    let begun = Instant::now();

    let mut watch = Watch::begin(&larder).await;
    world.open(larder.address());
    sampler.watch(Some(larder.pid()));
    let tasks: Vec<_> = (0..CLIENTS).map(|n| tokio::task::spawn_local(pulls::client(Rc::clone(&world), n))).collect();
    let trouble = tokio::task::spawn_local(trouble::make(Rc::clone(&world)));

    // The last two fifths of the time are one life, in which memory, descriptors and threads are measured.
    let mut lives = Lives::default();
    let mut larder = larder;
    let rounds = (time.as_secs() / 240).max(1) * 2;
    for round in 0..rounds {
        let end = begun + time.mul_f64(0.6 * f64::from(u32::try_from(round + 1).expect("few")) / rounds as f64);
        while Instant::now() < end {
            sleep(Duration::from_millis(250)).await;
            watch.look(&larder);
        }
        larder = lives.next(larder, round % 2 == 0, &world, &sampler).await;
        watch = Watch::begin(&larder).await;
        world.open(larder.address());
    }
    while begun.elapsed() < time {
        sleep(Duration::from_millis(250)).await;
        watch.look(&larder);
    }

    world.stop();
    trouble.await.expect("it does not panic");
    for task in tasks {
        task.await.expect("it does not panic");
    }
    sleep(RECOVERS_WITHIN).await;
    pulls::all(&world).await;
    sampler.watch(None);
    let samples = sampler.end();
    world.hold(samples.largest <= MAX_SIZE, || format!("{} bytes were on the disk", samples.largest));
    rig::aside({
        let upstream = world.upstream.clone();
        async move { upstream.stop().await }
    })
    .await;
    let rest = watch.end(&larder, &world).await;
    let log = larder.log();
    world.hold(!log.contains("panicked"), || "a task panicked".into());

    println!("{}", world.tally());
    println!(
        "{} kills, {} stops; first answer after at most {:.0} ms; stopped within {:.0} ms",
        lives.kills,
        lives.stops,
        rig::millis(lives.slowest_start),
        rig::millis(lives.slowest_stop),
    );
    println!(
        "disk: at most {:.1} of {:.1} MiB in {} samples, {:.1} MiB of it unlinked but open",
        samples.largest as f64 / MIB,
        MAX_SIZE as f64 / MIB,
        samples.taken,
        samples.largest_unlinked as f64 / MIB
    );
    println!("{rest}");
    println!("{} lines in the log", log.lines().count());
    world.findings()
}

// === impl Lives ===

impl Lives {
    /// The end of this larder, by SIGKILL or SIGTERM, and the start of the next one on its cache.
    async fn next(&mut self, larder: Larder, kill: bool, world: &World, sampler: &Sampler) -> Larder {
        sampler.watch(None);
        world.close();
        let ended = Instant::now();
        let stopped = if kill {
            self.kills += 1;
            larder.kill()
        } else {
            self.stops += 1;
            let stopped = larder.stop().await;
            self.slowest_stop = self.slowest_stop.max(ended.elapsed());
            world.hold(ended.elapsed() <= GRACE + Duration::from_secs(1), || format!("stopped after {:?}", ended.elapsed()));
            stopped
        };
        for torn in watch::torn(&stopped.cache_dir()) {
            world.found(format!("a torn blob is visible: {torn}"));
        }
        let begun = Instant::now();
        let larder = stopped.start().await;
        let answered = rig::Connection::open(larder.address()).await.expect("it listens").get("/v2/").await;
        world.hold(answered.is_ok_and(|arrival| arrival.status == 200), || "no answer after a start".into());
        self.slowest_start = self.slowest_start.max(begun.elapsed());
        world.hold(begun.elapsed() <= SERVES_WITHIN, || format!("serves after {:?}", begun.elapsed()));
        sampler.watch(Some(larder.pid()));
        larder
    }
}
