//! What a repository was proven to hold is believed for a day where not everyone may read it, and as long as it stands elsewhere.

use std::fs;
use std::time::Duration;

use futures_util::future::join_all;

use crate::support::{Answer, Auth, Fault, Image, Match, PutImage, Registry, Setup, StoppedMirror, TestMirror};

const HOUR: Duration = Duration::from_hours(1);

async fn private() -> Registry {
    Registry::with(Setup { auth: Auth::Basic { user: "bob", password: "canary-secret" }, ..Setup::default() }).await
}

fn logged_in(upstream: &Registry) -> StoppedMirror {
    TestMirror::builder().upstream("docker.io", upstream).login("docker.io", "bob", "canary-secret")
}

fn image(upstream: &Registry) -> PutImage {
    Image::new(1).layers(&[7_000]).put(upstream, "team/app", "latest")
}

/// What is asked for by its digest: the manifest, and a layer.
fn digests(image: &PutImage) -> [String; 2] {
    [image.manifest_path(), image.blob_path(&image.layers[0])]
}

/// A mirror that holds the image and has done with its fills, with a clean journal.
async fn pulled(mirror: StoppedMirror, upstream: &Registry, image: &PutImage) -> TestMirror {
    let mirror = mirror.start().await;
    for path in digests(image) {
        mirror.get(&path).await.expect(200);
    }
    let mirror = mirror.stop().await.start().await;
    assert!(mirror.holds(&image.digest) && mirror.holds(&image.layers[0].digest));
    upstream.forget_requests();
    mirror
}

/// What was asked by one who showed the password; before it there may be a challenge.
fn asked(upstream: &Registry) -> Vec<String> {
    let requests = upstream.requests().into_iter().filter(|request| request.authorization().is_some());
    requests.map(|request| format!("{} {}", request.method, request.path)).collect()
}

#[track_caller]
fn stale(answer: &Answer) {
    assert!(answer.header("warning").is_some_and(|warning| warning.starts_with("299 - \"")), "{:?}", answer.headers);
    assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=stale"));
}

#[tokio::test]
async fn with_credentials_a_repository_is_asked_again_after_a_day_once_for_all_who_wait() {
    let upstream = private().await;
    let image = image(&upstream);
    let mirror = pulled(logged_in(&upstream), &upstream, &image).await;
    mirror.clock().advance(23 * HOUR);
    for path in digests(&image) {
        assert_eq!(mirror.get(&path).await.expect(200).header("cache-status"), Some("larder; hit"));
    }
    assert_eq!(asked(&upstream), [""; 0]);
    for _ in 0..3 {
        mirror.clock().advance(2 * HOUR);
        upstream.forget_requests();
        for path in digests(&image) {
            upstream.on(Match::head(&path).times(1), Fault::Latency(Duration::from_millis(50)));
            let answers = join_all((0..10).map(|_| mirror.get(&path))).await;
            assert!(answers.iter().all(|answer| answer.status == 200));
            mirror.head(&path).await.expect(200);
        }
        assert_eq!(asked(&upstream), digests(&image).map(|path| format!("HEAD {path}")));
        mirror.clock().advance(22 * HOUR);
    }
}

#[tokio::test]
async fn without_credentials_and_with_0s_nobody_is_asked_again() {
    for login in [false, true] {
        let upstream = if login { private().await } else { Registry::start().await };
        let image = image(&upstream);
        let mirror = if login {
            logged_in(&upstream).set("mirror.proof_ttl = \"0s\"")
        } else {
            TestMirror::builder().upstream("docker.io", &upstream)
        };
        let mirror = pulled(mirror, &upstream, &image).await;
        mirror.clock().advance(24 * 365 * HOUR);
        for path in digests(&image) {
            assert_eq!(mirror.get(&path).await.expect(200).header("cache-status"), Some("larder; hit"));
            mirror.head(&path).await.expect(200);
        }
        assert!(upstream.requests().is_empty(), "{:#?}", upstream.requests());
    }
}

/// Access that was taken away is gone at once when it is found out, for this repository, and does not come back with an outage.
#[tokio::test]
async fn a_definitive_no_takes_the_right_away_at_once() {
    for code in [403, 404] {
        let upstream = private().await;
        let image = image(&upstream);
        let other = Image::new(1).layers(&[7_000]).put(&upstream, "team/other", "latest");
        let mirror = pulled(logged_in(&upstream), &upstream, &image).await;
        mirror.clock().advance(25 * HOUR);
        for path in digests(&other) {
            mirror.get(&path).await.expect(200);
        }
        upstream.on(Match::any("/team/app/"), Fault::status(code));
        for path in digests(&image) {
            mirror.get(&path).await.expect(code);
            mirror.head(&path).await.expect(code);
        }
        upstream.stop().await;
        mirror.clock().advance(HOUR);
        for path in digests(&image) {
            mirror.get(&path).await.expect(502);
            mirror.head(&path).await.expect(502);
        }
        for path in digests(&other) {
            assert_eq!(mirror.get(&path).await.expect(200).header("warning"), None);
        }
        upstream.heal();
        upstream.restart().await;
        mirror.clock().advance(HOUR);
        for path in digests(&image) {
            mirror.get(&path).await.expect(200);
        }
    }
}

