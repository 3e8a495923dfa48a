//! What clients were served over the last hour, day and month, from where, and what came from upstreams meanwhile: the difference is
//! saved, in a whole span, as what is fetched ahead comes before it goes out.
//!
//! Kept in three rings of sums, and in a small file of lines, which survives restarts. What it lacks after a kill is what came since it
//! was written last, a minute at most. A file that is not what larder writes is set aside, and all begins anew.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::clock::Timestamp;
use crate::metrics::Metrics;

use super::Dashboard;

/// How far back one looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    Hour,
    Day,
    Month,
}

/// What was served in some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Amounts {
    /// Answers, and bytes of them that went out, from the cache;
    pub here_answers: u64,
    pub here_bytes: u64,
    /// from an upstream, and kept;
    pub fetched_answers: u64,
    pub fetched_bytes: u64,
    /// from an upstream, past the cache.
    pub past_answers: u64,
    pub past_bytes: u64,
    pub refused_answers: u64,
    /// Bytes that came from upstreams, for whomever.
    pub upstream_bytes: u64,
}

/// A span, piece by piece. Where nothing was served, there is no piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HistoryReport {
    pub span: &'static str,
    /// How long a piece is, and how many there are at most: the last of them is now.
    pub step_seconds: u64,
    pub steps: u64,
    /// When this was told, in milliseconds since 1970.
    pub now: u64,
    pub pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// When it began, in milliseconds since 1970.
    pub at: u64,
    #[serde(flatten)]
    pub amounts: Amounts,
}

#[derive(Default)]
pub(super) struct History(Mutex<State>);

#[derive(Default)]
struct State {
    rings: [Ring; 3],
    /// What the counters were when they were looked at last.
    before: Amounts,
    /// The rings have changed since they were written.
    dirty: bool,
}

/// Sums by the number of their step since 1970, in order; only those in which there was something.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Ring(VecDeque<(u64, Amounts)>);

const NAME: &str = "history";
const HEADER: &str = "larder history 1\n";

// === impl Dashboard ===

impl Dashboard {
    /// What was served, up to now.
    #[must_use]
    pub fn history(&self, span: Span) -> HistoryReport {
        let now = self.sample();
        let state = self.0.history.lock();
        let pieces = state.rings[span.at()].within(span, now);
        HistoryReport {
            span: span.word(),
            step_seconds: span.step_ms() / 1000,
            steps: span.steps(),
            now: now.unix_millis(),
            pieces: pieces.map(|(step, amounts)| Piece { at: step * span.step_ms(), amounts: *amounts }).collect(),
        }
    }

    /// What was served within a span up to now, all together.
    pub(super) fn served_within(&self, span: Span) -> Amounts {
        let now = self.0.clock.now();
        let state = self.0.history.lock();
        state.rings[span.at()].within(span, now).fold(Amounts::default(), |sum, (_, amounts)| sum.plus(*amounts))
    }

    /// Adds what the counters have counted since the last look. Returns when that was.
    pub(super) fn sample(&self) -> Timestamp {
        let now = self.0.clock.now();
        self.0.history.lock().add(Amounts::counted(self.0.mirror.metrics()), now);
        now
    }

