//! Images that are brought in before anyone asks for them, and kept.

use std::time::Duration;

use crate::support::{Fault, Image, Match, MultiArch, PutImage, Registry, Setup, StoppedMirror, TestMirror, noise};

const IMAGE: &str = "library/app:latest";
const TAG: &str = "/v2/library/app/manifests/latest";
const MINUTE: Duration = Duration::from_mins(1);

fn keeping(upstream: &Registry) -> StoppedMirror {
    let builder = TestMirror::builder().upstream("docker.io", upstream);
    builder.set("mirror.keep = [\"app\"]\nmirror.keep_platforms = [\"linux/arm64\"]")
}

/// Waits for the round that begins when larder starts.
async fn kept(mirror: &TestMirror, image: &PutImage) {
    mirror.kept(&image.digest).await;
    for blob in image.blobs() {
        mirror.kept(&blob.digest).await;
    }
}

#[tokio::test]
async fn a_kept_image_is_here_before_anyone_asks_and_only_for_the_platforms_that_are_wanted() {
    let upstream = Registry::start().await;
    let image = MultiArch::new(1).layers(&[1000, 300_000]).put(&upstream, "library/app", "latest");
    let mirror = keeping(&upstream).start().await;
    let (other, wanted) = (&image.images[0], &image.images[1]);
    kept(&mirror, wanted).await;
    upstream.stop().await;
    assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest);
    assert_eq!(mirror.get(&wanted.manifest_path()).await.expect(200).body, wanted.manifest);
    for blob in wanted.blobs() {
        assert_eq!(mirror.get(&wanted.blob_path(blob)).await.expect(200).body, blob.bytes);
    }
    assert_eq!(upstream.requests().len(), 2 + 3, "{:#?}", upstream.requests());
    assert_eq!(upstream.count("GET", &other.digest), 0);
}

#[tokio::test]
async fn a_round_fetches_what_is_missing_and_nothing_else() {
    let upstream = Registry::start().await;
    let shared = noise(9, 200_000);
    let old = Image::new(2).layers(&[1000]).layer(shared.clone()).put(&upstream, "library/app", "latest");
    let mirror = keeping(&upstream).start().await;
    kept(&mirror, &old).await;
    upstream.forget_requests();
    assert!(mirror.keep_once().await);
    assert_eq!(upstream.requests().len(), 0, "while the tag is fresh: {:#?}", upstream.requests());
    mirror.clock().advance(MINUTE);
    assert!(mirror.keep_once().await);
    assert_eq!([upstream.count("HEAD", TAG), upstream.requests().len()], [1, 1]);

    let new = Image::new(3).layers(&[1000]).layer(shared).put(&upstream, "library/app", "latest");
    upstream.forget_requests();
    mirror.clock().advance(MINUTE);
    assert!(mirror.keep_once().await);
    let asked = [upstream.count("HEAD", TAG), upstream.count("GET", &new.digest), upstream.count("GET", "/blobs/")];
    assert_eq!(asked, [1, 1, 2], "config and one layer: {:#?}", upstream.requests());
    assert_eq!(upstream.requests().len(), 4, "{:#?}", upstream.requests());
}

#[tokio::test]
async fn what_was_done_is_counted() {
    let upstream = Registry::start().await;
    let image = MultiArch::new(4).layers(&[1000, 300_000]).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let warmed = mirror.warm(IMAGE, &["linux/amd64"]).await;
    let child = &image.images[0];
    let bytes = image.manifest.len() + child.manifest.len() + child.blobs().map(|blob| blob.bytes.len()).sum::<usize>();
    assert_eq!(warmed.digest.map(|digest| digest.to_string()), Some(image.digest.clone()));
    assert_eq!((warmed.present, warmed.fetched, warmed.bytes, warmed.failed), (0, 5, bytes as u64, vec![]));
    let warmed = mirror.warm(IMAGE, &["all"]).await;
    assert_eq!((warmed.present, warmed.fetched, warmed.failed), (5, 4, vec![]), "the other platform is new");
    let warmed = mirror.warm(&format!("library/app@{}", child.digest), &["linux/amd64"]).await;
    assert_eq!((warmed.present, warmed.fetched, warmed.failed), (4, 0, vec![]), "an image by digest");
    for path in upstream.requests().iter().map(|request| request.path.clone()) {
        assert_eq!(upstream.count("GET", &path), 1, "{path}");
    }
}

