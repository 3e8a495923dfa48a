//! Below HTTP/2 over TLS. h2 writes and flushes frame by frame; here what it writes is encrypted in full records, and they go out many
//! at a time.

use std::io::{self, ErrorKind, IoSlice, Write as _};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

/// A stream to which is written. A flush does nothing: whoever polls the writer lets it all go out afterwards.
pub(super) struct Gathered<IO>(Arc<Mutex<Gathering<IO>>>);

/// The same stream, for whoever polls what writes to it.
pub(super) struct Outward<IO>(Arc<Mutex<Gathering<IO>>>);

struct Gathering<IO> {
    stream: TlsStream<IO>,
    /// How much of what was written is encrypted, and may not have gone out yet.
    encrypted: usize,
    /// What was written after that: less than a record.
    rest: Vec<u8>,
}

/// When so much waits to go out, it goes out before more is taken; and no more is taken at once.
const MOST: usize = 4 * RECORD;
/// The largest record (RFC 8446, section 5.1).
const RECORD: usize = 16 << 10;

// === impl Gathered ===

impl<IO> Gathered<IO> {
    pub(super) fn new(mut stream: TlsStream<IO>) -> (Self, Outward<IO>) {
        // Its own would cut a record short.
        stream.get_mut().1.set_buffer_limit(None);
        let gathering = Arc::new(Mutex::new(Gathering { stream, encrypted: 0, rest: Vec::new() }));
        (Self(Arc::clone(&gathering)), Outward(gathering))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).stream).poll_read(cx, buffer)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gathered<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut gathering = lock(&self.0);
        if gathering.encrypted >= MOST {
            ready!(gathering.poll_encrypted_out(cx))?;
        }
        Poll::Ready(gathering.take(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = lock(&self.0);
        ready!(gathering.poll_out(cx))?;
        Pin::new(&mut gathering.stream).poll_shutdown(cx)
    }
}

// === impl Outward ===

impl<IO: AsyncRead + AsyncWrite + Unpin> Outward<IO> {
    /// Lets all that has been written go out.
    pub(super) fn poll_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).poll_out(cx)
    }
}

// === impl Gathering ===

impl<IO: AsyncRead + AsyncWrite + Unpin> Gathering<IO> {
    /// Encrypts what fills records, together with what was left before, and keeps the rest. Returns how much it has taken.
    fn take(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>().min(MOST);
        let full = (self.rest.len() + length) / RECORD * RECORD;
        let mut taken = 0;
        if full > 0 {
            taken = full - self.rest.len();
            let rest = std::mem::take(&mut self.rest);
            self.encrypt(std::iter::once(&rest[..]).chain(within(parts, 0..taken)))?;
        }
        within(parts, taken..length).for_each(|part| self.rest.extend_from_slice(part));
        Ok(length)
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.encrypt(std::iter::once(&rest[..]))?;
        }
        self.poll_encrypted_out(cx)
    }

    fn poll_encrypted_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.encrypted = 0;
        Poll::Ready(Ok(()))
    }

    fn encrypt<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        let parts: Vec<_> = parts.filter(|part| !part.is_empty()).map(IoSlice::new).collect();
        let encrypted = self.stream.get_mut().1.writer().write_vectored(&parts)?;
        self.encrypted += encrypted;
        let given: usize = parts.iter().map(|part| part.len()).sum();
        if encrypted == given { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }
}

/// What of these is in a range of all.
fn within<'a>(parts: &'a [IoSlice<'_>], range: Range<usize>) -> impl Iterator<Item = &'a [u8]> {
    let mut at = 0;
    parts.iter().map(move |part| {
        let [start, end] = [range.start, range.end].map(|place| place.saturating_sub(at).min(part.len()));
        at += part.len();
        &part[start..end]
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};
    use tokio_rustls::{TlsAcceptor, TlsConnector, client};

    use super::*;

    /// The two ends of a stream; so many bytes are on their way between them at most.
    async fn ends(room: usize) -> (TlsStream<DuplexStream>, client::TlsStream<DuplexStream>) {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let own = rcgen::generate_simple_self_signed(["larder".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
        let server = server.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let (here, there) = duplex(room);
        let shaken = (
            TlsAcceptor::from(Arc::new(server)).accept(here),
            TlsConnector::from(Arc::new(client)).connect(ServerName::try_from("larder").unwrap(), there),
        );
        let (here, there) = tokio::join!(shaken.0, shaken.1);
        (here.unwrap(), there.unwrap())
    }

    /// A frame with its head, the bytes of which say where they are. False: it must wait.
    fn write(gathered: &mut Gathered<DuplexStream>, cx: &mut Context<'_>, at: &mut usize) -> bool {
        let frame: Vec<u8> = (*at..*at + 9 + RECORD).map(byte).collect();
        let parts = [IoSlice::new(&frame[..9]), IoSlice::new(&frame[9..])];
        let written = Pin::new(&mut *gathered).poll_write_vectored(cx, &parts).map(Result::unwrap);
        assert!(Pin::new(gathered).poll_flush(cx).is_ready());
        if written.is_ready() {
            assert_eq!(written, Poll::Ready(frame.len()));
            *at += frame.len();
        }
        written.is_ready()
    }

    fn byte(at: usize) -> u8 {
        u8::try_from(at % 251).unwrap()
    }

    #[tokio::test]
    async fn frames_go_out_in_full_records_and_their_end_when_nothing_follows() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (server, client) = ends(1 << 20).await;
        let ((mut gathered, outward), mut at) = (Gathered::new(server), 0);
        for _ in 0..10 {
            assert!(write(&mut gathered, &mut cx, &mut at));
        }
        assert!(outward.poll_out(&mut cx).is_ready());
        drop((gathered, outward));
        let (mut wire, mut records) = (Vec::new(), Vec::new());
        client.into_inner().0.read_to_end(&mut wire).await.unwrap();
        let mut rest = &wire[..];
        while let [_, _, _, high, low, after @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            records.push(length);
            rest = &after[length..];
        }
        // Each has the kind of what is in it and a tag of 16 bytes besides. The tickets of the handshake come before.
        assert!(records.ends_with(&[[RECORD + 17; 10].as_slice(), &[10 * 9 + 17]].concat()), "{records:?}");
    }

    #[tokio::test]
    async fn who_takes_little_gets_all_in_order_and_little_waits_for_it() {
        let (server, mut client) = ends(20_000).await;
        let ((mut gathered, outward), mut at) = (Gathered::new(server), 0);
        let mut taken = Vec::new();
        for turn in 0..200 {
            std::future::poll_fn(|cx| {
                while write(&mut gathered, cx, &mut at) {}
                assert!(outward.poll_out(cx).is_pending(), "there is no room");
                let Gathering { encrypted, rest, .. } = &*lock(&gathered.0);
                assert!(encrypted + rest.len() < MOST + 2 * RECORD);
                Poll::Ready(())
            })
            .await;
            let mut some = vec![0; turn * 31 % 5000 + 1];
            client.read_exact(&mut some).await.unwrap();
            taken.extend(some);
        }
        let ending = async { std::future::poll_fn(|cx| Pin::new(&mut gathered).poll_shutdown(cx)).await.unwrap() };
        tokio::join!(ending, async { client.read_to_end(&mut taken).await.unwrap() });
        assert_eq!(taken.len(), at);
        assert!(taken.iter().enumerate().all(|(at, taken)| *taken == byte(at)), "in order");
    }
}
