//! What a pull costs each registry: the very requests, and the tokens.

use std::time::Duration;

use futures_util::future::join_all;
use http::Method;

use crate::support::{ANONYMOUS, Client, Content, Like, Listener, MultiArch, PutIndex, Recorded, Registry, TestMirror, noise};

/// A test of each registry, so that each fails on its own.
macro_rules! each_registry {
    ($check:ident) => {
        mod $check {
            use super::$check;
            use crate::support::Like;

            crate::registries::each_registry! {
                $check,
                docker_hub: DockerHub, ghcr: Ghcr, quay: Quay, registry_k8s_io: KubernetesIo,
                artifact_registry: ArtifactRegistry, ecr: Ecr, ecr_public: EcrPublic, acr: Acr, harbor: Harbor,
                gitlab: GitLab, ghes: Ghes, one_that_compresses: Gzipping, one_that_omits_every_optional_header: Bare,
            }
        }
    };
    ($check:ident, $($name:ident: $like:ident,)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                $check(Like::$like).await;
            }
        )*
    };
}
pub(crate) use each_registry;

/// A registry and what it is asked for. The image has an index, two layers and a config; a pull is a HEAD or GET of its tag,
/// then the index by digest, one manifest of it, the config and the layers, these at once.
///
/// Requests are written as they come, the same ones together: `2 × GET tag` are a challenge and a second attempt. At the
/// token service, the storage and the backend, that is said; `base` is `/v2/`.
struct Row {
    like: Like,
    /// A pull by tag with an empty cache.
    cold: &'static str,
    /// A pull by the digest of the index with an empty cache.
    by_digest: &'static str,
    /// A pull of what is cached, when its tag has outlived its TTL. Before that nothing is asked.
    expired: &'static str,
    /// Who the one token was for, and what it opens.
    token: Option<(&'static str, &'static str)>,
}

static TABLE: [Row; 13] = [
    Row {
        like: Like::DockerHub,
        cold: "2 × GET tag, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        by_digest: "2 × GET index, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        expired: "HEAD tag",
        token: Some((ANONYMOUS, "repository:library/app:pull")),
    },
    Row {
        like: Like::Ghcr,
        cold: "2 × GET tag, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        by_digest: "2 × GET index, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        // Its tokens say nothing of their life, which then is a minute.
        expired: "token, HEAD tag",
        token: Some((ANONYMOUS, "repository:team/app:pull")),
    },
    Row {
        like: Like::Quay,
        cold: "2 × GET tag, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        by_digest: "2 × GET index, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        expired: "HEAD tag",
        token: Some((ANONYMOUS, "repository:team/app:pull")),
    },
    Row {
        like: Like::KubernetesIo,
        cold: "GET tag, backend tag, GET manifest, backend manifest, \
               GET config, storage config, 2 × GET layer, 2 × storage layer",
        by_digest: "GET index, backend index, GET manifest, backend manifest, \
                    GET config, storage config, 2 × GET layer, 2 × storage layer",
        expired: "HEAD tag, backend HEAD tag",
        token: None,
    },
    Row {
        like: Like::ArtifactRegistry,
        cold: "2 × GET tag, GET base, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        by_digest: "2 × GET index, GET base, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        expired: "HEAD tag",
        token: Some((ANONYMOUS, "repository:team/app:pull")),
    },
    Row {
        like: Like::Ecr,
        cold: "2 × GET tag, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        by_digest: "2 × GET index, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        expired: "HEAD tag",
        token: None,
    },
    Row {
        like: Like::EcrPublic,
        cold: "2 × GET tag, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        by_digest: "2 × GET index, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        // A HEAD without a digest tells nothing.
        expired: "token, HEAD tag, GET tag",
        token: Some((ANONYMOUS, "aws")),
    },
    Row {
        like: Like::Acr,
        // Basic is what it asks for and does not take; that tokens are wanted, it says at its base.
        cold: "3 × GET tag, GET base, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        by_digest: "3 × GET index, GET base, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        expired: "HEAD tag",
        token: Some(("00000000-0000-0000-0000-000000000000", "repository:team/app:pull")),
    },
    Row {
        like: Like::Harbor,
        // Everything twice: the first is sent to the second, whose name has `library/` in it.
        cold: "3 × GET tag, token, 2 × GET manifest, 2 × GET config, 4 × GET layer",
        by_digest: "3 × GET index, token, 2 × GET manifest, 2 × GET config, 4 × GET layer",
        expired: "2 × HEAD tag",
        token: Some((ANONYMOUS, "repository:hub/app:pull")),
    },
    Row {
        like: Like::GitLab,
        cold: "2 × GET tag, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        by_digest: "2 × GET index, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        expired: "HEAD tag",
        token: Some((ANONYMOUS, "repository:team/app:pull")),
    },
    Row {
        like: Like::Ghes,
        cold: "2 × GET tag, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        by_digest: "2 × GET index, token, GET manifest, GET config, storage config, 2 × GET layer, 2 × storage layer",
        // The HEAD is a 405.
        expired: "HEAD tag, GET tag",
        token: Some((ANONYMOUS, "repository:team/app:pull")),
    },
    Row {
        like: Like::Gzipping,
        cold: "GET tag, GET manifest, GET config, 2 × GET layer",
        by_digest: "GET index, GET manifest, GET config, 2 × GET layer",
        expired: "HEAD tag",
        token: None,
    },
    Row {
        like: Like::Bare,
        cold: "GET tag, GET manifest, GET config, 2 × GET layer",
        by_digest: "GET index, GET manifest, GET config, 2 × GET layer",
        // A HEAD without a digest tells nothing.
        expired: "HEAD tag, GET tag",
        token: None,
    },
];

