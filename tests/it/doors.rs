//! The ways in: addresses, sockets in the file system, several at once.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::time::Duration;

use larder::app::{Alone, App};
use larder::clock::Clock;
use larder::config::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::support::{Authority, Client, PATIENCE, Process, Registry, TestMirror, get, noise, until};

const MIB: usize = 1 << 20;

/// The body of an answer that comes by a Unix socket.
async fn get_by(socket: &Path, path: &str) -> Vec<u8> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: mirror\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let answer = timeout(PATIENCE, asked).await.unwrap();
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..head]));
    answer[head..].to_vec()
}

#[tokio::test]
async fn by_whichever_door_clients_come_they_get_the_same_from_one_cache() {
    let upstream = Registry::start().await;
    let blob = noise(1, 6 * MIB);
    let digest = upstream.put_blob("library/alpine", blob.clone());
    let path = format!("/v2/library/alpine/blobs/{digest}");
    let authority = Authority::new();
    let mirror = TestMirror::builder().upstream("docker.io", &upstream);
    let (files, socket) = (authority.server(mirror.dir(), "127.0.0.1"), mirror.dir().join("larder.sock"));
    let unix = format!("listen = 'unix:{}'", socket.display());
    let mirror = mirror.listener("").listener(&unix).tls(&files, "").start().await;
    let listening: Vec<String> = mirror.listening().iter().map(ToString::to_string).collect();
    assert!(listening[0].starts_with("http://127.0.0.1:") && listening[1].starts_with("http://127.0.0.1:"), "{listening:?}");
    assert!(listening[2] == format!("unix:{}", socket.display()) && listening[3].starts_with("https://127.0.0.1:"));

    assert!(mirror.get(&path).await.expect(200).body == blob);
    assert!(get(format!("{}{path}", listening[1])).await.expect(200).body == blob);
    assert!(get_by(&socket, &path).await == blob);
    let tls = Client::tls(authority.believed(rustls::ALL_VERSIONS, &["http/1.1"]));
    assert!(tls.get(mirror.tls_url(&path)).await.expect(200).body == blob);
    assert_eq!(upstream.count("GET", &digest), 1);
}

/// They are one limit for all, whichever way they come.
#[tokio::test]
async fn connections_are_counted_over_all_doors() {
    let upstream = Registry::start().await;
    let mirror =
        TestMirror::builder().upstream("docker.io", &upstream).listener("").set("server.max_connections = 1").start().await;
    let [first, second] = [0, 1].map(|n| mirror.listening()[n].to_string());
    let (client, other) = (Client::h1(), Client::h1());
    client.get(format!("{first}/v2/")).await.expect(200);
    other.get(format!("{second}/v2/")).await.expect(200);
    mirror.metric_is("larder_connections", 1).await;
}

#[tokio::test]
async fn a_unix_socket_is_for_larders_user_and_group_and_goes_when_larder_goes() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream);
    let socket = mirror.dir().join("larder.sock");
    // What a larder leaves that is killed.
    drop(StdUnixListener::bind(&socket).unwrap());
    let mirror = mirror.set(&format!("server.listen = 'unix:{}'", socket.display())).try_start().await.ok().unwrap();
    let made = fs::metadata(&socket).unwrap();
    assert!(made.file_type().is_socket());
    assert_eq!(made.permissions().mode() & 0o777, 0o660);
    assert_eq!(get_by(&socket, "/v2/").await, b"{}");
    let mirror = mirror.stop().await;
    assert!(!socket.exists());

    // One that belongs to someone, and what is no socket, is left alone.
    let others = StdUnixListener::bind(&socket).unwrap();
    let (why, mirror) = mirror.try_start().await.err().unwrap();
    assert!(why.contains(&format!("cannot listen on unix:{}", socket.display())) && why.contains("in use"), "{why}");
    drop(others);
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "a file").unwrap();
    let (why, _mirror) = mirror.try_start().await.err().unwrap();
    assert!(why.contains("in use"), "{why}");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "a file");
}

