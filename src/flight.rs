//! Work that many wait for is done once.

#[cfg(all(test, feature = "schedules"))]
mod schedules;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError};

use crate::sync::{Mutex, start_task, watch};

/// Runs at most one piece of work per key at a time and gives its outcome to all who asked meanwhile.
///
/// The work runs in a task of its own, so that whoever leaves, the first included, neither ends it nor makes it start
/// again. Nothing is kept once it has ended. `C` is what the work knows of those who wait for it.
pub struct Flights<K, V, C = ()> {
    under_way: UnderWay<K, V, C>,
}

type UnderWay<K, V, C> = Arc<Mutex<HashMap<K, Flight<V, C>>>>;

struct Flight<V, C> {
    outcome: watch::Receiver<Option<V>>,
    company: C,
}

/// What work will have come to.
pub struct Outcome<V>(watch::Receiver<Option<V>>);

/// The work panicked. It is told to everyone who waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the task that was waited for failed")]
pub struct Lost;

/// Takes the key out of the map however the work ends.
struct Landing<K: Eq + Hash, V, C> {
    under_way: UnderWay<K, V, C>,
    key: K,
}

impl<K, V, C> Default for Flights<K, V, C> {
    fn default() -> Self {
        Self { under_way: Arc::default() }
    }
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the work under way for `key`, or starts `work`.
    ///
    /// Cancel safe: the work goes on without the caller.
    ///
    /// # Errors
    /// [`Lost`] if the work panicked.
    pub async fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<V, Lost>
    where
        F: Future<Output = V> + Send + 'static,
    {
        self.join_company(key, || (), |()| (), |()| work()).1.wait().await
    }
}

impl<K, V, C> Flights<K, V, C>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
    C: Clone + Send + 'static,
{
    /// Joins the work under way for `key`, or starts `work`, and does not wait for it yet. Who joins has entered the company of that work
    /// before it can look at it or come to its end; where it starts, a company is made for it.
    pub fn join_company<F, G>(
        &self,
        key: K,
        company: impl FnOnce() -> C,
        enter: impl FnOnce(&C) -> G,
        work: impl FnOnce(C) -> F,
    ) -> (G, Outcome<V>)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = under_way.get(&key) {
            return (enter(&flight.company), Outcome(flight.outcome.clone()));
        }
        let (send, outcome) = watch::channel(None);
        let company = company();
        let entered = enter(&company);
        under_way.insert(key.clone(), Flight { outcome: outcome.clone(), company: company.clone() });
        let landing = Landing { under_way: Arc::clone(&self.under_way), key };
        let work = work(company);
        start_task(async move {
            let value = work.await;
            // Who asks from now on starts anew; who has asked gets this.
            drop(landing);
            let _ = send.send(Some(value));
        });
        (entered, Outcome(outcome))
    }
}

// === impl Outcome ===

impl<V: Clone> Outcome<V> {
    /// Waits until the work has come to its end.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Lost`] if the work panicked.
    pub async fn wait(mut self) -> Result<V, Lost> {
        let value = self.0.wait_for(Option::is_some).await.map_err(|_| Lost)?;
        value.clone().ok_or(Lost)
    }
}

impl<K: Eq + Hash, V, C> Drop for Landing<K, V, C> {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn fifty_who_ask_at_once_cause_one_piece_of_work() {
        let flights = Arc::new(Flights::default());
        let (runs, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let asking: Vec<_> = (0..50)
            .map(|_| {
                let (flights, runs, go) = (flights.clone(), runs.clone(), go.clone());
                tokio::spawn(async move {
                    let work = || async move {
                        go.notified().await;
                        runs.fetch_add(1, Ordering::SeqCst) + 1
                    };
                    flights.join("key", work).await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        asking[0].abort();
        go.notify_one();
        let mut answers = Vec::new();
        for task in asking {
            if let Ok(answer) = task.await {
                answers.push(answer);
            }
        }
        assert_eq!(answers, vec![Ok(1); 49], "the one who left is not waited for and breaks nothing");
        assert_eq!(flights.join("key", || async { 2 }).await, Ok(2), "nothing is kept");
    }

    #[tokio::test]
    async fn a_panic_is_told_and_the_next_one_starts_anew() {
        let flights: Flights<&str, u8> = Flights::default();
        assert_eq!(flights.join("key", || async { panic!("as planned") }).await, Err(Lost));
        assert_eq!(flights.join("key", || async { 7 }).await, Ok(7));
    }
}
