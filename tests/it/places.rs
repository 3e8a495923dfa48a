//! How much is asked of an upstream at one time, and who waits.

use futures_util::future::join_all;
use larder::store::{Operation, faults};
use tokio::task::JoinHandle;

use crate::support::{
    Client, Fault, Image, Match, Registry, Streaming, TestMirror, digest_of, files, get, get_with, noise, stream, until,
};

const REPOSITORY: &str = "library/app";
const SHED: &str = "larder_shed_total{reason=\"transfers\"}";
const TAG: &str = "/v2/library/app/manifests/latest";

fn path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

async fn with_places(upstream: &Registry, places: usize, patience: &str) -> TestMirror {
    TestMirror::builder()
        .upstream("docker.io", upstream)
        .set(&format!("upstream.\"docker.io\".max_transfers = {places}"))
        .set(&format!("upstream.\"docker.io\".header_timeout = {patience:?}"))
        .start()
        .await
}

/// So many blobs.
fn put(upstream: &Registry, number: u64) -> Vec<String> {
    (0..number).map(|seed| upstream.put_blob(REPOSITORY, noise(seed, 100_000))).collect()
}

#[tokio::test]
async fn no_more_blobs_come_at_a_time_than_there_are_places_and_all_come_in_the_end() {
    let upstream = Registry::start().await;
    let digests = put(&upstream, 40);
    let mirror = with_places(&upstream, 8, "30s").await;
    let answers = join_all(digests.iter().map(|digest| get(mirror.url(&path(digest))))).await;
    for (seed, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.expect(200).body, noise(seed as u64, 100_000));
    }
    assert!(upstream.max_concurrent() <= 7, "{} at a time", upstream.max_concurrent());
    assert_eq!(upstream.requests().len(), 40);
}

#[tokio::test]
async fn behind_blobs_that_fill_all_places_manifests_and_heads_do_not_wait() {
    let upstream = Registry::start().await;
    let digests = put(&upstream, 20);
    let image = Image::new(1).put(&upstream, REPOSITORY, "latest");
    upstream.on(Match::get("/blobs/"), Fault::Gate { after: 50_000 });
    let mirror = with_places(&upstream, 8, "30s").await;
    let under_way: Vec<_> = digests
        .iter()
        .map(|digest| {
            let url = mirror.url(&path(digest));
            tokio::spawn(async move { Client::h1().get(url).await })
        })
        .collect();
    upstream.held(7).await;
    assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest);
    mirror.head(&path(&digests[19])).await.expect(200);
    assert_eq!(upstream.held_now(), 7);
    upstream.heal();
    upstream.release();
    for answer in join_all(under_way).await {
        answer.unwrap().expect(200);
    }
}

#[tokio::test]
async fn who_would_wait_too_long_is_told_to_come_again_and_a_place_that_is_left_is_taken() {
    let upstream = Registry::start().await;
    let digests = put(&upstream, 3);
    upstream.on(Match::get("/blobs/").times(2), Fault::Gate { after: 50_000 });
    let mirror = with_places(&upstream, 3, "300ms").await;
    let mut bodies: Vec<Streaming> = join_all(digests[..2].iter().map(|digest| stream(mirror.url(&path(digest))))).await;
    upstream.held(2).await;
    let refused = mirror.get(&path(&digests[2])).await.expect(503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.error_code().as_deref(), Some("UNAVAILABLE"));
    assert_eq!(upstream.requests().len(), 2, "nobody was asked");

    upstream.release();
    bodies.pop().unwrap().rest().await.expect(200);
    mirror.get(&path(&digests[2])).await.expect(200);
    bodies.pop().unwrap().rest().await.expect(200);
}

/// Who asked for a thousand blobs had everyone else wait until a place was left for the last of them.
#[tokio::test]
async fn however_many_blobs_one_client_asks_for_another_gets_the_one_that_it_asks_for() {
    let upstream = Registry::start().await;
    let (digests, other) = (put(&upstream, 200), upstream.put_blob(REPOSITORY, noise(1_000, 100_000)));
    upstream.on(Match::get("/blobs/").times(200), Fault::Gate { after: 50_000 });
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).listener("proxies = ['127.0.0.1']").start().await;
    let url = mirror.listening()[1].to_string();
    let asked: Vec<_> = digests
        .iter()
        .map(|digest| {
            let url = format!("{url}{}", path(digest));
            tokio::spawn(async move { get_with(url, &[("x-forwarded-for", "198.51.100.1")]).await })
        })
        .collect();
    upstream.held(50).await;
    assert_eq!(upstream.count("GET", "/blobs/"), 50, "of fifty-six places");
    upstream.heal();
    let another = get_with(format!("{url}{}", path(&other)), &[("x-forwarded-for", "198.51.100.2")]).await;
    assert_eq!(another.expect(200).body, noise(1_000, 100_000));
    assert_eq!(upstream.count("GET", "/blobs/"), 51);
    upstream.release();
    for answer in join_all(asked).await {
        answer.unwrap().expect(200);
    }
    assert_eq!(upstream.count("GET", "/blobs/"), 201);
}

