//! The scripted registries themselves: that each is as unlike the others as the real one, seen by a bare client.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Method;

use crate::support::{
    ANONYMOUS, Answer, Client, Fault, Like, Listener, Match, MultiArch, PutIndex, Registry, digest_of, get, get_with, head,
};

const REPOSITORY: &str = "team/app";

/// One registry with one image and the path of one layer of it.
struct World {
    registry: Registry,
    image: PutIndex,
    layer: String,
}

impl World {
    async fn like(like: Like) -> Self {
        let registry = Registry::like(like).await;
        let image = MultiArch::new(1).put(&registry, REPOSITORY, "latest");
        let layer = image.images[0].blob_path(&image.images[0].layers[0]);
        Self { registry, image, layer }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.registry.url())
    }

    fn tag(&self) -> String {
        self.url(&self.image.tag_path("latest"))
    }

    fn layer(&self) -> String {
        self.url(&self.layer)
    }

    async fn token(&self, path: &str, service: &str) -> Answer {
        get(self.url(&format!("{path}?service={service}&scope=repository:{REPOSITORY}:pull"))).await
    }

    async fn bearer(&self, path: &str, service: &str) -> String {
        let answer = self.token(path, service).await.expect(200).json();
        format!("Bearer {}", answer["token"].as_str().unwrap())
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

async fn head_with(url: &str, authorization: &str) -> Answer {
    Client::h1().request(Method::HEAD, url, &[("authorization", authorization)]).await
}

#[tokio::test]
async fn docker_hub_counts_gets_of_manifests_by_account_and_hides_what_is_missing() {
    let world = World::like(Like::DockerHub).await;
    let challenge = get(world.tag()).await.expect(401);
    let realm = format!("{}/token", world.registry.token_url());
    let expected = format!("Bearer realm=\"{realm}\",service=\"registry.docker.io\",scope=\"repository:{REPOSITORY}:pull\"");
    assert_eq!(challenge.header("www-authenticate"), Some(expected.as_str()));

    let asked = "service=registry.docker.io&scope=repository:team/app:pull&scope=repository:no/such:pull";
    let answer = get(format!("{realm}?{asked}")).await.expect(200).json();
    assert_eq!(answer["expires_in"], 300);
    assert_eq!(world.registry.tokens(ANONYMOUS, "repository:team/app:pull"), 1);
    let bearer = format!("Bearer {}", answer["token"].as_str().unwrap());
    let shown = [("authorization", bearer.as_str())];

    let free = head_with(&world.tag(), &bearer).await.expect(200);
    assert_eq!(free.header("ratelimit-remaining"), Some("100;w=21600"));
    let counted = get_with(world.tag(), &shown).await.expect(200);
    assert_eq!(counted.header("ratelimit-remaining"), Some("99;w=21600"));
    assert_eq!(counted.header("ratelimit-limit"), Some("100;w=21600"));
    assert_eq!(world.registry.budget(ANONYMOUS), 99);
    world.registry.set_budget(ANONYMOUS, 0);
    let refused = get_with(world.tag(), &shown).await.expect(429);
    assert_eq!(refused.error_code().as_deref(), Some("TOOMANYREQUESTS"));
    head_with(&world.tag(), &bearer).await.expect(200);
    get_with(world.layer(), &shown).await.expect(307);

    let missing = get_with(world.url("/v2/no/such/manifests/latest"), &shown).await.expect(401);
    assert!(missing.header("www-authenticate").unwrap().contains("error=\"insufficient_scope\""));
    let missing = get_with(world.url("/v2/team/app/manifests/no-such"), &shown).await.expect(404);
    assert_eq!(missing.error_code().as_deref(), Some("MANIFEST_UNKNOWN"));
    world.registry.on(Match::any(""), Fault::too_many_requests());
    assert_eq!(get_with(world.layer(), &shown).await.expect(429).text(), "Too Many Requests");
}

#[tokio::test]
async fn docker_hub_knows_its_users_apart() {
    let registry = Registry::with(Like::DockerHub.setup().login("bob", "canary-b").login("eve", "canary-e")).await;
    MultiArch::new(1).put(&registry, REPOSITORY, "latest");
    registry.restrict(REPOSITORY, &["bob"]);
    let realm = format!("{}/token?service=registry.docker.io&scope=repository:{REPOSITORY}:pull", registry.token_url());
    for (user, password, status) in [("bob", "canary-b", 200), ("eve", "canary-e", 401)] {
        let login = basic(user, password);
        let answer = get_with(&realm, &[("authorization", &login)]).await.expect(200).json();
        let bearer = format!("Bearer {}", answer["token"].as_str().unwrap());
        let url = format!("{}/v2/{REPOSITORY}/manifests/latest", registry.url());
        get_with(url, &[("authorization", &bearer)]).await.expect(status);
    }
    get_with(&realm, &[("authorization", &basic("bob", "canary-e"))]).await.expect(401);
    assert_eq!((registry.budget("bob"), registry.budget("eve")), (99, 100));
    assert_eq!(registry.tokens("bob", "repository:team/app:pull"), 1);
}

#[tokio::test]
async fn ghcr_denies_at_the_token_service_and_signs_for_get_alone() {
    let world = World::like(Like::Ghcr).await;
    let bearer = world.bearer("/token", "ghcr.io").await;
    let redirect = head_with(&world.layer(), &bearer).await.expect(307);
    let location = redirect.header("location").unwrap().to_owned();
    head(&location).await.expect(403);
    get(&location).await.expect(200);
    world.registry.restrict(REPOSITORY, &[]);
    let denied = world.token("/token", "ghcr.io").await.expect(403);
    assert_eq!(denied.error_code().as_deref(), Some("DENIED"));
    let unaccepted = [("authorization", bearer.as_str()), ("accept", "*/*")];
    get_with(world.tag(), &unaccepted).await.expect(404);
    world.registry.put_referrers(REPOSITORY, &world.image.digest, None);
    let referrers = world.url(&format!("/v2/{REPOSITORY}/referrers/{}", world.image.digest));
    get_with(referrers, &unaccepted).await.expect(404);
}

#[tokio::test]
async fn quay_dates_its_tokens_inside_and_converts_what_is_not_accepted() {
    let world = World::like(Like::Quay).await;
    let answer = world.token("/v2/auth", "quay.io").await.expect(200).json();
    assert_eq!(answer.as_object().unwrap().keys().collect::<Vec<_>>(), ["token"]);
    let token = answer["token"].as_str().unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3600);

    let bearer = format!("Bearer {token}");
    let shown = ("authorization", bearer.as_str());
    let index = get_with(world.tag(), &[shown, ("accept", world.image.media_type)]).await.expect(200);
    assert_eq!((index.digest(), index.header("content-length")), (world.image.digest.clone(), None));
    assert_eq!(head_with(&world.tag(), &bearer).await.expect(200).header("content-length"), None);
    let child = get_with(world.tag(), &[shown, ("accept", world.image.images[0].media_type)]).await.expect(200);
    assert_eq!(child.digest(), world.image.images[0].digest);
    head_with(&world.layer(), &bearer).await.expect(200);
    get_with(world.layer(), &[shown]).await.expect(302);

    for tag in 0..60 {
        world.registry.tag(REPOSITORY, &format!("t{tag:02}"), &world.image.digest);
    }
    let mut next = world.url("/v2/team/app/tags/list?n=1000");
    let mut tags = Vec::new();
    for left in [1, 0] {
        let page = get_with(&next, &[shown]).await.expect(200);
        tags.extend(page.json()["tags"].as_array().unwrap().clone());
        let link = page.header("link").map(|link| link.split(['<', '>']).nth(1).unwrap().to_owned());
        assert_eq!(usize::from(link.is_some()), left);
        next = link.unwrap_or_default();
        assert!(left == 0 || (next.starts_with("http://") && next.contains("next_page=")), "{next}");
    }
    assert_eq!(tags.len(), 61);
}

