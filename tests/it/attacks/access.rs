//! What a client may have of a cache that others have filled: what its own repository holds, and no sign of the rest.

use std::fs;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;

use crate::public::{blob, open_to, read};
use crate::support::{Answer, Client, Fault, Image, Match, PATIENCE, PutImage, Registry, TestMirror, noise, partial_file};

/// What the registry was asked: by which method, for what, in whose name.
fn asked(registry: &Registry) -> Vec<String> {
    registry.requests().iter().map(|request| format!("{} {}", request.method, request.path)).collect()
}

/// All that a client can tell one answer from another by, but its time.
fn seen(answer: &Answer) -> (u16, Vec<(String, String)>, Bytes) {
    let headers = answer.headers.iter().filter(|(name, _)| *name != "date");
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    (answer.status, headers.map(|(name, value)| (name.to_string(), text(value))).collect(), answer.body.clone())
}

/// A larder that holds an image of one repository, and one that holds nothing.
async fn full_and_empty(registry: &Registry, image: &PutImage) -> [TestMirror; 2] {
    let [full, empty] = [TestMirror::of(registry).await, TestMirror::of(registry).await];
    for path in [image.manifest_path(), image.blob_path(&image.layers[0])] {
        full.get(&path).await.expect(200);
    }
    for digest in [&image.digest, &image.layers[0].digest] {
        full.kept(digest).await;
    }
    [full, empty]
}

fn elsewhere(image: &PutImage) -> [String; 2] {
    [image.manifest_path(), image.blob_path(&image.layers[0])].map(|path| path.replace("/team/one/", "/team/two/"))
}

// === a repository that does not hold what is here ===

/// Asks a larder that holds an image of `team/one` and one that does not for the parts of it in `repository`, which does not, and
/// compares all that a client sees, and what the registry was asked meanwhile: each question is time.
async fn looks_alike(registry: &Registry, mirrors: &[TestMirror; 2], image: &PutImage, repository: &str, what: &str) {
    let paths = elsewhere(image).map(|path| path.replace("/team/two/", &format!("/{repository}/")));
    for (path, method) in paths.iter().flat_map(|path| [(path, Method::GET), (path, Method::HEAD)]) {
        let mut outcomes = Vec::new();
        for mirror in mirrors {
            let before = asked(registry).len();
            let answer = Client::h1().request(method.clone(), mirror.url(path), &[]).await;
            let asked = asked(registry).into_iter().skip(before).filter(|asked| asked.contains(repository));
            outcomes.push((seen(&answer), asked.collect::<Vec<_>>()));
            // What is remembered of a no, and of an upstream that is left alone.
            mirror.clock().advance(Duration::from_mins(20));
        }
        let [(full_seen, full_asked), (empty_seen, empty_asked)] = &outcomes[..] else { panic!() };
        assert_eq!(full_seen, empty_seen, "{what} to {method} {path}");
        // What says yes is looked at more closely where there is something to look at.
        if !what.starts_with("200") && !what.starts_with("206") {
            assert_eq!(full_asked, empty_asked, "{what} to {method} {path}");
        }
    }
}

/// Where HEAD and GET stand for each other they may be answered differently: what was here was asked for by the one, and what was
/// not by the other.
#[tokio::test]
async fn what_is_here_and_not_ones_own_looks_exactly_like_what_is_not_here() {
    let statuses: Vec<u16> = (200..=599).collect();
    // Each asks thrice where it hears of trouble, with pauses between.
    join_all(statuses.chunks(14).map(async |statuses| {
        let registry = Registry::start().await;
        let image = Image::new(1).layers(&[300_000]).put(&registry, "team/one", "latest");
        let mirrors = full_and_empty(&registry, &image).await;
        for code in statuses {
            let repository = format!("team/s{code}");
            registry.on(Match::any(format!("/{repository}/")), Fault::status(*code));
            looks_alike(&registry, &mirrors, &image, &repository, &code.to_string()).await;
        }
    }))
    .await;
}

/// One that refuses one way to ask, whatever is asked for, and says no by the other.
#[tokio::test]
async fn so_it_does_where_head_and_get_are_answered_differently() {
    join_all([[403, 404], [404, 403], [405, 404], [404, 405], [200, 404], [404, 200], [500, 404], [404, 500], [501, 401]].map(
        async |[head, get]| {
            let registry = Registry::start().await;
            let image = Image::new(1).layers(&[300_000]).put(&registry, "team/one", "latest");
            let mirrors = full_and_empty(&registry, &image).await;
            registry.on(Match::head("/team/two/"), Fault::status(head));
            registry.on(Match::get("/team/two/"), Fault::status(get));
            looks_alike(&registry, &mirrors, &image, "team/two", &format!("{get}, to HEAD {head},")).await;
        },
    ))
    .await;
}

