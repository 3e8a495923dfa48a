//! A place to which larder may be sent: it takes down each connection and every byte that comes over it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Listens until it is dropped.
pub struct Tap {
    address: SocketAddr,
    heard: Heard,
    task: JoinHandle<()>,
}

/// What has come, by connection. A connection without a byte counts as well.
type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

#[derive(Clone)]
enum Then {
    /// Answers the head of a request so and closes.
    Answer(Vec<u8>),
    /// Passes on what comes, and what comes back.
    PassOn(SocketAddr),
}

// === impl Tap ===

impl Tap {
    /// At this address, with these bytes for whoever asks.
    pub async fn answering(ip: &str, answer: impl Into<Vec<u8>>) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        Self::start(listener, Then::Answer(answer.into()))
    }

    /// The same at every address of this machine, of both families where there are two.
    pub async fn everywhere(answer: impl Into<Vec<u8>>) -> Self {
        let listener = match TcpListener::bind("[::]:0").await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind("0.0.0.0:0").await.expect("a port"),
        };
        Self::start(listener, Then::Answer(answer.into()))
    }

    /// On the same port at two addresses, with an answer for each.
    pub async fn pair(answers: [(&str, &[u8]); 2]) -> [Self; 2] {
        let [(one, _), (other, _)] = answers;
        loop {
            let first = TcpListener::bind((one, 0)).await.expect("a port");
            let port = first.local_addr().expect("an address").port();
            // It may be another's there.
            if let Ok(second) = TcpListener::bind((other, port)).await {
                let answer = |n: usize| Then::Answer(answers[n].1.into());
                return [Self::start(first, answer(0)), Self::start(second, answer(1))];
            }
        }
    }

    /// Before a registry, which is then reached at this address.
    pub async fn before(ip: &str, registry: SocketAddr) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        Self::start(listener, Then::PassOn(registry))
    }

    fn start(listener: TcpListener, then: Then) -> Self {
        let (address, heard) = (listener.local_addr().expect("an address"), Heard::default());
        let hears = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut heard = hears.lock().unwrap();
                    heard.push(Vec::new());
                    heard.len() - 1
                };
                let (then, heard) = (then.clone(), Arc::clone(&hears));
                let hear = move |bytes: &[u8]| heard.lock().unwrap()[number].extend_from_slice(bytes);
                tokio::spawn(async move {
                    match then {
                        Then::Answer(answer) => answer_once(stream, &answer, hear).await,
                        Then::PassOn(registry) => pass_on(stream, registry, hear).await,
                    }
                });
            }
        });
        Self { address, heard, task }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What has come so far, by connection.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer_once(mut stream: TcpStream, answer: &[u8], hear: impl Fn(&[u8])) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        hear(&[byte]);
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or_default()];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    hear(&body);
    let _ = stream.write_all(answer).await;
    let _ = stream.shutdown().await;
}

async fn pass_on(outer: TcpStream, registry: SocketAddr, hear: impl Fn(&[u8])) {
    let Ok(inner) = TcpStream::connect(registry).await else { return };
    let ((mut from, mut back), (mut returns, mut to)) = (outer.into_split(), inner.into_split());
    let there = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            hear(&buffer[..read]);
            if to.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    let here = async {
        let _ = tokio::io::copy(&mut returns, &mut back).await;
        let _ = back.shutdown().await;
    };
    tokio::join!(there, here);
}
