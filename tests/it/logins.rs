//! Clients that log in with credentials of their own: the challenge, the token, and what becomes of both.

use std::fs;
use std::path::Path;
use std::time::Duration;

use http::Method;

use crate::support::{
    Answer, Client, Fault, Image, Like, Listener, Match, Process, Registry, StoppedMirror, TestMirror, User, basic, get, noise,
    raw,
};

const HOST: &str = "hub.mirror.test";
const CHALLENGE: &str = "Bearer realm=\"https://hub.mirror.test/token\",service=\"hub.mirror.test\"";
const PASSWORD: &str = "canary-horse-battery";

async fn hub() -> Registry {
    Registry::with(Like::DockerHub.setup().login("alice", PASSWORD).login("bob", "canary-of-bob")).await
}

fn before(registry: &Registry) -> StoppedMirror {
    TestMirror::builder().gate("docker.io", registry, HOST)
}

fn challenge(answer: &Answer) -> &str {
    answer.header("www-authenticate").unwrap_or_default()
}

// === the flow of a client ===

#[tokio::test]
async fn docker_logs_in_and_pulls() {
    let upstream = hub().await;
    let image = Image::new(1).layers(&[40_000]).put(&upstream, "team/app", "latest");
    upstream.restrict("team/app", &["alice"]);
    let mirror = before(&upstream).start().await;
    let docker = User::at(&mirror, HOST);
    for answer in [docker.get("/v2/").await, docker.head("/v2/").await] {
        assert_eq!((answer.status, challenge(&answer)), (401, CHALLENGE));
        assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
    }
    let docker = docker.showing(&basic("alice", PASSWORD));
    let asked = "/token?account=alice&client_id=docker&offline_token=true&service=hub.mirror.test";
    let token = docker.get(asked).await.expect(200);
    assert_eq!(token.header("cache-control"), Some("private, no-store"));
    let token = token.json();
    assert_eq!(token["token"], token["access_token"]);
    assert_eq!(token["expires_in"], 300);
    assert!(humantime::parse_rfc3339(token["issued_at"].as_str().unwrap()).is_ok(), "{token}");
    let token = token["token"].as_str().unwrap().to_owned();
    assert_eq!(token.len(), 43, "32 bytes in base64");
    let docker = docker.showing(&format!("Bearer {token}"));
    docker.get("/v2/").await.expect(200);
    docker.head("/v2/").await.expect(200);
    assert_eq!(docker.head(&image.tag_path("latest")).await.expect(200).header("docker-content-digest"), Some(&*image.digest));
    docker.get(&image.manifest_path()).await.expect(200);
    for blob in image.blobs() {
        docker.get(&image.blob_path(blob)).await.expect(200);
    }
    let seen = upstream.requests();
    assert!(seen.iter().all(|request| request.account == "alice" || request.authorization().is_none()), "{seen:#?}");
    assert!(seen.iter().all(|request| request.authorization().is_none_or(|shown| !shown.contains(&token))), "{seen:#?}");
}

#[tokio::test]
async fn containerd_learns_at_the_manifest_posts_and_falls_back() {
    let upstream = hub().await;
    let image = Image::new(1).layers(&[40_000]).put(&upstream, "team/app", "latest");
    upstream.restrict("team/app", &["alice"]);
    let mirror = before(&upstream).start().await;
    let containerd = User::at(&mirror, HOST);
    let refused = containerd.head(&format!("{}?ns=docker.io", image.tag_path("latest"))).await.expect(401);
    assert_eq!(challenge(&refused), format!("{CHALLENGE},scope=\"repository:team/app:pull\""));
    assert_eq!(refused.header("oci-namespace"), Some("docker.io"));

    let form = format!("client_id=containerd-client&grant_type=password&username=alice&password={PASSWORD}&service={HOST}");
    let head = format!("POST /token HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/x-www-form-urlencoded\r\n");
    let posted = raw(mirror.address(), format!("{head}content-length: {}\r\n\r\n{form}", form.len())).await;
    assert!(posted.starts_with(b"HTTP/1.1 405 "), "{}", String::from_utf8_lossy(&posted));

    let containerd = containerd.showing(&basic("alice", PASSWORD));
    let token = containerd.get("/token?scope=repository%3Ateam%2Fapp%3Apull&service=hub.mirror.test").await.expect(200).json();
    let containerd = containerd.showing(&format!("Bearer {}", token["token"].as_str().unwrap()));
    containerd.head(&format!("{}?ns=docker.io", image.tag_path("latest"))).await.expect(200);
    containerd.get(&format!("{}?ns=docker.io", image.manifest_path())).await.expect(200);
    containerd.get(&format!("{}?ns=docker.io", image.blob_path(&image.layers[0]))).await.expect(200);
}

