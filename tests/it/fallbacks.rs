//! Several addresses for one upstream: the first that answers is asked, also in the middle of a body.

use std::time::Duration;

use crate::support::{ANONYMOUS, Auth, Fault, Image, Like, Match, PutImage, Registry, Setup, StoppedMirror, TestMirror, noise};

const REPOSITORY: &str = "library/app";
const TAG: &str = "/v2/library/app/manifests/latest";

/// Two registries with the same image.
async fn pair() -> (Registry, Registry, PutImage) {
    let (first, second) = (Registry::start().await, Registry::start().await);
    let image = Image::new(1).layers(&[300_000]);
    image.put(&first, REPOSITORY, "latest");
    let image = image.put(&second, REPOSITORY, "latest");
    (first, second, image)
}

fn before(first: &Registry, second: &Registry) -> StoppedMirror {
    let fallbacks = format!("upstream.\"docker.io\".fallbacks = [{:?}]", second.url());
    TestMirror::builder().upstream("docker.io", first).set(&fallbacks)
}

fn blob(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

#[tokio::test]
async fn while_the_first_answers_no_other_is_asked() {
    let (first, second, image) = pair().await;
    let mirror = before(&first, &second).start().await;
    mirror.get(TAG).await.expect(200);
    mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
    assert_eq!(second.requests().len(), 0);
}

#[tokio::test]
async fn when_the_first_fails_the_next_is_asked_and_the_client_does_not_notice() {
    for fault in [Fault::status(500), Fault::status(503), Fault::status(429), Fault::Reset { after: 0 }] {
        let (first, second, image) = pair().await;
        first.on(Match::any(""), fault);
        let mirror = before(&first, &second).start().await;
        assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest);
        for blob in image.blobs() {
            assert_eq!(mirror.get(&image.blob_path(blob)).await.expect(200).body, blob.bytes);
        }
    }
}

#[tokio::test]
async fn an_address_that_fails_three_times_in_a_row_is_left_alone_and_one_request_tries_whether_it_is_back() {
    let (first, second, _) = pair().await;
    let digests: Vec<_> = (0..20)
        .map(|seed| {
            let bytes = noise(10 + seed, 1000);
            first.put_blob(REPOSITORY, bytes.clone());
            second.put_blob(REPOSITORY, bytes)
        })
        .collect();
    let mut digests = digests.iter();
    first.on(Match::any(""), Fault::status(503));
    let mirror = before(&first, &second).start().await;
    for digest in digests.by_ref().take(8) {
        mirror.get(&blob(digest)).await.expect(200);
    }
    assert_eq!(first.requests().len(), 3, "after that it is left alone");

    mirror.clock().advance(Duration::from_secs(1));
    for digest in digests.by_ref().take(3) {
        mirror.get(&blob(digest)).await.expect(200);
    }
    assert_eq!(first.requests().len(), 4, "one tries");

    first.heal();
    first.forget_requests();
    second.forget_requests();
    mirror.clock().advance(Duration::from_secs(5));
    for digest in digests.by_ref().take(5) {
        mirror.get(&blob(digest)).await.expect(200);
    }
    assert_eq!((first.requests().len(), second.requests().len()), (5, 0), "it is back");
}

#[tokio::test]
async fn a_transfer_that_breaks_is_continued_at_the_next_address() {
    let (first, second, _) = pair().await;
    let bytes = noise(2, 3_000_000);
    let digest = first.put_blob(REPOSITORY, bytes.clone());
    second.put_blob(REPOSITORY, bytes.clone());
    // It is cut once and then gone.
    first.on(Match::get(&digest).times(1), Fault::Cut { after: 1_500_000 });
    first.on(Match::get(&digest), Fault::status(503));
    let mirror = before(&first, &second).start().await;
    assert_eq!(mirror.get(&blob(&digest)).await.expect(200).body, bytes);
    let requests = second.requests();
    assert_eq!(requests.len(), 1, "{requests:#?}");
    assert_eq!(requests[0].range(), Some("bytes=1500000-"));
}

