//! What commands say to a person. Nobody need be there to hear it, and what others have written does nothing to a terminal.

use std::borrow::Cow;
use std::io::Write as _;
use std::sync::LazyLock;

use indicatif::MultiProgress;

use crate::lines::misleads;

/// The bars on the terminal, if stderr is one. Lines are said above them.
pub(super) static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// A line.
pub(super) fn say(line: &str) {
    put(&format!("{}\n", plain(line)));
}

/// Text as it is, on standard output.
pub(super) fn put(text: &str) {
    let _ = BARS.suspend(|| std::io::stdout().write_all(text.as_bytes()));
}

/// A line that is no result.
pub(super) fn note(line: &str) {
    let _ = BARS.suspend(|| writeln!(std::io::stderr(), "{}", plain(line)));
}

/// A line about what went wrong, or what is to be known.
pub(super) fn warn(line: &str) {
    note(&format!("larder: {line}"));
}

/// Text without what a terminal would obey, or what would make it look like other text.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(misleads) {
        return text.into();
    }
    text.chars().map(|c| if misleads(c) { c.escape_default().to_string() } else { c.to_string() }).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(plain("linux/amd64 — ü"), "linux/amd64 — ü");
        assert_eq!(plain("\u{1b}[2J\u{9b}1m\u{202e}x\r\n\t"), r"\u{1b}[2J\u{9b}1m\u{202e}x\r\n\t");
    }
}
