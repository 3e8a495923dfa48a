//! The operator's page, and the API that it asks: what it tells, what it does, and for whom.

mod access;
mod images;

use std::fs;
use std::path::Path;
use std::time::Duration;

use http::Method;
use serde_json::Value;

use crate::support::{Answer, Client, Fault, Image, Match, Registry, TestMirror, get, get_with, until_async};

const OURS: (&str, &str) = ("x-larder", "1");
const MIB: usize = 1 << 20;

async fn order(mirror: &TestMirror, what: &str, headers: &[(&str, &str)]) -> Answer {
    let headers: Vec<_> = [OURS].into_iter().chain(headers.iter().copied()).collect();
    Client::h1().request(Method::POST, mirror.admin_url(&format!("/api/{what}")), &headers).await
}

async fn api(mirror: &TestMirror, what: &str) -> Value {
    get(mirror.admin_url(&format!("/api/{what}"))).await.expect(200).json()
}

async fn names(mirror: &TestMirror, query: &str) -> Vec<String> {
    let told = api(mirror, &format!("images?{query}")).await;
    told["images"].as_array().unwrap().iter().map(|row| row["image"].as_str().unwrap().to_owned()).collect()
}

fn says(answer: &Answer) -> String {
    answer.json()["errors"][0]["message"].as_str().unwrap_or_default().to_owned()
}

fn htpasswd(file: &Path) {
    let hash = bcrypt::hash_with_salt("canary-of-alice", 5, [7; 16]).unwrap().format_for_version(bcrypt::Version::TwoY);
    fs::write(file, format!("alice:{hash}\n")).unwrap();
}

// === the page ===

#[tokio::test]
async fn the_page_is_one_document_that_runs_nothing_but_its_own() {
    let mirror = TestMirror::builder().start().await;
    let page = get(mirror.admin_url("/")).await.expect(200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let text = page.text();
    assert!(text.len() < 100 << 10, "{} bytes", text.len());
    assert!(text.starts_with("<!doctype html>") && text.trim_end().ends_with("</html>") && !text.contains("/* page."));
    // The names of namespaces are no addresses.
    let elsewhere = text.replace("http://www.w3.org/2000/svg", "").matches("://").count();
    assert_eq!(elsewhere, 0, "it knows no other place");
    let policy = page.header("content-security-policy").unwrap();
    for part in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe") && policy.matches("'sha256-").count() == 2, "{policy}");
    for path in ["/", "/api/now", "/api/nothing", "/livez", "/metrics"] {
        let answer = get(mirror.admin_url(path)).await;
        let headers = [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ];
        headers.iter().for_each(|(name, value)| assert_eq!(answer.header(name), Some(*value), "{path}"));
        assert!(answer.header("content-security-policy").unwrap().contains("frame-ancestors 'none'"), "{path}");
    }
}

// === what it tells ===

#[tokio::test]
async fn what_goes_on_is_told_with_how_far_it_has_come_and_for_whom() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[4 * MIB]).put(&upstream, "library/app", "latest");
    let layer = &image.layers[0];
    upstream.on(Match::get(&layer.digest).times(1), Fault::Gate { after: 2 * MIB });
    let mirror = TestMirror::of(&upstream).await;
    let mut reading = mirror.stream(&image.blob_path(layer)).await;
    reading.take(MIB).await;
    upstream.held(1).await;
    let now = api(&mirror, "now").await;
    let fill = &now["fills"][0];
    assert_eq!(
        (&fill["repository"], &fill["size"], &fill["clients"]),
        (&"docker.io/library/app".into(), &(4 * MIB).into(), &1.into())
    );
    assert!(fill["bytes"].as_u64().unwrap() >= MIB as u64, "{fill}");
    assert_eq!((&now["sealed"], &now["counting"], &now["may_change"]), (&false.into(), &false.into(), &true.into()));
    assert!(now["cache"]["limit"].as_u64().unwrap() > 1 << 29, "{now}");
    upstream.release();
    assert!(reading.rest().await.complete);
    mirror.kept(&layer.digest).await;
    let now = api(&mirror, "now").await;
    assert!(now["fills"].as_array().unwrap().is_empty());
    let next = &now["cache"]["next_to_leave"][0];
    assert_eq!((&next["digest"], &next["of"]), (&layer.digest.as_str().into(), &"docker.io/library/app".into()));
    assert_eq!((&next["manifest"], &now["cache"]["blobs"]), (&false.into(), &1.into()));
}

