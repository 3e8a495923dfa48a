//! The rest of an image, once a client has begun to fetch its layers: clients ask for three or so at a time, and for the others
//! only as those are done.
//!
//! Who fetches no layer only wants to know what the image is, and nothing is brought in for it. It goes on while clients read
//! anything of the image, and for a while after.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::oci::Digest;
use crate::room::Room;
use crate::store::Kind;

use super::manifest::parse;
use super::rights::View;
use super::{Mirror, Origin};

/// The images whose layers are being fetched ahead of their clients, and what clients read.
#[derive(Clone, Default)]
pub(super) struct Prefetches(Arc<Inner>);

struct Inner {
    underway: Mutex<HashSet<Image>>,
    /// Nobody is ever seated here: an image is fetched ahead as long as it stands in line. If that is full, the client who has most in it
    /// makes room for another.
    places: Room,
    /// The blobs that clients read now, and how many of each.
    read: watch::Sender<HashMap<Digest, usize>>,
}

type Image = (View, Digest);

/// A client reads a blob until the last clone of this is gone.
#[derive(Clone)]
pub(super) struct Client {
    _one: Arc<One>,
}

struct One {
    blob: Digest,
    of: Prefetches,
}

/// An image is among those under way until this is dropped.
struct Underway {
    image: Image,
    of: Prefetches,
}

/// How many images at once: what they take must leave an upstream's places to clients.
const MOST: usize = 8;
/// For how long an image goes on of which nobody reads anything. What it has begun goes on as any fill does.
const LINGER: Duration = Duration::from_secs(5);
/// A manifest that was served longer ago is not what the client is at.
const LATELY: Duration = Duration::from_mins(2);
/// A manifest is kept behind the answer, and known by what it names only then: how long it may take, look by look.
const KEPT: [Duration; 3] = [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(500)];

// === impl Mirror ===

impl Mirror {
    /// A client of `origin` fetches `layer`, which was not here: so it will the other layers of the image that it is at.
    pub(super) fn prefetch(&self, origin: &Origin, layer: &Digest) {
        if self.0.options.prefetch == 0 || !origin.is_taken_at_its_word() {
            return;
        }
        let (mirror, origin, layer) = (self.clone(), origin.clone(), layer.clone());
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = mirror.fetch_ahead(&origin, layer) => {}
                () = mirror.0.stopping.cancelled() => {}
            }
        });
    }

    async fn fetch_ahead(&self, origin: &Origin, layer: Digest) {
        let Some(manifest) = self.image_with(&layer).await else { return };
        let Some(underway) = self.0.prefetches.begin((origin.view(), manifest)) else { return };
        let (_, digest) = &underway.image;
        tokio::select! {
            biased;
            // At once if there is no place for it.
            _ = self.0.prefetches.0.places.take(&origin.behalf.askers) => tracing::debug!(%digest, "the image has no place, or no longer"),
            () = self.fetch_rest(origin, digest, &layer) => {}
        }
    }

    /// Fetches the other layers of an image, as long as someone reads it.
    async fn fetch_rest(&self, origin: &Origin, digest: &Digest, layer: &Digest) {
        let held = self.held_manifest(origin, digest, self.proof(origin, digest, Kind::Manifest)).await;
        let Some(held) = held else { return };
        let Ok(Ok(manifest)) = parse(&origin.behalf.askers, Some(&held.media_type), &held.bytes).await else { return };
        // A config is fetched also by who only looks; and nobody fetches all of an index.
        if !manifest.children.is_empty() || manifest.config.as_ref() == Some(layer) {
            return;
        }
        let mut fetched = stream::iter(manifest.names.clone())
            .map(|layer| async move {
                let fetched = self.restore(origin, &layer, Kind::Blob).await;
                fetched.inspect_err(|why| tracing::debug!(digest = %layer, why, "a layer was not fetched ahead of its client"))
            })
            .buffer_unordered(self.0.options.prefetch);
        tokio::select! {
            () = async { while fetched.next().await.is_some() {} } => {}
            () = self.0.prefetches.left_alone(&manifest.names) => tracing::debug!(%digest, "nobody reads the image any more"),
        }
    }

    /// The image with this layer that was served last, and lately.
    async fn image_with(&self, layer: &Digest) -> Option<Digest> {
        for wait in KEPT {
            tokio::time::sleep(wait).await;
            if let Some((manifest, used)) = self.0.store.last_used_that_names(layer) {
                return (self.0.clock.now().since(used) <= LATELY).then_some(manifest);
            }
        }
        None
    }
}

// === impl Prefetches ===

impl Prefetches {
    /// A client reads this.
    pub(super) fn read(&self, blob: &Digest) -> Client {
        self.0.read.send_modify(|read| *read.entry(blob.clone()).or_default() += 1);
        Client { _one: Arc::new(One { blob: blob.clone(), of: self.clone() }) }
    }

    /// `None` if this image is under way.
    fn begin(&self, image: Image) -> Option<Underway> {
        let begins = self.underway().insert(image.clone());
        begins.then(|| Underway { image, of: self.clone() })
    }

    /// Waits until nobody has read any of these for a while.
    ///
    /// Cancel safe.
    async fn left_alone(&self, blobs: &[Digest]) {
        let is_read = |read: &HashMap<Digest, usize>| blobs.iter().any(|blob| read.contains_key(blob));
        let mut read = self.0.read.subscribe();
        // Its sender is here.
        while read.wait_for(|read| !is_read(read)).await.is_ok() {
            if timeout(LINGER, read.wait_for(is_read)).await.is_err() {
                return;
            }
        }
    }

    fn underway(&self) -> MutexGuard<'_, HashSet<Image>> {
        self.0.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Inner {
    fn default() -> Self {
        Self { underway: Mutex::default(), places: Room::new(0, MOST), read: watch::Sender::default() }
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.of.0.read.send_modify(|read| {
            if let Some(readers) = read.get_mut(&self.blob) {
                *readers -= 1;
                if *readers == 0 {
                    read.remove(&self.blob);
                }
            }
        });
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.of.underway().remove(&self.image);
    }
}
