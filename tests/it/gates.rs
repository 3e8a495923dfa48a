//! The gate of an upstream that clients read with credentials of their own: the only way in.

use crate::support::{Image, Like, PutImage, Registry, StoppedMirror, TestMirror, User};

const HOST: &str = "hub.mirror.test";

async fn hub() -> Registry {
    Registry::with(Like::DockerHub.setup().login("alice", "canary-x")).await
}

fn before(registry: &Registry) -> StoppedMirror {
    TestMirror::builder().gate("docker.io", registry, HOST)
}

/// An image that only Alice may read.
fn private(registry: &Registry) -> PutImage {
    let image = Image::new(1).layers(&[40_000]).put(registry, "team-a/app", "latest");
    registry.restrict("team-a/app", &["alice"]);
    image
}

#[tokio::test]
async fn by_every_other_way_it_is_refused_and_nobody_is_challenged() {
    let upstream = hub().await;
    let image = private(&upstream);
    let open = Registry::start().await;
    let public = Image::new(2).put(&open, "o/x", "latest");
    let mirror =
        before(&upstream).upstream("quay.io", &open).set("upstream.\"quay.io\".hosts = [\"quay.mirror.test\"]").start().await;
    let alice = User::login(&mirror, HOST, "alice", "canary-x").await;
    alice.get(&image.tag_path("latest")).await.expect(200);
    upstream.forget_requests();
    let shown = alice.authorization.clone().unwrap();
    for path in ["/v2/team-a/app", "/v2/docker.io/team-a/app", "/docker.io/v2/team-a/app"] {
        for query in ["", "?ns=docker.io", "?ns=registry-1.docker.io"] {
            for host in ["127.0.0.1", "quay.mirror.test"] {
                if host == "quay.mirror.test" && (path, query) == ("/v2/team-a/app", "") {
                    continue;
                }
                if (path, query, host) == ("/v2/docker.io/team-a/app", "", "quay.mirror.test") {
                    continue;
                }
                let asked = format!("{path}/manifests/latest{query}");
                let refused = User::at(&mirror, host).showing(&shown).get(&asked).await.expect(403);
                assert_eq!(refused.error_code().as_deref(), Some("DENIED"), "{asked}");
                assert!(refused.text().contains("https://hub.mirror.test"), "{}", refused.text());
            }
        }
    }
    assert_eq!(upstream.requests().len(), 0);
    for host in ["127.0.0.1", "quay.mirror.test", "other.mirror.test"] {
        let other = User::at(&mirror, host);
        other.get("/v2/").await.expect(200);
        other.get("/token").await.expect(404);
        other.get("/v2/o/x/manifests/latest?ns=quay.io").await.expect(200);
    }
    // At its own host it may be named again, and others may be named as everywhere.
    for path in ["/v2/team-a/app", "/v2/docker.io/team-a/app", "/docker.io/v2/team-a/app"] {
        alice.get(&format!("{path}/manifests/latest")).await.expect(200);
        alice.get(&format!("{path}/manifests/latest?ns=docker.io")).await.expect(200);
    }
    assert_eq!(User::at(&mirror, HOST).get("/v2/o/x/manifests/latest?ns=quay.io").await.expect(200).body, public.manifest);
}

#[tokio::test]
async fn what_it_serves_is_for_one_client_and_no_cache_on_the_way_keeps_it() {
    let upstream = hub().await;
    let image = private(&upstream);
    let mirror = before(&upstream).start().await;
    let alice = User::login(&mirror, HOST, "alice", "canary-x").await;
    let paths =
        [image.tag_path("latest"), image.manifest_path(), image.blob_path(&image.layers[0]), "/v2/team-a/app/tags/list".into()];
    for path in &paths {
        let answer = alice.get(path).await.expect(200);
        assert!(answer.header("cache-control").is_some_and(|caching| caching.starts_with("private")), "{path}");
    }
}

#[tokio::test]
async fn a_gate_that_cannot_be_is_told_in_one_line() {
    let upstream = hub().await;
    for (setting, says) in [
        ("public_url = \"\"", "public_url is missing"),
        ("public_url = \"http://hub.mirror.test\"", "must begin with https://"),
        ("public_url = \"https://hub.mirror.test/path\"", "a host and nothing else"),
        ("public_url = \"hub.mirror.test\"", "must be a URL"),
        ("auth = \"own\"", "add auth = \"passthrough\""),
        ("auth = \"both\"", "expected `own` or `passthrough`"),
        ("username = \"bob\"\npassword_file = \"/dev/null\"", "clients bring their own credentials"),
        ("account = [{ username = \"bob\", password_file = \"/dev/null\" }]", "clients bring their own credentials"),
    ] {
        let lines: Vec<String> = setting.lines().map(|line| format!("upstream.\"docker.io\".{line}")).collect();
        let (error, _) = before(&upstream).set(&lines.join("\n")).try_start().await.err().unwrap();
        assert!(error.contains(says) && !error.contains('\n'), "{setting}: {error}");
    }
    let (error, _) = before(&upstream).set("upstream.\"docker.io\".public_url = \"\"").try_start().await.err().unwrap();
    assert!(error.starts_with("upstream.\"docker.io\".public_url "), "{error}");
}