/// What was here was asked for, and what was not was refused unasked.
#[tokio::test]
async fn so_it_does_when_the_byte_quota_is_spent() {
    for code in [401, 403, 404, 405, 410, 451, 500] {
        let registry = Registry::start().await;
        let image = Image::new(1).layers(&[300_000]).put(&registry, "team/one", "latest");
        let other = registry.put_blob("team/other", noise(9, 400_000));
        registry.on(Match::any("/team/two/"), Fault::status(code));
        let quota = "upstream.\"docker.io\".byte_quota = \"300KB\"\nupstream.\"docker.io\".byte_quota_window = \"90d\"";
        let [full, empty] = [
            TestMirror::builder().upstream("docker.io", &registry).set(quota).start().await,
            TestMirror::builder().upstream("docker.io", &registry).set(quota).start().await,
        ];
        full.get(&image.manifest_path()).await.expect(200);
        full.get(&image.blob_path(&image.layers[0])).await.expect(200);
        full.kept(&image.layers[0].digest).await;
        empty.get(&format!("/v2/team/other/blobs/{other}")).await.expect(200);
        let spent = full.get(&format!("/v2/team/other/blobs/{other}")).await.expect(503);
        assert!(spent.text().contains("byte_quota"), "{}", spent.text());
        looks_alike(&registry, &[full, empty], &image, "team/two", &code.to_string()).await;
    }
}

/// A blob that was here was asked for by HEAD and then by GET, and one that was not by GET alone: twice the time.
#[tokio::test]
async fn a_no_takes_as_long_for_what_is_here_as_for_what_is_not() {
    const LATENCY: Duration = Duration::from_millis(200);
    let registry = Registry::start().await;
    let image = Image::new(2).layers(&[300_000]).put(&registry, "team/one", "latest");
    let [full, empty] = full_and_empty(&registry, &image).await;
    registry.on(Match::any("/team/two/"), vec![Fault::Latency(LATENCY), Fault::status(404)]);
    for path in elsewhere(&image) {
        for mirror in [&full, &empty] {
            let mut took = Vec::new();
            for _ in 0..3 {
                let begun = Instant::now();
                mirror.get(&path).await.expect(404);
                took.push(begun.elapsed());
                mirror.clock().advance(Duration::from_secs(10));
            }
            // Others of these tests run beside it.
            assert!(took.iter().all(|took| *took >= LATENCY), "{path}: {took:?}");
            assert!(took.iter().any(|took| *took < LATENCY * 2), "{path}: {took:?}");
        }
    }
}

/// What a fill for another repository had left was opened and hashed before anyone was asked: gigabytes of it are seconds, which the
/// one who asked could count, and which each question in vain cost anew.
#[tokio::test]
async fn of_what_others_have_left_of_a_blob_nothing_is_read_for_a_no() {
    let registry = Registry::start().await;
    let image = Image::new(7).layers(&[3 << 20]).put(&registry, "team/one", "latest");
    let layer = &image.layers[0];
    let (left, empty) = (TestMirror::of(&registry).await.stop().await, TestMirror::of(&registry).await);
    let partial = partial_file(&left.cache_dir(), &layer.digest);
    fs::write(&partial, &layer.bytes[..2 << 20]).unwrap();
    let mirrors = [left.start().await, empty];
    let before = mirrors[0].faults().count();
    for code in [404, 403, 401, 410, 405, 429, 500] {
        let repository = format!("team/s{code}");
        registry.on(Match::any(format!("/{repository}/")), Fault::status(code));
        looks_alike(&registry, &mirrors, &image, &repository, &code.to_string()).await;
    }
    registry.on(Match::any("/team/two/"), Fault::Cut { after: 0 });
    looks_alike(&registry, &mirrors, &image, "team/two", "a cut").await;
    assert_eq!(mirrors[0].faults().since(before), [], "the disk has heard nothing of it");

    // Whose repository has the blob goes on from there.
    registry.forget_requests();
    assert_eq!(mirrors[0].get(&image.blob_path(layer)).await.expect(200).body, layer.bytes);
    assert_eq!(registry.requests()[0].range(), Some("bytes=2097151-"));
    assert_eq!(registry.requests().len(), 1, "{:#?}", registry.requests());
}

