//! Threads for blocking disk work, apart from everyone else's.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use tokio::sync::oneshot;

use crate::sync::{Condvar, Mutex, start_thread};

type Job = Box<dyn FnOnce() + Send>;

/// A bounded set of threads that run blocking jobs, in order. They are never joined: a disk that hangs holds its thread,
/// not the process.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    jobs: Mutex<Jobs>,
    work: Condvar,
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

/// More threads than a disk needs to be kept busy, few enough to be nothing.
const THREADS: usize = 16;

/// The job panicked.
#[derive(Debug)]
pub(super) struct Broken;

impl From<Broken> for std::io::Error {
    fn from(Broken: Broken) -> Self {
        Self::other("a disk job panicked")
    }
}

// === impl Pool ===

impl Pool {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared { jobs: Mutex::default(), work: Condvar::new() }))
    }

    /// Runs `job` on a thread of the pool.
    ///
    /// Cancel safe in that the job runs all the same; its result is dropped.
    pub(super) fn run<T, F>(&self, job: F) -> impl Future<Output = Result<T, Broken>> + Send + 'static + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (send, result) = oneshot::channel();
        self.start(move || {
            let _ = send.send(job());
        });
        async move { result.await.map_err(|_| Broken) }
    }

    /// Runs `job` with nobody waiting for it.
    pub(super) fn start(&self, job: impl FnOnce() + Send + 'static) {
        let mut jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.queue.push_back(Box::new(job));
        if jobs.queue.len() > jobs.idle && jobs.threads < THREADS {
            let shared = Arc::clone(&self.0);
            match start_thread("larder-disk", move || shared.work()) {
                Ok(()) => jobs.threads += 1,
                // Threads are short; those that are there take it, or the next push tries again.
                Err(error) => tracing::warn!(%error, "no thread for disk work"),
            }
        }
        drop(jobs);
        self.0.work.notify_one();
    }
}

impl Shared {
    fn work(&self) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = jobs.queue.pop_front() {
                drop(jobs);
                // Who waits for it sees its sender dropped.
                let _ = catch_unwind(AssertUnwindSafe(job));
                jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            } else {
                jobs.idle += 1;
                jobs = self.work.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                jobs.idle -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_run_and_a_panic_costs_only_its_own_job() {
        let pool = Pool::new();
        assert_eq!(pool.run(|| 1).await.unwrap(), 1);
        assert!(pool.run(|| panic!("as planned")).await.is_err());
        let many: Vec<_> = (0..100).map(|i| pool.run(move || i)).collect();
        for (i, job) in many.into_iter().enumerate() {
            assert_eq!(job.await.unwrap(), i);
        }
        assert!(pool.0.jobs.lock().unwrap().threads <= THREADS);
    }
}