#[tokio::test]
async fn a_password_with_each_request_will_do_as_well() {
    let upstream = hub().await;
    let image = Image::new(1).layers(&[40_000]).put(&upstream, "team/app", "latest");
    upstream.restrict("team/app", &["alice"]);
    let mirror = before(&upstream).start().await;
    let alice = User::at(&mirror, HOST).showing(&basic("alice", PASSWORD));
    alice.get("/v2/").await.expect(200);
    let asked = upstream.requests().len();
    alice.get("/v2/").await.expect(200);
    assert_eq!(upstream.requests().len(), asked, "it is known for a minute");
    alice.get(&image.tag_path("latest")).await.expect(200);
    let wrong = User::at(&mirror, HOST).showing(&basic("alice", "wrong"));
    assert_eq!(challenge(&wrong.get("/v2/").await.expect(401)), CHALLENGE);
    let refused = wrong.get(&image.tag_path("latest")).await.expect(401);
    assert_eq!(challenge(&refused), format!("{CHALLENGE},scope=\"repository:team/app:pull\""));
    let bob = User::at(&mirror, HOST).showing(&basic("bob", "canary-of-bob"));
    bob.get(&image.tag_path("latest")).await.expect(403);
}

#[tokio::test]
async fn a_registry_that_wants_basic_is_shown_what_the_client_has_shown() {
    let upstream = Registry::like(Like::Ecr).await;
    let image = Image::new(1).layers(&[40_000]).put(&upstream, "team/app", "latest");
    let (user, password) = Like::Ecr.login().unwrap();
    let mirror = before(&upstream).start().await;
    let aws = User::login(&mirror, HOST, user, password).await;
    assert_eq!(aws.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
    for blob in image.blobs() {
        assert_eq!(aws.get(&image.blob_path(blob)).await.expect(200).body, blob.bytes);
    }
    assert!(upstream.requests().iter().all(|seen| seen.listener != Listener::Storage || seen.authorization().is_none()));
    let wrong = User::at(&mirror, HOST).showing(&basic(user, "of yesterday"));
    assert_eq!(challenge(&wrong.get("/token").await.expect(401)), "Basic realm=\"larder\"");
    User::at(&mirror, HOST).get("/token").await.expect(401);
    // A registry in trouble has not said that a password is right.
    mirror.clock().advance(Duration::from_secs(5));
    upstream.on(Match::get("/v2/"), Fault::status(500));
    wrong.get("/token").await.expect(401);
    aws.get("/v2/").await.expect(200);
    User::at(&mirror, HOST).showing(&basic(user, password)).get("/token").await.expect(200);
    mirror.clock().advance(Duration::from_mins(1));
    User::at(&mirror, HOST).showing(&basic(user, password)).get("/token").await.expect(503);
}

#[tokio::test]
async fn a_registry_in_trouble_has_not_said_that_a_login_is_right() {
    for code in [429, 500, 503] {
        let upstream = Registry::start().await;
        upstream.on(Match::get("/v2/"), Fault::status(code));
        let mirror = before(&upstream).start().await;
        let alice = User::at(&mirror, HOST).showing(&basic("alice", PASSWORD));
        alice.get("/token").await.expect(503);
        alice.get("/v2/").await.expect(503);
        upstream.heal();
        mirror.clock().advance(Duration::from_secs(30));
        alice.get("/token").await.expect(200);
        assert!(upstream.requests().iter().all(|seen| seen.authorization().is_none()), "it has asked for nothing");
    }
}

/// A try that could not be made costs an address nothing: it could make larder knock at a closed door as often as it liked.
#[tokio::test]
async fn a_registry_that_is_down_is_not_asked_about_every_login() {
    let upstream = Registry::start().await;
    upstream.on(Match::get("/v2/"), Fault::status(503));
    let mirror = before(&upstream).start().await;
    for password in 0..20 {
        User::at(&mirror, HOST).showing(&basic("alice", &password.to_string())).get("/token").await.expect(503);
    }
    assert_eq!(upstream.requests().len(), 3);
    upstream.heal();
    mirror.clock().advance(Duration::from_secs(5));
    User::at(&mirror, HOST).showing(&basic("alice", PASSWORD)).get("/token").await.expect(200);
}

#[tokio::test]
async fn what_is_no_login_is_refused_without_a_question() {
    let upstream = hub().await;
    let mirror = before(&upstream).start().await;
    for shown in ["Basic", "Basic !!!", "Basic bm9jb2xvbg==", "Bearer x", "Bearer ", "Negotiate abc", "Basic /////w=="] {
        let refused = User::at(&mirror, HOST).showing(shown).get("/token").await.expect(401);
        assert_eq!(challenge(&refused), "Basic realm=\"larder\"", "{shown}");
        User::at(&mirror, HOST).showing(shown).get("/v2/").await.expect(401);
    }
    // Not every registry answers a head as long as this at all, and who is not answered has others wait.
    let long = basic("alice", &"x".repeat(6000));
    User::at(&mirror, HOST).showing(&long).get("/token").await.expect(401);
    User::at(&mirror, HOST).showing(&long).get("/v2/").await.expect(401);
    assert_eq!(upstream.requests().len(), 0);
    let unknown = User::at(&mirror, HOST).showing("Bearer x").get("/v2/").await.expect(401);
    assert_eq!(challenge(&unknown), format!("{CHALLENGE},error=\"invalid_token\""));
}

// === the life of a token ===

#[tokio::test]
async fn a_token_is_good_for_five_minutes_in_this_process_at_this_host() {
    let upstream = hub().await;
    let mirror = before(&upstream).start().await;
    let alice = User::login(&mirror, HOST, "alice", PASSWORD).await;
    mirror.clock().advance(Duration::from_secs(299));
    alice.get("/v2/").await.expect(200);
    mirror.clock().advance(Duration::from_secs(1));
    let refused = alice.get("/v2/").await.expect(401);
    assert_eq!(challenge(&refused), format!("{CHALLENGE},error=\"invalid_token\""));
    let alice = alice.showing(&basic("alice", PASSWORD)).with_token().await;
    alice.get("/v2/").await.expect(200);
    let shown = alice.authorization.unwrap();
    let mirror = mirror.stop().await.start().await;
    User::at(&mirror, HOST).showing(&shown).get("/v2/").await.expect(401);
}

#[tokio::test]
async fn a_token_of_one_upstream_is_worth_nothing_at_another() {
    let (hub, corp) = (hub().await, hub().await);
    Image::new(1).put(&corp, "team/app", "latest");
    let mirror = before(&hub).gate("registry.corp", &corp, "corp.mirror.test").start().await;
    let alice = User::login(&mirror, HOST, "alice", PASSWORD).await;
    corp.forget_requests();
    let shown = alice.authorization.unwrap();
    let there = User::at(&mirror, "corp.mirror.test").showing(&shown);
    for path in ["/v2/", "/v2/team/app/manifests/latest"] {
        let refused = there.get(path).await.expect(401);
        assert!(challenge(&refused).starts_with("Bearer realm=\"https://corp.mirror.test/token\""), "{:?}", refused.headers);
        assert!(challenge(&refused).ends_with("error=\"invalid_token\""), "{:?}", refused.headers);
    }
    assert_eq!(corp.requests().len(), 0);
}

#[tokio::test]
async fn one_login_a_minute_is_asked_upstream_and_gets_one_token() {
    let upstream = hub().await;
    let mirror = before(&upstream).start().await;
    let user = || User::login(&mirror, HOST, "alice", PASSWORD);
    let (one, other) = (user().await, user().await);
    assert_eq!(one.authorization, other.authorization);
    assert_eq!((upstream.count("GET", "/v2/"), upstream.token_requests()), (1, 1));
    mirror.clock().advance(Duration::from_secs(59));
    let late = User::at(&mirror, HOST).showing(&basic("alice", PASSWORD)).get("/token").await.expect(200).json();
    assert_eq!(late["expires_in"], 241);
    mirror.clock().advance(Duration::from_secs(1));
    let next = user().await;
    assert_ne!(one.authorization, next.authorization);
    assert_eq!((upstream.count("GET", "/v2/"), upstream.token_requests()), (2, 2), "a token of before is no answer");
    one.get("/v2/").await.expect(200);
}

// === wrong passwords ===

#[tokio::test]
async fn a_wrong_password_is_asked_for_once_in_five_seconds() {
    let upstream = hub().await;
    let mirror = before(&upstream).start().await;
    let wrong = User::at(&mirror, HOST).showing(&basic("alice", "wrong"));
    for _ in 0..5 {
        let refused = wrong.get("/token").await.expect(401);
        assert_eq!(refused.error_code().as_deref(), Some("UNAUTHORIZED"));
        assert_eq!(challenge(&refused), "Basic realm=\"larder\"");
        wrong.get("/v2/").await.expect(401);
    }
    assert_eq!(upstream.token_requests(), 1);
    mirror.clock().advance(Duration::from_secs(5));
    wrong.get("/token").await.expect(401);
    assert_eq!(upstream.token_requests(), 2);
    User::login(&mirror, HOST, "alice", PASSWORD).await;
}

/// Any password was right where the registry did not say how it wants to be shown one.
#[tokio::test]
async fn a_registry_that_says_no_and_not_what_it_wants_makes_no_login_right() {
    let upstream = Registry::start().await;
    upstream.on(Match::any("/v2/"), Fault::status(401));
    let mirror = before(&upstream).start().await;
    let user = User::at(&mirror, HOST).showing(&basic("alice", PASSWORD));
    user.get("/token").await.expect(503);
}

#[tokio::test]
async fn who_tries_out_passwords_is_slowed_and_who_is_known_is_not() {
    let upstream = hub().await;
    let mirror = before(&upstream).start().await;
    User::login(&mirror, HOST, "alice", PASSWORD).await;
    let guess = async |n: u32| User::at(&mirror, HOST).showing(&basic("bob", &format!("guess-{n}"))).get("/token").await;
    upstream.forget_requests();
    let guesses = futures_util::future::join_all((0..50).map(&guess)).await;
    assert_eq!(guesses.iter().filter(|answer| answer.status == 401).count(), 30);
    let slowed = guesses.iter().find(|answer| answer.status != 401).unwrap();
    assert_eq!((slowed.status, slowed.error_code().as_deref()), (429, Some("TOOMANYREQUESTS")));
    assert!(slowed.header("retry-after").is_some());
    assert_eq!(upstream.token_requests(), 30);
    guess(51).await.expect(429);
    // Also a right one, as it cannot be told apart from a guess.
    User::at(&mirror, HOST).showing(&basic("bob", "canary-of-bob")).get("/token").await.expect(429);
    // Who was known a while ago is no guesser, and nobody has no password.
    mirror.clock().advance(Duration::from_secs(1));
    User::nobody(&mirror, HOST).await;
    mirror.clock().advance(Duration::from_mins(1));
    let _ = futures_util::future::join_all((100..150).map(&guess)).await;
    guess(151).await.expect(429);
    User::login(&mirror, HOST, "alice", PASSWORD).await;
    mirror.clock().advance(Duration::from_secs(2));
    guess(152).await.expect(401);
    guess(153).await.expect(429);
}

/// A right password was told that it is wrong, and soon that there were too many.
#[tokio::test]
async fn a_token_service_that_is_not_listed_is_for_the_operator_to_list_and_no_clients_fault() {
    let upstream = hub().await;
    let mirror = before(&upstream).set("upstream.\"docker.io\".token_hosts = []").start().await;
    let alice = User::at(&mirror, HOST).showing(&basic("alice", PASSWORD));
    for guess in 0..40 {
        let user = User::at(&mirror, HOST).showing(&basic("alice", &guess.to_string()));
        for user in [&user, &alice] {
            let refused = user.get("/token").await.expect(503);
            assert_eq!((refused.error_code().as_deref(), challenge(&refused)), (Some("UNAVAILABLE"), ""));
            assert!(refused.text().contains("its log says which"), "{}", refused.text());
        }
    }
    alice.get("/v2/").await.expect(503);
    alice.get("/v2/team/app/manifests/latest").await.expect(502);
    let errors = get(mirror.admin_url("/api/errors")).await.expect(200).text();
    let token_host = upstream.token_url().replace("http://", "");
    assert!(errors.contains(&token_host) && errors.contains("token_hosts"), "{errors}");
    assert_eq!(upstream.requests().len(), 1, "however many guess");
    User::nobody(&mirror, HOST).await;
    mirror.clock().advance(Duration::from_secs(5));
    alice.get("/token").await.expect(503);
    assert_eq!((upstream.count("GET", "/v2/"), upstream.token_requests()), (3, 1));
    assert!(upstream.requests().iter().all(|seen| seen.authorization().is_none()), "{:#?}", upstream.requests());
}

/// A token service that answers so was taken for one in trouble, and left alone: nobody could log in, and a minute later nobody pulled.
#[tokio::test]
async fn a_login_that_a_token_service_cannot_read_is_a_try_and_keeps_nobody_out() {
    for status in [400, 413, 414, 431] {
        let upstream = hub().await;
        let mirror = before(&upstream).start().await;
        upstream.on(Match::token(), Fault::status(status));
        for n in 0..40 {
            let guess = User::at(&mirror, HOST).showing(&basic("bob", &format!("guess-{n}"))).get("/token").await;
            guess.expect(if n < 30 { 401 } else { 429 });
        }
        upstream.heal();
        mirror.clock().advance(Duration::from_mins(1));
        User::login(&mirror, HOST, "alice", PASSWORD).await;
    }
}

#[tokio::test]
async fn logins_that_are_right_are_no_tries() {
    let upstream = Registry::with((0..40).fold(Like::DockerHub.setup(), |setup, n| {
        let name: &'static str = format!("user-{n}").leak();
        setup.login(name, "canary-x")
    }))
    .await;
    let mirror = before(&upstream).start().await;
    for n in 0..40 {
        User::login(&mirror, HOST, &format!("user-{n}"), "canary-x").await;
    }
}

// === nothing of it comes out ===

fn files(dir: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.is_file() {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
}

#[tokio::test]
async fn nothing_of_a_credential_is_in_a_log_an_answer_or_a_file() {
    let upstream = hub().await;
    let image = Image::new(1).layers(&[40_000]).layer(noise(3, 10)).put(&upstream, "team/app", "latest");
    upstream.restrict("team/app", &["alice"]);
    let dir = tempfile::tempdir().unwrap();
    let token_host = upstream.token_url().replace("http://", "");
    let settings = [
        "log.level=trace".into(),
        format!("upstream.\"docker.io\".url={}", upstream.url()),
        "upstream.\"docker.io\".auth=passthrough".into(),
        format!("upstream.\"docker.io\".public_url=https://{HOST}"),
        format!("upstream.\"docker.io\".token_hosts={token_host}"),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let larder = Process::start(dir.path(), &settings, &[]);
    let login = basic("alice", PASSWORD);
    let ask = async |method: Method, path: &str, shown: &str| {
        let headers = [("host", HOST), ("authorization", shown)];
        Client::h1().request(method, larder.url(path), &headers).await
    };
    let token = ask(Method::GET, "/token?account=alice&service=x", &login).await.expect(200).json();
    let token = token["token"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    let mut answers = Vec::new();
    for shown in [&login, &bearer, &basic("alice", "wr0ng-pass"), &basic("bob", "canary-of-bob"), &format!("Bearer x{token}")] {
        for path in ["/v2/", &image.tag_path("latest"), &image.blob_path(&image.layers[0]), "/v2/team/app/tags/list"] {
            answers.push(ask(Method::GET, path, shown).await);
            answers.push(ask(Method::HEAD, path, shown).await);
        }
        answers.push(ask(Method::POST, &format!("/token?password={PASSWORD}"), shown).await);
    }
    upstream.stop().await;
    answers.push(ask(Method::GET, "/v2/team/other/manifests/latest", &bearer).await.expect(502));
    answers.push(ask(Method::GET, "/token", &basic("bob", "another-s3cret")).await.expect(503));
    let log = larder.terminate().log;
    assert!(log.contains("team/app") && log.contains("token"), "{log}");
    let mut written = vec![("the log".to_owned(), log.into_bytes())];
    written.extend(
        answers.iter().map(|answer| ("an answer".into(), format!("{:?} {}", answer.headers, answer.text()).into_bytes())),
    );
    files(dir.path(), &mut written);
    assert!(written.len() > answers.len() + 3, "the cache is elsewhere");
    let encoded = |shown: &str| shown.trim_start_matches("Basic ").to_owned();
    for secret in [
        PASSWORD.to_owned(),
        "wr0ng-pass".into(),
        "canary-of-bob".into(),
        "another-s3cret".into(),
        "alice".into(),
        encoded(&login),
        encoded(&basic("alice", "wr0ng-pass")),
        encoded(&basic("bob", "canary-of-bob")),
        token,
        "scripted-token".into(),
    ] {
        for (place, bytes) in &written {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret} is in {place}");
        }
    }
}