/// Not for what is fetched ahead of clients, nor for an order.
#[tokio::test]
async fn a_fill_is_told_to_be_for_as_many_as_wait_for_it() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[2 * MIB, 2 * MIB]).put(&upstream, "library/app", "latest");
    image.layers.iter().for_each(|layer| upstream.on(Match::get(&layer.digest).times(1), Fault::Gate { after: MIB }));
    let other = Image::new(2).layers(&[2 * MIB + 1]).put(&upstream, "library/other", "latest");
    upstream.on(Match::get(&other.layers[0].digest).times(1), Fault::Gate { after: MIB });
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.prefetch = 2").start().await;
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.kept(&image.digest).await;
    let mut readers = vec![mirror.stream(&image.blob_path(&image.layers[0])).await];
    order(&mirror, "pull?image=other", &[]).await.expect(202);
    upstream.held(3).await;
    let clients = async |of: &str| {
        let now = api(&mirror, "now").await;
        let fills = now["fills"].as_array().unwrap().iter().filter(|fill| fill["digest"] == of);
        fills.map(|fill| fill["clients"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    for (layer, waiting) in [(&image.layers[0], 1), (&image.layers[1], 0), (&other.layers[0], 0)] {
        assert_eq!(clients(&layer.digest).await, [waiting], "of {} bytes", layer.bytes.len());
    }
    assert_eq!(mirror.metric("larder_fill_clients"), 1);
    readers.push(mirror.stream(&image.blob_path(&image.layers[1])).await);
    readers.push(mirror.stream(&image.blob_path(&image.layers[1])).await);
    assert_eq!(clients(&image.layers[1].digest).await, [2]);
    drop(readers);
    until_async("nobody waits any more", async || clients(&image.layers[1].digest).await.iter().sum::<u64>() == 0).await;
    upstream.release();
}

#[tokio::test]
async fn a_sealed_larder_says_so() {
    let mirror = TestMirror::builder().set("mirror.offline = true").start().await;
    assert_eq!(api(&mirror, "now").await["sealed"], true);
    mirror.get("/v2/library/app/manifests/latest").await.expect(404);
    let errors = api(&mirror, "errors").await;
    assert!(errors["errors_seen"][0]["to_do"].as_str().unwrap().contains("larder missing"), "{errors}");
}

/// The same again is one line of it; what is merely not there is none.
#[tokio::test]
async fn what_went_wrong_is_told_once_with_what_to_do() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    mirror.get("/v2/library/missing/manifests/latest").await.expect(404);
    assert!(api(&mirror, "errors").await["errors_seen"].as_array().unwrap().is_empty());
    upstream.on(Match::any("library/denied"), Fault::answer(403, &[], ""));
    mirror.get("/v2/library/denied/manifests/one").await.expect(403);
    mirror.clock().advance(Duration::from_mins(1));
    mirror.get("/v2/library/denied/manifests/two").await.expect(403);
    upstream.stop().await;
    mirror.clock().advance(Duration::from_mins(1));
    mirror.get("/v2/library/app/manifests/latest").await.expect(502);
    let told = api(&mirror, "errors").await;
    let [down, denied] = &told["errors_seen"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!((&down["what"], &down["of"]), (&"docker.io could not be reached".into(), &"docker.io/library/app".into()));
    assert!(down["to_do"].as_str().unwrap().contains("upstream.\"docker.io\".fallbacks"), "{down}");
    assert_eq!((&denied["times"], &denied["of"]), (&2.into(), &"docker.io/library/denied".into()));
    assert!(denied["last"].as_u64().unwrap() - denied["first"].as_u64().unwrap() >= 60_000, "{denied}");
    let upstreams = api(&mirror, "upstreams").await;
    let hub = upstreams["upstreams"].as_array().unwrap().iter().find(|one| one["name"] == "docker.io").unwrap().clone();
    assert!(
        hub["left_alone"]["why"].as_str().unwrap().contains("unavailable") && hub["left_alone"]["until"].is_string(),
        "{hub}"
    );
}

/// Clients may name as many registries as they like where any public one may be named.
#[tokio::test]
async fn made_up_registries_push_no_true_error_out() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.any_public = true").start().await;
    upstream.on(Match::any("library/denied"), Fault::answer(403, &[], ""));
    mirror.get("/v2/library/denied/manifests/latest").await.expect(403);
    for n in 0..60 {
        assert!(mirror.get(&format!("/v2/org/app/manifests/latest?ns=r{n}.example")).await.status >= 400);
    }
    let told = api(&mirror, "errors").await;
    let told: Vec<_> = told["errors_seen"].as_array().unwrap().iter().map(|one| one["what"].as_str().unwrap()).collect();
    assert!(told.contains(&"docker.io denied something") && told.len() < 5, "{told:?}");
    assert!(told.iter().any(|what| what.starts_with("a registry that a client has named")), "{told:?}");
}

/// The upstream's words and clients' names are text, whatever is in them.
#[tokio::test]
async fn what_an_upstream_says_is_one_line() {
    let mirror = TestMirror::builder().set("mirror.well_known = true").start().await;
    mirror.get("/v2/library/app/manifests/latest?ns=evil%0a%3Cscript%3E.example").await;
    let told = get(mirror.admin_url("/api/errors")).await.expect(200).text();
    assert!(!told.contains("\\n"), "{told}");
}

#[tokio::test]
async fn set_up_is_told_for_this_very_larder() {
    let mirror = TestMirror::builder().set("upstream.\"quay.io\".tag_ttl = \"1m\"").start().await;
    let told = api(&mirror, "setup").await;
    assert_eq!(told["url"], mirror.url(""));
    assert!(told["note"].as_str().unwrap().contains("server.listen"), "{told}");
    let clients: Vec<&str> = told["clients"].as_array().unwrap().iter().map(|one| one["client"].as_str().unwrap()).collect();
    assert_eq!(clients, ["docker", "containerd", "k3s", "podman", "crio", "buildkit", "kaniko"]);
    let docker = &told["clients"][0]["files"][0];
    assert_eq!(docker["path"], "/etc/docker/daemon.json");
    assert!(docker["text"].as_str().unwrap().contains(&mirror.url("")), "{docker}");
    let told = api(&mirror, "setup?url=https%3A%2F%2Fmirror.example%3A5443%2F").await;
    let text = told["clients"].to_string();
    assert!(text.contains("https://mirror.example:5443") && text.contains("give its authority"), "{text}");
    let wrong = get(mirror.admin_url("/api/setup?url=nonsense")).await.expect(400);
    assert!(says(&wrong).contains("is no URL of larder's"), "{}", says(&wrong));
    // By the name that the operator has come by, where larder listens to the network.
    let mirror = TestMirror::builder().set("server.listen = \"0.0.0.0:0\"\nadmin.hosts = [\"mirror.corp\"]").start().await;
    let told = get_with(mirror.admin_url("/api/setup"), &[("host", "mirror.corp:5001")]).await.expect(200).json();
    assert_eq!(told["url"], format!("http://mirror.corp:{}", mirror.address().port()));
}

// === what it does ===

async fn ended(mirror: &TestMirror, id: &Value) -> Value {
    let errand = async || {
        let now = api(mirror, "now").await;
        now["errands"].as_array().unwrap().iter().find(|errand| errand["id"] == *id).unwrap().clone()
    };
    until_async("it has ended", async || errand().await["state"] != "running").await;
    errand().await
}

#[tokio::test]
async fn an_image_is_pulled_and_what_comes_of_it_is_told() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[3 * MIB]).put(&upstream, "library/app", "latest");
    upstream.on(Match::get(&image.layers[0].digest).times(1), Fault::Gate { after: MIB });
    let mirror = TestMirror::of(&upstream).await;
    let id = order(&mirror, "pull?image=app&platform=linux/amd64", &[]).await.expect(202).json()["errand"].clone();
    upstream.held(1).await;
    let twice = order(&mirror, "pull?image=app", &[]).await.expect(409);
    assert!(says(&twice).contains("under way already"));
    assert_eq!(api(&mirror, "now").await["errands"][0]["state"], "running");
    upstream.release();
    let errand = ended(&mirror, &id).await;
    assert_eq!((&errand["state"], &errand["order"]), (&"done".into(), &"pull".into()), "{errand}");
    assert!(mirror.holds(&image.layers[0].digest));
    let id = order(&mirror, "pull?image=missing", &[]).await.expect(202).json()["errand"].clone();
    let errand = ended(&mirror, &id).await;
    assert_eq!((&errand["state"], &errand["said"]), (&"failed".into(), &"not found upstream".into()));
    for (what, status) in
        [("pull?image=Nonsense", 400), ("pull", 400), ("pull?image=app&platform=amd64", 400), ("pin?image=other", 409)]
    {
        order(&mirror, what, &[]).await.expect(status);
    }
}

