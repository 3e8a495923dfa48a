//! A body at the pace of its reader.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::upstream::{Aside, Body, Error};

/// Moved by a task of its own: who reads it may do nothing for long, and its place must be free at once when it is another's.
pub(super) struct Paced {
    bytes: mpsc::Receiver<Result<Option<Bytes>, Error>>,
    _task: AbortOnDropHandle<()>,
}

// === impl Paced ===

impl Paced {
    pub(super) fn new(mut body: Body, mut aside: Aside) -> Self {
        let (send, bytes) = mpsc::channel(1);
        let moved = async move {
            loop {
                let next = body.chunk().await;
                let goes_on = matches!(next, Ok(Some(_)));
                if send.send(next).await.is_err() || !goes_on {
                    return;
                }
            }
        };
        let task = tokio::spawn(async move {
            tokio::select! {
                () = moved => {}
                _ = aside.lost() => {}
            }
        });
        Self { bytes, _task: AbortOnDropHandle::new(task) }
    }

    /// The next bytes; `None` at the end of the body.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// As [`Body::chunk`], and if its place is another's.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.bytes.recv().await.unwrap_or(Err(Error::Busy))
    }
}
