//! Tags whose upstream cannot be asked, or may not be.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::{Answer, Fault, Image, Match, PutImage, Registry, StoppedMirror, TestMirror, noise};

const TAG: &str = "/v2/library/app/manifests/latest";
const MINUTE: Duration = Duration::from_mins(1);

/// A larder whose cached tag is just too old to be served unasked.
async fn aged(upstream: &Registry, options: &str) -> (TestMirror, PutImage) {
    let image = Image::new(1).layers(&[1000]).put(upstream, "library/app", "latest");
    let mirror = TestMirror::builder().upstream("docker.io", upstream).set(options).start().await;
    mirror.get(TAG).await.expect(200);
    mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
    upstream.forget_requests();
    mirror.clock().advance(MINUTE);
    (mirror, image)
}

#[track_caller]
fn assert_stale(answer: Answer, image: &PutImage) {
    let answer = answer.expect(200);
    assert_eq!(answer.body, image.manifest);
    assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=stale"));
    assert!(answer.header("warning").is_some_and(|warning| warning.starts_with("299 - \"")), "{:?}", answer.headers);
}

#[track_caller]
fn assert_fresh(answer: Answer, image: &PutImage) {
    let answer = answer.expect(200);
    assert_eq!(answer.body, image.manifest);
    assert_eq!(answer.header("warning"), None);
}

#[tokio::test]
async fn a_tag_whose_upstream_fails_is_served_stale_and_the_upstream_left_alone_for_a_while() {
    for fault in [Fault::status(500), Fault::status(503), Fault::Hang] {
        let upstream = Registry::start().await;
        let (mirror, image) = aged(&upstream, "upstream.\"docker.io\".header_timeout = \"200ms\"").await;
        upstream.on(Match::any("/manifests/"), fault);
        for _ in 0..20 {
            assert_stale(mirror.get(TAG).await, &image);
        }
        assert_eq!(upstream.requests().len(), 1, "one HEAD, and then none: {:#?}", upstream.requests());
        for _ in 0..2 {
            mirror.clock().advance(Duration::from_secs(1));
            assert_stale(mirror.get(TAG).await, &image);
        }
        assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
        mirror.clock().advance(Duration::from_hours(1));
        assert_stale(mirror.get(TAG).await, &image);
        assert_eq!(upstream.requests().len(), 2, "after a while it is asked again");

        upstream.heal();
        mirror.clock().advance(Duration::from_secs(5));
        assert_fresh(mirror.get(TAG).await, &image);
    }
}

/// After an hour of trouble a tag was asked for every five minutes, and so long it was old after the trouble was over.
#[tokio::test]
async fn an_upstream_in_trouble_is_asked_little_however_many_tags_are_old_and_all_are_fresh_five_seconds_after_its_end() {
    const TAGS: usize = 30;
    for fault in [Some(Fault::status(500)), Some(Fault::status(503)), None] {
        let upstream = Registry::start().await;
        let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.revalidate_wait = \"1m\"").start().await;
        let image = Image::new(1).put(&upstream, "library/app", "0");
        let tags: Vec<_> = (0..TAGS).map(|tag| image.tag_path(&tag.to_string())).collect();
        for (tag, path) in tags.iter().enumerate() {
            upstream.tag("library/app", &tag.to_string(), &image.digest);
            mirror.get(path).await.expect(200);
        }
        mirror.clock().advance(MINUTE);
        upstream.forget_requests();
        match &fault {
            Some(fault) => upstream.on(Match::any("/manifests/"), fault.clone()),
            None => upstream.stop().await,
        }
        for path in &tags {
            assert_stale(mirror.get(path).await, &image);
        }
        let once = upstream.requests().len();
        assert!(once <= TAGS, "{fault:?}: {once}");
        for _ in 0..10 {
            mirror.clock().advance(Duration::from_secs(3));
            for path in &tags {
                assert_stale(mirror.get(path).await, &image);
            }
        }
        let probes = upstream.requests().len() - once;
        assert!(fault.is_none() || (5..=20).contains(&probes), "{fault:?}: {probes} in half a minute");
        upstream.heal();
        upstream.restart().await;
        mirror.clock().advance(Duration::from_secs(5));
        for path in &tags {
            assert_fresh(mirror.get(path).await, &image);
        }
    }
}

