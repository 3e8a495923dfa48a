//! What comes for what is there: statuses, headers and bytes; the same by HEAD and GET, cold and warm.

use std::{collections::BTreeMap, time::Duration};

use http::Method;
use serde_json::json;

use crate::support::{Answer, Client, Fault, Image, Match, Registry, TestMirror, digest_of, noise, sha512_of};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The headers without those that rightly differ from one answer to the next.
fn lasting(answer: &Answer) -> BTreeMap<String, String> {
    let headers = answer.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "date" | "cache-status"));
    headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
}

async fn ask(mirror: &TestMirror, method: &Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    Client::h1().request(method.clone(), mirror.url(path), headers).await
}

/// Asks for the same by GET and HEAD, each of a larder that has nothing and then again, and gives back the four answers, of
/// which the headers are equal.
async fn by_get_and_head_cold_and_warm(upstream: &Registry, path: &str, body: &[u8]) -> Answer {
    let mut first: Option<Answer> = None;
    for method in [Method::GET, Method::HEAD] {
        let mirror = TestMirror::of(upstream).await;
        for temperature in ["cold", "warm"] {
            let answer = ask(&mirror, &method, path, &[]).await.expect(200);
            assert_eq!(answer.body, if method == Method::GET { body } else { b"" }, "{method} {temperature}");
            let first = first.get_or_insert_with(|| answer.clone());
            assert_eq!(lasting(&answer), lasting(first), "{method} {temperature}");
        }
    }
    first.unwrap()
}

#[track_caller]
fn described(answer: &Answer, media_type: &str, digest: &str, size: usize) {
    assert_eq!(answer.header("content-type"), Some(media_type));
    assert_eq!(answer.header("content-length"), Some(&*size.to_string()));
    assert_eq!(answer.header("docker-content-digest"), Some(digest));
    assert_eq!(answer.header("etag"), Some(&*format!("\"{digest}\"")));
    assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
    for absent in ["content-encoding", "transfer-encoding", "www-authenticate", "location", "oci-namespace", "warning"] {
        assert_eq!(answer.header(absent), None, "{absent}");
    }
}

#[tokio::test]
async fn the_base_is_answered_from_memory_though_the_upstream_is_dead() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    upstream.stop().await;
    for path in ["/v2/", "/v2", "/docker.io/v2/", "/v2/?ns=docker.io"] {
        let get = mirror.get(path).await.expect(200);
        let head = mirror.head(path).await.expect(200);
        assert_eq!(get.body, "{}");
        assert_eq!(head.body, "");
        for answer in [&get, &head] {
            assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
            assert_eq!(answer.header("content-length"), Some("2"), "{path}");
            assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"), "{path}");
            assert_eq!(answer.header("www-authenticate"), None, "{path}");
            assert!(answer.header("cache-status").is_some(), "{path}");
        }
    }
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn a_manifest_by_tag_is_the_same_by_get_and_head_cold_and_warm() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let answer = by_get_and_head_cold_and_warm(&upstream, &image.tag_path("latest"), &image.manifest).await;
    described(&answer, OCI_MANIFEST, &image.digest, image.manifest.len());
    let caching = answer.header("cache-control").unwrap_or_default();
    assert!(!caching.contains("immutable"), "a tag moves: {caching}");
}

#[tokio::test]
async fn a_manifest_by_digest_is_the_same_by_get_and_head_cold_and_warm() {
    let upstream = Registry::start().await;
    let image = Image::new(1).docker().layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let answer = by_get_and_head_cold_and_warm(&upstream, &image.manifest_path(), &image.manifest).await;
    described(&answer, image.media_type, &image.digest, image.manifest.len());
}

#[tokio::test]
async fn a_blob_is_the_same_by_get_and_head_cold_and_warm() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[300_000]).put(&upstream, "library/alpine", "latest");
    for blob in image.blobs() {
        let answer = by_get_and_head_cold_and_warm(&upstream, &image.blob_path(blob), &blob.bytes).await;
        described(&answer, "application/octet-stream", &blob.digest, blob.bytes.len());
        assert_eq!(answer.header("accept-ranges"), Some("bytes"));
    }
}

