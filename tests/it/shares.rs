//! What one client may take where the operator has set limits, by the address that it comes from, and that others do not feel it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use larder::clock::Clock;
use tokio::time::Instant;

use crate::damage::{cached, path};
use crate::support::{Client, Raw, Registry, TestMirror, get, get_with, noise};

const MIB: usize = 1 << 20;
const ANOTHER: (&str, &str) = ("x-forwarded-for", "198.51.100.1");

/// One with these limits, and the URL at which it believes who says that it speaks for another.
async fn limited(upstream: &Registry, limits: &str) -> (TestMirror, String) {
    let mirror = TestMirror::builder().upstream("docker.io", upstream).set(limits).listener("proxies = ['127.0.0.1']");
    let mirror = mirror.clock(Clock::still()).start().await;
    let url = mirror.listening()[1].to_string();
    (mirror, url)
}

#[tokio::test]
async fn one_client_has_no_more_connections_than_it_may() {
    let upstream = Registry::start().await;
    let (mirror, _) = limited(&upstream, "server.client_connections = 2").await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::asking(mirror.address(), "/v2/").await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        held.push(raw);
    }
    let refused = get(mirror.url("/v2/")).await.expect(503);
    assert_eq!((refused.header("retry-after"), refused.error_code().as_deref()), (Some("1"), Some("UNAVAILABLE")));
    assert_eq!(mirror.metric("larder_shed_total{reason=\"client_connections\"}"), 1);
    drop(held.pop());
    mirror.metric_is("larder_connections", 1).await;
    get(mirror.url("/v2/")).await.expect(200);
}

/// They took places before they were refused, and pushed out those who had theirs by right.
#[tokio::test]
async fn who_has_all_connections_that_it_may_takes_no_places_of_others() {
    let upstream = Registry::start().await;
    let limits = "server.client_connections = 2\nserver.max_connections = 3";
    let (mirror, _) = limited(&upstream, limits).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::asking(mirror.address(), "/v2/").await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.take(2).await, b"{}");
        held.push(raw);
    }
    let mut refused = Vec::new();
    for _ in 0..20 {
        refused.push(Raw::connect(mirror.address()).await);
    }
    mirror.metric_is("larder_shed_total{reason=\"client_connections\"}", 20).await;
    let mut other = Raw::connect_from([127, 0, 0, 2], mirror.address()).await;
    other.send("GET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\n").await;
    assert!(other.head().await.starts_with("HTTP/1.1 200 "));
    for raw in &mut held {
        raw.send("GET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\n").await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(mirror.metric("larder_shed_total{reason=\"connections\"}"), 0);
}

/// The 51st of a whole company would be refused where each may have 50.
#[tokio::test]
async fn connections_of_proxies_are_counted_for_those_for_whom_they_are_and_for_nobody_else() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("server.client_connections = 2");
    let by_http = mirror.listener("proxies = ['127.0.0.1']");
    let mirror = by_http.listener("proxies = ['127.0.0.1'], proxy_protocol = true").start().await;
    let [by_http, by_protocol] = [1, 2].map(|n| mirror.listening()[n].address().unwrap());
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut raw = Raw::asking(by_http, "/v2/").await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        held.push(raw);
    }
    for (n, expected) in [(1, "200"), (1, "200"), (1, "503"), (2, "200"), (2, "200"), (2, "503")] {
        let mut raw = Raw::connect(by_protocol).await;
        raw.send(format!("PROXY TCP4 198.51.100.{n} 10.0.0.1 4711 80\r\nGET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\n")).await;
        assert!(raw.head().await.starts_with(&format!("HTTP/1.1 {expected} ")), "{n}");
        held.push(raw);
    }
    assert_eq!(mirror.metric("larder_shed_total{reason=\"client_connections\"}"), 2);
}

#[tokio::test]
async fn one_client_asks_no_more_often_than_it_may() {
    let upstream = Registry::start().await;
    let (mirror, url) = limited(&upstream, "server.client_requests = 1").await;
    let client = Client::h1();
    let mut answers = Vec::new();
    for _ in 0..15 {
        answers.push(client.get(format!("{url}/v2/")).await);
    }
    let refused: Vec<_> = answers.iter().skip_while(|answer| answer.status == 200).collect();
    // Ten at once, and one more for each second that this takes.
    assert!((3..=5).contains(&refused.len()), "{}", refused.len());
    assert_eq!((refused[0].status, refused[0].header("retry-after")), (429, Some("1")));
    assert_eq!(refused[0].error_code().as_deref(), Some("TOOMANYREQUESTS"));
    assert!(mirror.metric("larder_shed_total{reason=\"client_requests\"}") >= 3);
    get_with(format!("{url}/v2/"), &[ANOTHER]).await.expect(200);
}

async fn time(client: &Client, url: String, headers: &[(&str, &str)], expected: &Bytes) -> Duration {
    let begun = Instant::now();
    assert!(client.get_with(url, headers).await.expect(200).body == *expected);
    begun.elapsed()
}

/// Each answer's first piece went at once, whatever was owed, so that who asked by small ranges was held by nothing; and all others at
/// its address paid for it.
#[tokio::test]
async fn who_asks_by_small_ranges_takes_no_more_and_leaves_no_debt_to_others() {
    const PART: usize = 4 << 10;
    const BLOB: usize = 256 << 10;
    let upstream = Registry::start().await;
    let (mirror, url) = limited(&upstream, "server.client_rate = \"512KiB\"").await;
    let blob = noise(1, BLOB);
    let url = format!("{url}{}", path(&cached(&upstream, &mirror, &blob).await));
    let client = Client::h1();
    let begun = Instant::now();
    for n in 0..400 {
        let from = n * PART % BLOB;
        let range = format!("bytes={from}-{}", from + PART - 1);
        let answer = client.get_with(&url, &[("range", &range)]).await.expect(206);
        assert!(answer.body == blob[from..from + PART]);
    }
    // 1,600 KiB, of which no more than a second's worth goes at once.
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2), "{took:?}");
    let begun = Instant::now();
    let answer = Client::h1().get_with(&url, &[("range", "bytes=0-131071")]).await.expect(206);
    assert!(answer.body == blob[..131_072] && begun.elapsed() < took / 2, "{:?}, {took:?}", begun.elapsed());
}

#[tokio::test]
async fn all_answers_of_one_client_share_what_it_may_take_and_others_take_what_they_like() {
    let upstream = Registry::start().await;
    let (mirror, url) = limited(&upstream, "server.client_rate = \"4MiB\"").await;
    for (n, client) in [Client::h1(), Client::h2()].into_iter().enumerate() {
        let blob = noise(n as u64, 3 * MIB);
        let url = format!("{url}{}", path(&cached(&upstream, &mirror, &blob).await));
        // A second's worth is free, which having it in the cache has used.
        let (four, other) = tokio::join!(
            join_all((0..4).map(|_| time(&client, url.clone(), &[], &blob))),
            time(&client, url.clone(), &[ANOTHER], &blob),
        );
        let (least, most) = (four.iter().min().unwrap(), four.iter().max().unwrap());
        assert!((Duration::from_millis(1900)..Duration::from_secs(8)).contains(most), "{four:?}");
        assert!(*least * 2 > *most, "all go on alike: {four:?}");
        assert!(other < *least, "{other:?}, {four:?}");
    }
}