impl Row {
    fn of(like: Like) -> &'static Self {
        TABLE.iter().find(|row| row.like == like).expect("each registry has a row")
    }
}

/// A registry with an image, as a larder with an empty cache sees it.
pub(crate) struct World {
    pub(crate) registry: Registry,
    pub(crate) image: PutIndex,
    /// The name by which clients ask for it.
    pub(crate) repository: &'static str,
    pub(crate) mirror: TestMirror,
}

impl World {
    pub(crate) async fn like(like: Like) -> Self {
        let registry = Registry::like(like).await;
        let (repository, kept_as) = match like {
            Like::DockerHub => ("library/app", "library/app"),
            Like::Harbor => ("hub/app", "hub/library/app"),
            _ => ("team/app", "team/app"),
        };
        let image = MultiArch::new(1).layers(&[3_000, 300_000]).put(&registry, kept_as, "latest");
        let mirror = mirror(like, &registry).await;
        Self { registry, image, repository, mirror }
    }

    /// Asks for the tag, then for all the rest by digest. Every body must be what it is named.
    async fn pull_by_tag(&self, method: Method) {
        let url = self.mirror.url(&format!("/v2/{}/manifests/latest", self.repository));
        let answer = Client::h1().request(method, url, &[]).await.expect(200);
        assert_eq!(answer.header("docker-content-digest"), Some(&*self.image.digest));
        assert_eq!(answer.header("content-length"), Some(&*self.image.manifest.len().to_string()));
        assert_eq!(answer.header("content-type"), Some(self.image.media_type));
        self.pull_by_digest().await;
    }

    async fn pull_by_digest(&self) {
        let image = &self.image.images[0];
        self.get("manifests", &self.image.digest).await;
        self.get("manifests", &image.digest).await;
        self.get("blobs", &image.config.digest).await;
        join_all(image.layers.iter().map(|layer| self.get("blobs", &layer.digest))).await;
    }

    async fn get(&self, kind: &str, digest: &str) {
        let answer = self.mirror.get(&format!("/v2/{}/{kind}/{digest}", self.repository)).await.expect(200);
        assert_eq!(answer.digest(), digest);
    }

