//! Locks, signals, threads and tasks, for what is tested under many orders of events.
//!
//! They are the standard library's and tokio's. With the feature `schedules`, which only tests have, they are shuttle's or
//! stand on shuttle's: it then decides at each of them who goes on, and notices when nobody can.

#[cfg(feature = "schedules")]
mod scheduled;

#[cfg(not(feature = "schedules"))]
pub(crate) use ordinary::*;
#[cfg(feature = "schedules")]
pub(crate) use scheduled::*;

#[cfg(not(feature = "schedules"))]
mod ordinary {
    use std::{io, thread};

    use crate::background;

    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, atomic};
    pub(crate) use tokio::sync::{Notify, watch};
    pub(crate) use tokio::time::timeout;

    /// Starts a thread that nobody joins.
    pub(crate) fn start_thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        thread::Builder::new().name(name.into()).spawn(run).map(drop)
    }

    /// Starts a task that nobody waits for, and that may wait for others.
    pub(crate) fn start_task(task: impl Future<Output = ()> + Send + 'static) {
        drop(background::spawn(task));
    }
}
