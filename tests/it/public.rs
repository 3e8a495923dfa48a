//! Registries that nobody configured: refused without a packet, or any public one where the operator says so.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use larder::clock::Clock;
use larder::current::Current;
use larder::metrics::Metrics;
use larder::mirror::{self, Blob, Freshness, Mirror, Piece, Pieces, Registries, Served};
use larder::store::{self, Store};
use larder::upstream::{self, Hop, Upstream};

use crate::support::{Fault, Match, PATIENCE, Registry, TestMirror, noise};

/// A name in each of the places where one may stand.
fn ways(name: &str) -> [String; 3] {
    [
        format!("/v2/org/app/manifests/latest?ns={}", name.replace(':', "%3A")),
        format!("/{name}/v2/org/app/manifests/latest"),
        format!("/v2/{name}/org/app/manifests/latest"),
    ]
}

#[tokio::test]
async fn a_name_that_may_not_be_asked_causes_no_connection_and_no_query() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let upstream = Registry::start().await;
    let by_name = format!("upstream.\"docker.io\".url = \"http://localhost:{}\"", upstream.address().port());
    for any_public in [false, true] {
        let mirror = TestMirror::builder().set(&by_name).set(&format!("mirror.any_public = {any_public}")).start().await;
        let mut names =
            vec![format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("[::1]:{port}"), "1.2.3.4:443".into()];
        if !any_public {
            names.extend([format!("localhost.localdomain:{port}"), "registry.example:443".into()]);
        }
        for path in names.iter().flat_map(|name| ways(name)) {
            let answer = mirror.get(&path).await.expect(404);
            assert_eq!(answer.error_code().as_deref(), Some("MANIFEST_UNKNOWN"), "{path}");
            assert_eq!(answer.header("cache-status"), Some("larder; detail=refused"), "{path}");
        }
        assert_eq!(mirror.names().asked(), [""; 0]);
        assert!(upstream.requests().is_empty(), "{:#?}", upstream.requests());
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        // So that it is known that a query would have been seen.
        mirror.get("/v2/org/app/manifests/latest").await.expect(404);
        assert_eq!(mirror.names().asked(), ["localhost"]);
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

// === a registry of anyone's ===

/// Docker Hub, and one registry that stands for all those that clients may name: in truth they are on the internet.
pub(crate) async fn open_to(dir: &Path, hub: &Registry, other: &Registry) -> Mirror {
    let (clock, options) = (Clock::system(), mirror::Options { orphan_fills: 0, ..mirror::Options::default() });
    let make = {
        let (clock, options) = (clock.clone(), options.clone());
        move |name: &str, url: String, anyones| {
            let of_upstream = upstream::Options { url, ..upstream::Options::default() };
            let freshness = Freshness::of(&options, &of_upstream);
            let upstream = Upstream::new(name, &of_upstream, Hop::unique(), clock.clone(), Metrics::new()).unwrap();
            mirror::Registry {
                upstream,
                public_url: None,
                access: Current::default(),
                freshness: Current::new(freshness),
                anyones,
            }
        }
    };
    let mut registries = Registries::new(Arc::new(make("docker.io", hub.url(), false)));
    let url = other.url();
    registries.open_to_public(Box::new(move |name| Some(make(name, url.clone(), true))));
    let store = Store::open(&store::Options { dir: dir.into(), ..store::Options::default() }, clock.clone(), Metrics::new())
        .await
        .unwrap();
    while store.usage().is_none() {
        tokio::task::yield_now().await;
    }
    Mirror::new(options, store, registries, clock, Metrics::new())
}

pub(crate) async fn blob(mirror: &Mirror, image: &str, digest: &str) -> Blob {
    let origin = mirror.registries().resolve(&image.parse().unwrap()).unwrap();
    mirror.blob(&origin, &digest.parse().unwrap()).await.unwrap()
}

pub(crate) async fn read(blob: &Blob) -> Option<Vec<u8>> {
    let pieces: Vec<Piece> = blob.read_all(&Pieces::default()).try_collect().await.ok()?;
    let chunks: Vec<Bytes> = pieces
        .into_iter()
        .map(|piece| match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Sent(_) => unreachable!("there is no outlet"),
        })
        .collect();
    Some(chunks.concat())
}

#[tokio::test]
async fn nobody_waits_for_a_registry_of_anyones_who_has_not_named_it() {
    let (hub, evil, bytes) = (Registry::start().await, Registry::start().await, noise(1, 300_000));
    let digest = hub.put_blob("library/app", bytes.clone());
    evil.put_blob("x", bytes.clone());
    evil.on(Match::get(&digest), Fault::Stall { after: 1_000 });
    let dir = tempfile::tempdir().unwrap();
    let mirror = open_to(dir.path(), &hub, &evil).await;
    let _stalled = blob(&mirror, "evil.example/x", &digest).await;
    let whole = tokio::time::timeout(PATIENCE, async { read(&blob(&mirror, "app", &digest).await).await }).await;
    assert_eq!(whole.expect("it waits").as_deref(), Some(&bytes[..]));
}

#[tokio::test]
async fn nobody_goes_on_from_what_a_registry_of_anyones_has_sent() {
    let (hub, evil, bytes) = (Registry::start().await, Registry::start().await, noise(2, 300_000));
    let digest = hub.put_blob("library/app", bytes.clone());
    evil.put_blob_under("x", &digest, noise(3, 300_000));
    evil.on(Match::get(&digest), Fault::Stall { after: 100_000 });
    let dir = tempfile::tempdir().unwrap();
    let mirror = open_to(dir.path(), &hub, &evil).await;
    let stalled = blob(&mirror, "evil.example/x", &digest).await;
    stalled.read_all(&Pieces::default()).next().await.unwrap().unwrap();
    drop(stalled);
    let blob = blob(&mirror, "app", &digest).await;
    assert_eq!(read(&blob).await.as_deref(), Some(&bytes[..]));
    assert_eq!(blob.served, Served::Miss(None));
}
