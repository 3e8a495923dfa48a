//! The real thing and what is known of it: lets operations happen, and says of each answer whether it may be.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use larder::clock::Timestamp;
use larder::store::faults;

use super::{Damage, DiskFault, Glitch, Op, Stop, Trouble, invariants};
use crate::support::{
    Answer, Content, Fault, Image, Match, PATIENCE, PutImage, Registry, StoppedMirror, Streaming, TestMirror, digest_of,
    get_with, noise, stream,
};

pub(super) const REPOSITORIES: [&str; 3] = ["library/a", "library/b", "library/c"];
pub(super) const BLOBS: usize = 5;
pub(super) const VERSIONS: usize = 3;

/// Which repositories hold which blob.
const HELD_BY: [[bool; 3]; BLOBS] =
    [[true, true, false], [true, false, false], [false, true, true], [true, true, true], [false, false, true]];
const TTL: Duration = Duration::from_mins(1);
const MAX_STALE: Duration = Duration::from_hours(1);
/// What time passes beside the clock in hand.
const SLACK: Duration = Duration::from_secs(20);

static SMALL: LazyLock<Vec<Bytes>> = LazyLock::new(|| blobs([600, 20_000, 150_000, 700_000, 2_500_000]));
/// More than a tight cache can hold.
static LARGE: LazyLock<Vec<Bytes>> = LazyLock::new(|| blobs([600, 20_000, 4 << 20, 5 << 20, 6 << 20]));

fn blobs(sizes: [usize; BLOBS]) -> Vec<Bytes> {
    sizes.into_iter().zip(700..).map(|(size, seed)| noise(seed, size)).collect()
}

pub(super) struct World {
    pub(super) upstream: Registry,
    /// `None` only while it is restarted.
    mirror: Option<TestMirror>,
    pub(super) blobs: Vec<Content>,
    images: Vec<Vec<PutImage>>,
    stalled: Vec<Stalled>,
    tags: Vec<TagHistory>,
    /// What repositories have given whole since larder last could forget it.
    proven: HashSet<(usize, String)>,
    pub(super) ails: Ails,
    /// Blobs whose files we have spoilt.
    pub(super) damaged: HashSet<String>,
    /// Something of the disk has gone wrong since the last start, or is about to.
    pub(super) disk_fails: bool,
    /// As far as the disk can tell, the process dies, or has died: its clients need not get anything any more.
    dies: bool,
    /// A wrong byte may have got into a partial file.
    pub(super) ever_corrupt: bool,
    pub(super) max_size: u64,
}

/// What is wrong with the upstream.
#[derive(Default, PartialEq)]
pub(super) struct Ails {
    glitches: usize,
    corrupt: bool,
    lasting: Option<Trouble>,
    /// Until then it must not be asked.
    pub(super) leave_alone: Option<Timestamp>,
}

struct Stalled {
    blob: usize,
    streaming: Streaming,
    got: Vec<u8>,
    /// Nothing has gone wrong since it began.
    undisturbed: bool,
}

/// To which version a tag pointed, from when on. What clients have seen never goes back.
struct TagHistory {
    moves: Vec<(Timestamp, Option<usize>)>,
    seen: usize,
    /// From when on the upstream could say.
    well_since: Timestamp,
}

// === life ===

