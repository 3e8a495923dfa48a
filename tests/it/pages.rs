//! Upstreams that answer 200 with a page: a login, an error, a gateway in between. Such a yes is none.

use std::time::Duration;

use bytes::Bytes;

use crate::support::{Answer, Auth, Fault, Image, Match, PutImage, Registry, Setup, TestMirror, TokenService, User, digest_of};

const HOST: &str = "registry.mirror.test";
const MINUTE: Duration = Duration::from_mins(1);
const PAGE: &str = "<html>Sign in to go on</html>";

/// What has been seen in place of a no.
fn pages() -> Vec<Vec<Fault>> {
    let html = Fault::answer(200, &[("content-type", "text/html; charset=utf-8")], PAGE);
    let json = Fault::answer(200, &[("content-type", "application/json")], r#"{"errors":[{"code":"DENIED"}]}"#);
    let manifest = [("content-type", "application/vnd.oci.image.manifest.v1+json")];
    let as_manifest = Fault::answer(200, &manifest, r#"{"errors":[{"code":"DENIED"}]}"#);
    let bytes = Fault::answer(200, &[("content-type", "application/octet-stream")], PAGE);
    let other = Fault::answer(200, &[("docker-content-digest", &digest_of(PAGE.as_bytes()))], PAGE);
    let endless = vec![html.clone(), Fault::NoLength];
    vec![vec![html], vec![json], vec![as_manifest], vec![bytes], vec![other], endless, vec![Fault::status(200)]]
}

/// Of a page whose length nobody tells, it is found out too late that it is none.
fn is_refused(answer: &Answer) -> bool {
    answer.status == 502 || !answer.complete
}

fn paths(image: &PutImage) -> Vec<String> {
    let lists = [format!("/v2/{}/referrers/{}", image.repository, image.digest)];
    let manifests = [image.manifest_path(), image.tag_path("latest")];
    image.blobs().map(|blob| image.blob_path(blob)).chain(manifests).chain(lists).collect()
}

// === in place of a no to a client's own login ===

/// Any 200 was a yes, and a yes is good for the whole repository: also for what others had brought here.
#[tokio::test]
async fn a_page_opens_nothing_to_a_client_that_may_not() {
    for page in pages() {
        let setup = Setup { auth: Auth::Tokens(TokenService::default()), ..Setup::default() };
        let upstream = Registry::with(setup.login("alice", "canary-of-alice").login("bob", "canary-of-bob")).await;
        let image = Image::new(1).layers(&[40_000]).put(&upstream, "team-a/app", "latest");
        let mirror = TestMirror::builder().gate("docker.io", &upstream, HOST).start().await;
        let alice = User::login(&mirror, HOST, "alice", "canary-of-alice").await;
        let bob = User::login(&mirror, HOST, "bob", "canary-of-bob").await;
        for path in paths(&image) {
            alice.get(&path).await.expect(200);
        }
        upstream.on(Match::any("/v2/team-a/").by("bob"), page.clone());
        // Of which nothing is known here.
        let unknown = format!("/v2/team-a/app/blobs/{}", digest_of(b"unknown"));
        let list = "/v2/team-a/app/tags/list".to_owned();
        for path in [vec![unknown.clone(), unknown.replace("/blobs/", "/manifests/"), list], paths(&image)].concat() {
            for answer in [bob.get(&path).await, bob.head(&path).await] {
                assert_eq!(answer.status, 502, "{path}: {page:?}");
            }
            alice.get(&image.manifest_path()).await.expect(200);
        }
        upstream.heal();
        mirror.clock().advance(MINUTE);
        for path in paths(&image) {
            bob.get(&path).await.expect(200);
        }
    }
}

// === in place of a no to larder ===

/// So it is with one that has lost the right to read, and with one that sits behind a hotel's network. Nobody can tell, so that it is
/// trouble like any other: what was proven is served for a while, and is said to be old. It was served as if it had been asked about.
#[tokio::test]
async fn a_page_is_no_new_proof_of_what_was_proven_a_day_ago() {
    for page in pages() {
        let setup = Setup { auth: Auth::Basic { user: "bob", password: "canary-secret" }, ..Setup::default() };
        let upstream = Registry::with(setup).await;
        let image = Image::new(1).layers(&[40_000]).put(&upstream, "team/app", "latest");
        let mirror =
            TestMirror::builder().upstream("docker.io", &upstream).login("docker.io", "bob", "canary-secret").start().await;
        let (layer, paths) = (&image.layers[0], [image.manifest_path(), image.blob_path(&image.layers[0])]);
        for path in &paths {
            mirror.get(path).await.expect(200);
        }
        for digest in [&image.digest, &layer.digest] {
            mirror.kept(digest).await;
        }
        mirror.clock().advance(25 * 60 * MINUTE);
        upstream.on(Match::any("/team/app/"), page.clone());
        for path in &paths {
            for answer in [mirror.get(path).await.expect(200), mirror.head(path).await.expect(200)] {
                assert_eq!(answer.header("cache-status"), Some("larder; hit; detail=stale"), "{path}: {page:?}");
            }
        }
        mirror.clock().advance(7 * 24 * 60 * MINUTE);
        for path in &paths {
            assert!(is_refused(&mirror.get(path).await), "{path}: {page:?}");
        }
        upstream.heal();
        mirror.clock().advance(MINUTE);
        assert_eq!(mirror.get(&paths[1]).await.expect(200).body, layer.bytes);
        mirror.get(&paths[0]).await.expect(200);
    }
}

/// The repository that says nothing got the bytes that another one's upstream was just sending.
#[tokio::test]
async fn a_page_gives_no_part_in_what_another_repository_is_sent() {
    for page in pages() {
        let upstream = Registry::start().await;
        let image = Image::new(2).layers(&[600_000]).put(&upstream, "team/one", "latest");
        let layer = &image.layers[0];
        upstream.on(Match::get(image.blob_path(layer)).times(1), Fault::Gate { after: 300_000 });
        upstream.on(Match::any("/team/two/"), page.clone());
        let mirror = TestMirror::of(&upstream).await;
        let mut one = mirror.stream(&image.blob_path(layer)).await;
        assert_eq!(one.take(100_000).await, layer.bytes.slice(..100_000));
        let two = image.blob_path(layer).replace("/team/one/", "/team/two/");
        // What it says is remembered of neither way.
        mirror.head(&two).await;
        assert!(is_refused(&mirror.get(&two).await), "{page:?}");
        upstream.release();
        one.rest().await.expect(200);
        mirror.kept(&layer.digest).await;
        assert!(is_refused(&mirror.get(&two).await), "{page:?}");
    }
}

// === what a HEAD says a manifest is ===

/// The type of what lay here was what another repository's upstream said of it in a HEAD, whatever the bytes were.
#[tokio::test]
async fn what_a_manifest_is_its_bytes_say_and_no_head() {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let upstream = Registry::start().await;
    let image = Image::new(3).put(&upstream, "team/one", "latest");
    let typed = String::from_utf8(image.manifest.to_vec()).unwrap();
    let untyped = typed.replace(&format!("\"mediaType\":\"{}\",", image.media_type), "");
    assert_ne!(typed, untyped);
    let digest = upstream.put_manifest("team/one", None, image.media_type, untyped.clone());
    upstream.put_manifest("team/two", None, image.media_type, untyped.clone());
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&format!("/v2/team/one/manifests/{digest}")).await.expect(200);
    mirror.get(&image.blob_path(&image.config)).await.expect(200);
    mirror.kept(&digest).await;
    mirror.kept(&image.config.digest).await;
    for (digest, bytes) in [(&digest, Bytes::from(untyped)), (&image.config.digest, image.config.bytes.clone())] {
        let says = Fault::answer(200, &[("content-type", INDEX), ("docker-content-digest", digest)], bytes);
        upstream.on(Match::head(format!("/v2/team/two/manifests/{digest}")), says);
    }
    let answer = mirror.get(&format!("/v2/team/two/manifests/{digest}")).await.expect(200);
    assert_eq!(answer.header("content-type"), Some(image.media_type));
    mirror.get(&format!("/v2/team/two/manifests/{}", image.config.digest)).await.expect(404);
}
