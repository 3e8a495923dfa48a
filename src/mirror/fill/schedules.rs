//! The list of fills under many orders of events. The fills write into a real store; what upstreams would send is scripted.

use std::sync::Arc;

use bytes::Bytes;
use shuttle::future::{block_on, spawn, yield_now};

use super::For;
use super::running::{Begun, Fills, Head, Joined, Landing};
use crate::clock::Clock;
use crate::current::Current;
use crate::mirror::{Access, Freshness, Options, Origin, Refusal, Registries, Registry};
use crate::oci::Digest;
use crate::store::schedules::{Scratch, content};
use crate::store::{Finished, Store, TAIL};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::in_many_orders;
use crate::upstream::{self, Upstream};

/// What an upstream does.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    SendsAll,
    /// So much that it is not fetched for nobody.
    SendsMuch,
    Refuses,
    /// After the first bytes.
    FallsSilent,
}

/// What a client learns of a blob.
#[derive(Debug, PartialEq)]
enum Learned {
    AllOfIt,
    Refused,
    Left,
}

#[derive(Clone)]
struct World {
    fills: Fills,
    store: Store,
    origin: Origin,
    digest: Digest,
    blob: Bytes,
    transfers: Arc<AtomicUsize>,
    at_once: Arc<AtomicUsize>,
}

impl World {
    fn new(scratch: &Scratch) -> Self {
        let upstream = Upstream::offline("docker.io", Clock::system());
        let access = Current::new(Access::default());
        let freshness = Current::new(Freshness::of(&Options::default(), &upstream::Options::default()));
        let registry = Registry { upstream, public_url: None, access, freshness, anyones: false };
        let origin = Registries::new(Arc::new(registry)).resolve(&"alpine".parse().unwrap()).unwrap();
        let blob = content(5, 2 * TAIL);
        Self {
            fills: Fills::new(1),
            store: scratch.store.clone(),
            origin,
            digest: Digest::sha256(&blob),
            blob,
            transfers: Arc::default(),
            at_once: Arc::default(),
        }
    }

    /// A fill, as the mirror runs one.
    async fn run(self, landing: Landing, does: Does) {
        let fill = landing.fill();
        assert_eq!(self.at_once.fetch_add(1, Ordering::SeqCst), 0, "one fill at a time");
        self.transfers.fetch_add(1, Ordering::SeqCst);
        let left = self.store.left_from("docker.io", &self.digest);
        let mut writer = self.store.begin_from("docker.io", self.digest.clone(), left).await;
        assert_eq!(writer.accepted(), left, "what the books tell of is there");
        assert_eq!(writer.bypassed(), None, "the last fill has let go of the file");
        if does == Does::Refuses {
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            fill.head.send_replace(Head::Failed(upstream::Error::NotFound.into()));
            return writer.suspend().await;
        }
        writer.expect(self.blob.len() as u64).await;
        fill.head.send_replace(Head::Begun(Begun { growth: writer.growth(), bypass: None, cache_status: None }));
        let mut rest = self.blob.slice(usize::try_from(writer.accepted()).unwrap()..);
        let (mut permit, mut company) = (None, fill.company.watch());
        loop {
            if !self.fills.may_go_on(fill, does == Does::SendsAll, &mut permit) && self.fills.close(fill) {
                self.at_once.fetch_sub(1, Ordering::SeqCst);
                return writer.suspend().await;
            }
            if does == Does::FallsSilent {
                company.changed().await;
                continue;
            }
            if rest.is_empty() {
                break;
            }
            writer.push(rest.split_to(rest.len().min(1300)));
            while writer.is_busy() {
                writer.progress().await;
            }
        }
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        assert_eq!(writer.finish().await, Finished::Kept);
    }

