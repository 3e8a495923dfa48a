//! The audit log: who has had what, and what an operator has had done. A line of JSON for each; nobody waits for it.

use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use crate::lines::{Lines, plain_json};
use crate::orders::{Order, Reports};

/// Where that is told, if anywhere. Clones tell it there as well.
#[derive(Clone, Default)]
pub struct Audit(Option<Lines>);

/// One access of a client, as it ended. What is not known is left out.
#[derive(Serialize)]
pub(super) struct Access<'a> {
    /// Whence it came: address and port, or what a proxy that is believed says of it.
    pub(super) client: &'a str,
    /// As whom it is known here, or to the upstream whose credentials it brought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<&'a str>,
    /// The name in the certificate that it has shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<&'a str>,
    pub(super) method: &'a str,
    pub(super) kind: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) upstream: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) repository: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) reference: &'a str,
    /// What a tag has led to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<&'a str>,
    /// None: the client has left before.
    pub(super) status: Option<u16>,
    pub(super) served: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<&'a str>,
    pub(super) bytes: u64,
    pub(super) end: &'a str,
}

/// An order, told when it has ended, however it does.
pub(super) struct Ordered {
    audit: Audit,
    began: SystemTime,
    by: String,
    order: &'static str,
    what: Vec<String>,
    more: usize,
    /// Where its reports go, as far as it has come.
    reports: Reports,
    /// Beside those that its reports tell of.
    failed: u64,
    done: bool,
}

#[derive(Serialize)]
struct Line<'a, T> {
    /// When it was asked for.
    time: &'a str,
    event: &'a str,
    #[serde(flatten)]
    of: &'a T,
}

#[derive(Serialize)]
struct OrderLine<'a> {
    by: &'a str,
    order: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    what: &'a [String],
    #[serde(skip_serializing_if = "is_none")]
    more: usize,
    /// How many of them could not be done.
    failed: u64,
    end: &'a str,
}

/// So many of the things that an order is about are told. It may be about ten thousands.
const MOST_TOLD: usize = 100;
/// And so much of what each is called.
const LONGEST: usize = 512;

// === impl Audit ===

impl Audit {
    pub(crate) fn to(lines: Lines) -> Self {
        Self(Some(lines))
    }

    pub(super) fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// `took`: how long ago it was asked for.
    pub(super) fn accessed(&self, took: Duration, access: &Access<'_>) {
        self.tell("access", SystemTime::now() - took, access);
    }

    /// An order has come, from whom it says.
    pub(super) fn ordered(&self, by: String, order: &Order, reports: &Reports) -> Ordered {
        let named = order.about();
        let short = |name: &String| name.chars().take(LONGEST).collect();
        Ordered {
            audit: self.clone(),
            began: SystemTime::now(),
            by,
            order: order.word(),
            what: named.iter().take(MOST_TOLD).map(short).collect(),
            more: named.len().saturating_sub(MOST_TOLD),
            reports: reports.clone(),
            failed: 0,
            done: false,
        }
    }

    fn tell(&self, event: &str, at: SystemTime, of: &impl Serialize) {
        let Some(mut lines) = self.0.as_ref() else { return };
        let mut line = Vec::with_capacity(512);
        let time = humantime::format_rfc3339_millis(at).to_string();
        let told = Line { time: &time, event, of }.serialize(&mut Serializer::with_formatter(&mut line, Plain));
        line.push(b'\n');
        // What it is made of has words for keys, and whoever is to write it never fails: it counts what it loses.
        let _ = told.map(|()| lines.write(&line));
    }
}

// === impl Ordered ===

impl Ordered {
    /// It was carried out to its end.
    pub(super) fn done(mut self) {
        self.done = true;
    }

    /// Likewise, and came to nothing.
    pub(super) fn failed(mut self) {
        self.failed = 1;
        self.done();
    }
}

