//! Who may read a digest: bytes are shared by all repositories, the right to them is not.

use crate::support::{Fault, Image, Match, Registry, TestMirror, noise, stream};

fn path(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

fn asked(upstream: &Registry) -> Vec<String> {
    let requests = upstream.requests().into_iter();
    requests.map(|request| format!("{} {} {}", request.method, request.path, request.range().unwrap_or_default())).collect()
}

#[tokio::test]
async fn another_repository_is_asked_for_the_first_byte_and_then_served_what_is_here() {
    let upstream = Registry::start().await;
    let blob = noise(1, 300_000);
    let digest = upstream.put_blob("team/one", blob.clone());
    upstream.put_blob("team/two", blob.clone());
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&path("team/one", &digest)).await.expect(200);
    upstream.forget_requests();
    for _ in 0..3 {
        assert_eq!(mirror.get(&path("team/two", &digest)).await.expect(200).body, blob);
    }
    assert_eq!(asked(&upstream), [format!("GET {} bytes=0-0", path("team/two", &digest))], "once; then it is known");
}

#[tokio::test]
async fn a_repository_that_does_not_hold_a_blob_does_not_get_it_because_it_is_cached() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob("team/one", noise(2, 300_000));
    upstream.put_blob("team/two", "something else");
    let mirror = TestMirror::of(&upstream).await;
    let before = mirror.get(&path("team/two", &digest)).await.expect(404);
    mirror.get(&path("team/one", &digest)).await.expect(200);
    for _ in 0..2 {
        let answer = mirror.get(&path("team/two", &digest)).await.expect(404);
        assert_eq!(answer.body, before.body, "nothing tells that the bytes are here");
        assert_eq!(answer.headers.get("cache-status"), before.headers.get("cache-status"));
        mirror.head(&path("team/two", &digest)).await.expect(404);
        mirror.clock().advance(std::time::Duration::from_secs(10));
    }
}

#[tokio::test]
async fn another_repository_joins_a_fill_when_its_upstream_has_said_that_it_may() {
    let upstream = Registry::start().await;
    let blob = noise(3, 600_000);
    let digest = upstream.put_blob("team/one", blob.clone());
    upstream.put_blob("team/two", blob.clone());
    upstream.put_blob("team/three", "something else");
    upstream.on(Match::get(&digest).times(1), Fault::Gate { after: 300_000 });
    let mirror = TestMirror::of(&upstream).await;
    let mut first = stream(mirror.url(&path("team/one", &digest))).await;
    assert_eq!(first.take(200_000).await, blob.slice(..200_000));

    mirror.get(&path("team/three", &digest)).await.expect(404);
    let mut second = stream(mirror.url(&path("team/two", &digest))).await;
    assert_eq!(second.take(200_000).await, blob.slice(..200_000));
    let two = asked(&upstream).into_iter().filter(|line| line.contains("/team/two/"));
    assert_eq!(two.collect::<Vec<_>>(), [format!("GET {} bytes=0-0", path("team/two", &digest))]);

    upstream.release();
    assert_eq!(first.rest().await.expect(200).body, blob.slice(200_000..));
    assert_eq!(second.rest().await.expect(200).body, blob.slice(200_000..));
    assert_eq!(upstream.count("GET", &path("team/one", &digest)), 1);
}

#[tokio::test]
async fn a_fill_that_fails_for_one_repository_is_begun_by_the_other_that_waits_for_it() {
    let upstream = Registry::start().await;
    let blob = noise(4, 300_000);
    upstream.put_blob("team/one", "something else");
    let digest = upstream.put_blob("team/two", blob.clone());
    upstream.on(Match::get(path("team/one", &digest)), Fault::Latency(std::time::Duration::from_millis(100)));
    let mirror = TestMirror::of(&upstream).await;
    let (one, two) = (path("team/one", &digest), path("team/two", &digest));
    let (one, two) = tokio::join!(mirror.get(&one), async {
        upstream.seen("GET", &one, 1).await;
        mirror.get(&two).await
    });
    one.expect(404);
    assert_eq!(two.expect(200).body, blob);
}

#[tokio::test]
async fn a_manifest_that_names_a_blob_gives_no_right_to_it() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob("team/one", noise(5, 300_000));
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&path("team/one", &digest)).await.expect(200);
    let empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{empty}","size":2}},
        "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":300000}}]}}"#
    );
    upstream.put_manifest("team/two", Some("latest"), "application/vnd.oci.image.manifest.v1+json", manifest);
    mirror.get("/v2/team/two/manifests/latest").await.expect(200);
    mirror.get(&path("team/two", &digest)).await.expect(404);
    mirror.head(&path("team/two", &digest)).await.expect(404);
}

