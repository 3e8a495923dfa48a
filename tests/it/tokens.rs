//! Who larder is to an upstream: nobody, a user with a password, or the bearer of a token.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::join_all;

use crate::support::{Answer, Auth, Fault, Image, Like, Listener, Match, Registry, Setup, StoppedMirror, TestMirror, get, noise};

const REPOSITORY: &str = "library/app";
const TAG: &str = "/v2/library/app/manifests/latest";
const USER: &str = "bob";
const PASSWORD: &str = "canary-horse-battery";

fn path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

async fn bearer(user: Option<(&'static str, &'static str)>, expires_in: Option<u64>) -> Registry {
    Registry::with(Setup { auth: Auth::Bearer { user, expires_in }, ..Setup::default() }).await
}

/// A larder with the password, which it may show to the token service.
fn with_password(upstream: &Registry) -> StoppedMirror {
    let token_host = upstream.token_url().replace("http://", "");
    TestMirror::builder()
        .upstream("docker.io", upstream)
        .login("docker.io", USER, PASSWORD)
        .set(&format!("upstream.\"docker.io\".token_hosts = [{token_host:?}]"))
}

fn basic() -> String {
    format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")))
}

fn assert_no_password(answer: &Answer) {
    let told = format!("{:?} {}", answer.headers, answer.text());
    for secret in [PASSWORD, &STANDARD.encode(format!("{USER}:{PASSWORD}")), "canary-token"] {
        assert!(!told.contains(secret), "{told}");
    }
}

#[tokio::test]
async fn an_open_registry_sees_no_credential() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob(REPOSITORY, noise(1, 1000));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).login("docker.io", USER, PASSWORD).start().await;
    let shown = [("authorization", "Basic Y2xpZW50OnNlY3JldA==")];
    mirror.get_with(&path(&digest), &shown).await.expect(200);
    assert_eq!(upstream.requests()[0].authorization(), None, "neither larder's, unasked, nor the client's");
}

#[tokio::test]
async fn a_registry_that_wants_a_password_gets_it() {
    let auth = Auth::Basic { user: USER, password: PASSWORD };
    let upstream = Registry::with(Setup { auth, ..Setup::default() }).await;
    let blob = noise(2, 1000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).login("docker.io", USER, PASSWORD).start().await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    let other = upstream.put_blob(REPOSITORY, noise(3, 1000));
    upstream.forget_requests();
    mirror.get(&path(&other)).await.expect(200);
    assert_eq!(upstream.requests().len(), 1, "from then on it is shown at once");
}

#[tokio::test]
async fn a_wrong_password_is_larders_trouble_and_is_told_to_nobody() {
    let auth = Auth::Basic { user: USER, password: "canary-of-another" };
    let upstream = Registry::with(Setup { auth, ..Setup::default() }).await;
    let digest = upstream.put_blob(REPOSITORY, noise(4, 1000));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).login("docker.io", USER, PASSWORD).start().await;
    let answer = mirror.get(&path(&digest)).await.expect(502);
    assert_no_password(&answer);
    assert_no_password(&mirror.get(TAG).await.expect(502));
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_with_the_scope_that_was_asked_for() {
    let upstream = bearer(None, Some(300)).await;
    let image = Image::new(5).layers(&[1000]).put(&upstream, REPOSITORY, "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(TAG).await.expect(200);
    for blob in image.blobs() {
        assert_eq!(mirror.get(&image.blob_path(blob)).await.expect(200).body, blob.bytes);
    }
    let requests = upstream.requests();
    let tokens: Vec<_> = requests.iter().filter(|request| request.listener == Listener::Token).collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].parameter("scope").as_deref(), Some("repository:library/app:pull"));
    assert_eq!(requests.len(), 1 + 1 + 1 + 2, "a challenge, a token, and each thing once");
}

#[tokio::test]
async fn twenty_blobs_at_once_cost_one_token() {
    let upstream = bearer(Some((USER, PASSWORD)), Some(300)).await;
    let paths: Vec<String> = (0..20).map(|seed| path(&upstream.put_blob(REPOSITORY, noise(10 + seed, 5000)))).collect();
    let mirror = with_password(&upstream).start().await;
    join_all(paths.iter().map(|path| async { mirror.get(path).await.expect(200) })).await;
    assert_eq!(upstream.token_requests(), 1);
    let token = upstream.requests().into_iter().find(|request| request.listener == Listener::Token).unwrap();
    assert_eq!(token.authorization(), Some(basic().as_str()));
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| request.listener == Listener::Token || request.authorization() != Some(&basic()))
    );
}

#[tokio::test]
async fn the_password_does_not_go_to_a_token_service_that_is_not_listed() {
    let upstream = bearer(Some((USER, PASSWORD)), Some(300)).await;
    let digest = upstream.put_blob(REPOSITORY, noise(6, 1000));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).login("docker.io", USER, PASSWORD).start().await;
    let answer = mirror.get(&path(&digest)).await.expect(502);
    assert_no_password(&answer);
    assert!(answer.text().contains("its log says why"), "{}", answer.text());
    let errors = get(mirror.admin_url("/api/errors")).await.expect(200).text();
    assert!(errors.contains("token_hosts"), "the operator is told why: {errors}");
    assert!(upstream.requests().iter().all(|request| request.authorization().is_none()), "{:#?}", upstream.requests());
}

