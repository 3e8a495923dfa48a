//! The same under shuttle. What tokio does within one call is one step here; before each there is a choice of who goes on.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use shuttle::future;
use shuttle::rand::{Rng as _, thread_rng};

pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, atomic};

/// [`tokio::sync::Notify`] with a choice before each step.
#[derive(Default)]
pub(crate) struct Notify(tokio::sync::Notify);

/// The limit has come before the end of the work.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// Lets another go on here.
fn choice() {
    atomic::AtomicBool::new(false).load(atomic::Ordering::SeqCst);
}

pub(crate) fn start_thread(_name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // A thread of shuttle's would have to end before the test does.
    start_task(async { run() });
    Ok(())
}

pub(crate) fn start_task(task: impl Future<Output = ()> + Send + 'static) {
    drop(future::spawn(task));
}

/// Time goes on or does not: what is not done at once is given up after a few steps of the others, or waited for to its end. A
/// limit of [`Duration::MAX`] never comes.
pub(crate) async fn timeout<F: Future>(limit: Duration, work: F) -> Result<F::Output, Elapsed> {
    /// Enough for others to be anywhere in what they do.
    const STEPS: u32 = 20;
    let mut work = pin!(work);
    if limit == Duration::MAX || thread_rng().gen_bool(0.5) {
        return Ok(work.await);
    }
    for _ in 0..thread_rng().gen_range(0..STEPS) {
        if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
            return Ok(done);
        }
        future::yield_now().await;
    }
    Err(Elapsed)
}

/// Runs a test in a thousand random orders, and in a thousand with three preemptions where they hurt (PCT).
#[cfg(test)]
pub(crate) fn in_many_orders(test: impl Fn() + Send + Sync + Clone + 'static) {
    const ORDERS: usize = 1000;
    shuttle::check_random(test.clone(), ORDERS);
    shuttle::check_pct(test, ORDERS, 3);
}

// === impl Notify ===

impl Notify {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn notified(&self) -> tokio::sync::futures::Notified<'_> {
        choice();
        self.0.notified()
    }

    pub(crate) fn notify_waiters(&self) {
        choice();
        self.0.notify_waiters();
    }
}

/// As [`tokio::sync::watch`], with the value under a lock of shuttle's: whoever holds tokio's own could not be preempted.
pub(crate) mod watch {
    use std::ops::Deref;
    use std::sync::{Arc, PoisonError};

    use tokio::sync::watch;
    pub(crate) use tokio::sync::watch::error::RecvError;

    use super::{Mutex, MutexGuard};

    pub(crate) struct Sender<T> {
        value: Arc<Mutex<T>>,
        /// Moves on after each change of the value.
        changes: watch::Sender<()>,
    }

    pub(crate) struct Receiver<T> {
        value: Arc<Mutex<T>>,
        changes: watch::Receiver<()>,
    }

    pub(crate) struct Ref<'a, T>(MutexGuard<'a, T>);

    pub(crate) fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
        let sender = Sender::new(value);
        let receiver = sender.subscribe();
        (sender, receiver)
    }

    fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
        value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // === impl Sender ===

    impl<T: Default> Default for Sender<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    impl<T> Sender<T> {
        pub(crate) fn new(value: T) -> Self {
            Self { value: Arc::new(Mutex::new(value)), changes: watch::Sender::new(()) }
        }

        pub(crate) fn subscribe(&self) -> Receiver<T> {
            Receiver { value: Arc::clone(&self.value), changes: self.changes.subscribe() }
        }

        pub(crate) fn borrow(&self) -> Ref<'_, T> {
            Ref(lock(&self.value))
        }

        pub(crate) fn send(&self, value: T) -> Result<(), T> {
            if self.changes.receiver_count() == 0 {
                return Err(value);
            }
            self.send_replace(value);
            Ok(())
        }

        pub(crate) fn send_replace(&self, value: T) -> T {
            let mut old = value;
            self.send_modify(|value| std::mem::swap(value, &mut old));
            old
        }

        pub(crate) fn send_modify(&self, modify: impl FnOnce(&mut T)) {
            modify(&mut lock(&self.value));
            self.changes.send_replace(());
        }

        pub(crate) fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
            let modified = modify(&mut lock(&self.value));
            if modified {
                self.changes.send_replace(());
            }
            modified
        }
    }

    // === impl Receiver ===

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Self {
            Self { value: Arc::clone(&self.value), changes: self.changes.clone() }
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn borrow(&self) -> Ref<'_, T> {
            Ref(lock(&self.value))
        }

        pub(crate) fn borrow_and_update(&mut self) -> Ref<'_, T> {
            // In this order a change in between is seen twice rather than never.
            self.changes.borrow_and_update();
            Ref(lock(&self.value))
        }

        pub(crate) async fn changed(&mut self) -> Result<(), RecvError> {
            self.changes.changed().await
        }

        pub(crate) async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, RecvError> {
            let Self { value, changes } = self;
            loop {
                changes.borrow_and_update();
                {
                    let value = lock(value);
                    if wanted(&value) {
                        return Ok(Ref(value));
                    }
                }
                changes.changed().await?;
            }
        }
    }

    // === impl Ref ===

    impl<T> Deref for Ref<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }
}