#[tokio::test]
async fn a_tag_whose_upstream_is_down_is_served_stale() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "").await;
    upstream.stop().await;
    for answer in join_all((0..20).map(|_| mirror.get(TAG))).await {
        assert_stale(answer, &image);
    }
    upstream.restart().await;
    mirror.clock().advance(Duration::from_secs(5));
    assert_fresh(mirror.get(TAG).await, &image);
}

#[tokio::test]
async fn an_upstream_that_limits_the_rate_is_not_asked_before_the_time_it_names() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "").await;
    upstream.on(Match::any("/manifests/").times(1), Fault::answer(429, &[("retry-after", "300")], ""));
    assert_stale(mirror.get(TAG).await, &image);
    mirror.clock().advance(Duration::from_secs(290));
    for _ in 0..20 {
        assert_stale(mirror.get(TAG).await, &image);
    }
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
    mirror.clock().advance(Duration::from_secs(10));
    assert_fresh(mirror.get(TAG).await, &image);
}

#[tokio::test]
async fn a_tag_is_not_served_when_it_is_too_old() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "mirror.max_stale = \"1h\"").await;
    upstream.on(Match::any("/manifests/"), Fault::status(503));
    mirror.clock().advance(Duration::from_mins(58));
    assert_stale(mirror.get(TAG).await, &image);
    mirror.clock().advance(MINUTE * 2);
    mirror.get(TAG).await.expect(502);
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest, "a digest does not age");
}

#[tokio::test]
async fn a_404_and_a_denial_are_not_masked() {
    let upstream = Registry::start().await;
    let (mirror, _) = aged(&upstream, "").await;
    upstream.on(Match::any("/manifests/"), Fault::status(404));
    let answer = mirror.get(TAG).await.expect(404);
    assert_eq!(answer.header("warning"), None);

    let upstream = Registry::start().await;
    let (mirror, _) = aged(&upstream, "").await;
    upstream.on(Match::any("/manifests/"), Fault::status(403));
    mirror.get(TAG).await.expect(403);
}

/// Registries with several replicas answer HEAD from one that knows of the new manifest and GET from one that does not yet.
/// The tag was then forgotten and clients were told 404.
#[tokio::test]
async fn a_tag_that_moved_to_what_cannot_be_had_yet_is_served_as_it_was() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "").await;
    let moved = Image::new(2).put(&upstream, "library/app", "latest");
    upstream.on(Match::get(&moved.digest), Fault::status(404));
    assert_stale(mirror.get(TAG).await, &image);
    upstream.heal();
    mirror.clock().advance(MINUTE);
    assert_fresh(mirror.get(TAG).await, &moved);
}

/// What HEAD announced could not be verified, and every client asked for it again, which counts as a pull.
#[tokio::test]
async fn a_tag_that_moved_to_wrong_bytes_is_served_as_it_was_and_the_upstream_left_alone_for_a_while() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "").await;
    let moved = Image::new(3).put(&upstream, "library/app", "latest");
    upstream.on(Match::get(&moved.digest), Fault::Corrupt { at: 20 });
    for _ in 0..20 {
        assert_stale(mirror.get(TAG).await, &image);
    }
    assert_eq!(upstream.requests().len(), 2, "a HEAD and a GET: {:#?}", upstream.requests());
    upstream.heal();
    mirror.clock().advance(MINUTE);
    assert_fresh(mirror.get(TAG).await, &moved);
}

