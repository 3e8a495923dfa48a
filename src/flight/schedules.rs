//! Flights under many orders of events.

use shuttle::future::{block_on, spawn, yield_now};

use super::*;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::in_many_orders;

#[test]
fn work_is_done_once_at_a_time_and_everyone_is_told() {
    in_many_orders(|| {
        block_on(async {
            let flights = Arc::new(Flights::default());
            let (at_work, runs) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let ask = || {
                let (flights, at_work, runs) = (Arc::clone(&flights), Arc::clone(&at_work), Arc::clone(&runs));
                let work = move || async move {
                    assert_eq!(at_work.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                    yield_now().await;
                    at_work.fetch_sub(1, Ordering::SeqCst);
                    runs.fetch_add(1, Ordering::SeqCst)
                };
                async move {
                    let first = flights.join("key", work.clone()).await.unwrap();
                    let second = flights.join("key", work).await.unwrap();
                    assert!(first < second, "nothing is kept: who asks again gets new work");
                }
            };
            let (leaves, stays, stays_too) = (spawn(ask()), spawn(ask()), spawn(ask()));
            leaves.abort();
            stays.await.unwrap();
            stays_too.await.unwrap();
        });
    });
}

#[test]
fn work_that_is_lost_is_lost_to_all_and_then_begun_anew() {
    in_many_orders(|| {
        block_on(async {
            let flights: Flights<&str, u8> = Flights::default();
            let flights = Arc::new(flights);
            let (send, outcome) = watch::channel(None);
            let lost = flights.under_way.lock().unwrap().insert("key", Flight { outcome, company: () });
            assert!(lost.is_none());
            let landing = Landing { under_way: Arc::clone(&flights.under_way), key: "key" };
            let ask = || {
                let flights = Arc::clone(&flights);
                async move { flights.join("key", || async { 7 }).await }
            };
            let asking = [spawn(ask()), spawn(ask())];
            // As a task that panics drops what it holds.
            let panicking = spawn(async move { drop((landing, send)) });
            for answer in asking {
                assert!(matches!(answer.await.unwrap(), Err(Lost) | Ok(7)));
            }
            panicking.await.unwrap();
            assert_eq!(ask().await, Ok(7));
        });
    });
}
