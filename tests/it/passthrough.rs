//! Users with different rights before one cache: nobody gets what the upstream would not give them, cached or not.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::{
    Answer, Auth, Fault, Image, Like, Manifests, Match, Missing, PutImage, Recorded, Registry, Setup, StoppedMirror, TestMirror,
    TokenService, User, noise,
};

const HOST: &str = "hub.mirror.test";
const MINUTE: Duration = Duration::from_mins(1);

/// Docker Hub with two users.
fn hub() -> Setup {
    with_users(Like::DockerHub.setup())
}

/// The plainest of registries with two users.
fn plain() -> Setup {
    with_users(Setup { auth: Auth::Tokens(TokenService::default()), ..Setup::default() })
}

fn with_users(setup: Setup) -> Setup {
    setup.login("alice", "canary-of-alice").login("bob", "canary-of-bob")
}

fn before(registry: &Registry) -> StoppedMirror {
    TestMirror::builder().gate("docker.io", registry, HOST)
}

async fn alice(mirror: &TestMirror) -> User {
    User::login(mirror, HOST, "alice", "canary-of-alice").await
}

async fn bob(mirror: &TestMirror) -> User {
    User::login(mirror, HOST, "bob", "canary-of-bob").await
}

/// An image that only these users may read.
fn private(registry: &Registry, seed: u64, repository: &str, readers: &[&str]) -> PutImage {
    let image = Image::new(seed).layers(&[40_000, 30_000]).layer(noise(99, 50_000)).put(registry, repository, "latest");
    registry.restrict(repository, readers);
    image
}

