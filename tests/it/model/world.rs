//! The real thing and what is known of it.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::{Clock, Timestamp};

use super::history::{History, Op, Stop, Trouble};
use super::invariants;
use super::order::Order;
use super::trouble::Ails;
use crate::support::{Content, Image, PutImage, Registry, Streaming, TestMirror, digest_of, noise};

pub(super) const REPOSITORIES: [&str; 3] = ["library/a", "library/b", "library/c"];
pub(super) const BLOBS: usize = 5;
pub(super) const VERSIONS: usize = 3;

/// Which repositories hold which blob.
pub(super) const HELD_BY: [[bool; 3]; BLOBS] =
    [[true, true, false], [true, false, false], [false, true, true], [true, true, true], [false, false, true]];
pub(super) const TTL: Duration = Duration::from_mins(1);
pub(super) const MAX_STALE: Duration = Duration::from_hours(1);
/// What time passes beside the clock in hand.
pub(super) const SLACK: Duration = Duration::from_secs(20);

/// How far the machine's clock may go wrong.
const LONGEST_JUMP: Duration = Duration::from_hours(24 * 400);

static SMALL: LazyLock<Vec<Bytes>> = LazyLock::new(|| blobs([600, 20_000, 150_000, 700_000, 2_500_000]));
/// More than a tight cache can hold.
static LARGE: LazyLock<Vec<Bytes>> = LazyLock::new(|| blobs([600, 20_000, 4 << 20, 5 << 20, 6 << 20]));

fn blobs(sizes: [usize; BLOBS]) -> Vec<Bytes> {
    sizes.into_iter().zip(700..).map(|(size, seed)| noise(seed, size)).collect()
}

#[expect(clippy::struct_excessive_bools, reason = "each of these may be so or not, whatever the others are")]
pub(super) struct World {
    pub(super) upstream: Registry,
    /// `None` only while it is restarted.
    pub(super) mirror: Option<TestMirror>,
    pub(super) blobs: Vec<Content>,
    pub(super) images: Vec<Vec<PutImage>>,
    pub(super) stalled: Vec<Stalled>,
    pub(super) tags: Vec<TagHistory>,
    /// What repositories have given whole since larder last could forget it.
    pub(super) proven: HashSet<(usize, String)>,
    pub(super) ails: Ails,
    /// Blobs whose files we have spoilt.
    pub(super) damaged: HashSet<String>,
    /// Those of them that are as long as they should be: it takes a reader to see it.
    pub(super) flipped: HashSet<String>,
    /// Something of the disk has gone wrong since the last start, or is about to.
    pub(super) disk_fails: bool,
    /// More than that it did not answer: something was not done.
    pub(super) disk_errs: bool,
    /// Something of the disk hangs, or is about to.
    pub(super) hangs: bool,
    pub(super) offline: bool,
    /// How much time the machine's clock has lost.
    pub(super) lost: Duration,
    pub(super) order: Order,
    pub(super) clock: Clock,
    /// As far as the disk can tell, the process dies, or has died: its clients need not get anything any more.
    pub(super) dies: bool,
    /// A wrong byte may have got into a partial file.
    pub(super) ever_corrupt: bool,
    pub(super) max_size: u64,
}

pub(super) struct Stalled {
    pub(super) blob: usize,
    pub(super) streaming: Streaming,
    pub(super) got: Vec<u8>,
    /// Nothing has gone wrong since it began.
    pub(super) undisturbed: bool,
}

/// To which version a tag pointed, from when on. What clients have seen never goes back.
pub(super) struct TagHistory {
    pub(super) moves: Vec<(Timestamp, Option<usize>)>,
    pub(super) seen: usize,
    /// The last answer, while larder cannot have forgotten it.
    pub(super) known: Option<usize>,
    /// From when on the upstream could say.
    pub(super) well_since: Timestamp,
}

// === life ===