impl World {
    pub(super) async fn new(tight: bool) -> Self {
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
        let mirror = TestMirror::builder()
            .upstream("docker.io", &upstream)
            .set(&format!("cache.max_size = \"{max_size}\""))
            .set("cache.min_free = \"0%\"")
            .set("mirror.tag_ttl = \"1m\"")
            .set("mirror.max_stale = \"1h\"")
            .set("upstream.\"docker.io\".idle_timeout = \"500ms\"")
            .start()
            .await;
        let now = mirror.clock().now();
        let tags =
            (0..3).map(|_| TagHistory { moves: vec![(now - MAX_STALE * 9, None)], seen: 0, well_since: now - MAX_STALE * 9 });
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
            disk_fails: false,
            dies: false,
            ever_corrupt: false,
            max_size,
        }
    }

    pub(super) async fn step(&mut self, op: Op) {
        let asked = self.upstream.requests().len();
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
            Op::Restart(stop) => self.restart(stop).await,
            Op::Damage { blob, how } => self.damage(blob, how).await,
            Op::Tick { seconds } => self.mirror().clock().advance(Duration::from_secs(seconds)),
            Op::Upkeep => self.mirror().upkeep().await,
        }
        self.check_left_alone(asked);
        invariants::check(self).await;
    }

    /// Whatever has happened: when all is well again, everything can be had.
    pub(super) async fn end(&mut self) {
        self.stalled.clear();
        self.heal().await;
        self.restart(Stop::Clean).await;
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
        self.stalled.is_empty() && !self.mirror().faults().is_dead()
    }

    /// While an upstream has asked to be left alone, it is.
    fn check_left_alone(&mut self, asked: usize) {
        let now = self.mirror().clock().now();
        let asks = self.upstream.requests().len() - asked;
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

// === what clients want ===

impl World {
    /// Whether a client must get what it wants of this blob.
    fn must_have(&self, repository: usize, digest: &str, held: bool) -> bool {
        if self.dies {
            return false;
        }
        let Ails { glitches, corrupt, lasting, .. } = &self.ails;
        // One trouble is never a client's; of two at a time, with the upstream and with the disk, it may learn.
        let from_upstream = held && !corrupt && lasting.is_none() && (*glitches == 0 || !self.disk_fails);
        let spoilt = self.is_spoilt(digest);
        let known = self.proven.contains(&(repository, digest.to_owned())) && self.mirror().holds(digest);
        let from_cache = known && !self.disk_fails && !self.damaged.contains(digest);
        // A file that cannot be read breaks off the answer that has begun from it.
        (from_upstream && !spoilt && !(self.disk_fails && self.mirror().holds(digest))) || from_cache
    }

    /// What was begun with wrong bytes is found out at its end.
    fn is_spoilt(&self, digest: &str) -> bool {
        self.ever_corrupt && invariants::partial_file(&self.mirror().cache_dir(), digest).exists()
    }

    /// Whether this answer may be; `expected` is what it should hold.
    fn judge(&mut self, repository: usize, digest: &str, must: bool, answer: Option<Answer>, expected: &[u8]) {
        let Some(answer) = answer else {
            assert!(!must, "no answer for {digest}");
            return;
        };
        let held = self.is_held(repository, digest);
        let whole = answer.complete && answer.body == expected;
        let success = matches!(answer.status, 200 | 206);
        if success {
            assert!(held, "{digest} is none of {}", REPOSITORIES[repository]);
            assert!(self.was_asked_for(repository, digest), "{} was never proven to hold {digest}", REPOSITORIES[repository]);
            let whole_blob = expected.len() == self.size(digest);
            if answer.complete && (whole_blob || !self.ails.corrupt) {
                assert!(whole, "{} of {} bytes of {digest}, cleanly ended and wrong", answer.body.len(), expected.len());
            }
            assert!(self.ails.corrupt || expected.starts_with(&answer.body), "bytes that are none of {digest}");
        } else {
            let plausible = if held { matches!(answer.status, 429 | 502..=504) } else { answer.status > 400 };
            assert!(plausible, "{} for {digest}: {}", answer.status, answer.text());
        }
        assert!(!must || whole, "{} and {} bytes, {:?}", answer.status, answer.body.len(), answer.headers.get("cache-status"));
        if success && whole {
            self.proven.insert((repository, digest.to_owned()));
        } else {
            self.proven.remove(&(repository, digest.to_owned()));
        }
    }

    /// Asks, and returns the answer, if there is one at all: with a disk that fails there need not be.
    async fn ask(&self, path: &str, range: Option<String>) -> Option<Answer> {
        let url = self.mirror().url(path);
        self.attempt(async move {
            let headers = range.as_deref().map(|range| ("range", range));
            get_with(url, headers.as_slice()).await
        })
        .await
    }

    async fn attempt<T: Send + 'static>(&self, asking: impl Future<Output = T> + Send + 'static) -> Option<T> {
        if self.disk_fails { tokio::spawn(asking).await.ok() } else { Some(asking.await) }
    }

    async fn get(&mut self, repository: usize, blob: usize, clients: usize, leaves: Option<usize>) {
        let Content { digest, bytes } = self.blobs[blob].clone();
        let path = format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository]);
        let must = self.must_have(repository, &digest, HELD_BY[blob][repository]);
        let known = self.proven.contains(&(repository, digest.clone())) && self.mirror().holds(&digest);
        let well = self.ails.is_well() && !self.disk_fails && self.stalled.is_empty();
        let spoilt = self.is_spoilt(&digest);
        let asked = self.upstream.count("GET", &digest);
        let leaving = async {
            let url = self.mirror().url(&path);
            if let Some(after) = leaves
                && let Some(mut streaming) = self.attempt(stream(url)).await
            {
                let got = if streaming.status == 200 { streaming.take(after).await } else { Bytes::new() };
                assert!(self.ails.corrupt || bytes.starts_with(&got), "bytes that are none of {digest}");
            }
        };
        let staying = clients - usize::from(leaves.is_some());
        let (answers, ()) = tokio::join!(join_all((0..staying).map(|_| self.ask(&path, None))), leaving);
        for answer in answers {
            self.judge(repository, &digest, must, answer, &bytes);
        }
        if well {
            let gets = self.upstream.count("GET", &digest) - asked;
            // What goes on with wrong bytes is fetched once more.
            let most = usize::from(!known || self.damaged.contains(&digest)) + usize::from(spoilt);
            assert!(gets <= most, "{gets} transfers for {clients} clients where {most} would do");
        }
    }

    async fn range(&mut self, repository: usize, blob: usize, start: usize, end: usize) {
        let Content { digest, bytes } = self.blobs[blob].clone();
        let (start, end) = (start * bytes.len() / 1000, end * bytes.len() / 1000);
        if start >= end {
            return;
        }
        let must = self.must_have(repository, &digest, HELD_BY[blob][repository]);
        let path = format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository]);
        let answer = self.ask(&path, Some(format!("bytes={start}-{}", end - 1))).await;
        if let Some(answer) = answer.as_ref().filter(|answer| answer.status == 206) {
            let range = format!("bytes {start}-{}/{}", end - 1, bytes.len());
            assert_eq!(answer.header("content-range"), Some(range.as_str()));
        }
        self.judge(repository, &digest, must, answer, &bytes[start..end]);
    }

    async fn head(&mut self, repository: usize, blob: usize) {
        let Content { digest, bytes } = self.blobs[blob].clone();
        let held = HELD_BY[blob][repository];
        let must = held && self.ails.lasting.is_none();
        let answer = self.mirror().head(&format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository])).await;
        if answer.status == 200 {
            assert!(held && self.was_asked_for(repository, &digest));
            assert_eq!(answer.header("content-length"), Some(bytes.len().to_string().as_str()));
        }
        assert!(!must || answer.status == 200, "{}", answer.status);
    }

    async fn manifest(&mut self, repository: usize, version: usize) {
        let image = self.images[repository][version].clone();
        let known = self.proven.contains(&(repository, image.digest.clone())) && self.mirror().holds(&image.digest);
        let from_cache = known && !self.disk_fails && !self.damaged.contains(&image.digest);
        let must = !self.dies && (self.ails.lasting.is_none() || from_cache);
        let answer = self.ask(&image.manifest_path(), None).await;
        self.judge(repository, &image.digest, must, answer, &image.manifest);
    }

    async fn tag(&mut self, repository: usize, head: bool) {
        let path = format!("/v2/{}/manifests/latest", REPOSITORIES[repository]);
        let before = self.mirror().clock().now();
        let answer = if head { self.mirror().head(&path).await } else { self.mirror().get(&path).await };
        let after = self.mirror().clock().now();
        let well = self.ails.lasting.is_none();
        let version = match answer.status {
            200 => {
                let digest = answer.header("docker-content-digest").expect("a digest").to_owned();
                let version = self.images[repository].iter().position(|image| image.digest == digest).expect("a version");
                assert!(head || answer.complete && answer.body == self.images[repository][version].manifest);
                Some(version)
            }
            404 => None,
            status => {
                assert!(!well && matches!(status, 429 | 502..=504), "{status}: {}", answer.text());
                return;
            }
        };
        let history = &mut self.tags[repository];
        // When it is well it is asked again after its TTL; else the old answer is good for a while.
        let was_well = well && history.well_since <= before - TTL;
        let oldest = before - SLACK - if was_well { TTL } else { MAX_STALE };
        let valid = |n: usize| {
            let until = history.moves.get(n + 1).map_or(after, |(at, _)| *at);
            history.moves[n].1 == version && until >= oldest
        };
        let found = (history.seen..history.moves.len()).find(|n| valid(*n));
        assert!(found.is_some(), "version {version:?} after {:?} at {before:?}, asked since {oldest:?}", history.moves);
        history.seen = found.unwrap_or_default();
    }

    async fn stall(&mut self, repository: usize, blob: usize, after: usize) {
        let Content { digest, bytes } = self.blobs[blob].clone();
        let path = format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository]);
        let must = self.must_have(repository, &digest, HELD_BY[blob][repository]);
        let Some(mut streaming) = self.attempt(stream(self.mirror().url(&path))).await else {
            assert!(!must, "no answer for {digest}");
            return;
        };
        if streaming.status != 200 {
            assert!(!must && streaming.status >= 400, "{}", streaming.status);
            return;
        }
        let got = streaming.take(after).await.to_vec();
        assert!(self.ails.corrupt || bytes.starts_with(&got));
        if self.stalled.len() == 3 {
            self.stalled.remove(0);
        }
        self.stalled.push(Stalled { blob, streaming, got, undisturbed: must });
    }

    async fn resume(&mut self) {
        let Some(Stalled { blob, streaming, mut got, undisturbed }) = self.stalled.pop() else { return };
        let bytes = &self.blobs[blob].bytes;
        let rest = streaming.rest().await;
        got.extend_from_slice(&rest.body);
        assert!(!rest.complete || got == *bytes, "cleanly ended and wrong");
        assert!(self.ever_corrupt || bytes.starts_with(&got), "bytes that are none of the blob");
        assert!(rest.complete || !undisturbed, "nothing was wrong, and it ended after {} of {} bytes", got.len(), bytes.len());
    }

    fn is_held(&self, repository: usize, digest: &str) -> bool {
        let blob = self.blobs.iter().position(|blob| blob.digest == digest);
        blob.is_none_or(|blob| HELD_BY[blob][repository])
    }

    fn size(&self, digest: &str) -> usize {
        let blob = self.blobs.iter().find(|blob| blob.digest == digest);
        blob.map_or(0, |blob| blob.bytes.len())
    }

    /// Only an answer of the upstream to this very repository lets it be read there.
    fn was_asked_for(&self, repository: usize, digest: &str) -> bool {
        let tag = "/manifests/latest";
        let of_it = |path: &str| path.contains(REPOSITORIES[repository]) && (path.ends_with(digest) || path.ends_with(tag));
        self.upstream.requests().iter().any(|request| of_it(&request.path))
    }

    /// The bytes that may lie under a digest.
    pub(super) fn content(&self, digest: &str) -> Option<Bytes> {
        let blobs = self.blobs.iter().map(|blob| (&blob.digest, &blob.bytes));
        let images = self.images.iter().flatten();
        let manifests = images.clone().map(|image| (&image.digest, &image.manifest));
        let configs = images.map(|image| (&image.config.digest, &image.config.bytes));
        blobs.chain(manifests).chain(configs).find(|(known, _)| *known == digest).map(|(_, bytes)| bytes.clone())
    }

    pub(super) fn digests(&self) -> impl Iterator<Item = &str> {
        let manifests = self.images.iter().flatten().map(|image| image.digest.as_str());
        self.blobs.iter().map(|blob| blob.digest.as_str()).chain(manifests)
    }
}

