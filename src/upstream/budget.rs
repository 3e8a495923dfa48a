//! What an account may still ask of a registry that counts.
//!
//! Docker Hub counts GETs of manifests, and tells with each answer about one how many are left:
//! `RateLimit-Limit: 100;w=21600`, `RateLimit-Remaining: 76;w=21600` (<https://docs.docker.com/docker-hub/usage/pulls/>).
//! Others say 429 without a warning.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};

use crate::clock::Timestamp;

/// The state of one account's dealings with one registry.
#[derive(Debug, Default)]
pub(super) struct Budget {
    counted: Option<Counted>,
    /// No manifest is asked for before.
    pulls_from: Timestamp,
    /// Nothing is asked before.
    all_from: Timestamp,
}

/// What the registry has told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counted {
    limit: u64,
    remaining: u64,
    window: Duration,
    /// Whom the registry counts: an address, or an account.
    source: Option<String>,
    seen: Timestamp,
    /// When the window was first seen.
    began: Timestamp,
    resets: Option<Timestamp>,
}

/// What is left of an account's budget, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetReport {
    /// The account's name, as far as larder knows it; no secret.
    pub account: String,
    /// GETs of manifests within the window.
    pub limit: u64,
    pub remaining: u64,
    pub window: Duration,
    /// Whom the registry counts, in its own words.
    pub source: Option<String>,
    /// When the registry told this.
    pub seen: Timestamp,
    /// When there is a budget again, if there is none now.
    pub resets: Option<Timestamp>,
}

/// What a request costs where something is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Manifests: a GET is counted, a HEAD is refused along with it.
    Pull,
    Blob,
    List,
}

/// A registry that limits the rate and does not say for how long.
const COOL_DOWN: Duration = Duration::from_secs(30);
/// One that says that it is over already.
const SHORTEST_COOL_DOWN: Duration = Duration::from_secs(1);
/// However long it says.
const LONGEST_COOL_DOWN: Duration = Duration::from_mins(10);
/// A budget is waited for as long as its registry says; but no registry makes one wait longer than a day.
const LONGEST_WINDOW: Duration = Duration::from_hours(24);

// === impl Purpose ===

impl Purpose {
    /// For metrics.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Pull => "manifest",
            Self::Blob => "blob",
            Self::List => "list",
        }
    }
}

// === impl Budget ===

impl Budget {
    /// Whether something may be asked at `now`.
    ///
    /// # Errors
    /// From when on.
    pub(super) fn admit(&self, purpose: Purpose, now: Timestamp) -> Result<(), Timestamp> {
        let from = match purpose {
            Purpose::Pull => self.all_from.max(self.pulls_from),
            Purpose::Blob | Purpose::List => self.all_from,
        };
        if now < from { Err(from) } else { Ok(()) }
    }