#[tokio::test]
async fn registry_k8s_io_sends_everything_elsewhere_and_loses_the_query() {
    let world = World::like(Like::KubernetesIo).await;
    get(world.url("/v2/")).await.expect(200);
    let redirect = get(world.url("/v2/team/app/tags/list?n=1")).await.expect(307);
    let location = redirect.header("location").unwrap();
    assert!(location.ends_with("/v2/k8s-artifacts-prod/images/team/app/tags/list"), "{location}");
    assert!(!location.starts_with(&world.registry.url()), "{location}");
    assert_eq!(get(location).await.expect(200).json()["tags"].as_array().unwrap().len(), 1);
    let manifest = get(world.tag()).await.expect(307);
    assert_eq!(get(manifest.header("location").unwrap()).await.expect(200).digest(), world.image.digest);
    assert_eq!(world.registry.count_at(Listener::Backend, "GET", "/images/team/app/"), 2);
    get(world.layer()).await.expect(307);
}

#[tokio::test]
async fn artifact_registry_challenges_at_its_base_and_redirects_to_itself() {
    let world = World::like(Like::ArtifactRegistry).await;
    assert_eq!(get(world.tag()).await.expect(401).header("www-authenticate"), None);
    let challenge = get(world.url("/v2/")).await.expect(401);
    let expected = format!("Bearer realm=\"{}/v2/token\",service=\"gcr.io\"", world.registry.url());
    assert_eq!(challenge.header("www-authenticate"), Some(expected.as_str()));
    Client::h1().request(Method::POST, world.url("/v2/token"), &[]).await.expect(404);

    let bearer = world.bearer("/v2/token", "gcr.io").await;
    let shown = ("authorization", bearer.as_str());
    let redirect = get_with(world.layer(), &[shown]).await.expect(302);
    let location = redirect.header("location").unwrap();
    assert!(location.starts_with("/artifacts-downloads/") && location.len() > 2_000, "{location}");
    get(world.url(location)).await.expect(401);
    get_with(world.url(location), &[shown, ("range", "bytes=0-1,4-5")]).await.expect(400);
    get_with(world.url(location), &[shown, ("range", "bytes=0-1")]).await.expect(206);
    assert_eq!(world.registry.count_at(Listener::Storage, "GET", "/artifacts-downloads/"), 3);
}

