//! Threads for blocking disk work, apart from everyone else's.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::sync::{Condvar, Mutex, MutexGuard, start_thread, timeout};

type Job = Box<dyn FnOnce() + Send>;

/// A bounded set of threads that run blocking jobs, in order. They are never joined: a disk that hangs holds its threads, not
/// the process. Clones are the same threads.
#[derive(Clone)]
pub(super) struct Pool(Arc<Owned>);

/// Ends the threads, those that are idle, when nobody has work for them any more.
struct Owned(Arc<Shared>);

struct Shared {
    /// That of its threads.
    name: &'static str,
    /// For so long a client waits for a job.
    patience: Duration,
    jobs: Mutex<Jobs>,
    work: Condvar,
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    idle: usize,
    threads: usize,
    /// No more will come.
    closed: bool,
    /// How many were begun that a client waits for; the next one has this number.
    waits: u64,
    /// Those of them that have not ended, as long as the client waits.
    waited_for: HashSet<u64>,
    /// Those that it has given up, and that have not ended yet. While there are any, the disk is taken to hang.
    overdue: HashSet<u64>,
    /// Since when there are.
    overdue_since: Option<Instant>,
}

/// Jobs of which each runs when those before it have ended, by return or by panic. One thread at most is theirs at a time, and goes
/// from one to the next without anybody being woken in between.
#[derive(Clone)]
pub(super) struct Lane {
    pool: Pool,
    jobs: Arc<Mutex<InOrder>>,
}

#[derive(Default)]
struct InOrder {
    queue: VecDeque<Job>,
    /// A thread is at them.
    running: bool,
}

/// More threads than a disk needs to be kept busy, few enough to be nothing.
pub(super) const THREADS: usize = 16;

/// Why a job gives no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    Panicked,
    /// The disk takes too long. The job goes on, or may never end.
    Hangs,
}

// === impl Broken ===

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Panicked => Self::other("a disk job panicked"),
            Broken::Hangs => Self::new(io::ErrorKind::TimedOut, "the disk does not answer"),
        }
    }
}

/// Runs `work` and makes an error of a panic, for who must put things in order afterwards.
pub(super) fn caught<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Broken::Panicked.into()))
}

/// What runs `job`, and what comes of it.
fn promised<T, F>(job: F) -> (Job, impl Future<Output = Result<T, Broken>> + Send + 'static + use<T, F>)
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (send, result) = oneshot::channel();
    let run = move || {
        let _ = send.send(job());
    };
    (Box::new(run), async move { result.await.map_err(|_| Broken::Panicked) })
}

// === impl Pool ===

impl Pool {
    /// With one thread, which is there also when later there are none to be had.
    ///
    /// # Errors
    /// When not even one is to be had.
    pub(super) fn new(name: &'static str, patience: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared { name, patience, jobs: Mutex::default(), work: Condvar::new() });
        shared.spawn(&mut shared.lock())?;
        Ok(Self(Arc::new(Owned(shared))))
    }

    /// Runs `job`, for which the caller waits as long as it takes. It is begun by this call, whether or not the future is ever
    /// polled: who does not care for the end may drop that.
    ///
    /// Cancel safe in that the job runs all the same; its result is dropped.
    pub(super) fn run<T, F>(&self, job: F) -> impl Future<Output = Result<T, Broken>> + Send + 'static + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (job, result) = promised(job);
        self.start(job);
        result
    }

    /// Runs `job`, for which a client waits: no longer than the patience, and not at all while others are overdue. It is begun by
    /// this call as well, unless others are overdue.
    ///
    /// Cancel safe as [`Pool::run`] is.
    pub(super) fn soon<T, F>(&self, job: F) -> impl Future<Output = Result<T, Broken>> + Send + 'static + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (job, result) = self.waited_for(job);
        job.into_iter().for_each(|job| self.start(job));
        result
    }

    /// Jobs that run one after the other, in order.
    pub(super) fn lane(&self) -> Lane {
        Lane { pool: self.clone(), jobs: Arc::default() }
    }

    /// What is to be run, unless others are overdue; and what comes of it within the patience, from when that is first polled.
    fn waited_for<T, F>(&self, job: F) -> (Option<Job>, impl Future<Output = Result<T, Broken>> + Send + 'static + use<T, F>)
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let promised = self.wait().map(|wait| {
            let ends = Ends { pool: self.clone(), wait };
            let (job, result) = promised(move || {
                let _ends = ends;
                job()
            });
            (job, (result, wait))
        });
        let (job, result) = promised.unzip();
        let pool = self.clone();
        let result = async move {
            let Some((result, wait)) = result else { return Err(Broken::Hangs) };
            timeout(pool.patience(), result).await.unwrap_or_else(|_| {
                pool.give_up(wait);
                Err(Broken::Hangs)
            })
        };
        (job, result)
    }

    #[cfg(test)]
    fn hangs(&self) -> bool {
        self.hangs_for().is_some()
    }

    /// For how long a job has not ended that a client has waited for too long.
    pub(super) fn hangs_for(&self) -> Option<Duration> {
        self.shared().lock().overdue_since.map(|since| since.elapsed())
    }

    pub(super) fn patience(&self) -> Duration {
        self.shared().patience
    }

    /// True while jobs wait for a thread.
    pub(super) fn is_busy(&self) -> bool {
        !self.shared().lock().queue.is_empty()
    }

    /// True if no thread has anything to do.
    #[cfg(all(test, feature = "schedules"))]
    pub(super) fn is_at_rest(&self) -> bool {
        let jobs = self.shared().lock();
        jobs.queue.is_empty() && jobs.idle == jobs.threads
    }

    /// Runs `job` with nobody waiting for it.
    pub(super) fn start(&self, job: impl FnOnce() + Send + 'static) {
        let mut jobs = self.shared().lock();
        jobs.queue.push_back(Box::new(job));
        if jobs.queue.len() > jobs.idle
            && jobs.threads < THREADS
            && let Err(error) = self.shared().spawn(&mut jobs)
        {
            // Those that are there take it.
            tracing::warn!(%error, "no further thread for disk work");
        }
        drop(jobs);
        self.shared().work.notify_one();
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    /// The number of a job that is waited for from now on; `None` while others are overdue.
    fn wait(&self) -> Option<u64> {
        let mut jobs = self.shared().lock();
        if !jobs.overdue.is_empty() {
            return None;
        }
        let wait = jobs.waits;
        jobs.waits += 1;
        jobs.waited_for.insert(wait);
        Some(wait)
    }

    fn give_up(&self, wait: u64) {
        let mut jobs = self.shared().lock();
        // It may have ended just now.
        if jobs.waited_for.remove(&wait) {
            jobs.overdue.insert(wait);
            if jobs.overdue.len() == 1 {
                jobs.overdue_since = Some(Instant::now());
                tracing::error!(disk = self.shared().name, patience = ?self.shared().patience, "the disk does not answer in time; requests go past it");
            }
        }
    }
}