// === what goes wrong upstream ===

impl Ails {
    /// Nothing else is wrong, so that every answer is this one.
    fn saying(lasting: Trouble) -> Self {
        Self { lasting: Some(lasting), ..Self::default() }
    }

    fn is_well(&self) -> bool {
        self.glitches == 0 && !self.corrupt && self.lasting.is_none()
    }
}

impl World {
    fn move_tag(&mut self, repository: usize, version: Option<usize>) {
        let name = REPOSITORIES[repository];
        match version {
            Some(version) => self.upstream.tag(name, "latest", &self.images[repository][version].digest),
            None => self.upstream.untag(name, "latest"),
        }
        let now = self.mirror().clock().now();
        self.tags[repository].moves.push((now, version));
    }

    async fn trouble(&mut self, trouble: Trouble) {
        self.stalled.iter_mut().for_each(|stalled| stalled.undisturbed = false);
        match trouble {
            // As many as a transfer bears without progress.
            Trouble::Glitch { times, .. } if self.ails.glitches + times > 4 => {}
            Trouble::Glitch { after, how, times } => {
                self.ails.glitches += times;
                let transfers = Match::get("/blobs/").times(times);
                match how {
                    Glitch::Cut => self.upstream.on(transfers, Fault::Cut { after }),
                    Glitch::Reset => self.upstream.on(transfers, Fault::Reset { after }),
                    Glitch::Stall => self.upstream.on(transfers, Fault::Stall { after }),
                    Glitch::NoLength => self.upstream.on(transfers, Fault::NoLength),
                    Glitch::IgnoreRange => {
                        self.upstream.on(Match::get("/blobs/").times(1), Fault::Cut { after });
                        self.upstream.on(Match::get("/blobs/").ranged().times(times), Fault::IgnoreRange);
                    }
                }
            }
            Trouble::Corrupt { at } => {
                (self.ails.corrupt, self.ever_corrupt) = (true, true);
                self.upstream.on(Match::get("/blobs/").times(1), Fault::Corrupt { at });
            }
            _ if self.ails.lasting.is_some() => {}
            Trouble::Down => {
                self.ails.lasting = Some(trouble);
                self.upstream.stop().await;
            }
            Trouble::Unavailable => {
                self.ails.lasting = Some(trouble);
                self.upstream.on(Match::any("/v2/"), Fault::status(503));
            }
            Trouble::TooManyRequests => {
                self.ails.lasting = Some(trouble);
                self.upstream.on(Match::any("/v2/"), Fault::answer(429, &[("retry-after", "60")], ""));
            }
        }
    }

