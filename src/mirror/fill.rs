//! Fills: one per digest, however many clients; it outlives them all.

mod interest;
mod running;
#[cfg(all(test, feature = "schedules"))]
mod schedules;

use std::sync::Arc;

use crate::oci::Digest;
use crate::store::{BlobWriter, Finished, Kind};
use crate::sync::start_task;
use crate::upstream::{self, BlobAnswer, Body, Span, pause};

use super::{Mirror, Origin, Refusal, Thing};

use running::{Begun, Fill, Head};

pub(super) use interest::Interest;
pub(super) use running::{Fills, Joined};

/// How a stretch of transfer ended.
enum Stretch {
    Complete,
    Broken(upstream::Error),
    /// Nobody wants it, or larder stops.
    Stopped,
}

/// A broken transfer is taken up again as often as it has brought this much since the last time.
const PROGRESS: u64 = 1 << 20;
/// Without progress, so often.
const TRIES: u32 = 5;
/// Before the first byte, so often: a client waits, and has other registries to ask.
const FIRST_TRIES: u32 = 2;

// === impl Mirror ===

impl Mirror {
    /// Joins the fill of `digest`, or starts one on behalf of `origin`. `anew`: although the cache has the blob, as it cannot
    /// be read.
    pub(super) fn join_fill(&self, origin: &Origin, digest: &Digest, anew: bool) -> Joined {
        let cached = || !anew && self.0.store.size(digest).is_some();
        let (joined, started) = self.0.fills.join(origin, digest, cached);
        if let Some(landing) = started {
            let mirror = self.clone();
            start_task(self.0.tasks.track_future(async move { mirror.run_fill(landing.fill()).await }));
        }
        joined
    }

    async fn run_fill(&self, fill: &Arc<Fill>) {
        let mut writer = self.0.store.begin(fill.digest.clone()).await;
        let mut body = match self.begin_fill(fill, &mut writer).await {
            Ok(body) => body,
            Err(error) => {
                self.note_failure(&fill.origin, Thing::Blob(fill.digest.clone()), &error);
                self.0.metrics.fill_ended("failed");
                fill.head.send_replace(Head::Failed(error.into()));
                return writer.suspend(false).await;
            }
        };
        let mut tries = 0;
        loop {
            let before = writer.accepted();
            match self.transfer(fill, &mut writer, body).await {
                Stretch::Complete => return self.finish_fill(fill, writer).await,
                Stretch::Stopped => {
                    tracing::info!(digest = %fill.digest, at = writer.accepted(), "a fill stops");
                    self.0.metrics.fill_ended("stopped");
                    return leave(fill, writer, self.0.stopping.is_cancelled()).await;
                }
                Stretch::Broken(error) => {
                    tries = if writer.accepted() - before >= PROGRESS { 0 } else { tries + 1 };
                    tracing::warn!(digest = %fill.digest, at = writer.accepted(), %error, "a transfer broke");
                    if tries > TRIES {
                        tracing::error!(digest = %fill.digest, at = writer.accepted(), "a fill is given up");
                        self.0.metrics.fill_ended("given_up");
                        return leave(fill, writer, false).await;
                    }
                }
            }
            body = loop {
                match self.resume(fill, &mut writer, tries).await {
                    Ok(resumed) => {
                        self.0.metrics.fill_resumed();
                        break resumed;
                    }
                    Err(error) if tries >= TRIES || error.is_definitive() || self.0.stopping.is_cancelled() => {
                        tracing::error!(digest = %fill.digest, at = writer.accepted(), %error, "a fill is given up");
                        self.0.metrics.fill_ended("given_up");
                        return leave(fill, writer, false).await;
                    }
                    Err(_) => tries += 1,
                }
            };
        }
    }

