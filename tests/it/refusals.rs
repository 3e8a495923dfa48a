//! What comes for what is not there, may not be had, or cannot be had now: the status and the code that make a client do the
//! right thing next.

use std::time::Duration;

use http::Method;

use crate::support::{Answer, Auth, Client, Fault, Image, Log, Match, Registry, Setup, TestMirror, digest_of, files, raw};

const UNUSED: &str = "/v2/library/alpine/manifests/unused";

/// An error as the distribution spec words it, that no cache on the way will keep.
#[track_caller]
fn refused(answer: Answer, status: u16, code: &str) -> Answer {
    let answer = answer.expect(status);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()));
    assert_eq!(answer.error_code().as_deref(), Some(code), "{}", answer.text());
    assert!(answer.json()["errors"][0]["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", answer.text());
    assert_eq!(answer.header("www-authenticate"), None);
    assert_eq!(answer.header("cache-control"), None);
    answer
}

fn paths_of_absent() -> [(String, &'static str); 3] {
    let absent = digest_of(b"absent");
    [
        ("/v2/library/alpine/manifests/absent".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("/v2/library/alpine/manifests/{absent}"), "MANIFEST_UNKNOWN"),
        (format!("/v2/library/alpine/blobs/{absent}"), "BLOB_UNKNOWN"),
    ]
}

#[tokio::test]
async fn what_is_no_name_is_refused_without_asking_anyone() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let upper = hex.to_uppercase();
    let long = "a".repeat(256);
    for (path, code) in [
        ("/v2/Library/alpine/manifests/latest", "NAME_INVALID"),
        ("/v2/library/alpine-/manifests/latest", "NAME_INVALID"),
        ("/v2/library/a..b/manifests/latest", "NAME_INVALID"),
        ("/v2/library//alpine/manifests/latest", "NAME_INVALID"),
        ("/v2/library%2Falpine/manifests/latest", "NAME_INVALID"),
        (&format!("/v2/{long}/manifests/latest"), "NAME_INVALID"),
        (&format!("/v2/Library/blobs/sha256:{hex}"), "NAME_INVALID"),
        ("/v2/Library/tags/list", "NAME_INVALID"),
        ("/v2/library/alpine/manifests/.latest", "TAG_INVALID"),
        (&format!("/v2/library/alpine/manifests/{}", "t".repeat(129)), "TAG_INVALID"),
        ("/v2/library/alpine/manifests/sha256:baddigeststring", "DIGEST_INVALID"),
        (&format!("/v2/library/alpine/manifests/sha256:{upper}"), "DIGEST_INVALID"),
        (&format!("/v2/library/alpine/blobs/sha256:{upper}"), "DIGEST_INVALID"),
        (&format!("/v2/library/alpine/blobs/sha512:{hex}"), "DIGEST_INVALID"),
        (&format!("/v2/library/alpine/blobs/{hex}"), "DIGEST_INVALID"),
        ("/v2/library/alpine/referrers/sha256:abc", "DIGEST_INVALID"),
    ] {
        refused(mirror.get(path).await, 400, code);
    }
    assert!(upstream.requests().is_empty(), "{:#?}", upstream.requests());
}

#[tokio::test]
async fn what_the_upstream_does_not_have_is_unknown() {
    let upstream = Registry::start().await;
    Image::new(1).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    for (path, code) in paths_of_absent() {
        for path in [&path, &path.replace("alpine", "nothing")] {
            let get = refused(mirror.get(path).await, 404, code);
            let head = mirror.head(path).await.expect(404);
            assert_eq!((head.header("content-length"), &*head.body), (get.header("content-length"), &b""[..]), "{path}");
        }
    }
    refused(mirror.get("/v2/library/nothing/tags/list").await, 404, "NAME_UNKNOWN");
    // podman takes only this code for "not signed".
    let signature = digest_of(b"image").replace(':', "-");
    refused(mirror.get(&format!("/v2/library/nothing/manifests/{signature}.sig")).await, 404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn what_was_missing_is_asked_for_again_after_a_moment() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let path = "/v2/library/alpine/manifests/signature";
    for _ in 0..3 {
        refused(mirror.get(path).await, 404, "MANIFEST_UNKNOWN");
    }
    assert_eq!(upstream.count("GET", "signature"), 1);
    let image = Image::new(1).put(&upstream, "library/alpine", "signature");
    mirror.clock().advance(Duration::from_secs(5));
    assert_eq!(mirror.get(path).await.expect(200).body, image.manifest);
}

#[tokio::test]
async fn a_manifest_is_no_blob_though_its_bytes_are_here() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&image.manifest_path()).await.expect(200);
    let path = format!("/v2/library/alpine/blobs/{}", image.digest);
    refused(mirror.get(&path).await, 404, "BLOB_UNKNOWN");
    mirror.head(&path).await.expect(404);
}