    /// Lets all be well upstream, and so much time pass that larder may be expected to have noticed.
    async fn heal(&mut self) {
        self.upstream.heal();
        self.upstream.release();
        if self.ails.lasting == Some(Trouble::Down) {
            self.upstream.restart().await;
        }
        if self.ails.corrupt {
            // What is wrong already is not made right by this.
            self.stalled.clear();
            if self.is_quiet() {
                invariants::quiet(self).await;
            }
        }
        let was_well = self.ails.lasting.is_none();
        self.ails = Ails::default();
        self.mirror().clock().advance(Duration::from_mins(10));
        let now = self.mirror().clock().now();
        if !was_well {
            self.tags.iter_mut().for_each(|tag| tag.well_since = now);
        }
    }
}

// === what goes wrong here ===

impl World {
    fn fail_disk(&mut self, n: usize, how: DiskFault) {
        use rustix::io::Errno;
        self.disk_fails = true;
        self.stalled.iter_mut().for_each(|stalled| stalled.undisturbed = false);
        let fault = match how {
            DiskFault::NoSpace => faults::Fault::Errno(Errno::NOSPC.raw_os_error()),
            DiskFault::Io => faults::Fault::Errno(Errno::IO.raw_os_error()),
            DiskFault::ReadOnly => faults::Fault::Errno(Errno::ROFS.raw_os_error()),
            DiskFault::Short => faults::Fault::Short,
            DiskFault::DieBefore => faults::Fault::DieBefore,
            DiskFault::DieAfter => faults::Fault::DieAfter,
        };
        self.dies |= matches!(how, DiskFault::DieBefore | DiskFault::DieAfter);
        self.mirror().faults().next(n, fault);
    }

