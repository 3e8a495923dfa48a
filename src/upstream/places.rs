//! How much is asked of an upstream at one time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::Error;

/// Room for so many requests and transfers; who comes when it is full waits in line, as long as the line is not too long: who waits
/// costs memory, and what it waits for may be whatever a client makes up. Some of it is never given to the bodies
/// of blobs, which last: what a pull begins with does not wait for them.
pub(super) struct Places {
    all: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    /// Bodies that come as slowly as one client reads: half of all bodies at most, so that who reads slowly, as often as he
    /// likes, leaves the others room. A client of an image that is pulled lazily has a few of them, for as long as its range
    /// takes.
    asides: Arc<Semaphore>,
    /// Places in line, for bodies and for the rest, which is not to find the line full of those.
    lines: [Semaphore; 2],
    patience: Duration,
}

/// Room for one, as long as it is held.
pub(super) struct Place {
    _all: OwnedSemaphorePermit,
    _body: Option<OwnedSemaphorePermit>,
}

/// The right to one body apart from what all share, as long as it is held.
pub struct Aside {
    _right: OwnedSemaphorePermit,
}

/// How many may wait for each place: for so long a line nobody's patience lasts.
const LINE: usize = 16;

// === impl Places ===

impl Places {
    /// `most`: at least 1. `patience`: how long one waits in line.
    pub(super) fn new(most: usize, patience: Duration) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        let bodies = (most - most.div_ceil(8)).max(1);
        let of = |places| Arc::new(Semaphore::new(places));
        let line = |places: usize| Semaphore::new(places.saturating_mul(LINE).min(Semaphore::MAX_PERMITS));
        Self { all: of(most), bodies: of(bodies), asides: of(bodies / 2), lines: [bodies, most].map(line), patience }
    }

    /// Waits for room. `held_back`: whether those who have it wait for larder itself, which lets no more come; then one waits for as
    /// long as it takes.
    ///
    /// Cancel safe, but who cancels loses the place in line.
    ///
    /// # Errors
    /// [`Error::Busy`] if there is none in time, or too many wait already.
    pub(super) async fn take(&self, for_body: bool, held_back: impl Fn() -> bool) -> Result<Place, Error> {
        if let Some(place) = self.take_spare(for_body) {
            return Ok(place);
        }
        let _in_line = self.lines[usize::from(!for_body)].try_acquire().map_err(|_| Error::Busy)?;
        let place = async {
            let body = if for_body { Some(Arc::clone(&self.bodies).acquire_owned().await.ok()?) } else { None };
            Some(Place { _all: Arc::clone(&self.all).acquire_owned().await.ok()?, _body: body })
        };
        tokio::pin!(place);
        loop {
            match timeout(self.patience, &mut place).await {
                Ok(place) => return place.ok_or(Error::Busy),
                Err(_) if held_back() => {}
                Err(_) => return Err(Error::Busy),
            }
        }
    }

    /// The right to one more body for one client alone, if not too many have it.
    pub(super) fn take_aside(&self) -> Option<Aside> {
        Some(Aside { _right: Arc::clone(&self.asides).try_acquire_owned().ok()? })
    }

    /// Room for one more, if nobody has to wait for that.
    pub(super) fn take_spare(&self, for_body: bool) -> Option<Place> {
        let body = if for_body { Some(Arc::clone(&self.bodies).try_acquire_owned().ok()?) } else { None };
        Some(Place { _all: Arc::clone(&self.all).try_acquire_owned().ok()?, _body: body })
    }
}
