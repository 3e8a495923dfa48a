//! Names to addresses, as the system does it; and as it last did it, while it cannot.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use crate::clock::{Clock, Timestamp};
use crate::flight::Flights;

use super::counts::Counts;
use super::guard::{Guard, Refused};
#[cfg(debug_assertions)]
use super::names::Names;
use super::options::Options;

/// Remembers what names led to. Clones share it.
#[derive(Clone)]
pub(super) struct Resolver(Arc<Shared>);

struct Shared {
    known: moka::sync::Cache<String, Known>,
    /// Names that only a proxy can resolve, and until when that is believed.
    unknown: moka::sync::Cache<String, Timestamp>,
    /// When each name was last asked about, but by those who joined.
    asked: moka::sync::Cache<String, Timestamp>,
    /// One question for each name and moment, however many wait: one that hangs holds a thread.
    asking: Flights<(String, Timestamp), Result<Vec<IpAddr>, String>>,
    /// To ask the system, which holds a thread for as long as it takes, and others need threads as well.
    lines: Arc<Semaphore>,
    /// How long an answer is waited for.
    patience: Duration,
    clock: Clock,
    counts: Counts,
    #[cfg(debug_assertions)]
    names: Names,
}

/// Where a name led.
#[derive(Debug, Clone)]
struct Known {
    addresses: Vec<IpAddr>,
    seen: Timestamp,
    /// Not asked again before, as the last question was in vain.
    wait: Timestamp,
}

/// Resolves and drops the addresses that the guard forbids, the remembered ones as well.
pub(super) struct Guarded {
    pub(super) resolver: Resolver,
    pub(super) guard: Guard,
}

/// For so long names lead where they led.
const REMEMBERED: Duration = Duration::from_mins(10);
/// One that takes longer has perhaps got lost, and the next would be answered: the system's own resolver waits for ten seconds
/// and more.
const LONG: Duration = Duration::from_secs(2);
/// After a question in vain.
const WAIT: Duration = Duration::from_secs(5);
const NAMES: u64 = 1000;
/// So many questions at a time. Whoever may name hosts may name such as take for ever.
const LINES: usize = 16;
const TOO_LATE: &str = "the name cannot be resolved in time";

// === impl Resolver ===

impl Resolver {
    pub(super) fn new(options: &Options, clock: Clock, counts: Counts) -> Self {
        Self(Arc::new(Shared {
            known: moka::sync::Cache::new(NAMES),
            unknown: moka::sync::Cache::new(NAMES),
            asked: moka::sync::Cache::new(NAMES),
            asking: Flights::default(),
            lines: Arc::new(Semaphore::new(LINES)),
            // Half of the time that there is, so that what is remembered can still be used.
            patience: options.connect_timeout / 2,
            clock,
            counts,
            #[cfg(debug_assertions)]
            names: options.names.clone(),
        }))
    }

    /// The addresses of a name.
    ///
    /// # Errors
    /// When they cannot be had, nor are remembered.
    pub(super) async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, io::Error> {
        let asked = host.to_owned();
        #[cfg(debug_assertions)]
        let planned = self.0.names.answer(host);
        let answer = || async move {
            #[cfg(debug_assertions)]
            if let Some(addresses) = planned {
                return Ok(addresses);
            }
            let found = tokio::net::lookup_host((asked, 0)).await.map_err(|error| error.to_string())?;
            Ok(found.map(|address| address.ip()).collect())
        };
        self.answered(host, answer).await.map_err(io::Error::other)
    }

    /// The addresses of a name that need not have any here. Where it has none, it is not asked again for a while, as nobody is to wait
    /// for that each time.
    pub(super) async fn tell(&self, host: &str) -> Option<Vec<IpAddr>> {
        let Shared { unknown, clock, .. } = &*self.0;
        if unknown.get(host).is_some_and(|until| clock.now() < until) {
            return None;
        }
        let told = self.lookup(host).await.ok();
        if told.is_none() {
            unknown.insert(host.to_owned(), clock.now() + REMEMBERED);
        }
        told
    }

