//! Upstreams that cannot be reached, or answer with something else: what the client is told, and what it costs the next one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::support::{Auth, Client, Fault, Image, Listener, Log, Match, Registry, Setup, StoppedMirror, TestMirror, noise};

const REPOSITORY: &str = "library/app";
const TAG: &str = "/v2/library/app/manifests/latest";
const SECOND: Duration = Duration::from_secs(1);

fn path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

/// One of Docker Hub, with these options for it.
fn before(url: &str, options: &[&str]) -> StoppedMirror {
    let mirror = TestMirror::builder().set(&format!("upstream.\"docker.io\".url = {url:?}"));
    options.iter().fold(mirror, |mirror, option| mirror.set(&format!("upstream.\"docker.io\".{option}")))
}

// === what the client is told ===

/// A fault, and the statuses of a manifest and a blob whose upstream has it.
type Row = (&'static str, Fault, u16, u16);

fn table() -> Vec<Row> {
    vec![
        ("is not there", Fault::status(404), 404, 404),
        ("is denied", Fault::status(403), 403, 403),
        // Docker Hub means what is not there.
        ("wants a login that we have not", Fault::status(401), 404, 404),
        ("limits the rate", Fault::answer(429, &[("retry-after", "7")], ""), 429, 429),
        ("breaks down", Fault::status(500), 502, 502),
        ("is a bad gateway", Fault::status(502), 502, 502),
        ("is busy", Fault::answer(503, &[("retry-after", "7")], ""), 502, 502),
        ("is a slow gateway", Fault::status(504), 502, 502),
        ("says what no registry says", Fault::status(299), 502, 502),
        ("hangs", Fault::Hang, 504, 504),
        ("leads nowhere", Fault::status(307), 502, 502),
        ("encodes", Fault::ContentEncoding("br"), 502, 502),
    ]
}

#[tokio::test]
async fn each_trouble_has_its_status_and_never_a_challenge() {
    let log = Log::from_here();
    for (what, fault, manifest, blob) in table() {
        let upstream = Registry::start().await;
        let image = Image::new(1).layers(&[1000]).put(&upstream, REPOSITORY, "latest");
        upstream.on(Match::any(""), fault);
        let mirror = before(&upstream.url(), &["header_timeout = \"200ms\"", "idle_timeout = \"200ms\""]).start().await;
        let layer = image.blob_path(&image.layers[0]);
        for (path, status) in [(TAG, manifest), (&*layer, blob)] {
            let answer = mirror.get(path).await;
            assert_eq!(answer.status, status, "an upstream that {what}: {:?}", answer.text());
            assert!(answer.complete && answer.header("www-authenticate").is_none(), "{what}");
            let told = answer.header("retry-after").is_some();
            assert_eq!(told, status == 429, "{what}: {:?}", answer.headers);
        }
        let limits = log.says(&["WARN", &upstream.address().to_string(), "limits the rate"]);
        assert_eq!(limits, usize::from(manifest == 429), "{what}");
        assert!(upstream.count("GET", "/manifests/") <= 3, "{what}: {:#?}", upstream.requests());
    }
}

#[tokio::test]
async fn no_answer_and_a_broken_one_are_asked_about_again_and_the_client_does_not_notice() {
    for fault in [Fault::status(500), Fault::status(503), Fault::Cut { after: 10 }, Fault::Reset { after: 0 }] {
        let upstream = Registry::start().await;
        let image = Image::new(2).put(&upstream, REPOSITORY, "latest");
        upstream.on(Match::get("/manifests/").times(2), fault);
        let mirror = TestMirror::of(&upstream).await;
        assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest);
        assert_eq!(upstream.count("GET", "/manifests/"), 3);
    }
}

#[tokio::test]
async fn what_is_asked_of_upstreams_is_counted_by_kind_and_status() {
    let upstream = Registry::start().await;
    let image = Image::new(3).layers(&[1000]).put(&upstream, REPOSITORY, "latest");
    upstream.on(Match::get("/manifests/").times(1), Fault::status(503));
    upstream.on(Match::get("/blobs/").times(1), Fault::Hang);
    let mirror = before(&upstream.url(), &["header_timeout = \"200ms\""]).start().await;
    mirror.get(TAG).await.expect(200);
    let layer = image.blob_path(&image.layers[0]);
    mirror.get(&layer).await.expect(504);
    mirror.get(&layer).await.expect(200);
    upstream.stop().await;
    mirror.get("/v2/library/other/manifests/latest").await.expect(502);
    for (kind, status) in [("manifest", "503"), ("manifest", "200"), ("blob", "timeout"), ("blob", "200"), ("manifest", "failed")]
    {
        let name = format!("larder_upstream_requests_total{{upstream=\"docker.io\",kind=\"{kind}\",status=\"{status}\"}}");
        assert_eq!(mirror.metric(&name), 1, "{name}");
    }
}