    /// Takes notice of an answer. `Err`: it limits the rate, and nothing is to be asked before then.
    ///
    /// # Errors
    /// From when on.
    pub(super) fn note(
        &mut self,
        purpose: Purpose,
        status: StatusCode,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<(), Timestamp> {
        if let Some(counted) = Counted::of(headers, now, self.counted.as_ref()) {
            if counted.remaining > 0 {
                self.pulls_from = Timestamp::default();
            } else {
                // Nothing is left; what is asked now could only be refused.
                self.pulls_from = counted.resets.unwrap_or(counted.began + counted.window);
            }
            self.counted = Some(counted);
        }
        if status != StatusCode::TOO_MANY_REQUESTS {
            return Ok(());
        }
        let told = retry_after(headers);
        let used_up = purpose == Purpose::Pull && headers.contains_key(REMAINING) && self.pulls_from > now;
        match told {
            Some(told) if used_up && !told.is_zero() => self.pulls_from = now + told.min(LONGEST_WINDOW),
            _ if used_up => {}
            _ => self.all_from = now + cool_down(headers),
        }
        Err(self.all_from.max(self.pulls_from))
    }

    /// What is left, of 1; `None` where nothing is counted.
    pub(super) fn share(&self, now: Timestamp) -> Option<f64> {
        let counted = self.counted.as_ref()?;
        if self.admit(Purpose::Pull, now).is_err() {
            return Some(0.0);
        }
        // After the window nothing is known any more.
        if now.since(counted.seen) > counted.window || counted.limit == 0 {
            return None;
        }
        let [remaining, limit] = [counted.remaining, counted.limit].map(|n| f64::from(u32::try_from(n).unwrap_or(u32::MAX)));
        Some((remaining / limit).min(1.0))
    }

    pub(super) fn report(&self, account: String, now: Timestamp) -> Option<BudgetReport> {
        let Counted { limit, remaining, window, source, seen, .. } = self.counted.clone()?;
        let resets = Some(self.pulls_from).filter(|from| now < *from);
        // As above.
        if resets.is_none() && now.since(seen) > window {
            return None;
        }
        Some(BudgetReport { account, limit, remaining, window, source, seen, resets })
    }
}

// === impl Counted ===

const LIMIT: &str = "ratelimit-limit";
const REMAINING: &str = "ratelimit-remaining";

impl Counted {
    fn of(headers: &HeaderMap, now: Timestamp, before: Option<&Self>) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let (remaining, window) = amount(text(REMAINING)?)?;
        let (limit, limit_window) = text(LIMIT).and_then(amount).unwrap_or((remaining, None));
        let window = window.or(limit_window).unwrap_or(LONGEST_COOL_DOWN).min(LONGEST_WINDOW);
        // Much more is left than before: another window has begun. A little more says an answer that was overtaken.
        let most = |before: &Self| before.remaining.saturating_add(limit / 10);
        let same = before.filter(|before| remaining <= most(before) && now.since(before.began) < before.window);
        let resets = text("ratelimit-reset").and_then(|text| text.trim().parse().ok()).map(|reset| reset_in(reset, now));
        let source = text("docker-ratelimit-source").map(|source| source.chars().take(64).collect());
        Some(Self {
            limit,
            remaining,
            window,
            source,
            seen: now,
            began: same.map_or(now, |before| before.began),
            resets: resets.filter(|wait| !wait.is_zero()).map(|wait| now + wait.min(LONGEST_WINDOW)),
        })
    }
}

/// Seconds from now, or as GitLab has it, since 1970.
fn reset_in(reset: u64, now: Timestamp) -> Duration {
    let date = Timestamp::from_unix_millis(reset.saturating_mul(1000));
    if reset > LONGEST_WINDOW.as_secs() { date.since(now) } else { Duration::from_secs(reset) }
}

/// `76;w=21600` as 76 in six hours.
fn amount(text: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = text.split([';', ',']).map(str::trim);
    let amount = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok()).map(Duration::from_secs);
    Some((amount, window))
}

