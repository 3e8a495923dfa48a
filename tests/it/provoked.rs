//! Who makes up what an upstream, or its token service, fails at: that keeps nobody else from it.

use std::time::Duration;

use futures_util::future::join;
use larder::clock::Clock;

use crate::support::{
    ANONYMOUS, Answer, Auth, Blobs, Client, Fault, Image, Like, Listener, Match, Registry, Setup, StoppedMirror, TestMirror,
    User, basic, noise,
};

const HOST: &str = "hub.mirror.test";
const ATTACKER: (&str, &str) = ("x-forwarded-for", "198.51.100.1");
const OTHER: (&str, &str) = ("x-forwarded-for", "198.51.100.2");

/// One that believes for whom it is asked.
struct Provoked {
    upstream: Registry,
    mirror: TestMirror,
}

impl Provoked {
    async fn start(upstream: Registry, mirror: StoppedMirror) -> Self {
        Self { upstream, mirror: mirror.listener("proxies = ['127.0.0.1']").start().await }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        Client::h1().get_with(format!("{}{path}", self.mirror.listening()[1]), headers).await
    }

    /// Between what someone asks of repositories that he makes up, another has images that nobody has asked for before.
    async fn others_pull(&self, refused: &[u16]) {
        for n in 0..3 {
            let image = Image::new(n).layers(&[1000]).put(&self.upstream, &format!("library/app{n}"), "latest");
            for path in [image.tag_path("latest"), image.blob_path(&image.layers[0])] {
                for again in 0..4 {
                    let made_up = format!("/v2/evil/n{n}-{again}/manifests/latest");
                    let answer = self.get(&made_up, &[ATTACKER]).await;
                    assert!(refused.contains(&answer.status), "{}", answer.text());
                }
                self.get(&path, &[OTHER]).await.expect(200);
            }
        }
    }
}

async fn with_tokens() -> Registry {
    Registry::with(Setup { auth: Auth::Bearer { user: None, expires_in: Some(300) }, ..Setup::default() }).await
}

/// Three paths that a gateway had nothing behind kept everyone from the registry.
#[tokio::test]
async fn paths_at_which_an_upstream_fails_keep_nobody_else_from_it() {
    for status in [502, 504] {
        let upstream = Registry::start().await;
        upstream.on(Match::any("/evil/"), Fault::status(status));
        let mirror = TestMirror::builder().upstream("docker.io", &upstream);
        let provoked = Provoked::start(upstream, mirror).await;
        provoked.others_pull(&[502]).await;
        assert!(provoked.upstream.count("GET", "/evil/") <= 3 * 3 * 6, "he himself is kept out for moments");
    }
}

#[tokio::test]
async fn repositories_at_which_a_token_service_fails_keep_nobody_else_from_its_tokens() {
    for status in [422, 500] {
        let upstream = with_tokens().await;
        upstream.on(Match::token().asking("evil"), Fault::status(status));
        let mirror = TestMirror::builder().upstream("docker.io", &upstream);
        Provoked::start(upstream, mirror).await.others_pull(&[404, 502]).await;
    }
}

/// Everything that was asked as this account was left alone, also what needs no new token.
#[tokio::test]
async fn repositories_for_which_a_token_service_limits_the_rate_keep_nobody_else_from_its_tokens() {
    let upstream = with_tokens().await;
    upstream.on(Match::token().asking("evil"), Fault::answer(429, &[("retry-after", "60")], ""));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream);
    let provoked = Provoked::start(upstream, mirror).await;
    provoked.others_pull(&[429]).await;
    assert!(provoked.upstream.count("GET", "/evil/") <= 24);
}

/// While a service limits the rate it is asked by a few who find that out, and then by nobody; but who needs no new token is served.
#[tokio::test]
async fn a_token_service_that_limits_the_rate_for_several_is_asked_by_nobody_and_what_needs_no_token_comes() {
    let upstream = with_tokens().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::builder().upstream("docker.io", &upstream);
    let provoked = Provoked::start(upstream, mirror).await;
    provoked.get(&image.tag_path("latest"), &[OTHER]).await.expect(200);
    provoked.upstream.on(Match::token(), Fault::answer(429, &[("retry-after", "60")], ""));
    provoked.upstream.forget_requests();
    for n in 0..20 {
        let from = format!("198.51.100.{n}");
        let path = format!("/v2/library/other{n}/manifests/latest");
        provoked.get(&path, &[("x-forwarded-for", &from)]).await.expect(429);
    }
    assert_eq!(provoked.upstream.token_requests(), 3);
    provoked.get(&image.blob_path(&image.layers[0]), &[ATTACKER]).await.expect(200);
}

