//! Hashing what passes by, on threads that serve nobody.

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::oci::{Algorithm, Digest, Hasher};

/// The hash of bytes that go on meanwhile. It is one batch behind.
pub(super) struct Hashing {
    hasher: Option<Hasher>,
    running: Option<JoinHandle<Hasher>>,
    batch: Vec<Bytes>,
    bytes: usize,
}

/// What is hashed at once, in bytes: enough to be worth another thread.
const BATCH: usize = 1 << 20;

// === impl Hashing ===

impl Hashing {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self { hasher: Some(Hasher::new(algorithm)), running: None, batch: Vec::new(), bytes: 0 }
    }

    /// Waits for the batch before last, so that no more than two are in memory.
    pub(super) async fn update(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        self.batch.push(bytes);
        if self.bytes >= BATCH {
            self.begin().await;
        }
    }

    /// `None` if the runtime ends.
    pub(super) async fn finish(mut self) -> Option<Digest> {
        self.begin().await;
        self.land().await;
        self.hasher.map(Hasher::finish)
    }

    async fn begin(&mut self) {
        self.land().await;
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        if let Some(mut hasher) = self.hasher.take() {
            self.running = Some(tokio::task::spawn_blocking(move || {
                batch.iter().for_each(|bytes| hasher.update(bytes));
                hasher
            }));
        }
    }

    async fn land(&mut self) {
        if let Some(running) = self.running.take() {
            self.hasher = running.await.ok();
        }
    }
}