impl World {
    pub(super) async fn new(history: &History) -> Self {
        let tight = history.tight;
        let upstream = Registry::start().await;
        let bytes = if tight { &*LARGE } else { &*SMALL };
        for (blob, held_by) in bytes.iter().zip(HELD_BY) {
            let holders = REPOSITORIES.iter().zip(held_by).filter(|(_, holds)| *holds);
            holders.for_each(|(repository, _)| _ = upstream.put_blob(repository, blob.clone()));
        }
        let image = |repository: usize, version: usize| {
            let layers = (0..BLOBS).filter(|blob| HELD_BY[*blob][repository]).skip(version % 2);
            let plan = Image::new((1 + repository * VERSIONS + version) as u64);
            layers.fold(plan, |plan, blob| plan.layer(bytes[blob].clone())).put_untagged(&upstream, REPOSITORIES[repository])
        };
        let images = (0..3).map(|repository| (0..VERSIONS).map(|version| image(repository, version)).collect()).collect();
        let max_size = if tight { 16 << 20 } else { 1 << 30 };
        // So that it can jump back without coming before the beginning of this machine's time.
        let clock = Clock::system();
        clock.advance(LONGEST_JUMP);
        let patience = if history.hangs() { "1s" } else { "10s" };
        let mirror = TestMirror::builder()
            .clock(clock.clone())
            .upstream("docker.io", &upstream)
            .set(&format!("cache.max_size = \"{max_size}\""))
            .set("cache.min_free = \"0%\"")
            .set("cache.scrub_rate = \"1GiB\"")
            .set(&format!("cache.patience = \"{patience}\""))
            .set("mirror.tag_ttl = \"1m\"")
            .set("mirror.max_stale = \"1h\"")
            .set("upstream.\"docker.io\".idle_timeout = \"500ms\"")
            .start()
            .await;
        let now = mirror.clock().now();
        let tags = (0..3).map(|_| TagHistory {
            moves: vec![(now - MAX_STALE * 9, None)],
            seen: 0,
            known: None,
            well_since: now - MAX_STALE * 9,
        });
        Self {
            upstream,
            mirror: Some(mirror),
            blobs: bytes.iter().map(|bytes| Content { digest: digest_of(bytes), bytes: bytes.clone() }).collect(),
            images,
            stalled: Vec::new(),
            tags: tags.collect(),
            proven: HashSet::new(),
            ails: Ails::default(),
            damaged: HashSet::new(),
            flipped: HashSet::new(),
            disk_fails: false,
            disk_errs: false,
            hangs: false,
            offline: false,
            lost: Duration::ZERO,
            order: Order::default(),
            clock,
            dies: false,
            ever_corrupt: false,
            max_size,
        }
    }

    pub(super) async fn step(&mut self, op: Op) {
        let asked = self.upstream.requests().len();
        let was_offline = self.offline;
        match op {
            Op::Get { repository, blob, clients, leaves } => self.get(repository, blob, clients, leaves).await,
            Op::Range { repository, blob, start, end } => self.range(repository, blob, start, end).await,
            Op::HeadBlob { repository, blob } => self.head(repository, blob).await,
            Op::Manifest { repository, version } => self.manifest(repository, version).await,
            Op::Tag { repository, head } => self.tag(repository, head).await,
            Op::Stall { repository, blob, after } => self.stall(repository, blob, after).await,
            Op::Resume => self.resume().await,
            Op::Abort => drop(self.stalled.pop()),
            Op::MoveTag { repository, version } => self.move_tag(repository, version),
            Op::Upstream(trouble) => self.trouble(trouble).await,
            Op::Heal => self.heal().await,
            Op::Disk { n, how } => self.fail_disk(n, how),
            Op::Mend => self.mend().await,
            Op::Restart { stop, offline, jump } => self.restart(stop, offline, jump).await,
            Op::Damage { blob, how } => self.damage(blob, how).await,
            Op::Flip { blob, at, found_by } => self.flip(blob, at, found_by).await,
            Op::Tick { seconds } => self.mirror().clock().advance(Duration::from_secs(seconds)),
            Op::Upkeep => self.upkeep().await,
        }
        self.check_left_alone(asked, was_offline);
        invariants::check(self).await;
        Order::check(self, !matches!(op, Op::Restart { .. } | Op::Damage { .. } | Op::Flip { .. }));
    }

    /// Whatever has happened: when all is well again, everything can be had.
    pub(super) async fn end(&mut self) {
        self.stalled.clear();
        self.heal().await;
        self.restart(Stop::Clean, false, None).await;
        for blob in 0..BLOBS {
            self.get(2, blob, 1, None).await;
            self.get(0, blob, 1, None).await;
        }
        for repository in 0..3 {
            self.tag(repository, false).await;
        }
        invariants::check(self).await;
    }

    pub(super) fn mirror(&self) -> &TestMirror {
        self.mirror.as_ref().expect("it runs")
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.stalled.is_empty() && !self.hangs && !self.mirror().faults().is_dead()
    }

    /// While an upstream has asked to be left alone, it is; and larder asks nobody when it is told so.
    fn check_left_alone(&mut self, asked: usize, was_offline: bool) {
        let now = self.mirror().clock().now();
        let asks = self.upstream.requests().len() - asked;
        assert!(asks == 0 || !(was_offline && self.offline), "it is offline and asks");
        match self.ails.leave_alone {
            Some(until) if now < until => assert_eq!(asks, 0, "it has said until when not to ask"),
            _ if self.ails == Ails::saying(Trouble::TooManyRequests) && asks > 0 => {
                // It was said at the earliest when the step began.
                self.ails.leave_alone = Some(now + Duration::from_mins(1) - SLACK);
            }
            _ => {}
        }
    }
}
