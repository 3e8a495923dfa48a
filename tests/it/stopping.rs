//! The end of the process, asked for or not, and the next beginning.

use std::time::Duration;

use larder::store::faults::Fault as DiskFault;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    Client, Closed, Fault, Image, Match, PATIENCE, Process, Raw, Registry, StoppedMirror, TestMirror, get, noise, stream,
};

const MIB: usize = 1 << 20;

fn to(registry: &Registry) -> String {
    format!("upstream.\"docker.io\".url={}", registry.url())
}

/// An upstream that holds back the second half of a layer.
async fn half_a_layer() -> (Registry, String, String, bytes::Bytes) {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[4 * MIB]).put(&upstream, "library/alpine", "latest");
    let layer = &image.layers[0];
    upstream.on(Match::get(&layer.digest).times(1), Fault::Gate { after: 2 * MIB });
    (upstream, image.blob_path(layer), layer.digest.clone(), layer.bytes.clone())
}

async fn said(larder: &Process, what: &str) {
    larder.log_when(what, |log| log.contains(what)).await;
}

#[tokio::test]
async fn after_the_grace_it_ends_says_what_was_left_and_goes_on_there_the_next_time() {
    let (upstream, path, digest, bytes) = half_a_layer().await;
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&to(&upstream), "server.shutdown_grace=300ms"], &[]);
    let mut reading = stream(larder.url(&path)).await;
    reading.take(MIB).await;
    upstream.held(1).await;
    let begun = Instant::now();
    let ended = tokio::task::spawn_blocking(move || larder.terminate()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(300 + 1000 + 500), "{:?}", begun.elapsed());
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.log.contains("stopped before these had ended") && ended.log.contains("connections=1"), "{}", ended.log);
    assert!(ended.log.contains("end=\"stopped\""), "{}", ended.log);
    assert!(!reading.rest().await.complete);
    upstream.release();

    let larder = Process::start(dir.path(), &[&to(&upstream)], &[]);
    assert!(get(larder.url(&path)).await.expect(200).body == bytes);
    let requests = upstream.requests();
    let ranges: Vec<_> =
        requests.iter().filter(|request| request.path.contains(&digest)).map(|request| request.range()).collect();
    assert_eq!(ranges.len(), 2, "{requests:#?}");
    assert!(ranges[1].is_some_and(|range| range.starts_with("bytes=") && range != "bytes=0-"), "{ranges:?}");
}

/// Of those who came by new connections during restarts, one in a hundred was cut off before it had asked.
#[tokio::test]
async fn who_has_just_come_is_answered_and_who_asks_nothing_is_not_waited_for() {
    let upstream = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&to(&upstream)], &[]);
    let mut asks_later = Raw::connect(larder.address()).await;
    let mut asks_nothing = Raw::connect(larder.address()).await;
    larder.until("larder_connections", |open| open == 2).await;
    let begun = Instant::now();
    larder.tell_to_stop();
    said(&larder, "stopping").await;
    asks_later.send("GET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\n").await;
    let answer = asks_later.head().await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(asks_nothing.rest().await, (Vec::new(), Closed::Fin));
    let ended = tokio::task::spawn_blocking(move || larder.wait()).await.unwrap();
    assert!(ended.status.success() && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let (upstream, path, ..) = half_a_layer().await;
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&to(&upstream), "server.shutdown_grace=10m"], &[]);
    let _reading = stream(larder.url(&path)).await;
    upstream.held(1).await;
    larder.tell_to_stop();
    said(&larder, "a second signal stops at once").await;
    let ended = tokio::task::spawn_blocking(move || larder.terminate());
    let ended = timeout(PATIENCE, ended).await.expect("at once").unwrap();
    assert_eq!(ended.status.code(), Some(1));
    upstream.release();
}

#[tokio::test]
async fn connections_that_are_idle_do_not_hold_it() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("server.shutdown_grace = \"10m\"").start().await;
    let (h1, h2) = (Client::h1(), Client::h2());
    for client in [&h1, &h2] {
        client.get(mirror.url("/v2/")).await.expect(200);
    }
    let silent = Raw::connect(mirror.address()).await;
    let (_, drained) = timeout(PATIENCE, mirror.drain()).await.expect("nothing is under way");
    assert_eq!(drained, larder::app::Drained::default());
    drop(silent);
}

/// A fill that waited for its upstream did not hear of the stop: all that was cached was doubted at the next start.
#[tokio::test]
async fn an_upstream_that_does_not_answer_leaves_the_cache_as_trusted_as_it_was() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[300_000, 200_000, MIB]).put(&upstream, "library/alpine", "latest");
    let [cached, begun, silent] = &image.layers[..] else { panic!() };
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("server.shutdown_grace = \"200ms\"").start().await;
    mirror.get(&image.blob_path(cached)).await.expect(200);
    // One that has not answered yet, and one that was to go on where it broke, and is silent now.
    upstream.on(Match::get(&silent.digest), Fault::Hang);
    upstream.on(Match::get(&begun.digest).times(1), Fault::Cut { after: 100_000 });
    upstream.on(Match::get(&begun.digest), Fault::Hang);
    let waiting: Vec<_> = [silent, begun]
        .map(|layer| {
            let url = mirror.url(&image.blob_path(layer));
            tokio::spawn(async move { Client::h1().try_get(url).await })
        })
        .into();
    upstream.held(2).await;
    let begun = Instant::now();
    let (stopped, drained) = mirror.drain().await;
    assert!(begun.elapsed() < Duration::from_millis(200 + 1000 + 300), "{:?}", begun.elapsed());
    assert_eq!((drained.connections, drained.fills), (2, 0));
    for client in waiting {
        assert!(!client.await.unwrap().is_ok_and(|answer| answer.complete));
    }
    upstream.release();
    trusted(stopped, &image.blob_path(cached), &cached.bytes).await;
}