#[tokio::test]
async fn an_upstream_in_trouble_does_not_fail_a_pull_for_a_week() {
    for fault in [Fault::status(503), Fault::answer(429, &[("retry-after", "60")], ""), Fault::status(401), Fault::Hang] {
        let upstream = private().await;
        let image = image(&upstream);
        let mirror = logged_in(&upstream).set("mirror.revalidate_wait = \"100ms\"");
        let mirror = pulled(mirror, &upstream, &image).await;
        mirror.clock().advance(25 * HOUR);
        upstream.on(Match::any(""), fault.clone());
        for path in digests(&image) {
            stale(&mirror.get(&path).await.expect(200));
            stale(&mirror.head(&path).await.expect(200));
        }
        let before = upstream.requests().len();
        for path in digests(&image) {
            stale(&mirror.get(&path).await.expect(200));
        }
        assert_eq!(upstream.requests().len(), before, "it is left alone for a while: {fault:?}");
        mirror.clock().advance(7 * 24 * HOUR);
        for path in digests(&image) {
            assert!(mirror.get(&path).await.status >= 400, "{fault:?}");
        }
        upstream.heal();
        upstream.release();
        for path in digests(&image) {
            // What was asked in the bad time may still be about to fail.
            let mut answer = mirror.get(&path).await;
            for _ in 0..100 {
                if answer.status == 200 {
                    break;
                }
                mirror.clock().advance(HOUR);
                answer = mirror.get(&path).await;
            }
            assert_eq!(answer.expect(200).header("warning"), None, "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_sealed_larder_believes_for_ever() {
    let upstream = private().await;
    let image = image(&upstream);
    let mirror = pulled(logged_in(&upstream), &upstream, &image).await.stop().await;
    let mirror = mirror.set("mirror.offline = true").start().await;
    mirror.clock().advance(24 * 365 * HOUR);
    for path in digests(&image) {
        assert_eq!(mirror.get(&path).await.expect(200).header("cache-status"), Some("larder; hit; detail=offline"));
    }
    assert!(upstream.requests().is_empty());
}

/// A HEAD for a tag that still points to a manifest says that the repository still holds the manifest.
#[tokio::test]
async fn a_tag_that_was_looked_at_again_proves_its_manifest_anew() {
    let upstream = private().await;
    let image = image(&upstream);
    let mirror = pulled(logged_in(&upstream), &upstream, &image).await;
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.clock().advance(25 * HOUR);
    upstream.forget_requests();
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.get(&image.manifest_path()).await.expect(200);
    assert_eq!(asked(&upstream), [format!("HEAD {}", image.tag_path("latest"))]);
}

#[tokio::test]
async fn where_head_says_nothing_the_manifest_is_fetched() {
    let upstream = private().await;
    let image = image(&upstream);
    let mirror = pulled(logged_in(&upstream), &upstream, &image).await;
    mirror.clock().advance(25 * HOUR);
    upstream.on(Match::head(""), Fault::status(405));
    for _ in 0..2 {
        assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest);
    }
    assert_eq!(asked(&upstream), ["HEAD", "GET"].map(|method| format!("{method} {}", image.manifest_path())));
}

// === tags and lists ===

#[tokio::test]
async fn a_cached_tag_and_a_cached_list_end_with_the_right_to_them() {
    for code in [403, 404] {
        let upstream = private().await;
        let image = image(&upstream);
        let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"x":1}]}"#;
        upstream.put_referrers("team/app", &image.digest, Some(index.into()));
        let mirror = pulled(logged_in(&upstream), &upstream, &image).await;
        let referrers = format!("/v2/team/app/referrers/{}", image.digest);
        let paths = [image.tag_path("latest"), "/v2/team/app/tags/list".to_owned()];
        for path in &paths {
            mirror.get(path).await.expect(200);
        }
        assert_eq!(mirror.get(&referrers).await.expect(200).text(), index);
        mirror.clock().advance(Duration::from_secs(61));
        upstream.on(Match::any(""), Fault::status(code));
        for path in &paths {
            mirror.get(path).await.expect(code);
        }
        // A registry without the referrers API answers 404 as well: there is nothing, then.
        let answer = mirror.get(&referrers).await.expect(if code == 404 { 200 } else { code });
        assert!(!answer.text().contains("\"x\""), "{}", answer.text());
        upstream.stop().await;
        mirror.clock().advance(Duration::from_secs(61));
        for path in &paths {
            mirror.get(path).await.expect(502);
        }
        assert!(!mirror.get(&referrers).await.text().contains("\"x\""));
    }
}

// === on disk ===

#[tokio::test]
async fn the_date_of_a_proof_outlives_a_restart_and_none_counts_as_old() {
    let upstream = private().await;
    let image = image(&upstream);
    let mirror = pulled(logged_in(&upstream), &upstream, &image).await;
    let now = mirror.clock().now().unix_millis();
    let stopped = mirror.stop().await;
    let file = stopped.cache_dir().join("records");
    let text = fs::read_to_string(&file).unwrap();
    let layer = &image.layers[0].digest;
    for (digest, size, kind) in [(layer, 7_000, "-"), (&image.digest, image.manifest.len(), image.media_type)] {
        let line = text.lines().rfind(|line| line.contains(digest.as_str())).unwrap();
        let date = line.strip_prefix(&format!("proof docker.io team/app {digest} {size} {kind} ")).expect(line);
        assert!((now - 60_000..=now).contains(&date.parse().unwrap()), "{line}");
    }

    let mirror = stopped.start().await;
    mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
    assert_eq!(asked(&upstream), [""; 0]);

    let stopped = mirror.stop().await;
    let undated =
        text.lines().map(|line| line.rsplit_once(' ').filter(|_| line.starts_with("proof")).map_or(line, |(all, _)| all));
    fs::write(&file, undated.collect::<Vec<_>>().join("\n") + "\n").unwrap();
    let mirror = stopped.start().await;
    for path in digests(&image) {
        mirror.get(&path).await.expect(200);
        mirror.get(&path).await.expect(200);
    }
    assert_eq!(asked(&upstream), digests(&image).map(|path| format!("HEAD {path}")));
}