    async fn restart(&mut self, stop: Stop) {
        let stopped = self.stop(stop).await;
        self.start(stopped).await;
    }

    async fn stop(&mut self, stop: Stop) -> StoppedMirror {
        self.stalled.clear();
        // What an upstream has asked for is not written down.
        self.ails.leave_alone = None;
        let mirror = self.mirror.take().expect("it runs");
        let stop = if stop == Stop::Clean && mirror.faults().is_dead() { Stop::Kill } else { stop };
        if stop != Stop::Clean {
            mirror.faults().die();
        }
        let (faults, dir) = (mirror.faults().clone(), mirror.cache_dir());
        let held: Vec<PathBuf> = invariants::sound_blobs(&dir, |digest| mirror.holds(digest));
        if stop != Stop::Clean || self.disk_fails {
            // What was recorded may be lost, and is then asked for again.
            self.proven.clear();
        }
        let (mut stopped, _) = mirror.drain().await;
        if let Stop::Power(loss) = stop {
            faults.lose_power(loss);
            fs::write(dir.join("lock"), "1 another-boot\n").unwrap();
        }
        if stop != Stop::Clean {
            stopped = recover_once(stopped).await;
        }
        for path in held {
            assert!(path.exists(), "{} was verified and is gone after {stop:?}", path.display());
        }
        (self.disk_fails, self.dies) = (false, false);
        stopped
    }