#[tokio::test]
async fn tokens_that_have_expired_early_are_replaced_by_one_and_no_client_notices() {
    let upstream = bearer(None, Some(300)).await;
    let blobs: Vec<_> = (0..20).map(|seed| noise(40 + seed, 5000)).collect();
    let digests: Vec<String> = blobs.iter().map(|blob| upstream.put_blob(REPOSITORY, blob.clone())).collect();
    let first = upstream.put_blob(REPOSITORY, noise(39, 1000));
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&path(&first)).await.expect(200);
    assert_eq!(upstream.token_requests(), 1);
    upstream.expire_tokens();
    join_all(digests.iter().zip(&blobs).map(|(digest, blob)| {
        let mirror = &mirror;
        async move { assert_eq!(mirror.get(&path(digest)).await.expect(200).body, *blob) }
    }))
    .await;
    assert_eq!(upstream.token_requests(), 2);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let upstream = bearer(None, Some(100)).await;
    let digests: Vec<String> = (0..3).map(|seed| upstream.put_blob(REPOSITORY, noise(70 + seed, 1000))).collect();
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&path(&digests[0])).await.expect(200);
    mirror.clock().advance(Duration::from_mins(1));
    mirror.get(&path(&digests[1])).await.expect(200);
    assert_eq!(upstream.token_requests(), 1, "it is still good");
    mirror.clock().advance(Duration::from_secs(39));
    mirror.get(&path(&digests[2])).await.expect(200);
    assert_eq!(upstream.token_requests(), 2, "in its last second a new one is fetched");
    assert_eq!(upstream.count("GET", &digests[2]), 1, "and not for want of being refused");
}

/// Each request would have fetched one more.
#[tokio::test]
async fn a_token_that_says_that_it_has_no_life_is_used_for_a_while() {
    let upstream = bearer(None, Some(0)).await;
    let digests: Vec<String> = (0..3).map(|seed| upstream.put_blob(REPOSITORY, noise(75 + seed, 1000))).collect();
    let mirror = TestMirror::of(&upstream).await;
    for digest in &digests {
        mirror.get(&path(digest)).await.expect(200);
    }
    assert_eq!(upstream.token_requests(), 1);
}

/// A token is renewed when a fifth of its life is left. The token service happened to be down then, and requests failed
/// although the token was still good.
#[tokio::test]
async fn a_token_that_cannot_be_renewed_is_used_to_its_end() {
    let upstream = bearer(None, Some(100)).await;
    let first = upstream.put_blob(REPOSITORY, noise(80, 1000));
    let second = upstream.put_blob(REPOSITORY, noise(81, 1000));
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&path(&first)).await.expect(200);
    upstream.on(Match::token(), Fault::status(503));
    mirror.clock().advance(Duration::from_secs(90));
    mirror.get(&path(&second)).await.expect(200);
}

// === the token service fails ===

/// A tag that was cached, and then cannot be asked for as the token service answers this: it is served stale.
async fn token_service_answers(code: u16) {
    let upstream = bearer(Some((USER, PASSWORD)), None).await;
    let image = Image::new(7).put(&upstream, REPOSITORY, "latest");
    let mirror = with_password(&upstream).start().await;
    mirror.get(TAG).await.expect(200);
    upstream.expire_tokens();
    upstream.on(Match::token(), Fault::status(code));
    mirror.clock().advance(Duration::from_mins(2));
    for _ in 0..2 {
        let answer = mirror.get(TAG).await.expect(200);
        assert_eq!(answer.body, image.manifest);
        assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=stale"), "the token service answers {code}");
        assert!(answer.header("warning").is_some_and(|warning| warning.starts_with("299 - ")), "{:?}", answer.headers);
        assert_no_password(&answer);
        mirror.clock().advance(Duration::from_mins(10));
    }
    upstream.heal();
    let answer = mirror.get(TAG).await.expect(200);
    assert_eq!(answer.header("warning"), None);
}

#[tokio::test]
async fn a_tag_is_served_stale_while_the_token_service_is_down() {
    token_service_answers(503).await;
}

#[tokio::test]
async fn a_tag_is_served_stale_while_the_token_service_refuses_larders_password() {
    token_service_answers(401).await;
}

#[tokio::test]
async fn a_tag_is_served_stale_while_the_token_service_forbids_larders_user() {
    token_service_answers(403).await;
}

/// Who asks for names that it cannot read kept everyone from its tokens.
#[tokio::test]
async fn a_scope_that_a_token_service_cannot_read_keeps_nobody_from_what_they_ask_for() {
    for status in [400, 414] {
        let upstream = bearer(None, None).await;
        let image = Image::new(7).put(&upstream, REPOSITORY, "latest");
        let mirror = TestMirror::of(&upstream).await;
        upstream.on(Match::token(), Fault::status(status));
        for n in 0..8 {
            mirror.get(&format!("/v2/library/odd-{n}/manifests/latest")).await.expect(404);
        }
        upstream.heal();
        assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest);
    }
}

