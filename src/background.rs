//! Threads for what may wait, behind those that serve: what is asked of upstreams, fills, handshakes of TLS.
//!
//! Who asks for what is here is before all of it, however much there is, in larder's queues as on the processor. So a runtime has
//! another behind it, whose threads yield to its own; a runtime alone, as tests have one, does it all.

use std::cell::OnceCell;
use std::io;

use rustix::process::nice;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, yield_now};

/// What works behind another runtime.
pub(crate) struct Background(Runtime);

/// Lower by this than the others' is the priority of these threads: one beside a busy one has a tenth of a processor (`sched(7)`).
const NICE: i32 = 10;

/// So many of those who have waited go on at a time.
const AT_ONCE: usize = 4;

static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);

thread_local! {
    /// What works behind this thread.
    static BEHIND: OnceCell<Handle> = const { OnceCell::new() };
}

// === impl Background ===

impl Background {
    /// # Errors
    /// No threads are to be had.
    pub(crate) fn start(like: &mut Builder) -> io::Result<Self> {
        // Where that is forbidden, they are as good as others.
        like.thread_name("background").on_thread_start(|| _ = nice(NICE)).build().map(Self)
    }

    /// For each thread of the other runtime to begin with.
    pub(crate) fn behind(&self) -> impl Fn() + Send + Sync + 'static {
        let handle = self.0.handle().clone();
        move || BEHIND.with(|behind| _ = behind.set(handle.clone()))
    }

    /// The runtime itself.
    #[must_use]
    pub(crate) fn runtime(self) -> Runtime {
        self.0
    }
}

/// Starts a task that may wait.
pub(crate) fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    match BEHIND.with(|behind| behind.get().cloned()) {
        Some(behind) => behind.spawn(task),
        None => tokio::spawn(task),
    }
}

/// For a task in front that has waited for one behind: lets those go first who need not wait, as what many wait for may be there for
/// all of them at once. Only for what is polled until it is done or dropped: it keeps its turn meanwhile.
///
/// Cancel safe.
pub(crate) async fn turn() {
    if BEHIND.with(|behind| behind.get().is_some()) {
        let turn = TURNS.acquire().await;
        yield_now().await;
        drop(turn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpriority_process;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    const LEAST: i32 = 19;

    #[test]
    fn what_may_wait_is_done_by_threads_that_yield_and_what_that_starts_too() {
        let background = Background::start(&mut Builder::new_multi_thread()).unwrap();
        let front = Builder::new_multi_thread().on_thread_start(background.behind()).build().unwrap();
        let priority = || getpriority_process(None).unwrap();
        let (served, waited) = front.block_on(async {
            tokio::spawn(async move {
                (priority(), spawn(async move { spawn(async move { priority() }).await.unwrap() }).await.unwrap())
            })
            .await
            .unwrap()
        });
        assert_eq!((served, waited), (priority(), LEAST.min(priority() + NICE)));
    }

    #[test]
    fn who_comes_after_a_crowd_that_has_waited_is_not_behind_all_of_it() {
        const CROWD: usize = 100;
        let background = Background::start(&mut Builder::new_multi_thread()).unwrap();
        let front = Builder::new_multi_thread().worker_threads(1).on_thread_start(background.behind()).build().unwrap();
        let comes_after = async {
            let (told, done) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
            let crowd: JoinSet<_> = (0..CROWD)
                .map(|_| {
                    let (told, done) = (told.clone(), Arc::clone(&done));
                    async move {
                        told.cancelled().await;
                        turn().await;
                        done.fetch_add(1, Ordering::Relaxed)
                    }
                })
                .collect();
            // Until all of them wait.
            for _ in 0..CROWD {
                yield_now().await;
            }
            told.cancel();
            for looks in 1..CROWD / AT_ONCE {
                yield_now().await;
                assert!(done.load(Ordering::Relaxed) <= looks * AT_ONCE, "{done:?} after {looks}");
            }
            assert_eq!(crowd.join_all().await.len(), CROWD);
        };
        front.block_on(async { tokio::spawn(comes_after).await.unwrap() });
    }

    #[tokio::test]
    async fn a_runtime_alone_does_it_all() {
        assert_eq!(spawn(async { std::thread::current().id() }).await.unwrap(), std::thread::current().id());
    }
}