#[tokio::test]
async fn an_upstream_that_is_not_configured_is_never_asked() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let stranger = Registry::start().await;
    let image_there = Image::new(2).put(&stranger, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let there = stranger.address();
    let blob = format!("/v2/library/alpine/blobs/{}", image_there.config.digest);
    for (path, code) in [
        (format!("{}?ns={there}", image.tag_path("latest")), "MANIFEST_UNKNOWN"),
        (format!("{}?ns={there}", image.manifest_path()), "MANIFEST_UNKNOWN"),
        (format!("{blob}?ns={there}"), "BLOB_UNKNOWN"),
        (format!("/v2/library/alpine/tags/list?ns={there}"), "NAME_UNKNOWN"),
        (format!("/v2/library/alpine/referrers/{}?ns={there}", image.digest), "MANIFEST_UNKNOWN"),
        (format!("/{there}{}", image.tag_path("latest")), "MANIFEST_UNKNOWN"),
        (format!("/{there}{blob}"), "BLOB_UNKNOWN"),
        (format!("/v2/{there}/library/alpine/manifests/latest"), "MANIFEST_UNKNOWN"),
        (format!("{}?ns=elsewhere.example", image.tag_path("latest")), "MANIFEST_UNKNOWN"),
    ] {
        refused(mirror.get(&path).await, 404, code);
    }
    assert!(upstream.requests().is_empty(), "{:#?}", upstream.requests());
    assert!(stranger.requests().is_empty(), "{:#?}", stranger.requests());
}

#[tokio::test]
async fn two_namespaces_at_once_are_a_broken_request() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let path = image.tag_path("latest");
    let answer = mirror.get(&format!("{path}?ns=docker.io&ns=quay.io")).await.expect(400);
    assert!(answer.error_code().is_some(), "{}", answer.text());
    assert!(upstream.requests().is_empty());
    mirror.get(&format!("{path}?ns=docker.io&ns=docker.io")).await.expect(200);
    mirror.get(&format!("{path}?ns=&ns=docker.io")).await.expect(200);
}

#[tokio::test]
async fn nothing_can_be_pushed_or_deleted() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let mount = format!("/v2/library/alpine/blobs/uploads/?mount={}&from=library/other", image.config.digest);
    for (method, path) in [
        (Method::PUT, &*image.tag_path("latest")),
        (Method::DELETE, &*image.manifest_path()),
        (Method::DELETE, &*image.blob_path(&image.config)),
        (Method::POST, "/v2/library/alpine/blobs/uploads/"),
        (Method::POST, &*mount),
        (Method::PATCH, "/v2/library/alpine/blobs/uploads/5"),
        (Method::PUT, "/v2/library/alpine/blobs/uploads/5"),
        (Method::DELETE, "/v2/library/alpine/blobs/uploads/5"),
        (Method::GET, "/v2/library/alpine/blobs/uploads/5"),
        (Method::POST, "/v2/"),
        (Method::GET, "/v2/_catalog"),
    ] {
        let answer = Client::h1().request(method, mirror.url(path), &[]).await;
        let answer = refused(answer, 405, "UNSUPPORTED");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{path}");
    }
    assert!(upstream.requests().is_empty(), "{:#?}", upstream.requests());
}

#[tokio::test]
async fn the_body_of_a_push_is_not_waited_for() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    for (headers, sent) in [
        ("content-length: 1073741824\r\n", "x".repeat(64 << 10)),
        ("transfer-encoding: chunked\r\n", format!("8000\r\n{}\r\n", "x".repeat(0x8000))),
        ("content-length: 1073741824\r\nexpect: 100-continue\r\n", String::new()),
    ] {
        let request = format!("PUT {UNUSED} HTTP/1.1\r\nhost: mirror\r\n{headers}\r\n{sent}");
        let answer = String::from_utf8(raw(mirror.address(), request).await).unwrap();
        // Whoever is still sending may lose the answer to a reset; whoever waits for leave to send must see it.
        if sent.is_empty() || !answer.is_empty() {
            assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
            assert!(answer.contains("UNSUPPORTED"), "{answer}");
        }
    }
}

