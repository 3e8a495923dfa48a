//! Thousands who want to do harm, against the program itself: what they cost is counted in bytes, descriptors and requests, and bounded.
//! How long others wait meanwhile is printed, for whoever runs a test alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use rustix::process::nice;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep};

use crate::support::{Authority, Client, Process, Raw, Registry, digest_of, get, noise};

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
    _upstream: Registry,
    _dirs: [tempfile::TempDir; 2],
}

// === impl Attacked ===

impl Attacked {
    async fn with(upstream: Registry, options: &[&str]) -> Self {
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
        Self { memory: larder.memory(), larder, small, spared, _upstream: upstream, _dirs: [dir, spared_dir] }
    }

    fn address(&self) -> SocketAddr {
        self.larder.address()
    }

    fn grown(&self) -> u64 {
        self.larder.memory().saturating_sub(self.memory)
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
        let (grown, open) = (self.grown() / MIB, self.larder.descriptors());
        eprintln!(
            "{who}: {grown} MiB more, {open} descriptors; others wait {now:?} at p99, {before:?} before; those of a larder that is spared {spared:?}"
        );
    }

    /// Asks the same by so many streams of so many connections, and takes the heads of the answers and nothing more.
    async fn unread(
        &self,
        connections: usize,
        streams: usize,
        request: &http::Request<()>,
    ) -> (Vec<http::Response<h2::RecvStream>>, JoinSet<()>) {
        let (mut answers, mut open) = (Vec::new(), JoinSet::new());
        for _ in 0..connections {
            let stream = TcpStream::connect(self.address()).await.unwrap();
            let (mut requests, connection) =
                h2::client::Builder::new().initial_window_size(0).handshake::<_, bytes::Bytes>(stream).await.unwrap();
            open.spawn(async move { drop(connection.await) });
            for _ in 0..streams {
                requests = requests.ready().await.unwrap();
                answers.push(requests.send_request(request.clone(), true).unwrap().0);
            }
        }
        (join_all(answers).await.into_iter().filter_map(Result::ok).collect(), open)
    }
}

/// Connects so many, a few at a time.
async fn crowd(address: SocketAddr, number: usize) -> Vec<Raw> {
    stream::iter(0..number).map(|_| Raw::connect(address)).buffer_unordered(64).collect().await
}

#[tokio::test]
async fn five_thousand_who_say_nothing_or_never_end_cost_little_and_are_closed() {
    let attacked = Attacked::with(Registry::start().await, &[]).await;
    let before = attacked.others_wait().await;
    let mut clients = crowd(attacked.address(), CROWD).await;
    for (n, client) in clients.iter_mut().enumerate() {
        match n % 4 {
            0 => {}
            1 => client.send("G").await,
            2 => client.send("GET /v2/ HTTP/1.1\r\nhost: mirror\r\nx-slow: ").await,
            _ => client.send("PRI * HTTP/2.0\r\n\r\n").await,
        }
    }
    attacked.larder.until("larder_connections", |open| open >= CROWD as u64).await;
    attacked.tells("5,000 who say nothing", before).await;
    assert!(attacked.grown() < 40 * KIB * CROWD as u64, "{}", attacked.grown());
    assert!(attacked.larder.descriptors() < CROWD + OTHERS);
    // A byte now and then does not keep them, and it is larder that closes them all.
    let mut dripping = JoinSet::new();
    for n in (2..402).step_by(4).rev() {
        let mut client = clients.swap_remove(n);
        dripping.spawn(async move {
            while client.try_send("x").await.is_ok() {
                sleep(Duration::from_millis(200)).await;
            }
        });
    }
    drop(dripping.join_all().await);
    attacked.larder.until("larder_connections", |open| open <= 1).await;
    drop(clients);
    assert!(attacked.larder.descriptors() < OTHERS);
}

