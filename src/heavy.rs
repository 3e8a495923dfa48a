//! Work on many bytes, which would keep a thread that serves from serving others.

use tokio::sync::Semaphore;

use crate::flight::Lost;

/// What is not more than this is done before another thread has even begun.
pub(crate) const LITTLE: usize = 64 << 10;

/// So much of it is done at a time, however many ask: a list of 4 MiB takes ten times as much while it is looked through.
const AT_ONCE: usize = 4;

static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);

/// Does `work`, which goes over so many bytes: here, or on a thread for such work if they are many.
///
/// Cancel safe: what was begun there goes on, and keeps its turn.
///
/// # Errors
/// [`Lost`] if the work panicked.
pub(crate) async fn work<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Lost> {
    if bytes <= LITTLE {
        return Ok(work());
    }
    let turn = TURNS.acquire().await.map_err(|_| Lost)?;
    let work = move || {
        let _turn = turn;
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| Lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    #[tokio::test]
    async fn only_what_is_much_is_handed_on() {
        let here = thread::current().id();
        let at = |bytes| work(bytes, || thread::current().id());
        assert_eq!(at(LITTLE).await, Ok(here));
        assert_ne!(at(LITTLE + 1).await.unwrap(), here);
        assert_eq!(work(LITTLE + 1, || panic!("as planned")).await, Err::<(), _>(Lost));
    }

    #[tokio::test]
    async fn a_crowd_of_it_takes_turns_also_where_nobody_waits_any_more() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let works: Vec<_> = (0..100)
            .map(|_| {
                let (now, most) = (Arc::clone(&now), Arc::clone(&most));
                tokio::spawn(work(LITTLE + 1, move || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    (0..1000).for_each(|_| thread::yield_now());
                    now.fetch_sub(1, Ordering::SeqCst);
                }))
            })
            .collect();
        tokio::task::yield_now().await;
        works.iter().step_by(2).for_each(tokio::task::JoinHandle::abort);
        for work in works {
            let _ = work.await;
        }
        assert!((1..=AT_ONCE).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    }
}