#[tokio::test]
async fn what_the_upstream_forbids_is_denied() {
    let upstream = Registry::start().await;
    upstream.on(Match::any(""), Fault::status(403));
    let mirror = TestMirror::of(&upstream).await;
    for (path, _) in paths_of_absent() {
        refused(mirror.get(&path).await, 403, "DENIED");
    }
    refused(mirror.get("/v2/library/alpine/tags/list").await, 403, "DENIED");
}

#[tokio::test]
async fn a_client_is_never_asked_for_credentials_that_the_upstream_wants() {
    let upstream = Registry::with(Setup { auth: Auth::Bearer { user: None, expires_in: Some(300) }, ..Setup::default() }).await;
    upstream.on(Match::any(""), Fault::status(401));
    let mirror = TestMirror::builder().upstream("registry.example", &upstream).start().await;
    for (path, _) in paths_of_absent() {
        refused(mirror.get(&format!("{path}?ns=registry.example")).await, 403, "DENIED");
    }
}

#[tokio::test]
async fn docker_hub_says_401_of_what_is_not_there() {
    let upstream = Registry::with(Setup { auth: Auth::Bearer { user: None, expires_in: Some(300) }, ..Setup::default() }).await;
    let challenge = format!(
        "Bearer realm=\"{}/token\",service=\"registry.test\",scope=\"repository:library/alpine:pull\",error=\"insufficient_scope\"",
        upstream.token_url()
    );
    upstream.on(Match::any(""), Fault::answer(401, &[("www-authenticate", &challenge)], ""));
    let mirror = TestMirror::of(&upstream).await;
    for (path, code) in paths_of_absent() {
        refused(mirror.get(&path).await, 404, code);
    }
    refused(mirror.get("/v2/library/alpine/tags/list").await, 404, "NAME_UNKNOWN");
}

#[tokio::test]
async fn docker_hub_says_the_same_without_a_challenge() {
    let upstream = Registry::with(Setup { auth: Auth::Bearer { user: None, expires_in: Some(300) }, ..Setup::default() }).await;
    upstream.on(Match::any(""), Fault::status(401));
    let mirror = TestMirror::of(&upstream).await;
    for (path, code) in paths_of_absent() {
        refused(mirror.get(&path).await, 404, code);
    }
    refused(mirror.get("/v2/library/alpine/tags/list").await, 404, "NAME_UNKNOWN");
    assert_eq!(upstream.token_requests(), 1, "a fresh token is not made fresher");
}

#[tokio::test]
async fn an_upstream_that_limits_the_rate_is_left_alone_for_as_long_as_it_says() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let limit = Fault::answer(429, &[("retry-after", "120")], "slow down");
    upstream.on(Match::any("").times(1), limit);
    let mirror = TestMirror::of(&upstream).await;
    let blob = image.blob_path(&image.layers[0]);
    for _ in 0..3 {
        for path in [&image.tag_path("latest"), &image.manifest_path(), &blob, "/v2/library/alpine/tags/list"] {
            let answer = refused(mirror.get(path).await, 429, "TOOMANYREQUESTS");
            let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=10).contains(&after), "podman sleeps for as long as it is told: {after}");
        }
        mirror.head(&blob).await.expect(429);
    }
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
    mirror.clock().advance(Duration::from_secs(119));
    mirror.get(&image.tag_path("latest")).await.expect(429);
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
    mirror.clock().advance(Duration::from_secs(2));
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.get(&blob).await.expect(200);
}

