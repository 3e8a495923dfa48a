//! A herd: many clients ask at once for one cold layer, and the upstream is far and slow.
//!
//! `cargo bench --bench herd [-- CLIENTS SIZE]`

#![expect(clippy::cast_precision_loss, clippy::print_stdout, reason = "a bench prints figures")]

use std::{process::ExitCode, time::Duration};

use bytesize::ByteSize;
use support::{Registry, Setup};
use tokio::task::JoinSet;

use rig::{Arrival, Connection, Larder, MIB, largest, median, millis, verdict};

mod rig;
#[path = "../tests/support/mod.rs"]
mod support;

const ROUNDS: usize = 5;

struct Round {
    gets: usize,
    sent: u64,
    first_median: f64,
    first_max: f64,
    last: f64,
    ratio: f64,
    processor: f64,
}

fn main() -> ExitCode {
    rig::run(herd())
}

async fn herd() {
    let clients = rig::argument(0, 50);
    let size = rig::argument(1, ByteSize::mib(64));
    println!("{clients} clients, one cold layer of {size}; upstream 50 ms away, 32 MiB/s a connection");
    let setup = Setup { latency: Duration::from_millis(50), bandwidth: Some(32 << 20), ..Setup::default() };
    let upstream = rig::aside(Registry::with(setup)).await;
    let layer = support::noise(1, usize::try_from(size.as_u64()).expect("fits into memory"));
    let path = format!("/v2/library/app/blobs/{}", upstream.put_blob("library/app", layer));

    let mut rounds = Vec::new();
    for n in 1..=ROUNDS {
        let direct = ask(&upstream, &path, size).await;
        let round = round(&upstream, &path, clients, size, direct).await;
        println!(
            "round {n}: {} upstream GETs, {:.1} MiB sent; first byte median {:.0} ms, max {:.0} ms; \
             last byte of the last {:.2} s = {:.2} x direct ({:.2} s); larder took {:.2} processor seconds",
            round.gets,
            round.sent as f64 / MIB,
            round.first_median,
            round.first_max,
            round.last,
            round.ratio,
            direct.last.as_secs_f64(),
            round.processor,
        );
        rounds.push(round);
    }

    let sent = largest(rounds.iter().map(|round| round.sent as f64)) / size.as_u64() as f64;
    let first = median(rounds.iter().map(|round| round.first_median));
    let ratio = median(rounds.iter().map(|round| round.ratio));
    println!("{}: {sent:.2} x the layer sent by the upstream in the worst round; the bar is 1.15", verdict(sent <= 1.15));
    println!("{}: first byte {first:.0} ms, the median of the rounds; the bar is 100 ms", verdict(first <= 100.0));
    println!("{}: last byte {ratio:.2} x direct, the median of the rounds; the bar is 1.15", verdict(ratio <= 1.15));
}

/// One client without a mirror.
async fn ask(upstream: &Registry, path: &str, size: ByteSize) -> Arrival {
    let mut connection = Connection::open(upstream.address()).await.expect("the upstream listens");
    let arrival = connection.get(path).await.expect("the whole layer");
    assert_eq!((arrival.status, arrival.bytes), (200, size.as_u64()));
    arrival
}

async fn round(upstream: &Registry, path: &str, clients: usize, size: ByteSize, direct: Arrival) -> Round {
    let larder = Larder::start(&upstream.url(), "").await;
    let address = larder.address();
    upstream.forget_requests();
    let sent = upstream.bytes_sent();

    let mut herd = JoinSet::new();
    for _ in 0..clients {
        let path = path.to_owned();
        herd.spawn(async move { Connection::open(address).await?.get(&path).await });
    }
    let mut arrivals = Vec::new();
    while let Some(arrival) = herd.join_next().await {
        let arrival = arrival.expect("it does not panic").expect("the whole layer");
        assert_eq!((arrival.status, arrival.bytes), (200, size.as_u64()));
        arrivals.push(arrival);
    }
    let last = largest(arrivals.iter().map(|arrival| arrival.last.as_secs_f64()));
    Round {
        gets: upstream.count("GET", path),
        sent: upstream.bytes_sent() - sent,
        first_median: median(arrivals.iter().map(|arrival| millis(arrival.first))),
        first_max: largest(arrivals.iter().map(|arrival| millis(arrival.first))),
        last,
        ratio: last / direct.last.as_secs_f64(),
        processor: larder.processor_seconds(),
    }
}
