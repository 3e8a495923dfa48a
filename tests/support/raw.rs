//! A client without any HTTP: it sends bytes and sees how the other side closes.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{PATIENCE, secrets};

/// A connection of bytes. What it does not read stays with the kernels, which take little.
pub struct Raw(TcpStream);

/// How the other side has closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closed {
    Fin,
    Rst,
}

fn socket() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(8 << 10)?;
    Ok(socket)
}

// === impl Raw ===

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).await.expect("it is listened to")
    }

    pub async fn try_connect(address: SocketAddr) -> io::Result<Self> {
        Ok(Self(socket()?.connect(address).await?))
    }

    /// The same from another address of this machine.
    pub async fn connect_from(from: [u8; 4], address: SocketAddr) -> Self {
        let socket = socket().expect("a socket");
        socket.bind((from, 0).into()).expect("an address of loopback");
        Self(socket.connect(address).await.expect("it is listened to"))
    }

    /// For what is to be spoken over it.
    pub fn into_stream(self) -> TcpStream {
        self.0
    }

    /// Asks for `path` on a connection that is then kept.
    pub async fn asking(address: SocketAddr, path: &str) -> Self {
        let mut raw = Self::connect(address).await;
        raw.send(format!("GET {path} HTTP/1.1\r\nhost: mirror\r\n\r\n")).await;
        raw
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.expect("the other side reads");
    }

    /// Sends, if the other side still listens.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.write_all(bytes.as_ref()).await
    }

    /// Says that it will send no more, and still reads.
    pub async fn half_close(&mut self) {
        self.0.shutdown().await.expect("it is open");
    }

    /// The same, if the other side still listens.
    pub async fn try_half_close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }

    /// Reads the head of an answer.
    pub async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend_from_slice(&self.take(1).await);
        }
        self.heard(&head);
        String::from_utf8(head).expect("text")
    }

    /// Reads so many bytes.
    pub async fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        timeout(PATIENCE, self.0.read_exact(&mut bytes)).await.expect("it is not silent").expect("so many bytes");
        bytes
    }

    /// Reads until the other side closes.
    pub async fn rest(&mut self) -> (Vec<u8>, Closed) {
        let mut bytes = Vec::new();
        let read = timeout(PATIENCE, self.0.read_to_end(&mut bytes)).await;
        self.heard(&bytes);
        match read.unwrap_or_else(|_| panic!("not closed after {} bytes", bytes.len())) {
            Ok(_) => (bytes, Closed::Fin),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (bytes, Closed::Rst),
            Err(error) => panic!("{error}"),
        }
    }

    fn heard(&self, bytes: &[u8]) {
        if let Ok(peer) = self.0.peer_addr() {
            secrets::search_heard(peer, bytes);
        }
    }
}
