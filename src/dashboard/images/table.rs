//! The rows of the table, in the order of their names.
//!
//! All are made when somebody looks for the first time. From then on the store tells of which digests something has changed, and what
//! these stand for is looked up again, so that an update costs what has changed since the last and not what there is. By what else
//! than its name an image is sorted changes with each use: that is looked up when somebody sorts by it, and in a two-thousandth of the
//! time at most, as that is 5 ms of the ten seconds after which a page asks again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::Timestamp;
use crate::mirror::Mirror;
use crate::oci::Digest;
use crate::orders::{Image, Orders};
use crate::store::Store;

use super::{ImagesQuery, MOST_ROWS, Sort};

#[derive(Default)]
pub(super) struct Table {
    rows: BTreeMap<Arc<Image>, Row>,
    /// Those that have this digest.
    of: HashMap<Digest, Vec<Arc<Image>>>,
    /// All are to be made anew.
    is_due: bool,
    made: Option<Work>,
    sorted: [Option<Work>; Sort::ALL.len()],
}

struct Row {
    name: String,
    /// By what it is sorted, as it was when that was looked up last.
    keys: [Option<u64>; Sort::ALL.len()],
}

/// What there is on one page.
#[derive(Default)]
pub(super) struct Found {
    pub(super) all: usize,
    pub(super) matching: usize,
    /// By name and digest.
    pub(super) images: Vec<(String, Digest)>,
}

/// What is dear, when it was done last.
#[derive(Clone, Copy)]
struct Work {
    at: Instant,
    took: Duration,
}

/// So many times as long as it took, all of them stay as they were made, however much changes;
const REST_OF_ALL: u32 = 50;
/// and what they are sorted by.
const REST: u32 = 2_000;

// === impl Table ===

impl Table {
    /// Brings it to what there is.
    pub(super) fn keep_up(&mut self, orders: &Orders, store: &Store) {
        let changed = store.changed();
        // What was told is not told again: should this be the end of it, all is to be looked at.
        let is_due = std::mem::replace(&mut self.is_due, true) || changed.is_none() || self.made.is_none();
        if is_due && self.made.is_none_or(|made| made.has_rested(REST_OF_ALL)) {
            self.made = Some(Work::of(|| self.make(orders.images())));
            self.is_due = false;
            return;
        }
        if let Some(changed) = changed.filter(|changed| !changed.is_empty()) {
            self.change(&changed, orders.images_with(&changed));
        }
        self.is_due = is_due;
    }

    fn make(&mut self, images: Vec<Image>) {
        (self.rows, self.of, self.sorted) = Default::default();
        images.into_iter().for_each(|image| self.add(image));
    }

    fn change(&mut self, changed: &HashSet<Digest>, images: Vec<Image>) {
        for image in changed.iter().filter_map(|digest| self.of.remove(digest)).flatten() {
            self.rows.remove(&image);
        }
        images.into_iter().for_each(|image| self.add(image));
    }

    fn add(&mut self, image: Image) {
        let image = Arc::new(image);
        self.of.entry(image.digest.clone()).or_default().push(Arc::clone(&image));
        self.rows.insert(Arc::clone(&image), Row { name: image.name(), keys: Default::default() });
    }

    /// The page that is asked for.
    pub(super) fn find(&mut self, query: &ImagesQuery, store: &Store, mirror: &Mirror) -> Found {
        let ImagesQuery { search, sort, descending, offset, limit } = query;
        if *sort != Sort::Name {
            self.look_up(*sort, store, mirror);
        }
        let search = Search::of(search);
        let mut found: Vec<_> = self.rows.iter().filter(|(image, row)| search.finds(image, row)).collect();
        // Those that are alike stay in the order of their names.
        match (sort, descending) {
            (Sort::Name, false) => {}
            (Sort::Name, true) => found.reverse(),
            (sort, false) => found.sort_by_key(|(_, row)| row.keys[*sort as usize]),
            (sort, true) => found.sort_by_key(|(_, row)| Reverse(row.keys[*sort as usize])),
        }
        let page = found.iter().skip(*offset).take((*limit).min(MOST_ROWS));
        let images = page.map(|(image, row)| (row.name.clone(), image.digest.clone())).collect();
        Found { all: self.rows.len(), matching: found.len(), images }
    }

    /// By what they are sorted.
    fn look_up(&mut self, sort: Sort, store: &Store, mirror: &Mirror) {
        let key = |digest: &Digest| match sort {
            Sort::Name => 0,
            Sort::Size => store.extent(digest).map_or(0, |extent| extent.bytes),
            Sort::Used => store.used(digest).map_or(0, Timestamp::unix_millis),
            Sort::Pulls => mirror.pulls(digest),
            Sort::Pinned => store.is_pinned(digest).into(),
        };
        let (rows, work) = (&mut self.rows, &mut self.sorted[sort as usize]);
        if work.is_none_or(|work| work.has_rested(REST)) {
            *work =
                Some(Work::of(|| rows.iter_mut().for_each(|(image, row)| row.keys[sort as usize] = Some(key(&image.digest)))));
        }
        // What has come since.
        rows.iter_mut().for_each(|(image, row)| _ = row.keys[sort as usize].get_or_insert_with(|| key(&image.digest)));
    }
}

// === impl Work ===

impl Work {
    fn of(work: impl FnOnce()) -> Self {
        let begun = Instant::now();
        work();
        Self { at: Instant::now(), took: begun.elapsed() }
    }

    fn has_rested(self, times: u32) -> bool {
        self.at.elapsed() >= self.took * times
    }
}

// === impl Sort ===

impl Sort {
    const ALL: [Self; 5] = [Self::Name, Self::Size, Self::Used, Self::Pulls, Self::Pinned];
}

/// What is looked for.
enum Search {
    All,
    /// A digest that begins so.
    Digest(String),
    /// A name that has this in it, in small letters.
    Name(String),
}

// === impl Search ===

impl Search {
    fn of(text: &str) -> Self {
        match text.to_lowercase() {
            text if text.is_empty() => Self::All,
            text if text.starts_with("sha256:") || text.starts_with("sha512:") => Self::Digest(text),
            text => Self::Name(text),
        }
    }

    fn finds(&self, image: &Image, Row { name, .. }: &Row) -> bool {
        match self {
            Self::All => true,
            Self::Digest(beginning) => image.digest.to_string().starts_with(beginning),
            // Tags alone may have capitals.
            Self::Name(part) => {
                name.contains(part)
                    || name.bytes().any(|byte| byte.is_ascii_uppercase()) && name.to_ascii_lowercase().contains(part)
            }
        }
    }
}
