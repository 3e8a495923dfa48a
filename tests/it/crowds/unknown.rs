//! Who asks for what nobody has, by names made up for the purpose.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::nice;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Attacked, CROWD, MIB, crowd, times};
use crate::support::{Raw, Registry, digest_of, get};

/// So many at once, on one connection.
const AT_ONCE: usize = 10;
const CLIENTS: usize = 100;

/// An upstream that has nothing, and counts.
struct HasNothing {
    asked: Arc<Asked>,
    address: String,
    _until: oneshot::Receiver<()>,
}

#[derive(Default)]
struct Asked {
    all: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
    tokens: AtomicUsize,
}

// === impl HasNothing ===

impl HasNothing {
    /// `token`: how long one is of which each repository wants its own; 0: none does.
    fn start(token: usize) -> Self {
        let (listener, asked) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::<Asked>::default());
        listener.set_nonblocking(true).unwrap();
        let (address, counting) = (listener.local_addr().unwrap().to_string(), Arc::clone(&asked));
        let until = elsewhere(move || async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(Arc::clone(&counting).answer(stream, token));
            }
        });
        Self { asked, address, _until: until }
    }
}

// === impl Asked ===

impl Asked {
    async fn answer(self: Arc<Self>, mut stream: tokio::net::TcpStream, token: usize) {
        let mut head = Vec::new();
        while matches!(stream.read_buf(&mut head).await, Ok(1..)) {
            if !head.ends_with(b"\r\n\r\n") {
                continue;
            }
            let request = String::from_utf8(std::mem::take(&mut head)).unwrap().to_ascii_lowercase();
            let path = request.split(' ').nth(1).unwrap();
            let answer = if let Some((_, scope)) = path.split_once("/token?") {
                self.tokens.fetch_add(1, Ordering::Relaxed);
                let body = format!(r#"{{"token":"canary-{}-{}"}}"#, digest_of(scope.as_bytes()), "x".repeat(token));
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            } else {
                self.all.fetch_add(1, Ordering::Relaxed);
                self.most.fetch_max(self.now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                sleep(Duration::from_millis(2)).await;
                self.now.fetch_sub(1, Ordering::Relaxed);
                if token > 0 && !request.contains("\r\nauthorization: ") {
                    let host = request.split("\r\nhost: ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
                    let name = path.split("/v2/").nth(1).and_then(|rest| rest.split("/manifests/").next()).unwrap();
                    let challenge = format!(r#"Bearer realm="http://{host}/token",service="s",scope="repository:{name}:pull""#);
                    format!("HTTP/1.1 401 Unauthorized\r\nwww-authenticate: {challenge}\r\ncontent-length: 0\r\n\r\n")
                } else {
                    "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned()
                }
            };
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }
}

/// Does what others do on machines of their own, until nobody waits for it: they take what is left over of this one.
fn elsewhere<T: Send + 'static, F: Future<Output = T>>(what: impl FnOnce() -> F + Send + 'static) -> oneshot::Receiver<T> {
    let (mut done, ends) = oneshot::channel();
    thread::spawn(move || {
        nice(10).unwrap();
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            tokio::select! {
                what = what() => drop(done.send(what)),
                () = done.closed() => {}
            }
        });
    });
    ends
}

/// Asks for what nobody has, which the number of a client and that of its question make up.
async fn ask_for_nothing(client: usize, mut connection: Raw, rounds: usize, path: fn(usize, usize) -> String) {
    for round in 0..rounds {
        let paths = (0..AT_ONCE).map(|n| path(client, round * AT_ONCE + n));
        let asked: Vec<String> = paths.map(|path| format!("GET {path} HTTP/1.1\r\nhost: mirror\r\n\r\n")).collect();
        connection.send(asked.concat()).await;
        for _ in 0..AT_ONCE {
            let head = connection.head().await;
            assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap();
            connection.take(length).await;
        }
    }
}

/// A crowd asks as many things as 5,000, each of them once. Returns what the upstream was asked, how often, and for how many tokens.
async fn asked_for_nothing(what: &str, token: usize, path: fn(usize, usize) -> String) -> (usize, usize, usize) {
    let rounds = CROWD / CLIENTS / AT_ONCE * times();
    let upstream = HasNothing::start(token);
    let (url, hosts) = (&upstream.address, format!("upstream.\"quay.io\".token_hosts=[\"{}\"]", upstream.address));
    let attacked = Attacked::with(Registry::start().await, &[&format!("upstream.\"quay.io\".url=http://{url}"), &hosts]).await;
    let before = attacked.others_wait().await;
    let (lines, files) = (attacked.lines_of_metrics().await, attacked.bytes_of_files());
    let (begun, address) = (Instant::now(), attacked.address());
    let attack = elsewhere(move || async move {
        let clients = crowd(address, CLIENTS).await.into_iter().enumerate();
        // Each in a task of its own: in one task those who have just been answered keep the others waiting.
        clients.map(|(client, raw)| ask_for_nothing(client, raw, rounds, path)).collect::<JoinSet<()>>().join_all().await
    });
    let (done, ()) = tokio::join!(attack, async {
        sleep(Duration::from_secs(1)).await;
        attacked.tells(&format!("unknown {what} by the thousand"), before).await;
    });
    done.unwrap();
    let of = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let (names, all, most) = (CLIENTS * rounds * AT_ONCE, of(&upstream.asked.all), of(&upstream.asked.most));
    let tokens = of(&upstream.asked.tokens);
    let (lines, files) = (attacked.lines_of_metrics().await - lines, attacked.bytes_of_files().saturating_sub(files));
    eprintln!(
        "{names} unknown {what} in {:?}: {all} questions upstream, at most {most} at once; {tokens} tokens; {} MiB more at the most, \
         {lines} metrics more, {files} bytes more in files",
        begun.elapsed(),
        attacked.grown() / MIB
    );
    assert!(most <= 64, "{most}");
    // However fast they are made up, but for those that have a place when it ends. Who has no token asks a second time.
    let questions = if token == 0 { all } else { all / 2 };
    assert!(questions as u128 <= 64 + begun.elapsed().as_millis() / 2, "{questions} in {:?}", begun.elapsed());
    assert!(attacked.grown() <= 64 * MIB, "{}", attacked.grown());
    // No metric has a name that a client has made up, and nothing is written down of what is not there.
    assert!(lines < 100, "{lines}");
    assert!(files < 64 << 10, "{files}");
    (names, all, tokens)
}

impl Attacked {
    async fn lines_of_metrics(&self) -> usize {
        get(format!("http://{}/metrics", self.larder.admin())).await.expect(200).text().lines().count()
    }

    /// Of what is in its cache.
    fn bytes_of_files(&self) -> u64 {
        let mut dirs = vec![self.dir.path().join("cache")];
        let mut bytes = 0;
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                let about = entry.metadata().unwrap();
                if about.is_dir() { dirs.push(entry.path()) } else { bytes += about.len() }
            }
        }
        bytes
    }
}

