//! Threads for what may wait, behind those that serve: what is asked of upstreams, fills, handshakes of TLS.
//!
//! Who asks for what is here does not stand in line behind it, however much of it there is: a runtime has another behind it, with
//! threads of its own. A runtime alone, as tests have one, does it all.

use std::cell::OnceCell;

use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use tokio::runtime::Builder;

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

    #[tokio::test]
    async fn a_runtime_alone_does_it_all() {
        assert_eq!(spawn(async { thread::current().id() }).await.unwrap(), thread::current().id());
    }
}