#[tokio::test]
async fn of_one_image_what_is_damaged_is_found_and_comes_again() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[5000]).put(&upstream, "library/app", "latest");
    let other = Image::new(2).layers(&[6000]).put(&upstream, "library/other", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.pull(&image, "latest").await;
    mirror.pull(&other, "latest").await;
    for damaged in [&image.layers[0], &other.layers[0]] {
        let hex = &damaged.digest["sha256:".len()..];
        fs::write(mirror.cache_dir().join("blobs/sha256").join(&hex[..2]).join(hex), vec![0; damaged.bytes.len()]).unwrap();
    }
    let id = order(&mirror, "verify?image=app", &[]).await.expect(202).json()["errand"].clone();
    let errand = ended(&mirror, &id).await;
    assert_eq!((&errand["state"], &errand["said"]), (&"done".into(), &"damaged blobs: 1, of which fetched anew: 1".into()));
    assert_eq!(mirror.get(&image.blob_path(&image.layers[0])).await.expect(200).body, image.layers[0].bytes);
    assert_eq!(upstream.count("GET", &other.layers[0].digest), 1, "it was not looked at");
    let id = order(&mirror, "verify?image=app", &[]).await.expect(202).json()["errand"].clone();
    assert!(ended(&mirror, &id).await["said"].as_str().unwrap().contains("what their digests promise"));
}

#[tokio::test]
async fn a_pull_from_the_page_does_not_hold_up_a_stop() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[3 * MIB]).put(&upstream, "library/app", "latest");
    upstream.on(Match::get(&image.layers[0].digest), Fault::Stall { after: MIB });
    let mirror = TestMirror::of(&upstream).await;
    order(&mirror, "pull?image=app", &[]).await.expect(202);
    upstream.held(1).await;
    mirror.stop().await;
    upstream.release();
}
