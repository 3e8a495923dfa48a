//! What pulls cost where they are counted.

use std::time::Duration;

use futures_util::future::join_all;

use serde_json::Value;

use crate::support::{ANONYMOUS, MultiArch, PutIndex, Registry, Setup, TestMirror, get};

const IMAGES: usize = 50;
const TTLS: usize = 20;
/// In each TTL, of each image.
const PULLS: usize = 10;

/// What a client asks that has none of the image but its layers.
async fn pull(mirror: &TestMirror, image: &PutIndex) {
    let child = &image.images[0];
    for (path, bytes) in [
        (image.tag_path("latest"), &image.manifest),
        (child.manifest_path(), &child.manifest),
        (child.blob_path(&child.config), &child.config.bytes),
    ] {
        assert_eq!(mirror.get(&path).await.expect(200).body, bytes);
    }
}

/// What a client asks that has the image and wants to know whether there is a newer one.
async fn pull_again(mirror: &TestMirror, image: &PutIndex) {
    assert_eq!(mirror.head(&image.tag_path("latest")).await.expect(200).header("docker-content-digest"), Some(&*image.digest));
}

#[tokio::test]
async fn ten_thousand_pulls_of_fifty_cached_tags_over_their_ttl_cost_no_counted_get() {
    let upstream = Registry::with(Setup { budget: Some(100), ..Setup::default() }).await;
    let put = |n| MultiArch::new(n).put(&upstream, &format!("library/app{n}"), "latest");
    let images: Vec<PutIndex> = (0..IMAGES as u64).map(put).collect();
    let mirror = TestMirror::of(&upstream).await;
    join_all(images.iter().map(|image| pull(&mirror, image))).await;
    assert_eq!(upstream.budget(ANONYMOUS), 0, "two for each, which is all there is");
    upstream.set_budget(ANONYMOUS, 100);
    // As if another day had begun.
    mirror.clock().advance(Duration::from_hours(24));
    upstream.forget_requests();
    let mut pulls = 0;
    for ttl in 1..=TTLS {
        join_all(images.iter().map(|image| pull(&mirror, image))).await;
        for _ in 1..PULLS {
            join_all(images.iter().map(|image| pull_again(&mirror, image))).await;
        }
        pulls += IMAGES * PULLS;
        assert_eq!(upstream.count("HEAD", "/manifests/"), ttl * IMAGES, "one for each tag and TTL");
        mirror.clock().advance(Duration::from_mins(1));
    }
    assert_eq!(pulls, 10_000);
    assert_eq!((upstream.count("GET", ""), upstream.requests().len()), (0, TTLS * IMAGES));
    assert_eq!(upstream.budget(ANONYMOUS), 100);
}

/// Who had none left was still told so a day later.
#[tokio::test]
async fn after_its_window_nobody_knows_a_budget() {
    let upstream = Registry::with(Setup { budget: Some(100), ..Setup::default() }).await;
    let image = MultiArch::new(0).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    pull(&mirror, &image).await;
    let told = async || {
        let told: Value = get(mirror.admin_url("/api/upstreams")).await.expect(200).json();
        let hub = told["upstreams"].as_array().unwrap().iter().find(|upstream| upstream["name"] == "docker.io").unwrap().clone();
        hub["accounts"].as_array().unwrap().len()
    };
    assert_eq!(told().await, 1);
    mirror.clock().advance(Duration::from_hours(24));
    assert_eq!(told().await, 0);
}
