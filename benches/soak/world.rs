//! What all tasks of the soak share: the upstream and what it holds, where larder is, what was counted and what was found.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::Arc,
};

use crate::support::{Image, PutImage, Registry};

pub(crate) struct World {
    pub(crate) upstream: Arc<Registry>,
    /// Those that are asked for most come first.
    pub(crate) images: Vec<PutImage>,
    seed: u64,
    larder: Cell<Option<SocketAddr>>,
    /// Counts the lives of larder: an answer that breaks off while it changes is nobody's fault.
    lives: Cell<u64>,
    stopping: Cell<bool>,
    tally: RefCell<BTreeMap<String, u64>>,
    findings: RefCell<Vec<String>>,
}

/// Where larder is, in one of its lives.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    address: SocketAddr,
    life: u64,
}

/// Numbers that look random; the same for the same seed.
pub(crate) struct Dice(u64);

const IMAGES: u64 = 24;

// === impl World ===

impl World {
    pub(crate) async fn new(seed: u64) -> Self {
        let upstream = crate::rig::aside(Registry::start()).await;
        let mut dice = Dice::new(seed);
        let images = (0..IMAGES).map(|n| {
            let sizes: Vec<usize> = (0..4).map(|_| dice.size()).collect();
            Image::new(seed * 100 + n).layers(&sizes).put(&upstream, &repository(n), "latest")
        });
        let images = images.collect();
        Self {
            upstream: Arc::new(upstream),
            images,
            seed,
            larder: Cell::default(),
            lives: Cell::default(),
            stopping: Cell::default(),
            tally: RefCell::default(),
            findings: RefCell::default(),
        }
    }

    pub(crate) fn dice(&self, for_whom: u64) -> Dice {
        Dice::new(self.seed.wrapping_mul(1_000_003) ^ for_whom.wrapping_mul(0x9E37_79B9))
    }

    // --- larder ---

    /// `None` while there is none.
    pub(crate) fn larder(&self) -> Option<Place> {
        Some(Place { address: self.larder.get()?, life: self.lives.get() })
    }

    pub(crate) fn open(&self, larder: SocketAddr) {
        self.larder.set(Some(larder));
    }

    pub(crate) fn close(&self) {
        self.larder.set(None);
        self.lives.set(self.lives.get() + 1);
    }

    pub(crate) fn stop(&self) {
        self.stopping.set(true);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    // --- what happened ---

    pub(crate) fn count(&self, what: &str) {
        self.add(what, 1);
    }

    pub(crate) fn add(&self, what: &str, n: u64) {
        *self.tally.borrow_mut().entry(what.to_owned()).or_default() += n;
    }

    /// One line for each thing that was counted.
    pub(crate) fn tally(&self) -> String {
        let mut table = String::new();
        for (what, n) in &*self.tally.borrow() {
            writeln!(table, "{n:>14}  {what}").expect("a string takes all");
        }
        table
    }

    pub(crate) fn hold(&self, promise: bool, broken: impl FnOnce() -> String) {
        if !promise {
            self.found(broken());
        }
    }

    pub(crate) fn found(&self, broken: String) {
        println!("BROKEN: {broken}");
        self.findings.borrow_mut().push(broken);
    }

    pub(crate) fn findings(&self) -> Vec<String> {
        self.findings.borrow().clone()
    }
}

/// Of those in every fourth the upstream sometimes tells lies.
pub(crate) fn is_liar(image: &PutImage) -> bool {
    image.repository.contains("liar")
}

fn repository(n: u64) -> String {
    if n % 4 == 3 { format!("library/liar-{n}") } else { format!("library/app-{n}") }
}

// === impl Place ===

impl Place {
    pub(crate) fn url(self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// False if larder has been killed or stopped since.
    pub(crate) fn is_still_here(self, world: &World) -> bool {
        self.life == world.lives.get()
    }
}

// === impl Dice ===

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// Less than `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("less than a length")
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }

    /// The first more often than the last.
    pub(crate) fn pick_early<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let most = self.index(from.len()) + 1;
        &from[self.index(most)]
    }

    /// From some bytes to 8 MiB, most of them small.
    fn size(&mut self) -> usize {
        let doublings = self.below(14);
        self.index(1 << (10 + doublings)) + 1
    }
}
