//! Thousands who want to do harm, against the program itself: what they cost is counted in bytes, descriptors and requests, and bounded.
//! How long others wait meanwhile is printed, for whoever runs a test alone.

mod silent;
mod unknown;
mod unread;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Authority, Client, Process, Raw, Registry, get, noise};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const CROWD: usize = 5_000;
/// Listeners, files, the runtime's own, and connections of those who do no harm.
const OTHERS: usize = 128;

/// A larder in a process of its own that has a small blob, and as much room as these options give it.
struct Attacked {
    larder: Process,
    small: String,
    /// Another, whom nobody attacks: what its clients wait for is the machine.
    spared: Process,
    /// Before anyone comes.
    memory: u64,
    in_sockets: u64,
    dir: TempDir,
    _upstream: Registry,
    /// Of the other, and of the certificate.
    others: Vec<TempDir>,
    _alone: MutexGuard<'static, ()>,
}

/// The kernel tells how much memory it has for all sockets of the machine: there is one crowd at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

// === impl Attacked ===

impl Attacked {
    /// The same with a listener for TLS, where that is, and whom its clients believe.
    async fn behind_tls(upstream: Registry, options: &[&str]) -> (Self, SocketAddr, Authority) {
        let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let (certificate, key) = authority.server(dir.path(), "127.0.0.1");
        let (certificate, key) = (certificate.display(), key.display());
        let listener = format!("server.listener=[{{listen='127.0.0.1:0', cert_file='{certificate}', key_file='{key}'}}]");
        let mut attacked = Self::with(upstream, &[&[&*listener], options].concat()).await;
        attacked.others.push(dir);
        let tls = attacked.larder.tls_address();
        (attacked, tls, authority)
    }

    async fn with(upstream: Registry, options: &[&str]) -> Self {
        let alone = ALONE.lock().await;
        let small = upstream.put_blob("library/alpine", noise(1, 10_000));
        let dir = tempfile::tempdir().unwrap();
        let to_upstream = format!("upstream.\"docker.io\".url={}", upstream.url());
        let settings = [&[&*to_upstream, "log.level=error"], options].concat();
        let larder = Process::start_within(&["--nofile=20000:20000"], dir.path(), &settings);
        let spared_dir = tempfile::tempdir().unwrap();
        let spared = Process::start_within(&[], spared_dir.path(), &settings[..2]);
        let small = format!("/v2/library/alpine/blobs/{small}");
        for larder in [&larder, &spared] {
            get(larder.url(&small)).await.expect(200);
        }
        larder.forget_peak();
        let (memory, in_sockets) = (larder.memory(), in_sockets());
        Self { larder, small, spared, memory, in_sockets, dir, _upstream: upstream, others: vec![spared_dir], _alone: alone }
    }

    fn address(&self) -> SocketAddr {
        self.larder.address()
    }

    /// How much more memory it has had than before, at the most.
    fn grown(&self) -> u64 {
        self.larder.peak().saturating_sub(self.memory)
    }

    /// How much more memory the kernel has for sockets than before.
    fn grown_in_sockets(&self) -> u64 {
        in_sockets().saturating_sub(self.in_sockets)
    }

    /// How long the 99th of a hundred others waits, each for the whole of a small blob.
    async fn others_wait(&self) -> Duration {
        self.clients_wait(&self.larder).await
    }

    async fn clients_wait(&self, larder: &Process) -> Duration {
        let url = larder.url(&self.small);
        // In a thread of their own, or they would wait for the test, which is the crowd.
        let clients = task::spawn_blocking(move || {
            Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let client = Client::h1();
                let mut waited = Vec::new();
                for _ in 0..500 {
                    let begun = Instant::now();
                    assert_eq!(client.get(&url).await.expect(200).body, noise(1, 10_000));
                    waited.push(begun.elapsed());
                }
                waited.sort();
                waited[waited.len() * 99 / 100]
            })
        });
        clients.await.unwrap()
    }

    async fn tells(&self, who: &str, before: Duration) {
        let (now, spared) = (self.others_wait().await, self.clients_wait(&self.spared).await);
        let (grown, in_sockets, open) = (self.grown() / MIB, self.grown_in_sockets() / MIB, self.larder.descriptors());
        eprintln!(
            "{who}: {grown} MiB more, {in_sockets} MiB in sockets, {open} descriptors; others wait {now:?} at p99, {before:?} before; those of a larder that is spared {spared:?}"
        );
    }
}

/// How much memory the kernel has for TCP, that of this test's own sockets and of all others on this machine included.
fn in_sockets() -> u64 {
    let sockets = fs::read_to_string("/proc/net/sockstat").unwrap();
    let tcp = sockets.lines().find_map(|line| line.strip_prefix("TCP:")).expect("there is TCP");
    let pages = tcp.split_once(" mem ").expect("it has memory").1;
    pages.trim().parse::<u64>().expect("a number") * rustix::param::page_size() as u64
}

/// Connects so many, a few at a time.
async fn crowd(address: SocketAddr, number: usize) -> Vec<Raw> {
    stream::iter(0..number).map(|_| Raw::connect(address)).buffer_unordered(16).collect().await
}

/// The same by TLS.
async fn crowd_by_tls(address: SocketAddr, number: usize, believes: ClientConfig) -> Vec<TlsStream<TcpStream>> {
    let tls = TlsConnector::from(Arc::new(believes));
    let connect = async |_| {
        let stream = Raw::connect(address).await.into_stream();
        tls.connect(ServerName::IpAddress(address.ip().into()), stream).await.unwrap()
    };
    stream::iter(0..number).map(connect).buffer_unordered(16).collect().await
}

/// How many times as many as in the gate: `ATTACKS=20`.
fn times() -> usize {
    std::env::var("ATTACKS").map_or(1, |times| times.parse().expect("a number"))
}
