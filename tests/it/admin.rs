//! The operator's listener: metrics, what is known of the upstreams, and asking for a tag now.

use std::time::Duration;

use http::Method;

use crate::support::{
    ANONYMOUS, Answer, Client, Fault, Image, Match, Registry, Setup, StoppedMirror, TestMirror, get, get_with, head, raw,
};

const TAG: &str = "/v2/library/app/manifests/latest";
const OURS: (&str, &str) = ("x-larder", "1");

async fn post(url: String, headers: &[(&str, &str)]) -> Answer {
    Client::h1().request(Method::POST, url, headers).await
}

async fn refresh(mirror: &TestMirror, image: &str) -> Answer {
    post(mirror.admin_url(&format!("/api/refresh?image={image}")), &[OURS]).await
}

#[track_caller]
fn assert_refused(answer: Answer, status: u16, says: &str) {
    let answer = answer.expect(status);
    let message = answer.json()["errors"][0]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains(says), "{message}");
}

// === asking for a tag now ===

#[tokio::test]
async fn a_tag_that_has_moved_is_there_as_soon_as_larder_is_told() {
    let upstream = Registry::start().await;
    let old = Image::new(1).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.tag_ttls = [\"*=forever\"]").start().await;
    mirror.get(TAG).await.expect(200);
    upstream.forget_requests();
    let answer = refresh(&mirror, "app").await.expect(200).json();
    assert_eq!(answer, serde_json::json!({ "image": "docker.io/library/app:latest", "digest": old.digest, "moved": false }));
    assert_eq!([upstream.count("HEAD", TAG), upstream.requests().len()], [1, 1]);

    let moved = Image::new(2).put(&upstream, "library/app", "latest");
    assert_eq!(mirror.get(TAG).await.expect(200).body, old.manifest);
    let answer = refresh(&mirror, "docker.io/library/app:latest").await.expect(200).json();
    assert_eq!((&answer["digest"], &answer["moved"]), (&moved.digest.clone().into(), &true.into()));
    assert_eq!(mirror.get(TAG).await.expect(200).body, moved.manifest);
    let asked = [upstream.count("HEAD", TAG), upstream.count("GET", &moved.digest), upstream.requests().len()];
    assert_eq!(asked, [2, 1, 3], "{:#?}", upstream.requests());
}

#[tokio::test]
async fn a_tag_that_larder_did_not_know_is_fetched_and_one_that_is_deleted_is_gone() {
    let upstream = Registry::start().await;
    let image = Image::new(3).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(refresh(&mirror, "app:latest").await.expect(200).json()["moved"], true);
    assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest);
    upstream.untag("library/app", "latest");
    assert_refused(refresh(&mirror, "app:latest").await, 404, "not found upstream");
    mirror.get(TAG).await.expect(404);
    assert_eq!(upstream.requests().len(), 2, "{:#?}", upstream.requests());
}

/// Who pushes and then refreshes must not be given the answer to a question that was asked before the push.
#[tokio::test]
async fn a_question_that_is_under_way_does_not_count() {
    let upstream = Registry::start().await;
    Image::new(4).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(TAG).await.expect(200);
    mirror.clock().advance(Duration::from_mins(1));
    upstream.on(Match::head(TAG).times(1), Fault::Latency(Duration::from_millis(300)));
    let asking = mirror.stream(TAG);
    let refreshed = async {
        upstream.seen("HEAD", TAG, 1).await;
        let moved = Image::new(5).put(&upstream, "library/app", "latest");
        (refresh(&mirror, "app:latest").await.expect(200).json()["digest"].clone(), moved.digest)
    };
    let (_, (told, moved)) = tokio::join!(asking, refreshed);
    assert_eq!(told, moved.as_str());
    assert_eq!(upstream.count("HEAD", TAG), 2);
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_said_in_a_sentence() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let digest = format!("app@sha256:{}", "0".repeat(64));
    for (image, status, says) in [
        ("evil.example/x", 404, "evil.example is not among the upstreams"),
        ("App", 400, "\"App\" is no image such as nginx:1.27"),
        (&digest, 400, "a digest never moves"),
        ("missing", 404, "not found upstream"),
    ] {
        assert_refused(refresh(&mirror, image).await, status, says);
    }
    assert_refused(post(mirror.admin_url("/api/refresh"), &[OURS]).await, 400, "say which image");
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());
    upstream.on(Match::any(""), Fault::answer(429, &[("retry-after", "60")], ""));
    assert_refused(refresh(&mirror, "other").await, 429, "limits the rate");
    upstream.stop().await;
    mirror.clock().advance(Duration::from_mins(1));
    assert_refused(refresh(&mirror, "other").await, 502, "unavailable");
}

