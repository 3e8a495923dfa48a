//! What is remembered of what upstreams have answered: only so much, however often clients ask, and the newest of it.

use std::fs;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use larder::clock::Clock;

use crate::support::{Image, PutImage, Registry, StoppedMirror, TestMirror, digest_of, until};

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn forgotten(what: &str) -> String {
    format!("larder_forgotten_total{{what=\"{what}\"}}")
}

/// A manifest of four megabytes names fifty thousand digests, each of which took memory that nothing bounded.
#[tokio::test]
async fn of_a_manifest_that_names_more_than_any_image_has_not_all_is_remembered() {
    let upstream = Registry::start().await;
    let layer =
        |n: usize| format!(r#"{{"mediaType":"{LAYER_TYPE}","size":1,"digest":"{}"}}"#, digest_of(n.to_string().as_bytes()));
    let layers: Vec<String> = (1..20_000).map(layer).collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{},"layers":[{}]}}"#,
        layer(0).replace(LAYER_TYPE, "application/vnd.oci.image.config.v1+json"),
        layers.join(",")
    );
    let digest = upstream.put_manifest("library/app", Some("latest"), MANIFEST_TYPE, manifest.clone());
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.get("/v2/library/app/manifests/latest").await.expect(200).body, manifest);
    mirror.metric_is(&forgotten("link"), 10_000).await;
    let stopped = mirror.stop().await;
    let index = fs::read_to_string(stopped.cache_dir().join("index")).unwrap();
    let line = index.lines().find(|line| line.starts_with(&digest)).expect("it is kept");
    assert_eq!(line.split(' ').count(), 6 + 10_000);
    let mirror = stopped.start().await;
    assert_eq!(mirror.get(&format!("/v2/library/app/manifests/{digest}")).await.expect(200).body, manifest);
}

/// An image, and a larder that has had it and is told, before its next start, of more than that.
async fn had(upstream: &Registry, blobs: &[usize]) -> (PutImage, StoppedMirror) {
    let image = Image::new(1).layers(blobs).put(upstream, "library/app", "latest");
    let mirror = TestMirror::of(upstream).await;
    mirror.get(&image.tag_path("latest")).await.expect(200);
    for blob in image.blobs() {
        mirror.get(&image.blob_path(blob)).await.expect(200);
        mirror.kept(&blob.digest).await;
    }
    mirror.kept(&image.digest).await;
    (image, mirror.stop().await)
}

fn tell(stopped: &StoppedMirror, lines: impl Iterator<Item = String>) {
    let text = lines.collect::<Vec<_>>().concat();
    let records = stopped.cache_dir().join("records");
    fs::OpenOptions::new().append(true).open(records).unwrap().write_all(text.as_bytes()).unwrap();
}

/// In milliseconds, as records have it.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

/// One manifest under a million tags was a million records, in memory and on the disk.
#[tokio::test]
async fn of_the_tags_of_a_repository_those_are_forgotten_that_were_looked_at_longest_ago() {
    let upstream = Registry::start().await;
    let (image, stopped) = had(&upstream, &[]).await;
    let before = now() - 20_000;
    // With `latest` there is one too many.
    let tag = |n: u128| format!("tag docker.io library/app t{n} {} {}\n", image.digest, before + n);
    tell(&stopped, (0..10_000).map(tag));
    upstream.tag("library/app", "t0", &image.digest);
    let mirror = stopped.start().await;
    mirror.metric_is(&forgotten("tag"), 1000).await;
    let asked = upstream.requests().len();
    for tag in ["t9999", "t1001", "latest"] {
        mirror.get(&image.tag_path(tag)).await.expect(200);
    }
    assert_eq!(upstream.requests().len(), asked, "these are known, and fresh");
    mirror.get(&image.tag_path("t0")).await.expect(200);
    assert_eq!(upstream.requests().len(), asked + 1, "it is asked for as if it were new");
}