#[tokio::test]
async fn a_limit_met_on_a_blob_is_answered_here_until_it_lapses_and_hits_go_on() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000, 2000]).put(&upstream, "library/alpine", "latest");
    let [layer, cached] = [0, 1].map(|layer| image.blob_path(&image.layers[layer]));
    let mirror = TestMirror::of(&upstream).await;
    for path in [&image.tag_path("latest"), &cached] {
        mirror.get(path).await.expect(200);
    }
    upstream.forget_requests();
    upstream.on(Match::any("/blobs/"), Fault::status(429));
    // containerd asks five times without a pause.
    for _ in 0..5 {
        let answer = refused(mirror.get(&layer).await, 429, "TOOMANYREQUESTS");
        assert_eq!(answer.header("retry-after"), Some("10"), "no more, as podman sleeps for as long as it is told");
    }
    // podman would sleep through each 429; from 503 it goes on to the next registry at once.
    for agent in
        ["containers/5.36.0 (github.com/containers/image)", "Buildah/1.39.0", "cri-o/1.33.0 go/go1.24 os/linux arch/amd64"]
    {
        refused(mirror.get_with(&layer, &[("user-agent", agent)]).await, 503, "UNAVAILABLE");
    }
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
    for path in [&image.tag_path("latest"), &cached] {
        mirror.get(path).await.expect(200);
    }
    upstream.heal();
    mirror.clock().advance(Duration::from_secs(30));
    mirror.get(&layer).await.expect(200);
}

#[tokio::test]
async fn an_upstream_that_fails_is_a_bad_gateway() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    for status in [500, 502, 503, 504] {
        upstream.heal();
        upstream.on(Match::any(""), Fault::status(status));
        mirror.clock().advance(Duration::from_mins(6));
        for (path, _) in paths_of_absent() {
            refused(mirror.get(&path).await, 502, "UNAVAILABLE");
        }
        refused(mirror.get("/v2/library/alpine/tags/list").await, 502, "UNAVAILABLE");
    }
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_is_a_bad_gateway() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    upstream.stop().await;
    for (path, _) in paths_of_absent() {
        refused(mirror.get(&path).await, 502, "UNAVAILABLE");
    }
    refused(mirror.get("/v2/library/alpine/tags/list").await, 502, "UNAVAILABLE");
}

#[tokio::test]
async fn an_upstream_that_does_not_begin_to_answer_is_given_up() {
    let upstream = Registry::start().await;
    upstream.on(Match::any(""), Fault::Hang);
    let mirror = TestMirror::builder()
        .upstream("docker.io", &upstream)
        .set("upstream.\"docker.io\".header_timeout = \"100ms\"")
        .start()
        .await;
    for (path, _) in paths_of_absent() {
        refused(mirror.get(&path).await, 504, "UNAVAILABLE");
        mirror.head(&path).await.expect(504);
    }
    refused(mirror.get("/v2/library/alpine/tags/list").await, 504, "UNAVAILABLE");
    let referrers = format!("/v2/library/alpine/referrers/{}", digest_of(b"absent"));
    refused(mirror.get(&referrers).await, 504, "UNAVAILABLE");
}

/// One whose upstream begins each answer and then says nothing more.
async fn before_silence(upstream: &Registry) -> TestMirror {
    upstream.on(Match::get(""), Fault::Stall { after: 10 });
    let mirror = TestMirror::builder().upstream("docker.io", upstream);
    mirror.set("upstream.\"docker.io\".idle_timeout = \"100ms\"").start().await
}

#[tokio::test]
async fn a_manifest_that_falls_silent_is_given_up() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let mirror = before_silence(&upstream).await;
    for path in [image.tag_path("latest"), image.manifest_path()] {
        refused(mirror.get(&path).await, 504, "UNAVAILABLE");
    }
}

#[tokio::test]
async fn a_list_of_tags_that_falls_silent_is_given_up() {
    let upstream = Registry::start().await;
    Image::new(1).put(&upstream, "library/alpine", "latest");
    let mirror = before_silence(&upstream).await;
    refused(mirror.get("/v2/library/alpine/tags/list").await, 504, "UNAVAILABLE");
}

#[tokio::test]
async fn a_list_of_referrers_that_falls_silent_is_given_up() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    upstream.put_referrers("library/alpine", &image.digest, None);
    let mirror = before_silence(&upstream).await;
    refused(mirror.get(&format!("/v2/library/alpine/referrers/{}", image.digest)).await, 504, "UNAVAILABLE");
}