/// The second found the socket of the first, which did not listen yet, took it for one that was left, and took it away.
#[tokio::test]
async fn of_two_that_start_at_once_the_one_that_stays_keeps_its_socket() {
    for _ in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let (socket, cache) = (dir.path().join("larder.sock"), dir.path().join("cache"));
        let config = format!("server.listen = 'unix:{}'\nadmin.listen = ''\ncache.dir = '{}'", socket.display(), cache.display());
        let config = Config::from_toml(&format!("{config}\ncache.max_size = '1GiB'\ncache.min_free = '0%'")).unwrap();
        let held = Alone::open(config.clone(), Clock::system()).await.ok().unwrap();
        let [first, second] = [0, 1].map(|_| {
            let config = config.clone();
            async { App::start(config, Clock::system()).await }
        });
        let first = tokio::spawn(first);
        // If it is made before the cache can be had, it is there soon.
        let _ = timeout(Duration::from_millis(300), until("there is a socket", || socket.exists())).await;
        let second = tokio::spawn(second);
        tokio::join!(held.close(), async {
            let _ = timeout(Duration::from_millis(300), until("one has given up", || second.is_finished())).await;
        });
        let started = [first.await.unwrap(), second.await.unwrap()];
        let [stays] = started.into_iter().filter_map(Result::ok).collect::<Vec<_>>().try_into().ok().expect("one has the cache");
        assert_eq!(get_by(&socket, "/v2/").await, b"{}");
        stays.stop().await;
        assert!(!socket.exists());
    }
}

/// Who came by it was taken by the kernel, and waited for ever.
#[tokio::test]
async fn a_socket_of_systemds_that_no_listener_is_for_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let larder = Process::start_activated(dir.path(), socket.into(), "larder-web");
    let log = larder.log_when("it tells", |log| log.contains("a socket that systemd has handed over is closed")).await;
    assert!(log.contains("WARN") && log.contains("larder-web"), "{log}");
    let refused = std::net::TcpStream::connect(address).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    get(larder.url("/v2/")).await.expect(200);
}

#[tokio::test]
async fn what_is_wrong_with_a_listener_is_said_before_anyone_is_let_in() {
    let upstream = Registry::start().await;
    let (authority, other) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let dirs = [dir.path().join("one"), dir.path().join("other")];
    dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
    let (good, bad) = (authority.server(&dirs[0], "127.0.0.1"), other.server(&dirs[1], "127.0.0.1"));
    let empty = dir.path().join("empty");
    fs::write(&empty, "").unwrap();
    let tls = |certificate: &Path, key: &Path| format!("cert_file = '{}', key_file = '{}'", certificate.display(), key.display());
    for (options, says) in [
        ("lsten = 1".to_owned(), "server.listener[0].lsten: unknown field `lsten`"),
        ("listen = 'here'".to_owned(), "server.listener[0].listen: \"here\" is no address such as"),
        ("listen = 'systemd:web'".to_owned(), "cannot listen on systemd:web: systemd has handed over no such socket"),
        (format!("cert_file = '{}'", good.0.display()), "key_file go together"),
        (tls(&good.0, &bad.1), "cert_file does not fit key_file"),
        (tls(&empty, &good.1), "there is no certificate in it"),
        (tls(&good.0, &empty), "key_file "),
        (tls(&dir.path().join("none"), &good.1), "cert_file "),
        // A template left client_ca_file empty, and everyone was let in without a certificate.
        (format!("{}, client_cert = 'required'", tls(&good.0, &good.1)), "client_cert is for certificates that client_ca_file"),
        (format!("{}, client_cert = 'optional', client_ca_file = ''", tls(&good.0, &good.1)), "client_ca_file has signed"),
    ] {
        let mirror = TestMirror::builder().upstream("docker.io", &upstream).listener(&options);
        let (why, _) = mirror.try_start().await.err().unwrap();
        assert!(why.contains(says) && !why.contains('\n'), "{options}: {why}");
    }
}

#[test]
fn listeners_can_be_given_by_flag_and_by_environment() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = Authority::new().server(dir.path(), "127.0.0.1");
    let listener = format!("[{{listen='127.0.0.1:0', cert_file='{}', key_file='{}'}}]", certificate.display(), key.display());
    let larder = Process::start(dir.path(), &[&format!("server.listener={listener}")], &[]);
    assert!(larder.greeting().contains(" and https://127.0.0.1:"), "{}", larder.greeting());
    larder.kill();
    let larder = Process::start(dir.path(), &[], &[("LARDER_SERVER_LISTENER", &listener)]);
    assert!(larder.greeting().contains(" and https://127.0.0.1:"), "{}", larder.greeting());
    larder.kill();
    let ended = Process::fail(dir.path(), &["server.listener=[{listen"], &[]);
    assert!(ended.log.contains("server.listener: \"[{listen\" is no list of tables"), "{}", ended.log);
    let ended = Process::fail(dir.path(), &["server.listen="], &[]);
    assert!(ended.log.contains("server.listen is empty and there is no server.listener"), "{}", ended.log);
}