    /// Asks for the blob, from where an earlier fill stopped, and tells those who wait how large it is.
    async fn begin_fill(&self, fill: &Arc<Fill>, writer: &mut BlobWriter) -> Result<Body, upstream::Error> {
        // The last byte is asked for again: the upstream's answer to it proves that the repository has the blob.
        let start = writer.accepted().saturating_sub(1);
        let mut span = (start > 0).then_some(Span { start, end: None });
        let mut tries = 0;
        let (size, cache_status, body) = loop {
            let error = match fill.ask(span).await {
                Ok(BlobAnswer { offset, size, cache_status, body }) if offset == start && start > 0 => {
                    match skip(body, 1, writer).await {
                        Ok(body) => break (size, cache_status, body),
                        Err(error) => error,
                    }
                }
                Ok(BlobAnswer { size, cache_status, body, .. }) => {
                    if writer.accepted() > 0 {
                        writer.restart().await;
                    }
                    break (size, cache_status, body);
                }
                // The blob ends before that byte, so the bytes are not its own.
                Err(upstream::Error::Unsupported(416)) if span.is_some() => {
                    span = None;
                    continue;
                }
                Err(error) => error,
            };
            let worth_it = matches!(error, upstream::Error::Unavailable { timed_out: false, .. });
            if tries == FIRST_TRIES || !worth_it || fill.origin.ask().is_in_vain() {
                return Err(error);
            }
            pause(tries).await;
            tries += 1;
        };
        if let Some(size) = size {
            self.set_proof(&fill.origin.repository, &fill.digest, size, None);
            writer.expect(size).await;
        }
        let bypass = writer.bypassed().map(ToString::to_string);
        fill.head.send_replace(Head::Begun(Begun { growth: writer.growth(), bypass, cache_status }));
        Ok(body)
    }

    /// Moves bytes from `body` to `writer` until one of them ends.
    async fn transfer(&self, fill: &Arc<Fill>, writer: &mut BlobWriter, mut body: Body) -> Stretch {
        let mut permit = None;
        loop {
            if writer.is_too_long() {
                return Stretch::Complete;
            }
            // Nobody goes far for nobody, nor for what is not kept.
            let little = writer.missing().is_none_or(|bytes| bytes <= self.0.options.orphan_bytes.as_u64());
            let worth_it = little && writer.bypassed().is_none();
            if !self.0.fills.may_go_on(fill, worth_it, &mut permit) && self.0.fills.close(fill) {
                return Stretch::Stopped;
            }
            tokio::select! {
                () = self.0.stopping.cancelled() => return Stretch::Stopped,
                () = fill.abandoned() => {}
                () = writer.progress(), if writer.is_busy() => {}
                chunk = body.chunk(), if !writer.is_full() => match chunk {
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

    async fn resume(&self, fill: &Arc<Fill>, writer: &mut BlobWriter, tries: u32) -> Result<Body, upstream::Error> {
        if tries > 0 {
            tokio::select! {
                () = pause(tries) => {}
                () = self.0.stopping.cancelled() => return Err(upstream::Error::Offline),
            }
        }
        let at = writer.accepted();
        let answer = fill.ask(Some(Span { start: at, end: None })).await?;
        match answer.offset {
            offset if offset == at => Ok(answer.body),
            // It ignores ranges. Should the bytes passed over differ from those we have, the digest will tell.
            _ => skip(answer.body, at, writer).await,
        }
    }

    async fn finish_fill(&self, fill: &Arc<Fill>, writer: BlobWriter) {
        let size = writer.accepted();
        // Before anyone sees the end: who comes back for the blob then need not ask.
        self.set_proof(&fill.origin.repository, &fill.digest, size, None);
        let finished = writer.finish().await;
        self.0.metrics.fill_ended(finished.word());
        match finished {
            Finished::Kept => {}
            Finished::Passed(why) => tracing::warn!(digest = %fill.digest, %why, "a blob was passed on and not kept"),
            Finished::Mismatch => {
                // What it said of the blob is worth as little as what it sent.
                self.0.store.remove_proof(&fill.origin.repository, &fill.digest, Kind::Blob);
                let upstream = &fill.origin.repository.upstream;
                self.0.metrics.digest_mismatched(upstream);
                tracing::error!(%upstream, repository = %fill.origin.repository.name, digest = %fill.digest, size,
                    "the upstream sent other bytes than the digest promises; nothing of them is kept");
            }
        }
    }
}

/// Ends in the middle. What has come is left for the next fill, unless that could not trust it.
async fn leave(fill: &Fill, writer: BlobWriter, durable: bool) {
    if fill.origin.registry.anyones { writer.discard().await } else { writer.suspend(durable).await }
}

/// Passes over `bytes` of `body`. What comes with the last of them is pushed.
async fn skip(mut body: Body, mut bytes: u64, writer: &mut BlobWriter) -> Result<Body, upstream::Error> {
    while bytes > 0 {
        let Some(mut chunk) = body.chunk().await? else {
            return Err(upstream::Error::ended_early());
        };
        let passed = chunk.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        let rest = chunk.split_off(passed);
        bytes -= passed as u64;
        if !rest.is_empty() {
            writer.push(rest);
        }
    }
    Ok(body)
}

// === impl Fill ===

impl Fill {
    async fn ask(&self, span: Option<Span>) -> Result<BlobAnswer, upstream::Error> {
        self.origin.ask().blob(&self.digest, span).await
    }
}