#[tokio::test]
async fn no_more_than_two_blobs_are_fetched_at_once() {
    let upstream = Registry::with(Setup { bandwidth: Some(1 << 20), ..Setup::default() }).await;
    Image::new(5).layers(&[100_000; 8]).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm(IMAGE, &[]).await.fetched, 10);
    assert_eq!(upstream.max_concurrent(), 2);
}

#[tokio::test]
async fn what_cannot_be_had_is_told_and_the_rest_is_here() {
    let upstream = Registry::start().await;
    let image = Image::new(6).layers(&[1000, 70_000, 2000]).put(&upstream, "library/app", "latest");
    let mirror = keeping(&upstream).set("mirror.keep = [\"app\", \"missing\"]").start().await;
    kept(&mirror, &image).await;
    let warmed = mirror.warm("library/missing:latest", &[]).await;
    assert_eq!(warmed.failed, [("latest".into(), "not found upstream".into())]);

    let image = MultiArch::new(7).put(&upstream, "library/app", "multi");
    let warmed = mirror.warm("library/app:multi", &["windows/amd64"]).await;
    assert_eq!(warmed.failed, [("multi".into(), "it has no image for windows/amd64".into())]);
    let child = &image.images[0];
    for fault in [Fault::status(404), Fault::Corrupt { at: 500 }] {
        upstream.on(Match::get(&child.layers[0].digest), fault);
        let warmed = mirror.warm("library/app:multi", &["linux/amd64"]).await;
        assert_eq!(warmed.failed.len(), 1, "{warmed:?}");
        assert_eq!(warmed.failed[0].0, child.layers[0].digest);
        assert!(mirror.holds(&child.config.digest));
        upstream.heal();
        mirror.clock().advance(Duration::from_secs(5));
    }
    assert_eq!(mirror.warm("library/app:multi", &["linux/amd64"]).await.failed, []);
}

#[tokio::test]
async fn what_is_not_kept_is_told() {
    let upstream = Registry::start().await;
    let image = Image::new(8).layers(&[24 << 20]).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.max_size = \"16MiB\"").start().await;
    let warmed = mirror.warm(IMAGE, &[]).await;
    assert_eq!(warmed.failed.len(), 1, "{warmed:?}");
    assert!(warmed.failed[0].0 == image.layers[0].digest && warmed.failed[0].1.contains("not kept"), "{warmed:?}");
}

#[tokio::test]
async fn a_kept_image_outlives_a_crowd_of_others() {
    const MIB: usize = 1 << 20;
    let upstream = Registry::start().await;
    let image = Image::new(9).layers(&[2 * MIB]).put(&upstream, "library/app", "latest");
    let mirror = keeping(&upstream).set("cache.max_size = \"16MiB\"").start().await;
    kept(&mirror, &image).await;
    let mut others = Vec::new();
    for n in 0..12 {
        let other = Image::new(100 + n).layers(&[2 * MIB]).put(&upstream, "library/other", &n.to_string());
        mirror.get(&other.tag_path(&n.to_string())).await.expect(200);
        mirror.get(&other.blob_path(&other.layers[0])).await.expect(200);
        assert!(mirror.keep_once().await);
        others.push(other);
    }
    assert!(!mirror.holds(&others[0].layers[0].digest), "the cache was too large for this test");
    assert_eq!(upstream.count("GET", &image.layers[0].digest), 1);
}

#[tokio::test]
async fn a_sealed_larder_keeps_what_it_has_and_asks_nobody() {
    let upstream = Registry::start().await;
    let image = Image::new(10).layers(&[1000]).put(&upstream, "library/app", "latest");
    let mirror = keeping(&upstream).start().await;
    kept(&mirror, &image).await;
    let mirror = mirror.stop().await.set("mirror.offline = true").start().await;
    upstream.forget_requests();
    mirror.clock().advance(MINUTE);
    assert!(mirror.keep_once().await);
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn larder_stops_in_the_middle_of_a_round() {
    let upstream = Registry::start().await;
    let image = Image::new(11).layers(&[300_000]).put(&upstream, "library/app", "latest");
    upstream.on(Match::get(&image.layers[0].digest), Fault::Stall { after: 100_000 });
    let mirror = keeping(&upstream).start().await;
    upstream.held(1).await;
    let (_, drained) = mirror.drain().await;
    assert_eq!(drained.fills, 0);
}
