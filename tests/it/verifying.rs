//! `larder verify`: all that is here is hashed again, and what is wrong leaves the cache.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Ended, Fault, Image, Match, MultiArch, Process, PutImage, Registry, TestMirror, assert_booked};

async fn verify(mirror: &TestMirror, arguments: &[&str]) -> Ended {
    Process::order(mirror.dir(), &[&["verify"], arguments].concat(), &[]).await
}

/// Flips a bit in the file of a blob.
fn damage(cache: &Path, digest: &str) {
    let hex = &digest["sha256:".len()..];
    let file = cache.join("blobs/sha256").join(&hex[..2]).join(hex);
    let mut bytes = fs::read(&file).unwrap();
    bytes[7] ^= 1;
    fs::write(file, bytes).unwrap();
}

async fn with_image(upstream: &Registry) -> (TestMirror, PutImage) {
    let image = Image::new(1).layers(&[70_000, 3_000]).put(upstream, "library/app", "v1");
    let mirror = TestMirror::of(upstream).await;
    assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    (mirror, image)
}

#[tokio::test]
async fn what_is_right_is_said_to_be() {
    let upstream = Registry::start().await;
    let (mirror, image) = with_image(&upstream).await;
    let ended = verify(&mirror, &[]).await;
    assert_eq!((ended.status.code(), ended.stdout.contains("4 blobs are right (")), (Some(0), true), "{}", ended.log);
    let mirror = mirror.stop().await;
    let ended = Process::order(mirror.dir(), &["verify", "--json", "--rate", "1GiB"], &[]).await;
    let report: Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
    let bytes = image.manifest.len() + image.blobs().map(|blob| blob.bytes.len()).sum::<usize>();
    let right = json!({ "report": "verified", "right": 4, "damaged": 0, "repaired": 0, "skipped": 0, "bytes": bytes });
    assert_eq!(report, right);
}

#[tokio::test]
async fn what_is_damaged_is_set_aside_and_fetched_anew_where_that_is_wanted() {
    let upstream = Registry::start().await;
    let (mirror, image) = with_image(&upstream).await;
    for (arguments, fetched) in [(&[][..], false), (&["--repair"], true)] {
        for digest in [&image.digest, &image.layers[0].digest] {
            damage(&mirror.cache_dir(), digest);
        }
        upstream.forget_requests();
        let ended = verify(&mirror, arguments).await;
        assert_eq!(ended.status.code(), Some(i32::from(!fetched)), "{}", ended.log);
        for digest in [&image.digest, &image.layers[0].digest] {
            assert_eq!((mirror.holds(digest), upstream.count("GET", digest)), (fetched, usize::from(fetched)));
            assert!(mirror.cache_dir().join("quarantine").join(digest.replace(':', "-")).exists());
            let line = format!(
                "larder: docker.io/library/app@{digest}: it was damaged, and is in quarantine/; --repair fetches it anew"
            );
            assert_eq!(ended.log.contains(&line), !fetched, "{}", ended.log);
        }
        let counts = if fetched { "2 blobs are right (3.2 KiB), 2 damaged, of which 2 fetched anew" } else { "2 damaged" };
        assert!(ended.stdout.contains(counts), "{}", ended.stdout);
        assert_booked(&mirror).await;
        assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    }
}

/// Who looks first and then does as he is told: it had left the cache by then, and nobody missed it.
#[tokio::test]
async fn what_was_found_damaged_before_is_fetched_anew_as_well_if_it_is_needed() {
    let upstream = Registry::start().await;
    let (mirror, image) = with_image(&upstream).await;
    let other = Image::new(2).layers(&[5_000]).put(&upstream, "library/other", "v1");
    assert_eq!(mirror.warm("other:v1", &[]).await.failed, []);
    for digest in [&image.digest, &image.layers[0].digest, &other.layers[0].digest] {
        damage(&mirror.cache_dir(), digest);
    }
    assert_eq!(verify(&mirror, &[]).await.status.code(), Some(1));
    assert!(Process::order(mirror.dir(), &["rm", "other:v1"], &[]).await.status.success());
    let mirror = mirror.stop().await.start().await;
    let ended = verify(&mirror, &["--repair"]).await;
    assert!(
        ended.status.success() && ended.stdout.contains(", 2 damaged, of which 2 fetched anew"),
        "{}{}",
        ended.stdout,
        ended.log
    );
    assert!(mirror.holds(&image.digest) && image.blobs().all(|blob| mirror.holds(&blob.digest)));
    assert!(!mirror.holds(&other.layers[0].digest), "nobody needs it any more");
}

/// One platform is enough for an image to be here, and so nobody missed the manifest of the other, which alone says what that needs.
#[tokio::test]
async fn of_an_image_that_was_damaged_before_each_platform_comes_again_with_its_layers() {
    let upstream = Registry::start().await;
    let index = MultiArch::new(3).put(&upstream, "library/multi", "v1");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("multi:v1", &["all"]).await.failed, []);
    let lost = [&index.images[1].digest, &index.images[1].layers[0].digest];
    lost.iter().for_each(|digest| damage(&mirror.cache_dir(), digest));
    assert_eq!(verify(&mirror, &[]).await.status.code(), Some(1));
    assert!(lost.iter().all(|digest| !mirror.holds(digest)));
    let Ended { status, stdout, log } = verify(&mirror, &["--repair", "multi:v1"]).await;
    assert!(status.success() && stdout.contains(", 2 damaged, of which 2 fetched anew"), "{stdout}{log}");
    assert!(lost.iter().all(|digest| mirror.holds(digest)));
}

#[tokio::test]
async fn what_cannot_be_had_again_is_told_of() {
    let upstream = Registry::start().await;
    let (mirror, image) = with_image(&upstream).await;
    damage(&mirror.cache_dir(), &image.layers[1].digest);
    upstream.on(Match::get(&image.layers[1].digest), Fault::status(404));
    let ended = verify(&mirror, &["--repair"]).await;
    assert!(
        ended.status.code() == Some(1) && ended.log.contains("it could not be fetched anew: not found upstream"),
        "{}",
        ended.log
    );
    assert!(ended.stdout.contains("3 blobs are right") && ended.stdout.contains("1 damaged\n"), "{}", ended.stdout);
}

/// A rate of 0 is for what nobody has asked for.
#[tokio::test]
async fn it_is_done_also_where_nothing_is_verified_of_itself() {
    let upstream = Registry::start().await;
    let (mirror, image) = with_image(&upstream).await;
    let mirror = mirror.stop().await.set("cache.scrub_rate = \"0B\"").start().await;
    damage(&mirror.cache_dir(), &image.config.digest);
    assert_eq!(mirror.scrub().await.damaged, 0);
    assert_eq!(verify(&mirror, &[]).await.status.code(), Some(1));
}
