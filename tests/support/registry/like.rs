//! The registries of this world, as far as they differ from the distribution spec.
//!
//! What each line stands on: vendors' documents, the sources of quay, Harbor, GitLab and registry.k8s.io, and what users
//! have reported of the others.

use super::setup::{
    Advertised, Auth, Blobs, HeadBlob, Life, Link, Lists, Manifests, Missing, Page, Redirect, Scope, Setup, Target, TokenHost,
    TokenService, UnacceptedIndex,
};

/// A registry that behaves as this one does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Like {
    DockerHub,
    Ghcr,
    Quay,
    /// registry.k8s.io
    KubernetesIo,
    /// gcr.io and `*.pkg.dev`
    ArtifactRegistry,
    /// A private registry of Amazon.
    Ecr,
    EcrPublic,
    /// A private registry of Azure.
    Acr,
    /// A Harbor whose project `hub` stands for Docker Hub.
    Harbor,
    GitLab,
    /// The registry of a GitHub Enterprise Server.
    Ghes,
    /// A registry behind a proxy that compresses whatever is JSON.
    Gzipping,
    /// A registry that sends no header that the spec lets it leave out, nor some that it does not.
    Bare,
}

// === impl Like ===

impl Like {
    pub const ALL: [Self; 13] = [
        Self::DockerHub,
        Self::Ghcr,
        Self::Quay,
        Self::KubernetesIo,
        Self::ArtifactRegistry,
        Self::Ecr,
        Self::EcrPublic,
        Self::Acr,
        Self::Harbor,
        Self::GitLab,
        Self::Ghes,
        Self::Gzipping,
        Self::Bare,
    ];

