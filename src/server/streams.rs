//! The streams of HTTP/2 connections, each a task. One whose client takes nothing is reset; the others go on.

use std::sync::Arc;

use hyper::rt::Executor;

use super::pace::{Least, Pace};

tokio::task_local! {
    static PACE: Arc<Pace>;
}

/// Runs what hyper makes of each stream.
#[derive(Debug, Clone)]
pub(super) struct Streams(pub(super) Least);

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let pace = Arc::new(Pace::new(self.0));
        tokio::spawn(PACE.scope(Arc::clone(&pace), async move {
            tokio::select! {
                () = stream => {}
                // hyper resets a stream that is dropped.
                () = pace.lost() => {}
            }
        }));
    }
}

/// The pace of the stream for which this is called; `None` in HTTP/1.
pub(super) fn pace() -> Option<Arc<Pace>> {
    PACE.try_with(Arc::clone).ok()
}
