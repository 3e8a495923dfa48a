//! Range requests (RFC 9110, section 14), as registry clients use them.

use std::ops::Range;

/// What a `Range` header asks of a representation of known size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ranges {
    /// No range that must be honoured: all of it, with status 200.
    Whole,
    One(Range<u64>),
    /// In the order in which they were asked for, not joined: podman counts the parts.
    Many(Vec<Range<u64>>),
    /// 416
    Unsatisfiable,
    /// 400: podman and stargz then ask for fewer.
    TooMany,
}

/// podman asks for at most this many at once.
const MOST: usize = 1024;

impl Ranges {
    pub(super) fn parse(header: &str, size: u64) -> Self {
        let Some(specs) = header.trim().strip_prefix("bytes=") else { return Self::Whole };
        // An empty blob has no range that could be satisfied, and clients add `bytes=0-` to every request.
        if size == 0 {
            return Self::Whole;
        }
        let specs: Vec<&str> = specs.split(',').map(str::trim).filter(|spec| !spec.is_empty()).collect();
        if specs.is_empty() {
            return Self::Whole;
        }
        if specs.len() > MOST {
            return Self::TooMany;
        }
        let mut ranges = Vec::with_capacity(specs.len());
        for spec in specs {
            match one(spec, size) {
                Ok(range) => ranges.extend(range),
                Err(Broken) => return Self::Whole,
            }
        }
        // Whoever asks for more than all of it may have all of it, once.
        let sum: u64 = ranges.iter().fold(0, |sum, range| sum.saturating_add(range.end - range.start));
        match ranges.len() {
            0 => Self::Unsatisfiable,
            1 => Self::One(ranges.remove(0)),
            _ if sum > size => Self::Whole,
            _ => Self::Many(ranges),
        }
    }
}

struct Broken;

/// One range, clamped to the size; `None` if it lies behind the end.
fn one(spec: &str, size: u64) -> Result<Option<Range<u64>>, Broken> {
    let number =
        |text: &str| if text.bytes().all(|b| b.is_ascii_digit()) { Ok(text.parse().unwrap_or(u64::MAX)) } else { Err(Broken) };
    let (first, last) = spec.split_once('-').ok_or(Broken)?;
    match (first.trim(), last.trim()) {
        ("", "") => Err(Broken),
        ("", suffix) => {
            let length = number(suffix)?.min(size);
            Ok((length > 0).then(|| size - length..size))
        }
        (first, "") => {
            let first = number(first)?;
            Ok((first < size).then_some(first..size))
        }
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            Ok((first < size && first <= last).then(|| first..last.saturating_add(1).min(size)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_means_what_clients_mean_by_it() {
        for (header, ranges) in [
            ("bytes=500-1499", Ranges::One(500..1500)),
            ("bytes=500-", Ranges::One(500..2048)),
            ("bytes=-500", Ranges::One(1548..2048)),
            ("bytes=-5000", Ranges::One(0..2048)),
            ("bytes=2000-5000", Ranges::One(2000..2048)),
            ("bytes=1000-2048", Ranges::One(1000..2048)),
            ("bytes=0-99999999999999999999999", Ranges::One(0..2048)),
            ("bytes=500-0", Ranges::Unsatisfiable),
            ("bytes=5000-10000", Ranges::Unsatisfiable),
            ("bytes=2048-", Ranges::Unsatisfiable),
            ("bytes=-0", Ranges::Unsatisfiable),
            ("bytes=0-1,100-199", Ranges::Many(vec![0..2, 100..200])),
            ("bytes=100-199, 0-1", Ranges::Many(vec![100..200, 0..2])),
            ("bytes=0-1,5000-", Ranges::One(0..2)),
            ("bytes=0-,0-", Ranges::Whole),
            ("items=0-1", Ranges::Whole),
            ("bytes=a-b", Ranges::Whole),
            ("bytes=1", Ranges::Whole),
            ("bytes=-", Ranges::Whole),
            ("bytes=", Ranges::Whole),
        ] {
            assert_eq!(Ranges::parse(header, 2048), ranges, "{header}");
        }
    }

    #[test]
    fn an_empty_blob_is_always_whole() {
        assert_eq!(Ranges::parse("bytes=0-", 0), Ranges::Whole);
        assert_eq!(Ranges::parse("bytes=5-9", 0), Ranges::Whole);
    }

    #[test]
    fn too_many_ranges_are_told_apart_from_broken_ones() {
        let header = |n: u64| format!("bytes={}", (0..n).map(|i| format!("{}-{}", 2 * i, 2 * i)).collect::<Vec<_>>().join(","));
        assert!(matches!(Ranges::parse(&header(1024), 1 << 20), Ranges::Many(ranges) if ranges.len() == 1024));
        assert_eq!(Ranges::parse(&header(1025), 1 << 20), Ranges::TooMany);
    }
}