// === what is known ===

#[tokio::test]
async fn the_budget_of_each_account_is_shown() {
    let upstream = Registry::with(Setup { budget: Some(100), ..Setup::default() }).await;
    Image::new(8).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let page = get(mirror.admin_url("/metrics")).await.expect(200);
    assert!(!page.text().contains("larder_upstream_budget_limit{"), "nothing has been told yet: {}", page.text());

    mirror.get(TAG).await.expect(200);
    let page = get(mirror.admin_url("/metrics")).await.expect(200).text();
    let of = |name: &str| {
        let line = format!("larder_upstream_budget_{name}{{upstream=\"docker.io\",account=\"anonymous\"}} ");
        page.lines().find_map(|other| other.strip_prefix(&line)?.parse::<u64>().ok())
    };
    assert_eq!(
        (of("limit"), of("remaining"), of("window_seconds"), of("reset_seconds")),
        (Some(100), Some(99), Some(21600), None)
    );

    upstream.set_budget(ANONYMOUS, 0);
    mirror.clock().advance(Duration::from_mins(1));
    mirror.get(TAG).await.expect(200);
    let page = get(mirror.admin_url("/metrics")).await.expect(200).text();
    let reset = page.lines().find(|line| line.starts_with("larder_upstream_budget_reset_seconds{")).unwrap();
    let seconds: u64 = reset.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((21_500..=21_600).contains(&seconds), "{reset}");
    let answer = get(mirror.admin_url("/api/upstreams")).await.expect(200).json();
    let names: Vec<&str> = answer["upstreams"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    assert!(names.is_sorted() && names.contains(&"docker.io") && names.contains(&"quay.io"), "{names:?}");
    let hub = answer["upstreams"].as_array().unwrap().iter().find(|one| one["name"] == "docker.io").unwrap();
    let account = &hub["accounts"][0];
    assert_eq!((&account["account"], &account["limit"], &account["remaining"]), (&"anonymous".into(), &100.into(), &0.into()));
    assert!(account["seen"].as_str() < account["resets"].as_str(), "{account}");
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be() {
    let mirror = TestMirror::builder().start().await;
    assert_refused(get(mirror.admin_url("/nothing")).await, 404, "/metrics");
    get(mirror.admin_url("/v2/")).await.expect(404);
    let answer = get(mirror.admin_url("/api/refresh?image=app")).await.expect(405);
    assert_eq!(answer.header("allow"), Some("POST"));
    let answer = post(mirror.admin_url("/metrics"), &[OURS]).await.expect(405);
    assert_eq!(answer.header("allow"), Some("GET"));
    get(mirror.url("/metrics")).await.expect(404);
}

// === who may ===

#[tokio::test]
async fn no_web_page_can_ask() {
    let upstream = Registry::start().await;
    Image::new(9).put(&upstream, "library/app", "latest");
    let builder = TestMirror::builder().upstream("docker.io", &upstream).set("admin.hosts = [\"Larder.corp\"]");
    let mirror = builder.start().await;
    let url = mirror.admin_url("/api/refresh?image=app");
    let page = [("origin", "https://evil.example"), ("content-type", "text/plain")];
    assert_refused(post(url.clone(), &page).await, 403, "X-Larder");
    // A name that was made to resolve to this machine: to the browser, the page's own origin.
    for host in ["evil.example", "evil.example:5001", "127.0.0.1.evil.example", ""] {
        assert_refused(post(url.clone(), &[OURS, ("host", host)]).await, 403, "admin.hosts");
        for path in ["/metrics", "/api/upstreams"] {
            assert_refused(get_with(mirror.admin_url(path), &[("host", host)]).await, 403, "admin.hosts");
        }
    }
    assert_eq!(upstream.requests().len(), 0);
    for host in ["localhost:5001", "LOCALHOST", "[::1]:5001", "10.0.0.1", "larder.corp:5001"] {
        post(url.clone(), &[OURS, ("host", host)]).await.expect(200);
    }
    let address = mirror.admin_url("").trim_start_matches("http://").parse().unwrap();
    let answer = raw(address, "GET /metrics HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.0 403 "), "a request that is addressed to nobody: {}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn without_an_address_there_is_no_such_listener() {
    let builder: StoppedMirror = TestMirror::builder().set("admin.listen = \"\"");
    let mirror = builder.start().await;
    assert!(mirror.admin_address().is_none());
    head(mirror.url("/v2/")).await.expect(200);
}

#[tokio::test]
async fn it_ends_with_larder() {
    let mirror = TestMirror::builder().start().await;
    let url = mirror.admin_url("/metrics");
    get(&url).await.expect(200);
    mirror.stop().await;
    assert!(Client::h1().try_get(&url).await.is_err());
}
