//! larder behind larder: a chain works as one would, and a ring is told to be one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::net::TcpSocket;

use crate::support::{Answer, Client, Fault, Image, Match, MultiArch, PutImage, Registry, TestMirror, digest_of, noise};

/// An address that a larder can be told of before it listens there. While the socket lives, nobody else is given it.
fn reserve() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A larder that takes what listens at `upstream` for Docker Hub.
async fn before(upstream: SocketAddr, listen: Option<SocketAddr>) -> TestMirror {
    let mirror = TestMirror::builder().set(&format!("upstream.\"docker.io\".url = \"http://{upstream}\""));
    match listen {
        Some(address) => mirror.set(&format!("server.listen = \"{address}\"")).start().await,
        None => mirror.start().await,
    }
}

/// Everything that can be asked of a repository.
fn questions() -> [String; 5] {
    let digest = digest_of(b"anything");
    [
        "manifests/latest".to_owned(),
        format!("manifests/{digest}"),
        format!("blobs/{digest}"),
        "tags/list".to_owned(),
        format!("referrers/{digest}"),
    ]
    .map(|rest| format!("/v2/library/alpine/{rest}"))
}

#[track_caller]
fn told_of_the_loop(answer: Answer) {
    let answer = answer.expect(508);
    assert_eq!(answer.error_code().as_deref(), Some("UNAVAILABLE"));
    let message = "the upstream leads back to larder itself; its url must be the registry's own";
    assert_eq!(answer.json()["errors"][0]["message"], message);
}