    pub(super) async fn recall_history(&self) {
        let read = match self.0.store.text(NAME).await {
            Ok(None) => return,
            Ok(Some(text)) => read(&text, self.0.clock.now()).ok_or_else(|| "it is not what larder has written".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(rings) => self.0.history.lock().rings = rings,
            Err(why) => {
                let aside = self.0.store.set_text_aside(NAME).await.err().map(|error| error.to_string());
                tracing::warn!(why, aside, "the file `history` cannot be used; it is set aside as history.damaged");
            }
        }
    }

    pub(super) async fn keep_history(&self) {
        self.sample();
        let text = {
            let mut state = self.0.history.lock();
            if !std::mem::take(&mut state.dirty) {
                return;
            }
            written(&state.rings)
        };
        if let Err(error) = self.0.store.set_text(NAME, text).await {
            self.0.history.lock().dirty = true;
            tracing::warn!(%error, "what was served could not be written down");
        }
    }
}

fn written(rings: &[Ring; 3]) -> String {
    let mut text = String::from(HEADER);
    for (span, ring) in Span::ALL.into_iter().zip(rings) {
        for (step, amounts) in &ring.0 {
            // Writing to a string does not fail.
            let _ = write!(text, "{} {step}", span.word());
            amounts.numbers().iter().for_each(|number| _ = write!(text, " {number}"));
            text.push('\n');
        }
    }
    text
}

/// `None` if any of it cannot be read: then nothing of it is believed. What is dated after `now` was written by a clock that was wrong.
fn read(text: &str, now: Timestamp) -> Option<[Ring; 3]> {
    let mut rings = <[Ring; 3]>::default();
    for line in text.strip_prefix(HEADER)?.lines() {
        let mut words = line.split(' ');
        let span: Span = words.next()?.parse().ok()?;
        let step: u64 = words.next()?.parse().ok()?;
        let mut number = || words.next()?.parse::<u64>().ok();
        let mut numbers = [0; Amounts::NUMBERS];
        for place in &mut numbers {
            *place = number()?;
        }
        if words.next().is_some() || rings[span.at()].0.back().is_some_and(|(last, _)| *last >= step) {
            return None;
        }
        if step <= span.step_of(now) {
            rings[span.at()].add(span, step, Amounts::of(numbers));
        }
    }
    text.ends_with('\n').then_some(rings)
}

// === impl Span ===

impl Span {
    const ALL: [Self; 3] = [Self::Hour, Self::Day, Self::Month];

    fn at(self) -> usize {
        self as usize
    }

    fn word(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    fn step_ms(self) -> u64 {
        1000 * match self {
            Self::Hour => 10,
            Self::Day => 5 * 60,
            Self::Month => 2 * 60 * 60,
        }
    }

    /// How many make the span: a month is 31 days.
    fn steps(self) -> u64 {
        match self {
            Self::Hour => 360,
            Self::Day => 288,
            Self::Month => 372,
        }
    }

    fn step_of(self, at: Timestamp) -> u64 {
        at.unix_millis() / self.step_ms()
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = Self::ALL.into_iter().find(|span| span.word() == text);
        span.ok_or_else(|| "say for which span: hour, day or month".into())
    }
}

// === impl History ===

impl History {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn add(&mut self, counted: Amounts, now: Timestamp) {
        let more = counted.minus(self.before);
        self.before = counted;
        if more == Amounts::default() {
            return;
        }
        for span in Span::ALL {
            self.rings[span.at()].add(span, span.step_of(now), more);
        }
        self.dirty = true;
    }
}

// === impl Ring ===

impl Ring {
    fn add(&mut self, span: Span, step: u64, more: Amounts) {
        match self.0.back_mut() {
            Some((last, amounts)) if *last >= step => *amounts = amounts.plus(more),
            _ => self.0.push_back((step, more)),
        }
        while self.0.front().is_some_and(|(first, _)| first + span.steps() <= step) {
            self.0.pop_front();
        }
    }

    fn within(&self, span: Span, now: Timestamp) -> impl Iterator<Item = &(u64, Amounts)> {
        let last = span.step_of(now);
        self.0.iter().filter(move |(step, _)| step + span.steps() > last)
    }
}

// === impl Amounts ===

impl Amounts {
    const NUMBERS: usize = 8;

    /// All that was counted since the start.
    fn counted(metrics: &Metrics) -> Self {
        let mut all = Self { upstream_bytes: metrics.fetched_bytes(), ..Self::default() };
        for (served, answers, bytes) in metrics.answers() {
            let (of_answers, of_bytes) = match served {
                "hit" | "revalidated" | "stale" | "offline" => (&mut all.here_answers, &mut all.here_bytes),
                "miss" | "joined" => (&mut all.fetched_answers, &mut all.fetched_bytes),
                "bypass" => (&mut all.past_answers, &mut all.past_bytes),
                "refused" => (&mut all.refused_answers, &mut 0),
                _ => continue,
            };
            *of_answers += answers;
            *of_bytes += bytes;
        }
        all
    }

