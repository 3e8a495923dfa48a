//! What the operator tells a cache to do, by the command line.
//!
//! One piece of code, whoever runs it: the larder that serves, told by the socket in its cache directory, or where none runs, the
//! command itself. An [`Order`] goes in, [`Report`]s come out, each as soon as there is something to tell.

mod activity;
mod archive;
mod explain;
mod export;
mod hashing;
mod images;
mod import;
mod missing;
mod parts;
mod pins;
mod pull;
mod refresh;
mod remove;
mod usage;
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::clock::Timestamp;
use crate::mirror::Mirror;
use crate::oci::{ImageName, Pattern, Reference, Repository};
use crate::store::Store;

pub use activity::{AccountReport, ActivityReport, AnswersReport, FillReport};
pub use archive::{Archive, BLOCK, Entry, Input, header, own_header, padding};
pub use explain::ExplainReport;
pub use export::{Export, ExportReport};
pub use images::{Image, ImageReport};
pub use import::{Import, ImportReport};
pub use missing::MissingReport;
pub use pull::{LayerReport, Pull, PullReport};
pub use refresh::{NotRefreshed, RefreshReport, refresh};
pub use usage::{CacheReport, LeavingReport, RepositoryReport, UsageReport};
pub use verify::VerifyReport;

/// Carries out orders on one cache. Clones share it.
#[derive(Clone)]
pub struct Orders {
    mirror: Mirror,
    store: Store,
    /// Who makes a list longer does so alone.
    lists: Arc<tokio::sync::Mutex<()>>,
}

/// What is to be done. Images are named as for `docker pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Ask for tags upstream, however fresh they are.
    Refresh { images: Vec<String> },
    /// Tell of the images that are here and match one of these; none: of all.
    List { patterns: Vec<Pattern> },
    /// Keep images from eviction.
    Pin { images: Vec<String> },
    /// Let them be evicted again.
    Unpin { images: Vec<String> },
    /// Remove images, with what no other needs.
    Remove { images: Vec<String> },
    /// Tell what the cache takes of the disk, and for what.
    Usage,
    /// Bring images in.
    Pull(Pull),
    /// Give out images as an archive.
    Export { export: Export },
    /// Bring images in from an archive, whose bytes come behind the order.
    Import(Import),
    /// Tell what was asked for while nobody could be asked, and is not here.
    Missing,
    /// Tell from where images would be served now, why, and what it would cost.
    Explain { images: Vec<String> },
    /// Hash all that is here again; what is damaged leaves the cache, and is fetched anew where that is wanted. `rate`: so many
    /// bytes a second, or as in idle time. `images`: these alone; none: all.
    Verify {
        repair: bool,
        rate: Option<u64>,
        #[serde(default)]
        images: Vec<String>,
    },
    /// Tell what the larder that serves is doing, each so many milliseconds until the order is taken back; without, once.
    Watch { every: Option<u64> },
}

/// What has come of an order, piece by piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    Refreshed(RefreshReport),
    Image(ImageReport),
    Pinned {
        image: String,
        digest: String,
        missing: usize,
    },
    Unpinned {
        image: String,
        digest: String,
    },
    Removed {
        image: String,
        digest: String,
        freed: u64,
    },
    Usage(UsageReport),
    Layer(LayerReport),
    Pulled(PullReport),
    /// An image that will be in the archive.
    Exporting(ExportReport),
    /// The archive follows, which has so many bytes.
    Writing {
        bytes: u64,
    },
    /// The next bytes of the archive. On the socket they follow the line.
    Piece {
        length: usize,
        #[serde(skip)]
        bytes: Bytes,
    },
    /// All bytes of the archive have been given, and are right.
    Exported {
        images: usize,
        blobs: usize,
    },
    Imported(ImportReport),
    Missing(MissingReport),
    Activity(ActivityReport),
    Explained(ExplainReport),
    /// So many bytes of so many are verified.
    Verifying {
        bytes: u64,
        of: u64,
    },
    /// It was damaged, and has been fetched anew.
    Repaired {
        digest: String,
        of: Option<String>,
    },
    Verified(VerifyReport),
    /// It takes a while, for this reason.
    Waiting {
        why: String,
    },
    /// One of the things that were asked for could not be done; the others are done all the same.
    Failed {
        what: String,
        why: String,
    },
    /// The last one: nothing follows, and nothing is missing.
    End,
}

/// Where reports go. Nobody need be there to read them.
#[derive(Clone)]
pub struct Reports {
    to: mpsc::Sender<Report>,
    /// How many of them tell of something that could not be done.
    failed: Arc<AtomicU64>,
}

/// Who reads no reports lets the work wait.
const UNREAD: usize = 64;
/// How often it is looked whether the cache has been counted.
const COUNTED: Duration = Duration::from_millis(20);

/// Where orders are taken, on the socket in the cache directory.
pub const ORDERS_PATH: &str = "/orders";

// === impl Order ===

impl Order {
    /// Whether it is for what is in the cache: without one there is nothing to do.
    #[must_use]
    pub fn needs_a_cache(&self) -> bool {
        !matches!(self, Self::Pull(_) | Self::Import(_))
    }

    /// Whether it is for a larder that serves: of a cache alone there is nothing to tell.
    #[must_use]
    pub fn needs_a_server(&self) -> bool {
        matches!(self, Self::Watch { .. })
    }

    /// Whether it does no more than tell of what there is.
    #[must_use]
    pub fn only_tells(&self) -> bool {
        matches!(self, Self::List { .. } | Self::Usage | Self::Missing | Self::Explain { .. })
    }

