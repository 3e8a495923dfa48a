//! What clients were served over the last hour, day and month, from where, and what came from upstreams meanwhile: the difference is
//! saved, in a whole span, as what is fetched ahead comes before it goes out.
//!
//! Kept in three rings of sums, and in a small file of lines, which survives restarts. What it lacks after a kill is what came since it
//! was written last, a minute at most. A file that is not what larder writes is set aside, and all begins anew.
//!
//! A clock may be wrong, as that of a board without a battery until the network has told it the time. So what was served after now is
//! not shown, and not forgotten either: it is shown when the clock is right again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::metrics::Metrics;
use crate::store::Text;

use super::Dashboard;

/// How far back one looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    Hour,
    Day,
    Month,
}

/// Numbers that are counted alike, by their names and in their order in the file.
macro_rules! numbers {
    ($(#[$of:meta])* $amounts:ident: $($(#[$doc:meta])* $name:ident,)*) => {
        $(#[$of])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
        pub struct $amounts { $($(#[$doc])* pub $name: u64,)* }

        impl $amounts {
            const NUMBERS: usize = [$(stringify!($name)),*].len();

            fn numbers(self) -> [u64; Self::NUMBERS] {
                [$(self.$name),*]
            }

            fn of([$($name),*]: [u64; Self::NUMBERS]) -> Self {
                Self { $($name),* }
            }
        }
    };
}

numbers! {
    /// What was served in some time.
    Amounts:
    /// Answers, and bytes of them that went out, from the cache;
    here_answers,
    here_bytes,
    /// from an upstream, and kept;
    fetched_answers,
    fetched_bytes,
    /// from an upstream, past the cache.
    past_answers,
    past_bytes,
    refused_answers,
    /// Bytes that came from upstreams, for whomever.
    upstream_bytes,
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

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct History {
    rings: [Ring; 3],
    /// What the counters were when they were looked at last.
    before: Amounts,
}

/// Sums by the number of their step since 1970; only those in which there was something. There are no more up to now than a span has,
/// and no more after it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Ring(BTreeMap<u64, Amounts>);

const HEADER: &str = "larder history 1\n";

// === impl Dashboard ===

impl Dashboard {
    /// What was served, up to now.
    #[must_use]
    pub fn history(&self, span: Span) -> HistoryReport {
        let now = self.sample();
        let piece = |(step, amounts): (&u64, &Amounts)| Piece { at: step * span.step_ms(), amounts: *amounts };
        HistoryReport {
            span: span.word(),
            step_seconds: span.step_ms() / 1000,
            steps: span.steps(),
            now: now.unix_millis(),
            pieces: self.0.history.look(|history| history.rings[span.at()].within(span, now).map(piece).collect()),
        }
    }

    /// What was served within a span up to now, all together.
    pub(super) fn served_within(&self, span: Span) -> Amounts {
        let now = self.0.clock.now();
        self.0.history.look(|history| history.rings[span.at()].sum(span, now))
    }

    /// Adds what the counters have counted since the last look. Returns when that was.
    pub(super) fn sample(&self) -> Timestamp {
        let now = self.0.clock.now();
        self.0.history.change(|history| history.add(Amounts::counted(self.0.mirror.metrics()), now));
        now
    }
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
    /// True if there was something to add.
    fn add(&mut self, counted: Amounts, now: Timestamp) -> bool {
        let more = counted.minus(self.before);
        self.before = counted;
        if more == Amounts::default() {
            return false;
        }
        for span in Span::ALL {
            self.rings[span.at()].add(span, span.step_of(now), more);
        }
        true
    }
}

impl Text for History {
    const NAME: &'static str = "history";

    fn written(&self) -> String {
        let mut text = String::from(HEADER);
        for (span, ring) in Span::ALL.into_iter().zip(&self.rings) {
            for (step, amounts) in &ring.0 {
                // Writing to a string does not fail.
                let _ = write!(text, "{} {step}", span.word());
                amounts.numbers().iter().for_each(|number| _ = write!(text, " {number}"));
                text.push('\n');
            }
        }
        text
    }

    /// If any of it cannot be read, nothing of it is believed.
    fn read(text: &str) -> Option<Self> {
        let mut history = Self::default();
        for line in text.strip_prefix(HEADER)?.lines() {
            let mut words = line.split(' ');
            let span: Span = words.next()?.parse().ok()?;
            let step: u64 = words.next()?.parse().ok()?;
            let mut number = || words.next()?.parse::<u64>().ok();
            let mut numbers = [0; Amounts::NUMBERS];
            for place in &mut numbers {
                *place = number()?;
            }
            let Ring(ring) = &mut history.rings[span.at()];
            let is_next = ring.last_key_value().is_none_or(|(last, _)| *last < step);
            if words.next().is_some() || !is_next || ring.len() as u64 >= 2 * span.steps() {
                return None;
            }
            ring.insert(step, Amounts::of(numbers));
        }
        text.ends_with('\n').then_some(history)
    }
}

// === impl Ring ===

impl Ring {
    /// Adds to what was served in the step that is now.
    fn add(&mut self, span: Span, now: u64, more: Amounts) {
        let Self(ring) = self;
        let sum = ring.entry(now).or_default();
        *sum = sum.plus(more);
        let most = usize::try_from(span.steps()).unwrap_or(usize::MAX);
        while ring.range(..=now).count() > most {
            ring.pop_first();
        }
        while ring.len() > 2 * most {
            ring.pop_last();
        }
    }

    fn sum(&self, span: Span, now: Timestamp) -> Amounts {
        self.within(span, now).fold(Amounts::default(), |sum, (_, amounts)| sum.plus(*amounts))
    }

    fn within(&self, span: Span, now: Timestamp) -> impl Iterator<Item = (&u64, &Amounts)> {
        let now = span.step_of(now);
        self.0.range((now + 1).saturating_sub(span.steps())..=now)
    }
}

// === impl Amounts ===

impl Amounts {
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
        let mut history = History::default();
        history.add(Amounts::of([1, 2, 3, 4, 5, 6, 7, 8]), at(3600));
        history.add(Amounts::of([1, 2, 3, 4, 5, 6, 8, 8]), at(3610));
        assert_eq!(history.written(), GOLDEN);
        assert_eq!(History::read(GOLDEN).map(|read| read.rings), Some(history.rings));
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
            assert_eq!(History::read(&GOLDEN.replacen(from, to, 1)), None, "{from} → {to}");
        }
        (0..GOLDEN.len())
            .filter(|end| !GOLDEN[..*end].ends_with('\n'))
            .for_each(|end| assert_eq!(History::read(&GOLDEN[..end]), None));
        let days = |n: u64| (0..n).fold(String::from(HEADER), |text, n| format!("{text}day {n} 1 2 3 4 5 6 8 8\n"));
        assert!(History::read(&days(576)).is_some() && History::read(&days(577)).is_none(), "nor are there so many");
    }

    fn sum(history: &History, span: Span, now: Timestamp) -> u64 {
        history.rings[span.at()].sum(span, now).here_answers
    }

    #[test]
    fn each_ring_keeps_its_span_and_no_more() {
        let (mut history, mut counted) = (History::default(), 0);
        let start = at(1_000_000_000);
        for minute in 0..40 * 24 * 60 {
            counted += 1;
            history.add(hits(counted), start + Duration::from_mins(minute));
        }
        let now = start + Duration::from_hours(40 * 24);
        for (span, within) in [(Span::Hour, 59..=60), (Span::Day, 1435..=1440), (Span::Month, 31 * 1440 - 120..=31 * 1440)] {
            assert!(history.rings[span.at()].0.len() as u64 <= span.steps());
            assert!(within.contains(&sum(&history, span, now)), "{span:?}: {}", sum(&history, span, now));
        }
        assert_eq!(sum(&history, Span::Hour, now + Duration::from_hours(2)), 0, "nobody was there since");
    }

    #[test]
    fn a_clock_that_was_wrong_for_a_while_takes_nothing() {
        let day = |n: u64| at(20_000 * 86_400) + Duration::from_hours(24 * n);
        let mut history = History::default();
        (0..372).for_each(|n| _ = history.add(hits(n + 1), day(0) + Duration::from_hours(2 * n)));
        let now = day(31);
        let before = sum(&history, Span::Month, now);
        // It began in 1970, and went to the end of the century.
        for (n, wrong) in [at(60), at(70), at(4_000_000_000)].into_iter().enumerate() {
            history = History::read(&history.written()).unwrap();
            assert!(history.add(hits(1), wrong));
            assert_eq!(sum(&history, Span::Month, wrong), [1, 2, 1][n], "what it says itself is shown");
        }
        history.before = Amounts::default();
        history.add(hits(1), now);
        let after = sum(&history, Span::Month, now);
        assert!((before - 2..=before + 1).contains(&after), "{before} and then {after}");
        // However often it is wrong.
        (0..10_000).for_each(|n| {
            history.before = Amounts::default();
            history.add(hits(1), if n % 2 == 0 { day(1_000 + n) } else { now });
        });
        assert!(Span::ALL.iter().all(|span| history.rings[span.at()].0.len() as u64 <= 2 * span.steps()));
    }
}