    /// A client, as the mirror serves one. It leaves after `stays` bytes.
    async fn client(self, does: Does, stays: u64) -> Learned {
        loop {
            let (joined, started) =
                self.fills.join(&self.origin, &self.digest, For::Answer, || self.store.size(&self.digest).is_some());
            if let Some(landing) = started {
                drop(spawn(self.clone().run(landing, does)));
            }
            let interest = match joined {
                Joined::Fill { interest, .. } => interest,
                Joined::Settled => {
                    assert!(self.store.get(&self.digest).await.unwrap().is_some(), "what is in the cache can be had");
                    return Learned::AllOfIt;
                }
                Joined::Ending(landed) => {
                    landed.cancelled().await;
                    continue;
                }
            };
            match interest.begun().await {
                Ok(Some(begun)) => {
                    let size = self.blob.len() as u64;
                    let mut reader = begun.growth.read(0, Some(size.min(stays)));
                    while let Some(bytes) = reader.next().await {
                        assert!(bytes.is_ok(), "a fill does not stop while someone wants it");
                    }
                    return if stays < size { Learned::Left } else { Learned::AllOfIt };
                }
                Ok(None) => interest.landed().await,
                Err(Refusal::Upstream(upstream::Error::NotFound)) => return Learned::Refused,
                Err(refusal) => panic!("{refusal}"),
            }
        }
    }

    /// Waits until no fill is on the list.
    async fn rest(&self) {
        while let (Joined::Fill { interest, .. }, None) = self.fills.join(&self.origin, &self.digest, For::Cache, || true) {
            interest.landed().await;
        }
    }
}

#[test]
fn a_blob_is_transferred_once_however_its_clients_come_and_go() {
    in_many_orders(|| {
        block_on(async {
            let scratch = Scratch::new(1 << 20).await;
            let world = World::new(&scratch);
            let clients = [0, u64::MAX, 100, u64::MAX].map(|stays| spawn(world.clone().client(Does::SendsAll, stays)));
            for (n, client) in clients.into_iter().enumerate() {
                let learned = client.await.unwrap();
                assert!(learned == Learned::AllOfIt || learned == Learned::Left && n % 2 == 0);
            }
            world.rest().await;
            assert_eq!(world.transfers.load(Ordering::SeqCst), 1, "a fill that is worth it goes on for nobody");
            assert_eq!(scratch.store.size(&world.digest), Some(world.blob.len() as u64));
            scratch.check_at_rest().await;
        });
    });
}

/// A fill that closes without looking once more whether it is wanted fails here.
#[test]
fn a_large_fill_stops_when_nobody_wants_it_but_never_under_one_who_has_just_come() {
    in_many_orders(|| {
        block_on(async {
            let scratch = Scratch::new(1 << 20).await;
            let world = World::new(&scratch);
            let clients = [0, u64::MAX, 100, u64::MAX].map(|stays| spawn(world.clone().client(Does::SendsMuch, stays)));
            for (n, client) in clients.into_iter().enumerate() {
                let learned = client.await.unwrap();
                assert!(learned == Learned::AllOfIt || learned == Learned::Left && n % 2 == 0);
            }
            world.rest().await;
            assert_eq!(scratch.store.size(&world.digest), Some(world.blob.len() as u64));
            scratch.check_at_rest().await;
        });
    });
}

#[test]
fn all_who_wait_for_a_fill_are_told_the_same_refusal() {
    in_many_orders(|| {
        block_on(async {
            let scratch = Scratch::new(1 << 20).await;
            let world = World::new(&scratch);
            let clients = [(); 3].map(|()| spawn(world.clone().client(Does::Refuses, u64::MAX)));
            for client in clients {
                assert_eq!(client.await.unwrap(), Learned::Refused);
            }
            world.rest().await;
            scratch.check_at_rest().await;
        });
    });
}

#[test]
fn a_silent_fill_stops_with_its_last_client_and_the_next_client_starts_anew() {
    in_many_orders(|| {
        block_on(async {
            let scratch = Scratch::new(1 << 20).await;
            let world = World::new(&scratch);
            let clients = [(); 3].map(|()| spawn(world.clone().client(Does::FallsSilent, 0)));
            for client in clients {
                assert_eq!(client.await.unwrap(), Learned::Left);
            }
            // Whether it joins the last silent fill's end or comes after it.
            loop {
                match world.fills.join(&world.origin, &world.digest, For::Answer, || false) {
                    (Joined::Ending(landed), None) => landed.cancelled().await,
                    (Joined::Fill { interest, .. }, None) => interest.landed().await,
                    (_, Some(landing)) => {
                        world.clone().run(landing, Does::SendsAll).await;
                        break;
                    }
                    _ => unreachable!("nothing is cached"),
                }
                yield_now().await;
            }
            assert_eq!(scratch.store.size(&world.digest), Some(world.blob.len() as u64));
            scratch.check_at_rest().await;
        });
    });
}
