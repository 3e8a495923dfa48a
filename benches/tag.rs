//! A tag that is asked again and again within its TTL.
//!
//! `cargo bench --bench tag [-- REQUESTS CONNECTIONS]`

#![expect(clippy::cast_precision_loss, clippy::print_stdout, reason = "a bench prints figures")]

use std::process::ExitCode;

use support::{Image, Registry};
use tokio::{task::JoinSet, time::Instant};

use rig::{Connection, Larder, median, millis, verdict};

mod rig;
#[path = "../tests/support/mod.rs"]
mod support;

fn main() -> ExitCode {
    rig::run(tag())
}

async fn tag() {
    let requests = rig::argument(0, 1_000);
    let connections = rig::argument(1, 8);
    println!("a tag asked {requests} times within its TTL over {connections} connections, HEAD and GET in turn");
    let upstream = rig::aside(Registry::start()).await;
    let image = Image::new(1).layers(&[1_000]).put(&upstream, "library/app", "latest");
    let path = image.tag_path("latest");
    let larder = Larder::start(&upstream.url(), "mirror.tag_ttl = \"10m\"").await;
    let address = larder.address();

    let first = Connection::open(address).await.expect("larder listens").get(&path).await.expect("the manifest");
    assert_eq!((first.status, first.bytes), (200, image.manifest.len() as u64));
    let asked_first = upstream.requests().len();

    let begun = Instant::now();
    let mut all = JoinSet::new();
    for connection in 0..connections {
        let path = path.clone();
        let share = requests / connections + usize::from(connection < requests % connections);
        all.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut arrivals = Vec::new();
            for n in 0..share {
                arrivals.push(if n % 2 == 0 { connection.head(&path).await? } else { connection.get(&path).await? });
            }
            Ok::<_, std::io::Error>(arrivals)
        });
    }
    let arrivals: Vec<_> = all.join_all().await.into_iter().flat_map(|arrivals| arrivals.expect("the manifest")).collect();
    let seconds = begun.elapsed().as_secs_f64();
    assert!(arrivals.iter().all(|arrival| arrival.status == 200), "{arrivals:?}");
    let asked_after = upstream.requests().len() - asked_first;

    println!("{:.0} requests/s, median {:.2} ms", requests as f64 / seconds, median(arrivals.iter().map(|a| millis(a.last))));
    println!("{}: {asked_first} upstream requests for the first answer; the bar is 1", verdict(asked_first == 1));
    println!("{}: {asked_after} upstream requests for the {requests} after it; the bar is 0", verdict(asked_after == 0));
}