/// Who makes up logins at which the service fails kept everyone from logging in.
#[tokio::test]
async fn logins_at_which_a_token_service_fails_keep_nobody_else_out() {
    for status in [422, 500] {
        let upstream =
            Registry::with(Like::DockerHub.setup().login("alice", "canary-of-alice").login("bob", "canary-of-bob")).await;
        upstream.on(Match::token().by(ANONYMOUS), Fault::status(status));
        let mirror = TestMirror::builder().gate("docker.io", &upstream, HOST);
        let provoked = Provoked::start(upstream, mirror).await;
        for (user, password) in [("alice", "canary-of-alice"), ("bob", "canary-of-bob")] {
            for n in 0..10 {
                let made_up = basic(&format!("evil-{user}-{n}"), "x");
                let answer = provoked.get("/token", &[("host", HOST), ("authorization", &made_up), ATTACKER]).await;
                assert!([401, 503].contains(&answer.status), "{}", answer.text());
            }
            let right = basic(user, password);
            provoked.get("/token", &[("host", HOST), ("authorization", &right), OTHER]).await.expect(200);
        }
    }
}

/// That he was kept from what he asks for was taken for an answer about logins, and kept everyone from logging in.
#[tokio::test]
async fn who_is_kept_out_himself_keeps_nobody_else_from_logging_in() {
    let upstream = Registry::start().await;
    upstream.on(Match::any("/evil/"), Fault::status(502));
    let mirror = TestMirror::builder().gate("docker.io", &upstream, HOST);
    let provoked = Provoked::start(upstream, mirror).await;
    let nobody =
        provoked.get("/token", &[("host", HOST), ATTACKER]).await.expect(200).json()["token"].as_str().unwrap().to_owned();
    let nobody = format!("Bearer {nobody}");
    for (user, password) in [("alice", "canary-of-alice"), ("bob", "canary-of-bob")] {
        for n in 0..4 {
            let path = format!("/v2/evil/{user}{n}/tags/list");
            provoked.get(&path, &[("host", HOST), ("authorization", &nobody), ATTACKER]).await.expect(502);
        }
        for n in 0..10 {
            let made_up = basic(&format!("evil-{user}-{n}"), "x");
            provoked.get("/token", &[("host", HOST), ("authorization", &made_up), ATTACKER]).await.expect(503);
        }
        let right = basic(user, password);
        provoked.get("/token", &[("host", HOST), ("authorization", &right), OTHER]).await.expect(200);
    }
}

/// That he is kept out was noted as a failure of the tag, which then nobody was given for moments.
#[tokio::test]
async fn who_is_kept_out_himself_keeps_nobody_else_from_a_tag() {
    for own in [false, true] {
        let upstream = if own { Registry::start().await } else { with_tokens().await };
        let limited = Fault::answer(429, &[("retry-after", "60")], "");
        upstream.on(
            if own { Match::any("/evil/") } else { Match::token().asking("evil") },
            if own { Fault::status(502) } else { limited },
        );
        let image = Image::new(1).put(&upstream, "library/app", "latest");
        let mirror = TestMirror::builder().upstream("docker.io", &upstream);
        let provoked = Provoked::start(upstream, mirror).await;
        for n in 0..4 {
            let status = provoked.get(&format!("/v2/evil/n{n}/manifests/latest"), &[ATTACKER]).await.status;
            assert_eq!(status, if own { 502 } else { 429 });
        }
        for _ in 0..10 {
            let status = provoked.get(&image.tag_path("latest"), &[ATTACKER]).await.status;
            assert_eq!(status, if own { 502 } else { 429 });
        }
        provoked.get(&image.tag_path("latest"), &[OTHER]).await.expect(200);
    }
}

/// One blob that lay where the rate was limited kept everyone from all others for as long as that said.
#[tokio::test]
async fn a_place_that_limits_the_rate_of_one_blob_keeps_nobody_else_from_another() {
    let upstream = Registry::with(Setup { blobs: Blobs::REDIRECTED, ..Setup::default() }).await;
    let [limited, other] = [1, 2].map(|seed| upstream.put_blob("library/app", noise(seed, 1000)));
    upstream.on(Match::storage(&limited), Fault::answer(429, &[("retry-after", "600")], ""));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream);
    let provoked = Provoked::start(upstream, mirror).await;
    let path = |digest| format!("/v2/library/app/blobs/{digest}");
    for _ in 0..5 {
        provoked.get(&path(&limited), &[ATTACKER]).await.expect(429);
    }
    assert_eq!(provoked.upstream.count("GET", &limited), 1);
    provoked.get(&path(&other), &[OTHER]).await.expect(200);
}

