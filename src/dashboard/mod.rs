//! What the operator's page shows: what goes on now, what was served over time, the images, and what has gone wrong.
//!
//! Floor 2, above `orders`. Every ten seconds a few counters are looked at; all else is computed when somebody asks.

mod errands;
mod history;
mod images;
mod incidents;
mod now;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Timestamp};
use crate::mirror::Mirror;
use crate::orders::{Input, Order, Orders, Report, Reports};
use crate::store::{Kept, Store};

use errands::Errands;
use history::History;
use images::Images;

pub use errands::{Errand, ErrandState};
pub use history::{Amounts, HistoryReport, Span};
pub use images::{ImagesQuery, ImagesReport, Sort};
pub use incidents::IncidentReport;
pub use now::NowReport;

/// What is known for the operator's page. Clones share it.
#[derive(Clone)]
pub struct Dashboard(Arc<Inner>);

struct Inner {
    mirror: Mirror,
    store: Store,
    orders: Orders,
    clock: Clock,
    started: Timestamp,
    history: Kept<History>,
    images: Images,
    errands: Errands,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// Who is told that an order begins, and by what is returned, that it was carried out; where that is dropped, it was not.
pub type Witness = Box<dyn FnOnce(&Order, &Reports) -> Box<dyn FnOnce() + Send> + Send>;

/// How often the counters are looked at.
const SAMPLE: Duration = Duration::from_secs(10);

// === impl Dashboard ===

impl Dashboard {
    #[must_use]
    pub fn new(mirror: Mirror, store: Store, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            orders: Orders::new(mirror.clone(), store.clone()),
            started: clock.now(),
            mirror,
            store,
            clock,
            history: Kept::default(),
            images: Images::default(),
            errands: Errands::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }))
    }

    #[must_use]
    pub fn mirror(&self) -> &Mirror {
        &self.0.mirror
    }

    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Reads what a larder before this one has written down.
    pub async fn recall(&self) {
        self.0.history.recall(&self.0.store).await;
        self.0.mirror.recall_pulls().await;
    }

    /// Looks at the counters now and then until `stop`, and ends what was begun by the page then.
    pub async fn run(self, stop: CancellationToken) {
        let mut due = tokio::time::interval(SAMPLE);
        while stop.run_until_cancelled(due.tick()).await.is_some() {
            self.sample();
        }
        self.0.stopping.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Writes down what has come since it was written last. Due once a minute, and at the end.
    pub async fn keep(&self) {
        self.sample();
        self.0.history.keep(&self.0.store).await;
        self.0.mirror.keep_pulls().await;
    }

    /// Carries out an order about one image, and tells what came of it.
    ///
    /// Cancel safe as the order is.
    ///
    /// # Errors
    /// It could not be done; says why in a sentence.
    pub async fn carry_out(&self, order: Order, witness: Witness) -> Result<Report, String> {
        let (mut failed, mut done) = (None, None);
        self.follow(order, witness, |report| match report {
            Report::Failed { why, .. } => failed = Some(why),
            Report::End | Report::Waiting { .. } => {}
            report => done = Some(report),
        })
        .await;
        match (failed, done) {
            (None, Some(report)) => Ok(report),
            (why, _) => Err(why.unwrap_or_else(|| "it was broken off".into())),
        }
    }

    async fn follow(&self, order: Order, witness: Witness, mut tell: impl FnMut(Report)) {
        let (send, mut reports) = Reports::channel();
        let mut nothing: Input = Box::pin(stream::empty());
        let done = witness(&order, &send);
        let work = async {
            self.0.orders.carry_out(order, &mut nothing, &send).await;
            done();
            drop(send);
        };
        let heard = async {
            while let Some(report) = reports.recv().await {
                let is_end = report == Report::End;
                tell(report);
                if is_end {
                    break;
                }
            }
        };
        tokio::join!(work, heard);
    }
}
