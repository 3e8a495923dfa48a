//! Once a client fetches a layer of an image, the others are fetched ahead of it.

use std::time::Duration;

use crate::support::{Fault, Image, Match, PATIENCE, PutImage, Registry, TestMirror};

const LAYERS: [usize; 6] = [60_000, 50_000, 40_000, 30_000, 20_000, 17_000];

async fn ahead(upstream: &Registry, layers: usize, options: &str) -> TestMirror {
    let mirror = TestMirror::builder().upstream("docker.io", upstream).set(&format!("mirror.prefetch = {layers}"));
    mirror.set(options).start().await
}

async fn image() -> (Registry, PutImage) {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&LAYERS).put(&upstream, "library/app", "latest");
    (upstream, image)
}

#[tokio::test]
async fn who_fetches_one_layer_finds_the_others_here_and_each_was_fetched_once() {
    let (upstream, image) = image().await;
    let mirror = ahead(&upstream, 3, "").await;
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.get(&image.blob_path(&image.layers[1])).await.expect(200);
    for blob in image.blobs() {
        mirror.kept(&blob.digest).await;
    }
    for layer in &image.layers {
        let answer = mirror.get(&image.blob_path(layer)).await.expect(200);
        assert_eq!((answer.header("cache-status"), &answer.body), (Some("larder; hit"), &layer.bytes));
        assert_eq!(upstream.count("GET", &layer.digest), 1);
    }
}

#[tokio::test]
async fn an_image_that_was_here_before_but_for_its_layers_is_fetched_ahead_as_well() {
    let (upstream, image) = image().await;
    let mirror = ahead(&upstream, 3, "mirror.tag_ttl = '1h'").await;
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.kept(&image.digest).await;
    mirror.clock().advance(Duration::from_mins(10));
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
    for blob in image.blobs() {
        mirror.kept(&blob.digest).await;
    }
}

/// As those do that only want to know what an image is.
#[tokio::test]
async fn for_who_fetches_no_layer_and_for_an_old_manifest_nothing_is_brought_in() {
    let (upstream, image) = image().await;
    let mirror = ahead(&upstream, 3, "").await;
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.kept(&image.digest).await;
    mirror.get(&image.blob_path(&image.config)).await.expect(200);
    mirror.head(&image.blob_path(&image.layers[0])).await.expect(200);
    mirror.clock().advance(Duration::from_mins(10));
    mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
    // Whatever they had set off would be at it when this is done.
    let other = Image::new(2).layers(&LAYERS).put(&upstream, "library/other", "latest");
    mirror.get(&other.tag_path("latest")).await.expect(200);
    mirror.get(&other.blob_path(&other.layers[0])).await.expect(200);
    for blob in other.blobs() {
        mirror.kept(&blob.digest).await;
    }
    for layer in &image.layers[1..] {
        assert_eq!(upstream.count("GET", &layer.digest), 0);
    }
}

#[tokio::test]
async fn no_more_layers_are_fetched_ahead_at_once_than_may_be_and_with_none_none() {
    for most in [0, 2] {
        let (upstream, image) = image().await;
        upstream.on(Match::get("/blobs/"), Fault::Gate { after: 0 });
        let mirror = ahead(&upstream, most, "").await;
        mirror.get(&image.tag_path("latest")).await.expect(200);
        mirror.kept(&image.digest).await;
        let layer = mirror.stream(&image.blob_path(&image.layers[5])).await;
        // The client's own is one of them only when its turn has come.
        upstream.held(1 + most).await;
        upstream.heal();
        upstream.release();
        assert!(layer.rest().await.complete);
        for layer in image.layers.iter().take(most * 100) {
            mirror.kept(&layer.digest).await;
        }
        assert_eq!(upstream.max_concurrent(), 1 + most);
    }
}

/// What has begun goes on as any fill does that nobody waits for; here, not at all.
#[tokio::test]
async fn an_image_whose_client_has_left_is_soon_not_fetched_further() {
    let (upstream, image) = image().await;
    upstream.on(Match::get("/blobs/"), Fault::Gate { after: 10_000 });
    let mirror = ahead(&upstream, 2, "mirror.orphan_fills = 0").await;
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.kept(&image.digest).await;
    let layer = mirror.stream(&image.blob_path(&image.layers[5])).await;
    upstream.held(3).await;
    drop(layer);
    mirror.metric_is("larder_fills_total{outcome=\"stopped\"}", 3).await;
    upstream.heal();
    upstream.release();
    assert!(image.layers.iter().all(|layer| upstream.count("GET", &layer.digest) <= 1));
    assert!(PATIENCE > Duration::from_secs(5), "it is borne with for so long");
}
