//! The log: lines of text or of JSON on stderr.

use std::cell::RefCell;
use std::fmt::{self, Debug, Write as _};
use std::io::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::app::{LogFormat, LogLevel, LogOptions};
use crate::lines::{Ending, Lines, plain_json};

/// A line of text: when, how bad, where, what, and `name=value` for all else. There is one for each request, so it is written
/// without detours.
struct Line {
    /// The journal of systemd notes when each line came, and takes how bad it is as a number before it.
    journal: bool,
}

/// Lines of JSON that are what a terminal shows of them.
struct Plain<F>(F);

/// What others have said must not end a line, or colour it.
struct Escaped<'a>(&'a mut String);

/// The level of the log, which changes while it is written; `None`: it does not.
pub(super) struct Level(Option<reload::Handle<EnvFilter, Registry>>);

struct Fields<'a> {
    text: &'a mut String,
    result: fmt::Result,
}

/// The time as lines tell it. Thousands are written within one second, whose date is the same.
#[derive(Default)]
struct Moment {
    second: u64,
    /// That second, up to its point.
    shown: String,
}

/// The bytes that stand for themselves between quotes. A look is less than a comparison with each that does not.
static PLAIN: [bool; 256] = {
    let (mut plain, mut byte) = ([false; 256], b' ');
    while byte <= b'~' {
        plain[byte as usize] = byte != b'"' && byte != b'\\';
        byte += 1;
    }
    plain
};

thread_local! {
    /// The line that a thread is at. To put it together here is less work than to hand on each of its parts.
    static LINE: RefCell<String> = const { RefCell::new(String::new()) };
    static MOMENT: RefCell<Moment> = RefCell::default();
}

/// To stderr; levels of single parts may be given in `RUST_LOG`. With the log comes how its level is changed.
///
/// # Errors
/// When there is no thread for it.
pub(super) fn begin(options: &LogOptions) -> Result<(Level, Ending), String> {
    let told = EnvFilter::try_from_default_env().ok();
    let changes = told.is_none();
    let (filter, handle) = reload::Layer::new(told.unwrap_or_else(|| filter(options.level)));
    let (lines, ending) =
        Lines::to("larder-log", out, |_| {}).map_err(|error| format!("there is no thread for the log: {error}"))?;
    let layer = tracing_subscriber::fmt::layer().with_writer(lines);
    let registry = tracing_subscriber::registry().with(filter);
    match options.format {
        LogFormat::Text => registry.with(layer.event_format(Line { journal: is_journal() })).init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true).map_event_format(Plain)).init(),
    }
    Ok((Level(changes.then_some(handle)), ending))
}

/// Whether stderr is what systemd has connected with its journal
/// (<https://www.freedesktop.org/software/systemd/man/latest/systemd.exec.html#%24JOURNAL_STREAM>).
fn is_journal() -> bool {
    let told = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    rustix::fs::fstat(io::stderr()).is_ok_and(|stderr| told == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// There is nobody to tell that it cannot be told.
fn out(text: &[u8], lost: u64) {
    let mut to = io::stderr();
    let _ = to.write_all(text);
    if lost > 0 {
        let lost = format!("larder: {lost} lines of the log are lost: they came faster than they were read\n");
        let _ = to.write_all(lost.as_bytes());
    }
}

fn filter(level: LogLevel) -> EnvFilter {
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    // At debug and below, libraries tell of all that they do, which helps nobody here.
    EnvFilter::new(format!("warn,larder={level},access={level}"))
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

// === impl Level ===

impl Level {
    /// Logs from now on what is at least so bad; where the environment says what is logged, that stays.
    pub(super) fn set(&self, level: LogLevel) {
        // It fails where nobody logs any more.
        let _ = self.0.as_ref().map(|handle| handle.reload(filter(level)));
    }
}

// === impl Line ===

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        // What is shown in a line may itself log, and that line is another one.
        let mut text = LINE.take();
        text.clear();
        let result = self.put(event, &mut text).and_then(|()| writer.write_str(&text));
        LINE.set(text);
        result
    }
}

impl<S, N, F> FormatEvent<S, N> for Plain<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writeln!(writer, "{}", plain_json(line.trim_end()))
    }
}

impl Line {
    fn put(&self, event: &Event<'_>, text: &mut String) -> fmt::Result {
        let about = event.metadata();
        if self.journal {
            write!(text, "<{}>{}:", priority(*about.level()), about.target())?;
        } else {
            MOMENT.with_borrow_mut(|moment| moment.put(SystemTime::now(), text))?;
            text.push_str(word(*about.level()));
            text.push_str(about.target());
            text.push(':');
        }
        let mut fields = Fields { text, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        text.push('\n');
        Ok(())
    }
}

/// In one width.
fn word(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => " ERROR ",
        tracing::Level::WARN => "  WARN ",
        tracing::Level::INFO => "  INFO ",
        tracing::Level::DEBUG => " DEBUG ",
        tracing::Level::TRACE => " TRACE ",
    }
}

