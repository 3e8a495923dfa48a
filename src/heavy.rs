//! Work on many bytes, which would keep a thread that serves from serving others.

use std::sync::LazyLock;

use crate::flight::Lost;
use crate::room::{Askers, Room};

/// What is not more than this is done before another thread has even begun.
pub(crate) const LITTLE: usize = 64 << 10;

/// So much of it is done at a time, however many ask: a list of 4 MiB takes ten times as much while it is looked through.
const AT_ONCE: usize = 4;

/// As many wait as like: what each costs is counted where it was asked for.
static TURNS: LazyLock<Room> = LazyLock::new(|| Room::new(AT_ONCE, usize::MAX));

/// Does `work`, which goes over so many bytes: here, or on a thread for such work if they are many. One who wants much of it done for him
/// keeps nobody else waiting for more than a piece of it.
///
/// Cancel safe: what was begun there goes on, and keeps its turn.
///
/// # Errors
/// [`Lost`] if the work panicked.
pub(crate) async fn work<T: Send + 'static>(
    askers: &Askers,
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Lost> {
    if bytes <= LITTLE {
        return Ok(work());
    }
    let turn = TURNS.take_all_the_same(askers).await.map_err(|_| Lost)?;
    let work = move || {
        let _turn = turn;
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| Lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, mpsc};
    use std::thread;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn only_what_is_much_is_handed_on() {
        let here = thread::current().id();
        let larder = Askers::default();
        let at = |bytes| work(&larder, bytes, || thread::current().id());
        assert_eq!(at(LITTLE).await, Ok(here));
        assert_ne!(at(LITTLE + 1).await.unwrap(), here);
        assert_eq!(work(&larder, LITTLE + 1, || panic!("as planned")).await, Err::<(), _>(Lost));
        let left = Askers::Company(larder.company());
        assert_ne!(work(&left, LITTLE + 1, || thread::current().id()).await.unwrap(), here);
    }

    #[tokio::test]
    async fn a_crowd_of_it_takes_turns_also_where_nobody_waits_any_more() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let works: Vec<_> = (0..100)
            .map(|_| {
                let (now, most) = (Arc::clone(&now), Arc::clone(&most));
                let many = move || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    (0..1000).for_each(|_| thread::yield_now());
                    now.fetch_sub(1, Ordering::SeqCst);
                };
                tokio::spawn(async move { work(&Askers::default(), LITTLE + 1, many).await })
            })
            .collect();
        tokio::task::yield_now().await;
        works.iter().step_by(2).for_each(tokio::task::JoinHandle::abort);
        for work in works {
            let _ = work.await;
        }
        assert!((1..=AT_ONCE).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    }

    #[tokio::test]
    async fn however_much_one_client_wants_done_what_another_wants_is_next() {
        let client = |n| Askers::from(IpAddr::from(Ipv4Addr::from_bits(n)));
        let (tell, told) = mpsc::channel();
        let told = Arc::new(Mutex::new(told));
        let greedy: Vec<_> = (0..100)
            .map(|_| {
                let told = Arc::clone(&told);
                let piece = move || _ = told.lock().map(|told| told.recv());
                tokio::spawn(async move { work(&client(1), LITTLE + 1, piece).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let other = tokio::spawn(async move { work(&client(2), LITTLE + 1, || ()).await });
        tokio::task::yield_now().await;
        tell.send(()).unwrap();
        tokio::time::timeout(PATIENCE, other).await.expect("it is next").unwrap().unwrap();
        assert!(greedy.iter().filter(|piece| piece.is_finished()).count() <= 1);
        drop(tell);
        for piece in greedy {
            piece.await.unwrap().unwrap();
        }
    }
}
