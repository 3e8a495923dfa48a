//! Once a client fetches a layer of an image, the others are fetched ahead of it.

use std::sync::{Mutex, mpsc};
use std::time::Duration;

use serde_json::json;
use tokio::runtime::Builder;
use tokio::task::spawn_blocking;

use crate::support::{Fault, Image, Match, PATIENCE, PutImage, Registry, TestMirror, digest_of, get_with, noise};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

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

/// Who began layers of eight images and read nothing left nobody else a place.
#[tokio::test]
async fn however_many_images_one_client_is_at_those_of_another_are_fetched_ahead_as_well() {
    let upstream = Registry::start().await;
    let put = |seed, name: &str| Image::new(seed).layers(&LAYERS[..3]).put(&upstream, &format!("library/{name}"), "latest");
    let (greedy, other): (Vec<_>, _) = ((0..8).map(|n| put(n, &format!("greedy-{n}"))).collect(), put(8, "other"));
    greedy
        .iter()
        .for_each(|image| upstream.on(Match::get(format!("{}/blobs/", image.repository)), Fault::Gate { after: 10_000 }));
    let builder = TestMirror::builder().upstream("docker.io", &upstream).listener("proxies = ['127.0.0.1']");
    let mirror = builder.set("mirror.prefetch = 1").start().await;
    let url = mirror.listening()[1].to_string();
    let begun = Mutex::new(Vec::new());
    let begin = async |image: &PutImage, client: &'static str| {
        mirror.get(&image.tag_path("latest")).await.expect(200);
        mirror.kept(&image.digest).await;
        // The first is fetched ahead first.
        let layer = format!("{url}{}", image.blob_path(&image.layers[2]));
        let layer = tokio::spawn(async move { get_with(layer, &[("x-forwarded-for", client)]).await });
        begun.lock().unwrap().push(layer);
    };
    for image in &greedy {
        begin(image, "198.51.100.1").await;
    }
    upstream.held(8 + 8).await;
    begin(&other, "198.51.100.2").await;
    for layer in &other.layers {
        mirror.kept(&layer.digest).await;
    }
    upstream.heal();
    upstream.release();
    for layer in begun.into_inner().unwrap() {
        layer.await.unwrap().expect(200);
    }
    // Seven of the eight have kept their places.
    for image in &greedy[..7] {
        mirror.kept(&image.layers[1].digest).await;
    }
}

/// A manifest of 4 MiB was read on the thread that serves others as well.
#[test]
fn a_long_manifest_is_read_by_a_thread_for_that() {
    Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap().block_on(async {
        let upstream = Registry::start().await;
        let mirror = ahead(&upstream, 1, "").await;
        let [first, second] = [1, 2].map(|seed| upstream.put_blob("library/long", noise(seed, 20_000)));
        let of = |digest: &str| json!({ "mediaType": "x", "digest": digest, "size": 20_000 });
        // What is to be had elsewhere is not fetched.
        let elsewhere = json!({ "mediaType": "x", "digest": first, "size": 20_000, "urls": ["https://elsewhere.example/layer"] });
        let layers = [vec![of(&first), of(&second)], vec![elsewhere; 1_000]].concat();
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": of(&digest_of(b"")), "layers": layers });
        let long = upstream.put_manifest("library/long", None, MANIFEST, manifest.to_string());
        mirror.get(&format!("/v2/library/long/manifests/{long}")).await.expect(200);
        mirror.kept(&long).await;

        let (free, taken) = mpsc::channel::<()>();
        let busy = spawn_blocking(move || taken.recv());
        mirror.get(&format!("/v2/library/long/blobs/{first}")).await.expect(200);
        let short = Image::new(3).layers(&LAYERS[..2]).put(&upstream, "library/short", "latest");
        mirror.get(&short.tag_path("latest")).await.expect(200);
        mirror.get(&short.blob_path(&short.layers[0])).await.expect(200);
        mirror.kept(&short.layers[1].digest).await;
        assert_eq!(upstream.count("GET", &second), 0, "the only such thread is taken");
        drop(free);
        busy.await.unwrap().unwrap_err();
        mirror.kept(&second).await;
    });
}