async fn pull(user: &User, image: &PutImage) {
    assert_eq!(user.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
    for blob in image.blobs() {
        assert_eq!(user.get(&image.blob_path(blob)).await.expect(200).body, blob.bytes);
    }
}

/// All there is to be asked of an image.
fn paths(image: &PutImage) -> Vec<String> {
    let repository = &image.repository;
    let lists = [format!("/v2/{repository}/tags/list"), format!("/v2/{repository}/referrers/{}", image.digest)];
    let manifests = [image.tag_path("latest"), image.manifest_path()];
    image.blobs().map(|blob| image.blob_path(blob)).chain(manifests).chain(lists).collect()
}

/// How often this user's token was shown to get the bytes. The first alone only proves that they are there.
fn fetched(upstream: &Registry, user: &str, path: &str) -> usize {
    let gets = |seen: &&Recorded| seen.method == "GET" && seen.range() != Some("bytes=0-0");
    upstream.requests().iter().filter(gets).filter(|seen| seen.account == user && seen.path == path).count()
}

fn told(answer: &Answer) -> (u16, String, Option<&str>) {
    (answer.status, answer.text(), answer.header("cache-status"))
}

// === rights ===

#[tokio::test]
async fn two_users_with_different_rights_see_different_things_of_one_cache() {
    for setup in [hub(), plain()] {
        let upstream = Registry::with(setup).await;
        let (of_alice, of_bob) = (private(&upstream, 1, "team-a/app", &["alice"]), private(&upstream, 2, "team-b/app", &["bob"]));
        let mirror = before(&upstream).start().await;
        let (alice, bob) = (alice(&mirror).await, bob(&mirror).await);

        let mut cold = Vec::new();
        for path in paths(&of_alice) {
            cold.push(bob.get(&path).await);
        }
        pull(&alice, &of_alice).await;
        mirror.clock().advance(MINUTE);
        for (path, cold) in paths(&of_alice).iter().zip(cold) {
            let denied = bob.get(path).await.expect(403);
            assert_eq!(denied.error_code().as_deref(), Some("DENIED"), "{path}");
            assert_eq!(told(&denied), told(&cold), "nothing tells that it is here: {path}");
            bob.head(path).await.expect(403);
        }
        pull(&bob, &of_bob).await;
        alice.get(&of_bob.tag_path("latest")).await.expect(403);
        pull(&alice, &of_alice).await;

        let shared = &of_alice.layers[2];
        let [a, b] =
            [(&of_alice, "alice"), (&of_bob, "bob")].map(|(image, user)| fetched(&upstream, user, &image.blob_path(shared)));
        assert_eq!((a, b), (1, 0), "the bytes that they share were fetched once");
    }
}

#[tokio::test]
async fn a_warm_pull_costs_one_question_and_one_token_a_minute() {
    let upstream = Registry::with(hub()).await;
    let image = Image::new(1).layers(&[1_000; 20]).put(&upstream, "team-a/app", "latest");
    upstream.restrict("team-a/app", &["alice"]);
    let mirror = before(&upstream).start().await;
    let alice = alice(&mirror).await;
    pull(&alice, &image).await;
    assert_eq!(upstream.budget("alice"), 99);
    for _ in 0..3 {
        mirror.clock().advance(MINUTE);
        upstream.forget_requests();
        alice.get(&image.tag_path("latest")).await.expect(200);
        join_all(image.blobs().map(async |blob| alice.get(&image.blob_path(blob)).await.expect(200))).await;
        assert_eq!(upstream.count("HEAD", "/v2/"), 1, "{:#?}", upstream.requests());
        assert_eq!((upstream.count("GET", ""), upstream.token_requests()), (0, 1));
    }
    // Without a manifest before them each layer is asked for, the same one once.
    mirror.clock().advance(MINUTE);
    upstream.forget_requests();
    for layer in &image.layers {
        upstream.on(Match::head(&layer.digest), Fault::Latency(Duration::from_millis(100)));
    }
    let twice = image.layers.iter().chain(&image.layers);
    join_all(twice.map(async |layer| alice.get(&image.blob_path(layer)).await.expect(200))).await;
    assert_eq!((upstream.count("HEAD", ""), upstream.count("GET", ""), upstream.token_requests()), (20, 0, 1));
    assert_eq!(upstream.budget("alice"), 99);
}

#[tokio::test]
async fn what_is_taken_away_upstream_is_refused_here_within_a_minute() {
    for setup in [hub(), plain()] {
        let upstream = Registry::with(setup).await;
        let image = private(&upstream, 1, "team-a/app", &["alice", "bob"]);
        let mirror = before(&upstream).start().await;
        let (alice, bob) = (alice(&mirror).await, bob(&mirror).await);
        pull(&alice, &image).await;
        pull(&bob, &image).await;
        upstream.restrict("team-a/app", &["bob"]);
        mirror.clock().advance(MINUTE / 2);
        pull(&alice, &image).await;
        mirror.clock().advance(MINUTE / 2);
        for path in paths(&image) {
            assert_eq!(alice.get(&path).await.status, 403, "{path}");
        }
        upstream.forget_requests();
        pull(&bob, &image).await;
        assert_eq!(upstream.count("GET", ""), 0, "what was proven stays so for others: {:#?}", upstream.requests());
        upstream.restrict("team-a/app", &["alice"]);
        mirror.clock().advance(MINUTE);
        pull(&alice, &image).await;
        bob.get(&image.tag_path("latest")).await.expect(403);
    }
}

#[tokio::test]
async fn nobody_gets_what_is_public_and_is_told_to_log_in_for_the_rest() {
    for setup in [hub(), plain()] {
        let upstream = Registry::with(setup).await;
        let public = Image::new(1).layers(&[40_000]).put(&upstream, "library/alpine", "latest");
        let secret = private(&upstream, 2, "team-a/app", &["alice"]);
        let mirror = before(&upstream).start().await;
        let nobody = User::nobody(&mirror, HOST).await;
        pull(&nobody, &public).await;
        nobody.get("/v2/alpine/manifests/latest").await.expect(200);
        pull(&alice(&mirror).await, &secret).await;
        for path in paths(&secret) {
            let refused = nobody.get(&path).await.expect(401);
            let challenge = "Bearer realm=\"https://hub.mirror.test/token\",service=\"hub.mirror.test\",\
                             scope=\"repository:team-a/app:pull\",error=\"insufficient_scope\"";
            assert_eq!(refused.header("www-authenticate"), Some(challenge));
            assert_eq!(refused.error_code().as_deref(), Some("UNAUTHORIZED"));
        }
    }
}

#[tokio::test]
async fn an_upstream_that_says_405_to_every_head_has_not_said_yes() {
    let manifests = Manifests { no_head: true, ..Manifests::default() };
    let upstream = Registry::with(Setup { manifests, ..plain() }).await;
    upstream.on(Match::head("/manifests/"), Fault::status(405));
    let image = private(&upstream, 1, "team-a/app", &["alice"]);
    let mirror = before(&upstream).start().await;
    let (alice, bob) = (alice(&mirror).await, bob(&mirror).await);
    pull(&alice, &image).await;
    for path in paths(&image) {
        bob.get(&path).await.expect(403);
    }
    // One that says so before it looks who asks; by now what it said of Bob is forgotten.
    mirror.clock().advance(Duration::from_secs(5));
    upstream.restrict("team-a/app", &["alice", "bob"]);
    upstream.on(Match::get("/manifests/").by("bob"), Fault::status(403));
    bob.get(&image.tag_path("latest")).await.expect(403);
}

#[tokio::test]
async fn who_may_list_need_not_be_one_who_may_pull() {
    let upstream = Registry::with(plain()).await;
    let image = private(&upstream, 1, "team-a/app", &["alice", "bob"]);
    upstream.on(Match::any("/manifests/").by("bob"), Fault::status(403));
    upstream.on(Match::any("/blobs/").by("bob"), Fault::status(403));
    upstream.on(Match::any("/tags/list").by("alice"), Fault::status(403));
    let mirror = before(&upstream).start().await;
    let (alice, bob) = (alice(&mirror).await, bob(&mirror).await);
    pull(&alice, &image).await;
    alice.get("/v2/team-a/app/tags/list").await.expect(403);
    assert_eq!(bob.get("/v2/team-a/app/tags/list").await.expect(200).json()["tags"][0], "latest");
    bob.get(&image.tag_path("latest")).await.expect(403);
    bob.get(&image.blob_path(&image.layers[0])).await.expect(403);
}

// === one user's no is not another's ===

#[tokio::test]
async fn what_is_hidden_from_one_is_there_for_the_other() {
    let upstream = Registry::with(plain()).await;
    let image = private(&upstream, 1, "team-a/app", &["alice", "bob"]);
    let mirror = before(&upstream).start().await;
    let (alice, bob) = (alice(&mirror).await, bob(&mirror).await);
    pull(&alice, &image).await;
    // Both may read the repository, and then one of them may not and is told that there is nothing.
    bob.get(&image.tag_path("latest")).await.expect(200);
    upstream.on(Match::any("/v2/team-a/").by("bob"), Fault::status(404));
    mirror.clock().advance(MINUTE);
    for path in paths(&image) {
        assert_eq!(bob.get(&path).await.status, 404, "{path}");
    }
    upstream.forget_requests();
    pull(&alice, &image).await;
    assert_eq!(
        (upstream.count("GET", ""), upstream.count("HEAD", "")),
        (0, 1),
        "nothing was forgotten: {:#?}",
        upstream.requests()
    );
    assert_eq!(alice.get("/v2/team-a/app/tags/list").await.expect(200).json()["tags"][0], "latest");
}

#[tokio::test]
async fn a_tag_that_one_is_not_shown_is_not_forgotten() {
    let upstream = Registry::with(plain()).await;
    let image = private(&upstream, 1, "team-a/app", &["alice", "bob"]);
    let mirror = before(&upstream).set("mirror.tag_ttl = \"1s\"").start().await;
    let (alice, bob) = (alice(&mirror).await, bob(&mirror).await);
    let tag = image.tag_path("latest");
    alice.get(&tag).await.expect(200);
    bob.get(&tag).await.expect(200);
    upstream.on(Match::any("/manifests/latest").by("bob"), Fault::status(404));
    mirror.clock().advance(Duration::from_secs(2));
    bob.get(&tag).await.expect(404);
    upstream.forget_requests();
    assert_eq!(alice.get(&tag).await.expect(200).body, image.manifest);
    assert_eq!((upstream.count("HEAD", &tag), upstream.count("GET", "")), (1, 0));
}

#[tokio::test]
async fn a_question_that_fails_for_one_is_asked_again_for_the_other() {
    let upstream = Registry::with(plain()).await;
    let image = private(&upstream, 1, "team-a/app", &["alice", "bob"]);
    let other = Image::new(2).layers(&[60_000]).put(&upstream, "team-a/app", "other");
    let untagged = Image::new(3).put_untagged(&upstream, "team-a/app");
    let mirror = before(&upstream).start().await;
    let (alice, bob) = (alice(&mirror).await, bob(&mirror).await);
    alice.get(&image.tag_path("latest")).await.expect(200);
    bob.get(&image.tag_path("latest")).await.expect(200);
    let layer = other.blob_path(&other.layers[0]);
    for (path, body) in [
        (other.tag_path("other"), &other.manifest),
        (untagged.manifest_path(), &untagged.manifest),
        (layer, &other.layers[0].bytes),
    ] {
        // Alice is refused, but not at once; Bob comes while she waits.
        upstream.heal();
        upstream.on(
            Match::get(&path).by("alice").times(2),
            [Fault::Latency(Duration::from_millis(100)), Fault::status(403)].to_vec(),
        );
        let before = upstream.count("GET", &path);
        let (refused, served) = tokio::join!(alice.get(&path), async {
            upstream.seen("GET", &path, before + 1).await;
            bob.get(&path).await
        });
        refused.expect(403);
        assert_eq!(served.expect(200).body, *body, "{path}");
    }
}

#[tokio::test]
async fn one_who_may_read_joins_the_fill_that_another_has_begun() {
    let upstream = Registry::with(plain()).await;
    let blob = noise(7, 600_000);
    let digest = upstream.put_blob("team-a/app", blob.clone());
    upstream.restrict("team-a/app", &["alice", "bob"]);
    upstream.on(Match::get(&digest).times(1), Fault::Gate { after: 300_000 });
    let mirror = before(&upstream).start().await;
    let (alice, bob) = (alice(&mirror).await, bob(&mirror).await);
    let nobody = User::nobody(&mirror, HOST).await;
    let path = format!("/v2/team-a/app/blobs/{digest}");
    let (a, b, ()) = tokio::join!(alice.get(&path), bob.get(&path), async {
        upstream.held(1).await;
        // The questions whether they may are HEADs.
        upstream.seen("HEAD", &digest, 2).await;
        nobody.get(&path).await.expect(401);
        upstream.release();
    });
    assert_eq!((a.expect(200).body, b.expect(200).body), (blob.clone(), blob));
    assert_eq!(fetched(&upstream, "alice", &path) + fetched(&upstream, "bob", &path), 1);
}

#[tokio::test]
async fn what_is_asked_for_a_reader_is_asked_as_that_reader_whoever_began_the_fill() {
    let upstream = Registry::with(plain()).await;
    let blob = noise(8, 24 << 20);
    let digest = upstream.put_blob("team-a/app", blob.clone());
    upstream.restrict("team-a/app", &["alice", "bob"]);
    upstream.on(Match::get(&digest).times(1), Fault::Gate { after: 1 << 20 });
    let mirror = before(&upstream).start().await;
    let (alice, bob) = (alice(&mirror).await, bob(&mirror).await);
    let path = format!("/v2/team-a/app/blobs/{digest}");
    let (whole, part) = tokio::join!(alice.get(&path), async {
        upstream.held(1).await;
        let range =
            [("host", HOST), ("authorization", bob.authorization.as_deref().unwrap()), ("range", "bytes=20000000-20000009")];
        let part = mirror.get_with(&path, &range).await;
        upstream.release();
        part
    });
    assert_eq!(part.expect(206).body, blob.slice(20_000_000..20_000_010));
    assert_eq!(whole.expect(200).body, blob);
    assert_eq!((fetched(&upstream, "alice", &path), fetched(&upstream, "bob", &path)), (1, 1));
}

#[tokio::test]
async fn a_budget_that_one_user_has_used_up_is_that_users() {
    let upstream = Registry::with(hub()).await;
    let image = private(&upstream, 1, "team-a/app", &["alice", "bob"]);
    upstream.set_budget("alice", 0);
    let mirror = before(&upstream).start().await;
    let (alice, bob) = (alice(&mirror).await, bob(&mirror).await);
    alice.get(&image.tag_path("latest")).await.expect(429);
    pull(&bob, &image).await;
    assert_eq!((upstream.budget("alice"), upstream.budget("bob")), (0, 99));
}

// === the upstream cannot be asked ===

#[tokio::test]
async fn without_its_upstream_it_serves_for_a_minute_and_then_nothing() {
    let upstream = Registry::with(hub()).await;
    let image = private(&upstream, 1, "team-a/app", &["alice"]);
    let mirror = before(&upstream).start().await;
    let alice = alice(&mirror).await;
    pull(&alice, &image).await;
    upstream.stop().await;
    mirror.clock().advance(Duration::from_secs(59));
    pull(&alice, &image).await;
    mirror.clock().advance(Duration::from_secs(1));
    for path in paths(&image) {
        let refused = alice.get(&path).await.expect(502);
        assert_eq!(refused.error_code().as_deref(), Some("UNAVAILABLE"), "{path}");
    }
    let fresh = User::at(&mirror, HOST).showing(&crate::support::basic("bob", "canary-of-bob"));
    assert_eq!(fresh.get("/token").await.expect(503).error_code().as_deref(), Some("UNAVAILABLE"));
    assert_eq!(User::at(&mirror, HOST).get("/token").await.status, 503);
    upstream.restart().await;
    // It is left alone for moments after it has failed.
    mirror.clock().advance(Duration::from_secs(10));
    upstream.forget_requests();
    pull(&alice, &image).await;
    assert_eq!(upstream.count("GET", "/team-a/"), 0, "all of it was here: {:#?}", upstream.requests());
}

#[tokio::test]
async fn a_place_that_gives_to_everyone_is_not_asked_who_may_read() {
    let upstream = Registry::with(plain()).await;
    let image = private(&upstream, 1, "team-a/app", &["alice"]);
    let open = Registry::start().await;
    Image::new(1).layers(&[40_000, 30_000]).layer(noise(99, 50_000)).put(&open, "team-a/app", "latest");
    let mirror = before(&upstream).set(&format!("upstream.\"docker.io\".fallbacks = [{:?}]", open.url())).start().await;
    let (alice, bob) = (alice(&mirror).await, bob(&mirror).await);
    pull(&alice, &image).await;
    upstream.stop().await;
    for path in paths(&image) {
        assert_eq!(bob.get(&path).await.status, 502, "{path}");
    }
    assert_eq!(open.requests().len(), 0);
}

// === what is remembered ===

#[tokio::test]
async fn an_upstream_that_hides_what_is_missing_costs_no_question_each_time() {
    let upstream = Registry::with(Setup { missing: Missing::NoToken, ..plain() }).await;
    private(&upstream, 1, "team-a/app", &["alice"]);
    let mirror = before(&upstream).start().await;
    let bob = bob(&mirror).await;
    bob.get("/v2/team-a/app/manifests/latest").await.expect(403);
    upstream.forget_requests();
    bob.get("/v2/team-a/app/manifests/latest").await.expect(403);
    assert_eq!(upstream.requests().len(), 0, "{:#?}", upstream.requests());
    upstream.restrict("team-a/app", &["alice", "bob"]);
    mirror.clock().advance(Duration::from_secs(5));
    bob.get("/v2/team-a/app/manifests/latest").await.expect(200);
}

#[tokio::test]
async fn that_a_repository_holds_a_blob_is_asked_again_after_a_day() {
    let upstream = Registry::with(plain()).await;
    let image = private(&upstream, 1, "team-a/app", &["alice"]);
    let mirror = before(&upstream).start().await;
    pull(&alice(&mirror).await, &image).await;
    // By its end it has noted when that was.
    let mirror = mirror.stop().await.start().await;
    let layer = &image.layers[0];
    upstream.remove("team-a/app", &layer.digest);
    mirror.clock().advance(Duration::from_hours(23));
    let user = alice(&mirror).await;
    user.get(&image.tag_path("latest")).await.expect(200);
    user.get(&image.blob_path(layer)).await.expect(200);
    mirror.clock().advance(Duration::from_hours(1));
    let user = alice(&mirror).await;
    user.get(&image.tag_path("latest")).await.expect(200);
    user.get(&image.blob_path(layer)).await.expect(404);
    user.get(&image.blob_path(&image.layers[1])).await.expect(200);
}