/// For how long who has answered 429 is left alone.
pub(super) fn cool_down(headers: &HeaderMap) -> Duration {
    retry_after(headers).unwrap_or(COOL_DOWN).clamp(SHORTEST_COOL_DOWN, LONGEST_COOL_DOWN)
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: StatusCode = StatusCode::OK;
    const LIMITED: StatusCode = StatusCode::TOO_MANY_REQUESTS;
    const HOUR: Duration = Duration::from_hours(1);

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn told(remaining: u64) -> HeaderMap {
        headers(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", &format!("{remaining};w=21600"))])
    }

    #[test]
    fn what_is_left_is_read_from_the_headers() {
        let (mut budget, now) = (Budget::default(), Timestamp::default());
        assert_eq!(budget.share(now), None);
        assert_eq!(budget.note(Purpose::Pull, OK, &told(25), now), Ok(()));
        assert_eq!(budget.share(now), Some(0.25));
        assert_eq!(budget.note(Purpose::Blob, OK, &HeaderMap::new(), now), Ok(()));
        assert_eq!(budget.share(now), Some(0.25), "an answer without the headers says nothing");
        assert_eq!(budget.share(now + HOUR * 7), None, "and what was said is forgotten when the window is over");
    }

    #[test]
    fn with_nothing_left_no_manifest_is_asked_for_before_the_window_ends() {
        let (mut budget, start) = (Budget::default(), Timestamp::default() + HOUR);
        assert!(budget.note(Purpose::Pull, OK, &told(2), start).is_ok());
        assert!(budget.note(Purpose::Pull, OK, &told(0), start + HOUR).is_ok());
        let reset = start + HOUR * 6;
        assert_eq!(budget.admit(Purpose::Pull, start + HOUR * 2), Err(reset));
        assert_eq!(budget.admit(Purpose::Blob, start + HOUR * 2), Ok(()), "the layers of what was allowed");
        assert_eq!(budget.admit(Purpose::Pull, reset), Ok(()));
        assert!(budget.note(Purpose::Pull, OK, &told(99), reset).is_ok());
        assert_eq!(budget.share(reset), Some(0.99));
    }

    #[test]
    fn answers_that_overtake_each_other_begin_no_window() {
        let (mut budget, start) = (Budget::default(), Timestamp::default() + HOUR);
        for (remaining, hours) in [(50, 0), (40, 1), (42, 1), (41, 1), (0, 2)] {
            assert!(budget.note(Purpose::Pull, OK, &told(remaining), start + HOUR * hours).is_ok());
        }
        assert_eq!(budget.admit(Purpose::Pull, start + HOUR * 2), Err(start + HOUR * 6));
        let mut another = Budget::default();
        for (remaining, hours) in [(5, 0), (99, 5), (0, 6)] {
            assert!(another.note(Purpose::Pull, OK, &told(remaining), start + HOUR * hours).is_ok());
        }
        assert_eq!(another.admit(Purpose::Pull, start + HOUR * 6), Err(start + HOUR * 11));
    }

    #[test]
    fn a_reset_is_told_in_seconds_from_now_or_since_1970() {
        let now = Timestamp::from_unix_millis(1_900_000_000_000);
        let minute = Duration::from_mins(1);
        for (reset, wait) in [("60", minute), ("1900000060", minute), ("1800000000", HOUR * 6), ("0", HOUR * 6)] {
            let mut budget = Budget::default();
            let pairs = [(REMAINING, "0;w=21600"), ("ratelimit-reset", reset)];
            assert!(budget.note(Purpose::Pull, OK, &headers(&pairs), now).is_ok());
            assert_eq!(budget.admit(Purpose::Pull, now), Err(now + wait), "{reset}");
        }
    }

    #[test]
    fn a_refusal_says_for_how_long() {
        let now = Timestamp::default() + HOUR;
        for (purpose, pairs, pulls, all) in [
            (Purpose::Blob, &[][..], COOL_DOWN, COOL_DOWN),
            (Purpose::Pull, &[("retry-after", "120")], Duration::from_mins(2), Duration::from_mins(2)),
            (Purpose::Pull, &[("retry-after", "86400")], LONGEST_COOL_DOWN, LONGEST_COOL_DOWN),
            (Purpose::Pull, &[("retry-after", "0")], SHORTEST_COOL_DOWN, SHORTEST_COOL_DOWN),
            (Purpose::Pull, &[("retry-after", "0"), (REMAINING, "0;w=21600")], HOUR * 6, Duration::ZERO),
            (Purpose::Pull, &[("retry-after", "7200"), (REMAINING, "0;w=21600")], HOUR * 2, Duration::ZERO),
            (Purpose::Pull, &[(REMAINING, "0;w=21600")], HOUR * 6, Duration::ZERO),
            (Purpose::Pull, &[(REMAINING, "0;w=21600"), ("ratelimit-reset", "60")], Duration::from_mins(1), Duration::ZERO),
            (Purpose::Pull, &[(REMAINING, "7;w=21600")], COOL_DOWN, COOL_DOWN),
        ] {
            let mut budget = Budget::default();
            let until = budget.note(purpose, LIMITED, &headers(pairs), now).unwrap_err();
            assert_eq!(until, now + pulls.max(all), "{pairs:?}");
            assert_eq!(budget.admit(Purpose::Pull, now).err(), Some(now + pulls), "{pairs:?}");
            assert_eq!(budget.admit(Purpose::Blob, now).err(), Some(now + all).filter(|_| !all.is_zero()), "{pairs:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let retry_after = |text| retry_after(&headers(&[("retry-after", text)]));
        assert_eq!(retry_after("120"), Some(Duration::from_mins(2)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after("soon"), None);
    }
}
