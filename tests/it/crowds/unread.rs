//! Who asks and reads nothing, or slowly.
//!
//! What the kernel has in sockets is counted for all of this machine, so that what waits in the sockets of these clients is in it as
//! well: 16 KiB each at the most, as they take no more. Blobs are larger than all that a kernel takes for a client.

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Attacked, CROWD, KIB, MIB, OTHERS, crowd, crowd_by_tls};
use crate::support::{Registry, get, noise};

/// Most tests do not wait for the minute that a client has by default.
const IDLE: &str = "server.write_idle=15s";
const OK: &[u8] = b"HTTP/1.1 200 ";

/// Who reads at the pace of a loaded machine is to be borne with.
const LONG_IDLE: &str = "server.write_idle=1m";

/// An upstream with a blob, which is at this path.
async fn with_a_blob(len: usize) -> (Registry, String, Bytes) {
    let (upstream, blob) = (Registry::start().await, noise(2, len));
    let path = format!("/v2/library/alpine/blobs/{}", upstream.put_blob("library/alpine", blob.clone()));
    (upstream, path, blob)
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: mirror\r\n\r\n")
}

impl Attacked {
    /// Fetches it, and waits until it is in the cache: who is served from what still grows has some of it in memory.
    async fn cached(&self, path: &str) {
        const KEPT: &str = "larder_fills_total{outcome=\"kept\"}";
        let before = self.larder.metric(KEPT).await;
        get(self.larder.url(path)).await.expect(200);
        self.larder.until(KEPT, |kept| kept > before).await;
    }

    async fn held(&self) -> u64 {
        self.larder.metric("larder_body_buffer_bytes").await
    }

    /// Waits until it has given up so many, and kept nothing of what was for them.
    async fn gives_up(&self, number: usize) {
        self.larder.until("larder_slow_clients_total", |slow| slow == number as u64).await;
        self.larder.until("larder_body_buffer_bytes", |held| held == 0).await;
        assert_eq!(self.larder.metric("larder_shed_total{reason=\"memory\"}").await, 0);
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
                h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream).await.unwrap();
            open.spawn(async move { drop(connection.await) });
            for _ in 0..streams {
                requests = requests.ready().await.unwrap();
                answers.push(requests.send_request(request.clone(), true).unwrap().0);
            }
        }
        (join_all(answers).await.into_iter().map(Result::unwrap).collect(), open)
    }
}

/// They held all the memory that there is for answers, and for as long as they were borne with, others were told to come again.
#[tokio::test]
async fn five_thousand_who_read_nothing_are_bounded_in_bytes_and_keep_nobody_out() {
    let (upstream, path, _) = with_a_blob(64 << 20).await;
    let attacked = Attacked::with(upstream, &[IDLE]).await;
    attacked.cached(&path).await;
    let before = attacked.others_wait().await;
    attacked.larder.forget_peak();
    let mut clients = crowd(attacked.address(), CROWD).await;
    for client in &mut clients {
        client.send(request(&path)).await;
    }
    let heads = join_all(clients.iter_mut().map(|client| client.take(OK.len()))).await;
    assert_eq!(heads.iter().filter(|head| *head != OK).count(), 0, "are refused");
    let (held, in_sockets) = (attacked.held().await, attacked.grown_in_sockets());
    eprintln!("{} MiB in buffers, {} KiB in sockets each", held / MIB, in_sockets / CROWD as u64 / KIB);
    attacked.tells("5,000 who read nothing", before).await;
    assert!(held <= 5 * MIB, "{held}");
    assert!(attacked.grown() <= 512 * MIB, "{}", attacked.grown());
    assert!(in_sockets <= 1024 * MIB, "{in_sockets}");
    assert!(attacked.larder.descriptors() < CROWD + OTHERS);
    attacked.gives_up(CROWD).await;
}

