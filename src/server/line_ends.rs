//! What is sent as HTTP/1, in which every line of a head ends in CR LF.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose lines end in CR LF alone. To HTTP/1 an LF alone may end one as well (RFC 9112, section 2.2): where a proxy before larder
/// takes it for a part of a value, two would read different requests, and answers would go to whom they are not for. Here it comes as a
/// byte that no head may have in it. What is sent in a body ends the connection anyway, and HTTP/2 has no lines.
pub(super) struct LineEnds<S> {
    stream: S,
    sent: Sent,
}

/// What has come until now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// So many bytes of the [`PREFACE`].
    Preface(usize),
    Http2,
    /// After this byte.
    Http1(u8),
}

/// Of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// === impl LineEnds ===

impl<S> LineEnds<S> {
    pub(super) fn of(stream: S) -> Self {
        Self { stream, sent: Sent::Preface(0) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LineEnds<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.sent.take(&mut buffer.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LineEnds<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// === impl Sent ===

impl Sent {
    /// More has come.
    fn take(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *self = match *self {
                Self::Http2 => return,
                Self::Preface(so_many) if *byte == PREFACE[so_many] => {
                    if so_many + 1 == PREFACE.len() {
                        Self::Http2
                    } else {
                        Self::Preface(so_many + 1)
                    }
                }
                Self::Preface(so_many) => Self::after(so_many.checked_sub(1).map_or(0, |last| PREFACE[last]), byte),
                Self::Http1(last) => Self::after(last, byte),
            };
        }
    }

    fn after(last: u8, byte: &mut u8) -> Self {
        let sent = Self::Http1(*byte);
        if *byte == b'\n' && last != b'\r' {
            *byte = 0;
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What of this is read, however it is cut in pieces.
    fn read(sent: &[u8]) -> Vec<u8> {
        let in_pieces = |size: usize| {
            let (mut lines, mut bytes) = (Sent::Preface(0), sent.to_vec());
            bytes.chunks_mut(size).for_each(|piece| lines.take(piece));
            bytes
        };
        let whole = in_pieces(usize::MAX);
        (1..=sent.len()).for_each(|size| assert_eq!(in_pieces(size), whole, "{size}"));
        whole
    }

    #[test]
    fn a_line_that_ends_in_lf_alone_is_no_line() {
        let well = b"GET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\nGET /v2/ HTTP/1.1\r\n\r\n";
        assert_eq!(read(well), well);
        assert_eq!(read(b"GET /v2/ HTTP/1.1\nhost: mirror\r\n\n"), b"GET /v2/ HTTP/1.1\0host: mirror\r\n\0");
        assert_eq!(read(b"\nGET"), b"\0GET");
        assert_eq!(read(b"x\r\n\r\r\n\n\n"), b"x\r\n\r\r\n\0\0", "each by itself");
    }

    #[test]
    fn http_2_is_left_as_it_is_and_what_only_begins_like_it_is_not() {
        let http_2 = [PREFACE, b"\n\n\0\n"].concat();
        assert_eq!(read(&http_2), http_2);
        assert_eq!(read(b"PRI * HTTP/2.0\n"), b"PRI * HTTP/2.0\0");
        assert_eq!(read(b"PRI * HTTP/2.0\r\n\n"), b"PRI * HTTP/2.0\r\n\0");
        assert_eq!(read(b"PUT\r\n"), b"PUT\r\n");
    }
}