    async fn answered<F>(&self, host: &str, ask: impl FnOnce() -> F) -> Result<Vec<IpAddr>, String>
    where
        F: Future<Output = Result<Vec<IpAddr>, String>> + Send + 'static,
    {
        let Shared { known, asked, asking, lines, patience, clock, counts, .. } = &*self.0;
        let now = clock.now();
        let old = known.get(host).filter(|old| now.since(old.seen) < REMEMBERED);
        if let Some(old) = old.as_ref().filter(|old| now < old.wait) {
            return Ok(old.addresses.clone());
        }
        let at = asked.get(host).filter(|at| now.since(*at) < LONG).unwrap_or(now);
        asked.insert(host.to_owned(), at);
        let (lines, patience) = (Arc::clone(lines), *patience);
        let ask = || {
            let asking = ask();
            async move {
                // No longer than anyone waits for it: what nobody waits for any more would stand before what others ask next.
                let line = tokio::time::timeout(patience, lines.acquire_owned()).await;
                let _line = line.map_err(|_| TOO_LATE)?.map_err(|error| error.to_string())?;
                asking.await
            }
        };
        let why = match tokio::time::timeout(patience, asking.join((host.to_owned(), at), ask)).await {
            Ok(Ok(Ok(addresses))) if !addresses.is_empty() => {
                known.insert(host.to_owned(), Known { addresses: addresses.clone(), seen: now, wait: now });
                return Ok(addresses);
            }
            Ok(Ok(Ok(_))) => "the name has no address".into(),
            Ok(Ok(Err(error))) => error,
            Ok(Err(lost)) => lost.to_string(),
            Err(_) => TOO_LATE.into(),
        };
        counts.dns_failed();
        let Some(old) = old else { return Err(why) };
        tracing::warn!(host, %why, "a name cannot be resolved; where it led before is used");
        known.insert(host.to_owned(), Known { wait: clock.now() + WAIT, ..old.clone() });
        Ok(old.addresses)
    }

    /// The addresses that are then dialled, and no others. The port is that of the URL.
    fn dialled(&self, host: &str, addresses: Vec<IpAddr>) -> Addrs {
        #[cfg(debug_assertions)]
        self.0.names.dial(host, &addresses);
        #[cfg(not(debug_assertions))]
        let _ = (self, host);
        Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)))
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let addresses = resolver.lookup(name.as_str()).await?;
            Ok(resolver.dialled(name.as_str(), addresses))
        })
    }
}

