//! What the integration tests stand on: a scripted upstream, the real larder before it, and a client
//! that sees what a client of a registry would see. All of it on loopback, on ports of the kernel's choice.
//!
//! A test reads as a sentence:
//!
//! ```ignore
//! let upstream = Registry::start().await;
//! let image = Image::new(1).layers(&[70_000]).put(&upstream, "library/alpine", "latest");
//! let layer = &image.layers[0];
//! upstream.on(Match::get(&layer.digest).times(1), Fault::Cut { after: 40_000 });
//!
//! let mirror = TestMirror::of(&upstream).await;
//! let answer = mirror.get(&image.blob_path(layer)).await;
//!
//! assert!(answer.complete);
//! assert_eq!(answer.body, layer.bytes);
//! assert_eq!(upstream.count("GET", &layer.digest), 2);
//! ```
//!
//! Nothing here sleeps to wait for something: tests wait for the event itself ([`Registry::seen`],
//! [`Registry::held`]), at most [`PATIENCE`] long. Timers only pace what is meant to be slow.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests and benches each use a part of it, and a helper that fails is a test that fails"
)]

use std::time::Duration;

#[cfg(debug_assertions)]
mod archives;
#[cfg(debug_assertions)]
mod cache;
mod client;
mod images;
mod log;
// It makes disks fail, which an optimized larder does not let one do. Benches, which are optimized, use the program itself;
// and those who log in are people of the tests.
#[cfg(debug_assertions)]
mod mirror;
mod orders;
mod process;
mod raw;
#[cfg(debug_assertions)]
mod raw_registry;
mod registry;
mod secrets;
mod tap;
mod tls;
#[cfg(debug_assertions)]
mod user;

#[cfg(debug_assertions)]
pub use self::archives::{archive, blob_path, changed, coming, entries, larder};
#[cfg(debug_assertions)]
pub use self::cache::{assert_booked, assert_sound, files, is_of, partial_file, reboot};
pub use self::{
    client::{Answer, Client, Streaming, get, get_with, head, http, raw, stream},
    images::{Content, Image, MultiArch, PutImage, PutIndex, digest_of, noise, sha512_of},
    log::{Log, logged},
    orders::{assert_whole, refused, sealed, told},
    process::{Ended, Process},
    raw::{Closed, Raw},
    registry::{
        ANONYMOUS, Advertised, Auth, Blobs, Fault, HeadBlob, Life, Like, Link, Listener, Lists, Manifests, Match, Missing, Page,
        Recorded, Redirect, Registry, Scope, Setup, Target, TokenHost, TokenService, UnacceptedIndex,
    },
    secrets::{CANARY, has_secret},
    tap::Tap,
    tls::{Authority, TlsFront},
};
#[cfg(debug_assertions)]
pub use self::{
    mirror::{StoppedMirror, TestMirror},
    raw_registry::RawRegistry,
    user::{User, basic},
};

/// How long anything may take that must happen: far longer than it ever does, and short enough
/// that a hang becomes a failure that says what was missing.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The same for what has to be asked.
pub async fn until_async(what: &str, so: impl AsyncFn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

/// Waits until this is so.
pub async fn until(what: &str, so: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}