#[tokio::test]
async fn head_of_a_cold_blob_does_not_fetch_it() {
    let upstream = Registry::start().await;
    let layer = upstream.put_blob("library/alpine", noise(1, 300_000));
    let mirror = TestMirror::of(&upstream).await;
    let path = format!("/v2/library/alpine/blobs/{layer}");
    assert_eq!(mirror.head(&path).await.expect(200).header("content-length"), Some("300000"));
    assert_eq!((upstream.count("HEAD", &layer), upstream.count("GET", &layer)), (1, 0));
}

#[tokio::test]
async fn head_of_a_cold_blob_is_answered_though_the_upstream_refuses_head() {
    for status in [401, 403, 404, 405] {
        let upstream = Registry::start().await;
        let layer = upstream.put_blob("library/alpine", noise(1, 300_000));
        upstream.on(Match::head(&layer), Fault::status(status));
        let mirror = TestMirror::of(&upstream).await;
        let head = mirror.head(&format!("/v2/library/alpine/blobs/{layer}")).await.expect(200);
        assert_eq!(head.header("content-length"), Some("300000"), "{status}");
        let ranges: Vec<_> = upstream.requests().into_iter().filter_map(|request| request.range().map(str::to_owned)).collect();
        assert_eq!(ranges, ["bytes=0-0"], "{status}");
    }
}

#[tokio::test]
async fn what_the_client_has_already_is_not_sent_again() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let layer = &image.layers[0];
    let of_layer = image.blob_path(layer);
    let of_image = [image.tag_path("latest"), image.manifest_path()];
    let paths = of_image.iter().map(|path| (path, &image.digest)).chain([(&of_layer, &layer.digest)]);
    for (path, digest) in paths {
        mirror.get(path).await.expect(200);
        for method in [Method::GET, Method::HEAD] {
            for tag in [
                format!("\"{digest}\""),
                digest.clone(),
                format!("W/\"{digest}\""),
                format!("\"other\", \"{digest}\""),
                "*".to_owned(),
            ] {
                let answer = ask(&mirror, &method, path, &[("if-none-match", &tag)]).await.expect(304);
                assert_eq!(answer.body, "", "{tag}");
                assert_eq!(answer.header("etag"), Some(&*format!("\"{digest}\"")), "{tag}");
                assert_eq!(answer.header("docker-content-digest"), Some(&**digest), "{tag}");
                assert!(answer.header("cache-status").is_some(), "{tag}");
            }
            let other = format!("\"{}\"", digest_of(b"other"));
            ask(&mirror, &method, path, &[("if-none-match", &other)]).await.expect(200);
        }
    }
}

