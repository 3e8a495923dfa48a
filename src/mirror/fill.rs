//! Fills: of an upstream one per digest, however many clients; it outlives them all.

mod beside;
mod brought;
mod interest;
mod running;
#[cfg(all(test, feature = "schedules"))]
mod schedules;
mod segments;
mod tries;

use std::sync::Arc;

use crate::oci::{Digest, Hasher};
use crate::store::{BlobWriter, Finished, Kind};
use crate::sync::start_task;
use crate::upstream::{self, BlobAnswer, Body, Found, Source, Span, pause};

use super::{Mirror, Origin, Refusal, Thing};

use beside::Beside;
use running::{Begun, Fill, Head};
use segments::Segments;

pub(super) use interest::{For, Interest};
pub use running::Underway;
pub(super) use running::{Fills, Joined};
pub(super) use tries::Tries;

/// What a fill begins with.
struct Start {
    writer: BlobWriter,
    /// `None`: there turned out to be less than it goes on from.
    body: Option<Body>,
    beside: Beside,
}

/// How a stretch of transfer ended.
enum Stretch {
    Complete,
    Broken(upstream::Error),
    /// Nobody wants it, or larder stops.
    Stopped,
}

/// What became of taking a transfer up again.
enum Resumed {
    GoesOn(Box<Body>),
    /// What the upstream has now begins with other bytes than those that have come, which hash to this.
    Differs(Digest),
}

/// Who sent what there is of a blob.
struct Senders {
    /// An earlier fill has left some of it.
    earlier: bool,
    now: Vec<Source>,
}

/// A broken transfer is taken up again so often without progress.
const TRIES: u32 = 5;
/// Before the first byte, so often: a client waits, and has other registries to ask.
const FIRST_TRIES: u32 = 2;

// === impl Mirror ===

impl Mirror {
    /// Joins the fill of `digest`, or starts one on behalf of `origin`. `anew`: although the cache has the blob, as it cannot
    /// be read.
    pub(super) fn join_fill(&self, origin: &Origin, digest: &Digest, what_for: For, anew: bool) -> Joined {
        // The last fill may have come to its end since the caller looked.
        let settled = || {
            let missing = self.check_missing(origin, Thing::Blob(digest.clone())).is_err();
            missing || !anew && self.0.store.size(digest).is_some()
        };
        let (joined, started) = self.0.fills.join(origin, digest, what_for, settled);
        if let Some(landing) = started {
            let mirror = self.clone();
            start_task(self.0.tasks.track_future(async move { mirror.run_fill(landing.fill()).await }));
        }
        joined
    }

    async fn run_fill(&self, fill: &Arc<Fill>) {
        // Where the bytes were wrong, once more from the beginning.
        for last in [false, true] {
            if !self.fill_once(fill, last).await {
                return;
            }
        }
    }

