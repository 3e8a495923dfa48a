//! For how long tags are fresh: by pattern, and however little may be asked.

use std::time::Duration;

use crate::support::{Image, Registry, TestMirror};

const MINUTE: Duration = Duration::from_mins(1);

fn path(tag: &str) -> String {
    format!("/v2/library/app/manifests/{tag}")
}

// === by pattern ===

#[tokio::test]
async fn tags_have_the_ttl_of_the_first_pattern_that_matches() {
    let (hub, quay) = (Registry::start().await, Registry::start().await);
    for upstream in [&hub, &quay] {
        for tag in ["latest", "v1", "v1.2.3", "edge"] {
            Image::new(1).put(upstream, "library/app", tag);
        }
    }
    let mirror = TestMirror::builder()
        .upstream("docker.io", &hub)
        .upstream("quay.io", &quay)
        .set("mirror.tag_ttls = [\"latest=30s\", \"v*.*.*=forever\", \"v*=2m\"]")
        .set("upstream.\"quay.io\".tag_ttls = [\"v1=10s\"]")
        .start()
        .await;
    for step in 0..13 {
        for tag in ["latest", "v1", "v1.2.3", "edge"] {
            mirror.get(&path(tag)).await.expect(200);
            mirror.get(&format!("{}?ns=quay.io", path(tag))).await.expect(200);
        }
        if step < 12 {
            mirror.clock().advance(Duration::from_secs(10));
        }
    }
    let asked = |upstream: &Registry| ["latest", "v1", "v1.2.3", "edge"].map(|tag| upstream.count("HEAD", &path(tag)));
    assert_eq!(asked(&hub), [4, 1, 0, 2], "in two minutes");
    assert_eq!(asked(&quay), [4, 12, 0, 2]);
}

#[tokio::test]
async fn a_tag_that_never_moves_is_never_asked_for_again() {
    let upstream = Registry::start().await;
    let image = Image::new(2).put(&upstream, "library/app", "v1.2.3");
    let builder = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.tag_ttls = [\"v*.*.*=forever\"]");
    let mirror = builder.start().await;
    mirror.get(&path("v1.2.3")).await.expect(200);
    Image::new(3).put(&upstream, "library/app", "v1.2.3");
    mirror.clock().advance(Duration::from_hours(24 * 365));
    assert_eq!(mirror.get(&path("v1.2.3")).await.expect(200).body, image.manifest);
    let mirror = mirror.stop().await.start().await;
    upstream.stop().await;
    let answer = mirror.get(&path("v1.2.3")).await.expect(200);
    assert_eq!((answer.body.clone(), answer.header("warning")), (image.manifest, None));
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
}

#[tokio::test]
async fn lists_of_referrers_are_as_fresh_as_the_tags_of_their_upstream() {
    let upstream = Registry::start().await;
    let image = Image::new(4).put(&upstream, "library/app", "latest");
    upstream.put_referrers("library/app", &image.digest, None);
    let builder = TestMirror::builder().upstream("docker.io", &upstream).set("upstream.\"docker.io\".tag_ttl = \"10m\"");
    let mirror = builder.start().await;
    let referrers = format!("/v2/library/app/referrers/{}", image.digest);
    for (age, asked) in [(0, 1), (9, 1), (1, 2)] {
        mirror.clock().advance(MINUTE * age);
        mirror.get(&referrers).await.expect(200);
        assert_eq!(upstream.count("GET", "/referrers/"), asked);
    }
}