#[tokio::test]
async fn sha512_is_verified_and_echoed() {
    let upstream = Registry::start().await;
    let (layer, manifest) = (noise(1, 70_000), br#"{"schemaVersion":2,"layers":[]}"#.as_slice());
    let (layer_digest, digest) = (sha512_of(&layer), sha512_of(manifest));
    upstream.put_blob_under("library/alpine", &layer_digest, layer.clone());
    upstream.put_manifest_under("library/alpine", &digest, OCI_MANIFEST, manifest);

    let of_blob = format!("/v2/library/alpine/blobs/{layer_digest}");
    let answer = by_get_and_head_cold_and_warm(&upstream, &of_blob, &layer).await;
    described(&answer, "application/octet-stream", &layer_digest, layer.len());
    let of_manifest = format!("/v2/library/alpine/manifests/{digest}");
    let answer = by_get_and_head_cold_and_warm(&upstream, &of_manifest, manifest).await;
    described(&answer, OCI_MANIFEST, &digest, manifest.len());

    upstream.on(Match::get(&digest), Fault::WrongBody(br#"{"schemaVersion":2,"layers":[],"x":1}"#.as_slice().into()));
    upstream.on(Match::get(&layer_digest), Fault::Corrupt { at: 5 });
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&of_manifest).await.expect(502);
    assert!(!mirror.get(&of_blob).await.complete);
}

#[tokio::test]
async fn the_empty_blob_is_whole_whatever_part_is_asked_for() {
    let upstream = Registry::start().await;
    assert_eq!(upstream.put_blob("library/alpine", ""), EMPTY);
    let path = format!("/v2/library/alpine/blobs/{EMPTY}");
    let answer = by_get_and_head_cold_and_warm(&upstream, &path, b"").await;
    described(&answer, "application/octet-stream", EMPTY, 0);
    for range in ["bytes=0-", "bytes=0-99", "bytes=-5", "bytes=0-1,5-6"] {
        let mirror = TestMirror::of(&upstream).await;
        for temperature in ["cold", "warm"] {
            let answer = mirror.get_with(&path, &[("range", range)]).await.expect(200);
            assert_eq!(answer.header("content-length"), Some("0"), "{range} {temperature}");
        }
    }
}

#[tokio::test]
async fn every_way_to_name_an_image_leads_to_the_same_cache() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    for (place, query) in [
        ("/v2/library/alpine", "?ns=docker.io"),
        ("/v2/library/alpine", ""),
        ("/v2/alpine", ""),
        ("/v2/alpine", "?ns="),
        ("/v2/docker.io/library/alpine", ""),
        ("/v2/docker.io/alpine", ""),
        ("/v2/docker.io/library/alpine", "?ns=docker.io"),
        ("/docker.io/v2/library/alpine", "?ns=docker.io"),
        ("/docker.io/v2/alpine", ""),
        ("/v2/library/alpine", "?ns=registry-1.docker.io"),
        ("/v2/library/alpine", "?ns=index.docker.io"),
    ] {
        let manifest = mirror.get(&format!("{place}/manifests/latest{query}")).await.expect(200);
        assert_eq!(manifest.digest(), image.digest, "{place}{query}");
        let layer = mirror.get(&format!("{place}/blobs/{}{query}", image.layers[0].digest)).await.expect(200);
        assert_eq!(layer.body, image.layers[0].bytes, "{place}{query}");
    }
    assert_eq!(upstream.requests().len(), 2, "{:#?}", upstream.requests());
}

#[tokio::test]
async fn the_namespace_is_echoed_as_it_was_given() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "team/app", "latest");
    let mirror = TestMirror::builder().upstream("registry.example:5000", &upstream).start().await;
    let digest = &image.digest;
    for path in [
        image.tag_path("latest"),
        image.manifest_path(),
        image.blob_path(&image.layers[0]),
        "/v2/team/app/tags/list".to_owned(),
        format!("/v2/team/app/referrers/{digest}"),
        "/v2/team/app/manifests/absent".to_owned(),
    ] {
        let get = mirror.get(&format!("{path}?ns=registry.example%3A5000")).await;
        assert_eq!(get.header("oci-namespace"), Some("registry.example:5000"), "{path}");
        let head = mirror.head(&format!("{path}?ns=registry.example:5000")).await;
        assert_eq!(head.header("oci-namespace"), Some("registry.example:5000"), "{path}");
        let without = mirror.get(&path.replace("/v2/", "/v2/registry.example:5000/")).await;
        assert_eq!((without.status, without.header("oci-namespace")), (get.status, None), "{path}");
    }
}

