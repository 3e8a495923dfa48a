//! The cap: twice as much as the cache may hold is pulled through it, and the disk is watched meanwhile. Three times: in one
//! run, with a restart in the middle, and with a kill -9 in the middle.
//!
//! `cargo bench --bench cap [-- CAP]`

#![expect(clippy::cast_precision_loss, clippy::print_stdout, reason = "a bench prints figures")]

use std::{collections::VecDeque, process::ExitCode, rc::Rc, time::Duration};

use bytesize::ByteSize;
use support::Registry;
use tokio::{sync::Mutex, sync::watch, task::LocalSet, time::Instant};

use rig::{Connection, Larder, MIB, Sampler, Stopped, verdict};

mod rig;
#[path = "../tests/support/mod.rs"]
mod support;

#[derive(Clone, Copy, Debug)]
enum Middle {
    Nothing,
    Restart,
    Kill,
}

/// Clients pull so many blobs at a time.
const CLIENTS: usize = 6;
const SMALLEST: usize = 1 << 10;
const LARGEST: usize = 32 << 20;

fn main() -> ExitCode {
    rig::run(cap())
}

async fn cap() {
    let cap = rig::argument(0, ByteSize::mib(256));
    let total = usize::try_from(cap.as_u64() * 2).expect("fits into memory");
    let upstream = rig::aside(Registry::start()).await;
    let mut bytes = support::noise(1, total);
    let mut blobs = Vec::new();
    for size in sizes(total) {
        blobs.push(format!("/v2/library/app/blobs/{}", upstream.put_blob("library/app", bytes.split_to(size))));
    }
    println!("cap {cap}; {} blobs of 1 KiB to 32 MiB, {} in all, {CLIENTS} at a time", blobs.len(), ByteSize(total as u64));
    for middle in [Middle::Nothing, Middle::Restart, Middle::Kill] {
        LocalSet::new().run_until(round(&upstream, &blobs, cap, middle)).await;
    }
}

/// From small to large by a constant factor, in a mixed order, until the sum is `total`.
fn sizes(total: usize) -> Vec<usize> {
    let mut sizes = Vec::new();
    let mut left = total;
    for n in 0.. {
        let doublings = n * 7 % 16;
        let size = (SMALLEST << doublings).saturating_mul(1 + n % 3).min(LARGEST).saturating_sub(n % 5 * 97).min(left);
        if size == 0 {
            break;
        }
        left -= size;
        sizes.push(size);
    }
    sizes
}

async fn round(upstream: &Registry, blobs: &[String], cap: ByteSize, middle: Middle) {
    let options = format!("cache.max_size = \"{} B\"\ncache.min_free = \"0%\"", cap.as_u64());
    let larder = Larder::start(&upstream.url(), &options).await;
    let sampler = Sampler::start(larder.cache_dir());
    sampler.watch(Some(larder.pid()));
    upstream.forget_requests();
    let begun = Instant::now();

    let queue = Rc::new(Mutex::new(blobs.iter().cloned().collect::<VecDeque<_>>()));
    let (address, addresses) = watch::channel(larder.address());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (queue, mut addresses) = (Rc::clone(&queue), addresses.clone());
            tokio::task::spawn_local(async move {
                let mut retried = 0;
                loop {
                    let Some(path) = queue.lock().await.pop_front() else { return retried };
                    while let Err(error) = pull(&mut addresses, &path).await {
                        retried += 1;
                        assert!(retried < 100, "{path}: {error}");
                    }
                }
            })
        })
        .collect();

    let larder = match middle {
        Middle::Nothing => larder,
        Middle::Restart | Middle::Kill => {
            while queue.lock().await.len() > blobs.len() / 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            sampler.watch(None);
            let stopped: Stopped = if matches!(middle, Middle::Kill) { larder.kill() } else { larder.stop().await };
            let larder = stopped.start().await;
            sampler.watch(Some(larder.pid()));
            address.send_replace(larder.address());
            larder
        }
    };
    let mut retried = 0;
    for client in clients {
        retried += client.await.expect("every blob comes");
    }
    let seconds = begun.elapsed().as_secs_f64();
    // What is committed after the last byte was served.
    tokio::time::sleep(Duration::from_millis(200)).await;
    sampler.watch(None);
    let samples = sampler.end();
    let (kept, bytes) = rig::blobs(&larder.cache_dir());

    println!(
        "{middle:?} in the middle: {seconds:.1} s, {} upstream GETs, {retried} pulls retried; {kept} blobs ({:.1} MiB) in the cache at \
         the end; {} samples, none longer than {:.0} ms; unlinked but open at most {:.1} MiB",
        upstream.count("GET", "/blobs/"),
        bytes as f64 / MIB,
        samples.taken,
        rig::millis(samples.longest),
        samples.largest_unlinked as f64 / MIB,
    );
    println!(
        "{}: largest disk use {:.2} MiB; the cap is {:.2} MiB",
        verdict(samples.largest <= cap.as_u64()),
        samples.largest as f64 / MIB,
        cap.as_u64() as f64 / MIB,
    );
}

/// A pull on a connection of its own; when it fails, waits for a larder at another address.
async fn pull(addresses: &mut watch::Receiver<std::net::SocketAddr>, path: &str) -> std::io::Result<()> {
    let address = *addresses.borrow_and_update();
    let pulled = async { Connection::open(address).await?.get(path).await }.await;
    match pulled {
        Ok(arrival) if arrival.status == 200 => Ok(()),
        other => {
            let _ = tokio::time::timeout(Duration::from_secs(5), addresses.changed()).await;
            Err(other.map_or_else(|error| error, |arrival| std::io::Error::other(format!("status {}", arrival.status))))
        }
    }
}