    /// Returns true if the bytes were wrong and are to be fetched anew, which those who wait have been told.
    async fn fill_once(&self, fill: &Arc<Fill>, last: bool) -> bool {
        let Start { mut writer, body: mut goes_on, mut beside } = match self.begin_fill(fill).await {
            Ok(Some(begun)) => begun,
            Err(error) if !self.0.stopping.is_cancelled() => {
                self.note_failure(&fill.origin, Thing::Blob(fill.digest.clone()), &error);
                self.fill_ended(fill, "failed");
                fill.head.send_replace(Head::Failed(error.into()));
                return false;
            }
            Ok(None) | Err(_) => {
                self.stop_fill(fill, None).await;
                return false;
            }
        };
        let mut senders = Senders { earlier: writer.accepted() > 0, now: Vec::new() };
        let mut tries = Tries::new(TRIES, self.0.options.fill_timeout, writer.accepted());
        loop {
            let body = match goes_on.take() {
                Some(body) => body,
                None => {
                    match self.unless_stopping(self.resume(fill, &mut writer, &mut beside, tries.in_vain())).await.flatten() {
                        Ok(Resumed::GoesOn(body)) => {
                            self.0.metrics.fill_resumed();
                            *body
                        }
                        Ok(Resumed::Differs(found)) => {
                            self.0.metrics.resume_mismatched();
                            return self.reject(fill, writer, found, &Senders { earlier: true, ..senders }, last).await;
                        }
                        // Without anyone it does not stand in line.
                        Err(upstream::Error::Left) => {
                            if self.0.fills.close(fill) {
                                self.stop_fill(fill, Some(writer)).await;
                                return false;
                            }
                            continue;
                        }
                        Err(error) => {
                            if error.is_final() || self.0.stopping.is_cancelled() || !tries.failed() {
                                self.give_up(fill, writer, &error).await;
                                return false;
                            }
                            continue;
                        }
                    }
                }
            };
            let mut segments = Segments::new(fill, body, writer.accepted(), self.0.options.blob_connections);
            let stretch = self.transfer(fill, &mut writer, &mut segments, &mut beside).await;
            senders.now.extend(segments.into_sources());
            match stretch {
                Stretch::Complete => return self.finish_fill(fill, writer, &senders, last).await,
                Stretch::Stopped => {
                    self.stop_fill(fill, Some(writer)).await;
                    return false;
                }
                Stretch::Broken(error) => {
                    tracing::info!(digest = %fill.digest, at = writer.accepted(), %error, "a transfer broke");
                    if !tries.broke(writer.accepted(), writer.size()) {
                        self.give_up(fill, writer, &error).await;
                        return false;
                    }
                }
            }
        }
    }

    /// Nobody wants it any more, or larder stops.
    async fn stop_fill(&self, fill: &Fill, writer: Option<BlobWriter>) {
        tracing::info!(digest = %fill.digest, at = writer.as_ref().map_or(0, BlobWriter::accepted), "a fill stops");
        if let Some(writer) = writer {
            writer.suspend().await;
        }
        self.fill_ended(fill, "stopped");
    }

    async fn give_up(&self, fill: &Fill, writer: BlobWriter, error: &upstream::Error) {
        tracing::error!(digest = %fill.digest, at = writer.accepted(), %error, "a fill is given up");
        self.note_broken_off(&fill.origin, error);
        writer.suspend().await;
        self.fill_ended(fill, "given_up");
    }

    fn fill_ended(&self, fill: &Fill, how: &'static str) {
        self.0.metrics.fill_ended(how);
        fill.span(|span| span.text("larder.outcome", || how));
    }

    /// Asks for the blob, from where an earlier fill stopped, and tells those who wait how large it is. Nothing is opened before the
    /// upstream has said yes: what clients make up, and what waits in line, costs no file; and what takes as long as reading again what is
    /// left of a blob tells nobody who may not have it that some is here. What it answers is noted whoever has left meanwhile: what is said
    /// to who comes next does not tell whether the bytes are here. `None`: it was not asked, as nobody wants the blob any more.
    async fn begin_fill(&self, fill: &Arc<Fill>) -> Result<Option<Start>, upstream::Error> {
        self.unless_stopping(self.0.store.counted()).await?;
        let sender = &fill.origin.repository.upstream;
        let start = self.0.store.left_from(sender, &fill.digest).saturating_sub(1);
        let answer = loop {
            match self.ask_patiently(&fill.origin, || fill.begin(start)).await {
                Err(upstream::Error::Left) if self.0.fills.close(fill) => return Ok(None),
                // Someone has come since.
                Err(upstream::Error::Left) => {}
                answer => break answer?,
            }
        };
        let BlobAnswer { offset, found: Found { size, cache_status, .. }, body } = answer;
        let mut writer = self.0.store.begin_from(sender, fill.digest.clone(), offset).await;
        if let Some(size) = size {
            self.note_begun(&fill.origin, &fill.digest, size);
            writer.expect(size).await;
        }
        let (mut body, mut beside) = ((writer.accepted() == offset).then_some(body), Beside::new(fill, writer.growth()));
        // While there is still time for a status.
        if writer.bypassed().is_some() && beside.take().is_err() {
            // Others have its place meanwhile.
            drop(body.take());
            self.unless_stopping(beside.wait()).await.flatten()?;
        }
        let bypass = writer.bypassed().map(ToString::to_string);
        fill.head.send_replace(Head::Begun(Begun { growth: writer.growth(), bypass, cache_status }));
        Ok(Some(Start { writer, body, beside }))
    }

