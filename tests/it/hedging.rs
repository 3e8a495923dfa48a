//! An address that lets one wait: the next is asked as well, and whichever answers first is heard.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::support::{Client, Fault, Image, Match, PATIENCE, PutImage, Registry, StoppedMirror, TestMirror, noise};

const REPOSITORY: &str = "library/app";
const TAG: &str = "/v2/library/app/manifests/latest";
/// Long before the first address is given up.
const SOON: Duration = Duration::from_secs(3);

/// Two registries with the same image.
async fn pair() -> (Registry, Registry, PutImage) {
    let (first, second) = (Registry::start().await, Registry::start().await);
    let image = Image::new(1).layers(&[300_000, 200_000, 100_000]);
    image.put(&first, REPOSITORY, "latest");
    let image = image.put(&second, REPOSITORY, "latest");
    (first, second, image)
}

fn before(first: &Registry, second: &Registry) -> StoppedMirror {
    TestMirror::builder()
        .upstream("docker.io", first)
        .set(&format!("upstream.\"docker.io\".fallbacks = [{:?}]", second.url()))
        .set("upstream.\"docker.io\".hedge_after = \"100ms\"")
        .set("upstream.\"docker.io\".header_timeout = \"10s\"")
}

fn hedges(mirror: &TestMirror) -> (u64, u64) {
    let series = |outcome| format!("larder_upstream_hedges_total{{upstream=\"docker.io\",outcome=\"{outcome}\"}}");
    (mirror.metric(&series("won")), mirror.metric(&series("lost")))
}

#[tokio::test]
async fn when_the_first_address_hangs_the_next_answers_and_is_asked_first_for_moments() {
    let (first, second, image) = pair().await;
    first.on(Match::any(""), Fault::Hang);
    let mirror = before(&first, &second).start().await;
    let began = Instant::now();
    assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(hedges(&mirror), (1, 0));
    let dropped = timeout(PATIENCE, async {
        while first.held_now() > 0 {
            tokio::task::yield_now().await;
        }
    });
    assert!(dropped.await.is_ok(), "the slower one is not waited for");

    for layer in &image.layers[..2] {
        assert_eq!(mirror.get(&image.blob_path(layer)).await.expect(200).body, layer.bytes);
    }
    assert_eq!(first.requests().len(), 1, "nobody else waits for it so soon");
    first.heal();
    mirror.clock().advance(Duration::from_secs(5));
    mirror.get(&image.blob_path(&image.layers[2])).await.expect(200);
    assert_eq!(first.requests().len(), 2, "and then it is the first again");
    assert_eq!(second.count("GET", &image.layers[2].digest), 0);
}

#[tokio::test]
async fn a_blob_whose_first_address_hangs_comes_once_from_the_next() {
    let (first, second, image) = pair().await;
    let layer = &image.layers[0];
    first.on(Match::get(&layer.digest), Fault::Hang);
    let mirror = before(&first, &second).start().await;
    let path = image.blob_path(layer);
    let answers = futures_util::future::join_all((0..5).map(|_| mirror.get(&path))).await;
    for answer in answers {
        assert_eq!(answer.expect(200).body, layer.bytes);
    }
    assert_eq!((first.count("GET", &layer.digest), second.count("GET", &layer.digest)), (1, 1));
    assert_eq!(first.bytes_sent() + second.bytes_sent(), 300_000);
}

#[tokio::test]
async fn what_goes_wrong_where_one_was_asked_beside_the_first_is_never_the_answer() {
    for fault in [429, 404, 403, 503, 500].map(Fault::status) {
        let (first, second, image) = pair().await;
        first.on(Match::get("/manifests/").times(1), Fault::Latency(Duration::from_millis(250)));
        first.on(Match::get("/blobs/").times(1), vec![Fault::Latency(Duration::from_millis(250)), Fault::status(404)]);
        second.on(Match::any(""), fault.clone());
        let mirror = before(&first, &second).start().await;
        assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest, "{fault:?}");
        assert_eq!(hedges(&mirror), (0, 1), "{fault:?}");
        mirror.get(&image.blob_path(&image.layers[0])).await.expect(404);
        assert_eq!(mirror.get(&image.blob_path(&image.layers[1])).await.expect(200).body, image.layers[1].bytes);
    }
}

#[tokio::test]
async fn where_nobody_answers_the_client_is_told_what_the_first_one_did() {
    for (fault, status) in [(Fault::Hang, 504), (Fault::status(503), 502), (Fault::status(500), 502)] {
        let (first, second, _) = pair().await;
        first.on(Match::any(""), vec![Fault::Latency(Duration::from_millis(300)), fault]);
        second.on(Match::any(""), Fault::answer(429, &[("retry-after", "60")], ""));
        let mirror = before(&first, &second).set("upstream.\"docker.io\".header_timeout = \"500ms\"").start().await;
        mirror.get(TAG).await.expect(status);
    }
}

#[tokio::test]
async fn an_address_that_hangs_alone_is_a_504_in_time() {
    let (first, second, _) = pair().await;
    for registry in [&first, &second] {
        registry.on(Match::any(""), Fault::Hang);
    }
    let mirror = before(&first, &second).set("upstream.\"docker.io\".header_timeout = \"500ms\"").start().await;
    let began = Instant::now();
    mirror.get(TAG).await.expect(504);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn one_blob_that_hangs_holds_up_no_other() {
    let upstream = Registry::start().await;
    let hanging: Vec<_> = (0..4).map(|seed| upstream.put_blob(REPOSITORY, noise(10 + seed, 1000))).collect();
    let others: Vec<_> = (0..20).map(|seed| upstream.put_blob(REPOSITORY, noise(20 + seed, 1000))).collect();
    for digest in &hanging {
        upstream.on(Match::get(digest), Fault::Hang);
    }
    let mirror = TestMirror::of(&upstream).await;
    let path = |digest: &str| format!("/v2/{REPOSITORY}/blobs/{digest}");
    let urls: Vec<_> = hanging.iter().map(|digest| mirror.url(&path(digest))).collect();
    let hung: Vec<_> = urls.into_iter().map(|url| tokio::spawn(async move { Client::h1().get(url).await })).collect();
    upstream.held(4).await;
    let began = Instant::now();
    for digest in &others {
        mirror.get(&path(digest)).await.expect(200);
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(upstream.held_now(), 4);
    hung.iter().for_each(tokio::task::JoinHandle::abort);
}
