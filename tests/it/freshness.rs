//! For how long tags are fresh: by pattern, and however little may be asked.

use std::time::Duration;

use crate::support::{ANONYMOUS, Answer, Fault, Image, Match, Registry, Setup, TestMirror};

const MINUTE: Duration = Duration::from_mins(1);
const TAG: &str = "/v2/library/app/manifests/latest";

#[track_caller]
fn assert_hit(answer: Answer) {
    let answer = answer.expect(200);
    assert_eq!((answer.header("cache-status"), answer.header("warning")), (Some("larder; hit"), None));
}

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
    // Never in the last fifth of a TTL, where the upstream would be asked unawaited.
    for _ in 0..4 {
        for tag in ["latest", "v1", "v1.2.3", "edge"] {
            mirror.get(&path(tag)).await.expect(200);
            mirror.get(&format!("{}?ns=quay.io", path(tag))).await.expect(200);
        }
        mirror.clock().advance(Duration::from_secs(30));
    }
    let asked = |upstream: &Registry| ["latest", "v1", "v1.2.3", "edge"].map(|tag| upstream.count("HEAD", &path(tag)));
    assert_eq!(asked(&hub), [3, 0, 0, 1]);
    assert_eq!(asked(&quay), [3, 3, 0, 1]);
    mirror.get(&path("v1")).await.expect(200);
    assert_eq!(asked(&hub), [3, 1, 0, 1], "after two minutes");
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

// === as the budget shrinks ===

/// A registry that lets everyone have a hundred manifests in six hours.
async fn counting() -> Registry {
    Registry::with(Setup { budget: Some(100), ..Setup::default() }).await
}

#[tokio::test]
async fn a_tag_stays_fresh_for_longer_when_little_of_the_budget_is_left() {
    let upstream = counting().await;
    Image::new(8).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(TAG).await.expect(200);
    upstream.set_budget(ANONYMOUS, 20);
    mirror.clock().advance(MINUTE);
    let answer = mirror.get(TAG).await.expect(200);
    assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=revalidated"));
    // A fifth is left: three fifths of the way to twenty times the TTL, 12.4 minutes.
    for minutes in [1, 5, 6] {
        mirror.clock().advance(MINUTE * minutes);
        for _ in 0..3 {
            assert_hit(mirror.get(TAG).await);
        }
    }
    assert_eq!(upstream.count("HEAD", TAG), 1, "{:#?}", upstream.requests());
    upstream.set_budget(ANONYMOUS, 100);
    for (minutes, asked) in [(1, 2), (1, 3)] {
        mirror.clock().advance(MINUTE * minutes);
        let answer = mirror.get(TAG).await.expect(200);
        assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=revalidated"));
        assert_eq!(upstream.count("HEAD", TAG), asked, "with a full budget every TTL is as it was");
    }
    assert_eq!(upstream.count("GET", "/manifests/"), 1);
}

#[tokio::test]
async fn ttls_do_not_stretch_where_that_is_turned_off() {
    let upstream = counting().await;
    Image::new(9).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.stretch_below = 0").start().await;
    mirror.get(TAG).await.expect(200);
    upstream.set_budget(ANONYMOUS, 1);
    for asked in 1..=3 {
        mirror.clock().advance(MINUTE);
        mirror.get(TAG).await.expect(200);
        assert_eq!(upstream.count("HEAD", TAG), asked);
    }
}

#[tokio::test]
async fn with_nothing_left_nothing_is_asked_before_the_reset_and_what_is_cached_is_served_with_a_warning() {
    let upstream = counting().await;
    let image = Image::new(10).layers(&[1000]).put(&upstream, "library/app", "latest");
    Image::new(11).put(&upstream, "library/other", "latest");
    let mirror = TestMirror::of(&upstream).await;
    upstream.set_budget(ANONYMOUS, 1);
    mirror.get(TAG).await.expect(200);
    upstream.forget_requests();
    for minutes in [0, 1, 60, 240] {
        mirror.clock().advance(MINUTE * minutes);
        for path in ["/v2/library/other/manifests/latest", "/v2/library/app/manifests/other"] {
            let answer = mirror.get(path).await.expect(429);
            assert_eq!(answer.error_code().as_deref(), Some("TOOMANYREQUESTS"));
            let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=10).contains(&after), "podman sleeps for as long as it is told: {after}");
        }
        let answer = mirror.get(TAG).await.expect(200);
        assert_eq!((answer.body.clone(), answer.header("warning").is_some()), (image.manifest.clone(), minutes > 0));
        assert_hit(mirror.get(&image.manifest_path()).await);
    }
    assert_eq!(upstream.requests().len(), 0, "{:#?}", upstream.requests());
    mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
    assert_eq!(upstream.requests().len(), 1, "layers are not counted: {:#?}", upstream.requests());

    upstream.set_budget(ANONYMOUS, 100);
    mirror.clock().advance(MINUTE * 60);
    let answer = mirror.get(TAG).await.expect(200);
    assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=revalidated"));
    mirror.get("/v2/library/other/manifests/latest").await.expect(200);
}

