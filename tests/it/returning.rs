//! After a crowd has come and gone, and its upstream with it, larder takes no more of the machine than before.

use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::support::{Client, Fault, Match, PATIENCE, Process, Raw, Registry, TestMirror, noise};

const MIB: usize = 1 << 20;
/// Each stays open to be read again.
const BLOBS: usize = 4;

/// Waits until `now` is at most `before`.
async fn is_back(what: &str, before: usize, now: impl Fn() -> usize) {
    let back = timeout(PATIENCE, async {
        while now() > before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(back.await.is_ok(), "{} {what}, and before there were {before}", now());
}

/// Cold and warm pulls over both protocols; some stall, some leave, and one in four transfers breaks off.
async fn crowd(upstream: &Registry, address: std::net::SocketAddr) {
    let blobs: Vec<_> = (0..BLOBS as u64).map(|n| noise(n, MIB)).collect();
    let paths: Vec<String> =
        blobs.iter().map(|blob| format!("/v2/library/app/blobs/{}", upstream.put_blob("library/app", blob.clone()))).collect();
    upstream.on(Match::get("/blobs/").times(1), Fault::Cut { after: MIB / 2 });
    // Who leaves has a connection of his own, as what is not read holds up the others on it.
    let (h1, h2, leaves) = (Client::h1(), Client::h2(), Client::h2());
    let url = |n: usize| format!("http://{address}{}", paths[n % BLOBS]);
    for _ in 0..3 {
        let stalled = join_all((0..10).map(|n| Raw::asking(address, &paths[n % BLOBS])));
        let leaving = join_all((0..10).map(|n| if n % 2 == 0 { h1.stream(url(n)) } else { leaves.stream(url(n)) }));
        let whole = join_all((0..20).map(|n| if n % 2 == 0 { h1.get(url(n)) } else { h2.get(url(n)) }));
        let (stalled, leaving, whole) = tokio::join!(stalled, leaving, whole);
        for (n, answer) in whole.into_iter().enumerate() {
            assert!(answer.expect(200).body == blobs[n % BLOBS]);
        }
        drop((stalled, leaving));
    }
}

#[tokio::test]
async fn every_task_has_ended() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    crowd(&upstream, mirror.address()).await;
    assert!(mirror.metric("larder_fills_total{outcome=\"kept\"}") >= BLOBS as u64);
    upstream.stop().await;
    is_back("tasks", before, tasks).await;
    assert_eq!(mirror.metric("larder_body_buffer_bytes"), 0);
}

#[tokio::test]
async fn every_descriptor_is_closed() {
    let upstream = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&format!("upstream.\"docker.io\".url={}", upstream.url())], &[]);
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", larder.id())).unwrap().count();
    let before = descriptors();
    crowd(&upstream, larder.address()).await;
    assert!(descriptors() > before, "files stay open to be read again");
    upstream.stop().await;
    is_back("descriptors", before + BLOBS, descriptors).await;
}

/// registry v3 takes 4 MiB for each.
#[tokio::test]
async fn a_crowd_of_slow_readers_costs_a_few_hundred_kilobytes_each() {
    const READERS: usize = 300;
    let upstream = Registry::start().await;
    let blob = noise(1, 16 * MIB);
    let path = format!("/v2/library/app/blobs/{}", upstream.put_blob("library/app", blob.clone()));
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&format!("upstream.\"docker.io\".url={}", upstream.url())], &[]);
    assert!(crate::support::get(larder.url(&path)).await.expect(200).body == blob);
    let anonymous = || -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", larder.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
    };
    let before = anonymous();
    let mut slow = join_all((0..READERS).map(|_| Raw::asking(larder.address(), &path))).await;
    for reader in &mut slow {
        reader.head().await;
        reader.take(MIB / 4).await;
    }
    let each = anonymous().saturating_sub(before) / READERS;
    assert!(each < 256 << 10, "{each} bytes each");
    let quick = crate::support::get(larder.url(&path)).await.expect(200);
    assert!(quick.body == blob, "and nobody else feels them");
}
