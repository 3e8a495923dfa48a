//! What larder says of its health, to those who watch over it.

use larder::store::{Operation, faults::Fault as DiskFault};
use tokio::time::{Duration, sleep, timeout};

use crate::support::{Authority, PATIENCE, Process, Registry, TestMirror, get, noise};

const NO_SPACE: i32 = 28;

async fn readiness(mirror: &TestMirror) -> serde_json::Value {
    get(mirror.admin_url("/readyz")).await.expect(200).json()
}

/// Waits until it says so.
async fn says(mirror: &TestMirror, status: &str) -> serde_json::Value {
    let waited = timeout(PATIENCE, async {
        loop {
            let said = readiness(mirror).await;
            if said["status"] == status {
                return said;
            }
            sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("it is never {status}"))
}

#[tokio::test]
async fn a_larder_that_does_all_its_work_says_so() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(get(mirror.admin_url("/livez")).await.expect(200).json()["status"], "ok");
    let said = readiness(&mirror).await;
    assert_eq!((&said["status"], said["disk"].is_null()), (&"ok".into(), true), "{said}");
}

#[tokio::test]
async fn a_full_disk_is_told_with_its_reason_and_larder_is_still_ready() {
    let upstream = Registry::start().await;
    let blob = noise(1, 300_000);
    let digest = upstream.put_blob("library/alpine", blob.clone());
    let mirror = TestMirror::of(&upstream).await;
    let writes = |operation| matches!(operation, Operation::Create | Operation::Allocate | Operation::Write);
    mirror.faults().each(move |operation, _| writes(operation), DiskFault::Errno(NO_SPACE));
    assert!(mirror.get(&format!("/v2/library/alpine/blobs/{digest}")).await.expect(200).body == blob);
    let said = says(&mirror, "degraded").await;
    let why = said["disk"]["why"].as_str().unwrap();
    assert!(why.contains("space") && why.contains(": "), "which operation, and what came of it: {said}");
    assert!(said["disk"]["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{said}");
    mirror.faults().heal();
    says(&mirror, "ok").await;
}

#[tokio::test]
async fn a_disk_that_does_not_let_itself_be_read_is_told_with_its_reason_until_it_does() {
    let upstream = Registry::start().await;
    let blob = noise(2, 300_000);
    let digest = upstream.put_blob("library/alpine", blob.clone());
    let path = format!("/v2/library/alpine/blobs/{digest}");
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.patience = \"200ms\"").start().await;
    assert!(mirror.get(&path).await.expect(200).body == blob);
    mirror.kept(&digest).await;
    let reads = |operation| matches!(operation, Operation::Read | Operation::ReadCached);
    mirror.faults().each(move |operation, _| reads(operation), DiskFault::Hang);
    assert!(mirror.get(&path).await.expect(200).body == blob, "the upstream has it as well");
    let said = says(&mirror, "degraded").await;
    assert!(said["disk"]["why"].as_str().unwrap().starts_with("read: "), "{said}");
    assert!(said["disk"]["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{said}");
    assert_eq!(mirror.metric("larder_cache_state"), 1);
    mirror.faults().heal();
    let said = says(&mirror, "ok").await;
    assert!(said["disk"].is_null(), "{said}");
    assert_eq!(mirror.metric("larder_cache_state"), 0);
}

#[tokio::test]
async fn upstreams_that_do_not_answer_are_named() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::of(&upstream).await;
    upstream.stop().await;
    for tag in ["a", "b", "c", "d"] {
        mirror.get(&format!("/v2/library/alpine/manifests/{tag}")).await;
    }
    let said = readiness(&mirror).await;
    assert_eq!((&said["status"], &said["upstreams_left_alone"][0]), (&"ok".into(), &"docker.io".into()), "{said}");
}

#[tokio::test]
async fn the_program_asks_and_tells_what_it_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[], &[]);
    let (url, admin) = (larder.url(""), format!("http://{}", larder.admin()));
    let told = Process::health(&["--url", &url, "--admin", &admin]);
    assert_eq!(told.status.code(), Some(0));
    assert!(told.stdout.contains("\"status\":\"ok\""), "{}", told.stdout);
    assert_eq!(Process::health(&["--url", &url, "--admin", "http://127.0.0.1:1"]).status.code(), Some(1));
}

#[tokio::test]
async fn a_larder_with_a_certificate_of_a_private_authority_is_asked_by_that() {
    let (upstream, dir, authority) = (Registry::start().await, tempfile::tempdir().unwrap(), Authority::new());
    let (certificate, key) = authority.server(dir.path(), "127.0.0.1");
    let listener = format!(
        "server.listener=[{{ listen = \"127.0.0.1:0\", cert_file = \"{}\", key_file = \"{}\" }}]",
        certificate.display(),
        key.display()
    );
    let settings = [&format!("upstream.\"docker.io\".url={}", upstream.url()), &listener];
    let larder = Process::start(dir.path(), &settings.map(String::as_str), &[]);
    let url = format!("https://{}", larder.greeting().split("https://").nth(1).unwrap().split_whitespace().next().unwrap());
    let (ours, other) = (authority.file(dir.path()), tempfile::tempdir().unwrap());
    let told = Process::health(&["--url", &url, "--ca", ours.to_str().unwrap()]);
    assert_eq!(told.status.code(), Some(0), "{}", told.log);
    let others = Authority::new().file(other.path());
    for unknown in
        [&["--url", &url][..], &["--url", &url, "--ca", others.to_str().unwrap()], &["--url", &url, "--ca", "/nowhere"]]
    {
        assert_eq!(Process::health(unknown).status.code(), Some(1));
    }
}
