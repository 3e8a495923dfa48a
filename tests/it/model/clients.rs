//! What clients want, and whether what they get may be.

use bytes::Bytes;
use futures_util::future::join_all;

use super::trouble::Ails;
use super::world::{HELD_BY, MAX_STALE, REPOSITORIES, SLACK, Stalled, TTL, World};
use crate::support::{Answer, Content, Listener, get_with, partial_file, stream};

impl World {
    /// Whether a client must get what it wants of this blob.
    fn must_have(&self, repository: usize, digest: &str, held: bool) -> bool {
        // A reader that meets a wrong bit may have been given it.
        if self.dies || self.flipped.contains(digest) {
            return false;
        }
        let Ails { glitches, corrupt, lasting, .. } = &self.ails;
        // One trouble is never a client's; of two at a time, with the upstream and with the disk, it may learn.
        let from_upstream = held && !self.offline && !corrupt && lasting.is_none() && (*glitches == 0 || !self.disk_fails);
        let spoilt = self.is_spoilt(digest);
        let known = self.proven.contains(&(repository, digest.to_owned())) && self.mirror().holds(digest);
        let from_cache = known && !self.disk_fails && !self.damaged.contains(digest);
        // A file that cannot be read breaks off the answer that has begun from it.
        (from_upstream && !spoilt && !(self.disk_fails && self.mirror().holds(digest))) || from_cache
    }