    /// As they stand in the file.
    fn numbers(self) -> [u64; Self::NUMBERS] {
        let Self {
            here_answers,
            here_bytes,
            fetched_answers,
            fetched_bytes,
            past_answers,
            past_bytes,
            refused_answers,
            upstream_bytes,
        } = self;
        [here_answers, here_bytes, fetched_answers, fetched_bytes, past_answers, past_bytes, refused_answers, upstream_bytes]
    }

    fn of(numbers: [u64; Self::NUMBERS]) -> Self {
        let [here_answers, here_bytes, fetched_answers, fetched_bytes, past_answers, past_bytes, refused_answers, upstream_bytes] =
            numbers;
        Self {
            here_answers,
            here_bytes,
            fetched_answers,
            fetched_bytes,
            past_answers,
            past_bytes,
            refused_answers,
            upstream_bytes,
        }
    }

    fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    fn minus(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    fn with(self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        let (mut numbers, others) = (self.numbers(), other.numbers());
        numbers.iter_mut().zip(others).for_each(|(number, other)| *number = join(*number, other));
        Self::of(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// When this changes, so must the version in the header.
    const GOLDEN: &str = "larder history 1\nhour 360 1 2 3 4 5 6 7 8\nhour 361 0 0 0 0 0 0 1 0\nday 12 1 2 3 4 5 6 8 8\n\
        month 0 1 2 3 4 5 6 8 8\n";

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_millis(seconds * 1000)
    }

    fn hits(n: u64) -> Amounts {
        Amounts { here_answers: n, ..Amounts::default() }
    }

    #[test]
    fn the_format_is_what_it_was() {
        let mut state = State::default();
        state.add(Amounts::of([1, 2, 3, 4, 5, 6, 7, 8]), at(3600));
        state.add(Amounts::of([1, 2, 3, 4, 5, 6, 8, 8]), at(3610));
        assert_eq!(written(&state.rings), GOLDEN);
        assert_eq!(read(GOLDEN, at(3610)), Some(state.rings));
    }

    #[test]
    fn what_larder_has_not_written_is_not_believed() {
        for (from, to) in [
            ("history 1", "history 2"),
            ("hour 360 1", "hour 360 x"),
            ("hour 361", "hour 359"),
            ("month", "year"),
            (" 8\nmonth", "\nmonth"),
            ("8 8\nmonth", "8 8 8\nmonth"),
            ("\nday", "\n\nday"),
        ] {
            assert!(GOLDEN.contains(from), "{from}");
            assert_eq!(read(&GOLDEN.replacen(from, to, 1), at(3610)), None, "{from} → {to}");
        }
        (0..GOLDEN.len())
            .filter(|end| !GOLDEN[..*end].ends_with('\n'))
            .for_each(|end| assert_eq!(read(&GOLDEN[..end], at(3610)), None));
    }

    #[test]
    fn each_ring_keeps_its_span_and_no_more() {
        let (mut state, mut counted) = (State::default(), 0);
        let start = at(1_000_000_000);
        for minute in 0..40 * 24 * 60 {
            counted += 1;
            state.add(hits(counted), start + Duration::from_mins(minute));
        }
        let now = start + Duration::from_hours(40 * 24);
        for (span, within) in [(Span::Hour, 59..=60), (Span::Day, 1435..=1440), (Span::Month, 31 * 1440 - 120..=31 * 1440)] {
            let ring = &state.rings[span.at()];
            assert!(ring.0.len() as u64 <= span.steps());
            let sum: u64 = ring.within(span, now).map(|(_, amounts)| amounts.here_answers).sum();
            assert!(within.contains(&sum), "{span:?}: {sum}");
        }
        assert!(state.rings[0].within(Span::Hour, now + Duration::from_hours(2)).next().is_none(), "nobody was there since");
    }

    #[test]
    fn what_a_wrong_clock_has_written_is_passed_over() {
        let rings = read(GOLDEN, at(3600)).unwrap();
        assert_eq!(rings[0].0, [(360, Amounts::of([1, 2, 3, 4, 5, 6, 7, 8]))]);
    }
}
