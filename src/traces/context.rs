//! Which trace, and which span of it: <https://www.w3.org/TR/trace-context/>.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) type TraceId = u128;
pub(super) type SpanId = u64;

/// A span of a trace. Neither ID is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
}

/// What a client says of the trace that it has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) context: Context,
    /// It is told by who has begun it.
    pub(super) sampled: bool,
}

pub(super) fn new_trace() -> TraceId {
    u128::from(random()) << 64 | u128::from(random())
}

pub(super) fn new_span() -> SpanId {
    random()
}

/// By what others as well decide which traces are told: the second half of the ID, which is random.
pub(super) fn rank(trace: TraceId) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "that half")]
    let half = trace as u64;
    half
}

/// What nobody has had before, and is not 0. It need not be hard to guess.
fn random() -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    KEYS.hash_one(NUMBER.fetch_add(1, Ordering::Relaxed)).max(1)
}

/// `traceparent`; `None` where it is none. Of a version that is not known yet, the part that all share.
pub(super) fn parse(text: &str) -> Option<Told> {
    let mut parts = text.splitn(5, '-');
    let [version, trace, span, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
    let hex = |text: &str, length: usize| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        (text.len() == length && digits).then(|| u128::from_str_radix(text, 16).ok()).flatten()
    };
    let version = hex(version, 2).filter(|version| *version != 0xff)?;
    if version == 0 && parts.next().is_some() {
        return None;
    }
    let trace = hex(trace, 32).filter(|trace| *trace != 0)?;
    let span = hex(span, 16).and_then(|span| u64::try_from(span).ok()).filter(|span| *span != 0)?;
    Some(Told { context: Context { trace, span }, sampled: hex(flags, 2)? & 1 == 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_says_is_taken_where_it_is_well_formed() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let context = Context { trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, span: 0xb7ad_6b71_6920_3331 };
        for (text, sampled) in [
            (format!("00-{trace}-b7ad6b7169203331-01"), true),
            (format!("00-{trace}-b7ad6b7169203331-03"), true),
            (format!("00-{trace}-b7ad6b7169203331-00"), false),
            (format!("cc-{trace}-b7ad6b7169203331-01-what-comes"), true),
        ] {
            assert_eq!(parse(&text), Some(Told { context, sampled }), "{text}");
        }
        let zeros = "0".repeat(32);
        for text in [
            String::new(),
            "-".repeat(55),
            format!("ff-{trace}-b7ad6b7169203331-01"),
            format!("00-{zeros}-b7ad6b7169203331-01"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{trace}-b7ad6b7169203331"),
            format!("00-{trace}-b7ad6b7169203331-01-more"),
            format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()),
            format!("00-{trace}-b7ad6b716920333é-01"),
            format!("00-+{}-b7ad6b7169203331-01", &trace[1..]),
        ] {
            assert_eq!(parse(&text), None, "{text}");
        }
    }

    #[test]
    fn no_two_are_the_same() {
        let mut ids: Vec<u64> = (0..1000).map(|_| new_span()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert!(ids.len() == 1000 && !ids.contains(&0));
    }
}
