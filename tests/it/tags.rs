//! Tags while their upstream is well: how fresh they are and what it costs to keep them so.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::{Auth, Fault, Image, Match, MultiArch, Registry, Setup, TestMirror};

const TAG: &str = "/v2/library/app/manifests/latest";
const MINUTE: Duration = Duration::from_mins(1);

fn requests(upstream: &Registry) -> Vec<String> {
    upstream.requests().iter().map(|request| format!("{} {}", request.method, request.path)).collect()
}

// === within the TTL ===

#[tokio::test]
async fn a_thousand_asks_within_the_ttl_cost_one_request() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    for _ in 0..500 {
        let head = mirror.head(TAG).await.expect(200);
        assert_eq!(head.header("docker-content-digest"), Some(image.digest.as_str()));
        assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest);
    }
    assert_eq!(requests(&upstream), [format!("GET {TAG}")]);
}

#[tokio::test]
async fn fifty_who_ask_for_a_cold_tag_cost_one_get() {
    let upstream = Registry::start().await;
    let image = Image::new(2).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    for answer in join_all((0..50).map(|_| mirror.get(TAG))).await {
        assert_eq!(answer.expect(200).body, image.manifest);
    }
    assert_eq!(requests(&upstream), [format!("GET {TAG}")]);
}

#[tokio::test]
async fn a_cold_tag_by_head_and_then_its_manifest_by_digest_costs_one_get() {
    let upstream = Registry::start().await;
    let image = Image::new(3).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let head = mirror.head(TAG).await.expect(200);
    assert_eq!(head.header("content-length"), Some(image.manifest.len().to_string().as_str()));
    assert!(head.body.is_empty());
    let digest = head.header("docker-content-digest").unwrap();
    assert_eq!(mirror.get(&format!("/v2/library/app/manifests/{digest}")).await.expect(200).body, image.manifest);
    assert_eq!(requests(&upstream), [format!("GET {TAG}")]);
}

#[tokio::test]
async fn an_upstream_may_have_a_ttl_of_its_own() {
    let (hub, quay) = (Registry::start().await, Registry::start().await);
    Image::new(4).put(&hub, "org/app", "latest");
    Image::new(5).put(&quay, "org/app", "latest");
    let mirror = TestMirror::builder()
        .upstream("docker.io", &hub)
        .upstream("quay.io", &quay)
        .set("upstream.\"quay.io\".tag_ttl = \"10s\"")
        .start()
        .await;
    let (at_hub, at_quay) = ("/v2/org/app/manifests/latest", "/v2/quay.io/org/app/manifests/latest");
    for _ in 0..3 {
        mirror.get(at_hub).await.expect(200);
        mirror.get(at_quay).await.expect(200);
        mirror.clock().advance(Duration::from_secs(10));
    }
    assert_eq!((hub.count("HEAD", ""), quay.count("HEAD", "")), (0, 2));
}

// === after it ===

#[tokio::test]
async fn after_the_ttl_one_head_is_shared_by_all_who_wait_and_nothing_is_fetched() {
    let upstream = Registry::start().await;
    let image = Image::new(6).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(TAG).await.expect(200);
    for _ in 0..2 {
        upstream.forget_requests();
        mirror.clock().advance(MINUTE);
        for answer in join_all((0..50).map(|_| mirror.get(TAG))).await {
            assert_eq!(answer.expect(200).body, image.manifest);
        }
        assert_eq!(requests(&upstream), [format!("HEAD {TAG}")]);
        let accept = upstream.requests()[0].header("accept").unwrap_or_default().to_owned();
        for media_type in ["oci.image.index.v1+json", "oci.image.manifest.v1+json", "manifest.list.v2+json", "manifest.v2+json"] {
            assert!(accept.contains(media_type), "{accept}");
        }
    }
}

#[tokio::test]
async fn a_tag_that_has_moved_is_fetched_by_digest_only() {
    let upstream = Registry::start().await;
    Image::new(7).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(TAG).await.expect(200);
    let moved = Image::new(8).put(&upstream, "library/app", "latest");
    assert_ne!(mirror.get(TAG).await.expect(200).body, moved.manifest, "within the TTL it stays");

    upstream.forget_requests();
    mirror.clock().advance(MINUTE);
    for answer in join_all((0..20).map(|_| mirror.get(TAG))).await {
        assert_eq!(answer.expect(200).body, moved.manifest);
    }
    assert_eq!(requests(&upstream), [format!("HEAD {TAG}"), format!("GET {}", moved.manifest_path())]);
}

