//! Lines on their way out, to the log and to the audit log: whoever writes one never waits for whoever takes it, nor for another who
//! writes. Floor 0.
//!
//! A reader may hang: a terminal that was stopped, a container engine or a log whose disk is full. That must not hold up a pull. And
//! a line for each request, one system call each, is a good part of what a small answer costs.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What is written waits here for the thread that takes it out.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Shared>);

/// What has been written goes out before this is gone, if it is taken within [`LAST`].
pub(crate) struct Ending(Lines);

struct Shared {
    waiting: Mutex<Waiting>,
    /// There is something to take out.
    written: Condvar,
    /// There is nothing left.
    taken: Condvar,
    /// Told of each line for which there is no room, at once: who takes lines out may hang for ever.
    lost: Box<Lost>,
}

/// It is given how many there were before it, since the last that went out.
type Lost = dyn Fn(u64) + Send + Sync;

/// Whether a terminal would obey it, or show other text than it stands in.
pub(crate) fn misleads(shown: char) -> bool {
    shown.is_control()
        || matches!(shown, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Text of JSON in which what misleads is escaped.
pub(crate) fn plain_json(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| (b' '..0x7f).contains(&byte)) {
        return text.into();
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for shown in text.chars() {
        if misleads(shown) {
            // All of these are in the plane that has four digits.
            let _ = write!(plain, "\\u{:04x}", u32::from(shown));
        } else {
            plain.push(shown);
        }
    }
    plain.into()
}

#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    /// How many lines there was no room for since the last that went out.
    lost: u64,
    /// Some of it is on its way out.
    leaving: bool,
    ends: bool,
}

/// In bytes: what a hundred thousand requests a second write while a reader hesitates. What comes after it is lost.
const ROOM: usize = 4 << 20;
/// So long the first of several lines waits for the others.
const GATHER: Duration = Duration::from_millis(5);
/// So long is waited at the end for who reads.
const LAST: Duration = Duration::from_secs(1);

// === impl Lines ===

impl Lines {
    /// Lines that a thread of this name gives to `out`, some whole ones at a time, with the number of those before them for which
    /// there was no room. `lost` is told of each of these at once, with the number of those before it.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn to(
        thread: &str,
        out: impl FnMut(&[u8], u64) + Send + 'static,
        lost: impl Fn(u64) + Send + Sync + 'static,
    ) -> io::Result<(Self, Ending)> {
        let shared = Shared { waiting: Mutex::default(), written: Condvar::new(), taken: Condvar::new(), lost: Box::new(lost) };
        let lines = Self(Arc::new(shared));
        let taking = lines.clone();
        thread::Builder::new().name(thread.into()).spawn(move || taking.take_out(out))?;
        Ok((lines.clone(), Ending(lines)))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_out(&self, mut out: impl FnMut(&[u8], u64)) {
        let mut text = Vec::new();
        loop {
            let waiting = self.0.written.wait_while(self.lock(), |waiting| waiting.text.is_empty());
            let waiting = waiting.unwrap_or_else(PoisonError::into_inner);
            let gathered = self.0.written.wait_timeout_while(waiting, GATHER, |waiting| !waiting.ends);
            let lost = {
                let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
                std::mem::swap(&mut text, &mut waiting.text);
                waiting.leaving = true;
                std::mem::take(&mut waiting.lost)
            };
            out(&text, lost);
            text.clear();
            self.lock().leaving = false;
            self.0.taken.notify_all();
        }
    }
}

impl Write for &Lines {
    /// Takes a line, whole or not at all.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.lock();
        if waiting.text.len() + line.len() > ROOM {
            let before = waiting.lost;
            waiting.lost += 1;
            drop(waiting);
            (self.0.lost)(before);
            return Ok(line.len());
        }
        waiting.text.extend_from_slice(line);
        // Who takes out looks again by itself while it is at it, and has been woken before the second line.
        let first = waiting.text.len() == line.len() && !waiting.leaving;
        drop(waiting);
        if first {
            self.0.written.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// === impl Ending ===

impl Drop for Ending {
    fn drop(&mut self) {
        let Self(lines) = self;
        let mut waiting = lines.lock();
        waiting.ends = true;
        lines.0.written.notify_one();
        let left = lines.0.taken.wait_timeout_while(waiting, LAST, |waiting| !waiting.text.is_empty() || waiting.leaving);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Lines to a reader that takes the next of what is written when it is told to.
    fn slow(lost: Arc<Mutex<Vec<u64>>>) -> (Lines, Ending, Sender<()>, Receiver<(String, u64)>) {
        let ((go, told), (got, seen)) = (channel(), channel());
        let out = move |text: &[u8], lost| {
            let _ = told.recv();
            let _ = got.send((String::from_utf8(text.to_vec()).expect("text"), lost));
        };
        let (lines, ending) = Lines::to("test", out, move |before| lost.lock().unwrap().push(before)).unwrap();
        (lines, ending, go, seen)
    }

    #[test]
    fn nobody_waits_for_a_reader_that_hangs_and_what_is_lost_is_counted() {
        let lost_at_once = Arc::new(Mutex::default());
        let (lines, ending, go, seen) = slow(Arc::clone(&lost_at_once));
        (&lines).write_all(b"first\n").unwrap();
        while !lines.lock().leaving {
            thread::yield_now();
        }
        let line = [b"x".repeat(1023).as_slice(), b"\n"].concat();
        for _ in 0..ROOM / line.len() + 3 {
            (&lines).write_all(&line).unwrap();
        }
        assert_eq!(lines.lock().text.len(), ROOM);
        assert_eq!(*lost_at_once.lock().unwrap(), [0, 1, 2], "nobody has taken one yet");
        (0..2).for_each(|_| go.send(()).unwrap());
        assert_eq!(seen.recv().unwrap(), ("first\n".into(), 0));
        let (text, lost) = seen.recv().unwrap();
        assert_eq!((text.lines().count(), lost), (ROOM / line.len(), 3));
        drop(go);
        drop(ending);
    }

    #[test]
    fn what_was_written_goes_out_before_the_end() {
        let (lines, ending, go, seen) = slow(Arc::default());
        go.send(()).unwrap();
        (&lines).write_all(b"a\n").unwrap();
        (&lines).write_all(b"b\n").unwrap();
        drop(go);
        drop(ending);
        assert_eq!(seen.try_iter().map(|(text, _)| text).collect::<String>(), "a\nb\n");
    }
}