    async fn start(&mut self, stopped: StoppedMirror) {
        self.mirror = Some(started(stopped).await);
    }

    async fn damage(&mut self, blob: usize, how: Damage) {
        let stopped = self.stop(Stop::Clean).await;
        let Content { digest, bytes } = &self.blobs[blob];
        let path = invariants::blob_file(&stopped.cache_dir(), digest);
        if path.exists() {
            match how {
                Damage::Gone => fs::remove_file(path).unwrap(),
                Damage::Short => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
                Damage::Empty => fs::write(path, b"").unwrap(),
                Damage::Long => fs::write(path, [&bytes[..], b"x"].concat()).unwrap(),
            }
            self.damaged.insert(digest.clone());
        }
        self.start(stopped).await;
    }
}

/// Starts after a crash and crashes at once: what is then there is what the next start leaves as well.
async fn recover_once(mut stopped: StoppedMirror) -> StoppedMirror {
    let dir = stopped.cache_dir();
    let mut left = Vec::new();
    for _ in 0..2 {
        let mirror = started(stopped).await;
        left.push(invariants::listing(&dir));
        mirror.faults().die();
        stopped = mirror.drain().await.0;
    }
    assert_eq!(left[0], left[1], "recovering twice is recovering once");
    stopped
}

/// The directory may be held for another moment.
async fn started(mut stopped: StoppedMirror) -> TestMirror {
    let began = std::time::Instant::now();
    loop {
        match stopped.try_start().await {
            Ok(mirror) => return mirror,
            Err((error, back)) => {
                assert!(error.contains("holds the cache") && began.elapsed() < PATIENCE, "{error}");
                stopped = back;
                tokio::task::yield_now().await;
            }
        }
    }
}