/// `ATTACKS=20` asks for 100,000, here and below.
#[tokio::test]
async fn thousands_of_unknown_digests_cost_one_question_each_and_no_memory() {
    let path = |client: usize, n: usize| format!("/v2/quay.io/a/b/blobs/{}", digest_of(format!("{client} {n}").as_bytes()));
    let (names, all, _) = asked_for_nothing("digests", 0, path).await;
    // HEAD and the first byte, as some registries refuse HEAD.
    assert!(all <= 2 * names, "{all}");
}

#[tokio::test]
async fn thousands_of_unknown_tags_cost_one_question_each_and_no_memory() {
    let path = |client: usize, n: usize| format!("/v2/quay.io/a/b/manifests/{client}-{n}-{}", "x".repeat(100));
    let (names, all, _) = asked_for_nothing("tags", 0, path).await;
    assert!(all <= 2 * names, "{all}");
}

/// All that is remembered of how to ask for a repository is as long as its upstream likes.
#[tokio::test]
async fn thousands_of_unknown_repositories_cost_a_token_each_and_no_memory() {
    let path = |client: usize, n: usize| format!("/v2/quay.io/a/{client}-{n}-{}/manifests/latest", "x".repeat(200));
    let (names, all, tokens) = asked_for_nothing("repositories", 16 << 10, path).await;
    // Before the token and with it.
    assert!(all <= 3 * names, "{all}");
    assert!(tokens <= names, "{tokens}");
}
