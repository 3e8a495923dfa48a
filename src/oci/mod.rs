//! The words of the distribution specification as types: what a digest, a name, a route, a manifest and an error are.
//!
//! Floor 0: no task, no I/O. What arrives from outside is parsed once, into types that cannot be wrong afterwards.

mod accept;
mod by_type;
mod digest;
mod error;
mod image;
mod keys;
mod manifest;
mod name;
mod pattern;
mod platform;
mod referrers;
mod route;
mod ttl;

pub use accept::Accept;
pub use by_type::ReferrersByType;
pub use digest::{Algorithm, Digest, Hasher, InvalidDigest};
pub use error::ErrorCode;
pub use image::{ImageName, InvalidImage};
pub use manifest::{ACCEPT, BadManifest, Descriptor, INDEX_TYPE, MAX_MANIFEST, Manifest, is_docker_list, is_manifest_type};
pub use name::{InvalidName, Reference, Repository, RepositoryName, Tag};
pub use pattern::{InvalidPattern, Pattern};
pub use platform::{InvalidPlatform, Platform, Platforms};
pub use referrers::{Referrer, list_referrers, listed, merge_indexes};
pub use route::{Page, Route, Target, namespace};
pub use ttl::{InvalidTagTtl, TagTtl, Ttl};