    /// What it is about, as it was named; none: all there is.
    #[must_use]
    pub fn about(&self) -> Vec<String> {
        match self {
            Self::Refresh { images }
            | Self::Pin { images }
            | Self::Unpin { images }
            | Self::Remove { images }
            | Self::Explain { images }
            | Self::Verify { images, .. }
            | Self::Pull(Pull { images, .. })
            | Self::Export { export: Export::These(images) } => images.clone(),
            Self::List { patterns } => patterns.iter().map(ToString::to_string).collect(),
            Self::Import(Import { name, .. }) => name.iter().cloned().collect(),
            Self::Export { export: Export::Pinned | Export::All } | Self::Usage | Self::Missing | Self::Watch { .. } => {
                Vec::new()
            }
        }
    }

    /// One word for the log.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Refresh { .. } => "refresh",
            Self::List { .. } => "ls",
            Self::Pin { .. } => "pin",
            Self::Unpin { .. } => "unpin",
            Self::Remove { .. } => "rm",
            Self::Usage => "du",
            Self::Pull(_) => "pull",
            Self::Export { .. } => "export",
            Self::Import(_) => "import",
            Self::Missing => "missing",
            Self::Explain { .. } => "explain",
            Self::Verify { .. } => "verify",
            Self::Watch { .. } => "top",
        }
    }
}

// === impl Report ===

impl Report {
    /// As it is sent and as `--json` shows it: JSON, and a line end.
    #[must_use]
    pub fn line(&self) -> String {
        // What it is made of has words for keys.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// As it goes over the socket: its line, and the bytes that it brings.
    #[must_use]
    pub fn sent(&self) -> Bytes {
        let mut sent = self.line().into_bytes();
        if let Self::Piece { bytes, .. } = self {
            sent.extend_from_slice(bytes);
        }
        sent.into()
    }

    fn piece(bytes: Bytes) -> Self {
        Self::Piece { length: bytes.len(), bytes }
    }
}

// === impl Reports ===

impl Reports {
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Report>) {
        let (send, receive) = mpsc::channel(UNREAD);
        (Self { to: send, failed: Arc::default() }, receive)
    }

    /// Whether no more have room before one is taken.
    #[must_use]
    pub fn are_waiting(&self) -> bool {
        self.to.capacity() == 0
    }

    /// How many have told by now of something that could not be done.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    async fn tell(&self, report: Report) {
        if matches!(report, Report::Failed { .. }) {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        let _ = self.to.send(report).await;
    }

    /// Tells what need not be known, if there is someone who keeps up with it.
    fn try_tell(&self, report: Report) {
        let _ = self.to.try_send(report);
    }

    /// Tells how it went with one of the things that were asked for.
    async fn outcome(&self, what: &str, outcome: Result<Report, String>) {
        self.tell(outcome.unwrap_or_else(|why| Report::Failed { what: what.to_owned(), why })).await;
    }
}

// === impl Orders ===

impl Orders {
    #[must_use]
    pub fn new(mirror: Mirror, store: Store) -> Self {
        Self { mirror, store, lists: Arc::default() }
    }

    /// Does what is asked, and tells of it. `input`: what comes behind the order.
    ///
    /// Cancel safe: what is done stays done, nothing is half done, and the same order again does the rest.
    pub async fn carry_out(&self, order: Order, input: &mut Input, reports: &Reports) {
        let word = order.word();
        if !matches!(order, Order::Watch { .. }) {
            self.counted(reports).await;
        }
        match order {
            Order::Refresh { images } => self.refresh(&images, reports).await,
            Order::List { patterns } => self.list(&patterns, reports).await,
            Order::Pin { images } => self.pin(&images, reports).await,
            Order::Unpin { images } => self.unpin(&images, reports).await,
            Order::Remove { images } => self.remove(&images, reports).await,
            Order::Usage => self.usage(reports).await,
            Order::Pull(pull) => self.pull(&pull, reports).await,
            Order::Export { export } => self.export(&export, reports).await,
            Order::Import(import) => self.import(&import, input, reports).await,
            Order::Missing => self.missing(reports).await,
            Order::Explain { images } => self.explain(&images, reports).await,
            Order::Verify { repair, rate, images } => self.verify(repair, rate, &images, reports).await,
            Order::Watch { every } => self.watch(every, reports).await,
        }
        // Before its end is told: who has heard that hangs up.
        tracing::info!(order = word, "an order was carried out");
        reports.tell(Report::End).await;
    }

    /// Waits until the cache knows what it has.
    async fn counted(&self, reports: &Reports) {
        let mut told = false;
        while self.store.usage().is_none() {
            if !std::mem::replace(&mut told, true) {
                reports.tell(Report::Waiting { why: "the cache is still being counted".into() }).await;
            }
            tokio::time::sleep(COUNTED).await;
        }
    }

    /// The repository that a name means, and what of it. One whose upstream is not configured any more may still be here.
    fn named(&self, image: &str) -> Result<(Repository, Reference), String> {
        let name = image.parse::<ImageName>().map_err(|invalid| invalid.to_string())?;
        match self.mirror.registries().resolve(&name) {
            Ok(origin) => Ok((origin.repository, name.reference)),
            Err(refusal) => match name.registry {
                Some(upstream) => Ok((Repository { upstream: upstream.into(), name: name.repository }, name.reference)),
                None => Err(refusal.to_string()),
            },
        }
    }
}

/// What is said of something that is not here.
fn absent(image: &str) -> String {
    format!("it is not in the cache; `larder ls` shows what is, and `larder pull {image}` brings it")
}

fn date(at: Timestamp) -> String {
    humantime::format_rfc3339_seconds(SystemTime::from(at)).to_string()
}