/// One slow client, cut off at the end of the grace, had all that was cached hashed again.
#[tokio::test]
async fn a_client_that_is_cut_off_leaves_the_cache_as_trusted_as_it_was() {
    let upstream = Registry::start().await;
    let blob = noise(1, 32 * MIB);
    let path = format!("/v2/library/alpine/blobs/{}", upstream.put_blob("library/alpine", blob.clone()));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("server.shutdown_grace = \"200ms\"").start().await;
    mirror.get(&path).await.expect(200);
    let mut slow = mirror.stream(&path).await;
    slow.take(1000).await;
    let (stopped, drained) = mirror.drain().await;
    assert_eq!((drained.connections, drained.fills), (1, 0), "an operator is told");
    assert!(!slow.rest().await.complete);
    trusted(stopped, &path, &blob).await;
}

/// After the next start it has this blob, which is neither hashed again nor asked for.
async fn trusted(stopped: StoppedMirror, path: &str, bytes: &bytes::Bytes) {
    assert!(stopped.cache_dir().join("clean").exists());
    let mirror = stopped.start().await;
    let answer = mirror.get(path).await.expect(200);
    assert!(answer.body == bytes);
    assert!(answer.header("cache-status").is_some_and(|status| status.contains("hit")), "{:?}", answer.headers);
    assert_eq!(mirror.metric("larder_verified_total{outcome=\"right\"}"), 0);
}

#[tokio::test]
async fn a_disk_that_hangs_does_not_hold_it() {
    let (upstream, path, ..) = half_a_layer().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("server.shutdown_grace = \"200ms\"").start().await;
    let reading = mirror.stream(&path).await;
    upstream.held(1).await;
    mirror.faults().each(|_, _| true, DiskFault::Hang);
    let faults = mirror.faults().clone();
    let begun = Instant::now();
    let (_stopped, drained) = mirror.drain().await;
    assert!(begun.elapsed() < Duration::from_millis(200 + 1000 + 300), "{:?}", begun.elapsed());
    assert_eq!(drained.connections, 1);
    faults.heal();
    drop(reading);
    upstream.release();
}

/// Of itself the signal ends the process.
#[tokio::test]
async fn a_file_larger_than_the_process_may_write_is_passed_on() {
    let upstream = Registry::start().await;
    let blob = noise(1, 4 * MIB);
    let path = format!("/v2/library/alpine/blobs/{}", upstream.put_blob("library/alpine", blob.clone()));
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start_within(&["--fsize=1048576"], dir.path(), &[&to(&upstream)]);
    for _ in 0..2 {
        assert!(get(larder.url(&path)).await.expect(200).body == blob);
    }
    larder.log_when("it is passed on", |log| log.contains("served=\"bypass\"") || log.contains("disk failed")).await;
}

#[tokio::test]
async fn killed_again_and_again_it_serves_right_bytes_at_once_and_keeps_what_it_had() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[300_000, 2 * MIB, 6 * MIB]).put(&upstream, "library/alpine", "latest");
    let dir = tempfile::tempdir().unwrap();
    let mut starts = Vec::new();
    for round in 0..12u64 {
        let begun = Instant::now();
        let larder = Process::start(dir.path(), &[&to(&upstream)], &[]);
        get(larder.url("/v2/")).await.expect(200);
        starts.push(begun.elapsed());
        let pulls: Vec<_> = image
            .layers
            .iter()
            .map(|layer| {
                let (url, bytes) = (larder.url(&image.blob_path(layer)), layer.bytes.clone());
                tokio::spawn(async move {
                    if let Ok(answer) = Client::h1().try_get(url).await {
                        assert_eq!(answer.status, 200);
                        assert!(answer.body[..] == bytes[..answer.body.len()], "a wrong byte");
                        assert!(!answer.complete || answer.body == bytes);
                    }
                })
            })
            .collect();
        // Other moments in each round, from before the first byte to after the last.
        sleep(Duration::from_millis(round * 13 % 120)).await;
        larder.kill();
        for pull in pulls {
            pull.await.unwrap();
        }
    }
    tracing::info!("first answers after {starts:?}");
    assert!(starts.iter().min().is_some_and(|start| *start < Duration::from_secs(1)), "{starts:?}");
    let larder = Process::start(dir.path(), &[&to(&upstream)], &[]);
    for layer in &image.layers {
        assert!(get(larder.url(&image.blob_path(layer))).await.expect(200).body == layer.bytes);
    }
    let before = upstream.requests().len();
    for layer in &image.layers {
        get(larder.url(&image.blob_path(layer))).await.expect(200);
    }
    assert_eq!(upstream.requests().len(), before, "what is verified is kept");
}
