//! The table of images: all that are here, with what they take, to be searched, sorted and shown a page at a time.
//!
//! It is made when somebody asks and something has changed, in at most a fiftieth of the time; what is shown of a page is as it is now.

use std::cmp::Reverse;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::clock::Timestamp;
use crate::oci::Digest;
use crate::orders::Image;
use crate::store::Extent;

use super::{Dashboard, Inner};

/// Which images are wanted, and how many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImagesQuery {
    /// A part of the name or of the digest.
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

/// The table as it was made last.
#[derive(Default)]
pub(super) struct Images {
    table: Mutex<Arc<Table>>,
    /// It is to be made anew in any case: the operator has just changed something.
    forgotten: AtomicBool,
}

#[derive(Default)]
struct Table {
    rows: Vec<Row>,
    made: Option<Made>,
}

#[derive(Clone, Copy)]
struct Made {
    at: Instant,
    took: Duration,
    of: Stamp,
}

/// Each with the manifest that is for it.
type Platforms = Arc<[(Digest, String)]>;

/// While this is the same, the same images are here.
type Stamp = (u64, Option<(u64, usize)>);

struct Row {
    name: String,
    digest: Digest,
    bytes: u64,
    used: Timestamp,
    pulls: u64,
    pinned: bool,
}

/// More on one page nobody reads.
pub(super) const MOST_ROWS: usize = 200;
/// Dates and counts of the table are no older than this when it is sorted.
const OLDEST: Duration = Duration::from_mins(1);
/// So many times as long as it takes to make, the table is left as it is.
const REST: u32 = 50;

/// For what images are, which their digests say for ever.
static PLATFORMS: LazyLock<Cache<Digest, Platforms>> = LazyLock::new(|| Cache::new(20_000));

// === impl Dashboard ===

impl Dashboard {
    /// The images that are here, and those that are pinned and should be.
    ///
    /// Cancel safe.
    pub async fn images(&self, query: &ImagesQuery) -> ImagesReport {
        let table = self.table().await;
        let mut rows: Vec<&Row> = table.rows.iter().filter(|row| row.matches(&query.search)).collect();
        // It was made by name: where that alone counts it is in order, and else those that are alike stay so.
        match (query.sort, query.descending) {
            (Sort::Name, false) => {}
            (Sort::Name, true) => rows.reverse(),
            (sort, false) => rows.sort_by_key(|row| row.key(sort)),
            (sort, true) => rows.sort_by_key(|row| Reverse(row.key(sort))),
        }
        let mut images = Vec::new();
        for row in rows.iter().skip(query.offset).take(query.limit.min(MOST_ROWS)) {
            images.push(self.row(row).await);
        }
        ImagesReport { all: table.rows.len(), matching: rows.len(), offset: query.offset, images }
    }

    async fn row(&self, row: &Row) -> ImageRow {
        let Inner { store, mirror, .. } = &*self.0;
        let extent = store.extent(&row.digest);
        ImageRow {
            image: row.name.clone(),
            digest: row.digest.to_string(),
            platforms: self.platforms(&row.digest).await,
            bytes: extent.map_or(0, |extent| extent.bytes),
            used: extent.map(|extent| extent.used.unix_millis()),
            pulls: mirror.pulls(&row.digest),
            pinned: store.is_pinned(&row.digest),
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
        let here = known.iter().filter(|(digest, platform)| self.0.store.size(digest).is_some() && platform != "unknown/unknown");
        here.map(|(_, platform)| platform.clone()).collect()
    }

    async fn table(&self) -> Arc<Table> {
        // Of those who ask at once, one makes it.
        let mut table = self.0.images.table.lock().await;
        let stamp: Stamp = (self.0.store.changes(), self.0.store.usage());
        let forgotten = self.0.images.forgotten.swap(false, Ordering::Relaxed);
        if forgotten || !table.made.is_some_and(|made| made.will_do(&stamp)) {
            let (dashboard, begun) = (self.clone(), Instant::now());
            // Where that fails, it is what it was.
            if let Ok(rows) = spawn_blocking(move || dashboard.rows()).await {
                *table = Arc::new(Table { rows, made: Some(Made { at: Instant::now(), took: begun.elapsed(), of: stamp }) });
            }
        }
        Arc::clone(&table)
    }

    fn rows(&self) -> Vec<Row> {
        let Inner { orders, store, mirror, .. } = &*self.0;
        let row = |image: Image| {
            let extent = store.extent(&image.digest);
            let Extent { bytes, used, .. } = extent.unwrap_or(Extent { bytes: 0, used: Timestamp::default(), pinned: true });
            let (pulls, pinned) = (mirror.pulls(&image.digest), store.is_pinned(&image.digest));
            Row { name: image.name(), digest: image.digest, bytes, used, pulls, pinned }
        };
        orders.images().into_iter().map(row).collect()
    }
}

// === impl Images ===

impl Images {
    /// Something has changed that the operator is to see at once.
    pub(super) fn forget(&self) {
        self.forgotten.store(true, Ordering::Relaxed);
    }
}

// === impl Made ===

impl Made {
    fn will_do(&self, stamp: &Stamp) -> bool {
        let age = self.at.elapsed();
        age < self.took * REST || age < OLDEST && self.of == *stamp
    }
}

// === impl Row ===

impl Row {
    fn matches(&self, search: &str) -> bool {
        search.is_empty()
            || self.name.contains(search)
            || search.starts_with("sha256:") && self.digest.to_string().starts_with(search)
    }

    /// By what it is sorted, but for its name.
    fn key(&self, sort: Sort) -> u64 {
        match sort {
            Sort::Name => 0,
            Sort::Size => self.bytes,
            Sort::Used => self.used.unix_millis(),
            Sort::Pulls => self.pulls,
            Sort::Pinned => self.pinned.into(),
        }
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
