//! Whatever a test makes larder say is searched for secrets: log lines, answers, URLs that upstreams are asked for, and what
//! lies in the cache directory. Every secret of these tests holds the word [`CANARY`].
//!
//! Some of it is said in tasks that no test waits for. Such a leak is noted, and the next mirror or registry that a test lets
//! go of tells of it.

use std::{
    fs, io,
    path::Path,
    sync::{Mutex, Once},
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::{Answer, log};

pub const CANARY: &str = "canary";

static LEAKS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Searches each line that larder logs, at the level at which it says most. In place of other libraries it is held to what
/// the program lets them say.
struct Log;

/// Whether the secret is in there, as it is or in base64.
pub fn has_secret(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let in_base64 = |word: &str| {
        // Where the word begins within a longer one cannot be known.
        let standard = word.replace('-', "+").replace('_', "/");
        (0..4.min(standard.len())).any(|start| {
            let whole = (standard.len() - start) / 4 * 4;
            let decoded = STANDARD_NO_PAD.decode(&standard[start..start + whole]);
            decoded.is_ok_and(|decoded| String::from_utf8_lossy(&decoded).contains(CANARY))
        })
    };
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_');
    text.contains(CANARY) || text.split(|c| !is_base64(c)).filter(|word| word.len() >= CANARY.len()).any(in_base64)
}

/// A secret that could not be found would be no secret to look for.
pub(super) fn assert_marked(secret: &str) {
    assert!(secret.contains(CANARY), "{secret:?} is a secret of a test and does not hold the word {CANARY}");
}

/// Notes a leak, if there is one.
pub(super) fn search(what: &str, text: &[u8]) {
    if has_secret(text) {
        LEAKS.lock().unwrap().push(format!("{what}: {}", String::from_utf8_lossy(text)));
    }
}

/// An answer, if it is larder's.
pub(super) fn search_answer(answer: &Answer) {
    if !answer.header("cache-status").is_some_and(|value| value.contains("larder")) {
        return;
    }
    search("the headers of an answer", format!("{:?}", answer.headers).as_bytes());
    if answer.header("content-type").is_some_and(|value| value.contains("json")) {
        search("the body of an answer", &answer.body);
    }
}

/// All small files below `dir`: what larder writes there of its own is small.
pub(super) fn search_files(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(about) = entry.metadata() else { continue };
        if about.is_dir() {
            search_files(&path);
        } else if about.len() < 64 << 10 && about.is_file() {
            search(&path.display().to_string(), &fs::read(&path).unwrap_or_default());
        }
    }
}

/// Fails the test if something has leaked, here or elsewhere.
pub(super) fn tell() {
    let leaks = std::mem::take(&mut *LEAKS.lock().unwrap());
    assert!(leaks.is_empty() || std::thread::panicking(), "a secret got out:\n{}", leaks.join("\n"));
}

/// Sees to it that what larder logs in this process is searched, and remembered.
pub(super) fn search_log() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let filter = EnvFilter::new("warn,larder=trace,access=trace");
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Log).init();
    });
}

// === impl Log ===

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        search("the log", line);
        log::remember(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