    /// What was begun with wrong bytes is found out at its end.
    fn is_spoilt(&self, digest: &str) -> bool {
        self.ever_corrupt && partial_file(&self.mirror().cache_dir(), digest).exists()
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
            assert!(self.may_be_wrong(digest) || expected.starts_with(&answer.body), "bytes that are none of {digest}");
        } else {
            let plausible = match answer.status {
                404 => !held || self.offline,
                status => matches!(status, 429 | 502..=504) || !held && status > 400,
            };
            assert!(plausible, "{} for {digest}: {}", answer.status, answer.text());
        }
        assert!(!must || whole, "{} and {} bytes, {:?}", answer.status, answer.body.len(), answer.headers.get("cache-status"));
        // Of a part of what is not all here by now, the rest may come wrong: then the upstream's word for it is worth nothing either.
        let lasts = expected.len() == self.size(digest) || !self.ever_corrupt || self.mirror().holds(digest);
        if success && whole && lasts {
            self.proven.insert((repository, digest.to_owned()));
        } else {
            self.proven.remove(&(repository, digest.to_owned()));
        }
    }

    /// Before its end, which then does not come. What was begun with wrong bytes outlives the trouble: nobody can tell before
    /// all is there.
    fn may_be_wrong(&self, digest: &str) -> bool {
        self.ever_corrupt || self.flipped.contains(digest)
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

    pub(super) async fn get(&mut self, repository: usize, blob: usize, clients: usize, leaves: Option<usize>) {
        let Content { digest, bytes } = self.blobs[blob].clone();
        let path = format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository]);
        let must = self.must_have(repository, &digest, HELD_BY[blob][repository]);
        let known = self.proven.contains(&(repository, digest.clone())) && self.mirror().holds(&digest);
        let well = self.ails.is_well() && !self.disk_fails && self.stalled.is_empty();
        let spoilt = self.is_spoilt(&digest);
        let asked = self.upstream.count("GET", &digest);
        self.order.may_use(self.mirror.as_ref(), [digest.as_str()]);
        let leaving = async {
            let url = self.mirror().url(&path);
            if let Some(after) = leaves
                && let Some(mut streaming) = self.attempt(stream(url)).await
            {
                let got = if streaming.status == 200 { streaming.take(after).await } else { Bytes::new() };
                assert!(self.may_be_wrong(&digest) || bytes.starts_with(&got), "bytes that are none of {digest}");
            }
        };
        let staying = clients - usize::from(leaves.is_some());
        let (answers, ()) = tokio::join!(join_all((0..staying).map(|_| self.ask(&path, None))), leaving);
        let mut served = Vec::new();
        for answer in answers {
            served.extend(answer.as_ref().and_then(|answer| answer.header("cache-status")).map(ToOwned::to_owned));
            let is_hit = answer.as_ref().is_some_and(|answer| answer.header("cache-status") == Some("larder; hit"));
            self.judge(repository, &digest, must, answer, &bytes);
            if is_hit {
                self.order.used(&digest);
            }
        }
        if well {
            let mut gets = self.upstream.requests();
            gets.retain(|request| {
                request.method == "GET" && request.path.contains(&digest) && request.listener == Listener::Front
            });
            let ranges: Vec<_> = gets[asked..].iter().map(|request| request.headers.get("range").cloned()).collect();
            // A proof is one, what is damaged is fetched anew, and what goes on with wrong bytes once more.
            let most = usize::from(!known) + usize::from(self.damaged.contains(&digest)) + usize::from(spoilt);
            let why =
                ["larder_fills_total{outcome=\"passed\"}", "larder_fill_resumes_total"].map(|name| self.mirror().metric(name));
            assert!(
                ranges.len() <= most,
                "asked for {ranges:?} where {most} would do; {clients} clients: {served:?}; passed on and resumed: {why:?}"
            );
        }
    }

    pub(super) async fn range(&mut self, repository: usize, blob: usize, start: usize, end: usize) {
        let Content { digest, bytes } = self.blobs[blob].clone();
        let (start, end) = (start * bytes.len() / 1000, end * bytes.len() / 1000);
        if start >= end {
            return;
        }
        let must = self.must_have(repository, &digest, HELD_BY[blob][repository]);
        let path = format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository]);
        self.order.may_use(self.mirror.as_ref(), [digest.as_str()]);
        let answer = self.ask(&path, Some(format!("bytes={start}-{}", end - 1))).await;
        if let Some(answer) = answer.as_ref().filter(|answer| answer.status == 206) {
            let range = format!("bytes {start}-{}/{}", end - 1, bytes.len());
            assert_eq!(answer.header("content-range"), Some(range.as_str()));
        }
        // Where nobody says how large a blob is, and there is no room to wait for its end, the range is passed over.
        let passed_over = answer.as_ref().is_some_and(|answer| answer.status == 200);
        assert!(!passed_over || self.disk_fails, "a range is passed over");
        self.judge(repository, &digest, must, answer, if passed_over { &bytes } else { &bytes[start..end] });
    }

    pub(super) async fn head(&mut self, repository: usize, blob: usize) {
        let Content { digest, bytes } = self.blobs[blob].clone();
        let held = HELD_BY[blob][repository];
        let must = held && self.ails.lasting.is_none() && !self.offline;
        self.order.may_use(self.mirror.as_ref(), [digest.as_str()]);
        let answer = self.mirror().head(&format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository])).await;
        if answer.status == 200 {
            assert!(held && self.was_asked_for(repository, &digest));
            assert_eq!(answer.header("content-length"), Some(bytes.len().to_string().as_str()));
        }
        assert!(!must || answer.status == 200, "{}", answer.status);
    }

    pub(super) async fn manifest(&mut self, repository: usize, version: usize) {
        let image = self.images[repository][version].clone();
        let known = self.proven.contains(&(repository, image.digest.clone())) && self.mirror().holds(&image.digest);
        let from_cache = known && !self.disk_fails && !self.damaged.contains(&image.digest);
        let must = !self.dies && (self.ails.lasting.is_none() && !self.offline || from_cache);
        self.may_use_image(repository, version);
        let answer = self.ask(&image.manifest_path(), None).await;
        self.judge(repository, &image.digest, must, answer, &image.manifest);
    }

    pub(super) async fn tag(&mut self, repository: usize, head: bool) {
        let path = format!("/v2/{}/manifests/latest", REPOSITORIES[repository]);
        for version in 0..self.images[repository].len() {
            self.may_use_image(repository, version);
        }
        let kept = self.tags[repository].known.filter(|version| self.is_at_hand(repository, *version));
        let before = self.mirror().clock().now();
        let answer = if head { self.mirror().head(&path).await } else { self.mirror().get(&path).await };
        let after = self.mirror().clock().now();
        let well = self.ails.lasting.is_none() && !self.offline;
        let version = match answer.status {
            200 => {
                let digest = answer.header("docker-content-digest").expect("a digest").to_owned();
                let version = self.images[repository].iter().position(|image| image.digest == digest).expect("a version");
                assert!(head || answer.complete && answer.body == self.images[repository][version].manifest);
                self.tags[repository].known = Some(version);
                if !head {
                    self.proven.insert((repository, digest));
                }
                Some(version)
            }
            404 if self.offline => {
                assert!(kept.is_none(), "it knows {kept:?}");
                return;
            }
            404 => {
                self.tags[repository].known = None;
                None
            }
            status => {
                assert!(!well && matches!(status, 429 | 502..=504), "{status}: {}", answer.text());
                assert!(!self.offline || kept.is_none(), "it knows {kept:?}");
                return;
            }
        };
        let history = &mut self.tags[repository];
        // When it is well it is asked again after its TTL; else the old answer is good for a while, and offline for ever. What
        // was written down before the clock went back looks younger than it is.
        let was_well = well && history.well_since <= before - TTL;
        let oldest = before - SLACK - self.lost - if was_well { TTL } else { MAX_STALE };
        let valid = |n: usize| {
            let until = history.moves.get(n + 1).map_or(after, |(at, _)| *at);
            history.moves[n].1 == version && (self.offline || until >= oldest)
        };
        let found = (history.seen..history.moves.len()).find(|n| valid(*n));
        assert!(found.is_some(), "version {version:?} after {:?} at {before:?}, asked since {oldest:?}", history.moves);
        history.seen = found.unwrap_or_default();
    }

    /// Whether the manifest can be served without asking anyone.
    fn is_at_hand(&self, repository: usize, version: usize) -> bool {
        let digest = &self.images[repository][version].digest;
        let known = self.proven.contains(&(repository, digest.clone())) && self.mirror().holds(digest);
        known && !self.disk_fails && !self.dies && !self.damaged.contains(digest)
    }

    /// Whoever uses a manifest uses what it names.
    fn may_use_image(&mut self, repository: usize, version: usize) {
        let image = &self.images[repository][version];
        let parts = std::iter::once(image.digest.as_str()).chain(image.blobs().map(|blob| blob.digest.as_str()));
        self.order.may_use(self.mirror.as_ref(), parts);
    }

    pub(super) async fn stall(&mut self, repository: usize, blob: usize, after: usize) {
        let Content { digest, bytes } = self.blobs[blob].clone();
        let path = format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository]);
        let must = self.must_have(repository, &digest, HELD_BY[blob][repository]);
        self.order.may_use(self.mirror.as_ref(), [digest.as_str()]);
        let Some(mut streaming) = self.attempt(stream(self.mirror().url(&path))).await else {
            assert!(!must, "no answer for {digest}");
            return;
        };
        if streaming.status != 200 {
            assert!(!must && streaming.status >= 400, "{}", streaming.status);
            return;
        }
        let got = streaming.take(after).await.to_vec();
        assert!(self.may_be_wrong(&digest) || bytes.starts_with(&got));
        if self.stalled.len() == 3 {
            self.stalled.remove(0);
        }
        self.stalled.push(Stalled { blob, streaming, got, undisturbed: must });
    }

    pub(super) async fn resume(&mut self) {
        let Some(Stalled { blob, streaming, mut got, undisturbed }) = self.stalled.pop() else { return };
        let bytes = &self.blobs[blob].bytes;
        let rest = streaming.rest().await;
        got.extend_from_slice(&rest.body);
        assert!(!rest.complete || got == *bytes, "cleanly ended and wrong");
        let digest = &self.blobs[blob].digest;
        assert!(self.ever_corrupt || self.flipped.contains(digest) || bytes.starts_with(&got), "bytes that are none of the blob");
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

    /// All digests, and the bytes that may lie under them.
    pub(super) fn contents(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        let blobs = self.blobs.iter().map(|blob| (&blob.digest, &blob.bytes));
        let images = self.images.iter().flatten();
        let manifests = images.clone().map(|image| (&image.digest, &image.manifest));
        let configs = images.map(|image| (&image.config.digest, &image.config.bytes));
        blobs.chain(manifests).chain(configs).map(|(digest, bytes)| (digest.as_str(), bytes))
    }

    pub(super) fn digests(&self) -> impl Iterator<Item = &str> {
        let manifests = self.images.iter().flatten().map(|image| image.digest.as_str());
        self.blobs.iter().map(|blob| blob.digest.as_str()).chain(manifests)
    }
}