    /// How clients name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::DockerHub => "docker.io",
            Self::Ghcr => "ghcr.io",
            Self::Quay => "quay.io",
            Self::KubernetesIo => "registry.k8s.io",
            Self::ArtifactRegistry => "gcr.io",
            Self::Ecr => "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            Self::EcrPublic => "public.ecr.aws",
            Self::Acr => "corp.azurecr.io",
            Self::Harbor => "harbor.corp",
            Self::GitLab => "registry.gitlab.com",
            Self::Ghes => "containers.ghes.corp",
            Self::Gzipping => "gzipping.corp",
            Self::Bare => "bare.corp",
        }
    }

    /// The user and password without which it gives nothing.
    pub fn login(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Ecr => Some(("AWS", "canary-of-amazon")),
            Self::Acr => Some(("00000000-0000-0000-0000-000000000000", "canary-of-azure")),
            _ => None,
        }
    }

    pub fn setup(self) -> Setup {
        match self {
            Self::DockerHub => Setup {
                auth: Auth::Tokens(TokenService { service: "registry.docker.io", ..TokenService::default() }),
                missing: Missing::Unauthorized,
                budget: Some(100),
                blobs: Blobs::REDIRECTED,
                ..Setup::default()
            },
            Self::Ghcr => Setup {
                auth: Auth::Tokens(TokenService {
                    host: TokenHost::Own,
                    service: "ghcr.io",
                    members: &["token"],
                    life: Life::Unsaid,
                    ..TokenService::default()
                }),
                missing: Missing::NoToken,
                manifests: Manifests { unaccepted_index: UnacceptedIndex::NotFound, ..Manifests::default() },
                blobs: Blobs { head: HeadBlob::Redirected, ..Blobs::REDIRECTED },
                lists: Lists { no_referrers: true, ..Lists::default() },
                ..Setup::default()
            },
            Self::Quay => Setup {
                auth: Auth::Tokens(TokenService {
                    host: TokenHost::Own,
                    path: "/v2/auth",
                    service: "quay.io",
                    members: &["token"],
                    life: Life::Jwt(3600),
                    ..TokenService::default()
                }),
                missing: Missing::Unauthorized,
                manifests: Manifests {
                    unaccepted_index: UnacceptedIndex::Child,
                    lacks: &["content-length"],
                    ..Manifests::default()
                },
                blobs: redirected(302, Target::Storage),
                lists: Lists { page: Page::Clamped(50), link: Link::Absolute, ..Lists::default() },
                ..Setup::default()
            },
            Self::KubernetesIo => Setup { gateway: true, blobs: Blobs::REDIRECTED, ..Setup::default() },
            Self::ArtifactRegistry => Setup {
                auth: Auth::Tokens(TokenService {
                    host: TokenHost::Own,
                    path: "/v2/token",
                    service: "gcr.io",
                    advertised: Advertised::AtBase,
                    members: &["token"],
                    life: Life::ExpiresIn(3600),
                    ..TokenService::default()
                }),
                blobs: Blobs { one_range: true, ..redirected(302, Target::OwnHost) },
                ..Setup::default()
            },
            Self::Ecr => {
                let (user, password) = self.login().expect("it has one");
                Setup {
                    auth: Auth::Basic { user, password },
                    blobs: Blobs::REDIRECTED,
                    lists: Lists { page: Page::Refused(1000), ..Lists::default() },
                    ..Setup::default()
                }
            }
            Self::EcrPublic => Setup {
                auth: Auth::Tokens(TokenService {
                    host: TokenHost::Own,
                    path: "/token/",
                    service: "public.ecr.aws",
                    scope: Scope::Fixed("aws"),
                    members: &["token"],
                    life: Life::Unsaid,
                    ..TokenService::default()
                }),
                manifests: Manifests { lacks: &["docker-content-digest"], ..Manifests::default() },
                blobs: Blobs { head: HeadBlob::Unauthorized, ..Blobs::REDIRECTED },
                ..Setup::default()
            },
            Self::Acr => Setup {
                auth: Auth::Tokens(TokenService {
                    host: TokenHost::Own,
                    path: "/oauth2/token",
                    service: "corp.azurecr.io",
                    logins: self.login().into_iter().collect(),
                    posts: true,
                    anonymous: false,
                    advertised: Advertised::AtBaseElseBasic,
                    members: &["access_token"],
                    life: Life::Jwt(4500),
                    ..TokenService::default()
                }),
                blobs: Blobs::REDIRECTED,
                ..Setup::default()
            },
            Self::Harbor => Setup {
                auth: Auth::Tokens(TokenService {
                    host: TokenHost::Own,
                    path: "/service/token",
                    service: "harbor-registry",
                    scope: Scope::Project,
                    life: Life::ExpiresIn(1800),
                    ..TokenService::default()
                }),
                hub_project: Some("hub"),
                blobs: Blobs { head: HeadBlob::AfterGet, ..Blobs::default() },
                ..Setup::default()
            },
            Self::GitLab => Setup {
                auth: Auth::Tokens(TokenService {
                    path: "/jwt/auth",
                    service: "container_registry",
                    members: &["token"],
                    life: Life::Jwt(300),
                    ..TokenService::default()
                }),
                blobs: Blobs { head: HeadBlob::Redirected, ..Blobs::REDIRECTED },
                ..Setup::default()
            },
            Self::Ghes => Setup {
                auth: Auth::Tokens(TokenService { host: TokenHost::Own, service: "ghes.corp", ..TokenService::default() }),
                manifests: Manifests { no_head: true, ..Manifests::default() },
                blobs: Blobs::REDIRECTED,
                ..Setup::default()
            },
            Self::Gzipping => Setup {
                // What is compressed on the way has a length that nobody knew before.
                manifests: Manifests { gzip: true, lacks: &["content-length"], ..Manifests::default() },
                ..Setup::default()
            },
            Self::Bare => {
                let lacks = &[
                    "content-type",
                    "content-length",
                    "docker-content-digest",
                    "etag",
                    "accept-ranges",
                    "docker-distribution-api-version",
                ];
                Setup {
                    manifests: Manifests { lacks, ..Manifests::default() },
                    blobs: Blobs { lacks, ..Blobs::default() },
                    ..Setup::default()
                }
            }
        }
    }
}

fn redirected(status: u16, to: Target) -> Blobs {
    Blobs { redirect: Some(Redirect { status, to }), ..Blobs::default() }
}