    /// What the registry has been asked since the last call, in the words of the table.
    pub(crate) fn asked(&self) -> String {
        let mut kinds: Vec<(String, usize)> = Vec::new();
        for request in self.registry.requests() {
            let kind = self.kind(&request);
            match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, times)) => *times += 1,
                None => kinds.push((kind, 1)),
            }
        }
        self.registry.forget_requests();
        let words = |(kind, times): (String, usize)| if times == 1 { kind } else { format!("{times} × {kind}") };
        kinds.into_iter().map(words).collect::<Vec<_>>().join(", ")
    }

    fn kind(&self, request: &Recorded) -> String {
        let image = &self.image.images[0];
        let ends = |digest: &String| request.path.ends_with(digest.as_str());
        let thing = match request.path.as_str() {
            "/v2/" => "base",
            path if path.ends_with("/manifests/latest") => "tag",
            _ if ends(&self.image.digest) => "index",
            _ if ends(&image.digest) => "manifest",
            _ if ends(&image.config.digest) => "config",
            _ if image.layers.iter().any(|Content { digest, .. }| ends(digest)) => "layer",
            path => path,
        };
        match (request.listener, &request.method) {
            (Listener::Token, &Method::GET) => "token".to_owned(),
            (Listener::Storage, &Method::GET) => format!("storage {thing}"),
            (Listener::Backend, &Method::GET) => format!("backend {thing}"),
            (Listener::Front, method) => format!("{method} {thing}"),
            (Listener::Backend, method) => format!("backend {method} {thing}"),
            (listener, method) => format!("{listener:?} {method} {thing}"),
        }
    }
}

async fn mirror(like: Like, registry: &Registry) -> TestMirror {
    let name = like.name();
    let mirror = TestMirror::builder()
        .clock(registry.clock().clone())
        .upstream(name, registry)
        .set(&format!("mirror.default_upstream = {name:?}"));
    let mirror = match like.login() {
        Some((user, password)) => mirror.login(name, user, password),
        None => mirror,
    };
    mirror.start().await
}

/// A row of the table: cold, warm, past its TTL and dead; then by digest, cold and dead.
async fn costs_what_the_table_says(like: Like) {
    let row = Row::of(like);
    for first in [Method::HEAD, Method::GET] {
        let world = World::like(like).await;
        world.pull_by_tag(first.clone()).await;
        if let Some((account, scope)) = row.token {
            assert_eq!(world.registry.tokens(account, scope), 1, "{like:?}: {:#?}", world.registry.requests());
        }
        assert_eq!(world.asked(), row.cold, "{like:?}, cold, by {first} of the tag");

        world.pull_by_tag(first.clone()).await;
        assert_eq!(world.asked(), "", "{like:?}, warm, by {first} of the tag");

        world.mirror.clock().advance(Duration::from_mins(2));
        world.pull_by_tag(first.clone()).await;
        assert_eq!(world.asked(), row.expired, "{like:?}, the tag has outlived its TTL");

        world.registry.stop().await;
        world.mirror.clock().advance(Duration::from_mins(2));
        let url = format!("/v2/{}/manifests/latest", world.repository);
        let stale = world.mirror.get(&url).await.expect(200);
        assert!(stale.header("warning").is_some_and(|warning| warning.starts_with("299 ")), "{like:?}: {:?}", stale.headers);
        world.pull_by_tag(first).await;
        assert_eq!(world.asked(), "", "{like:?}, dead");
    }

    let world = World::like(like).await;
    world.pull_by_digest().await;
    assert_eq!(world.asked(), row.by_digest, "{like:?}, cold, by digest");
    world.registry.stop().await;
    world.mirror.clock().advance(Duration::from_hours(1));
    world.pull_by_digest().await;
}

/// A client may ask for layers before it asks for anything else: it has the manifest from last time.
async fn twenty_layers_at_once_cost_one_token(like: Like) {
    let world = World::like(like).await;
    let layer = |seed: u64| world.registry.put_blob(&world.image.repository, noise(100 + seed, 5_000));
    let layers: Vec<String> = (0..20).map(layer).collect();
    join_all(layers.iter().map(|layer| world.get("blobs", layer))).await;
    let expected = usize::from(Row::of(like).token.is_some());
    assert_eq!(world.registry.token_requests(), expected, "{like:?}: {:#?}", world.registry.requests());
}

each_registry!(costs_what_the_table_says);
each_registry!(twenty_layers_at_once_cost_one_token);

#[tokio::test]
async fn a_cold_pull_costs_docker_hub_two_counted_gets_and_a_hundred_warm_ones_none() {
    let world = World::like(Like::DockerHub).await;
    world.pull_by_tag(Method::HEAD).await;
    assert_eq!(world.registry.budget(ANONYMOUS), 98);
    assert_eq!(world.registry.token_requests(), 1);
    for _ in 0..100 {
        world.mirror.clock().advance(Duration::from_mins(2));
        world.pull_by_tag(Method::HEAD).await;
    }
    assert_eq!(world.registry.budget(ANONYMOUS), 98, "what is cached costs nothing");
}