// === nobody there ===

/// An address that neither takes connections nor refuses them: its queue is full, and the kernel drops who knocks.
struct BlackHole {
    address: SocketAddr,
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl BlackHole {
    async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            queue.push(stream.unwrap());
        }
        Self { address, _listener: listener, _queue: queue }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

#[tokio::test]
async fn a_black_hole_costs_one_client_one_connect_timeout_and_the_others_nothing() {
    let log = Log::from_here();
    let hole = BlackHole::new().await;
    let mirror = before(&hole.url(), &["connect_timeout = \"500ms\""]).start().await;
    let began = Instant::now();
    mirror.get(TAG).await.expect(502);
    let first = began.elapsed();
    assert!((Duration::from_millis(500)..SECOND).contains(&first), "{first:?}");
    let began = Instant::now();
    for seed in 0..10 {
        mirror.get(&path(&crate::support::digest_of(&noise(seed, 10)))).await.expect(502);
    }
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    Client::h1().get(mirror.admin_url("/metrics")).await.expect(200);
    let left_alone = mirror.metric("larder_upstream_cool_down_seconds{upstream=\"docker.io\"}");
    assert!((3..=5).contains(&left_alone), "{left_alone} s");
    assert_eq!(log.says(&["WARN", &hole.address.to_string(), "left alone"]), 1);
}

#[tokio::test]
async fn behind_a_black_hole_the_next_address_answers_and_only_one_client_waits_for_that() {
    let (hole, second) = (BlackHole::new().await, Registry::start().await);
    let image = Image::new(4).layers(&[300_000]).put(&second, REPOSITORY, "latest");
    let fallbacks = format!("fallbacks = [{:?}]", second.url());
    let mirror = before(&hole.url(), &["connect_timeout = \"500ms\"", &fallbacks]).start().await;
    mirror.get(TAG).await.expect(200);
    let began = Instant::now();
    for blob in image.blobs() {
        assert_eq!(mirror.get(&image.blob_path(blob)).await.expect(200).body, blob.bytes);
    }
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn one_refused_connection_is_enough_to_leave_an_address_alone() {
    let log = Log::from_here();
    let (upstream, second) = (Registry::start().await, Registry::start().await);
    let blobs: Vec<_> = (0..16).map(|seed| noise(seed, 1000)).collect();
    let digests: Vec<_> = blobs.iter().map(|blob| second.put_blob(REPOSITORY, blob.clone())).collect();
    upstream.stop().await;
    let fallbacks = format!("fallbacks = [{:?}]", second.url());
    let mirror = before(&upstream.url(), &[&fallbacks]).start().await;
    for digest in &digests[..6] {
        mirror.get(&path(digest)).await.expect(200);
    }
    let failed = "larder_upstream_requests_total{upstream=\"docker.io\",kind=\"blob\",status=\"failed\"}";
    assert_eq!(mirror.metric(failed), 1);
    let said = || log.says(&["WARN", &upstream.address().to_string(), "left alone", "refused"]);
    assert_eq!(said(), 1);
    // It goes on, and so does the log, now and then.
    for digest in &digests[6..] {
        mirror.clock().advance(SECOND * 3);
        mirror.get(&path(digest)).await.expect(200);
    }
    assert!(mirror.metric(failed) > 3 && said() <= 3, "{} warnings in half a minute", said());
}

/// A listener that takes connections and never says a word, and what it was told first.
#[tokio::test]
async fn a_tls_handshake_that_stalls_is_a_502_within_the_connect_timeout_and_nothing_goes_out_in_the_clear() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let mirror = before(&url, &["connect_timeout = \"500ms\""]).start().await;
    let (answer, first) = tokio::join!(mirror.get(TAG), async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = Vec::new();
        // Held open until the other side gives up.
        stream.read_to_end(&mut hello).await.unwrap();
        hello[0]
    });
    answer.expect(502);
    assert_eq!(first, 0x16, "a handshake of TLS");
    let began = Instant::now();
    mirror.get(&path(&crate::support::digest_of(b"x"))).await.expect(502);
    assert!(began.elapsed() < Duration::from_millis(500));
    assert!(timeout(Duration::from_millis(50), listener.accept()).await.is_err(), "and nobody knocks again so soon");
}

// === recovery ===