    /// Asks once more where that is worth it: a client waits, and has other registries to ask.
    pub(super) async fn ask_patiently<T, F>(&self, origin: &Origin, ask: impl Fn() -> F) -> Result<T, upstream::Error>
    where
        F: Future<Output = Result<T, upstream::Error>>,
    {
        let mut tries = 0;
        loop {
            let error = match self.unless_stopping(ask()).await.flatten() {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let worth_it = matches!(error, upstream::Error::Unavailable { timed_out: false, .. });
            if tries == FIRST_TRIES || !worth_it || origin.ask().is_in_vain() {
                return Err(error);
            }
            self.unless_stopping(pause(tries)).await?;
            tries += 1;
        }
    }

    /// What an upstream that is silent has to say is not waited for when larder stops.
    async fn unless_stopping<T>(&self, answer: impl Future<Output = T>) -> Result<T, upstream::Error> {
        tokio::select! {
            answer = answer => Ok(answer),
            () = self.0.stopping.cancelled() => Err(upstream::Error::Offline),
        }
    }

    /// Moves bytes to `writer` until one of them ends.
    async fn transfer(&self, fill: &Arc<Fill>, writer: &mut BlobWriter, body: &mut Segments, beside: &mut Beside) -> Stretch {
        let (mut permit, mut company) = (None, fill.company.watch());
        // Nobody tells it but the first answer.
        let size = writer.size();
        loop {
            if writer.is_too_long() {
                return Stretch::Complete;
            }
            if writer.bypassed().is_some()
                && let Err(error) = beside.take()
            {
                return Stretch::Broken(error);
            }
            // Nobody goes far for nobody, nor for what is not kept.
            let little = writer.missing().is_none_or(|bytes| bytes <= self.0.options.orphan_bytes.as_u64());
            let worth_it = little && writer.bypassed().is_none();
            if !self.0.fills.may_go_on(fill, worth_it, &mut permit) && self.0.fills.close(fill) {
                return Stretch::Stopped;
            }
            tokio::select! {
                () = self.0.stopping.cancelled() => return Stretch::Stopped,
                () = company.changed() => {}
                () = beside.lost() => {}
                () = writer.progress(), if writer.is_busy() => {}
                chunk = body.chunk(size), if !writer.is_full() => match chunk {
                    Ok(Some(bytes)) => writer.push(bytes),
                    Ok(None) if writer.is_short() => {
                        return Stretch::Broken(upstream::Error::ended_early());
                    }
                    Ok(None) => return Stretch::Complete,
                    Err(error) => return Stretch::Broken(error),
                },
            }
        }
    }

    /// Asks for the rest; and where only the whole is to be had, or a wrong part, makes sure that it begins with what has come.
    async fn resume(
        &self,
        fill: &Fill,
        writer: &mut BlobWriter,
        beside: &mut Beside,
        in_vain: u32,
    ) -> Result<Resumed, upstream::Error> {
        if in_vain > 0 {
            pause(in_vain).await;
        }
        if writer.bypassed().is_some() {
            beside.wait().await?;
        }
        let (at, size) = (writer.accepted(), writer.size());
        let other_size = |told: Option<u64>| told.is_some() && size.is_some() && told != size;
        let mut whole = match fill.ask(Some(Span { start: at, end: None })).await {
            Ok(answer) if answer.offset == at && !other_size(answer.found.size) => {
                return Ok(Resumed::GoesOn(Box::new(answer.body)));
            }
            Ok(answer) if answer.offset == 0 => answer,
            Ok(_) | Err(upstream::Error::Unsupported(206 | 416)) => fill.ask(None).await?,
            Err(error) => return Err(error),
        };
        let here = writer.digest_so_far().await;
        if other_size(whole.found.size) {
            return Ok(Resumed::Differs(here));
        }
        let mut there = Hasher::new(fill.digest.algorithm());
        whole.body.pass_over(at, |bytes| there.update(bytes)).await?;
        let same = here == there.finish();
        Ok(if same { Resumed::GoesOn(Box::new(whole.body)) } else { Resumed::Differs(here) })
    }

    /// Returns true if the bytes were wrong and are to be fetched anew.
    async fn finish_fill(&self, fill: &Fill, mut writer: BlobWriter, senders: &Senders, last: bool) -> bool {
        let found = writer.digest_so_far().await;
        if writer.is_too_long() || found != fill.digest {
            return self.reject(fill, writer, found, senders, last).await;
        }
        // Before anyone sees the end: who comes back for the blob then need not ask.
        self.set_proof(&fill.origin.repository, &fill.digest, writer.accepted(), None);
        let finished = writer.finish().await;
        self.fill_ended(fill, finished.word());
        match finished {
            Finished::Kept => {}
            Finished::Passed(why) => tracing::warn!(digest = %fill.digest, %why, "a blob was passed on and not kept"),
            // It is what it was a moment ago.
            Finished::Mismatch => self.0.store.remove_proof(&fill.origin.repository, &fill.digest, Kind::Blob),
        }
        false
    }

    /// The bytes are not the blob's, or not all of one: nothing of them is kept. True if they are to be fetched anew, where it
    /// may make a difference: from another address, or without what was here from before.
    async fn reject(&self, fill: &Fill, writer: BlobWriter, found: Digest, senders: &Senders, last: bool) -> bool {
        // What the upstream said of the blob is worth as little as what it sent.
        self.0.store.remove_proof(&fill.origin.repository, &fill.digest, Kind::Blob);
        let upstream = &fill.origin.repository.upstream;
        fill.origin.upstream().note_mismatch();
        self.note_wrong_bytes(&fill.origin);
        tracing::error!(%upstream, repository = %fill.origin.repository.name, digest = %fill.digest, %found, size = writer.accepted(),
            "the upstream sent other bytes than the digest promises; nothing of them is kept");
        senders.now.iter().for_each(|sender| sender.gave_wrong_bytes(&fill.digest));
        let anew = !last && (senders.earlier || fill.origin.ask().has_another(&fill.digest));
        if anew {
            // Before the bytes are gone: who was given none of them waits for the others.
            fill.head.send_replace(Head::Waiting);
        }
        writer.discard().await;
        if !anew {
            self.fill_ended(fill, "mismatch");
        }
        anew
    }
}

// === impl Fill ===

impl Fill {
    /// Asks for what follows on the byte at `start`, or for all of it: the body begins at the answer's offset. That byte is asked for again
    /// where something is here already: the upstream's answer to it proves that the repository has the blob.
    async fn begin(&self, start: u64) -> Result<BlobAnswer, upstream::Error> {
        let mut answer = match self.ask((start > 0).then_some(Span { start, end: None })).await {
            // Another part; or the blob ends before that byte, so that the bytes are not its own.
            Err(upstream::Error::Unsupported(206 | 416)) if start > 0 => self.ask(None).await?,
            answer => answer?,
        };
        if answer.offset > 0 {
            answer.body.pass_over(1, |_| {}).await?;
            answer.offset += 1;
        }
        Ok(answer)
    }

    async fn ask(&self, span: Option<Span>) -> Result<BlobAnswer, upstream::Error> {
        self.origin.ask().blob(&self.digest, span).await
    }
}