/// Each range far ahead of its fill had a place for as long as its client took to read it: fifty-six of them, read a byte at a
/// time, kept everyone else from the upstream.
#[tokio::test]
async fn ranges_that_are_read_slowly_leave_places_for_others() {
    const SIZE: usize = 24 << 20;
    const FAR: usize = 20 << 20;
    let upstream = Registry::start().await;
    let (bytes, small) = (noise(1, SIZE), noise(2, 100_000));
    let (large, other) = (upstream.put_blob(REPOSITORY, bytes.clone()), upstream.put_blob(REPOSITORY, small.clone()));
    upstream.on(Match::get(&large), Fault::Gate { after: 50_000 });
    let mirror = with_places(&upstream, 16, "2s").await;
    let whole = stream(mirror.url(&path(&large))).await;
    upstream.held(1).await;
    let range = format!("bytes={FAR}-{}", FAR + 99_999);
    // Here it is the upstream that makes them slow.
    let ranges: Vec<_> = (0..20)
        .map(|_| {
            let (url, range) = (mirror.url(&path(&large)), range.clone());
            tokio::spawn(async move { get_with(url, &[("range", &range)]).await })
        })
        .collect();
    upstream.held(1 + 7).await;
    assert_eq!(mirror.get(&path(&other)).await.expect(200).body, small);
    assert_eq!(upstream.count("GET", &large), 1 + 7, "the other ranges wait for the fill");
    upstream.release();
    for answer in join_all(ranges).await {
        assert_eq!(answer.unwrap().expect(206).body, bytes[FAR..FAR + 100_000]);
    }
    assert!(whole.rest().await.expect(200).body == bytes);
    assert_eq!(upstream.count("GET", &large), 1 + 7);
    mirror.kept(&large).await;

    // Who has read a range gives back what it took.
    let next = upstream.put_blob(REPOSITORY, noise(3, SIZE));
    upstream.on(Match::get(&next).times(1), Fault::Gate { after: 50_000 });
    let fill = stream(mirror.url(&path(&next))).await;
    upstream.held(1).await;
    for _ in 0..9 {
        get_with(mirror.url(&path(&next)), &[("range", &range)]).await.expect(206);
    }
    upstream.release();
    fill.rest().await.expect(200);
}