// === impl Lane ===

impl Lane {
    /// As [`Pool::soon`], after the jobs before it.
    pub(super) fn soon<T, F>(&self, job: F) -> impl Future<Output = Result<T, Broken>> + Send + 'static + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (job, result) = self.pool.waited_for(job);
        let Some(job) = job else { return result };
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.queue.push_back(job);
        if !std::mem::replace(&mut jobs.running, true) {
            let all = Arc::clone(&self.jobs);
            self.pool.start(move || run_in_order(&all));
        }
        drop(jobs);
        result
    }
}

fn run_in_order(jobs: &Mutex<InOrder>) {
    loop {
        let next = {
            let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
            let next = jobs.queue.pop_front();
            jobs.running = next.is_some();
            next
        };
        let Some(job) = next else { return };
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

// Shuttle drops tasks in the middle of whatever they do, where nobody may wait for a lock.
#[cfg(not(feature = "schedules"))]
impl Drop for Owned {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.work.notify_all();
    }
}

/// The end of a job that was waited for, by return or by panic.
struct Ends {
    pool: Pool,
    wait: u64,
}

impl Drop for Ends {
    fn drop(&mut self) {
        let mut jobs = self.pool.shared().lock();
        jobs.waited_for.remove(&self.wait);
        if jobs.overdue.remove(&self.wait) && jobs.overdue.is_empty() {
            jobs.overdue_since = None;
            tracing::warn!(disk = self.pool.shared().name, "the disk answers again");
        }
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(self: &Arc<Self>, jobs: &mut Jobs) -> io::Result<()> {
        let shared = Arc::clone(self);
        start_thread(self.name, move || shared.work())?;
        jobs.threads += 1;
        Ok(())
    }

    fn work(&self) {
        let mut jobs = self.lock();
        loop {
            if let Some(job) = jobs.queue.pop_front() {
                drop(jobs);
                // Who waits for it sees its sender dropped.
                let _ = catch_unwind(AssertUnwindSafe(job));
                jobs = self.lock();
            } else if jobs.closed {
                return;
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
    use std::sync::mpsc;

    #[tokio::test]
    async fn jobs_run_and_a_panic_costs_only_its_own_job() {
        let pool = Pool::new("test", Duration::from_secs(10)).unwrap();
        assert_eq!(pool.run(|| 1).await.unwrap(), 1);
        assert_eq!(pool.run(|| panic!("as planned")).await, Err::<(), _>(Broken::Panicked));
        assert_eq!(pool.soon(|| panic!("as planned")).await, Err::<(), _>(Broken::Panicked));
        let many: Vec<_> = (0..100).map(|i| pool.run(move || i)).collect();
        for (i, job) in many.into_iter().enumerate() {
            assert_eq!(job.await.unwrap(), i);
        }
        assert!(pool.shared().lock().threads <= THREADS);
        assert!(!pool.hangs());
    }

    #[tokio::test]
    async fn the_jobs_of_a_lane_run_in_order_also_after_a_panic() {
        let pool = Pool::new("test", Duration::from_secs(10)).unwrap();
        let (lane, ran) = (pool.lane(), Arc::new(Mutex::new(Vec::new())));
        let job = |i| {
            let ran = Arc::clone(&ran);
            lane.soon(move || {
                assert_ne!(i, 50, "as planned");
                ran.lock().unwrap().push(i);
                i
            })
        };
        let jobs: Vec<_> = (0..100).map(job).collect();
        for (i, job) in jobs.into_iter().enumerate() {
            assert_eq!(job.await, if i == 50 { Err(Broken::Panicked) } else { Ok(i) });
        }
        assert_eq!(*ran.lock().unwrap(), (0..100).filter(|i| *i != 50).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn nobody_waits_long_for_a_job_that_hangs_and_others_do_not_wait_at_all_until_it_ends() {
        let pool = Pool::new("test", Duration::from_millis(20)).unwrap();
        let (release, hold) = mpsc::channel::<()>();
        assert_eq!(pool.soon(move || hold.recv()).await, Err(Broken::Hangs));
        assert!(pool.hangs());
        let patient = pool.run(|| 2);
        assert_eq!(pool.soon(|| 3).await, Err(Broken::Hangs), "nobody waits for more");
        assert_eq!(patient.await, Ok(2), "unless it is in no hurry");
        release.send(()).unwrap();
        while pool.hangs() {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.soon(|| 4).await, Ok(4));
    }
}
