//! Questions that many have at once are asked once.

use std::hash::Hash;

use crate::flight::{Flights, Outcome};
use crate::upstream::{Askers, Company, Presence};

use super::rights::View;
use super::{Origin, Refusal};

/// What upstreams are asked at the moment, about things of one kind. What an upstream says, and above all that it says no, is for the one
/// as whom it was asked.
pub(super) struct Shared<T, A> {
    flights: Flights<(View, T), Result<A, Refusal>, Company>,
}

// === impl Shared ===

impl<T, A> Default for Shared<T, A> {
    fn default() -> Self {
        Self { flights: Flights::default() }
    }
}

impl<T, A> Shared<T, A>
where
    T: Eq + Hash + Clone + Send + 'static,
    A: Clone + Send + Sync + 'static,
{
    /// Asks once for all who want to know, whoever of them comes first.
    ///
    /// Cancel safe: a question that has gone out is answered and noted without the caller; one that waits for its turn, and that nobody
    /// else has, is not asked.
    pub(super) async fn ask<F>(&self, origin: &Origin, thing: &T, ask: impl Fn(Origin) -> F) -> Result<A, Refusal>
    where
        F: Future<Output = Result<A, Refusal>> + Send + 'static,
    {
        self.ask_for(origin, thing, ask, false).await
    }

    /// Likewise, `anyhow`: even if nobody waits any more when it is its turn.
    pub(super) async fn ask_for<F>(
        &self,
        origin: &Origin,
        thing: &T,
        ask: impl Fn(Origin) -> F,
        anyhow: bool,
    ) -> Result<A, Refusal>
    where
        F: Future<Output = Result<A, Refusal>> + Send + 'static,
    {
        match self.ask_or_join(origin, thing, &ask, anyhow).await {
            // Once more: the next question is for another who had joined, or for us.
            (Err(refusal), false) if refusal.is_of_who_asked() => self.ask_or_join(origin, thing, ask, anyhow).await.0,
            (answer, _) => answer,
        }
    }

    /// Asks for whoever comes next, and does not wait for the answer.
    pub(super) fn start<F>(&self, origin: &Origin, thing: &T, ask: impl Fn(Origin) -> F)
    where
        F: Future<Output = Result<A, Refusal>> + Send + 'static,
    {
        self.join(origin, thing, ask, true);
    }

    /// As [`ask_for`](Self::ask_for), and once. Tells also whether it was this one who asked.
    pub(super) async fn ask_or_join<F>(
        &self,
        origin: &Origin,
        thing: &T,
        ask: impl Fn(Origin) -> F,
        anyhow: bool,
    ) -> (Result<A, Refusal>, bool)
    where
        F: Future<Output = Result<A, Refusal>> + Send + 'static,
    {
        let (presence, answer, ours) = self.join(origin, thing, ask, anyhow);
        let answer = presence.wait(answer.wait()).await;
        (answer.unwrap_or_else(|lost| Err(lost.into())), ours)
    }

    fn join<F>(
        &self,
        origin: &Origin,
        thing: &T,
        ask: impl Fn(Origin) -> F,
        anyhow: bool,
    ) -> (Presence, Outcome<Result<A, Refusal>>, bool)
    where
        F: Future<Output = Result<A, Refusal>> + Send + 'static,
    {
        let (askers, mut ours) = (&origin.behalf.askers, false);
        let work = |company: Company| {
            ours = true;
            let stays = anyhow.then(|| company.enter(askers));
            let mut origin = origin.clone();
            origin.behalf.askers = Askers::Company(company);
            let asked = ask(origin);
            async move {
                let answer = asked.await;
                drop(stays);
                answer
            }
        };
        let key = (origin.view(), thing.clone());
        let (presence, answer) = self.flights.join_company(key, || askers.company(), |company| company.enter(askers), work);
        (presence, answer, ours)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use futures_util::FutureExt as _;
    use tokio::sync::mpsc;

    use super::*;
    use crate::clock::Clock;
    use crate::current::Current;
    use crate::mirror::{Freshness, Options, Registries, Registry};
    use crate::upstream::{self, Upstream, Who};

    const ONE: Who = Some(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)));
    const OTHER: Who = Some(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)));

    fn origin() -> Origin {
        let upstream = Upstream::offline("docker.io", Clock::system());
        let freshness = Current::new(Freshness::of(&Options::default(), &upstream::Options::default()));
        let registry = Registry { upstream, public_url: None, access: Current::default(), freshness, anyones: false };
        Registries::new(Arc::new(registry)).resolve(&"alpine".parse().unwrap()).unwrap()
    }

    fn of(origin: &Origin, who: Who) -> Origin {
        let mut origin = origin.clone();
        origin.behalf.askers = Askers::One(who);
        origin
    }

    #[tokio::test]
    async fn what_a_question_leads_to_is_asked_for_all_who_wait_for_it_at_the_moment() {
        let (first, second) = (Arc::new(Shared::<&str, ()>::default()), Arc::new(Shared::<&str, ()>::default()));
        let (send, mut asked) = mpsc::unbounded_channel();
        let ask = |origin: Origin| {
            let (second, send) = (Arc::clone(&second), send.clone());
            async move {
                let ask = |origin: Origin| {
                    send.send(origin.behalf.askers).unwrap();
                    pending()
                };
                second.ask(&origin, &"the manifest", ask).await
            }
        };
        let origin = origin();
        let (one, other) = (of(&origin, ONE), of(&origin, OTHER));
        let mut one = Box::pin(first.ask(&one, &"the tag", ask));
        let mut other = Box::pin(first.ask(&other, &"the tag", ask));
        assert!((&mut one).now_or_never().is_none());
        let mut askers = asked.recv().await.unwrap().watch();
        assert_eq!(askers.now(), [ONE]);
        assert!((&mut other).now_or_never().is_none());
        askers.changed().await;
        assert_eq!(askers.now(), [ONE, OTHER]);
        drop(one);
        askers.changed().await;
        assert_eq!(askers.now(), [OTHER]);
        drop(other);
        askers.changed().await;
        assert_eq!(askers.now(), []);
        assert!(asked.try_recv().is_err(), "once");
    }
}
