//! Lines on their way out: whoever writes one never waits for whoever reads the log, nor for another who writes.
//!
//! A reader may hang: a terminal that was stopped, a container engine whose disk is full. That must not hold up a pull. And a
//! line for each request, one system call each, is a good part of what a small answer costs.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// What is written waits here for the thread that takes it out.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

/// What has been written goes out before this is gone, if it is taken within [`LAST`].
pub(crate) struct Ending(Lines);

struct Shared {
    waiting: Mutex<Waiting>,
    /// There is something to take out.
    written: Condvar,
    /// There is nothing left.
    taken: Condvar,
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
    /// Lines that go out to `to`, by a thread of their own.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn to(to: impl Write + Send + 'static) -> io::Result<(Self, Ending)> {
        let shared = Shared { waiting: Mutex::default(), written: Condvar::new(), taken: Condvar::new() };
        let lines = Self(Arc::new(shared));
        let taking = lines.clone();
        thread::Builder::new().name("larder-log".into()).spawn(move || taking.take_out(to))?;
        Ok((lines.clone(), Ending(lines)))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_out(&self, mut to: impl Write) {
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
            // There is nobody to tell that it cannot be told.
            let _ = to.write_all(&text);
            if lost > 0 {
                let lost = format!("larder: {lost} lines of the log are lost: they came faster than they were read\n");
                let _ = to.write_all(lost.as_bytes());
            }
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
        if waiting.text.len() + line.len() <= ROOM {
            waiting.text.extend_from_slice(line);
        } else {
            waiting.lost += 1;
        }
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

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
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

    /// A reader that takes the next of what is written when it is told to.
    struct Slow {
        go: Receiver<()>,
        got: Sender<String>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.go.recv();
            let _ = self.got.send(String::from_utf8(bytes.to_vec()).expect("text"));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (Slow, Sender<()>, Receiver<String>) {
        let ((go, told), (got, seen)) = (channel(), channel());
        (Slow { go: told, got }, go, seen)
    }

    #[test]
    fn nobody_waits_for_a_reader_that_hangs_and_what_is_lost_is_counted() {
        let (reader, go, seen) = slow();
        let (lines, ending) = Lines::to(reader).unwrap();
        (&lines).write_all(b"first\n").unwrap();
        while !lines.lock().leaving {
            thread::yield_now();
        }
        let line = [b"x".repeat(1023).as_slice(), b"\n"].concat();
        for _ in 0..ROOM / line.len() + 3 {
            (&lines).write_all(&line).unwrap();
        }
        assert_eq!(lines.lock().text.len(), ROOM);
        (0..3).for_each(|_| go.send(()).unwrap());
        assert_eq!(seen.recv().unwrap(), "first\n");
        assert_eq!(seen.recv().unwrap().lines().count(), ROOM / line.len());
        assert!(seen.recv().unwrap().starts_with("larder: 3 lines of the log are lost"));
        drop(go);
        drop(ending);
    }

    #[test]
    fn what_was_written_goes_out_before_the_end() {
        let (reader, go, seen) = slow();
        let (lines, ending) = Lines::to(reader).unwrap();
        go.send(()).unwrap();
        (&lines).write_all(b"a\n").unwrap();
        (&lines).write_all(b"b\n").unwrap();
        drop(go);
        drop(ending);
        assert_eq!(seen.try_iter().collect::<String>(), "a\nb\n");
    }
}
