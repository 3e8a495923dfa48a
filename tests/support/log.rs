//! What larder has logged in this process, as far as an operator would see it: no requests, and nothing below INFO.
//!
//! All tests log to the same place. So a line is looked for by a word that only this test has: a digest, an address.

use std::sync::Mutex;

use tokio::time::{Duration, sleep, timeout};

use super::PATIENCE;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub(super) fn remember(line: &[u8]) {
    let line = String::from_utf8_lossy(line);
    if [" INFO larder", " WARN larder", "ERROR larder"].iter().any(|level| line.contains(level)) {
        LINES.lock().unwrap().push(line.into_owned());
    }
}

/// The log from a moment on.
pub struct Log(usize);

/// Waits until one line has all these words, whether it is to come or has come long ago.
pub async fn logged(words: &[&str]) {
    Log(0).will_say(words).await;
}

// === impl Log ===

impl Log {
    pub fn from_here() -> Self {
        Self(LINES.lock().unwrap().len())
    }

    /// How many lines there are by now with all these words in them.
    pub fn says(&self, words: &[&str]) -> usize {
        self.lines(words).len()
    }

    /// Waits until there is one.
    pub async fn will_say(&self, words: &[&str]) {
        let said = async {
            while self.says(words) == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let said = timeout(PATIENCE, said).await.is_ok();
        assert!(said, "the log never says {words:?}, but {:#?}", words.iter().flat_map(|word| self.lines(&[word])).take(20));
    }

    fn lines(&self, words: &[&str]) -> Vec<String> {
        let lines = LINES.lock().unwrap();
        lines[self.0..].iter().filter(|line| words.iter().all(|word| line.contains(word))).cloned().collect()
    }
}