/// Each request looked for its repository among all that had ever proven to hold the digest.
#[tokio::test]
async fn of_the_repositories_that_hold_a_digest_those_are_forgotten_that_proved_it_longest_ago() {
    let upstream = Registry::start().await;
    let (image, stopped) = had(&upstream, &[1000]).await;
    let layer = &image.layers[0].digest;
    let before = now() - 20_000;
    let proof = |n: u128| format!("proof docker.io library/r{n} {layer} 1000 - {}\n", before + n);
    tell(&stopped, (0..10_000).map(proof));
    let mirror = stopped.start().await;
    mirror.metric_is(&forgotten("proof"), 1000).await;
    let asked = upstream.requests().len();
    for repository in ["r9999", "r1001", "app"] {
        mirror.get(&format!("/v2/library/{repository}/blobs/{layer}")).await.expect(200);
    }
    assert_eq!(upstream.requests().len(), asked, "these may have it");
    mirror.get(&format!("/v2/library/r0/blobs/{layer}")).await.expect(404);
    assert_eq!(upstream.requests().len(), asked + 1, "it has to be proven again");
}

/// The same over many digests and repositories: each had few.
#[tokio::test]
async fn of_all_that_is_known_what_was_said_longest_ago_is_forgotten_where_it_is_too_much_for_the_cache() {
    let upstream = Registry::start().await;
    let (image, stopped) = had(&upstream, &[10; 12]).await;
    let before = now() - 200_000;
    let size = image.layers[0].bytes.len();
    let proof = |n: usize| {
        let layer = &image.layers[n / 9000].digest;
        format!("proof docker.io library/r{} {layer} {size} - {}\n", n % 9000, before + n as u128)
    };
    tell(&stopped, (0..12 * 9000).map(proof));
    let records = stopped.cache_dir().join("records");
    let before = fs::metadata(&records).unwrap().len();
    let mirror = stopped.start().await;
    mirror.upkeep().await;
    until("the records are written anew", || fs::metadata(&records).unwrap().len() < before).await;
    // A manifest, its config and the layers are here.
    let (most, left) = (100_000 + 4 * 14, fs::read_to_string(&records).unwrap().lines().count());
    assert!((most / 4 * 3..=most).contains(&left), "{left}");
    let forgotten = mirror.metric(&forgotten("record"));
    assert!((12 * 9000 - 10..=12 * 9000 + 30).contains(&(left + usize::try_from(forgotten).unwrap())), "{left} {forgotten}");
    let path = |repository: &str, layer: usize| format!("/v2/library/{repository}/blobs/{}", image.layers[layer].digest);
    let asked = upstream.requests().len();
    for path in [path("r8999", 11), path("app", 0), image.manifest_path(), image.tag_path("latest")] {
        mirror.get(&path).await.expect(200);
    }
    assert_eq!(upstream.requests().len(), asked, "the newest are known");
    mirror.get(&path("r0", 0)).await.expect(404);
    assert_eq!(upstream.requests().len(), asked + 1);
}

/// Whoever asks for what is missing makes up how long its name is.
#[tokio::test]
async fn of_what_is_missing_not_all_is_remembered() {
    const NAMES: usize = 2_400;
    let upstream = Registry::start().await;
    // It is remembered for as long as this larder's time stands still.
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).clock(Clock::still()).start().await;
    let mut asked = Vec::new();
    for _ in 0..2 {
        let before = upstream.requests().len();
        for some in (0..NAMES).collect::<Vec<_>>().chunks(50) {
            let path = |n| format!("/v2/library/absent/tags/list?next_page={n}-{}", "x".repeat(2_000));
            let answers = join_all(some.iter().map(async |n| mirror.get(&path(n)).await)).await;
            assert!(answers.iter().all(|answer| answer.status == 404));
        }
        asked.push(upstream.requests().len() - before);
    }
    assert_eq!(asked[0], NAMES);
    // 4 MiB of them.
    assert!((NAMES / 4..NAMES).contains(&asked[1]), "{asked:?}");
}
