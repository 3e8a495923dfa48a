//! What else clients ask of each registry, answered as if there were only one kind of them.

use http::Method;

use crate::registries::{World, each_registry};
use crate::support::{Client, Fault, Image, Like, Match, Registry, TestMirror};

/// Some refuse a HEAD, some redirect it to where it is refused, and one knows nothing before a GET.
async fn tells_the_size_of_a_cold_blob(like: Like) {
    let world = World::like(like).await;
    let layer = &world.image.images[0].layers[1];
    let answer = world.mirror.head(&format!("/v2/{}/blobs/{}", world.repository, layer.digest)).await.expect(200);
    assert_eq!(answer.header("content-length"), Some("300000"), "{like:?}: {}", world.asked());
    assert_eq!(answer.header("docker-content-digest"), Some(&*layer.digest), "{like:?}");
}

/// Some do not say that they know ranges, and some refuse more than one of them.
async fn gives_ranges_of_a_cold_blob(like: Like) {
    for (range, parts) in
        [("bytes=100000-100099", [100_000..100_100, 0..0]), ("bytes=0-9,200000-200009", [0..10, 200_000..200_010])]
    {
        let world = World::like(like).await;
        let layer = &world.image.images[0].layers[1];
        let path = format!("/v2/{}/blobs/{}", world.repository, layer.digest);
        let answer = world.mirror.get_with(&path, &[("range", range)]).await.expect(206);
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let bytes = &layer.bytes[part];
            assert!(answer.body.windows(bytes.len()).any(|window| window == bytes), "{like:?}: {range}");
        }
        let ranges = world.registry.requests().into_iter().filter_map(|request| request.range().map(str::to_owned));
        assert!(ranges.into_iter().all(|range| !range.contains(',')), "{like:?}: {range}");
    }
}

/// With a new signature where there are such, and with what has arrived before.
async fn goes_on_where_a_transfer_broke(like: Like) {
    let world = World::like(like).await;
    let layer = &world.image.images[0].layers[1];
    let front = format!("{}/blobs/{}", world.image.repository, layer.digest);
    for which in [Match::storage(&layer.digest), Match::get(front)] {
        world.registry.on(which.times(1), Fault::Cut { after: 150_000 });
    }
    let answer = world.mirror.get(&format!("/v2/{}/blobs/{}", world.repository, layer.digest)).await.expect(200);
    assert!(answer.body == layer.bytes, "{like:?}");
    let requests = world.registry.requests();
    assert!(requests.iter().any(|request| request.range() == Some("bytes=150000-")), "{like:?}: {requests:#?}");
}

/// Whatever it says of repositories that are not there.
async fn tells_that_a_tag_is_missing(like: Like) {
    let world = World::like(like).await;
    for method in [Method::HEAD, Method::GET] {
        let url = world.mirror.url(&format!("/v2/{}/manifests/no-such", world.repository));
        let answer = Client::h1().request(method.clone(), url, &[]).await.expect(404);
        let code = answer.error_code();
        assert_eq!(code.as_deref(), (method == Method::GET).then_some("MANIFEST_UNKNOWN"), "{like:?}");
    }
}

/// Where the query is lost on the way, pages are larger than asked for, or the next one is named by another host.
async fn lists_tags_page_by_page(like: Like) {
    let world = World::like(like).await;
    for tag in ["a", "b", "c", "d"] {
        world.registry.tag(&world.image.repository, tag, &world.image.digest);
    }
    // Its lists are not sent elsewhere, as its manifests are.
    let name = if like == Like::Harbor { "hub/library/app" } else { world.repository };
    let mut tags = Vec::new();
    let mut next = Some(format!("/v2/{name}/tags/list?n=2"));
    while let Some(page) = next.take() {
        let answer = world.mirror.get(&page).await.expect(200);
        let list = answer.json()["tags"].as_array().unwrap().clone();
        assert!((1..=2).contains(&list.len()), "{like:?}: {page}: {list:?}");
        tags.extend(list.into_iter().map(|tag| tag.as_str().unwrap().to_owned()));
        next = answer.header("link").map(|link| link.split(['<', '>']).nth(1).unwrap().to_owned());
        assert!(next.as_ref().is_none_or(|next| next.starts_with("/v2/")), "{like:?}: {next:?}");
    }
    assert_eq!(tags, ["a", "b", "c", "d", "latest"], "{like:?}");
}

each_registry!(tells_the_size_of_a_cold_blob);
each_registry!(gives_ranges_of_a_cold_blob);
each_registry!(goes_on_where_a_transfer_broke);
each_registry!(tells_that_a_tag_is_missing);
each_registry!(lists_tags_page_by_page);

/// Docker Hub says 401 of them, whoever asks.
#[tokio::test]
async fn a_repository_that_docker_hub_does_not_have_is_missing_and_costs_one_token() {
    let world = World::like(Like::DockerHub).await;
    let answer = world.mirror.get("/v2/library/no-such/manifests/v1").await.expect(404);
    assert_eq!(answer.error_code().as_deref(), Some("MANIFEST_UNKNOWN"));
    assert_eq!(world.asked(), "2 × GET /v2/library/no-such/manifests/v1, token");
}

/// ghcr.io says so already where it gives tokens. That is no fault of larder's user.
#[tokio::test]
async fn a_repository_that_ghcr_gives_no_token_for_is_denied() {
    let registry = Registry::with(Like::Ghcr.setup().login("bob", "canary-b").login("eve", "canary-e")).await;
    let image = Image::new(1).layers(&[1_000]).put(&registry, "team/app", "latest");
    registry.restrict("team/app", &["bob"]);
    for (login, status) in [(Some(("bob", "canary-b")), 200), (Some(("eve", "canary-e")), 403), (None, 403)] {
        let mirror = TestMirror::builder().upstream("ghcr.io", &registry).set("mirror.default_upstream = \"ghcr.io\"");
        let mirror = match login {
            Some((user, password)) => mirror.login("ghcr.io", user, password).start().await,
            None => mirror.start().await,
        };
        let answer = mirror.get(&image.tag_path("latest")).await.expect(status);
        assert_eq!(answer.error_code().as_deref(), (status == 403).then_some("DENIED"), "{login:?}");
        let absent = mirror.get("/v2/team/no-such/manifests/latest").await.expect(403);
        assert_eq!(absent.error_code().as_deref(), Some("DENIED"), "{login:?}");
    }
}