/// What is not kept comes as slowly as it is read: a few who read a byte now and then had all places for hours, and everyone else's
/// misses were answered 503.
#[tokio::test]
async fn blobs_that_go_past_the_cache_and_are_read_slowly_leave_places_for_others() {
    const SIZE: usize = 24 << 20;
    let upstream = Registry::start().await;
    let large: Vec<String> = (0..9).map(|seed| upstream.put_blob(REPOSITORY, noise(seed, SIZE))).collect();
    let other = upstream.put_blob(REPOSITORY, noise(100, 100_000));
    let mirror = TestMirror::builder()
        .upstream("docker.io", &upstream)
        .set("upstream.\"docker.io\".max_transfers = 16")
        .set("upstream.\"docker.io\".header_timeout = \"2s\"")
        .set("cache.max_size = \"16MiB\"")
        .start()
        .await;
    let mut slow = Vec::new();
    for digest in &large[..7] {
        let mut answer = stream(mirror.url(&path(digest))).await;
        assert!(!answer.take(1).await.is_empty());
        slow.push(answer);
    }
    let refused = mirror.get(&path(&large[7])).await.expect(503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    for _ in 0..2 {
        assert_eq!(mirror.get(&path(&other)).await.expect(200).body, noise(100, 100_000));
    }
    slow.pop().unwrap().rest().await.expect(200);
    assert!(mirror.get(&path(&large[8])).await.expect(200).body == noise(8, SIZE));
    drop(slow);

    // Where there is but one place, it is for them as well.
    let mirror = mirror.stop().await.set("upstream.\"docker.io\".max_transfers = 1").start().await;
    assert!(mirror.get(&path(&large[0])).await.expect(200).body == noise(0, SIZE));
}

// === rights to go at the pace of a reader ===

const LARGE: usize = 24 << 20;
/// How long one waits for such a right.
const SHORT: &str = "2s";
const LONG: &str = "1m";
const GREEDY: [(&str, &str); 1] = [("x-forwarded-for", "198.51.100.1")];
const OTHER: [(&str, &str); 1] = [("x-forwarded-for", "198.51.100.2")];

/// One with seven such rights, for blobs that are too large for its cache, and the URL at which it believes for whom it is asked.
async fn with_seven(upstream: &Registry, patience: &str) -> (TestMirror, String) {
    let mirror = TestMirror::builder().upstream("docker.io", upstream).listener("proxies = ['127.0.0.1']");
    let options = "upstream.\"docker.io\".max_transfers = 16\ncache.max_size = \"16MiB\"\ncache.min_free = \"0%\"";
    let mirror = mirror.set(options).set(&format!("upstream.\"docker.io\".header_timeout = {patience:?}")).start().await;
    let url = mirror.listening()[1].to_string();
    (mirror, url)
}

fn put_large(upstream: &Registry, seeds: std::ops::Range<u64>) -> Vec<String> {
    seeds.map(|seed| upstream.put_blob(REPOSITORY, noise(seed, LARGE))).collect()
}

async fn begin(url: &str, digest: &str, client: &[(&str, &str)]) -> Streaming {
    let mut answer = Client::h1().stream_with(format!("{url}{}", path(digest)), client).await;
    assert_eq!((answer.status, answer.take(1).await.len()), (200, 1));
    answer
}

async fn begin_all(url: &str, digests: &[String], client: &[(&str, &str)]) -> Vec<Streaming> {
    let mut under_way = Vec::new();
    for digest in digests {
        under_way.push(begin(url, digest, client).await);
    }
    under_way
}

/// Who read a byte now and then of blobs that are not kept had all of them, and the misses of everyone else were answered 503.
#[tokio::test]
async fn who_reads_many_blobs_slowly_past_the_cache_gives_up_some_for_who_comes() {
    let upstream = Registry::start().await;
    let (greedy, others) = (put_large(&upstream, 0..7), put_large(&upstream, 7..11));
    let (_mirror, url) = with_seven(&upstream, SHORT).await;
    let slow = begin_all(&url, &greedy, &GREEDY).await;
    let under_way = begin_all(&url, &others[..3], &OTHER).await;
    // There is room for seven, of whom the other has no more than it has itself.
    let refused = Client::h1().get_with(format!("{url}{}", path(&others[3])), &GREEDY).await.expect(503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    for (seed, answer) in (7..).zip(under_way) {
        let answer = answer.rest().await.expect(200);
        assert!(answer.body == noise(seed, LARGE)[1..]);
    }
    for (seed, answer) in (0..).zip(slow) {
        assert!(
            answer.rest().await.expect(200).body == noise(seed, LARGE)[1..],
            "what gave way goes on when there is room again"
        );
    }
}

/// Of a fleet behind one address the next was told to come again when one of those before it would have been done in a moment.
#[tokio::test]
async fn what_finds_no_room_past_the_cache_waits_for_it() {
    let upstream = Registry::start().await;
    let digests = put_large(&upstream, 0..9);
    let (mirror, url) = with_seven(&upstream, LONG).await;
    let mut slow = begin_all(&url, &digests[..7], &GREEDY).await;
    let last = slow.pop().unwrap();
    let [first, second] = [&digests[7], &digests[8]].map(|digest| format!("{url}{}", path(digest)));
    let (first, second, last) = tokio::join!(
        async { Client::h1().get_with(first, &GREEDY).await },
        async { Client::h1().get_with(second, &GREEDY).await },
        async {
            until("both have been asked for", || upstream.count("GET", &digests[7]) + upstream.count("GET", &digests[8]) == 2)
                .await;
            last.rest().await
        },
    );
    assert!(last.expect(200).body == noise(6, LARGE)[1..]);
    assert!(first.expect(200).body == noise(7, LARGE) && second.expect(200).body == noise(8, LARGE));
    assert_eq!(mirror.metric(SHED), 0);
}

/// Who waited in front of the line had the next place that was left, however many others of his were there already.
#[tokio::test]
async fn whoever_waits_first_who_has_fewest_is_next() {
    let upstream = Registry::start().await;
    let (greedy, others) = (put_large(&upstream, 0..20), put_large(&upstream, 20..27));
    let (_mirror, url) = with_seven(&upstream, LONG).await;
    let _slow = begin_all(&url, &greedy[..7], &GREEDY).await;
    let of_greedy = |digest: &String| {
        let url = format!("{url}{}", path(digest));
        tokio::spawn(async move { Client::h1().get_with(url, &GREEDY).await.status })
    };
    let waiting: Vec<_> = greedy[7..].iter().map(of_greedy).collect();
    until("they wait", || greedy[7..].iter().all(|digest| upstream.count("GET", digest) == 1)).await;
    let urls: Vec<_> = others.iter().map(|digest| format!("{url}{}", path(digest))).collect();
    let answers = join_all(urls.into_iter().map(|url| async move { Client::h1().get_with(url, &OTHER).await })).await;
    for (seed, answer) in (20..).zip(answers) {
        assert!(answer.expect(200).body == noise(seed, LARGE));
    }
    assert!(waiting.iter().any(|waiting| !waiting.is_finished()), "some of the greedy one's wait on");
    waiting.iter().for_each(JoinHandle::abort);
}

/// When all of a blob has come, some of it is still in memory for who reads it slowly: any number of those were there.
#[tokio::test]
async fn what_has_come_past_the_cache_takes_its_room_until_it_is_read() {
    let upstream = Registry::start().await;
    let (greedy, others) = (put_large(&upstream, 0..8), put_large(&upstream, 8..11));
    let (mirror, url) = with_seven(&upstream, SHORT).await;
    let mut slow = begin_all(&url, &greedy[..7], &GREEDY).await;
    let passed = || mirror.metric("larder_fills_total{outcome=\"passed\"}");
    let mut taken = [1; 7];
    for ((done, answer), taken) in (1..).zip(&mut slow).zip(&mut taken) {
        while passed() < done {
            *taken += answer.take(256 << 10).await.len();
            // What it makes room for has time to come.
            for _ in 0..20 {
                mirror.get("/v2/").await.expect(200);
            }
        }
        assert!(*taken < LARGE - (2 << 20), "{taken}");
    }
    Client::h1().get_with(format!("{url}{}", path(&greedy[7])), &GREEDY).await.expect(503);
    for (seed, answer) in (8..).zip(begin_all(&url, &others, &OTHER).await) {
        assert!(answer.rest().await.expect(200).body == noise(seed, LARGE)[1..]);
    }
    assert_eq!(greedy[..7].iter().filter(|digest| upstream.count("GET", digest) == 1).count(), 7, "nobody has read on");
    for (seed, answer) in slow.into_iter().enumerate() {
        assert!(answer.rest().await.expect(200).body == noise(seed as u64, LARGE)[taken[seed]..]);
    }
    let again = greedy[..7].iter().filter(|digest| upstream.count("GET", digest) > 1).count();
    assert!((1..=3).contains(&again), "{again} were let go and fetched again for who reads them");
    assert!(Client::h1().get_with(format!("{url}{}", path(&greedy[7])), &GREEDY).await.expect(200).body == noise(7, LARGE));
}

/// What it reads for itself, as it has fallen behind, comes at its pace as well.
#[tokio::test]
async fn who_has_fallen_behind_in_many_blobs_gives_up_some_for_who_comes() {
    let upstream = Registry::start().await;
    let (greedy, others) = (put_large(&upstream, 0..7), put_large(&upstream, 7..10));
    let (_mirror, url) = with_seven(&upstream, LONG).await;
    let mut slow = Vec::new();
    for digest in &greedy {
        let mut behind = begin(&url, digest, &GREEDY).await;
        begin(&url, digest, &GREEDY).await.rest().await.expect(200);
        assert_eq!(behind.take(12 << 20).await.len(), 12 << 20);
        assert_eq!(upstream.count("GET", digest), 2);
        slow.push(behind);
    }
    let under_way = begin_all(&url, &others, &OTHER).await;
    for (seed, answer) in (7..).zip(under_way) {
        assert!(answer.rest().await.expect(200).body == noise(seed, LARGE)[1..]);
    }
}

/// A blob that could not be kept any more, as the disk was full, was broken off in the middle, as another client had all of them.
#[tokio::test]
async fn a_blob_that_goes_past_the_cache_from_the_middle_on_is_not_broken_off_for_who_reads_slowly() {
    const ENOSPC: i32 = 28;
    let upstream = Registry::start().await;
    let greedy = put_large(&upstream, 0..7);
    let bytes = noise(7, 4 << 20);
    let other = upstream.put_blob(REPOSITORY, bytes.clone());
    upstream.on(Match::get(&other), Fault::Gate { after: 2 << 20 });
    let (mirror, url) = with_seven(&upstream, LONG).await;
    let _slow = begin_all(&url, &greedy, &GREEDY).await;
    let answer = begin(&url, &other, &OTHER).await;
    upstream.held(1).await;
    mirror.faults().each(|operation, _| operation == Operation::Write, faults::Fault::Errno(ENOSPC));
    upstream.release();
    assert!(answer.rest().await.expect(200).body == bytes[1..]);
    assert_eq!(mirror.metric("larder_bypasses_total{reason=\"disk\"}"), 1);
    assert_eq!(upstream.count("GET", &other), 1);
    mirror.faults().heal();
}

#[tokio::test]
async fn an_upstream_without_a_place_cannot_be_configured() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("upstream.\"docker.io\".max_transfers = 0");
    let (why, _) = mirror.try_start().await.err().unwrap();
    assert!(why.contains("max_transfers must be at least 1"), "{why}");
}

// === the line ===

/// Whatever a client makes up had a file and a place in the books before anyone was asked for it, and so had what waits in line.
#[tokio::test]
async fn nothing_is_opened_for_what_is_not_there_or_waits_in_line() {
    let upstream = Registry::start().await;
    let digests = put(&upstream, 10);
    let mirror = with_places(&upstream, 3, "30s").await;
    let before = mirror.faults().count();
    for n in 0..20 {
        mirror.get(&path(&digest_of(format!("made up {n}").as_bytes()))).await.expect(404);
    }
    assert_eq!(mirror.faults().since(before), [], "the disk has heard nothing of it");

    upstream.on(Match::get("/blobs/").times(2), Fault::Gate { after: 50_000 });
    let waiting: Vec<_> = digests
        .iter()
        .map(|digest| {
            let url = mirror.url(&path(digest));
            tokio::spawn(async move { get(url).await })
        })
        .collect();
    upstream.held(2).await;
    mirror.metric_is("larder_fills_running", 10).await;
    let partial = files(&mirror.cache_dir().join("partial"));
    assert!(partial.len() <= 2, "{partial:?}");
    upstream.release();
    for answer in join_all(waiting).await {
        answer.unwrap().expect(200);
    }
}

/// A hundred thousand waited, each with a task, until their time was up.
#[tokio::test]
async fn a_line_that_is_too_long_takes_no_more_and_tells_so_at_once() {
    let upstream = Registry::start().await;
    let digests = put(&upstream, 20);
    let image = Image::new(1).put(&upstream, REPOSITORY, "latest");
    upstream.on(Match::get("/blobs/").times(1), Fault::Gate { after: 50_000 });
    let mirror = with_places(&upstream, 2, "30s").await;
    let ask = |digest: &String| {
        let url = mirror.url(&path(digest));
        tokio::spawn(async move { get(url).await })
    };
    let mut waiting = vec![ask(&digests[0])];
    upstream.held(1).await;
    waiting.extend(digests[1..19].iter().map(ask));
    mirror.metric_is("larder_fills_running", 19).await;
    // Eighteen of these are in line.
    let refused = mirror.get(&path(&digests[19])).await.expect(503);
    assert_eq!((refused.header("retry-after"), refused.error_code().as_deref()), (Some("1"), Some("UNAVAILABLE")));
    assert_eq!(mirror.metric(SHED), 1);
    assert_eq!(mirror.get(TAG).await.expect(200).body, image.manifest, "which stands in another line");
    upstream.release();
    for answer in join_all(waiting).await {
        answer.unwrap().expect(200);
    }
    mirror.get(&path(&digests[19])).await.expect(200);
}

/// Clients that had left stayed in line, so that a few of them could fill it.
#[tokio::test]
async fn who_leaves_the_line_gives_up_its_place() {
    let upstream = Registry::start().await;
    let digests = put(&upstream, 20);
    upstream.on(Match::get("/blobs/").times(1), Fault::Gate { after: 50_000 });
    let mirror = TestMirror::builder()
        .upstream("docker.io", &upstream)
        .set("upstream.\"docker.io\".max_transfers = 2")
        .set("mirror.orphan_fills = 0")
        .start()
        .await;
    let first = stream(mirror.url(&path(&digests[0]))).await;
    upstream.held(1).await;
    for _ in 0..3 {
        let waiting: Vec<_> = digests[1..17]
            .iter()
            .map(|digest| {
                let url = mirror.url(&path(digest));
                tokio::spawn(async move { get(url).await })
            })
            .collect();
        mirror.metric_is("larder_fills_running", 17).await;
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        mirror.metric_is("larder_fills_running", 1).await;
    }
    assert_eq!(mirror.metric(SHED), 0);
    upstream.release();
    first.rest().await.expect(200);
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
}