// === impl Guarded ===

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, guard) = (self.resolver.clone(), self.guard.clone());
        Box::pin(async move {
            let host = name.as_str();
            let own = match guard.own_host() {
                Some(own) if own != host => resolver.lookup(own).await.unwrap_or_default(),
                _ => Vec::new(),
            };
            let mut addresses = resolver.lookup(host).await?;
            addresses.retain(|address| guard.permits_resolved(*address, host, &own));
            if addresses.is_empty() {
                return Err(Refused::Private(host.into()).into());
            }
            Ok(resolver.dialled(host, addresses))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::metrics::{Format, Metrics};

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    const MINUTE: Duration = Duration::from_mins(1);

    fn resolver() -> (Resolver, Clock) {
        let clock = Clock::system();
        (Resolver::new(&options(Duration::from_millis(40)), clock.clone(), counts(&Metrics::new())), clock)
    }

    fn options(connect_timeout: Duration) -> Options {
        Options { connect_timeout, ..Options::default() }
    }

    fn counts(metrics: &Metrics) -> Counts {
        Counts::new(metrics.clone(), "docker.io".into())
    }

    async fn found(resolver: &Resolver) -> Result<Vec<IpAddr>, String> {
        resolver.answered("registry.example", || ready(Ok(vec![ADDRESS]))).await
    }

    async fn fails(resolver: &Resolver) -> Result<Vec<IpAddr>, String> {
        resolver.answered("registry.example", || ready(Err("no such name".into()))).await
    }

    #[tokio::test]
    async fn while_a_name_cannot_be_resolved_it_leads_where_it_led_for_ten_minutes() {
        let (metrics, clock) = (Metrics::new(), Clock::system());
        let resolver = Resolver::new(&options(Duration::from_secs(5)), clock.clone(), counts(&metrics));
        assert_eq!(fails(&resolver).await, Err("no such name".into()), "nothing is known yet");
        assert_eq!(found(&resolver).await, Ok(vec![ADDRESS]));
        for _ in 0..9 {
            clock.advance(MINUTE);
            assert_eq!(fails(&resolver).await, Ok(vec![ADDRESS]));
        }
        clock.advance(MINUTE);
        assert_eq!(fails(&resolver).await, Err("no such name".into()), "what it said is not known for ever");
        let counted = "larder_dns_errors_total{upstream=\"docker.io\"} 11";
        assert!(metrics.page(Format::Text).lines().any(|line| line == counted), "{}", metrics.page(Format::Text));
    }

    #[tokio::test]
    async fn a_resolver_that_hangs_is_waited_for_once_and_by_everyone_at_the_same_time() {
        let (resolver, clock) = resolver();
        assert_eq!(found(&resolver).await, Ok(vec![ADDRESS]));
        let began = std::time::Instant::now();
        assert_eq!(resolver.answered("registry.example", pending).await, Ok(vec![ADDRESS]));
        assert!(began.elapsed() >= resolver.0.patience);
        let unasked = || -> std::future::Ready<_> { panic!("it is asked although it has just hung") };
        assert_eq!(resolver.answered("registry.example", unasked).await, Ok(vec![ADDRESS]));
        assert!(resolver.answered("other.example", pending).await.unwrap_err().contains("in time"));
        assert!(
            resolver.answered("other.example", unasked).await.unwrap_err().contains("in time"),
            "that question is still open"
        );
        // A resolver that is back answers whoever asks, and not what was asked before.
        clock.advance(WAIT);
        for name in ["registry.example", "other.example"] {
            assert_eq!(resolver.answered(name, || ready(Ok(vec![OTHER]))).await, Ok(vec![OTHER]));
        }
    }

    /// Each held a thread, and a name costs nothing: those that others needed were gone.
    #[tokio::test]
    async fn however_many_names_lead_nowhere_few_are_asked_about_at_a_time() {
        let (resolver, _) = resolver();
        let (begun, end) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let asked = (0..1000).map(async |n| {
            let (begun, end) = (Arc::clone(&begun), end.clone());
            let hangs = async move {
                begun.fetch_add(1, Ordering::Relaxed);
                end.cancelled().await;
                Ok(Vec::new())
            };
            resolver.answered(&format!("{n}.example"), || hangs).await
        });
        for answer in futures_util::future::join_all(asked).await {
            assert!(answer.unwrap_err().contains("in time"));
        }
        assert_eq!(begun.load(Ordering::Relaxed), LINES);
        // When some end, those that nobody waits for any more do not come before the next name.
        while Arc::strong_count(&resolver.0.lines) > 1 + LINES {
            tokio::task::yield_now().await;
        }
        end.cancel();
        assert_eq!(found(&resolver).await, Ok(vec![ADDRESS]));
        assert_eq!(begun.load(Ordering::Relaxed), LINES);
    }

    #[tokio::test]
    async fn a_remembered_address_is_guarded_like_any_other() {
        let (resolver, _) = resolver();
        resolver.answered("cdn.example", || ready(Ok(vec![ADDRESS]))).await.unwrap();
        resolver.0.known.insert(
            "cdn.example".into(),
            Known { wait: resolver.0.clock.now() + MINUTE, ..resolver.0.known.get("cdn.example").unwrap() },
        );
        let guard = Guard::new(&"https://registry.example".parse().unwrap(), false, "none").unwrap();
        let refused = Guarded { resolver, guard }.resolve("cdn.example".parse().unwrap()).await;
        assert!(refused.err().unwrap().to_string().contains("not a public address"));
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_the_inside_is_refused() {
        let resolver = Resolver::new(&options(Duration::from_secs(20)), Clock::system(), counts(&Metrics::new()));
        let localhost = |guard| Guarded { resolver: resolver.clone(), guard }.resolve("localhost".parse().unwrap());
        let guard = |upstream: &str| Guard::new(&upstream.parse().unwrap(), false, "none").unwrap();
        assert!(localhost(guard("https://registry.example")).await.is_err());
        assert!(localhost(guard("https://localhost")).await.is_ok(), "unless the operator has put the upstream there");
        assert!(localhost(Guard::public_only()).await.is_err());
    }
}
