//! The PROXY protocol, by which a proxy below HTTP says for whom it speaks, before anything else
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>). Both versions, the text of 1 and the bytes of 2.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A header of version 2 begins so.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Neither version has a shorter one: `PROXY UNKNOWN` and its line end, and the fixed part of version 2, which has one byte more.
const SHORTEST: usize = 15;
/// The longest line of version 1, with its end.
const LONGEST_LINE: usize = 107;
/// How much may follow the fixed part of version 2: addresses, and then what nobody here wants to know.
const MOST: usize = 4096;

/// Reads a header, and nothing beyond it. `None`: the proxy speaks for itself, or for someone without an address.
///
/// Not cancel safe.
///
/// # Errors
/// It is none.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut head = vec![0; SHORTEST];
    stream.read_exact(&mut head).await?;
    if head.starts_with(SIGNATURE) {
        return read_bytes(stream, &head).await;
    }
    if !head.starts_with(b"PROXY ") {
        return Err(wrong());
    }
    while !head.ends_with(b"\r\n") {
        if head.len() == LONGEST_LINE {
            return Err(wrong());
        }
        head.push(stream.read_u8().await?);
    }
    line(&head)
}

/// Version 1.
fn line(head: &[u8]) -> io::Result<Option<SocketAddr>> {
    let line = std::str::from_utf8(head).ok().and_then(|line| line.strip_suffix("\r\n")).ok_or_else(wrong)?;
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), from, to, from_port, to_port] => {
            let address = |text: &str| text.parse::<IpAddr>().ok().filter(|address| address.is_ipv4() == (family == "TCP4"));
            let port = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
            match (address(from), address(to), port(from_port), port(to_port)) {
                (Some(from), Some(_), Some(port), Some(_)) => Ok(Some(SocketAddr::new(from, port))),
                _ => Err(wrong()),
            }
        }
        _ => Err(wrong()),
    }
}

/// Version 2: its version and command, its family and transport, and the length of what follows.
async fn read_bytes(stream: &mut (impl AsyncRead + Unpin), head: &[u8]) -> io::Result<Option<SocketAddr>> {
    let length = usize::from(head[14]) << 8 | usize::from(stream.read_u8().await?);
    if length > MOST {
        return Err(wrong());
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match (head[12], head[13]) {
        // Addresses, of which the first is the client's, and then the ports.
        (0x21, 0x11) => {
            let (from, rest) = rest.split_first_chunk::<4>().ok_or_else(wrong)?;
            let port = rest.get(4..8).ok_or_else(wrong)?;
            Ok(Some(SocketAddr::new(Ipv4Addr::from(*from).into(), u16::from_be_bytes([port[0], port[1]]))))
        }
        (0x21, 0x21) => {
            let (from, rest) = rest.split_first_chunk::<16>().ok_or_else(wrong)?;
            let port = rest.get(16..20).ok_or_else(wrong)?;
            Ok(Some(SocketAddr::new(Ipv6Addr::from(*from).into(), u16::from_be_bytes([port[0], port[1]]))))
        }
        // The proxy's own, as to see whether we live; no address, or no stream.
        (0x20, _) | (0x21, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => Ok(None),
        _ => Err(wrong()),
    }
}

fn wrong() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no header of the PROXY protocol")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read, and how much of what follows is left.
    async fn parsed(header: &[u8]) -> Option<(String, usize)> {
        let bytes = [header, b"GET /"].concat();
        let mut stream = &bytes[..];
        let read = read(&mut stream).await.ok()?;
        Some((read.map_or("own".into(), |address| address.to_string()), stream.len()))
    }

    fn bytes(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    #[tokio::test]
    async fn headers_of_both_versions_say_who_comes_and_no_more_is_read() {
        let four = [192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x67, 0, 80];
        let mut six = [0; 36];
        six[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        (six[15], six[33]) = (7, 9);
        let longest = format!("PROXY TCP6 {0} {0} 65535 65535\r\n", "ffff:".repeat(7) + "ffff");
        for (header, expected) in [
            (&b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n"[..], "192.0.2.1:4711"),
            (b"PROXY TCP6 2001:db8::7 ::1 9 80\r\n", "[2001:db8::7]:9"),
            (b"PROXY UNKNOWN\r\n", "own"),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "own"),
            (longest.as_bytes(), "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
            (&bytes(0x21, 0x11, &four), "192.0.2.1:4711"),
            (&bytes(0x21, 0x11, &[&four[..], &[4; 300]].concat()), "192.0.2.1:4711"),
            (&bytes(0x21, 0x21, &six), "[2001:db8::7]:9"),
            (&bytes(0x20, 0x00, &[]), "own"),
            (&bytes(0x20, 0x11, &four), "own"),
            (&bytes(0x21, 0x00, &[]), "own"),
            (&bytes(0x21, 0x31, &[1; 216]), "own"),
        ] {
            let shown = String::from_utf8_lossy(header);
            assert_eq!(parsed(header).await, Some((expected.into(), 5)), "{shown}");
            for length in 0..header.len() {
                let mut cut = &header[..length];
                assert!(read(&mut cut).await.is_err(), "{length} bytes of {shown}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_none() {
        for garbage in [
            &b"GET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4711\r\n      ",
            b"PROXY TCP4 2001:db8::7 ::1 9 80\r\n",
            b"PROXY TCP6 192.0.2.1 10.0.0.1 9 80\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 +9 80\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 65536 80\r\n",
            b"PROXY TCP4 192.0.2.1  10.0.0.1 1 80\r\n",
            b"PROXY TCP4 192.0.2.01 10.0.0.1 1 80\r\n",
            b"PROXY UDP4 192.0.2.1 10.0.0.1 1 80\r\n",
            b"proxy TCP4 192.0.2.1 10.0.0.1 1 80\r\n",
            b"PROXY UNKNOWN\n                      ",
            &[b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(),
            &bytes(0x11, 0x11, &[0; 12]),
            &bytes(0x22, 0x11, &[0; 12]),
            &bytes(0x21, 0x11, &[0; 11]),
            &bytes(0x21, 0x21, &[0; 35]),
            &bytes(0x21, 0x41, &[0; 36]),
            &[&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff], &vec![0; 70_000]].concat(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on",
        ] {
            assert_eq!(parsed(garbage).await, None, "{}", String::from_utf8_lossy(garbage));
        }
    }
}