#[tokio::test]
async fn whatever_the_trouble_was_it_is_over_within_five_seconds_after_its_end() {
    let faults = [
        None,
        Some(Fault::status(500)),
        Some(Fault::status(503)),
        Some(Fault::Hang),
        Some(Fault::Cut { after: 0 }),
        Some(Fault::Stall { after: 100 }),
        Some(Fault::Reset { after: 100 }),
    ];
    for fault in faults {
        let upstream =
            Registry::with(Setup { auth: Auth::Bearer { user: None, expires_in: Some(300) }, ..Setup::default() }).await;
        let images: Vec<_> = (0..6).map(|seed| Image::new(seed).layers(&[50_000]).put(&upstream, REPOSITORY, "latest")).collect();
        let mirror = before(&upstream.url(), &["header_timeout = \"50ms\"", "idle_timeout = \"50ms\""]).start().await;
        match &fault {
            None => upstream.stop().await,
            Some(fault) => {
                upstream.on(Match::any("/blobs/"), fault.clone());
                upstream.on(Match::any("/manifests/"), fault.clone());
                upstream.on(Match::token(), fault.clone());
            }
        }
        let began = Instant::now();
        for image in &images[1..] {
            let url = mirror.url(&image.blob_path(&image.layers[0]));
            // A fill may try longer than this test wants to wait.
            let _ = timeout(Duration::from_millis(300), Client::h1().try_get(url)).await;
        }
        assert!(began.elapsed() < SECOND * 3, "{fault:?}");
        upstream.heal();
        upstream.restart().await;
        mirror.clock().advance(SECOND * 5);
        assert_eq!(mirror.get(TAG).await.expect(200).body, images[5].manifest, "after {fault:?}");
        let layer = &images[0].layers[0];
        assert_eq!(mirror.get(&images[0].blob_path(layer)).await.expect(200).body, layer.bytes, "after {fault:?}");
    }
}

// === the token service ===

#[tokio::test]
async fn a_token_service_that_hangs_is_waited_for_once() {
    let upstream = Registry::with(Setup { auth: Auth::Bearer { user: None, expires_in: Some(300) }, ..Setup::default() }).await;
    let names: Vec<_> = (0..6).map(|number| format!("team/app{number}")).collect();
    for name in &names {
        Image::new(5).put(&upstream, name, "latest");
    }
    upstream.on(Match::token(), Fault::Hang);
    let mirror = before(&upstream.url(), &["header_timeout = \"300ms\""]).start().await;
    let began = Instant::now();
    for name in &names {
        mirror.get(&format!("/v2/{name}/manifests/latest")).await.expect(504);
    }
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    assert_eq!(upstream.token_requests(), 1);
    assert_eq!(mirror.metric("larder_upstream_tokens_total{upstream=\"docker.io\",outcome=\"failed\"}"), 1);
    upstream.heal();
    mirror.clock().advance(SECOND * 5);
    for name in &names {
        mirror.get(&format!("/v2/{name}/manifests/latest")).await.expect(200);
    }
    assert_eq!(upstream.count_at(Listener::Token, "GET", ""), 1 + names.len());
}

// === too slow ===

#[tokio::test]
async fn a_body_that_drips_is_asked_for_again_from_where_it_was() {
    let upstream = Registry::start().await;
    let blob = noise(6, 300_000);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Bandwidth(10_000));
    let mirror = before(&upstream.url(), &["idle_timeout = \"200ms\"", "min_rate = \"100KiB\""]).start().await;
    let began = Instant::now();
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    assert!(began.elapsed() < SECOND * 3, "it would have taken half a minute: {:?}", began.elapsed());
    let requests = upstream.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests[1].range().is_some_and(|range| range != "bytes=0-"), "{requests:#?}");
    assert_eq!(mirror.metric("larder_fill_resumes_total"), 1);
}

#[tokio::test]
async fn a_manifest_that_drips_does_not_keep_its_place_however_slow_one_may_be() {
    let upstream = Registry::start().await;
    Image::new(7).layers(&[10; 50]).put(&upstream, REPOSITORY, "latest");
    upstream.on(Match::get("/manifests/"), Fault::Bandwidth(500));
    let mirror = before(&upstream.url(), &["idle_timeout = \"100ms\"", "min_rate = \"0B\""]).start().await;
    mirror.get(TAG).await.expect(504);
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_manifest_that_drips_is_asked_for_elsewhere() {
    let (upstream, second) = (Registry::start().await, Registry::start().await);
    for registry in [&upstream, &second] {
        Image::new(7).layers(&[10; 50]).put(registry, REPOSITORY, "latest");
    }
    upstream.on(Match::get("/manifests/"), Fault::Bandwidth(500));
    let options = ["idle_timeout = \"100ms\"", "min_rate = \"100KiB\"", &format!("fallbacks = [{:?}]", second.url())];
    let mirror = before(&upstream.url(), &options).start().await;
    mirror.get(TAG).await.expect(200);
    assert_eq!((upstream.requests().len(), second.requests().len()), (1, 1));
}