#[tokio::test]
async fn a_manifest_of_another_digest_is_neither_served_nor_kept() {
    let log = Log::from_here();
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let other = Image::new(2).put(&upstream, "library/other", "latest");
    upstream.on(Match::get(&image.digest), Fault::WrongBody(other.manifest));
    let mirror = TestMirror::of(&upstream).await;
    for times in 1..=2 {
        refused(mirror.get(&image.manifest_path()).await, 502, "UNAVAILABLE");
        assert_eq!(upstream.count("GET", &image.digest), times, "nothing was kept");
    }
    log.will_say(&["ERROR", &image.digest, &other.digest, "another manifest"]).await;
    upstream.heal();
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest);
    let smuggled = mirror.get(&format!("/v2/library/alpine/manifests/{}", other.digest)).await;
    refused(smuggled, 404, "MANIFEST_UNKNOWN");
}

/// There is no digest to hold what a tag points to against, and the upstream's own word for it is not one.
#[tokio::test]
async fn what_is_cut_off_or_garbled_is_never_what_a_tag_points_to() {
    let image = |seed| Image::new(seed).layers(&[1000]);
    let other = Registry::start().await;
    let whole = image(1).put(&other, "library/alpine", "latest").manifest;
    let mut garbled = whole.to_vec();
    garbled[whole.len() / 2] ^= 0x80;
    for faults in [
        vec![Fault::Cut { after: 100 }],
        vec![Fault::Reset { after: 100 }],
        vec![Fault::NoLength, Fault::Cut { after: 100 }],
        // What ends where the connection does looks whole.
        vec![Fault::WrongBody(whole.slice(..100))],
        vec![Fault::WrongBody(whole.slice(..0))],
        vec![Fault::WrongBody(garbled.into())],
        vec![Fault::WrongBody("{}".into())],
        vec![Fault::WrongBody("[]".into())],
        vec![Fault::WrongBody(r#"{"errors":[{"code":"UNKNOWN"}]}"#.into())],
        vec![Fault::ContentEncoding("gzip")],
    ] {
        let upstream = Registry::start().await;
        let image = image(1).put(&upstream, "library/alpine", "latest");
        upstream.on(Match::get("/manifests/"), faults.clone());
        let mirror = TestMirror::of(&upstream).await;
        for _ in 0..2 {
            let answer = refused(mirror.get(&image.tag_path("latest")).await, 502, "UNAVAILABLE");
            assert_eq!(answer.header("docker-content-digest"), None, "{faults:?}");
        }
        assert!(upstream.count("GET", "/manifests/") <= 6, "{faults:?}: {:#?}", upstream.requests());
        upstream.heal();
        mirror.clock().advance(Duration::from_secs(5));
        let answer = mirror.get(&image.tag_path("latest")).await.expect(200);
        assert_eq!(answer.body, image.manifest, "{faults:?}");
        // Nothing else has been kept, in memory or on the disk.
        mirror.kept(&image.digest).await;
        let stopped = mirror.stop().await;
        assert_eq!(files(&stopped.cache_dir().join("blobs")).len(), 1, "{faults:?}");
        assert_eq!(files(&stopped.cache_dir().join("partial")).len(), 0, "{faults:?}");
    }
}

#[tokio::test]
async fn the_digest_of_what_a_tag_points_to_is_that_of_its_bytes_whatever_the_upstream_calls_it() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let lie = digest_of(b"something else");
    let headers = [("docker-content-digest", &*lie), ("content-type", "application/vnd.oci.image.manifest.v1+json")];
    upstream.on(Match::get("/manifests/latest"), Fault::answer(200, &headers, image.manifest.clone()));
    let mirror = TestMirror::of(&upstream).await;
    let answer = mirror.get(&image.tag_path("latest")).await.expect(200);
    assert_eq!(answer.header("docker-content-digest"), Some(&*image.digest));
    refused(mirror.get(&format!("/v2/library/alpine/manifests/{lie}")).await, 404, "MANIFEST_UNKNOWN");
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).header("cache-status"), Some("larder; hit"));
}

#[tokio::test]
async fn a_login_page_is_no_manifest() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let page = Fault::answer(200, &[("content-type", "text/html; charset=utf-8")], "<!doctype html><form>Sign in</form>");
    upstream.on(Match::any(""), page);
    let mirror = TestMirror::of(&upstream).await;
    for path in [image.tag_path("latest"), image.manifest_path(), "/v2/library/alpine/tags/list".to_owned()] {
        refused(mirror.get(&path).await, 502, "UNAVAILABLE");
    }
    upstream.heal();
    mirror.clock().advance(Duration::from_mins(6));
    assert_eq!(mirror.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
}
