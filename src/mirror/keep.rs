//! `mirror.keep`: images that are always here.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::warm::Warmed;
use super::{Mirror, Refusal};

/// Before the cache has counted what it has, it takes nothing new.
const UNTIL_COUNTED: Duration = Duration::from_secs(1);
/// What failed is tried again after this, or when it is due anyway.
const AFTER_FAILURE: Duration = Duration::from_mins(10);

// === impl Mirror ===

impl Mirror {
    /// Keeps the images of `mirror.keep` warm until `stop`.
    pub async fn keep(self, stop: CancellationToken) {
        if self.0.options.keep.is_empty() || self.0.options.offline {
            return;
        }
        let every = self.0.options.keep_every;
        loop {
            let pause = if self.0.store.usage().is_none() {
                UNTIL_COUNTED
            } else {
                tokio::select! {
                    () = stop.cancelled() => return,
                    complete = self.keep_once() => if complete { every } else { every.min(AFTER_FAILURE) },
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One round over all of them. True if they are all here, whole.
    pub async fn keep_once(&self) -> bool {
        let mut complete = true;
        for image in &self.0.options.keep {
            let warmed = match self.0.registries.resolve(image) {
                Ok(origin) => self.warm(&origin, &image.reference, &self.0.options.keep_platforms).await,
                Err(refusal) => Warmed::refused(image.to_string(), &refusal),
            };
            let Warmed { digest, present, fetched, bytes, failed, .. } = warmed;
            complete &= failed.is_empty();
            let digest = digest.map(|digest| digest.to_string());
            match failed.first() {
                None => tracing::info!(%image, digest, present, fetched, bytes, "an image is kept warm"),
                Some((what, why)) => {
                    let failed = failed.len();
                    tracing::warn!(%image, digest, present, fetched, bytes, failed, what, why, "an image could not be kept whole");
                }
            }
        }
        complete
    }
}

// === impl Warmed ===

impl Warmed {
    fn refused(image: String, refusal: &Refusal) -> Self {
        Self { failed: vec![(image, refusal.to_string())], ..Self::default() }
    }
}