/// Who tried first whether an upstream was back kept it from everyone with what lets him wait there.
#[tokio::test]
async fn what_lets_one_wait_keeps_nobody_from_an_upstream_that_has_come_back() {
    let upstream = Registry::start().await;
    let images = [1, 2].map(|n| Image::new(n).put(&upstream, &format!("library/app{n}"), "latest"));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).clock(Clock::still());
    let provoked = Provoked::start(upstream, mirror).await;
    provoked.upstream.stop().await;
    provoked.get(&images[0].tag_path("latest"), &[OTHER]).await.expect(502);
    provoked.upstream.restart().await;
    provoked.upstream.on(Match::any("/evil/").times(1), Fault::Hang);
    provoked.mirror.clock().advance(Duration::from_secs(5));
    let waits = provoked.get("/v2/evil/x/manifests/latest", &[ATTACKER]);
    let others = async {
        provoked.upstream.held(1).await;
        for image in &images {
            provoked.get(&image.tag_path("latest"), &[OTHER]).await.expect(200);
        }
        provoked.upstream.release();
    };
    assert_ne!(join(waits, others).await.0.status, 200);
    assert_eq!(provoked.upstream.requests().iter().filter(|seen| seen.path == "/v2/").count(), 1, "that it is back");
}

/// What is not there, asked for as soon as the limit was over, was taken for no answer, and kept everyone out for longer.
#[tokio::test]
async fn a_limit_of_the_rate_lasts_as_long_as_it_was_told() {
    let upstream = Registry::with(Setup { blobs: Blobs::REDIRECTED, ..Setup::default() }).await;
    let blobs: [_; 4] = std::array::from_fn(|n| upstream.put_blob("library/app", noise(n as u64, 1000)));
    upstream.on(Match::storage(""), Fault::answer(429, &[("retry-after", "60")], ""));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).clock(Clock::still());
    let provoked = Provoked::start(upstream, mirror).await;
    let path = |digest| format!("/v2/library/app/blobs/{digest}");
    for (n, blob) in blobs.iter().enumerate() {
        let from = format!("198.51.100.{}", n + 10);
        provoked.get(&path(blob), &[("x-forwarded-for", &from)]).await.expect(429);
    }
    assert_eq!(provoked.upstream.count_at(Listener::Storage, "GET", ""), 3, "three are told, and it is so for everyone");
    provoked.upstream.heal();
    provoked.get(&path(&blobs[0]), &[OTHER]).await.expect(429);
    provoked.mirror.clock().advance(Duration::from_mins(1));
    provoked.get("/v2/evil/x/manifests/latest", &[ATTACKER]).await.expect(404);
    provoked.get(&path(&blobs[0]), &[OTHER]).await.expect(200);
}

/// Clients behind one proxy have one address.
#[tokio::test]
async fn a_place_that_limits_the_rate_of_one_login_keeps_no_other_from_it() {
    let setup = Like::DockerHub.setup().login("alice", "canary-of-alice").login("bob", "canary-of-bob");
    let upstream = Registry::with(setup).await;
    let [limited, other] = [1, 2].map(|seed| upstream.put_blob("library/app", noise(seed, 1000)));
    upstream.on(Match::storage(&limited), Fault::answer(429, &[("retry-after", "600")], ""));
    let mirror = TestMirror::builder().gate("docker.io", &upstream, HOST).start().await;
    let [alice, bob] = [("alice", "canary-of-alice"), ("bob", "canary-of-bob")]
        .map(|(user, password)| User::login(&mirror, HOST, user, password));
    let (alice, bob) = join(alice, bob).await;
    let path = |digest| format!("/v2/library/app/blobs/{digest}");
    alice.get(&path(&limited)).await.expect(429);
    alice.get(&path(&other)).await.expect(429);
    bob.get(&path(&other)).await.expect(200);
}

/// What another address said then, that it has nothing, was taken for news of the first, and noted as a failure of the tag.
#[tokio::test]
async fn who_is_kept_from_the_first_address_keeps_nobody_else_from_a_tag_that_the_next_does_not_have() {
    let (upstream, next) = (Registry::start().await, Registry::start().await);
    upstream.on(Match::any("/evil/"), Fault::status(502));
    let image = Image::new(1).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::builder()
        .upstream("docker.io", &upstream)
        .set(&format!("upstream.\"docker.io\".fallbacks = [{:?}]", next.url()));
    let provoked = Provoked::start(upstream, mirror).await;
    for n in 0..4 {
        provoked.get(&format!("/v2/evil/n{n}/manifests/latest"), &[ATTACKER]).await.expect(502);
    }
    for _ in 0..10 {
        provoked.get(&image.tag_path("latest"), &[ATTACKER]).await.expect(502);
    }
    provoked.get(&image.tag_path("latest"), &[OTHER]).await.expect(200);
}
