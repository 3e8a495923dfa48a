//! What nobody needs and what pushes out what is hot, or does not: who only says that much will come, or lets it come and leaves.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::{Fault, Image, Match, PutImage, Registry, Streaming, TestMirror, assert_booked, noise};

const MIB: usize = 1 << 20;
const REPOSITORY: &str = "library/junk";

fn path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

/// A cache with room for 16 MiB, where nothing is fetched for nobody.
async fn small(upstream: &Registry) -> TestMirror {
    let mirror = TestMirror::builder().upstream("docker.io", upstream).set("mirror.orphan_bytes = \"1B\"");
    mirror.set("cache.max_size = \"18MiB\"").set("cache.min_free = \"0%\"").start().await
}

/// An image of so many layers of 1 MiB that has been used again.
async fn hot(upstream: &Registry, mirror: &TestMirror, layers: usize) -> PutImage {
    let image = Image::new(1).layers(&vec![MIB; layers]).put(upstream, "library/hot", "latest");
    mirror.pull(&image, "latest").await;
    mirror.clock().advance(Duration::from_mins(11));
    mirror.get(&image.manifest_path()).await.expect(200);
    image
}

/// How many layers of it are in the cache.
fn left(mirror: &TestMirror, image: &PutImage) -> usize {
    image.layers.iter().filter(|layer| mirror.holds(&layer.digest)).count()
}

/// Asks for a blob of which nothing comes after its first bytes, and leaves.
async fn ask_and_leave(upstream: &Registry, mirror: &TestMirror, seed: u64, size: usize, after: usize) {
    let digest = upstream.put_blob(REPOSITORY, noise(seed, size));
    upstream.on(Match::get(&digest), Fault::Stall { after });
    let stopped = mirror.metric("larder_fills_total{outcome=\"stopped\"}");
    let mut answer = mirror.stream(&path(&digest)).await;
    assert_eq!(answer.status, 200);
    if after > 2 * MIB {
        answer.take(after - 2 * MIB).await;
    }
    drop(answer);
    mirror.metric_is("larder_fills_total{outcome=\"stopped\"}", stopped + 1).await;
}

/// Room was made for all of it, which cost who asked one request and nothing else.
#[tokio::test]
async fn what_is_announced_and_left_pushes_out_nothing_hot() {
    for (layers, size) in [(3, 14), (7, 10), (12, 7), (12, 15)] {
        let upstream = Registry::start().await;
        let mirror = small(&upstream).await;
        let image = hot(&upstream, &mirror, layers).await;
        ask_and_leave(&upstream, &mirror, 5000, size * MIB, 1000).await;
        assert_eq!(left(&mirror, &image), layers, "where {size} MiB were announced");
        assert_booked(&mirror).await;
    }
}

/// What was hot and too much of what was there had to prove itself anew; and of what was there ever less was left.
#[tokio::test]
async fn nor_does_it_however_often_someone_asks() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).await;
    let image = hot(&upstream, &mirror, 7).await;
    for n in 0..20_u8 {
        ask_and_leave(&upstream, &mirror, 5000 + u64::from(n), (9 + usize::from(n) % 6) * MIB, 1000).await;
        mirror.clock().advance(Duration::from_secs(1));
        mirror.get(&image.manifest_path()).await.expect(200);
        assert_eq!(left(&mirror, &image), 7, "after {n} others");
    }
    assert_booked(&mirror).await;
}

#[tokio::test]
async fn nor_when_nobody_says_how_much_will_come() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).await.stop().await.set("cache.max_size = \"82MiB\"").start().await;
    let image = hot(&upstream, &mirror, 40).await;
    let digest = upstream.put_blob(REPOSITORY, noise(5000, MIB));
    upstream.on(Match::get(&digest), vec![Fault::NoLength, Fault::Stall { after: 300_000 }]);
    let mut answer = mirror.stream(&path(&digest)).await;
    answer.take(200_000).await;
    assert_eq!(left(&mirror, &image), 40);
}