#[tokio::test]
async fn a_no_is_at_once_and_no_other_repository_revives_the_right() {
    let registry = Registry::start().await;
    let (one, two) = (
        Image::new(3).layers(&[40_000]).put(&registry, "team/one", "latest"),
        Image::new(3).layers(&[40_000]).put(&registry, "team/two", "latest"),
    );
    let mirror = TestMirror::builder()
        .upstream("docker.io", &registry)
        .login("docker.io", "bob", "canary-of-bob")
        .set("mirror.proof_ttl = \"1h\"")
        .start()
        .await;
    let paths = |image: &PutImage| [image.manifest_path(), image.blob_path(&image.layers[0])];
    for path in paths(&one).iter().chain(&paths(&two)) {
        mirror.get(path).await.expect(200);
    }
    // When it is kept, it has been noted that it was proven.
    mirror.kept(&one.layers[0].digest).await;
    for code in [404, 403] {
        registry.heal();
        mirror.clock().advance(Duration::from_hours(2));
        for path in paths(&one) {
            mirror.get(&path).await.expect(200);
        }
        registry.on(Match::any("/team/one/"), Fault::status(code));
        mirror.clock().advance(Duration::from_hours(2));
        for path in paths(&one) {
            mirror.get(&path).await.expect(code);
        }
        for path in paths(&two) {
            mirror.get(&path).await.expect(200);
        }
        mirror.clock().advance(Duration::from_mins(1));
        for path in paths(&one) {
            registry.forget_requests();
            mirror.get(&path).await.expect(code);
            mirror.head(&path).await.expect(code);
            assert!(!registry.requests().is_empty(), "{path}: it is asked about again");
        }
    }
}

// === a registry of anyone's ===

/// Two of its repositories tell the same lie of a blob's size: what comes of that does not tell whether others have brought it here.
#[tokio::test]
async fn a_registry_of_anyones_is_not_told_by_two_repositories_what_others_have_brought() {
    let bytes = noise(4, 300_000);
    for brought in [false, true] {
        let (hub, evil) = (Registry::start().await, Registry::start().await);
        let digest = hub.put_blob("library/app", bytes.clone());
        let dir = tempfile::tempdir().unwrap();
        let mirror = open_to(dir.path(), &hub, &evil).await;
        if brought {
            assert!(read(&blob(&mirror, "app", &digest).await).await.is_some());
        }
        ["x", "y"].iter().for_each(|repository| evil.put_blob_under(repository, &digest, noise(5, 400_000)));
        evil.on(Match::get(&digest).times(1), Fault::Gate { after: 1 });
        let underway = blob(&mirror, "evil.example/x", &digest).await;
        let joined = blob(&mirror, "evil.example/y", &digest).await;
        assert_eq!((underway.known_size(), joined.known_size()), (Some(400_000), Some(400_000)), "{brought}");
        assert_eq!(evil.count("GET", "/v2/y/"), 1, "it was asked for what the other has begun");
    }
}