/// A round is a second of clients that read 16 KiB each, or less where the machine is quick.
#[tokio::test]
async fn five_thousand_who_read_slowly_get_what_they_asked_for_and_are_bounded_in_bytes() {
    const ROUNDS: usize = 8;
    const ROUND: usize = 16 << 10;
    let (upstream, path, blob) = with_a_blob(64 << 20).await;
    let attacked = Attacked::with(upstream, &[LONG_IDLE]).await;
    attacked.cached(&path).await;
    let before = attacked.others_wait().await;
    attacked.larder.forget_peak();
    let mut clients = crowd(attacked.address(), CROWD).await;
    for client in &mut clients {
        client.send(request(&path)).await;
    }
    // Up to where each has read its body.
    let mut taken = Vec::new();
    for client in &mut clients {
        let begun = client.take(2048).await;
        let head = begun.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
        assert!(begun.starts_with(OK) && blob.starts_with(&begun[head..]));
        taken.push(begun.len() - head);
    }
    let (begun, mut held, mut in_sockets) = (Instant::now(), 0, 0);
    for _ in 0..ROUNDS {
        for (client, taken) in clients.iter_mut().zip(&mut taken) {
            assert!(client.take(ROUND).await == blob[*taken..*taken + ROUND]);
            *taken += ROUND;
        }
        held = held.max(attacked.held().await);
        in_sockets = in_sockets.max(attacked.grown_in_sockets());
    }
    eprintln!(
        "{} KiB/s each; {} MiB in buffers, {} KiB in sockets each",
        ((ROUNDS * ROUND) >> 10) as u128 * 1000 / begun.elapsed().as_millis(),
        held / MIB,
        in_sockets / CROWD as u64 / KIB
    );
    attacked.tells("5,000 who read slowly", before).await;
    assert!(held <= 5 * MIB, "{held}");
    assert!(attacked.grown() <= 512 * MIB, "{}", attacked.grown());
    assert!(in_sockets <= 1024 * MIB, "{in_sockets}");
    assert_eq!(attacked.larder.metric("larder_slow_clients_total").await, 0);
    drop(clients);
    attacked.larder.until("larder_body_buffer_bytes", |held| held == 0).await;
}

/// By TLS all is encrypted on its way, so that some of each answer is in larder's own memory for as long as its client does not read. What
/// was encrypted did not count, so that ten thousand could have had 640 MiB of it.
#[tokio::test]
async fn a_thousand_who_read_nothing_by_tls_are_bounded_in_bytes_and_given_up() {
    const NUMBER: usize = 1_000;
    let (upstream, path, _) = with_a_blob(64 << 20).await;
    let (attacked, tls, authority) = Attacked::behind_tls(upstream, &["server.write_idle=20s"]).await;
    attacked.cached(&path).await;
    let before = attacked.others_wait().await;
    attacked.larder.forget_peak();
    let begun = Instant::now();
    let mut clients = crowd_by_tls(tls, NUMBER, authority.believed(rustls::ALL_VERSIONS, &["http/1.1"])).await;
    eprintln!("{NUMBER} handshakes take {:?}", begun.elapsed());
    for client in &mut clients {
        client.write_all(request(&path).as_bytes()).await.unwrap();
        client.flush().await.unwrap();
    }
    for client in &mut clients {
        let mut head = [0; OK.len()];
        client.read_exact(&mut head).await.unwrap();
        assert_eq!(head, OK, "nobody is refused");
    }
    attacked.tells("1,000 who read nothing by TLS", before).await;
    let (held, in_sockets) = (attacked.held().await, attacked.grown_in_sockets());
    let (grown, each) = (attacked.grown(), NUMBER as u64 * KIB);
    eprintln!("{} KiB in buffers, {} KiB in all, {} KiB in sockets each", held / each, grown / each, in_sockets / each);
    assert!((32 * each..=128 * each).contains(&held), "{held}");
    assert!(grown <= 128 * each, "{grown}");
    assert!(in_sockets <= 256 * each, "{in_sockets}");
    attacked.gives_up(NUMBER).await;
}

/// hyper takes the beginning of each, although its client takes nothing.
#[tokio::test]
async fn ten_thousand_streams_without_window_are_bounded_in_bytes_and_reset() {
    const CONNECTIONS: usize = 80;
    const STREAMS: usize = 125;
    let (upstream, path, _) = with_a_blob(1 << 20).await;
    let attacked = Attacked::with(upstream, &[IDLE]).await;
    let url = attacked.larder.url(&path);
    get(&url).await.expect(200);
    let before = attacked.others_wait().await;
    attacked.larder.forget_peak();
    let request = http::Request::get(&url).body(()).unwrap();
    let (answers, mut connections) = attacked.unread(CONNECTIONS, STREAMS, &request).await;
    let held = attacked.held().await;
    attacked.tells("10,000 streams without window", before).await;
    let refused = answers.iter().filter(|answer| answer.status() != 200).count();
    assert_eq!((answers.len(), refused), (CONNECTIONS * STREAMS, 0));
    eprintln!("{} MiB in buffers", held / MIB);
    assert!(attacked.grown() <= 200 * MIB, "{}", attacked.grown());
    // With what larder counts for the requests themselves.
    assert!(held <= (CONNECTIONS * STREAMS) as u64 * (4 + 9) * KIB, "{held}");
    attacked.gives_up(CONNECTIONS * STREAMS).await;
    connections.abort_all();
    attacked.larder.until("larder_connections", |open| open <= 1).await;
}

/// Each range of an answer had a reader of its own, from the first to the last.
#[tokio::test]
async fn answers_of_a_thousand_ranges_that_nobody_reads_take_no_more_than_others() {
    const STREAMS: usize = 120;
    let attacked = Attacked::with(Registry::start().await, &[IDLE]).await;
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
