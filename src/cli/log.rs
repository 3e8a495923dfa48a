//! The log: lines of text or of JSON on stderr.

mod lines;

use std::fmt::{self, Debug, Write as _};
use std::io;
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::app::{LogFormat, LogLevel, LogOptions};

use lines::{Ending, Lines};

/// A line of text: when, how bad, where, what, and `name=value` for all else. There is one for each request, so it is written
/// without detours.
struct Line;

/// What others have said must not end a line, or colour it.
struct Escaped<'a, 'b>(&'a mut Writer<'b>);

struct Fields<'a> {
    writer: Writer<'a>,
    result: fmt::Result,
}

/// To stderr; levels of single parts may be given in `RUST_LOG`.
///
/// # Errors
/// When there is no thread for it.
pub(super) fn begin(options: &LogOptions) -> Result<Ending, String> {
    let level = match options.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    // At debug and below, libraries tell of all that they do, which helps nobody here.
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("warn,larder={level},access={level}")));
    let (lines, ending) = Lines::to(io::stderr()).map_err(|error| format!("there is no thread for the log: {error}"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines);
    match options.format {
        LogFormat::Text => lines.event_format(Line).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(ending)
}

// === impl Line ===

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let about = event.metadata();
        let now = humantime::format_rfc3339_micros(SystemTime::now());
        write!(writer, "{now} {:>5} {}:", about.level().as_str(), about.target())?;
        let mut fields = Fields { writer: writer.by_ref(), result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        writer.write_char('\n')
    }
}

// === impl Fields ===

impl Fields<'_> {
    /// What cannot hold anything that must be escaped.
    fn plain(&mut self, field: &Field, before: &str, value: &str, after: &str) {
        self.begun(field, |writer| [before, value, after].iter().try_for_each(|part| writer.write_str(part)));
    }

    fn escaped(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.begun(field, |writer| Escaped(writer).write_fmt(value));
    }

    fn number(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.begun(field, |writer| writer.write_fmt(value));
    }

    /// The name, and what `value` writes.
    fn begun(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        self.result = self.result.and_then(|()| {
            self.writer.write_str(" ")?;
            if field.name() != "message" {
                self.writer.write_str(field.name())?;
                self.writer.write_str("=")?;
            }
            value(&mut self.writer)
        });
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let is_plain = value.bytes().all(|byte| (byte.is_ascii_graphic() || byte == b' ') && !matches!(byte, b'"' | b'\\'));
        match field.name() {
            "message" => self.escaped(field, format_args!("{value}")),
            _ if is_plain => self.plain(field, "\"", value, "\""),
            _ => self.escaped(field, format_args!("{value:?}")),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.number(field, format_args!("{value}"));
    }

    /// With its thousandths: nothing here is measured more closely.
    fn record_f64(&mut self, field: &Field, value: f64) {
        let thousandths = value * 1000.0;
        if (0.0..1e15).contains(&thousandths) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it has just been looked at")]
            let thousandths = thousandths.round() as u64;
            self.number(field, format_args!("{}.{:03}", thousandths / 1000, thousandths % 1000));
        } else {
            self.number(field, format_args!("{value}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.escaped(field, format_args!("{value:?}"));
    }
}

// === impl Escaped ===

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.bytes().all(|byte| (b' '..0x7f).contains(&byte)) {
            return self.0.write_str(text);
        }
        let mut rest = text;
        while let Some(at) = rest.find(char::is_control) {
            let (plain, control) = rest.split_at(at);
            let mut after = control.chars();
            self.0.write_str(plain)?;
            after.next().iter().try_for_each(|control| write!(self.0, "{}", control.escape_default()))?;
            rest = after.as_str();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged, without the time.
    fn line(log: impl FnOnce()) -> String {
        let page = Page::default();
        let writer = page.clone();
        let lines = tracing_subscriber::fmt().event_format(Line).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(lines, log);
        let text = String::from_utf8(page.0.lock().expect("nobody panics").clone()).expect("text");
        let (time, rest) = text.split_once(' ').expect("a time");
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
        rest.to_owned()
    }

    #[test]
    fn a_line_has_what_happened_and_each_field_by_its_name() {
        let said = line(|| tracing::info!(target: "access", kind = "blob", bytes = 10, ms = 0.5, why = None::<&str>, "done"));
        assert_eq!(said, " INFO access: done kind=\"blob\" bytes=10 ms=0.500\n");
        let said = line(|| tracing::warn!(target: "larder", path = "a \"b\"", error = %"no", found = ?Some(1), "it {}", "fails"));
        assert_eq!(said, " WARN larder: it fails path=\"a \\\"b\\\"\" error=no found=Some(1)\n");
    }

    #[test]
    fn what_others_say_ends_no_line_and_colours_none() {
        let evil = "a\r\n2026-01-01 INFO access: \u{1b}[31mred\u{9b}";
        let shown = "a\\r\\n2026-01-01 INFO access: \\u{1b}[31mred\\u{9b}";
        assert_eq!(line(|| tracing::error!(target: "larder", why = %evil)), format!("ERROR larder: why={shown}\n"));
        assert_eq!(line(|| tracing::error!(target: "larder", "{evil}")), format!("ERROR larder: {shown}\n"));
        assert_eq!(line(|| tracing::error!(target: "larder", why = evil)), format!("ERROR larder: why=\"{shown}\"\n"));
    }
}
