//! For whom the page is.

use std::fs;

use http::Method;
use serde_json::Value;

use super::{api, htpasswd, order, says};
use crate::support::{Client, TestMirror, basic, get, get_with, until};

#[tokio::test]
async fn no_page_of_another_origin_can_ask() {
    let mirror = TestMirror::builder().start().await;
    let own = mirror.admin_url("");
    let refused = [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("origin", "http://127.0.0.1:1"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ];
    for header in refused {
        let answer = order(&mirror, "unpin?image=app", &[header]).await.expect(403);
        assert!(says(&answer).contains("another origin"), "{header:?}");
        get_with(mirror.admin_url("/api/now"), &[header]).await.expect(403);
    }
    let unmarked = Client::h1().request(Method::POST, mirror.admin_url("/api/unpin?image=app"), &[]).await.expect(403);
    assert!(says(&unmarked).contains("X-Larder"));
    for header in [("origin", own.as_str()), ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "none")] {
        order(&mirror, "unpin?image=app", &[header]).await.expect(409);
        get_with(mirror.admin_url("/api/now"), &[header]).await.expect(200);
    }
    // Who follows a link comes from anywhere.
    get_with(mirror.admin_url("/"), &[("sec-fetch-site", "cross-site")]).await.expect(200);
    get_with(mirror.admin_url("/"), &[("host", "evil.example")]).await.expect(403);
    for get_only in ["now", "history", "images", "errors", "setup"] {
        assert_eq!(order(&mirror, get_only, &[]).await.expect(405).header("allow"), Some("GET"));
    }
    for post_only in ["pin", "unpin", "remove", "verify", "pull", "refresh"] {
        assert_eq!(get(mirror.admin_url(&format!("/api/{post_only}?image=app"))).await.expect(405).header("allow"), Some("POST"));
    }
}

#[tokio::test]
async fn who_is_not_on_this_machine_may_look_and_change_nothing() {
    let mirror = TestMirror::builder().start().await;
    for header in [
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-host", "larder.corp"),
        ("x-forwarded-proto", "https"),
        ("forwarded", "for=10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("via", "1.1 proxy"),
    ] {
        assert_eq!(get_with(mirror.admin_url("/api/now"), &[header]).await.expect(200).json()["may_change"], false);
        for what in ["pin", "unpin", "remove", "verify", "pull", "refresh"] {
            let answer = order(&mirror, &format!("{what}?image=app"), &[header]).await.expect(403);
            assert!(says(&answer).contains("admin.users_file"), "{what}");
        }
    }
}

/// A proxy on this machine may not say that it is one.
#[tokio::test]
async fn this_machine_is_no_better_than_others_where_the_operator_says_so() {
    let mirror = TestMirror::builder().set("admin.trust_loopback = false").start().await;
    assert_eq!(api(&mirror, "now").await["may_change"], false);
    let refused = order(&mirror, "remove?image=app", &[]).await.expect(403);
    assert!(says(&refused).contains("admin.users_file"), "{}", says(&refused));
}

#[tokio::test]
async fn where_there_are_users_nobody_else_is_answered() {
    let builder = TestMirror::builder();
    let file = builder.dir().join("operators");
    htpasswd(&file);
    let mirror = builder.set(&format!("admin.users_file = '{}'", file.display())).start().await;
    let (right, wrong) = (basic("alice", "canary-of-alice"), basic("alice", "canary-of-bob"));
    for path in ["/", "/metrics", "/api/now", "/api/images", "/api/upstreams", "/nothing"] {
        let answer = get(mirror.admin_url(path)).await.expect(401);
        assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"larder\""), "{path}");
        get_with(mirror.admin_url(path), &[("authorization", &wrong)]).await.expect(401);
    }
    for path in ["/livez", "/readyz"] {
        get(mirror.admin_url(path)).await.expect(200);
    }
    order(&mirror, "unpin?image=app", &[]).await.expect(401);
    get_with(mirror.admin_url("/"), &[("authorization", &right)]).await.expect(200);
    let elsewhere = [("authorization", right.as_str()), ("x-forwarded-for", "10.0.0.1")];
    assert_eq!(get_with(mirror.admin_url("/api/now"), &elsewhere).await.expect(200).json()["may_change"], true);
    order(&mirror, "unpin?image=app", &elsewhere).await.expect(409);
    // A browser shows the password of its own accord, to whatever page asks.
    order(&mirror, "unpin?image=app", &[("authorization", &right), ("origin", "https://evil.example")]).await.expect(403);
    // Who guesses is held up; passwords come from one address here.
    let mut guesses = Vec::new();
    for n in 0..40 {
        let guess = basic("alice", &format!("canary-{n}"));
        guesses.push(get_with(mirror.admin_url("/api/now"), &[("authorization", &guess)]).await.status);
    }
    assert!(guesses[..20].iter().all(|status| *status == 401) && guesses.last() == Some(&429), "{guesses:?}");
}

#[tokio::test]
async fn a_file_of_users_that_cannot_be_used_keeps_larder_from_starting() {
    let Err((why, _)) = TestMirror::builder().set("admin.users_file = '/nowhere/users'").try_start().await else {
        panic!("it starts")
    };
    assert!(why.contains("admin: users_file /nowhere/users cannot be read"), "{why}");
}

#[tokio::test]
async fn what_is_done_by_the_page_is_in_the_audit_log_with_who_had_it_done() {
    let builder = TestMirror::builder();
    let (users, audit) = (builder.dir().join("operators"), builder.dir().join("audit"));
    htpasswd(&users);
    let options = format!("admin.users_file = '{}'\nlog.audit_file = '{}'", users.display(), audit.display());
    let mirror = builder.set(&options).start().await;
    let alice = basic("alice", "canary-of-alice");
    order(&mirror, "unpin?image=app", &[("authorization", &alice)]).await.expect(409);
    let told = || fs::read_to_string(&audit).unwrap();
    until("it is told", || told().contains("\"order\":\"unpin\"")).await;
    let line: Value = serde_json::from_str(told().lines().find(|line| line.contains("unpin")).unwrap()).unwrap();
    assert!(line["by"].as_str().unwrap().starts_with("alice from 127.0.0.1:"), "{line}");
    assert_eq!((&line["what"][0], &line["failed"], &line["end"]), (&"app".into(), &1.into(), &"complete".into()));
}
