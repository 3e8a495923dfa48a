//! The whole of larder, with bytes for a client or bytes for an upstream.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::app::App;
use larder::clock::Clock;
use larder::config::Config;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

thread_local! {
    static WORLD: World = World::new();
}

/// A larder and its upstream, on one thread: what the bytes lead to is the same each time.
struct World {
    runtime: Runtime,
    larder: SocketAddr,
    clock: Clock,
    says: Says,
    runs: std::cell::Cell<u32>,
    _app: App,
    _dir: TempDir,
}

/// What the upstream says on each of its connections, the last of them on all that follow.
type Says = Arc<Mutex<Vec<Vec<u8>>>>;

/// What larder has answered.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// It ended as it should.
    complete: bool,
}

/// A blob and a manifest that larder has, so that there is something to ask for.
const BLOB: &[u8] = b"larder";
const MANIFEST: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#;
/// In what the upstream says, it stands for the number of the run: each blob is a new one.
const RUN: &[u8] = b"@@";
/// Between what it says on one connection and on the next.
const NEXT: &[u8] = b"\n---\n";
/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a client sends on a connection. larder answers or closes, and serves the next one.
pub(crate) fn client(bytes: &[u8]) {
    WORLD.with(|world| {
        world.next_run(vec![b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec()]);
        let answer = world.runtime.block_on(async {
            let mut stream = TcpStream::connect(world.larder).await.expect("it listens");
            let (mut from, mut to) = stream.split();
            let mut answer = Vec::new();
            let conversation = async {
                // It may close before it has read all.
                let _ = to.write_all(bytes).await;
                let _ = to.write_all(b"\r\n\r\nGET /v2/ HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n").await;
                let said = timeout(Duration::from_millis(20), from.read_to_end(&mut answer)).await;
                if said.is_err() {
                    // It waits for more.
                    let _ = to.shutdown().await;
                    let _ = from.read_to_end(&mut answer).await;
                }
            };
            timeout(PATIENCE, conversation).await.expect("it closes in the end");
            answer
        });
        let http2 = bytes.starts_with(b"PRI * HTTP/2");
        assert!(http2 || answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&answer));
        if world.runs.get() % 16 == 0 {
            assert_eq!(world.asks("GET", &world.blob_path(BLOB), "").body, BLOB);
        }
    });
}

/// Two bytes say what is asked for; the rest is what the upstream says.
pub(crate) fn upstream(bytes: &[u8]) {
    let Some((&[kind, which], said)) = bytes.split_first_chunk() else { return };
    WORLD.with(|world| {
        let run = format!("{:08}", world.runs.get());
        let says = split(said, NEXT).map(|part| replace(part, RUN, run.as_bytes())).collect::<Vec<_>>();
        // The blob that is asked for is what follows the first head, or one that was there before.
        let body = says.first().and_then(|first| split(first, b"\r\n\r\n").nth(1)).unwrap_or_default().to_vec();
        let blob = if which % 2 == 0 { body } else { replace(b"larder @@", RUN, run.as_bytes()) };
        world.next_run(says);
        let (digest, repository) = (digest_of(&blob), format!("/v2/run/r{run}"));
        let whole = |answer: &Answer| {
            if answer.status == 200 && answer.complete {
                assert_eq!(digest_of(&answer.body), digest, "wrong bytes end well: {:?}", answer.head);
            }
        };
        match kind % 8 {
            0 => {
                whole(&world.asks("GET", &format!("{repository}/blobs/{digest}"), ""));
                whole(&world.asks("GET", &format!("{repository}/blobs/{digest}"), ""));
            }
            1 => {
                let answer = world.asks("GET", &format!("{repository}/blobs/{digest}"), "range: bytes=2-\r\n");
                if answer.status == 206 && answer.complete {
                    assert_eq!(Some(&*answer.body), blob.get(2..), "wrong bytes end well: {:?}", answer.head);
                }
                whole(&world.asks("GET", &format!("{repository}/blobs/{digest}"), ""));
            }
            2 => whole(&world.asks("GET", &format!("{repository}/manifests/{digest}"), "")),
            3 => {
                let answer = world.asks("GET", &format!("{repository}/manifests/latest"), "");
                if answer.status == 200 && answer.complete {
                    assert!(answer.head.contains(&digest_of(&answer.body)), "{}", answer.head);
                }
            }
            4 => drop(world.asks("GET", &format!("{repository}/tags/list?n=3"), "")),
            5 => drop(world.asks("GET", &format!("{repository}/referrers/{digest}"), "")),
            6 => assert!(world.asks("HEAD", &format!("{repository}/blobs/{digest}"), "").body.is_empty()),
            _ => assert!(world.asks("HEAD", &format!("{repository}/manifests/latest"), "").body.is_empty()),
        }
    });
}

// === impl World ===