/// Half a `ClientHello`, whose rest never comes.
#[tokio::test]
async fn five_thousand_who_stall_in_a_handshake_cost_little_and_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (certificate, key) = authority.server(dir.path(), "127.0.0.1");
    let (certificate, key) = (certificate.display(), key.display());
    let listener = format!("server.listener=[{{listen='127.0.0.1:0', cert_file='{certificate}', key_file='{key}'}}]");
    let attacked = Attacked::with(Registry::start().await, &[&listener]).await;
    let before = attacked.others_wait().await;
    let tls = attacked.larder.greeting().split("https://").nth(1).unwrap().split_whitespace().next().unwrap();
    let mut clients = crowd(tls.parse().unwrap(), CROWD).await;
    for client in &mut clients {
        // Those that have made room for others hear no more.
        let _ = client.try_send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    }
    let handshakes = Client::tls(authority.believed(rustls::ALL_VERSIONS, &["h2"]));
    let begun = Instant::now();
    handshakes.get(format!("https://{tls}/v2/")).await.expect(200);
    eprintln!("a handshake among them takes {:?}", begun.elapsed());
    attacked.tells("5,000 who stall in a handshake", before).await;
    assert!(attacked.grown() < 40 * KIB * CROWD as u64, "{}", attacked.grown());
    assert!(attacked.larder.descriptors() < CROWD + OTHERS);
    attacked.larder.until("larder_connections", |open| open <= 2).await;
    drop(clients);
}

/// They held all the memory that there is for answers, and for as long as they were borne with, others were told to come again.
#[tokio::test]
async fn five_thousand_who_read_nothing_are_bounded_in_bytes_and_keep_nobody_out() {
    let upstream = Registry::start().await;
    let large = upstream.put_blob("library/alpine", noise(2, 4 << 20));
    let attacked = Attacked::with(upstream, &["server.write_idle=15s"]).await;
    let path = format!("/v2/library/alpine/blobs/{large}");
    get(attacked.larder.url(&path)).await.expect(200);
    let before = attacked.others_wait().await;
    let mut clients = crowd(attacked.address(), CROWD).await;
    for client in &mut clients {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: mirror\r\n\r\n")).await;
    }
    let heads = join_all(clients.iter_mut().map(|client| client.take("HTTP/1.1 200".len()))).await;
    let refused = heads.iter().filter(|head| *head != b"HTTP/1.1 200").count();
    let (held, grown) = (attacked.larder.metric("larder_body_buffer_bytes").await, attacked.grown());
    eprintln!("{} MiB in buffers, {refused} are refused", held / MIB);
    assert_eq!(refused, 0);
    attacked.tells("5,000 who read nothing", before).await;
    assert!(held <= 5 * MIB, "{held}");
    assert!(grown <= 512 * MIB, "{grown}");
    assert!(attacked.larder.descriptors() < CROWD + OTHERS);
    attacked.larder.until("larder_slow_clients_total", |slow| slow == CROWD as u64).await;
    attacked.larder.until("larder_body_buffer_bytes", |held| held == 0).await;
    assert_eq!(attacked.larder.metric("larder_shed_total{reason=\"memory\"}").await, 0);
}

#[tokio::test]
async fn ten_thousand_streams_without_window_are_bounded_in_bytes_and_reset() {
    const CONNECTIONS: usize = 80;
    const STREAMS: usize = 125;
    let upstream = Registry::start().await;
    let large = upstream.put_blob("library/alpine", noise(2, 1 << 20));
    let attacked = Attacked::with(upstream, &["server.write_idle=5s"]).await;
    let url = attacked.larder.url(&format!("/v2/library/alpine/blobs/{large}"));
    get(&url).await.expect(200);
    let before = attacked.others_wait().await;
    let request = http::Request::get(&url).body(()).unwrap();
    let (answers, mut connections) = attacked.unread(CONNECTIONS, STREAMS, &request).await;
    let held = attacked.larder.metric("larder_body_buffer_bytes").await;
    attacked.tells("10,000 streams without window", before).await;
    eprintln!("{} answers, {} MiB in buffers", answers.len(), held / MIB);
    assert!(attacked.grown() <= 400 * MIB, "{}", attacked.grown());
    assert!(held <= 256 * MIB + (CONNECTIONS * STREAMS) as u64 * 16 * KIB, "{held}");
    attacked.larder.until("larder_body_buffer_bytes", |held| held == 0).await;
    connections.abort_all();
    attacked.larder.until("larder_connections", |open| open <= 1).await;
}

/// Each range of an answer had a reader of its own, from the first to the last.
#[tokio::test]
async fn answers_of_a_thousand_ranges_that_nobody_reads_take_no_more_than_others() {
    const STREAMS: usize = 120;
    let attacked = Attacked::with(Registry::start().await, &["server.write_idle=5s"]).await;
    let url = attacked.larder.url(&attacked.small);
    let ranges = format!("bytes={}", ["0-0"; 1_000].join(","));
    let request = http::Request::get(&url).header("range", &ranges).body(()).unwrap();
    let (answers, mut connections) = attacked.unread(2, STREAMS, &request).await;
    assert!(answers.len() == 2 * STREAMS && answers.iter().all(|answer| answer.status() == 206));
    let grown = attacked.grown();
    eprintln!("{} answers of a thousand ranges: {} MiB more", answers.len(), grown / MIB);
    assert!(grown <= 48 * MIB, "{grown}");
    connections.abort_all();
    attacked.larder.until("larder_connections", |open| open <= 1).await;
}

