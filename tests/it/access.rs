//! Which repositories of an upstream may be had: allow, deny, and the warning of an operator who says neither.

use crate::support::{Answer, Fault, Image, Match, Process, PutImage, Registry, TestMirror};

/// Everything that can be asked of a repository.
fn paths(image: &PutImage, prefix: &str) -> [String; 5] {
    let PutImage { repository, digest, layers, .. } = image;
    [
        "manifests/latest".to_owned(),
        format!("manifests/{digest}"),
        format!("blobs/{}", layers[0].digest),
        "tags/list".to_owned(),
        format!("referrers/{digest}"),
    ]
    .map(|rest| format!("/v2/{prefix}{repository}/{rest}"))
}

#[track_caller]
fn denied(answer: Answer, rule: &str) {
    let answer = answer.expect(403);
    assert_eq!(answer.error_code().as_deref(), Some("DENIED"));
    assert_eq!(answer.json()["errors"][0]["message"], rule);
    assert_eq!(answer.header("cache-status"), Some("larder; detail=refused"));
}

#[tokio::test]
async fn what_a_rule_denies_is_refused_in_a_sentence_that_names_the_rule() {
    let upstream = Registry::start().await;
    let image = |seed, repository| Image::new(seed).layers(&[1000]).put(&upstream, repository, "latest");
    let (evil, other, good) = (image(1, "evil/x"), image(2, "other/x"), image(3, "good/x/y"));
    let mirror = TestMirror::builder()
        .upstream("docker.io", &upstream)
        .set("upstream.\"docker.io\".allow = [\"library/*\", \"good/**\", \"evil/**\"]")
        .set("upstream.\"docker.io\".deny = [\"bad/*\", \"evil/**\"]")
        .start()
        .await;
    for prefix in ["", "index.docker.io/"] {
        for path in paths(&evil, prefix) {
            denied(mirror.get(&path).await, r#"docker.io/evil/x is denied by upstream."docker.io".deny "evil/**""#);
            assert_eq!(mirror.head(&path).await.status, 403, "{path}");
        }
        for path in paths(&other, prefix) {
            denied(mirror.get(&path).await, r#"docker.io/other/x is in none of upstream."docker.io".allow"#);
        }
    }
    assert!(upstream.requests().is_empty(), "{:#?}", upstream.requests());
    for path in paths(&good, "") {
        mirror.get(&path).await.expect(200);
    }
}

#[tokio::test]
async fn a_rule_is_for_the_name_that_the_repository_has_upstream() {
    let upstream = Registry::start().await;
    let image = Image::new(4).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let rules = |lines: &str| TestMirror::builder().upstream("docker.io", &upstream).set(lines);
    let short = |path: &String| path.replace("library/", "");
    let mirror = rules("upstream.\"docker.io\".allow = [\"library/*\"]").start().await;
    for path in paths(&image, "").iter().map(short) {
        mirror.get(&path).await.expect(200);
    }
    let mirror = rules("upstream.\"docker.io\".deny = [\"library/alpine\"]").start().await;
    for path in paths(&image, "").iter().map(short) {
        denied(mirror.get(&path).await, r#"docker.io/library/alpine is denied by upstream."docker.io".deny "library/alpine""#);
    }
}

/// What is cached from a time before the rule is as little to be had, and no stale copy stands in.
#[tokio::test]
async fn a_new_rule_goes_over_what_is_cached() {
    let upstream = Registry::start().await;
    let image = Image::new(5).layers(&[1000]).put(&upstream, "org/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    for path in paths(&image, "") {
        mirror.get(&path).await.expect(200);
    }
    let mirror = mirror.stop().await.set("upstream.\"docker.io\".deny = [\"org/*\"]").start().await;
    upstream.on(Match::any(""), Fault::status(503));
    for path in paths(&image, "") {
        denied(mirror.get(&path).await, r#"docker.io/org/app is denied by upstream."docker.io".deny "org/*""#);
    }
}

#[tokio::test]
async fn the_rules_of_one_upstream_are_not_those_of_another() {
    let (hub, quay) = (Registry::start().await, Registry::start().await);
    let image = Image::new(6).layers(&[1000]).put(&quay, "org/app", "latest");
    let mirror = TestMirror::builder()
        .upstream("docker.io", &hub)
        .upstream("quay.io", &quay)
        .set("upstream.\"docker.io\".deny = [\"**\"]")
        .start()
        .await;
    for path in paths(&image, "quay.io/") {
        mirror.get(&path).await.expect(200);
    }
    mirror.get("/v2/org/app/manifests/latest").await.expect(403);
}

#[test]
fn credentials_without_an_allow_list_are_warned_of_in_one_line() {
    let login = ["upstream.\"quay.io\".username=bob", "upstream.\"quay.io\".password_env=SECRET"];
    let log = |more: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        Process::start(dir.path(), &[&login[..], more].concat(), &[("SECRET", "canary-secret")]).terminate().log
    };
    let warned = log(&[]);
    let lines: Vec<&str> = warned.lines().filter(|line| line.contains("WARN")).collect();
    let [line] = lines[..] else { panic!("{warned}") };
    assert!(line.contains(r#"upstream."quay.io" has credentials and no allow-list"#), "{line}");
    assert!(line.contains(r#"upstream."quay.io".allow"#) && !warned.contains("canary-secret"), "{warned}");
    let quiet = log(&["upstream.\"quay.io\".allow=myorg/**"]);
    assert!(!quiet.contains("allow"), "{quiet}");
}