impl World {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        // In memory, as a disk would have to sync.
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let (clock, says) = (Clock::system(), Says::default());
        let app = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let url = format!("http://{}", listener.local_addr().expect("an address"));
            tokio::spawn(answer_all(listener, Arc::clone(&says)));
            let config = format!(
                "server.listen = \"127.0.0.1:0\"\nadmin.listen = \"\"\nmirror.well_known = false\nlog.level = \"error\"\n\
                 [cache]\ndir = {:?}\nmax_size = \"16MiB\"\nmin_free = \"0%\"\n\
                 [upstream.\"docker.io\"]\nurl = \"{url}\"\nproxy = \"none\"\n",
                dir.path().join("cache")
            );
            let app = App::start(Config::from_toml(&config).expect("a configuration"), clock.clone()).await.expect("it starts");
            while app.store().usage().is_none() {
                tokio::task::yield_now().await;
            }
            app
        });
        let world =
            Self { runtime, larder: app.address().expect("it listens"), clock, says, runs: 0.into(), _app: app, _dir: dir };
        for (content, path) in [(BLOB, world.blob_path(BLOB)), (MANIFEST, "/v2/library/app/manifests/latest".into())] {
            world.next_run(vec![ok(content)]);
            assert_eq!(world.asks("GET", &path, "").body, content);
        }
        world
    }

    fn blob_path(&self, content: &[u8]) -> String {
        format!("/v2/library/app/blobs/{}", digest_of(content))
    }

    /// What an address has done wrong in one run is forgotten in the next.
    fn next_run(&self, says: Vec<Vec<u8>>) {
        *self.says.lock().expect("nobody panics") = says;
        self.runs.set(self.runs.get() + 1);
        self.clock.advance(Duration::from_hours(24 * 60));
    }

    /// Asks larder on a connection of its own.
    fn asks(&self, method: &str, path: &str, headers: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: m\r\nconnection: close\r\n{headers}\r\n");
        let conversation = async {
            let mut stream = TcpStream::connect(self.larder).await.expect("it listens");
            stream.write_all(request.as_bytes()).await.expect("it reads");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("it closes with FIN");
            answer
        };
        let answer = self.runtime.block_on(async { timeout(PATIENCE, conversation).await });
        Answer::read(&answer.unwrap_or_else(|_| panic!("{path} is not answered")), method == "HEAD")
    }
}

async fn answer_all(listener: TcpListener, says: Says) {
    loop {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let said = {
            let mut says = says.lock().expect("nobody panics");
            if says.len() > 1 { says.remove(0) } else { says.first().cloned().unwrap_or_default() }
        };
        tokio::spawn(async move {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                if !matches!(stream.read_buf(&mut asked).await, Ok(1..)) {
                    return;
                }
            }
            let _ = stream.write_all(&said).await;
            let _ = stream.shutdown().await;
            let _ = timeout(Duration::from_secs(1), stream.read_to_end(&mut asked)).await;
        });
    }
}

fn ok(body: &[u8]) -> Vec<u8> {
    let kind = if body == MANIFEST { "application/vnd.oci.image.manifest.v1+json" } else { "application/octet-stream" };
    [format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

// === impl Answer ===

impl Answer {
    fn read(bytes: &[u8], head_only: bool) -> Self {
        let (head, body) = split_once(bytes, b"\r\n\r\n").expect("larder answers");
        let head = String::from_utf8(head.to_vec()).expect("a head is text");
        assert!(head.split("\r\n").skip(1).all(|line| line.contains(": ")), "{head:?}");
        let status = head.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
        let header = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let (body, complete) = match (header("content-length"), header("transfer-encoding")) {
            _ if head_only => (body.to_vec(), true),
            (Some(length), None) => {
                let length: usize = length.parse().expect("a length");
                assert!(body.len() <= length, "{head:?}");
                (body.to_vec(), body.len() == length)
            }
            (None, Some("chunked")) => unchunked(body),
            (length, coding) => panic!("the body has no end: {length:?} {coding:?}"),
        };
        Self { status, head, body, complete }
    }
}

/// The body, and whether it has a last chunk.
fn unchunked(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some((size, after)) = split_once(rest, b"\r\n") {
        let size = usize::from_str_radix(str::from_utf8(size).expect("text"), 16).expect("a size");
        if size == 0 {
            return (body, after == b"\r\n");
        }
        let Some((chunk, after)) = after.split_at_checked(size) else { break };
        body.extend_from_slice(chunk);
        let Some(after) = after.strip_prefix(b"\r\n") else { break };
        rest = after;
    }
    (body, false)
}

// --- bytes ---

fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn split_once<'a>(bytes: &'a [u8], by: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(by.len()).position(|window| window == by)?;
    Some((&bytes[..at], &bytes[at + by.len()..]))
}

/// Split where `by` stands.
fn split<'a>(bytes: &'a [u8], by: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let here = rest?;
        let cut = split_once(here, by);
        rest = cut.map(|(_, after)| after);
        Some(cut.map_or(here, |(before, _)| before))
    })
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    split(bytes, from).collect::<Vec<_>>().join(to)
}
