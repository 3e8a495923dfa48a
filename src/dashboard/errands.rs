//! What was begun by the page and takes a while: pulls, and verifications of one image. Nobody need wait for them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::oci::Platforms;
use crate::orders::{LayerReport, Order, Pull, Report, VerifyReport};

use super::{Dashboard, Witness};

/// One of them, as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Errand {
    pub id: u64,
    /// `pull` or `verify`.
    pub order: &'static str,
    pub image: String,
    pub state: ErrandState,
    pub bytes: u64,
    /// As far as that is known.
    pub of: u64,
    /// What has come of it, in a sentence.
    pub said: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrandState {
    Running,
    Done,
    Failed,
}

/// The last of them, the newest last.
#[derive(Default)]
pub(super) struct Errands(Mutex<State>);

#[derive(Default)]
struct State {
    list: VecDeque<Errand>,
    begun: u64,
}

/// So many at once, so that clients have some of the line,
const AT_ONCE: usize = 4;
/// and so many are told of.
const MOST: usize = 20;

// === impl Dashboard ===

impl Dashboard {
    /// Begins to bring an image in. Returns its number.
    ///
    /// # Errors
    /// There are enough under way.
    pub fn begin_pull(&self, image: String, platforms: Platforms, witness: Witness) -> Result<u64, String> {
        let pull = Pull { images: vec![image.clone()], platforms, referrers: false, pin: false };
        self.begin("pull", image, Order::Pull(pull), witness)
    }

    /// Begins to hash all of an image again, and to fetch anew what is damaged.
    ///
    /// # Errors
    /// There are enough under way.
    pub fn begin_verify(&self, image: String, witness: Witness) -> Result<u64, String> {
        let order = Order::Verify { repair: true, rate: Some(RATE), images: vec![image.clone()] };
        self.begin("verify", image, order, witness)
    }

    fn begin(&self, word: &'static str, image: String, order: Order, witness: Witness) -> Result<u64, String> {
        let id = self.0.errands.lock().begin(word, image)?;
        let dashboard = self.clone();
        self.0.tasks.spawn(async move {
            let stopping = dashboard.0.stopping.clone();
            let mut progress = Progress::default();
            let work = dashboard.follow(order, witness, |report| {
                progress.take(report);
                dashboard.0.errands.lock().change(id, |errand| progress.show(errand));
            });
            stopping.run_until_cancelled(work).await;
            dashboard.0.errands.lock().change(id, |errand| progress.end(errand));
        });
        Ok(id)
    }

    /// Those that were begun last, the newest first.
    #[must_use]
    pub fn errands(&self) -> Vec<Errand> {
        self.0.errands.lock().list.iter().rev().cloned().collect()
    }
}

/// What was asked for is not idle work.
const RATE: u64 = 1 << 30;

/// How far one has come.
#[derive(Default)]
struct Progress {
    layers: HashMap<String, (u64, u64)>,
    bytes: u64,
    of: u64,
    said: String,
    failed: bool,
}

// === impl Progress ===

impl Progress {
    fn take(&mut self, report: Report) {
        match report {
            Report::Layer(LayerReport { digest, bytes, size, .. }) => {
                self.layers.insert(digest, (bytes, size.unwrap_or(bytes)));
                (self.bytes, self.of) = self.layers.values().fold((0, 0), |(b, o), (bytes, of)| (b + bytes, o + of));
            }
            Report::Verifying { bytes, of } => (self.bytes, self.of) = (bytes, of),
            Report::Pulled(pulled) if pulled.fetched == 0 => self.said = "all of it was here already, and is the newest".into(),
            Report::Pulled(pulled) => {
                self.said = format!("it is here whole; {} manifests and blobs were fetched", pulled.fetched);
            }
            Report::Verified(verified) if !self.failed => {
                let VerifyReport { right, damaged, repaired, .. } = verified;
                self.said = match damaged {
                    0 => format!("all {right} blobs are what their digests promise"),
                    _ => format!("damaged blobs: {damaged}, of which fetched anew: {repaired}"),
                };
                self.failed = damaged > repaired;
            }
            Report::Failed { why, .. } => (self.failed, self.said) = (true, why),
            _ => {}
        }
    }

    fn show(&self, errand: &mut Errand) {
        (errand.bytes, errand.of) = (self.bytes, self.of);
        errand.said.clone_from(&self.said);
    }

    fn end(&self, errand: &mut Errand) {
        self.show(errand);
        errand.state = if self.failed || self.said.is_empty() { ErrandState::Failed } else { ErrandState::Done };
        if self.said.is_empty() {
            errand.said = "it was broken off, as larder stops".into();
        }
    }
}

// === impl Errands ===

impl Errands {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn begin(&mut self, order: &'static str, image: String) -> Result<u64, String> {
        let running = || self.list.iter().filter(|errand| errand.state == ErrandState::Running);
        if running().any(|errand| errand.order == order && errand.image == image) {
            return Err("that is under way already".into());
        }
        if running().count() >= AT_ONCE {
            return Err(format!("{AT_ONCE} pulls and verifications are under way; try again when one of them has ended"));
        }
        if self.list.len() >= MOST
            && let Some(ended) = self.list.iter().position(|errand| errand.state != ErrandState::Running)
        {
            self.list.remove(ended);
        }
        self.begun += 1;
        let said = String::new();
        self.list.push_back(Errand { id: self.begun, order, image, state: ErrandState::Running, bytes: 0, of: 0, said });
        Ok(self.begun)
    }

    fn change(&mut self, id: u64, change: impl FnOnce(&mut Errand)) {
        if let Some(errand) = self.list.iter_mut().find(|errand| errand.id == id) {
            change(errand);
        }
    }
}
