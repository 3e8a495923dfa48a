//! Whatever a test makes larder say is searched for secrets: log lines, what it answers clients and its operator, what its commands
//! print, URLs that upstreams are asked for, and the files that it writes. Every secret of these tests holds the word [`CANARY`].
//!
//! Some of it is said in tasks that no test waits for. Such a leak is noted, and the next mirror or registry that a test lets
//! go of tells of it.

use std::{
    collections::HashSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Mutex, Once},
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::{Answer, log};

pub const CANARY: &str = "canary";

static LEAKS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Where larders listen. Tests ask registries too, who may tell secrets.
static PORTS: Mutex<Vec<u16>> = Mutex::new(Vec::new());

/// What comes from these ports is larder's word, until this is dropped.
pub(super) struct Ports(Vec<u16>);

/// A directory in which larder writes: its cache, an audit log, whatever. What was there before is the test's.
pub(super) struct Written {
    dir: PathBuf,
    before: HashSet<PathBuf>,
}

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

/// What was heard from there, as it came over the wire.
pub(super) fn search_heard(from: SocketAddr, heard: &[u8]) {
    // Blobs are larger, and nobody's words.
    if is_larders(from.port()) && heard.len() < 1 << 20 {
        search("what larder answers", heard);
    }
}

/// An answer, if it is larder's.
pub(super) fn search_answer(from: Option<u16>, answer: &Answer) {
    let ours = from.is_some_and(is_larders) || answer.header("cache-status").is_some_and(|value| value.contains("larder"));
    if ours {
        search("the headers of an answer", format!("{:?}", answer.headers).as_bytes());
        if answer.header("content-type").is_none_or(|value| !value.contains("octet-stream")) {
            search("the body of an answer", &answer.body);
        }
    }
}

fn is_larders(port: u16) -> bool {
    PORTS.lock().unwrap().contains(&port)
}

/// All small files below `dir` but these: what larder writes there of its own is small.
pub(super) fn search_files(dir: &Path, but: &HashSet<PathBuf>) {
    for (path, length) in files(dir) {
        if length < 64 << 10 && !but.contains(&path) {
            search(&path.display().to_string(), &fs::read(&path).unwrap_or_default());
        }
    }
}

/// All files below `dir`, and how long they are.
fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(about) = entry.metadata() else { continue };
        if about.is_dir() {
            found.extend(files(&entry.path()));
        } else if about.is_file() {
            found.push((entry.path(), about.len()));
        }
    }
    found
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

// === impl Ports ===

impl Ports {
    pub(super) fn of(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let ports: Vec<u16> = addresses.into_iter().map(|address| address.port()).collect();
        PORTS.lock().unwrap().extend(&ports);
        Self(ports)
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        PORTS.lock().unwrap().retain(|port| !self.0.contains(port));
    }
}

// === impl Written ===

impl Written {
    pub(super) fn to(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), before: files(dir).into_iter().map(|(path, _)| path).collect() }
    }

    pub(super) fn search(&self) {
        search_files(&self.dir.join("cache"), &HashSet::new());
        search_files(&self.dir, &self.before);
    }
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
