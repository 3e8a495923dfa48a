//! More than there is room for: connections, requests at once, descriptors. What is not served is told so at once, who is
//! served does not notice, and when there is less to do all is as before.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Client, Closed, Fault, Match, PATIENCE, Process, Raw, Registry, TestMirror, get, noise, stream};

const PING: &str = "GET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\n";

async fn of_two_places(upstream: &Registry) -> TestMirror {
    TestMirror::builder().upstream("docker.io", upstream).set("server.max_connections = 2").start().await
}

#[tokio::test]
async fn for_one_more_connection_the_one_that_is_idle_for_longest_is_closed() {
    let upstream = Registry::start().await;
    let mirror = of_two_places(&upstream).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Raw::connect(mirror.address()).await;
        client.send(PING).await;
        client.head().await;
        assert_eq!(client.take(2).await, b"{}");
        clients.push(client);
    }
    // The first has been used last.
    clients[0].send(PING).await;
    clients[0].head().await;
    clients[0].take(2).await;
    get(mirror.url("/v2/")).await.expect(200);
    assert_eq!(clients[1].rest().await, (vec![], Closed::Fin));
    clients[0].send(PING).await;
    assert!(clients[0].head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(mirror.metric("larder_shed_total{reason=\"connections\"}"), 0);
}

/// An idle connection of HTTP/2 lasts, until its place is wanted.
#[tokio::test]
async fn of_http2_too_the_one_that_is_idle_for_longest_is_told_to_go() {
    let upstream = Registry::start().await;
    let mirror = of_two_places(&upstream).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let stream = TcpStream::connect(mirror.address()).await.unwrap();
        let (requests, connection) = h2::client::handshake(stream).await.unwrap();
        clients.push((requests, tokio::spawn(connection)));
        ping_by_h2(&mut clients.last_mut().unwrap().0).await;
    }
    // The first has been used last.
    ping_by_h2(&mut clients[0].0).await;
    get(mirror.url("/v2/")).await.expect(200);
    let (_, told) = clients.pop().unwrap();
    timeout(PATIENCE, told).await.expect("it is closed").unwrap().expect("in peace");
    ping_by_h2(&mut clients[0].0).await;
    assert_eq!(mirror.metric("larder_shed_total{reason=\"connections\"}"), 0);
}

async fn ping_by_h2(requests: &mut h2::client::SendRequest<bytes::Bytes>) {
    let request = http::Request::get("http://mirror/v2/").body(()).unwrap();
    let (answer, _) = requests.send_request(request, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
}

#[tokio::test]
async fn where_no_connection_is_idle_one_more_is_told_to_come_again_at_once() {
    let upstream = Registry::start().await;
    let blob = noise(1, 2 << 20);
    let digest = upstream.put_blob("library/alpine", blob.clone());
    upstream.on(Match::get(&digest), Fault::Gate { after: 1 << 20 });
    let mirror = of_two_places(&upstream).await;
    let url = mirror.url(&format!("/v2/library/alpine/blobs/{digest}"));
    let served = [stream(&url).await, stream(&url).await];
    let begun = Instant::now();
    let refused = get(mirror.url("/v2/")).await.expect(503);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!((refused.header("retry-after"), refused.error_code().as_deref()), (Some("1"), Some("UNAVAILABLE")));
    assert_eq!(mirror.metric("larder_shed_total{reason=\"connections\"}"), 1);
    upstream.release();
    for answer in served {
        assert!(answer.rest().await.expect(200).body == blob, "who is served is served to the end");
    }
    mirror.metric_is("larder_connections", 0).await;
    get(mirror.url("/v2/")).await.expect(200);
}

/// All clients of a fleet come back in the same moment. One that had a place was closed before it could ask, as if it were idle.
#[tokio::test]
async fn of_a_storm_each_is_served_whole_or_refused_whole() {
    let upstream = Registry::start().await;
    let blob = noise(1, 1 << 20);
    let digest = upstream.put_blob("library/alpine", blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Gate { after: 500_000 });
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("server.max_connections = 40").start().await;
    let url = mirror.url(&format!("/v2/library/alpine/blobs/{digest}"));
    let storm = tokio::spawn(join_all((0..200).map(|_| {
        let url = url.clone();
        async move { Client::h1().try_get(url).await }
    })));
    upstream.held(1).await;
    // All who are in have their answer's beginning; the others have heard no.
    let refused = async {
        while mirror.metric("larder_shed_total{reason=\"connections\"}") < 160 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, refused).await.is_ok(), "{}", mirror.metric("larder_shed_total{reason=\"connections\"}"));
    upstream.release();
    let (mut served, mut refused) = (0, 0);
    for answer in storm.await.unwrap() {
        let answer = answer.expect("everyone is answered");
        match answer.status {
            200 => served += usize::from(answer.expect(200).body == blob),
            _ => refused += usize::from(answer.expect(503).header("retry-after") == Some("1")),
        }
    }
    assert_eq!((served, refused), (40, 160));
    assert_eq!(upstream.count("GET", &digest), 1);
    mirror.metric_is("larder_connections", 0).await;
    assert!(get(&url).await.expect(200).body == blob);
}