/// As syslog numbers them (RFC 5424, section 6.2.1; sd-daemon(3)).
fn priority(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 3,
        tracing::Level::WARN => 4,
        tracing::Level::INFO => 6,
        _ => 7,
    }
}

// === impl Moment ===

impl Moment {
    /// With its microseconds.
    fn put(&mut self, now: SystemTime, text: &mut String) -> fmt::Result {
        let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second != since_1970.as_secs() || self.shown.is_empty() {
            self.second = since_1970.as_secs();
            self.shown.clear();
            write!(self.shown, "{}", humantime::format_rfc3339_seconds(now))?;
            self.shown.pop(); // its Z
        }
        let mut micros = itoa::Buffer::new();
        // A million more, so that there are seven digits, and zeros among them.
        let micros = micros.format(1_000_000 + since_1970.subsec_micros());
        [&self.shown, ".", &micros[1..], "Z"].iter().for_each(|part| text.push_str(part));
        Ok(())
    }
}

// === impl Fields ===

impl Fields<'_> {
    /// What cannot hold anything that must be escaped.
    fn plain(&mut self, field: &Field, parts: &[&str]) {
        self.begin(field);
        parts.iter().for_each(|part| self.text.push_str(part));
    }

    fn escaped(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.begin(field);
        self.result = self.result.and(Escaped(self.text).write_fmt(value));
    }

    /// Its name, and the value follows.
    fn begin(&mut self, field: &Field) {
        self.text.push(' ');
        if field.name() != "message" {
            self.text.push_str(field.name());
            self.text.push('=');
        }
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let is_plain = value.bytes().all(|byte| PLAIN[usize::from(byte)]);
        match field.name() {
            "message" => self.escaped(field, format_args!("{value}")),
            _ if is_plain => self.plain(field, &["\"", value, "\""]),
            _ => self.escaped(field, format_args!("{value:?}")),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, &[itoa::Buffer::new().format(value)]);
    }

    /// With its thousandths: nothing here is measured more closely.
    fn record_f64(&mut self, field: &Field, value: f64) {
        let thousandths = value * 1000.0;
        if (0.0..1e15).contains(&thousandths) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it has just been looked at")]
            let thousandths = thousandths.round() as u64;
            // A thousand more, so that there are four digits, and zeros among them.
            let (mut whole, mut rest) = (itoa::Buffer::new(), itoa::Buffer::new());
            let (whole, rest) = (whole.format(thousandths / 1000), rest.format(1000 + thousandths % 1000));
            self.plain(field, &[whole, ".", &rest[1..]]);
        } else {
            self.escaped(field, format_args!("{value}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.escaped(field, format_args!("{value:?}"));
    }
}

// === impl Escaped ===

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.bytes().all(|byte| (b' '..0x7f).contains(&byte)) {
            self.0.push_str(text);
            return Ok(());
        }
        for shown in text.chars() {
            if shown.is_control() { self.0.extend(shown.escape_default()) } else { self.0.push(shown) }
        }
        Ok(())
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

    fn text(line: Line, log: impl FnOnce()) -> String {
        let page = Page::default();
        let writer = page.clone();
        let lines = tracing_subscriber::fmt().event_format(line).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(lines, log);
        String::from_utf8(page.0.lock().expect("nobody panics").clone()).expect("text")
    }

    /// What is logged, without the time.
    fn line(log: impl FnOnce()) -> String {
        let text = text(Line { journal: false }, log);
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
    fn the_time_of_a_line_is_to_the_microsecond() {
        let (mut moment, mut text) = (Moment::default(), String::new());
        for (seconds, nanos) in [(0, 1_000), (0, 999_999_999), (951_782_400, 0), (951_782_400, 120_300_000), (0, 5_000)] {
            let now = UNIX_EPOCH + std::time::Duration::new(seconds, nanos);
            text.clear();
            moment.put(now, &mut text).expect("text");
            assert_eq!(text, humantime::format_rfc3339_micros(now).to_string());
        }
    }

    #[test]
    fn the_journal_is_told_how_bad_a_line_is_and_no_time() {
        let said = text(Line { journal: true }, || {
            tracing::info!(target: "access", bytes = 10, "done");
            tracing::error!(target: "larder", "it fails");
        });
        assert_eq!(said, "<6>access: done bytes=10\n<3>larder: it fails\n");
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
