//! Where larder's own credentials come from, seen by the registry that gets them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::support::{Auth, Image, Like, Listener, Process, PutImage, Registry, Setup, TestMirror, get};

const TAG: &str = "/v2/library/app/manifests/latest";
const TEN_SECONDS: Duration = Duration::from_secs(10);

async fn closed(user: &'static str, password: &'static str) -> (Registry, PutImage) {
    let registry = Registry::with(Setup { auth: Auth::Basic { user, password }, ..Setup::default() }).await;
    let image = Image::new(1).layers(&[1000, 2000]).put(&registry, "library/app", "latest");
    (registry, image)
}

/// A program that says what it was asked and answers with this user and what `secret` holds.
fn helper(dir: &Path, user: &str) {
    let path = dir.join("docker-credential-scripted");
    let script = format!(
        "#!/bin/sh\nread server\necho \"$1 $server\" >> {0}/asked\nprintf '{{\"Username\":\"{user}\",\"Secret\":\"%s\"}}' \"$(cat {0}/secret)\"\n",
        dir.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn a_rotated_password_file_is_noticed_without_a_restart() {
    let (registry, image) = closed("bob", "canary-of-tomorrow").await;
    let stopped = TestMirror::builder().upstream("docker.io", &registry).login("docker.io", "bob", "canary-of-yesterday");
    let file = stopped.dir().join("password-docker.io");
    let mirror = stopped.start().await;
    mirror.get(TAG).await.expect(502);
    fs::write(file, "canary-of-tomorrow\n").unwrap();
    mirror.clock().advance(TEN_SECONDS);
    assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest);
}

#[tokio::test]
async fn a_refused_password_is_looked_up_again_within_the_same_question() {
    let (registry, image) = closed("bob", "canary-of-tomorrow").await;
    let stopped = TestMirror::builder().upstream("docker.io", &registry).login("docker.io", "bob", "canary-of-yesterday");
    let file = stopped.dir().join("password-docker.io");
    let mirror = stopped.start().await;
    fs::write(file, "canary-of-tomorrow\n").unwrap();
    assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest, "though what was read is not yet old");
}

#[tokio::test]
async fn a_config_json_of_docker_names_the_user() {
    let (registry, image) = closed("bob", "canary:with:colons").await;
    let stopped = TestMirror::builder().upstream("docker.io", &registry);
    let file = stopped.dir().join("config.json");
    let auth = STANDARD.encode("bob:canary:with:colons");
    fs::write(&file, format!(r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}}}},"currentContext":"x"}}"#))
        .unwrap();
    let mirror = stopped.set(&format!("upstream.\"docker.io\".docker_config = {file:?}")).start().await;
    assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest);
}

#[tokio::test]
async fn a_helper_is_run_once_for_many_questions_and_again_when_its_answer_is_refused() {
    let (registry, image) = closed("AWS", "canary-of-the-helper").await;
    let (dir, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    helper(bin.path(), "AWS");
    fs::write(bin.path().join("secret"), "canary-of-the-helper").unwrap();
    let url = format!("upstream.\"docker.io\".url={}", registry.url());
    let path = format!("{}:/usr/bin:/bin", bin.path().display());
    let settings = [url.as_str(), "upstream.\"docker.io\".credential_helper=scripted"];
    let larder = Process::start(dir.path(), &settings, &[("PATH", &path)]);
    assert_eq!(get(larder.url(TAG)).await.expect(200).body, image.manifest);
    for blob in image.blobs() {
        assert_eq!(get(larder.url(&image.blob_path(blob))).await.expect(200).body, blob.bytes);
    }
    let asked = || fs::read_to_string(bin.path().join("asked")).unwrap();
    assert_eq!(asked(), "get https://index.docker.io/v1/\n");
    let log = larder.terminate().log;
    assert!(!log.contains("canary-of-the-helper"), "{log}");

    // It has been given something else meanwhile, and finds out by being refused.
    let wrong = tempfile::tempdir().unwrap();
    fs::write(bin.path().join("secret"), "canary-of-yesterday").unwrap();
    let larder = Process::start(wrong.path(), &settings, &[("PATH", &path)]);
    get(larder.url(TAG)).await.expect(502);
    assert_eq!(asked().lines().count(), 3, "once cold, once refused");
    let log = larder.terminate().log;
    assert!(!log.contains("canary-of-yesterday"), "{log}");
}

/// A helper says what it likes, and clients are strangers.
#[tokio::test]
async fn what_a_helper_says_of_its_failure_is_for_the_log_alone() {
    let (registry, _) = closed("AWS", "canary-of-the-helper").await;
    let (dir, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let script = bin.path().join("docker-credential-scripted");
    fs::write(&script, "#!/bin/sh\necho no login for vault-path-of-hub >&2\nexit 1\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let url = format!("upstream.\"docker.io\".url={}", registry.url());
    let path = format!("{}:/usr/bin:/bin", bin.path().display());
    let settings = [url.as_str(), "upstream.\"docker.io\".credential_helper=scripted"];
    let larder = Process::start(dir.path(), &settings, &[("PATH", &path)]);
    let answer = get(larder.url(TAG)).await.expect(502);
    assert!(answer.text().contains("its log says why") && !answer.text().contains("vault-path"), "{}", answer.text());
    let log = larder.terminate().log;
    assert!(log.contains("ends with exit status: 1: no login for vault-path-of-hub"), "{log}");
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let registry = Registry::like(Like::Acr).await;
    let image = Image::new(2).put(&registry, "team/app", "latest");
    let stopped =
        TestMirror::builder().upstream("corp.azurecr.io", &registry).set("mirror.default_upstream = \"corp.azurecr.io\"");
    let (_, refresh_token) = Like::Acr.login().unwrap();
    let mirror = stopped.login("corp.azurecr.io", "<token>", refresh_token).start().await;
    assert_eq!(mirror.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
    assert_eq!(registry.count_at(Listener::Token, "POST", "/oauth2/token"), 1);
}

#[tokio::test]
async fn a_key_file_of_google_is_a_password_of_many_lines() {
    const KEY: &str = "{\n  \"type\": \"service_account\",\n  \"private_key\": \"canary:of\\ngoogle\"\n}";
    let registry = Registry::with(Like::ArtifactRegistry.setup().login("_json_key", KEY)).await;
    let image = Image::new(3).put(&registry, "team/app", "latest");
    registry.restrict("team/app", &["_json_key"]);
    let stopped = TestMirror::builder().upstream("gcr.io", &registry).set("mirror.default_upstream = \"gcr.io\"");
    let mirror = stopped.login("gcr.io", "_json_key", &format!("{KEY}\n")).start().await;
    assert_eq!(mirror.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
    assert_eq!(registry.tokens("_json_key", "repository:team/app:pull"), 1);
}