/// Cold questions are answered at once and not by a time limit, the tenth like the first.
async fn goes_round_in_circles(mirror: &TestMirror) {
    let begun = Instant::now();
    for path in questions() {
        told_of_the_loop(mirror.get(&path).await);
        assert_eq!(mirror.head(&path).await.status, 508, "{path}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

// === beside each other ===

/// Only the first had come too far, or stood in a line that was too long; the others were told the same.
#[tokio::test]
async fn what_is_said_of_one_is_not_told_to_those_who_wait_with_him() {
    let asked = |image: &PutImage| {
        let (tags, referrers) =
            ("/v2/library/alpine/tags/list".to_owned(), format!("/v2/library/alpine/referrers/{}", image.digest));
        [image.manifest_path(), image.tag_path("latest"), image.blob_path(&image.layers[0]), tags, referrers]
    };
    for which in 0..5 {
        let upstream = Registry::start().await;
        let image = Image::new(1).layers(&[100_000]).put(&upstream, "library/alpine", "latest");
        upstream.on(Match::any("/v2/").times(1), [Fault::Latency(Duration::from_millis(200)), Fault::status(508)]);
        let mirror = TestMirror::of(&upstream).await;
        let path = &asked(&image)[which];
        let mut told: Vec<u16> = join_all((0..10).map(async |_| mirror.get(path).await.status)).await;
        told.sort_unstable();
        assert_eq!((&told[..9], told[9]), (&[200; 9][..], 508), "{path}");
    }
}

// === rings ===

#[tokio::test]
async fn a_larder_that_is_its_own_upstream_says_so_at_once() {
    let (_reserved, address) = reserve();
    let mirror = before(address, Some(address)).await;
    goes_round_in_circles(&mirror).await;
}

#[tokio::test]
async fn two_larders_in_a_ring_say_so_at_once() {
    let (_a, a) = reserve();
    let (_b, b) = reserve();
    let (a, b) = (before(b, Some(a)).await, before(a, Some(b)).await);
    goes_round_in_circles(&a).await;
    goes_round_in_circles(&b).await;
}

#[tokio::test]
async fn a_request_that_comes_round_is_refused_before_anything_else() {
    let upstream = Registry::start().await;
    Image::new(1).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get("/v2/library/alpine/manifests/latest").await.expect(200);
    let own = upstream.requests()[0].header("via").unwrap().to_owned();
    assert!(own.starts_with("1.1 larder-"), "{own}");
    for path in ["/v2/", "/nonsense", "/v2/library/alpine/manifests/latest", "/v2/x/blobs/sha256:1?ns=docker.io"] {
        let answer = mirror.get_with(path, &[("via", &format!("1.1 other, {own}"))]).await.expect(508);
        assert!(answer.json()["errors"][0]["message"].as_str().unwrap().contains("the url of an upstream leads back"), "{path}");
    }
    let put = Client::h1().request(http::Method::PUT, mirror.url("/v2/x/manifests/y"), &[("via", &own)]).await;
    assert_eq!(put.status, 508);
    assert_eq!(mirror.get_with("/v2/", &[("via", "1.1 larder-0123456789abcdef")]).await.status, 200, "another larder's");
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn via_is_carried_on() {
    let upstream = Registry::start().await;
    let image = Image::new(2).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let client = [("via", "1.0 fred, 1.1 cache.example (x)")];
    mirror.get_with(&image.tag_path("latest"), &client).await.expect(200);
    mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
    let via: Vec<String> = upstream.requests().iter().map(|request| request.header("via").unwrap().to_owned()).collect();
    assert!(via[1].starts_with("1.1 larder-") && !via[1].contains(','), "{via:?}");
    assert_eq!(via[0], format!("1.0 fred, 1.1 cache.example, {}", via[1]));
}

#[tokio::test]
async fn who_has_come_too_far_spoils_nothing_for_others() {
    let registry = Registry::start().await;
    let image = Image::new(4).put(&registry, "library/alpine", "latest");
    let inner = TestMirror::of(&registry).await;
    let outer = before(inner.address(), None).await;
    let far = format!("{}, 1.1 {}", ["1.1 x"; 100].join(", "), "x".repeat(2_000));
    outer.get_with(&image.tag_path("latest"), &[("via", &far)]).await.expect(200);
    assert_eq!(registry.requests()[0].header("via").unwrap().split(',').count(), 9);
    outer.clock().advance(Duration::from_mins(1));
    inner.clock().advance(Duration::from_mins(1));
    outer.get_with(&image.tag_path("latest"), &[("via", &far)]).await.expect(200);
    assert_eq!(outer.get(&image.tag_path("latest")).await.expect(200).header("warning"), None);
}

// === chains ===

#[tokio::test]
async fn a_pull_through_two_larders_asks_the_registry_once_for_each_thing() {
    let registry = Registry::start().await;
    let index = MultiArch::new(3).layers(&[70_000]).put(&registry, "library/alpine", "latest");
    let image = &index.images[0];
    let inner = TestMirror::of(&registry).await;
    let outer = before(inner.address(), None).await;
    let things = [
        (index.tag_path("latest"), &index.manifest),
        (index.manifest_path(), &index.manifest),
        (image.manifest_path(), &image.manifest),
        (image.blob_path(&image.config), &image.config.bytes),
        (image.blob_path(&image.layers[0]), &image.layers[0].bytes),
    ];
    let cold = "larder; fwd=miss; stored, larder; fwd=miss; stored";
    for (i, (path, body)) in things.iter().enumerate() {
        let answer = outer.get(path).await.expect(200);
        assert_eq!(answer.body, *body, "{path}");
        let expected = if i == 1 { "larder; hit" } else { cold };
        assert_eq!(answer.header("cache-status"), Some(expected), "{path}");
    }
    for (path, body) in &things {
        assert_eq!(outer.get(path).await.expect(200).body, *body, "{path}");
    }
    let asked = registry.requests();
    assert_eq!(asked.len(), 4, "{asked:#?}");
    assert!(asked.iter().all(|request| request.method == "GET"));
    assert!(asked.iter().all(|request| request.header("via").unwrap().matches("larder-").count() == 2));

    // A blob is committed after its last byte has gone out.
    for blob in [&image.config, &image.layers[0]] {
        inner.kept(&blob.digest).await;
    }
    let other = before(inner.address(), None).await;
    for (i, (path, body)) in things.iter().enumerate() {
        let answer = other.get(path).await.expect(200);
        assert_eq!(answer.body, *body, "{path}");
        let expected = if i == 1 { "larder; hit" } else { "larder; hit, larder; fwd=miss; stored" };
        assert_eq!(answer.header("cache-status"), Some(expected), "{path}");
    }
    assert_eq!(registry.requests().len(), 4, "the inner one has it all");
}

#[tokio::test]
async fn heads_and_ranges_of_cold_blobs_go_through_two_larders() {
    let registry = Registry::start().await;
    let blob = noise(4, 3_000_000);
    let digest = registry.put_blob("library/alpine", blob.clone());
    let inner = TestMirror::of(&registry).await;
    let outer = before(inner.address(), None).await;
    let path = format!("/v2/library/alpine/blobs/{digest}");
    let head = outer.head(&path).await.expect(200);
    assert_eq!(head.header("content-length"), Some("3000000"));
    assert_eq!(head.header("docker-content-digest"), Some(digest.as_str()));
    assert_eq!((registry.count("HEAD", &digest), registry.count("GET", &digest)), (1, 0));
    for (range, bytes) in
        [("bytes=0-9", 0..10), ("bytes=1500000-1999999", 1_500_000..2_000_000), ("bytes=-5", 2_999_995..3_000_000)]
    {
        let answer = outer.get_with(&path, &[("range", range)]).await.expect(206);
        assert_eq!(answer.body, blob.slice(bytes), "{range}");
    }
    assert_eq!(outer.get(&path).await.expect(200).body, blob);
    assert_eq!((registry.count("HEAD", &digest), registry.count("GET", &digest)), (1, 1));
}

#[tokio::test]
async fn lists_go_through_two_larders_page_by_page() {
    let registry = Registry::start().await;
    let image = Image::new(5).put(&registry, "library/alpine", "a");
    ["b", "c", "d", "e"].iter().for_each(|tag| registry.tag("library/alpine", tag, &image.digest));
    let index =
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [] }).to_string();
    registry.put_referrers("library/alpine", &image.digest, Some(index.clone().into()));
    let inner = TestMirror::of(&registry).await;
    let outer = before(inner.address(), None).await;
    let (mut path, mut tags) = ("/v2/library/alpine/tags/list?n=2&ns=docker.io".to_owned(), Vec::new());
    loop {
        let page = outer.get(&path).await.expect(200);
        assert_eq!(page.header("cache-status"), Some("larder; fwd=miss; stored, larder; fwd=miss; stored"));
        tags.extend(page.json()["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()));
        let Some(link) = page.header("link") else { break };
        assert!(link.starts_with("</v2/library/alpine/tags/list?") && link.contains("ns=docker.io"), "{link}");
        path = link.trim_start_matches('<').split('>').next().unwrap().to_owned();
    }
    assert_eq!(tags, ["a", "b", "c", "d", "e"]);
    assert_eq!(registry.count("GET", "/tags/list"), 3);
    let referrers = format!("/v2/library/alpine/referrers/{}", image.digest);
    for _ in 0..3 {
        assert_eq!(outer.get(&referrers).await.expect(200).text(), index);
    }
    assert_eq!(registry.count("GET", "/referrers/"), 1);
}

#[tokio::test]
async fn a_tag_that_moves_is_seen_through_two_larders_for_two_heads_and_a_get() {
    let registry = Registry::start().await;
    let old = Image::new(6).put(&registry, "library/alpine", "latest");
    let inner = TestMirror::of(&registry).await;
    let outer = before(inner.address(), None).await;
    assert_eq!(outer.get(&old.tag_path("latest")).await.expect(200).body, old.manifest);
    let minute = Duration::from_secs(61);
    for mirror in [&inner, &outer] {
        mirror.clock().advance(minute);
    }
    outer.get(&old.tag_path("latest")).await.expect(200);
    let new = Image::new(7).put(&registry, "library/alpine", "latest");
    for mirror in [&inner, &outer] {
        mirror.clock().advance(minute);
    }
    assert_eq!(outer.get(&new.tag_path("latest")).await.expect(200).body, new.manifest);
    assert_eq!((registry.count("HEAD", "/manifests/"), registry.count("GET", "/manifests/")), (2, 2));
}