#[tokio::test]
async fn every_answer_tells_how_it_was_served() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    upstream.on(Match::any("broken"), Fault::status(500));
    upstream.on(Match::any("forbidden"), Fault::status(403));
    let mirror = TestMirror::of(&upstream).await;
    let blob = image.blob_path(&image.layers[0]);
    let etag = format!("\"{}\"", image.layers[0].digest);
    for (path, header, status) in [
        ("/v2/", ("x-none", ""), 200),
        (&*image.tag_path("latest"), ("x-none", ""), 200),
        (&*blob, ("x-none", ""), 200),
        (&*blob, ("range", "bytes=0-1"), 206),
        (&*blob, ("range", "bytes=0-1,5-6"), 206),
        (&*blob, ("range", "bytes=1000-"), 416),
        (&*blob, ("if-none-match", &*etag), 304),
        ("/v2/library/alpine/tags/list", ("x-none", ""), 200),
        (&*format!("/v2/library/alpine/referrers/{}", image.digest), ("x-none", ""), 200),
        ("/v2/library/alpine/tags/list?n=x", ("x-none", ""), 400),
        ("/v2/library/alpine/manifests/absent", ("x-none", ""), 404),
        ("/v2/library/alpine/manifests/forbidden", ("x-none", ""), 403),
        ("/v2/library/alpine/manifests/broken", ("x-none", ""), 502),
        ("/v2/library/alpine/manifests/latest?ns=elsewhere.example", ("x-none", ""), 404),
        ("/v2/library/alpine/blobs/uploads/", ("x-none", ""), 405),
        ("/elsewhere", ("x-none", ""), 404),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let answer = ask(&mirror, &method, path, &[header]).await;
            let told = answer.header("cache-status").unwrap_or_default();
            assert!(told.starts_with("larder; "), "{method} {path} {header:?}: {told:?}");
            assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"), "{method} {path}");
            if method == Method::GET {
                assert_eq!(answer.status, status, "{path} {header:?}");
            }
        }
    }
    let put = ask(&mirror, &Method::PUT, "/v2/library/alpine/manifests/latest", &[]).await;
    assert!(put.expect(405).header("cache-status").is_some_and(|told| told.starts_with("larder; ")));
}

#[tokio::test]
async fn the_status_of_the_cache_says_miss_then_hit() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let paths = [image.tag_path("latest"), image.manifest_path(), image.blob_path(&image.layers[0])];
    for (path, told) in paths.iter().zip(["larder; fwd=miss; stored", "larder; hit", "larder; fwd=miss; stored"]) {
        assert_eq!(mirror.get(path).await.expect(200).header("cache-status"), Some(told), "{path}");
    }
    // Once it has stopped, all that was under way has been taken in.
    let mirror = mirror.stop().await.start().await;
    for path in &paths {
        assert_eq!(mirror.get(path).await.expect(200).header("cache-status"), Some("larder; hit"), "{path}");
    }
    assert_eq!(upstream.requests().len(), 2);
}

#[tokio::test]
async fn neither_credentials_nor_encodings_of_a_client_go_further() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[70_000]).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let theirs = [
        ("authorization", "Basic Ym9iOnNlY3JldA=="),
        ("cookie", "session=secret"),
        ("accept-encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"),
    ];
    let layer = image.blob_path(&image.layers[0]);
    for path in [image.tag_path("latest"), image.manifest_path(), layer, "/v2/library/alpine/tags/list".to_owned()] {
        for _ in ["cold", "warm"] {
            let answer = mirror.get_with(&path, &theirs).await.expect(200);
            assert_eq!(answer.header("content-encoding"), None, "{path}");
            assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()), "{path}");
        }
    }
    for request in upstream.requests() {
        assert_eq!((request.authorization(), request.header("cookie")), (None, None), "{request:?}");
        assert_eq!(request.header("accept-encoding"), Some("identity"), "{request:?}");
    }
}

#[tokio::test]
async fn what_the_upstream_has_encoded_is_not_passed_on() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[70_000]).put(&upstream, "library/alpine", "latest");
    upstream.on(Match::get(""), Fault::ContentEncoding("gzip"));
    let mirror = TestMirror::of(&upstream).await;
    for path in [image.tag_path("latest"), image.manifest_path(), image.blob_path(&image.layers[0])] {
        let answer = mirror.get(&path).await.expect(502);
        assert_eq!(answer.header("content-encoding"), None);
    }
    upstream.heal();
    mirror.clock().advance(Duration::from_secs(6));
    assert_eq!(mirror.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
}