impl Drop for Ordered {
    fn drop(&mut self) {
        let end = if self.done { "complete" } else { "broken_off" };
        let failed = self.reports.failed() + self.failed;
        let line = OrderLine { by: &self.by, order: self.order, what: &self.what, more: self.more, failed, end };
        self.audit.tell("order", self.began, &line);
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives it so")]
fn is_none(number: &usize) -> bool {
    *number == 0
}

/// JSON of which a terminal shows what it says: what would end a line, colour it or turn it round is escaped as well.
struct Plain;

// === impl Plain ===

impl Formatter for Plain {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        writer.write_all(plain_json(fragment).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// What is told, without the time.
    fn told(tell: impl FnOnce(&Audit)) -> Vec<String> {
        let (send, told) = channel();
        let (lines, ending) =
            Lines::to("test", move |text, _| _ = send.send(String::from_utf8(text.to_vec()).unwrap()), |_| {}).unwrap();
        tell(&Audit::to(lines));
        drop(ending);
        let text: String = told.try_iter().collect();
        let line = |line: &str| {
            let rest = line.strip_prefix("{\"time\":\"20").unwrap_or_else(|| panic!("{line}"));
            rest.split_once("Z\",").unwrap().1.to_owned()
        };
        text.lines().map(line).collect()
    }

    fn access() -> Access<'static> {
        Access {
            client: "10.0.0.7:4000",
            user: None,
            certificate: None,
            method: "GET",
            kind: "blob",
            upstream: "",
            repository: "",
            reference: "",
            digest: None,
            status: Some(200),
            served: "hit",
            why: None,
            bytes: 7,
            end: "complete",
        }
    }

    #[test]
    fn a_line_has_what_is_known_and_no_more() {
        let lines = told(|audit| {
            audit.accessed(Duration::ZERO, &access());
            audit.accessed(Duration::ZERO, &Access { user: Some("alice"), status: None, why: Some("no"), ..access() });
        });
        assert_eq!(
            lines,
            [
                "\"event\":\"access\",\"client\":\"10.0.0.7:4000\",\"method\":\"GET\",\"kind\":\"blob\",\"status\":200,\
                 \"served\":\"hit\",\"bytes\":7,\"end\":\"complete\"}",
                "\"event\":\"access\",\"client\":\"10.0.0.7:4000\",\"user\":\"alice\",\"method\":\"GET\",\"kind\":\"blob\",\
                 \"status\":null,\"served\":\"hit\",\"why\":\"no\",\"bytes\":7,\"end\":\"complete\"}",
            ]
        );
        told(|_| Audit::default().accessed(Duration::ZERO, &access()));
    }

    #[test]
    fn what_others_say_ends_no_line_colours_none_and_turns_none_round() {
        let evil = "a\"}\r\n{\"event\":\"order\u{1b}[31m\u{9b}31m\u{7f}\u{202e}\u{2028}é";
        let lines = told(|audit| audit.accessed(Duration::ZERO, &Access { user: Some(evil), ..access() }));
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.contains("a\\\"}\\r\\n{\\\"event\\\":\\\"order\\u001b[31m\\u009b31m\\u007f\\u202e\\u2028é\""), "{line}");
        let parsed: serde_json::Value = serde_json::from_str(&format!("{{{line}")).unwrap();
        assert_eq!(parsed["user"], evil, "and it can be read as it was");
    }

    #[test]
    fn an_order_is_told_when_it_ends_with_no_more_of_its_names_than_a_line_may_hold() {
        let images: Vec<String> = (0..150).map(|n| format!("app:{n}{}", "x".repeat(1000))).collect();
        let (reports, _kept) = Reports::channel();
        let lines = told(|audit| {
            audit.ordered("uid 0".into(), &Order::Pin { images: images.clone() }, &reports).done();
            drop(audit.ordered("uid 7".into(), &Order::Usage, &reports));
        });
        assert!(
            lines[0].starts_with("\"event\":\"order\",\"by\":\"uid 0\",\"order\":\"pin\",\"what\":[\"app:0x"),
            "{}",
            lines[0]
        );
        assert!(
            lines[0].ends_with("],\"more\":50,\"failed\":0,\"end\":\"complete\"}") && lines[0].len() < 60_000,
            "{}",
            lines[0]
        );
        assert_eq!(lines[1], "\"event\":\"order\",\"by\":\"uid 7\",\"order\":\"du\",\"failed\":0,\"end\":\"broken_off\"}");
    }
}
