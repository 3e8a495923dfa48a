//! `larder top`: what a larder is doing, asked beside it.

use std::fs;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::support::{Fault, Image, Match, PATIENCE, Process, Registry, get, stream};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn what_is_fetched_now_and_what_clients_got_is_told() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[4 * MIB, 10]).put(&upstream, "library/app", "latest");
    let [large, small] = [&image.layers[0], &image.layers[1]];
    upstream.on(Match::get(&large.digest).times(1), Fault::Gate { after: 2 * MIB });
    let dir = tempfile::tempdir().unwrap();
    let settings = [format!("upstream.\"docker.io\".url={}", upstream.url()), "mirror.prefetch=0".into()];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let nobody = Process::order(dir.path(), &["top"], &settings).await;
    assert!(nobody.log.contains("there is no cache in"), "{}", nobody.log);

    let larder = Process::start(dir.path(), &settings, &[]);
    get(larder.url(&image.blob_path(small))).await.expect(200);
    larder.until("larder_fills_total{outcome=\"kept\"}", |kept| kept == 1).await;
    get(larder.url(&image.blob_path(small))).await.expect(200);
    let mut reading = stream(larder.url(&image.blob_path(large))).await;
    reading.take(MIB).await;
    upstream.held(1).await;
    let told = Process::order(dir.path(), &["top", "--once", "--json"], &settings).await;
    let told: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    let fill = &told["fills"][0];
    assert_eq!((&fill["digest"], &fill["repository"]), (&large.digest.as_str().into(), &"docker.io/library/app".into()));
    assert_eq!((&fill["size"], &fill["clients"]), (&(4 * MIB).into(), &1.into()));
    assert!((MIB..=2 * MIB).contains(&usize::try_from(fill["bytes"].as_u64().unwrap()).unwrap()), "{fill}");
    let answers = |served: &str| {
        let answers = told["answers"].as_array().unwrap().iter().find(|answers| answers["served"] == served).unwrap();
        (answers["answers"].as_u64().unwrap(), answers["bytes"].as_u64().unwrap())
    };
    assert_eq!(answers("hit"), (1, small.bytes.len() as u64));
    let (missed, sent) = answers("miss");
    assert!(missed == 1 && sent > MIB as u64, "what is under way counts as it goes out: {sent}");
    assert_eq!((larder.metric("larder_answers_total{served=\"hit\"}").await, &told["connections"]), (1, &1.into()));
    let shown = Process::order(dir.path(), &["top"], &settings).await.stdout;
    assert!(shown.contains("From here  1 answers") && shown.contains("docker.io/library/app "), "{shown}");
    assert!(shown.contains(" of 4.0 MiB  for 1 client"), "{shown}");
    upstream.release();
    assert!(reading.rest().await.complete);
    larder.terminate();
    let nobody = Process::order(dir.path(), &["top"], &settings).await;
    assert!(nobody.log.contains("no larder serves "), "{}", nobody.log);
}

/// Who watches is told more until they leave, and a stop does not wait for them.
#[tokio::test]
async fn who_watches_is_told_each_time_and_a_stop_ends_it() {
    let upstream = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&format!("upstream.\"docker.io\".url={}", upstream.url())], &[]);
    let seen = dir.path().join("seen");
    let mut watching = Process::watching(dir.path(), &["top", "--json", "--every", "100ms"], &seen);
    let told = async {
        while fs::read_to_string(&seen).unwrap().lines().count() < 3 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, told).await.unwrap();
    let ended = tokio::task::spawn_blocking(move || larder.terminate()).await.unwrap();
    assert!(ended.status.success(), "{}", ended.log);
    let watched = tokio::task::spawn_blocking(move || watching.wait()).await.unwrap().unwrap();
    assert_eq!(watched.code(), Some(1), "it has stopped in the middle");
}
