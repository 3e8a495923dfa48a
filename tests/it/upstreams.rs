//! Where an upstream sends larder, and what it is when it gives no answer.

use std::time::Duration;

use crate::support::{Auth, Blobs, Fault, Image, Like, Listener, Match, Registry, Setup, TestMirror, noise};

const REPOSITORY: &str = "library/app";

fn path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

async fn redirecting() -> Registry {
    let auth = Auth::Bearer { user: None, expires_in: Some(300) };
    Registry::with(Setup { auth, blobs: Blobs::REDIRECTED, ..Setup::default() }).await
}

// === redirects ===

#[tokio::test]
async fn a_redirect_to_a_storage_is_followed_without_the_credential() {
    let upstream = redirecting().await;
    let blob = noise(1, 300_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    let mirror = TestMirror::of(&upstream).await;
    let answer = mirror.get(&path(&digest)).await.expect(200);
    assert_eq!(answer.body, blob);
    assert_eq!(answer.header("location"), None);
    let requests = upstream.requests();
    let at = |listener| requests.iter().filter(move |request| request.listener == listener);
    assert_eq!(at(Listener::Storage).count(), 1);
    assert!(at(Listener::Storage).all(|request| request.authorization().is_none()));
    assert!(at(Listener::Front).any(|request| request.authorization().is_some()));
}

#[tokio::test]
async fn a_transfer_from_a_storage_is_resumed_there_by_way_of_the_registry() {
    let upstream = redirecting().await;
    let blob = noise(2, 2_500_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::storage(&digest).times(1), Fault::Cut { after: 1_200_000 });
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    let requests = upstream.requests();
    let at_storage: Vec<_> = requests.iter().filter(|request| request.listener == Listener::Storage).collect();
    assert_eq!(at_storage.len(), 2);
    assert_eq!(at_storage[1].range(), Some("bytes=1200000-"));
    assert!(at_storage.iter().all(|request| request.authorization().is_none()));
    assert_ne!(at_storage[0].query, at_storage[1].query, "with a signature of its own");
}

#[tokio::test]
async fn a_signature_that_has_expired_is_replaced_by_asking_the_registry_again() {
    let upstream = redirecting().await;
    let blob = noise(3, 300_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::storage(&digest).times(1), Fault::status(403));
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    assert_eq!(upstream.count_at(Listener::Storage, "GET", &digest), 2);
    assert_eq!(upstream.count("GET", &digest), 1 + 2, "a challenge and two redirects");
}

#[tokio::test]
async fn a_redirect_that_leads_back_to_itself_is_a_502() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob(REPOSITORY, noise(4, 1000));
    let itself = format!("{}{}", upstream.url(), path(&digest));
    upstream.on(Match::get(&digest), Fault::answer(307, &[("location", &itself)], ""));
    let mirror = TestMirror::of(&upstream).await;
    let answer = mirror.get(&path(&digest)).await.expect(502);
    assert_eq!(answer.error_code().as_deref(), Some("UNAVAILABLE"));
    assert!(upstream.requests().len() <= 30, "{} requests", upstream.requests().len());
}

#[tokio::test]
async fn a_redirect_to_a_private_address_is_refused_without_a_connection() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    let places = [
        "http://10.1.2.3/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://192.168.0.1:8080/x",
        "http://[fd00::1]/x",
        "http://[::ffff:10.0.0.1]/x",
        "http://2130706434/x",
        "file:///etc/passwd",
    ];
    for (seed, place) in places.into_iter().enumerate() {
        let digest = upstream.put_blob(REPOSITORY, noise(100 + seed as u64, 1000));
        upstream.on(Match::get(&digest), Fault::answer(302, &[("location", place)], ""));
        let answer = mirror.get(&path(&digest)).await.expect(502);
        let told = answer.text();
        assert!(told.contains("not a public address") || told.contains("neither http nor https"), "{place}: {told}");
    }
}

#[tokio::test]
async fn a_token_service_at_a_private_address_is_refused_without_a_connection() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob(REPOSITORY, noise(5, 1000));
    let challenge = "Bearer realm=\"http://169.254.169.254/token\",service=\"x\"";
    upstream.on(Match::any(&digest), Fault::answer(401, &[("www-authenticate", challenge)], ""));
    let mirror = TestMirror::of(&upstream).await;
    let told = mirror.get(&path(&digest)).await.expect(502).text();
    assert!(told.contains("not a public address"), "{told}");
}

// === no answer ===