/// What a hot manifest names was as hot as it, so that one layer of which hardly a byte was read brought in others that pushed out
/// everything.
#[tokio::test]
async fn nor_does_what_a_manifest_names_that_was_asked_for_twice() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).await;
    let junk = Image::new(2).layers(&[MIB; 20]).put(&upstream, "library/junk", "latest");
    mirror.get(&junk.manifest_path()).await.expect(200);
    mirror.clock().advance(Duration::from_mins(11));
    mirror.get(&junk.manifest_path()).await.expect(200);
    let image = hot(&upstream, &mirror, 7).await;
    for layer in &junk.layers {
        mirror.clock().advance(Duration::from_secs(1));
        mirror.get(&junk.blob_path(layer)).await.expect(200);
        mirror.get(&junk.manifest_path()).await.expect(200);
    }
    assert_eq!(left(&mirror, &image), 7);
    assert_booked(&mirror).await;
}

/// What was used once makes room for it, as before.
#[tokio::test]
async fn a_large_blob_is_kept_in_the_place_of_what_was_used_once() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).await;
    let image = hot(&upstream, &mirror, 4).await;
    let cold = Image::new(2).layers(&[5 * MIB, 4 * MIB]).put(&upstream, "library/cold", "latest");
    mirror.pull(&cold, "latest").await;
    let large = noise(5000, 11 * MIB);
    let digest = upstream.put_blob(REPOSITORY, large.clone());
    assert!(mirror.get(&path(&digest)).await.expect(200).body == large, "other bytes");
    mirror.kept(&digest).await;
    assert_eq!((left(&mirror, &image), left(&mirror, &cold)), (4, 0));
    assert_booked(&mirror).await;
}

/// Up to half of the cache goes for what has come, and for what comes whole.
#[tokio::test]
async fn what_is_hot_and_more_than_half_of_the_cache_makes_room_for_what_comes() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).await;
    let image = hot(&upstream, &mirror, 12).await;
    ask_and_leave(&upstream, &mirror, 5000, 7 * MIB, 5 * MIB).await;
    assert!((8..12).contains(&left(&mirror, &image)), "{} are left", left(&mirror, &image));
    let large = noise(5001, 7 * MIB);
    let digest = upstream.put_blob(REPOSITORY, large.clone());
    assert!(mirror.get(&path(&digest)).await.expect(200).body == large, "other bytes");
    mirror.kept(&digest).await;
    assert!((8..10).contains(&left(&mirror, &image)), "{} are left", left(&mirror, &image));
    assert_booked(&mirror).await;
}

/// Each of them alone would have had room.
#[tokio::test]
async fn of_many_that_come_at_once_each_is_answered_whole_and_half_of_the_cache_stays() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).await;
    let image = hot(&upstream, &mirror, 12).await;
    let blobs: Vec<_> = (0..5).map(|n| noise(5000 + n, 7 * MIB)).collect();
    let digests: Vec<_> = blobs.iter().map(|blob| upstream.put_blob(REPOSITORY, blob.clone())).collect();
    for digest in &digests {
        upstream.on(Match::get(digest).times(1), Fault::Gate { after: 100_000 });
    }
    let mut answers = Vec::new();
    for digest in &digests {
        answers.push(mirror.stream(&path(digest)).await);
    }
    upstream.release();
    for (answer, blob) in join_all(answers.into_iter().map(Streaming::rest)).await.into_iter().zip(&blobs) {
        assert!(answer.expect(200).body == *blob, "other bytes");
    }
    assert!(left(&mirror, &image) >= 8, "{} are left", left(&mirror, &image));
    assert_booked(&mirror).await;
    assert!(mirror.used() <= 16 * MIB as u64);
}

#[tokio::test]
async fn for_what_an_order_brings_all_that_is_hot_makes_room() {
    let upstream = Registry::start().await;
    let mirror = small(&upstream).await;
    let image = hot(&upstream, &mirror, 12).await;
    let ordered = Image::new(2).layers(&[13 * MIB]).put(&upstream, "library/ordered", "latest");
    assert_eq!(mirror.warm("library/ordered", &[]).await.failed, []);
    assert!(mirror.holds(&ordered.layers[0].digest));
    assert!(left(&mirror, &image) <= 3);
    assert_booked(&mirror).await;
}