// === ahead of time ===

/// A larder with a tag that has been asked for again since the upstream was.
async fn hot(upstream: &Registry) -> TestMirror {
    Image::new(5).put(upstream, "library/app", "latest");
    let mirror = TestMirror::of(upstream).await;
    mirror.get(TAG).await.expect(200);
    mirror.get(TAG).await.expect(200);
    upstream.forget_requests();
    mirror
}

#[tokio::test]
async fn no_client_waits_for_a_tag_that_is_asked_for_all_the_time_and_each_answer_is_worth_most_of_a_ttl() {
    let upstream = Registry::start().await;
    let mirror = hot(&upstream).await;
    for step in 1..=100 {
        mirror.clock().advance(Duration::from_secs(6));
        let before = mirror.checked("library/app", "latest");
        for _ in 0..3 {
            assert_hit(mirror.get(TAG).await);
        }
        if step % 8 == 0 {
            mirror.checked_after("library/app", "latest", before).await;
        }
        assert_eq!(upstream.requests().len(), step / 8, "one HEAD in 48 seconds");
    }
    assert_eq!(upstream.count("HEAD", TAG), 12);
}

#[tokio::test]
async fn nobody_waits_for_the_question_that_is_asked_ahead_of_time() {
    let upstream = Registry::start().await;
    let mirror = hot(&upstream).await;
    upstream.on(Match::head(TAG), Fault::Hang);
    mirror.clock().advance(Duration::from_secs(48));
    assert_hit(mirror.get(TAG).await);
    upstream.held(1).await;
    for _ in 0..20 {
        assert_hit(mirror.get(TAG).await);
    }
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
}

#[tokio::test]
async fn a_client_after_the_ttl_waits_for_the_question_under_way() {
    let upstream = Registry::start().await;
    let mirror = hot(&upstream).await;
    upstream.on(Match::head(TAG), Fault::Latency(Duration::from_millis(300)));
    mirror.clock().advance(Duration::from_secs(59));
    assert_hit(mirror.get(TAG).await);
    upstream.seen("HEAD", TAG, 1).await;
    mirror.clock().advance(Duration::from_secs(2));
    let answer = mirror.get(TAG).await.expect(200);
    assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=revalidated"));
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
}

#[tokio::test]
async fn a_tag_that_has_moved_is_there_before_the_old_one_expires() {
    let upstream = Registry::start().await;
    let mirror = hot(&upstream).await;
    let moved = Image::new(6).put(&upstream, "library/app", "latest");
    let before = mirror.checked("library/app", "latest");
    mirror.clock().advance(Duration::from_secs(48));
    assert_hit(mirror.get(TAG).await);
    mirror.checked_after("library/app", "latest", before).await;
    let answer = mirror.get(TAG).await.expect(200);
    assert_eq!(answer.body, moved.manifest);
    assert_hit(answer);
    assert_eq!([upstream.count("HEAD", TAG), upstream.count("GET", &moved.digest)], [1, 1]);
}

#[tokio::test]
async fn a_tag_that_was_deleted_is_gone_when_that_was_found_out_ahead_of_time() {
    let upstream = Registry::start().await;
    let mirror = hot(&upstream).await;
    upstream.untag("library/app", "latest");
    mirror.clock().advance(Duration::from_secs(48));
    let mut answer = mirror.get(TAG).await;
    while answer.status == 200 {
        assert_hit(answer);
        answer = mirror.get(TAG).await;
    }
    assert_eq!(answer.expect(404).error_code().as_deref(), Some("MANIFEST_UNKNOWN"));
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
}

#[tokio::test]
async fn who_asks_once_in_a_ttl_is_not_worth_a_question_ahead_of_time() {
    let upstream = Registry::start().await;
    Image::new(7).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(TAG).await.expect(200);
    // A question ahead of time would hang.
    upstream.on(Match::head(TAG).times(1), Fault::Hang);
    mirror.clock().advance(Duration::from_secs(50));
    assert_hit(mirror.get(TAG).await);
    upstream.heal();
    mirror.clock().advance(Duration::from_secs(10));
    let answer = mirror.get(TAG).await.expect(200);
    assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=revalidated"));
    assert_eq!(upstream.count("HEAD", TAG), 1, "{:#?}", upstream.requests());
}

#[tokio::test]
async fn an_upstream_that_fails_is_not_asked_again_before_the_tag_is_old() {
    let upstream = Registry::start().await;
    let mirror = hot(&upstream).await;
    upstream.on(Match::head(TAG), Fault::status(503));
    for seconds in [48, 6, 5] {
        mirror.clock().advance(Duration::from_secs(seconds));
        for _ in 0..5 {
            assert_hit(mirror.get(TAG).await);
        }
        upstream.seen("HEAD", TAG, 1).await;
    }
    mirror.clock().advance(Duration::from_secs(10));
    let answer = mirror.get(TAG).await.expect(200);
    assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=stale"));
    assert_eq!(upstream.requests().len(), 2, "{:#?}", upstream.requests());
}