// === HEAD ===

#[tokio::test]
async fn head_of_a_cold_blob_tells_the_size_and_fetches_nothing() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob("team/one", noise(6, 300_000));
    let mirror = TestMirror::of(&upstream).await;
    let head = mirror.head(&path("team/one", &digest)).await.expect(200);
    assert_eq!(head.header("content-length"), Some("300000"));
    assert_eq!(head.header("docker-content-digest"), Some(digest.as_str()));
    assert_eq!(asked(&upstream), [format!("HEAD {} ", path("team/one", &digest))]);
    mirror.get(&path("team/one", &digest)).await.expect(200);
    assert_eq!(upstream.requests().len(), 2, "and the GET asks once: {:#?}", upstream.requests());
}

#[tokio::test]
async fn an_upstream_that_refuses_head_is_asked_for_one_byte() {
    for code in [401, 403, 404, 405] {
        let upstream = Registry::start().await;
        let blob = noise(7, 300_000);
        let digest = upstream.put_blob("team/one", blob.clone());
        upstream.put_blob("team/two", blob.clone());
        upstream.on(Match::head("/blobs/"), Fault::status(code));
        let mirror = TestMirror::of(&upstream).await;
        let head = mirror.head(&path("team/one", &digest)).await.expect(200);
        assert_eq!(head.header("content-length"), Some("300000"), "HEAD is answered {code}");
        let byte = format!("GET {} bytes=0-0", path("team/one", &digest));
        // Who says 401 and not what it wants may say so at `/v2/`.
        let lines = || asked(&upstream).into_iter().filter(|line| *line != "GET /v2/ ").collect::<Vec<_>>();
        assert_eq!(lines(), [format!("HEAD {} ", path("team/one", &digest)), byte]);

        mirror.get(&path("team/one", &digest)).await.expect(200);
        upstream.forget_requests();
        assert_eq!(mirror.get(&path("team/two", &digest)).await.expect(200).body, blob);
        let byte = format!("GET {} bytes=0-0", path("team/two", &digest));
        assert_eq!(lines(), [byte]);

        // One that refuses is not asked so again; one that says it is not there may say other things of other blobs.
        let absent = crate::support::digest_of(b"absent");
        upstream.forget_requests();
        mirror.head(&path("team/two", &absent)).await.expect(404);
        let byte = format!("GET {} bytes=0-0", path("team/two", &absent));
        let head = matches!(code, 401 | 404).then(|| format!("HEAD {} ", path("team/two", &absent)));
        assert_eq!(lines(), head.into_iter().chain([byte]).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn head_of_a_blob_that_is_not_there_is_a_404_that_is_remembered_for_a_moment() {
    let upstream = Registry::start().await;
    upstream.put_blob("team/one", "something else");
    let blob = noise(8, 1000);
    let digest = crate::support::digest_of(&blob);
    let mirror = TestMirror::of(&upstream).await;
    mirror.head(&path("team/one", &digest)).await.expect(404);
    let asked = upstream.requests().len();
    mirror.head(&path("team/one", &digest)).await.expect(404);
    let answer = mirror.get(&path("team/one", &digest)).await.expect(404);
    assert_eq!(answer.error_code().as_deref(), Some("BLOB_UNKNOWN"));
    assert_eq!(upstream.requests().len(), asked);

    upstream.put_blob("team/one", blob.clone());
    mirror.clock().advance(std::time::Duration::from_secs(5));
    assert_eq!(mirror.get(&path("team/one", &digest)).await.expect(200).body, blob);
}

/// Clients try a digest both ways. A 404 for the one way took back what was proven for the other, and with the upstream down
/// nothing was left.
#[tokio::test]
async fn that_a_digest_is_no_blob_says_nothing_of_the_manifest_and_the_other_way_round() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[70_000]).put(&upstream, "library/alpine", "latest");
    let layer = &image.layers[0];
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.get(&image.blob_path(layer)).await.expect(200);
    assert_eq!(mirror.get(&path("library/alpine", &image.digest)).await.status, 404);
    assert_eq!(mirror.head(&format!("/v2/library/alpine/manifests/{}", layer.digest)).await.status, 404);
    let mirror = mirror.stop().await.start().await;
    upstream.stop().await;
    assert_eq!(mirror.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest);
    assert_eq!(mirror.get(&image.blob_path(layer)).await.expect(200).body, layer.bytes);
}