#[tokio::test]
async fn an_address_that_answers_and_breaks_off_every_blob_is_left_for_the_next() {
    let (first, second, _) = pair().await;
    let bytes = noise(3, 600_000);
    let digest = first.put_blob(REPOSITORY, bytes.clone());
    second.put_blob(REPOSITORY, bytes.clone());
    first.on(Match::get(&digest), Fault::Cut { after: 10_000 });
    let mirror = before(&first, &second).start().await;
    assert_eq!(mirror.get(&blob(&digest)).await.expect(200).body, bytes);
    assert_eq!(first.count("GET", &digest), 3);
    assert_eq!(second.requests()[0].range(), Some("bytes=30000-"));
    first.heal();
    mirror.get(TAG).await.expect(200);
    assert_eq!(first.count("GET", TAG), 1, "for everything else it is still asked");
}

/// After three attempts nobody got any blob for five seconds, and then for as long as a client insisted on this one.
#[tokio::test]
async fn a_blob_that_always_breaks_off_keeps_nobody_from_another() {
    let upstream = Registry::start().await;
    let poisoned = upstream.put_blob(REPOSITORY, noise(4, 600_000));
    let image = Image::new(5).layers(&[1000]).put(&upstream, REPOSITORY, "latest");
    upstream.on(Match::get(&poisoned), Fault::Cut { after: 10_000 });
    let mirror = TestMirror::of(&upstream).await;
    let url = blob(&poisoned);
    let (_, ()) = tokio::join!(mirror.stream(&url), async {
        upstream.seen("GET", &poisoned, 4).await;
        mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
    });
}

#[tokio::test]
async fn what_is_refused_without_asking_does_not_count_as_the_one_that_tries() {
    let hub = Registry::like(Like::DockerHub).await;
    let image = Image::new(6).layers(&[1000, 2000]).put(&hub, REPOSITORY, "latest");
    let mirror = TestMirror::of(&hub).await;
    hub.set_budget(ANONYMOUS, 1);
    mirror.get(TAG).await.expect(200);
    hub.on(Match::any(""), Fault::status(503));
    mirror.get(&image.blob_path(&image.layers[0])).await.expect(502);
    hub.heal();
    mirror.clock().advance(Duration::from_secs(5));
    mirror.get("/v2/library/app/manifests/other").await.expect(429);
    mirror.get(&image.blob_path(&image.layers[1])).await.expect(200);
}

#[tokio::test]
async fn a_no_is_believed_of_the_first_address_only() {
    let (first, second, image) = pair().await;
    first.untag(REPOSITORY, "latest");
    let mirror = before(&first, &second).start().await;
    mirror.get(TAG).await.expect(404);
    assert_eq!(second.requests().len(), 0, "where the first says no, nobody else is asked");

    first.tag(REPOSITORY, "latest", &image.digest);
    mirror.clock().advance(Duration::from_secs(10));
    mirror.get(TAG).await.expect(200);
    second.untag(REPOSITORY, "latest");
    first.stop().await;
    mirror.clock().advance(Duration::from_mins(2));
    let answer = mirror.get(TAG).await.expect(200);
    assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=stale"), "a copy that lacks it says nothing of it");
    mirror.get("/v2/library/app/manifests/other").await.expect(502);
}

#[tokio::test]
async fn credentials_go_to_another_address_only_if_it_is_listed() {
    let auth = Auth::Basic { user: "bob", password: "canary-of-bob" };
    for listed in [false, true] {
        let (first, open) = (Registry::start().await, Registry::start().await);
        let closed = Registry::with(Setup { auth: auth.clone(), ..Setup::default() }).await;
        for registry in [&first, &open, &closed] {
            Image::new(1).put(registry, REPOSITORY, "latest");
        }
        first.stop().await;
        let mut mirror = TestMirror::builder().upstream("docker.io", &first).login("docker.io", "bob", "canary-of-bob");
        let fallbacks = [&closed, &open].map(Registry::url);
        mirror = mirror.set(&format!("upstream.\"docker.io\".fallbacks = {fallbacks:?}"));
        if listed {
            mirror = mirror.set(&format!("upstream.\"docker.io\".token_hosts = [\"{}\"]", closed.address()));
        }
        let mirror = mirror.start().await;
        let answer = mirror.get(TAG).await;
        assert!(open.requests().iter().all(|request| request.authorization().is_none()));
        let shown = closed.requests().iter().any(|request| request.authorization().is_some());
        assert_eq!(shown, listed);
        answer.expect(200);
        assert_eq!(open.requests().is_empty(), listed, "the no of one that does not know us is no reason not to ask the next");
    }
}