/// An upstream that has nothing, and counts.
#[derive(Default)]
struct Asked {
    all: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
}

async fn has_nothing(listener: TcpListener, asked: Arc<Asked>) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let asked = Arc::clone(&asked);
        connections.spawn(async move {
            let mut head = Vec::new();
            while matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    asked.all.fetch_add(1, Ordering::Relaxed);
                    asked.most.fetch_max(asked.now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                    sleep(Duration::from_millis(2)).await;
                    asked.now.fetch_sub(1, Ordering::Relaxed);
                    let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        });
    }
}

/// So many at once, on one connection.
const AT_ONCE: usize = 10;

/// Does what others do on machines of their own, until nobody waits for it: they take what is left over of this one.
fn elsewhere<T: Send + 'static, F: Future<Output = T>>(what: impl FnOnce() -> F + Send + 'static) -> impl Future<Output = T> {
    let (mut done, ends) = oneshot::channel();
    thread::spawn(move || {
        nice(19).unwrap();
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            tokio::select! {
                what = what() => drop(done.send(what)),
                () = done.closed() => {}
            }
        });
    });
    async { ends.await.unwrap() }
}

/// Asks for blobs that nobody has.
async fn ask_for_nothing(client: usize, mut connection: Raw, rounds: usize) {
    for round in 0..rounds {
        let digests = (0..AT_ONCE).map(|n| digest_of(format!("{client} {round} {n}").as_bytes()));
        let asked: Vec<String> =
            digests.map(|digest| format!("GET /v2/quay.io/a/b/blobs/{digest} HTTP/1.1\r\nhost: mirror\r\n\r\n")).collect();
        connection.send(asked.concat()).await;
        for _ in 0..AT_ONCE {
            let head = connection.head().await;
            assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap();
            connection.take(length).await;
        }
    }
}

/// `ATTACKS=20` asks for 100,000.
#[tokio::test]
async fn thousands_of_unknown_digests_cost_one_question_each_and_no_memory() {
    const CLIENTS: usize = 100;
    let rounds = 5 * std::env::var("ATTACKS").map_or(1, |times| times.parse::<usize>().unwrap());
    let (bound, asked) = (std::net::TcpListener::bind("127.0.0.1:0").unwrap(), Arc::<Asked>::default());
    bound.set_nonblocking(true).unwrap();
    let url = format!("upstream.\"quay.io\".url=http://{}", bound.local_addr().unwrap());
    let counting = Arc::clone(&asked);
    let _upstream = elsewhere(move || async { has_nothing(TcpListener::from_std(bound).unwrap(), counting).await });
    let attacked = Attacked::with(Registry::start().await, &[&url]).await;
    let before = attacked.others_wait().await;
    let (begun, address) = (Instant::now(), attacked.address());
    let attack = elsewhere(move || async move {
        let clients = crowd(address, CLIENTS).await.into_iter().enumerate();
        // Each in a task of its own: in one task those who have just been answered keep the others waiting.
        clients.map(|(client, raw)| ask_for_nothing(client, raw, rounds)).collect::<JoinSet<()>>().join_all().await
    });
    let (_, ()) = tokio::join!(attack, async {
        sleep(Duration::from_secs(1)).await;
        attacked.tells("unknown digests by the thousand", before).await;
    });
    let (all, most) = (asked.all.load(Ordering::Relaxed), asked.most.load(Ordering::Relaxed));
    eprintln!(
        "{} unknown digests in {:?}: {all} questions upstream, at most {most} at once",
        CLIENTS * rounds * AT_ONCE,
        begun.elapsed()
    );
    // HEAD and the first byte, as some registries refuse HEAD.
    assert!(all <= 2 * CLIENTS * rounds * AT_ONCE, "{all}");
    assert!(most <= 64, "{most}");
    // However fast they are made up, but for those that have a place when it ends.
    assert!(all as u128 <= 64 + begun.elapsed().as_millis() / 2, "{all} in {:?}", begun.elapsed());
    assert!(attacked.grown() <= 64 * MIB, "{}", attacked.grown());
}