#[tokio::test]
async fn a_careless_content_type_is_mended_from_the_manifest_itself() {
    let with_type = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [] }).to_string();
    let of_layers = json!({ "schemaVersion": 2, "config": { "digest": EMPTY, "size": 0 }, "layers": [] }).to_string();
    let of_manifests = json!({ "schemaVersion": 2, "manifests": [] }).to_string();
    for (sent, body, served) in [
        (None, &with_type, OCI_MANIFEST),
        (Some("text/plain; charset=utf-8"), &with_type, OCI_MANIFEST),
        (Some("application/octet-stream"), &of_layers, OCI_MANIFEST),
        (Some("application/json"), &of_manifests, OCI_INDEX),
        (Some("application/vnd.oci.image.index.v1+json; charset=utf-8"), &of_manifests, OCI_INDEX),
        (Some("application/vnd.example.thing.v7+json"), &of_layers, "application/vnd.example.thing.v7+json"),
    ] {
        let upstream = Registry::start().await;
        let headers: Vec<_> = sent.iter().map(|sent| ("content-type", *sent)).collect();
        upstream.on(Match::get("manifests"), Fault::answer(200, &headers, body.clone()));
        let mirror = TestMirror::of(&upstream).await;
        for path in
            ["/v2/library/alpine/manifests/latest", &format!("/v2/library/alpine/manifests/{}", digest_of(body.as_bytes()))]
        {
            let answer = mirror.get(path).await.expect(200);
            assert_eq!(answer.header("content-type"), Some(served), "{sent:?} {body}");
            assert_eq!(answer.text(), *body);
        }
    }
}

#[tokio::test]
async fn a_manifest_that_contradicts_its_type_is_refused() {
    let upstream = Registry::start().await;
    let body = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [] }).to_string();
    upstream.put_manifest("library/alpine", Some("latest"), OCI_INDEX, body);
    let mirror = TestMirror::of(&upstream).await;
    mirror.get("/v2/library/alpine/manifests/latest").await.expect(502);
}

#[tokio::test]
async fn manifests_of_all_shapes_pass_unchanged_and_nothing_is_fetched_for_them() {
    let empty =
        json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2, "data": "e30=" });
    let unknown = json!({ "architecture": "unknown", "os": "unknown" });
    let absent = digest_of(b"absent");
    let foreign = json!({ "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": absent, "size": 6, "urls": ["http://127.0.0.1:9/x"] });
    for manifest in [
        json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": empty, "layers": [empty] }),
        json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/x", "config": empty, "subject": { "digest": absent } }),
        json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": empty, "layers": [foreign], "custom": { "ä": [1, 2.5, null] } }),
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }),
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
            { "mediaType": OCI_INDEX, "digest": absent, "size": 6 },
            { "mediaType": OCI_MANIFEST, "digest": absent, "size": 6, "platform": unknown },
        ] }),
        json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": empty, "layers": [], "annotations": { "large": "x".repeat(3_900_000) } }),
    ] {
        let upstream = Registry::start().await;
        // Indented, so that whoever writes it anew is found out.
        let body = serde_json::to_string_pretty(&manifest).unwrap();
        let media_type = manifest["mediaType"].as_str().unwrap();
        let digest = upstream.put_manifest("library/alpine", Some("latest"), media_type, body.clone());
        let mirror = TestMirror::of(&upstream).await;
        for path in ["/v2/library/alpine/manifests/latest", &format!("/v2/library/alpine/manifests/{digest}")] {
            let answer = mirror.get(path).await.expect(200);
            assert!(answer.text() == body, "{} is not {}", answer.text(), body);
            assert_eq!(answer.header("content-type"), Some(media_type));
        }
        assert_eq!(upstream.requests().len(), 1);
    }
}

#[tokio::test]
async fn only_a_stale_answer_carries_a_warning() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let path = image.tag_path("latest");
    for _ in ["cold", "warm"] {
        assert_eq!(mirror.get(&path).await.expect(200).header("warning"), None);
    }
    upstream.stop().await;
    mirror.clock().advance(Duration::from_secs(61));
    for answer in [mirror.get(&path).await.expect(200), mirror.head(&path).await.expect(200)] {
        let warning = answer.header("warning").unwrap();
        assert!(warning.starts_with("299 - \"") && warning.ends_with('"'), "{warning}");
        assert_eq!(answer.header("docker-content-digest"), Some(&*image.digest));
    }
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).header("warning"), None, "a digest is never stale");
    upstream.restart().await;
    mirror.clock().advance(Duration::from_mins(6));
    assert_eq!(mirror.get(&path).await.expect(200).header("warning"), None);
}