#[tokio::test]
async fn what_a_tag_pointed_to_before_it_moved_stays_servable() {
    let upstream = Registry::start().await;
    let old = MultiArch::new(9).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(TAG).await.expect(200);
    let child = &old.images[1];
    mirror.get(&child.manifest_path()).await.expect(200);
    mirror.get(&child.blob_path(&child.layers[0])).await.expect(200);
    MultiArch::new(10).put(&upstream, "library/app", "latest");
    mirror.clock().advance(MINUTE);
    assert_ne!(mirror.get(TAG).await.expect(200).body, old.manifest);
    upstream.forget_requests();
    assert_eq!(mirror.get(&old.manifest_path()).await.expect(200).body, old.manifest);
    assert_eq!(mirror.get(&child.manifest_path()).await.expect(200).body, child.manifest);
    assert_eq!(mirror.get(&child.blob_path(&child.layers[0])).await.expect(200).body, child.layers[0].bytes);
    assert_eq!(requests(&upstream), [""; 0]);
    let other = &old.images[0];
    assert_eq!(mirror.get(&other.manifest_path()).await.expect(200).body, other.manifest, "also what was not pulled before");
}

#[tokio::test]
async fn an_upstream_whose_head_says_nothing_is_asked_by_get() {
    for fault in [Fault::NoDigestHeader, Fault::status(405)] {
        let upstream = Registry::start().await;
        Image::new(11).put(&upstream, "library/app", "latest");
        upstream.on(Match::head("/manifests/"), fault);
        let mirror = TestMirror::of(&upstream).await;
        mirror.get(TAG).await.expect(200);
        let moved = Image::new(12).put(&upstream, "library/app", "latest");
        mirror.clock().advance(MINUTE);
        assert_eq!(mirror.get(TAG).await.expect(200).body, moved.manifest);
        assert_eq!(requests(&upstream), [format!("GET {TAG}"), format!("HEAD {TAG}"), format!("GET {TAG}")]);
    }
}

#[tokio::test]
async fn tags_outlive_a_restart_and_stay_as_fresh_as_they_were() {
    let upstream = Registry::start().await;
    let image = Image::new(13).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(TAG).await.expect(200);
    let mirror = mirror.stop().await.start().await;
    assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest);
    assert_eq!(upstream.requests().len(), 1);
    let stopped = mirror.stop().await;
    upstream.stop().await;
    let mirror = stopped.start().await;
    mirror.clock().advance(Duration::from_hours(1));
    let answer = mirror.get(TAG).await.expect(200);
    assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=stale"));
}

// === gone ===

#[tokio::test]
async fn a_tag_that_was_deleted_is_gone_at_once_and_seen_again_when_it_is_pushed_again() {
    let upstream = Registry::start().await;
    let image = Image::new(14).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(TAG).await.expect(200);
    upstream.untag("library/app", "latest");
    mirror.clock().advance(MINUTE);
    let answer = mirror.get(TAG).await.expect(404);
    assert_eq!(answer.error_code().as_deref(), Some("MANIFEST_UNKNOWN"));
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest, "by digest it is still there");
    upstream.tag("library/app", "latest", &image.digest);
    mirror.clock().advance(Duration::from_secs(5));
    assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest);
}

#[tokio::test]
async fn a_tag_that_is_not_there_is_asked_for_once_in_a_while_until_it_is_pushed() {
    let upstream = Registry::start().await;
    let image = Image::new(15).put_untagged(&upstream, "library/app");
    let mirror = TestMirror::of(&upstream).await;
    let path = "/v2/library/app/manifests/sha256-0123456789abcdef.sig";
    for _ in 0..10 {
        let answer = mirror.get(path).await.expect(404);
        assert_eq!(answer.error_code().as_deref(), Some("MANIFEST_UNKNOWN"), "NAME_UNKNOWN would fail podman's pull");
        mirror.head(path).await.expect(404);
    }
    assert_eq!(upstream.requests().len(), 1);
    upstream.tag("library/app", "sha256-0123456789abcdef.sig", &image.digest);
    mirror.clock().advance(Duration::from_secs(5));
    assert_eq!(mirror.get(path).await.expect(200).body, image.manifest);
}

#[tokio::test]
async fn a_repository_that_is_not_there_is_a_manifest_that_is_not_there() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let answer = mirror.get("/v2/nobody/nothing/manifests/latest").await.expect(404);
    assert_eq!(answer.error_code().as_deref(), Some("MANIFEST_UNKNOWN"));
}

#[tokio::test]
async fn docker_hub_says_401_of_a_repository_that_is_not_there() {
    let auth = Auth::Bearer { user: None, expires_in: Some(300) };
    let upstream = Registry::with(Setup { auth, ..Setup::default() }).await;
    upstream.on(Match::any("/manifests/"), Fault::status(401));
    let mirror = TestMirror::of(&upstream).await;
    let answer = mirror.get("/v2/nobody/nothing/manifests/latest").await.expect(404);
    assert_eq!(answer.error_code().as_deref(), Some("MANIFEST_UNKNOWN"));
    assert_eq!(upstream.requests().len(), 3, "a challenge, a token and the answer to it: {:#?}", upstream.requests());
}