/// It says yes to everything, and has nothing: what others have brought here is not its to give.
#[tokio::test]
async fn a_registry_of_anyones_gets_nothing_for_its_word() {
    let (hub, evil) = (Registry::start().await, Registry::start().await);
    let bytes = noise(4, 300_000);
    let digest = hub.put_blob("library/app", bytes.clone());
    let dir = tempfile::tempdir().unwrap();
    let mirror = open_to(dir.path(), &hub, &evil).await;
    assert_eq!(read(&blob(&mirror, "app", &digest).await).await.as_deref(), Some(&bytes[..]));
    let manifest = Image::new(5).put(&hub, "library/app", "latest");
    let get_manifest = async |image: &str, digest: &str| {
        let origin = mirror.registries().resolve(&image.parse().unwrap()).unwrap();
        let found = mirror.manifest(&origin, &digest.parse().unwrap(), larder::oci::Accept::anything()).await;
        found.map(|manifest| manifest.bytes)
    };
    assert_eq!(get_manifest("app", &manifest.digest).await.unwrap(), manifest.manifest);

    // HEAD says that it is there, of the right size and type; and a GET begins to, and never goes on.
    evil.put_blob("x", bytes.clone());
    evil.put_manifest("x", None, manifest.media_type, manifest.manifest.clone());
    evil.on(Match::get(&digest), Fault::Stall { after: 1 });
    evil.on(Match::get(&manifest.digest), Fault::WrongBody("{}".into()));
    let origin = mirror.registries().resolve(&"evil.example/x".parse().unwrap()).unwrap();
    let parsed = digest.parse().unwrap();
    for _ in 0..2 {
        assert_eq!(mirror.blob_size(&origin, &parsed).await.unwrap().size, Some(300_000), "so it says itself");
        let blob = mirror.blob(&origin, &parsed).await.unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(300), read(&blob)).await;
        assert!(waited.is_err(), "it got what it has not shown");
        assert!(get_manifest("evil.example/x", &manifest.digest).await.is_err());
    }
    // Who can show it gets it, from then on out of the cache.
    evil.heal();
    evil.release();
    let shown = async {
        loop {
            if let Ok(blob) = mirror.blob(&origin, &parsed).await
                && read(&blob).await.as_deref() == Some(&bytes[..])
            {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, shown).await.expect("it is shown");
    let gets = evil.count("GET", &digest);
    assert_eq!(read(&blob(&mirror, "evil.example/x", &digest).await).await.as_deref(), Some(&bytes[..]));
    assert_eq!(evil.count("GET", &digest), gets);
    assert_eq!(get_manifest("evil.example/x", &manifest.digest).await.unwrap(), manifest.manifest);
}

/// Likewise of what is not yet whole.
#[tokio::test]
async fn a_registry_of_anyones_does_not_go_on_from_what_another_has_left() {
    let (hub, evil) = (Registry::start().await, Registry::start().await);
    let bytes = noise(6, 3 << 20);
    let digest = hub.put_blob("library/app", bytes.clone());
    let dir = tempfile::tempdir().unwrap();
    let mirror = open_to(dir.path(), &hub, &evil).await;
    hub.on(Match::get(&digest), Fault::Stall { after: 2 << 20 });
    let partial = blob(&mirror, "app", &digest).await;
    let mut beginning = partial.read(0, 1 << 20, &larder::mirror::Pieces::default());
    while let Some(chunk) = futures_util::StreamExt::next(&mut beginning).await {
        chunk.unwrap();
    }
    drop((beginning, partial));
    // Nobody wants it any more, and no fill goes on for nobody.
    let stopped = async {
        while hub.held_now() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, stopped).await.expect("the fill stops");
    evil.on(
        Match::get(&digest),
        Fault::answer(206, &[("content-range", &format!("bytes 2097151-{}/{}", bytes.len() - 1, bytes.len()))], "x"),
    );
    let origin = mirror.registries().resolve(&"evil.example/x".parse().unwrap()).unwrap();
    // Until the fill has put it down, what is left is not there to go on from.
    for _ in 0..20 {
        let answer = mirror.blob(&origin, &digest.parse().unwrap()).await;
        let got = match &answer {
            Ok(blob) => read(blob).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        assert!(got.is_empty(), "{} bytes that it has not sent", got.len());
    }
    let ranges: Vec<_> = evil.requests().iter().filter_map(|request| request.range().map(String::from)).collect();
    assert!(ranges.is_empty(), "{ranges:?}");
}

// === what changes something ===

#[tokio::test]
async fn whatever_is_not_a_get_or_a_head_is_405_before_anything_is_looked_at() {
    let registry = Registry::start().await;
    let image = Image::new(7).layers(&[1000]).put(&registry, "team/one", "latest");
    let mirror = TestMirror::of(&registry).await;
    mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
    mirror.kept(&image.layers[0].digest).await;
    registry.forget_requests();
    let client = Client::h1();
    let mut bodies = Vec::new();
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "MKCOL", "PURGE", "get", "X"] {
        for path in [
            image.blob_path(&image.layers[0]),
            image.tag_path("latest"),
            "/v2/".into(),
            "/v2/team/one/blobs/uploads/?mount=x&from=y".into(),
            "/v2/team/one/blobs/uploads/1".into(),
            "/v2/NO%00NAME/manifests/-".into(),
            "/token".into(),
            "/api/refresh?image=app".into(),
            "/".into(),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let answer = client.request(method.clone(), mirror.url(&path), &[("x-larder", "1")]).await.expect(405);
            assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{method} {path}");
            bodies.push(answer.body);
        }
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    // Nor is there another way to say it.
    for header in ["x-http-method-override", "x-http-method", "x-method-override"] {
        client.request(Method::GET, mirror.url(&image.blob_path(&image.layers[0])), &[(header, "DELETE")]).await.expect(200);
        client.request(Method::POST, mirror.url(&image.tag_path("latest")), &[(header, "GET")]).await.expect(405);
    }
    assert!(registry.requests().is_empty(), "{:#?}", registry.requests());
    assert!(mirror.holds(&image.layers[0].digest));
}