#[tokio::test]
async fn who_has_a_tag_does_not_wait_long_for_a_slow_upstream_and_the_question_goes_on() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "mirror.revalidate_wait = \"100ms\"").await;
    upstream.on(Match::head("/manifests/"), Fault::Latency(Duration::from_millis(600)));
    assert_stale(mirror.get(TAG).await, &image);
    // Each of these waits for the same HEAD, a while.
    let mut answer = mirror.get(TAG).await;
    while answer.header("warning").is_some() {
        assert_stale(answer, &image);
        answer = mirror.get(TAG).await;
    }
    assert_fresh(answer, &image);
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
}

#[tokio::test]
async fn who_has_a_tag_gets_it_although_the_upstream_hangs_for_ever() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "mirror.revalidate_wait = \"100ms\"").await;
    upstream.on(Match::head("/manifests/"), Fault::Hang);
    for answer in join_all((0..50).map(|_| mirror.get(TAG))).await {
        assert_stale(answer, &image);
    }
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
}

// === without the manifest ===

/// The manifest is evicted; what is known of the tag stays.
async fn without_manifest(mirror: TestMirror, image: &PutImage) -> StoppedMirror {
    let stopped = mirror.stop().await;
    let hex = image.digest.trim_start_matches("sha256:");
    std::fs::remove_file(stopped.cache_dir().join("blobs/sha256").join(&hex[..2]).join(hex)).unwrap();
    stopped
}

#[tokio::test]
async fn who_cannot_be_given_an_old_manifest_waits_for_the_upstream_like_any_other() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "mirror.revalidate_wait = \"50ms\"").await;
    let mirror = without_manifest(mirror, &image).await.start().await;
    upstream.on(Match::any("/manifests/"), Fault::Latency(Duration::from_millis(300)));
    assert_fresh(mirror.get(TAG).await, &image);
    assert_eq!([upstream.count("HEAD", TAG), upstream.count("GET", &image.digest)], [1, 1]);
}

#[tokio::test]
async fn who_may_not_be_given_a_tag_so_old_waits_for_the_upstream_like_any_other() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "mirror.revalidate_wait = \"50ms\"\nmirror.max_stale = \"1h\"").await;
    mirror.clock().advance(Duration::from_hours(2));
    upstream.on(Match::head("/manifests/"), Fault::Latency(Duration::from_millis(300)));
    assert_fresh(mirror.get(TAG).await, &image);
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
}

#[tokio::test]
async fn an_evicted_manifest_that_may_not_be_fetched_now_is_429_until_it_may() {
    for fresh in [true, false] {
        let upstream = Registry::start().await;
        let (mirror, image) = aged(&upstream, if fresh { "mirror.tag_ttl = \"1h\"" } else { "" }).await;
        let mirror = without_manifest(mirror, &image).await.start().await;
        upstream.on(Match::any("/manifests/").times(1), Fault::answer(429, &[("retry-after", "120")], ""));
        for _ in 0..5 {
            for path in [TAG, &image.manifest_path()] {
                let answer = mirror.get(path).await.expect(429);
                let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                assert!((1..=10).contains(&after), "podman sleeps for as long as it is told: {after}");
            }
        }
        assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
        mirror.clock().advance(MINUTE * 2);
        assert_fresh(mirror.get(TAG).await, &image);
    }
}

/// A tag that was taken never to move pointed to what neither the cache nor the upstream has any more: 404 for ever.
#[tokio::test]
async fn a_fresh_tag_whose_manifest_is_gone_everywhere_is_asked_for_again() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "mirror.tag_ttls = [\"*=forever\"]").await;
    let moved = Image::new(5).put(&upstream, "library/app", "latest");
    upstream.remove("library/app", &image.digest);
    let mirror = without_manifest(mirror, &image).await.start().await;
    for _ in 0..3 {
        assert_fresh(mirror.get(TAG).await, &moved);
    }
    let asked = [upstream.count("GET", &image.digest), upstream.count("HEAD", TAG), upstream.count("GET", &moved.digest)];
    assert_eq!(asked, [1, 1, 1], "{:#?}", upstream.requests());
}