#[tokio::test]
async fn amazons_registries_want_basic_here_and_a_scope_of_their_own_there() {
    let world = World::like(Like::Ecr).await;
    let (user, password) = Like::Ecr.login().unwrap();
    let login = basic(user, password);
    assert!(get(world.tag()).await.expect(401).header("www-authenticate").unwrap().starts_with("Basic "));
    let redirect = get_with(world.layer(), &[("authorization", &login)]).await.expect(307);
    let location = redirect.header("location").unwrap();
    get_with(location, &[("authorization", &login)]).await.expect(400);
    get(location).await.expect(200);
    get_with(world.url("/v2/team/app/tags/list?n=1001"), &[("authorization", &login)]).await.expect(400);

    let world = World::like(Like::EcrPublic).await;
    let challenge = get(world.tag()).await.expect(401);
    assert!(challenge.header("www-authenticate").unwrap().ends_with("/token/\",service=\"public.ecr.aws\",scope=\"aws\""));
    let own = world.bearer("/token/", "public.ecr.aws").await;
    get_with(world.tag(), &[("authorization", &own)]).await.expect(401);
    let answer = get(world.url("/token/?service=public.ecr.aws&scope=aws")).await.expect(200).json();
    let bearer = format!("Bearer {}", answer["token"].as_str().unwrap());
    let manifest = get_with(world.tag(), &[("authorization", &bearer)]).await.expect(200);
    assert_eq!(manifest.header("docker-content-digest"), None);
    head_with(&world.layer(), &bearer).await.expect(401);
    get_with(world.layer(), &[("authorization", &bearer)]).await.expect(307);
}