#[tokio::test]
async fn with_few_descriptors_those_who_do_nothing_make_room_and_all_heals() {
    let upstream = Registry::start().await;
    let blobs: Vec<_> = (0..40).map(|seed| noise(seed, 100_000)).collect();
    let digests: Vec<_> = blobs.iter().map(|blob| upstream.put_blob("library/alpine", blob.clone())).collect();
    let dir = tempfile::tempdir().unwrap();
    let to_upstream = format!("upstream.\"docker.io\".url={}", upstream.url());
    let larder = Process::start_within(&["--nofile=72:72"], dir.path(), &[&to_upstream]);
    let url = |digest: &String| larder.url(&format!("/v2/library/alpine/blobs/{digest}"));
    // More connections that do nothing than there are descriptors.
    let idle = join_all((0..120).map(|_| Raw::try_connect(larder.address()))).await;
    assert!(idle.iter().all(Result::is_ok), "the kernel takes them");
    let room = async {
        while get(url(&digests[0])).await.status != 200 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(PATIENCE, room).await.is_ok(), "those who have said nothing make room");
    // And then as many who want something at once.
    let asked = join_all(digests.iter().map(|digest| {
        let url = url(digest);
        async move { Client::h1().try_get(url).await }
    }));
    for (answer, blob) in asked.await.into_iter().zip(&blobs) {
        // One that is refused has a connection that may end before its head is read.
        let Ok(answer) = answer else { continue };
        match answer.status {
            200 if answer.complete => assert!(answer.body == *blob),
            200 => {}
            _ => assert_eq!(answer.expect(503).header("retry-after"), Some("1"), "it is larder's own trouble"),
        }
    }
    drop(idle);
    for (digest, blob) in digests.iter().zip(&blobs) {
        let healed = async {
            loop {
                let answer = get(url(digest)).await;
                if answer.status == 200 && answer.complete {
                    break answer;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(timeout(PATIENCE, healed).await.expect("it heals by itself").body == *blob);
    }
    let log = larder.log();
    assert!(log.contains("as many as the limit of open files has room for"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains("an upstream does not answer"), "{log}");
    assert!(log.matches("could not be accepted").count() < 100, "it does not try again and again");
}

/// Every answer has the file of its blob open, and over HTTP/2 there may be a hundred and more for each connection: a few connections had
/// all descriptors, so that nobody else could connect.
#[tokio::test]
async fn what_a_client_asks_at_once_leaves_descriptors_for_others() {
    const CONNECTIONS: usize = 4;
    const STREAMS: usize = 120;
    // An eighth of what larder does not need for itself.
    const FILES: usize = (400 - 32) / 8;
    let upstream = Registry::start().await;
    let put = |n| upstream.put_blob("library/alpine", noise(n as u64, 20_000));
    let digests: Vec<_> = (0..CONNECTIONS * STREAMS).map(put).collect();
    let dir = tempfile::tempdir().unwrap();
    let to_upstream = format!("upstream.\"docker.io\".url={}", upstream.url());
    let larder = Process::start_within(&["--nofile=400:400"], dir.path(), &[&to_upstream]);
    let url = |digest: &String| larder.url(&format!("/v2/library/alpine/blobs/{digest}"));
    let client = Client::h1();
    for digest in &digests {
        client.get(url(digest)).await.expect(200);
    }

    let mut greedy = Vec::new();
    for digests in digests.chunks(STREAMS) {
        greedy.push(ask_by_h2(larder.address(), digests.iter().map(url)).await);
    }
    let heads: Vec<_> = greedy.iter().flat_map(|(answers, _)| answers).collect();
    let refused: Vec<_> = heads.iter().filter(|head| head.status() != 200).collect();
    // The first of each connection is heard, and of the others a client may have as many as are left.
    assert_eq!(heads.len() - refused.len(), CONNECTIONS + FILES / 2 + 1);
    assert!(refused.iter().all(|head| head.status() == 503 && head.headers()["retry-after"] == "1"));
    assert_eq!(larder.metric("larder_shed_total{reason=\"files\"}").await, refused.len() as u64);
    assert!(larder.descriptors() < 300, "{}", larder.descriptors());
    for digest in &digests[..20] {
        Client::from("127.0.0.2").get(url(digest)).await.expect(200);
    }

    greedy.into_iter().for_each(|(_, connection)| connection.abort());
    larder.until("larder_connections", |open| open <= 1).await;
    let (again, _connection) = ask_by_h2(larder.address(), digests[..FILES / 2].iter().map(url)).await;
    assert!(again.iter().all(|head| head.status() == 200), "what is over counts no more");
}

/// All files count once: those who want the same do not shut each other out.
#[tokio::test]
async fn however_many_want_the_same_at_once_they_share_one_file() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob("library/alpine", noise(1, 20_000));
    let dir = tempfile::tempdir().unwrap();
    let to_upstream = format!("upstream.\"docker.io\".url={}", upstream.url());
    let larder = Process::start_within(&["--nofile=72:72"], dir.path(), &[&to_upstream]);
    let url = larder.url(&format!("/v2/library/alpine/blobs/{digest}"));
    get(&url).await.expect(200);
    let (answers, _connection) = ask_by_h2(larder.address(), std::iter::repeat_n(url, 120)).await;
    assert!(answers.iter().all(|head| head.status() == 200));
}

/// Asks all of this at once over one connection, and takes the heads of the answers and nothing more.
async fn ask_by_h2(
    address: SocketAddr,
    urls: impl Iterator<Item = String>,
) -> (Vec<http::Response<h2::RecvStream>>, JoinHandle<()>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut requests, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream).await.unwrap();
    let connection = tokio::spawn(async move { drop(connection.await) });
    let mut answers = Vec::new();
    for url in urls {
        requests = requests.ready().await.unwrap();
        answers.push(requests.send_request(http::Request::get(url).body(()).unwrap(), true).unwrap().0);
    }
    (join_all(answers).await.into_iter().map(Result::unwrap).collect(), connection)
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_neither_a_pull_nor_the_end() {
    let upstream = Registry::start().await;
    let blob = noise(1, 1000);
    let digest = upstream.put_blob("library/app", blob.clone());
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start_unread(dir.path(), &[&format!("upstream.\"docker.io\".url={}", upstream.url())]);
    let client = Client::h1();
    // Their lines are several times what a pipe holds.
    for _ in 0..1000 {
        let answer = client.get(larder.url(&format!("/v2/library/app/blobs/{digest}"))).await.expect(200);
        assert_eq!(answer.body, blob);
    }
    assert_eq!(larder.terminate().status.code(), Some(0));
}