#[tokio::test]
async fn a_tag_that_points_to_what_its_upstream_does_not_have_is_not_asked_for_each_time() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "").await;
    let mirror = without_manifest(mirror, &image).await.start().await;
    upstream.on(Match::get("/manifests/"), Fault::status(404));
    for _ in 0..10 {
        assert_eq!(mirror.get(TAG).await.expect(404).error_code().as_deref(), Some("MANIFEST_UNKNOWN"));
    }
    assert_eq!(upstream.requests().len(), 2, "a HEAD and a GET: {:#?}", upstream.requests());
    upstream.heal();
    mirror.clock().advance(Duration::from_secs(5));
    assert_fresh(mirror.get(TAG).await, &image);
}

#[tokio::test]
async fn a_tag_that_turns_out_to_be_deleted_after_all_clients_have_left_is_gone_for_the_next() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "mirror.revalidate_wait = \"50ms\"").await;
    upstream.untag("library/app", "latest");
    upstream.on(Match::head("/manifests/"), Fault::Latency(Duration::from_millis(300)));
    let mut answer = mirror.get(TAG).await;
    assert_eq!(answer.status, 200);
    while answer.status == 200 {
        assert_stale(answer, &image);
        answer = mirror.get(TAG).await;
    }
    answer.expect(404);
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
}

// === sealed ===

/// A larder that is told to ask nobody.
fn sealed(stopped: StoppedMirror) -> StoppedMirror {
    stopped.set("mirror.offline = true")
}

#[tokio::test]
async fn offline_what_is_cached_is_served_whatever_its_age_and_nobody_is_asked() {
    let upstream = Registry::start().await;
    let (mirror, image) = aged(&upstream, "mirror.max_stale = \"1h\"").await;
    let missing = upstream.put_blob("library/app", noise(9, 1000));
    let mirror = sealed(mirror.stop().await).start().await;
    mirror.clock().advance(Duration::from_hours(24 * 365));
    for path in [TAG, &image.manifest_path()] {
        let answer = mirror.get(path).await.expect(200);
        assert_eq!(answer.body, image.manifest);
        assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=offline"));
        assert_eq!(answer.header("warning"), None);
        mirror.head(path).await.expect(200);
    }
    let layer = mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
    assert_eq!(layer.body, image.layers[0].bytes);

    let answer = mirror.get("/v2/library/app/manifests/other").await.expect(404);
    assert_eq!(answer.error_code().as_deref(), Some("MANIFEST_UNKNOWN"));
    let path = format!("/v2/library/app/blobs/{missing}");
    assert_eq!(mirror.get(&path).await.expect(404).error_code().as_deref(), Some("BLOB_UNKNOWN"));
    mirror.head(&path).await.expect(404);
    assert!(upstream.requests().is_empty(), "{:#?}", upstream.requests());
}

#[tokio::test]
async fn a_larder_that_was_offline_asks_again_when_it_no_longer_is() {
    let upstream = Registry::start().await;
    let (mirror, _) = aged(&upstream, "").await;
    let mirror = sealed(mirror.stop().await).start().await;
    let moved = Image::new(4).put(&upstream, "library/app", "latest");
    mirror.get(TAG).await.expect(200);
    let mirror = mirror.stop().await.set("mirror.offline = false").start().await;
    assert_fresh(mirror.get(TAG).await, &moved);
}

#[tokio::test]
async fn a_sealed_larder_has_no_blob_of_which_it_knows_only_the_size() {
    let upstream = Registry::start().await;
    let image = Image::new(40).layers(&[30_000]).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let path = image.blob_path(&image.layers[0]);
    mirror.head(&path).await.expect(200);
    let sealed = mirror.stop().await.set("mirror.offline = true").start().await;
    sealed.get(&path).await.expect(404);
    assert_eq!(sealed.head(&path).await.status, 404);
}
