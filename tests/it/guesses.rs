//! Who makes up logins while a registry or its token service is in trouble: they are asked little, and who is honest pays nothing for it.

use std::time::Duration;

use crate::support::{Answer, Client, Fault, Like, Match, Registry, TestMirror, User, basic, noise};

const HOST: &str = "hub.mirror.test";
const ALICES: &str = "canary-of-alice";
const BOBS: &str = "canary-of-bob";

/// Alice has logged in, and nothing of that is counted.
async fn before(upstream: Registry, options: &str) -> (Registry, TestMirror) {
    let mirror = TestMirror::builder().gate("docker.io", &upstream, HOST).set(options).start().await;
    log_in(&mirror, "alice", ALICES).await.expect(200);
    upstream.forget_requests();
    (upstream, mirror)
}

async fn hub() -> Registry {
    Registry::with(Like::DockerHub.setup().login("alice", ALICES).login("bob", BOBS)).await
}

async fn log_in(mirror: &TestMirror, user: &str, password: &str) -> Answer {
    User::at(mirror, HOST).showing(&basic(user, password)).get("/token").await
}

fn limits(seconds: &str) -> Fault {
    Fault::answer(429, &[("retry-after", seconds)], "")
}

/// What a service says so of one login it need not say of others. Who guessed paid nothing, and asked it hundreds of times in a second.
#[tokio::test]
async fn while_a_token_service_limits_the_rate_who_makes_up_logins_pays_for_each() {
    let (upstream, mirror) = before(hub().await, "").await;
    upstream.on(Match::token(), limits("60"));
    for asked in [1, 1] {
        log_in(&mirror, "bob", BOBS).await.expect(503);
        assert_eq!((upstream.token_requests(), upstream.count("GET", "/v2/")), (asked, asked));
    }
    for n in 0..50 {
        log_in(&mirror, "bob", &format!("guess-{n}")).await.expect(if n < 29 { 503 } else { 429 });
    }
    assert_eq!((upstream.token_requests(), upstream.count("GET", "/v2/")), (30, 30));
    log_in(&mirror, "alice", ALICES).await.expect(200);
    assert_eq!(upstream.token_requests(), 30, "it is known for a minute");

    // Who was right a minute ago is no guesser, and is not asked about for as long as the service says so.
    mirror.clock().advance(Duration::from_mins(1));
    for _ in 0..3 {
        log_in(&mirror, "alice", ALICES).await.expect(503);
    }
    assert_eq!(upstream.token_requests(), 31);
    upstream.heal();
    log_in(&mirror, "bob", BOBS).await.expect(200);
    log_in(&mirror, "alice", ALICES).await.expect(503);
    mirror.clock().advance(Duration::from_mins(1));
    for n in 50..80 {
        log_in(&mirror, "bob", &format!("guess-{n}")).await.expect(401);
    }
    log_in(&mirror, "bob", "once more").await.expect(429);
    log_in(&mirror, "alice", ALICES).await.expect(200);
}

/// It is asked as nobody, so that it says so of everyone.
#[tokio::test]
async fn a_registry_that_limits_the_rate_is_asked_about_no_login_for_as_long_as_it_says_and_nobody_pays() {
    let (upstream, mirror) = before(Registry::start().await, "").await;
    upstream.on(Match::get("/v2/"), limits("20"));
    for n in 0..50 {
        log_in(&mirror, "bob", &format!("guess-{n}")).await.expect(503);
        User::at(&mirror, HOST).get("/token").await;
    }
    log_in(&mirror, "alice", ALICES).await.expect(200);
    assert_eq!(upstream.requests().len(), 1);
    upstream.heal();
    mirror.clock().advance(Duration::from_secs(19));
    log_in(&mirror, "bob", BOBS).await.expect(503);
    assert_eq!(upstream.requests().len(), 1);
    mirror.clock().advance(Duration::from_secs(1));
    log_in(&mirror, "bob", BOBS).await.expect(200);
}

#[tokio::test]
async fn a_registry_or_token_service_in_trouble_is_asked_little_about_logins_and_nobody_pays() {
    for (broken, code) in [("/v2/", 404), ("/v2/", 401), ("/v2/", 503), ("/token", 500), ("/token", 503)] {
        let of_token = broken == "/token";
        let upstream = if of_token { hub().await } else { Registry::start().await };
        let (upstream, mirror) = before(upstream, "").await;
        upstream.on(if of_token { Match::token() } else { Match::get(broken) }, Fault::status(code));
        for n in 0..50 {
            log_in(&mirror, "bob", &format!("guess-{n}")).await.expect(503);
        }
        assert!(upstream.requests().len() <= 2 * 3, "{broken} {code}: {:#?}", upstream.requests());
        log_in(&mirror, "alice", ALICES).await.expect(200);
        upstream.heal();
        mirror.clock().advance(Duration::from_secs(5));
        log_in(&mirror, "bob", BOBS).await.expect(200);
    }
}

/// However much was asked of an upstream already, and however many asked.
#[tokio::test]
async fn a_login_is_asked_about_when_there_is_room_for_one_more_question() {
    let options = "upstream.\"docker.io\".max_transfers = 1\nupstream.\"docker.io\".header_timeout = \"300ms\"";
    let (upstream, mirror) = before(Registry::start().await, options).await;
    let blob = upstream.put_blob("library/app", noise(1, 100_000));
    upstream.on(Match::get(&blob), Fault::Gate { after: 50_000 });
    let alice = basic("alice", ALICES);
    let headers = [("host", HOST), ("authorization", &*alice)];
    let answer = Client::h1().stream_with(mirror.url(&format!("/v2/library/app/blobs/{blob}")), &headers).await;
    upstream.held(1).await;
    upstream.forget_requests();
    log_in(&mirror, "bob", BOBS).await.expect(503);
    assert_eq!(upstream.requests().len(), 0);
    upstream.release();
    answer.rest().await.expect(200);
    log_in(&mirror, "bob", BOBS).await.expect(200);
}

/// As one does whose heads may not be long: that is a no to the login, and no trouble of its own, in which it would be left alone.
#[tokio::test]
async fn a_login_that_a_registry_cannot_read_is_a_try_and_keeps_nobody_out() {
    for status in [400, 413, 414, 431] {
        let upstream = Registry::like(Like::Ecr).await;
        let (user, password) = Like::Ecr.login().unwrap();
        let mirror = TestMirror::builder().gate("docker.io", &upstream, HOST).start().await;
        upstream.on(Match::get("/v2/").authorized(), Fault::status(status));
        for n in 0..40 {
            log_in(&mirror, user, &format!("guess-{n}")).await.expect(if n < 30 { 401 } else { 429 });
        }
        upstream.heal();
        mirror.clock().advance(Duration::from_mins(1));
        log_in(&mirror, user, password).await.expect(200);
    }
}
