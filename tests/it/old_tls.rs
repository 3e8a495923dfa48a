//! TLS 1.0 and 1.1: neither is spoken, to clients or to upstreams. What larder uses has no code for them; here are their first bytes.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{Authority, Raw, Registry, TestMirror, raw};

const OLD: [[u8; 2]; 2] = [[3, 1], [3, 2]];
const TLS_1_2: [u8; 2] = [3, 3];
const SERVER_HELLO: u8 = 2;
const CLIENT_HELLO: u8 = 1;
const HANDSHAKE: u8 = 0x16;
/// ECDHE with ECDSA and AES-128 in GCM.
const CIPHER: [u8; 2] = [0xc0, 0x2b];
/// ECDSA with P-256 and SHA-256; P-256; points that are not compressed.
const EXTENSIONS: [u8; 24] = [0, 22, 0, 13, 0, 4, 0, 2, 4, 3, 0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0];

/// A record that holds a message of a handshake.
fn hello(kind: u8, version: [u8; 2], after_random: &[u8]) -> Vec<u8> {
    let body = [&version, &[7; 32][..], after_random].concat();
    let length = u8::try_from(body.len()).unwrap();
    [&[HANDSHAKE, version[0], version[1], 0, length + 4, kind, 0, 0, length], &body[..]].concat()
}

/// That it is over, as the other side speaks no such version; and nothing else.
#[track_caller]
fn assert_refused(said: &[u8], version: [u8; 2]) {
    let [0x15, _, _, 0, 2, 2, 70] = said else { panic!("{version:?}: {said:02x?}") };
}

#[tokio::test]
async fn an_upstream_that_chooses_an_old_version_hears_no_more() {
    let authority = Authority::new();
    for version in OLD {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mirror = TestMirror::builder();
        let file = authority.file(mirror.dir());
        let mirror = mirror
            .set(&format!("upstream.\"docker.io\".url = \"https://localhost:{}\"", listener.local_addr().unwrap().port()))
            .set(&format!("upstream.\"docker.io\".ca_file = \"{}\"", file.display()))
            .start()
            .await;
        let serves = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut start = [0; 5];
            stream.read_exact(&mut start).await.unwrap();
            stream.read_exact(&mut vec![0; usize::from(u16::from_be_bytes([start[3], start[4]]))]).await.unwrap();
            let chosen = [&[0][..], &CIPHER, &[0]].concat();
            stream.write_all(&hello(SERVER_HELLO, version, &chosen)).await.unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await.unwrap();
            said
        };
        let (answer, said) = tokio::join!(mirror.get("/v2/library/alpine/tags/list"), serves);
        answer.expect(502);
        assert_refused(&said, version);
    }
}

#[tokio::test]
async fn a_client_that_offers_an_old_version_alone_is_told_so() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let mirror = TestMirror::builder().upstream("docker.io", &upstream);
    let files = authority.server(mirror.dir(), "127.0.0.1");
    let mirror = mirror.tls(&files, "").start().await;
    let offered = [&[0, 0, 2][..], &CIPHER, &[1, 0], &EXTENSIONS].concat();
    for version in OLD {
        let said = raw(mirror.tls_address(), hello(CLIENT_HELLO, version, &offered)).await;
        assert_refused(&said, version);
    }
    mirror.metric_is("larder_tls_handshakes_total{outcome=\"failed\"}", 2).await;
    let mut client = Raw::connect(mirror.tls_address()).await;
    client.send(hello(CLIENT_HELLO, TLS_1_2, &offered)).await;
    let [HANDSHAKE, 3, 3, _, _, SERVER_HELLO] = client.take(6).await[..] else { panic!("something else was wrong as well") };
}
