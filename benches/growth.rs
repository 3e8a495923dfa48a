//! A cache of 200,000 blobs beside one of 100: how soon it serves, what it takes of memory, and what a hit and an eviction cost.
//!
//! `cargo bench --bench growth [-- BLOBS]`

#![expect(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench prints figures, and makes a cache that would take minutes to fill"
)]

use std::{fs, process::ExitCode, time::Duration};

use larder::{
    app::App,
    clock::Clock,
    config::Config,
    oci::{Digest, Repository},
};
use support::{Registry, noise};
use tokio::{task::JoinSet, time::Instant};

use rig::{Connection, Larder, Stopped, largest, median, millis, verdict};

mod rig;
#[path = "../tests/support/mod.rs"]
mod support;

const FEW: u64 = 100;
/// The fewest that fill a cache: none may be smaller.
const FULL: u64 = 4096;
/// In bytes; a file of it takes a block of the disk.
const SIZE: usize = 1000;
const BLOCK: u64 = 4096;
const REPOSITORY: &str = "library/app";
const TURNS: usize = 9;
const TURN: Duration = Duration::from_secs(1);
const CONNECTIONS: usize = 16;
/// So many new blobs come in where as many must go.
const NEW: u64 = 300;

/// What was measured of a larder in one turn.
struct Turn {
    /// In a second.
    answers: f64,
    /// Processor seconds for 1,000 answers.
    processor: f64,
}

fn main() -> ExitCode {
    rig::run(grow())
}

async fn grow() {
    let many: u64 = rig::argument(0, 200_000);
    let upstream = rig::aside(Registry::start()).await;
    let (small, _) = start(filled(&upstream, FEW).await).await;
    let large = filled(&upstream, many).await;
    let clean = large.cache_dir().join("clean");
    fs::remove_file(&clean).expect("it was stopped cleanly");
    let (large, walked) = start(large).await;
    println!("{many} blobs, by a look at every file: serves after {:.0} ms, has counted after {:.0} ms", walked.0, walked.1);
    let (large, indexed) = start(large.stop().await).await;
    println!(
        "{}: from the index it serves after {:.0} ms and is ready after {:.0} ms; the bar is 1 s",
        verdict(indexed.1 < 1000.0),
        indexed.0,
        indexed.1
    );
    let each = (large.anonymous_memory().saturating_sub(small.anonymous_memory())) as f64 * 1024.0 / (many - FEW) as f64;
    println!(
        "{}: {each:.0} bytes of memory a blob, with the proof that its repository holds it; the bar is 200",
        verdict(each <= 200.0)
    );

    let hot = path(&upstream.put_blob(REPOSITORY, noise(0, SIZE)));
    let mut turns: [Vec<Turn>; 2] = Default::default();
    for _ in 0..TURNS {
        for (larder, turns) in [&small, &large].into_iter().zip(&mut turns) {
            turns.push(hits(larder, &hot).await);
        }
    }
    let [few, lots] =
        turns.map(|turns| (median(turns.iter().map(|turn| turn.answers)), median(turns.iter().map(|turn| turn.processor * 1e3))));
    println!(
        "hits of one blob: {:.0} and {:.0} answers/s, {:.1} and {:.1} ms of processor time for 1,000",
        few.0, lots.0, few.1, lots.1
    );
    println!("{}: {:.2} x the answers of the small cache; the bar is 0.95", verdict(lots.0 >= 0.95 * few.0), lots.0 / few.0);

    let (full, _) = start(filled(&upstream, FULL).await).await;
    for (larder, seed, what) in
        [(&full, 1, "4,096 and full"), (&large, 2, "large and full"), (&full, 3, "4,096 and full"), (&large, 4, "large and full")]
    {
        let took = misses(larder, &upstream, seed << 40).await;
        let median = median(took.iter().copied());
        println!("a cold blob that takes another's place, of a cache of {what}: {median:.2} ms, at most {:.1} ms", largest(took));
    }
}

fn path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

/// A cache that has so many blobs of the repository, and room for no more unless they are very few.
async fn filled(upstream: &Registry, blobs: u64) -> Stopped {
    let room = (blobs * BLOCK).max(FULL * BLOCK);
    let stopped = Larder::start(&upstream.url(), &format!("cache.max_size = {room}")).await.stop().await;
    let cache = stopped.cache_dir();
    let mut digests = Vec::new();
    for n in 0..blobs {
        let blob = noise(n, SIZE);
        let digest: Digest = support::digest_of(&blob).parse().expect("a digest");
        let place = cache.join("blobs/sha256").join(&digest.hex()[..2]);
        fs::create_dir_all(&place).expect("a place in the cache");
        fs::write(place.join(digest.hex()), blob).expect("a file in the cache");
        digests.push(digest);
    }
    // The books know none of them.
    fs::remove_file(cache.join("clean")).expect("it was stopped cleanly");
    let config = Config::from_toml(&stopped.config()).expect("larder has taken it");
    let app = App::start(config, Clock::system()).await.expect("it starts");
    while app.store().usage().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let repository = Repository { upstream: "docker.io".into(), name: REPOSITORY.parse().expect("a name") };
    for digest in &digests {
        app.mirror().set_proof(&repository, digest, SIZE as u64, None);
    }
    app.stop().await;
    stopped
}

/// Starts it; after how many milliseconds it serves, and is ready.
async fn start(stopped: Stopped) -> (Larder, (f64, f64)) {
    let begun = Instant::now();
    let larder = stopped.start().await;
    let serves = begun.elapsed();
    loop {
        let mut admin = Connection::open(larder.admin()).await.expect("it listens");
        if admin.get("/readyz").await.expect("an answer").status == 200 {
            return (larder, (millis(serves), millis(begun.elapsed())));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn hits(larder: &Larder, path: &str) -> Turn {
    let (processor, begun, end) = (larder.processor_seconds(), Instant::now(), Instant::now() + TURN);
    let mut all = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (path, address) = (path.to_owned(), larder.address());
        all.spawn(async move {
            let mut connection = Connection::open(address).await.expect("it listens");
            let mut answers = 0_u32;
            while Instant::now() < end {
                let arrival = connection.get(&path).await.expect("an answer");
                assert_eq!((arrival.status, arrival.bytes), (200, SIZE as u64));
                answers += 1;
            }
            answers
        });
    }
    let answers = f64::from(all.join_all().await.into_iter().sum::<u32>());
    let processor = larder.processor_seconds() - processor;
    Turn { answers: answers / begun.elapsed().as_secs_f64(), processor: processor * 1000.0 / answers }
}

/// Milliseconds for each of some blobs that are not there.
async fn misses(larder: &Larder, upstream: &Registry, seed: u64) -> Vec<f64> {
    let mut connection = Connection::open(larder.address()).await.expect("it listens");
    let mut took = Vec::new();
    for n in 0..NEW {
        let path = path(&upstream.put_blob(REPOSITORY, noise(seed + n, SIZE)));
        let arrival = connection.get(&path).await.expect("an answer");
        assert_eq!((arrival.status, arrival.bytes), (200, SIZE as u64));
        took.push(millis(arrival.last));
    }
    took
}
