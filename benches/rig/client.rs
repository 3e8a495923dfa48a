//! A client that counts bytes and has no use for them: the kernel drops them before they are copied.

use std::{ffi::c_int, io, mem::MaybeUninit, net::SocketAddr};

use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Duration, Instant},
};

/// One connection over HTTP/1.1 that is kept for the next request.
pub struct Connection {
    stream: TcpStream,
    head: Vec<u8>,
    sink: Box<[MaybeUninit<u8>]>,
}

/// An answer that came whole.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub status: u16,
    pub bytes: u64,
    /// From the request to the first byte of the body; of the headers, if there is no body.
    pub first: Duration,
    /// From the request to the last byte.
    pub last: Duration,
}

/// Linux: bytes of a stream are dropped instead of copied.
const MSG_TRUNC: c_int = 0x20;
/// As much as is dropped at once.
const SINK: usize = 1 << 20;
const LARGEST_HEAD: usize = 16 << 10;

// === impl Connection ===

impl Connection {
    pub async fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        // Never touched, so it takes no memory.
        Ok(Self { stream, head: Vec::with_capacity(LARGEST_HEAD), sink: Box::new_uninit_slice(SINK) })
    }

    /// An answer that ends early is an error.
    pub async fn get(&mut self, path: &str) -> io::Result<Arrival> {
        self.request("GET", path).await
    }

    pub async fn head(&mut self, path: &str) -> io::Result<Arrival> {
        self.request("HEAD", path).await
    }

    async fn request(&mut self, method: &str, path: &str) -> io::Result<Arrival> {
        let begun = Instant::now();
        let host = self.stream.peer_addr()?;
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n");
        let written = self.stream.async_io(Interest::WRITABLE, || self.stream.try_write(request.as_bytes())).await?;
        if written < request.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let body = self.read_head().await?;
        let mut first = begun.elapsed();
        let (status, length) = parse(&self.head[..body]).ok_or(io::ErrorKind::InvalidData)?;
        let length = if method == "HEAD" { 0 } else { length };
        let mut bytes = (self.head.len() - body) as u64;
        while bytes < length {
            let dropped = self.drop_body(length - bytes).await?;
            if bytes == 0 {
                first = begun.elapsed();
            }
            bytes += dropped;
        }
        if bytes > length {
            return Err(io::Error::other("more came than was announced"));
        }
        Ok(Arrival { status, bytes, first, last: begun.elapsed() })
    }

    /// Reads until the head is there and returns its length; the first bytes of the body may be behind it.
    async fn read_head(&mut self) -> io::Result<usize> {
        self.head.clear();
        loop {
            self.stream.readable().await?;
            match self.stream.try_read_buf(&mut self.head) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") {
                return Ok(end + 4);
            }
        }
    }

    async fn drop_body(&mut self, most: u64) -> io::Result<u64> {
        let most = usize::try_from(most).unwrap_or(SINK).min(SINK);
        let sink = &mut self.sink[..most];
        let stream = &self.stream;
        match stream.async_io(Interest::READABLE, || SockRef::from(stream).recv_with_flags(sink, MSG_TRUNC)).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            dropped => Ok(dropped as u64),
        }
    }
}

/// Status and length of the body.
fn parse(head: &[u8]) -> Option<(u16, u64)> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let mut headers = lines.filter_map(|line| line.split_once(':'));
    let (_, length) = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    Some((status, length.trim().parse().ok()?))
}
