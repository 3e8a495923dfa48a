//! Threads for what may wait, behind those that serve: what is asked of upstreams, fills, handshakes of TLS.
//!
//! Who asks for what is here does not stand in line behind it, however much of it there is: a runtime has another behind it, with
//! threads of its own. A runtime alone, as tests have one, does it all.

use std::cell::OnceCell;

use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, yield_now};

/// So many of those who have waited go on at a time.
const AT_ONCE: usize = 4;

static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);

thread_local! {
    /// What works behind this thread.
    static BEHIND: OnceCell<Handle> = const { OnceCell::new() };
}

/// Has `runtime` work behind another, each of whose threads is to begin with this.
pub(crate) fn behind(runtime: &Runtime) -> impl Fn() + Send + Sync + 'static {
    let handle = runtime.handle().clone();
    move || BEHIND.with(|behind| _ = behind.set(handle.clone()))
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use tokio::runtime::Builder;
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    /// With one thread each.
    fn front_and_background() -> (Runtime, Runtime) {
        let background = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        (Builder::new_multi_thread().worker_threads(1).on_thread_start(behind(&background)).build().unwrap(), background)
    }

    #[test]
    fn what_may_wait_and_what_that_starts_are_done_by_other_threads() {
        let (front, background) = front_and_background();
        let here = || thread::current().id();
        let all =
            async move { (here(), spawn(async move { (here(), spawn(async move { here() }).await.unwrap()) }).await.unwrap()) };
        let (served, waited) = front.block_on(async { tokio::spawn(all).await.unwrap() });
        let behind = background.block_on(async { tokio::spawn(async move { here() }).await.unwrap() });
        assert_eq!(waited, (behind, behind));
        assert_ne!(served, behind);
    }

    #[test]
    fn who_comes_after_a_crowd_that_has_waited_is_not_behind_all_of_it() {
        const CROWD: usize = 100;
        let (front, _background) = front_and_background();
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
        assert_eq!(spawn(async { thread::current().id() }).await.unwrap(), thread::current().id());
    }
}
