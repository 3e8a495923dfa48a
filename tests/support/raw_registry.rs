//! An upstream without any HTTP: it answers requests with bytes, and sees how many of them are taken.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use super::mirror::{StoppedMirror, TestMirror};

/// Listens until it is dropped.
pub struct RawRegistry {
    address: SocketAddr,
    heard: Heard,
    task: JoinHandle<()>,
}

/// A connection, as far as it has come.
#[derive(Clone, Debug, Default)]
pub struct Talk {
    /// The heads of its requests.
    pub heads: Vec<String>,
    /// How many bytes of the answers the kernels have taken.
    pub taken: usize,
}

type Heard = Arc<Mutex<Vec<Talk>>>;

/// Says what a request is answered with: the how-manieth connection it came by, the how-manieth it was there, and its head. A body is
/// not waited for.
type Script = dyn Fn(usize, usize, &str) -> Bytes + Send + Sync;

const SEND_BUFFER: u32 = 64 << 10;

// === impl RawRegistry ===

impl RawRegistry {
    pub fn saying(answer: impl Fn(usize, usize, &str) -> Bytes + Send + Sync + 'static) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        // So that what is taken is what the other side takes, but for a little.
        socket.set_send_buffer_size(SEND_BUFFER).expect("a size");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let listener = socket.listen(128).expect("a port");
        let (address, heard) = (listener.local_addr().expect("an address"), Heard::default());
        let (script, hears): (Arc<Script>, _) = (Arc::new(answer), Arc::clone(&heard));
        let task = tokio::spawn(async move {
            let mut talks = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut heard = hears.lock().unwrap();
                    heard.push(Talk::default());
                    heard.len() - 1
                };
                talks.spawn(talk(stream, number, Arc::clone(&script), Arc::clone(&hears)));
            }
        });
        Self { address, heard, task }
    }

    /// A larder before it.
    pub fn mirror(&self) -> StoppedMirror {
        TestMirror::builder().set(&format!("upstream.\"docker.io\".url = \"http://{}\"", self.address))
    }

    /// All connections so far.
    pub fn heard(&self) -> Vec<Talk> {
        self.heard.lock().unwrap().clone()
    }

    /// The most that the kernels can hold of what is said on a connection and not read, in bytes.
    pub fn held_by_kernels() -> usize {
        let sizes = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_rmem").expect("a kernel with TCP");
        let received = sizes.split_whitespace().last().and_then(|size| size.parse::<usize>().ok()).expect("a size");
        // Of a size that is asked for, Linux makes twice as much.
        received + 2 * SEND_BUFFER as usize
    }
}

impl Drop for RawRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn talk(mut stream: TcpStream, number: usize, script: Arc<Script>, heard: Heard) {
    for n in 0.. {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                return;
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut rest = script(number, n, &head);
        heard.lock().unwrap()[number].heads.push(head);
        while !rest.is_empty() {
            let Ok(taken @ 1..) = stream.write_buf(&mut rest).await else { return };
            heard.lock().unwrap()[number].taken += taken;
        }
    }
}
