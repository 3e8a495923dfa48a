//! The table of images: all that are here, with what they take, to be searched, sorted and shown a page at a time.

mod table;

use std::str::FromStr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use moka::sync::Cache;
use serde::Serialize;
use tokio::task::spawn_blocking;

use crate::oci::Digest;

use super::{Dashboard, Inner};

use table::{Found, Table};

/// Which images are wanted, and how many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImagesQuery {
    /// A part of the name, in whatever case, or the beginning of the digest.
    pub search: String,
    pub sort: Sort,
    pub descending: bool,
    pub offset: usize,
    pub limit: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sort {
    #[default]
    Name,
    Size,
    Used,
    Pulls,
    Pinned,
}

/// A page of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImagesReport {
    /// How many images there are, and how many match.
    pub all: usize,
    pub matching: usize,
    pub offset: usize,
    pub images: Vec<ImageRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageRow {
    /// Its whole name.
    pub image: String,
    pub digest: String,
    /// For what it is here.
    pub platforms: Vec<String>,
    /// What it takes, in bytes, what it shares with others as well.
    pub bytes: u64,
    /// When it was used last, in milliseconds since 1970; `None`: it is not here.
    pub used: Option<u64>,
    pub pulls: u64,
    pub pinned: bool,
}

#[derive(Default)]
pub(super) struct Images(Mutex<Table>);

/// Each with the manifest that is for it.
type Platforms = Arc<[(Digest, String)]>;

/// More on one page nobody reads.
pub(super) const MOST_ROWS: usize = 200;

/// For what images are, which their digests say for ever. In bytes: some 20,000 of the usual ones.
static PLATFORMS: LazyLock<Cache<Digest, Platforms>> = LazyLock::new(|| {
    let weight = |platforms: &Platforms| platforms.iter().map(|(_, text)| text.len() + EACH).sum::<usize>() + EACH;
    let cache = Cache::builder().max_capacity(8 << 20);
    cache.weigher(move |_, platforms| u32::try_from(weight(platforms)).unwrap_or(u32::MAX)).build()
});
/// What one takes beside its text.
const EACH: usize = 100;

// === impl Dashboard ===

impl Dashboard {
    /// The images that are here, and those that are pinned and should be. What is told of each is as it is now.
    ///
    /// Cancel safe.
    pub async fn images(&self, query: &ImagesQuery) -> ImagesReport {
        let (dashboard, asked) = (self.clone(), query.clone());
        let find = move || {
            let Inner { images, orders, store, mirror, .. } = &*dashboard.0;
            let mut table = images.0.lock().unwrap_or_else(PoisonError::into_inner);
            table.keep_up(orders, store);
            table.find(&asked, store, mirror)
        };
        let Found { all, matching, images: found } = spawn_blocking(find).await.unwrap_or_default();
        let mut images = Vec::new();
        for (name, digest) in found {
            images.push(self.row(name, &digest).await);
        }
        ImagesReport { all, matching, offset: query.offset, images }
    }

    async fn row(&self, image: String, digest: &Digest) -> ImageRow {
        let Inner { store, mirror, .. } = &*self.0;
        let extent = store.extent(digest);
        ImageRow {
            image,
            digest: digest.to_string(),
            platforms: self.platforms(digest).await,
            bytes: extent.map_or(0, |extent| extent.bytes),
            used: extent.map(|extent| extent.used.unix_millis()),
            pulls: mirror.pulls(digest),
            pinned: store.is_pinned(digest),
        }
    }

    /// For what an image is here, without those that are for no machine: attestations.
    async fn platforms(&self, image: &Digest) -> Vec<String> {
        let known = match PLATFORMS.get(image) {
            Some(known) => known,
            None => match self.0.orders.platforms_of(image).await {
                Ok(platforms) => {
                    let platforms: Platforms = platforms.into();
                    // A config may be on its way still.
                    if !platforms.is_empty() {
                        PLATFORMS.insert(image.clone(), Arc::clone(&platforms));
                    }
                    platforms
                }
                Err(_) => return Vec::new(),
            },
        };
        let mut here: Vec<String> = Vec::new();
        for (digest, platform) in known.iter() {
            if platform != "unknown/unknown" && !here.contains(platform) && self.0.store.size(digest).is_some() {
                here.push(platform.clone());
            }
        }
        here
    }
}

// === impl Sort ===

impl FromStr for Sort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "name" => Self::Name,
            "size" => Self::Size,
            "used" => Self::Used,
            "pulls" => Self::Pulls,
            "pinned" => Self::Pinned,
            _ => return Err("sort by name, size, used, pulls or pinned".into()),
        })
    }
}