#[tokio::test]
async fn a_tag_is_served_stale_while_the_token_service_cannot_read_what_larder_asks() {
    token_service_answers(400).await;
}

/// Each client's request was one more to the token service, and each layer's three.
#[tokio::test]
async fn a_token_service_that_limits_the_rate_is_left_alone_for_as_long_as_it_says() {
    let upstream = bearer(None, Some(300)).await;
    let image = Image::new(9).layers(&[1000]).put(&upstream, REPOSITORY, "latest");
    upstream.on(Match::token().times(1), Fault::answer(429, &[("retry-after", "120")], ""));
    let mirror = TestMirror::of(&upstream).await;
    let layer = image.blob_path(&image.layers[0]);
    for _ in 0..3 {
        mirror.get(&layer).await.expect(429);
        let answer = mirror.get(&image.tag_path("latest")).await.expect(429);
        assert_eq!(answer.error_code().as_deref(), Some("TOOMANYREQUESTS"));
    }
    assert_eq!(upstream.requests().len(), 2, "a challenge and the 429: {:#?}", upstream.requests());
    mirror.clock().advance(Duration::from_secs(121));
    mirror.get(&layer).await.expect(200);
}

/// Artifact Registry says there alone what it wants.
#[tokio::test]
async fn an_upstream_whose_base_limits_the_rate_is_left_alone_for_as_long_as_it_says() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob(REPOSITORY, noise(82, 1000));
    upstream.on(Match::get(&digest).times(1), Fault::status(401));
    upstream.on(Match::get("/v2/").times(1), Fault::answer(429, &[("retry-after", "120")], ""));
    let mirror = TestMirror::of(&upstream).await;
    for _ in 0..3 {
        mirror.get(&path(&digest)).await.expect(429);
    }
    assert_eq!(upstream.requests().len(), 2, "the 401 without a word and the 429: {:#?}", upstream.requests());
    mirror.clock().advance(Duration::from_secs(121));
    mirror.get(&path(&digest)).await.expect(200);
}

#[tokio::test]
async fn a_repository_that_a_fresh_token_does_not_open_is_denied_however_old_the_tag() {
    let upstream = bearer(Some((USER, PASSWORD)), None).await;
    Image::new(8).put(&upstream, "team/app", "latest");
    let mirror = with_password(&upstream)
        .set("mirror.default_upstream = \"corp\"")
        .set(&format!("upstream.corp.url = {:?}", upstream.url()))
        .login("corp", USER, PASSWORD)
        .set(&format!("upstream.corp.token_hosts = [{:?}]", upstream.token_url().replace("http://", "")))
        .start()
        .await;
    mirror.get("/v2/team/app/manifests/latest").await.expect(200);
    upstream.on(Match::any("/manifests/"), Fault::status(403));
    mirror.clock().advance(Duration::from_mins(2));
    let answer = mirror.get("/v2/team/app/manifests/latest").await.expect(403);
    assert_eq!(answer.error_code().as_deref(), Some("DENIED"));
}

/// At ECR Public one token is for all repositories. What was asked for the first time was shown the old one, and its refusal
/// was taken for the upstream's last word.
#[tokio::test]
async fn a_token_that_has_expired_early_is_replaced_also_for_a_repository_that_is_asked_for_the_first_time() {
    let upstream = Registry::like(Like::EcrPublic).await;
    let (first, second) = (Image::new(20).put(&upstream, "team/first", "v1"), Image::new(21).put(&upstream, "team/second", "v1"));
    let mirror = TestMirror::builder()
        .upstream("public.ecr.aws", &upstream)
        .set("mirror.default_upstream = \"public.ecr.aws\"")
        .start()
        .await;
    mirror.get(&first.tag_path("v1")).await.expect(200);
    upstream.expire_tokens();
    mirror.clock().advance(Duration::from_secs(1));
    assert_eq!(mirror.get(&second.tag_path("v1")).await.expect(200).body, second.manifest);
    assert_eq!(upstream.token_requests(), 2);
}

#[tokio::test]
async fn a_token_that_another_question_has_renewed_is_not_renewed_once_more() {
    let upstream = bearer(None, Some(300)).await;
    let [first, quick, slow] = [90, 91, 92].map(|seed| upstream.put_blob(REPOSITORY, noise(seed, 1000)));
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&path(&first)).await.expect(200);
    mirror.clock().advance(Duration::from_secs(1));
    upstream.on(Match::get(&quick).times(1), Fault::status(403));
    upstream.on(Match::get(&slow).times(1), [Fault::status(403), Fault::Latency(Duration::from_millis(300))]);
    let (quick, slow) = (path(&quick), path(&slow));
    let (slow, ()) = tokio::join!(mirror.get(&slow), async {
        upstream.seen("GET", &slow, 1).await;
        mirror.get(&quick).await.expect(200);
        assert_eq!(upstream.token_requests(), 2);
    });
    slow.expect(200);
    assert_eq!(upstream.token_requests(), 2);
}
