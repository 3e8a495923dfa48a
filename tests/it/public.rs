//! Registries that nobody configured: refused without a packet, or any public one where the operator says so.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;

use crate::support::{Process, Registry, TestMirror, get};

/// A name in each of the places where one may stand.
fn ways(name: &str) -> [String; 3] {
    [
        format!("/v2/org/app/manifests/latest?ns={}", name.replace(':', "%3A")),
        format!("/{name}/v2/org/app/manifests/latest"),
        format!("/v2/{name}/org/app/manifests/latest"),
    ]
}

/// The runtime's threads. Names are resolved on threads of their own, which stay for a while: who resolves one has one more.
fn threads(larder: &Process) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", larder.id())).unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
    names.filter(|name| name.starts_with("tokio")).count()
}

#[tokio::test]
async fn a_name_that_may_not_be_asked_causes_no_connection_and_no_query() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let upstream = Registry::start().await;
    let by_name = format!("upstream.\"docker.io\".url=http://localhost:{}", upstream.address().port());
    for any_public in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let larder = Process::start(dir.path(), &[&by_name, &format!("mirror.any_public={any_public}")], &[]);
        get(larder.url("/v2/")).await.expect(200);
        let before = threads(&larder);
        let mut names =
            vec![format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("[::1]:{port}"), "1.2.3.4:443".into()];
        if !any_public {
            names.extend([format!("localhost.localdomain:{port}"), "registry.example:443".into()]);
        }
        for path in names.iter().flat_map(|name| ways(name)) {
            let answer = get(larder.url(&path)).await.expect(404);
            assert_eq!(answer.error_code().as_deref(), Some("MANIFEST_UNKNOWN"), "{path}");
            assert_eq!(answer.header("cache-status"), Some("larder; detail=refused"), "{path}");
        }
        assert_eq!(threads(&larder), before, "a name was resolved");
        assert!(upstream.requests().is_empty(), "{:#?}", upstream.requests());
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        // So that it is known that a query would have been seen.
        get(larder.url("/v2/org/app/manifests/latest")).await.expect(404);
        assert!(threads(&larder) > before, "the upstream's own name is resolved");
        upstream.forget_requests();
    }
}

#[tokio::test]
async fn any_public_registry_is_an_upstream_where_the_operator_says_so() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.offline = true");
    let sealed = mirror.set("mirror.any_public = true").start().await;
    for path in ways("new.example").iter().chain(&ways("new.example:5000")) {
        let answer = sealed.get(path).await.expect(404);
        assert!(answer.text().contains("larder is offline"), "{path}: {}", answer.text());
    }
    for path in ways("localhost:5000") {
        let answer = sealed.get(&path).await.expect(404);
        assert!(answer.text().contains("localhost:5000 is not among the upstreams"), "{path}: {}", answer.text());
    }
}
