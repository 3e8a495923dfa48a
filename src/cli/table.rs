//! How what is told looks to a person: columns, sizes, times.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;

use super::said::plain;

/// Rows in columns with two spaces between them. Those whose title ends in a blank are of numbers, and end flush.
pub(super) fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<Cow<str>>> = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([titles[column].trim_end().len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells = cells.zip(&widths).zip(titles).map(|((cell, width), title)| {
            if title.ends_with(' ') { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut titles.iter().map(|title| title.trim_end()));
    rows.iter().for_each(|row| text += &line(&mut row.iter().map(AsRef::as_ref)));
    text
}

pub(super) fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// The first digits of a digest, as Docker shows them.
pub(super) fn short(digest: &str) -> &str {
    let hex = digest.split(':').nth(1).unwrap_or(digest);
    &hex[..hex.len().min(12)]
}

/// How long ago a date was, in its largest unit.
pub(super) fn ago(date: &str) -> String {
    let since = humantime::parse_rfc3339(date).ok().map(|then| SystemTime::now().duration_since(then).unwrap_or_default());
    let Some(since) = since else { return date.to_owned() };
    let units = [(86_400 * 365, "year"), (86_400 * 7, "week"), (86_400, "day"), (3_600, "hour"), (60, "minute")];
    let unit = units.into_iter().find(|(seconds, _)| since >= Duration::from_secs(*seconds));
    match unit.map(|(seconds, unit)| (since.as_secs() / seconds, unit)) {
        None => "just now".into(),
        Some((1, unit)) => format!("1 {unit} ago"),
        Some((n, unit)) => format!("{n} {unit}s ago"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them_and_numbers_end_flush() {
        let rows = [["a", "1 B"], ["longer", "10 B"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(table(&["IMAGE", "SIZE "], &rows), "IMAGE   SIZE\na        1 B\nlonger  10 B\n");
        assert_eq!(table(&["IMAGE", "SIZE "], &[]), "IMAGE  SIZE\n");
    }

    /// A platform is what an image says that it is for.
    #[test]
    fn no_cell_makes_a_row() {
        let row = [["a\nb", "1 B"].map(String::from).to_vec()];
        assert_eq!(table(&["IMAGE", "SIZE "], &row), "IMAGE  SIZE\na\\nb    1 B\n");
    }

    #[test]
    fn times_and_sizes_are_told_as_people_do() {
        let before =
            |seconds| ago(&humantime::format_rfc3339_seconds(SystemTime::now() - Duration::from_secs(seconds)).to_string());
        for (seconds, told) in [(5, "just now"), (70, "1 minute ago"), (7_300, "2 hours ago"), (86_400 * 15, "2 weeks ago")] {
            assert_eq!(before(seconds), told);
        }
        assert_eq!([size(0), size(1_536), size(3 << 30)], ["0 B", "1.5 KiB", "3.0 GiB"]);
        assert_eq!(short("sha256:e3b0c44298fc1c149afb"), "e3b0c44298fc");
    }
}