#[tokio::test]
async fn azure_advertises_basic_and_means_bearer() {
    let world = World::like(Like::Acr).await;
    let (user, password) = Like::Acr.login().unwrap();
    let login = basic(user, password);
    let refused = get_with(world.tag(), &[("authorization", &login)]).await.expect(401);
    assert!(refused.header("www-authenticate").unwrap().starts_with("Basic "));
    let challenge = get(world.url("/v2/")).await.expect(401);
    assert!(challenge.header("www-authenticate").unwrap().contains("/oauth2/token\""));

    let query = format!("service=corp.azurecr.io&scope=repository:{REPOSITORY}:pull");
    let url = world.url("/oauth2/token");
    Client::h1().request(Method::POST, &url, &[]).await.expect(400);
    get(format!("{url}?{query}")).await.expect(401);
    let by_get = get_with(format!("{url}?{query}"), &[("authorization", &login)]).await.expect(200).json();
    let form = format!("grant_type=refresh_token&refresh_token={password}&{query}");
    let raw =
        format!("POST /oauth2/token HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{form}", form.len());
    let by_post = crate::support::raw(world.registry.address(), raw).await;
    assert!(String::from_utf8_lossy(&by_post).starts_with("HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&by_post));
    assert_eq!(world.registry.tokens(user, "repository:team/app:pull"), 2);

    let bearer = format!("Bearer {}", by_get["access_token"].as_str().unwrap());
    let redirect = get_with(world.layer(), &[("authorization", &bearer)]).await.expect(307);
    get_with(redirect.header("location").unwrap(), &[("authorization", &bearer)]).await.expect(400);
}

#[tokio::test]
async fn harbor_adds_library_and_denies_blobs_that_it_has_not_fetched() {
    let registry = Registry::like(Like::Harbor).await;
    let image = MultiArch::new(1).put(&registry, "hub/library/app", "latest");
    let answer = get(format!("{}/service/token?service=harbor-registry&scope=repository:hub/app:pull", registry.url()));
    let bearer = format!("Bearer {}", answer.await.expect(200).json()["token"].as_str().unwrap());
    let shown = [("authorization", bearer.as_str())];
    let redirect = get_with(format!("{}/v2/hub/app/manifests/latest", registry.url()), &shown).await.expect(301);
    assert_eq!(redirect.header("location"), Some("/v2/hub/library/app/manifests/latest"));
    get_with(format!("{}/v2/hub/library/app/manifests/latest", registry.url()), &shown).await.expect(200);
    let layer = format!("{}{}", registry.url(), image.images[0].blob_path(&image.images[0].config));
    head_with(&layer, &bearer).await.expect(404);
    get_with(&layer, &shown).await.expect(200);
    head_with(&layer, &bearer).await.expect(200);
}

#[tokio::test]
async fn gitlab_dates_its_tokens_inside_and_ghes_knows_no_head() {
    let world = World::like(Like::GitLab).await;
    let challenge = get(world.tag()).await.expect(401);
    let realm = format!("\"{}/jwt/auth\",service=\"container_registry\"", world.registry.token_url());
    assert!(challenge.header("www-authenticate").unwrap().contains(&realm));

    let world = World::like(Like::Ghes).await;
    let bearer = world.bearer("/token", "ghes.corp").await;
    head_with(&world.tag(), &bearer).await.expect(405);
    get_with(world.tag(), &[("authorization", &bearer)]).await.expect(200);
}

#[tokio::test]
async fn one_compresses_and_one_says_nothing_that_it_need_not() {
    let world = World::like(Like::Gzipping).await;
    let answer = get_with(world.tag(), &[("accept-encoding", "identity")]).await.expect(200);
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    let stored = &answer.body[15..answer.body.len() - 8];
    assert_eq!(digest_of(stored), world.image.digest);

    let world = World::like(Like::Bare).await;
    for url in [world.tag(), world.layer()] {
        for answer in [get(&url).await.expect(200), head(&url).await.expect(200)] {
            let names: Vec<&str> = answer.headers.keys().map(http::HeaderName::as_str).collect();
            assert!(names.iter().all(|name| ["date", "transfer-encoding"].contains(name)), "{names:?}");
        }
    }
    get_with(world.layer(), &[("range", "bytes=5-")]).await.expect(206);
}