#[tokio::test]
async fn an_upstream_that_refuses_connections_is_a_502_and_what_is_cached_is_served() {
    let upstream = Registry::start().await;
    let (kept, blob) = (upstream.put_blob(REPOSITORY, noise(6, 1000)), noise(7, 1000));
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&path(&kept)).await.expect(200);
    upstream.stop().await;
    let answer = mirror.get(&path(&digest)).await.expect(502);
    assert_eq!(answer.error_code().as_deref(), Some("UNAVAILABLE"));
    mirror.get("/v2/library/app/manifests/latest").await.expect(502);
    mirror.get(&path(&kept)).await.expect(200);
    mirror.get("/v2/").await.expect(200);

    upstream.restart().await;
    mirror.clock().advance(Duration::from_secs(5));
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob, "and it is asked again within five seconds");
}

#[tokio::test]
async fn an_upstream_that_sends_no_headers_is_a_504_and_holds_up_nothing_else() {
    let upstream = Registry::start().await;
    let hanging = upstream.put_blob(REPOSITORY, noise(8, 1000));
    let other = upstream.put_blob(REPOSITORY, noise(9, 1000));
    upstream.on(Match::get(&hanging), Fault::Hang);
    let stopped = TestMirror::builder().upstream("docker.io", &upstream);
    let mirror = stopped.set("upstream.\"docker.io\".header_timeout = \"300ms\"").start().await;
    let url = path(&hanging);
    let (hung, ()) = tokio::join!(mirror.get(&url), async {
        upstream.held(1).await;
        mirror.get(&path(&other)).await.expect(200);
        assert_eq!(upstream.held_now(), 1, "while the other still hangs");
    });
    assert_eq!(hung.expect(504).error_code().as_deref(), Some("UNAVAILABLE"));
}

#[tokio::test]
async fn a_server_error_is_asked_about_again_before_the_client_hears_of_it() {
    let upstream = Registry::start().await;
    let blob = noise(10, 1000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest).times(2), Fault::status(503));
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
}

#[tokio::test]
async fn an_upstream_that_limits_the_rate_is_left_alone_for_as_long_as_it_says() {
    let upstream = Registry::start().await;
    let image = Image::new(11).layers(&[1000]).put(&upstream, REPOSITORY, "latest");
    let layer = image.blob_path(&image.layers[0]);
    upstream.on(Match::any("/manifests/").times(1), Fault::answer(429, &[("retry-after", "120")], ""));
    let mirror = TestMirror::of(&upstream).await;
    let answer = mirror.get(&image.tag_path("latest")).await.expect(429);
    assert_eq!(answer.error_code().as_deref(), Some("TOOMANYREQUESTS"));
    let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&seconds), "podman sleeps for {seconds} s");
    for _ in 0..5 {
        mirror.get(&image.tag_path("latest")).await.expect(429);
        mirror.get(&layer).await.expect(429);
    }
    mirror.clock().advance(Duration::from_secs(110));
    mirror.get(&image.tag_path("latest")).await.expect(429);
    assert_eq!(upstream.requests().len(), 1, "{:#?}", upstream.requests());

    mirror.clock().advance(Duration::from_secs(11));
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.get(&layer).await.expect(200);
}

/// registry.k8s.io sends whoever asks to others, who have limits of their own. It was a 502, and three requests for each layer.
#[tokio::test]
async fn where_an_upstream_sends_us_is_left_alone_as_well_when_it_limits_the_rate() {
    let upstream = Registry::like(Like::KubernetesIo).await;
    let image = Image::new(13).layers(&[1000]).put(&upstream, "team/app", "latest");
    let (tag, layer) = (image.tag_path("latest"), image.blob_path(&image.layers[0]));
    for (path, which) in [(tag, Match::backend("latest")), (layer, Match::storage(&image.layers[0].digest))] {
        upstream.forget_requests();
        upstream.on(which.times(1), Fault::answer(429, &[("retry-after", "120")], ""));
        let mirror = TestMirror::of(&upstream).await;
        for _ in 0..3 {
            mirror.get(&path).await.expect(429);
        }
        assert_eq!(upstream.requests().len(), 2, "a redirect and the 429: {:#?}", upstream.requests());
        mirror.clock().advance(Duration::from_secs(121));
        mirror.get(&path).await.expect(200);
    }
}

/// A good answer that arrived after another request had been refused for its rate was thrown away.
#[tokio::test]
async fn an_answer_under_way_is_used_although_another_was_refused_for_its_rate() {
    let upstream = Registry::start().await;
    let blob = noise(12, 1000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Latency(Duration::from_millis(300)));
    upstream.on(Match::any("/manifests/"), Fault::status(429));
    let mirror = TestMirror::of(&upstream).await;
    let url = path(&digest);
    let (answer, ()) = tokio::join!(mirror.get(&url), async {
        upstream.seen("GET", &digest, 1).await;
        mirror.get("/v2/library/app/manifests/latest").await.expect(429);
    });
    assert_eq!(answer.expect(200).body, blob);
}
