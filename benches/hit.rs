//! Hits: blobs that are in the cache and in the page cache, to clients that take all they can get.
//!
//! `cargo bench --bench hit [-- SECONDS]`

#![expect(clippy::cast_precision_loss, clippy::print_stdout, reason = "a bench prints figures")]

use std::{process::ExitCode, time::Duration};

use support::Registry;
use tokio::{task::JoinSet, time::Instant};

use rig::{Connection, GIB, Larder};

mod rig;
#[path = "../tests/support/mod.rs"]
mod support;

fn main() -> ExitCode {
    rig::run(hit())
}

async fn hit() {
    let seconds: f64 = rig::argument(0, 3.0);
    let upstream = rig::aside(Registry::start()).await;
    let put =
        |seed, mib: usize| format!("/v2/library/app/blobs/{}", upstream.put_blob("library/app", support::noise(seed, mib << 20)));
    let (large, small) = (put(1, 256), put(2, 1));
    let larder = Larder::start(&upstream.url(), "").await;

    for (what, path, connections) in [("256 MiB", &large, 1), ("256 MiB", &large, 8), ("1 MiB", &small, 32)] {
        // Into the cache, and once more to read it there.
        read(&larder, path, connections, Duration::ZERO).await;
        let (processor, begun) = (larder.processor_seconds(), Instant::now());
        let (answers, bytes) = read(&larder, path, connections, Duration::from_secs_f64(seconds)).await;
        let (processor, seconds) = (larder.processor_seconds() - processor, begun.elapsed().as_secs_f64());
        let gib = bytes as f64 / GIB;
        println!(
            "{what:>7} at {connections:>2} connections: {:.2} GiB/s, {:.0} answers/s, {:.3} processor seconds of larder per GiB",
            gib / seconds,
            answers as f64 / seconds,
            processor / gib,
        );
    }
    println!("peak memory of larder: {:.0} MiB", larder.peak_memory() as f64 / 1024.0);
}

/// Asks again and again on each connection, until the time is over; how many answers and bytes came.
async fn read(larder: &Larder, path: &str, connections: usize, time: Duration) -> (u64, u64) {
    let end = Instant::now() + time;
    let mut all = JoinSet::new();
    for _ in 0..connections {
        let (path, address) = (path.to_owned(), larder.address());
        all.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let (mut answers, mut bytes) = (0, 0);
            loop {
                let arrival = connection.get(&path).await?;
                assert_eq!(arrival.status, 200);
                answers += 1;
                bytes += arrival.bytes;
                if Instant::now() >= end {
                    return Ok::<_, std::io::Error>((answers, bytes));
                }
            }
        });
    }
    let read = all.join_all().await.into_iter().map(|read| read.expect("the whole blob"));
    read.fold((0, 0), |(answers, bytes), (more, more_bytes)| (answers + more, bytes + more_bytes))
}
