//! Transfers that break: how long they are taken up again, and what happens where the upstream then has something else.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use larder::store::Operation;
use larder::store::faults::{self, Loss};

use crate::support::{
    Auth, Blobs, Fault, Listener, Log, Match, Registry, Setup, TestMirror, assert_booked, digest_of, noise, partial_file, reboot,
    until,
};

const REPOSITORY: &str = "library/app";
const SIZE: usize = 500_000;
const CUT: usize = 200_000;
/// Held back until all is verified.
const TAIL: usize = 16 << 10;

fn path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

/// A registry with one blob.
async fn with_blob(size: usize) -> (Registry, Bytes, String) {
    let upstream = Registry::start().await;
    let blob = noise(1, size);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    (upstream, blob, digest)
}

/// All `Range`s with which the blob was asked for, one for each GET.
fn ranges(upstream: &Registry, digest: &str) -> Vec<String> {
    let gets = upstream.requests().into_iter().filter(|request| request.method == "GET" && request.path.contains(digest));
    gets.map(|request| request.range().unwrap_or("all").to_owned()).collect()
}

// === how often ===

#[tokio::test]
async fn a_transfer_that_gets_on_is_taken_up_again_as_often_as_it_takes_and_no_byte_comes_twice() {
    let (upstream, blob, digest) = with_blob(1_000_000).await;
    upstream.on(Match::get(&digest), Fault::Cut { after: 101_000 });
    let mirror = TestMirror::of(&upstream).await;
    let began = Instant::now();
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    assert!(began.elapsed() < Duration::from_secs(2), "it waits for nothing: {:?}", began.elapsed());
    let asked: Vec<_> = (1..10).map(|n| format!("bytes={}-", n * 101_000)).collect();
    assert_eq!(ranges(&upstream, &digest), [vec!["all".to_owned()], asked].concat());
    assert_eq!(upstream.bytes_sent(), 1_000_000);
    assert_eq!(mirror.metric("larder_fill_resumes_total"), 9);
    mirror.metric_is("larder_fills_total{outcome=\"kept\"}", 1).await;
}

#[tokio::test]
async fn after_its_time_a_fill_is_not_taken_up_again() {
    let (upstream, blob, digest) = with_blob(SIZE).await;
    upstream.on(Match::get(&digest), vec![Fault::Gate { after: CUT }, Fault::Cut { after: CUT }]);
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.fill_timeout = \"0s\"").start().await;
    let mut short = mirror.stream(&path(&digest)).await;
    assert_eq!(short.take(CUT).await, blob.slice(..CUT));
    upstream.release();
    assert!(!short.rest().await.complete);
    assert_eq!(upstream.requests().len(), 1);
    mirror.metric_is("larder_fills_total{outcome=\"given_up\"}", 1).await;
}

#[tokio::test]
async fn a_transfer_is_taken_up_again_with_a_new_token_and_by_a_new_redirect() {
    let auth = Auth::Bearer { user: None, expires_in: Some(300) };
    let upstream = Registry::with(Setup { auth, blobs: Blobs::REDIRECTED, ..Setup::default() }).await;
    let blob = noise(2, SIZE);
    let digest = upstream.put_blob(REPOSITORY, blob.clone());
    upstream.on(Match::storage(&digest).times(1), vec![Fault::Gate { after: CUT }, Fault::Cut { after: CUT }]);
    let mirror = TestMirror::of(&upstream).await;
    let url = path(&digest);
    let (answer, ()) = tokio::join!(mirror.get(&url), async {
        upstream.held(1).await;
        upstream.expire_tokens();
        upstream.expire_signatures();
        upstream.release();
    });
    assert_eq!(answer.expect(200).body, blob);
    assert_eq!(upstream.token_requests(), 2);
    assert!(upstream.bytes_sent() < SIZE as u64 + 1000, "the blob, and refusals");
}

/// It was taken for a fault: the registry and its storage were asked six times each.
#[tokio::test]
async fn a_storage_that_refuses_also_who_comes_by_a_new_redirect_is_asked_no_more() {
    for status in [401, 403] {
        let upstream = Registry::with(Setup { blobs: Blobs::REDIRECTED, ..Setup::default() }).await;
        let asked =
            |digest: &str| [Listener::Front, Listener::Storage].map(|listener| upstream.count_at(listener, "GET", digest));
        let refused = upstream.put_blob(REPOSITORY, noise(3, SIZE));
        upstream.on(Match::storage(&refused), Fault::status(status));
        let mirror = TestMirror::of(&upstream).await;
        let answer = mirror.get(&path(&refused)).await.expect(502);
        assert_eq!(answer.error_code().as_deref(), Some("UNAVAILABLE"));
        assert_eq!(asked(&refused), [2, 2], "{status}");

        let broken = upstream.put_blob(REPOSITORY, noise(4, SIZE));
        upstream.on(Match::storage(&broken).times(1), Fault::Cut { after: CUT });
        upstream.on(Match::storage(&broken), Fault::status(status));
        assert!(!mirror.stream(&path(&broken)).await.rest().await.complete);
        assert_eq!(asked(&broken), [1 + 2, 1 + 2], "{status}");

        upstream.heal();
        mirror.get(&path(&refused)).await.expect(200);
        mirror.get(&path(&broken)).await.expect(200);
    }
}

// === what the upstream then says ===

fn part(content_range: &str, body: Bytes) -> Fault {
    Fault::answer(206, &[("content-range", content_range)], body)
}

#[tokio::test]
async fn an_upstream_that_lies_about_parts_is_asked_for_everything_and_what_is_here_is_compared() {
    let other = noise(9, SIZE);
    let lies = [
        part("bytes 0-99/500000", other.slice(..100)),
        part("bytes 300000-499999/500000", other.slice(300_000..)),
        part("bytes 200000-499998/499999", other.slice(200_000..499_999)),
        Fault::status(416),
        Fault::IgnoreRange,
    ];
    for lie in lies {
        let (upstream, blob, digest) = with_blob(SIZE).await;
        upstream.on(Match::get(&digest).times(1), Fault::Cut { after: CUT });
        upstream.on(Match::get(&digest).ranged().times(1), lie.clone());
        let mirror = TestMirror::of(&upstream).await;
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob, "{lie:?}");
        let asked = ranges(&upstream, &digest);
        assert!(asked.len() <= 3 && asked[1] == "bytes=200000-", "{lie:?}: {asked:?}");
        let overlap = upstream.bytes_sent() - SIZE as u64;
        assert!(overlap <= CUT as u64 + 300_000, "{lie:?}: {overlap} bytes more than the blob has");
        assert_eq!(mirror.metric("larder_resume_mismatches_total"), 0, "{lie:?}");
        mirror.kept(&digest).await;
    }
}

#[tokio::test]
async fn a_part_of_which_nothing_is_said_is_no_answer_and_is_asked_for_again() {
    for lie in
        [Fault::answer(206, &[], noise(9, 300_000)), part("bytes */500000", noise(9, 10)), part("bytes 2-1/x", noise(9, 10))]
    {
        let (upstream, blob, digest) = with_blob(SIZE).await;
        upstream.on(Match::get(&digest).times(1), Fault::Cut { after: CUT });
        upstream.on(Match::get(&digest).ranged().times(1), lie.clone());
        let mirror = TestMirror::of(&upstream).await;
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob, "{lie:?}");
    }
}

/// The bytes that are passed over were not compared: the mistake showed only at the end, after everything had been fetched.
#[tokio::test]
async fn where_the_blob_now_begins_otherwise_its_readers_end_short_and_who_has_nothing_yet_gets_the_right_one() {
    let log = Log::from_here();
    let (upstream, blob, digest) = with_blob(SIZE).await;
    // What comes first is not the blob; what comes after it is.
    upstream
        .on(Match::get(&digest).times(1), vec![Fault::Corrupt { at: 10 }, Fault::Gate { after: CUT }, Fault::Cut { after: CUT }]);
    upstream.on(Match::get(&digest).ranged().times(1), Fault::IgnoreRange);
    let mirror = TestMirror::of(&upstream).await;
    let url = path(&digest);
    let mut first = mirror.stream(&url).await;
    let given = first.take(CUT).await;
    let waits = mirror.get_with(&url, &[("range", "bytes=300000-399999")]);
    let (rest, waited) = tokio::join!(
        async {
            upstream.release();
            first.rest().await
        },
        waits
    );
    assert!(!rest.complete && rest.body.is_empty(), "{} bytes of another version", rest.body.len());
    assert_eq!(given.len(), CUT);
    assert_eq!(waited.expect(206).body, blob.slice(300_000..400_000));
    mirror.kept(&digest).await;
    assert_eq!(ranges(&upstream, &digest), ["all", "bytes=200000-", "all"]);
    assert_eq!(mirror.metric("larder_resume_mismatches_total"), 1);
    log.will_say(&["ERROR", &digest, &format!("found={}", digest_of(&given)), "other bytes than the digest promises"]).await;
    assert_eq!(mirror.get(&url).await.expect(200).body, blob);
    assert_eq!(fs::read_dir(mirror.cache_dir().join("partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_upstream_that_has_another_size_by_then_is_begun_anew() {
    let (upstream, blob, digest) = with_blob(SIZE).await;
    upstream.on(
        Match::get(&digest).times(1),
        vec![Fault::WrongBody(noise(5, SIZE + 1)), Fault::Gate { after: CUT }, Fault::Cut { after: CUT }],
    );
    upstream.on(Match::get(&digest).ranged(), Fault::IgnoreRange);
    let mirror = TestMirror::of(&upstream).await;
    let mut short = mirror.stream(&path(&digest)).await;
    short.take(CUT).await;
    upstream.release();
    assert!(!short.rest().await.complete);
    mirror.kept(&digest).await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
}

// === a partial file ===

/// Whatever a partial file held was gone on with, and if it had been damaged, all of it was fetched in vain by each client.
#[tokio::test]
async fn a_partial_file_that_was_damaged_is_found_out_and_the_blob_fetched_anew() {
    let (upstream, blob, digest) = with_blob(SIZE).await;
    upstream.on(Match::get(&digest).times(1), vec![Fault::Gate { after: CUT }, Fault::Cut { after: CUT }]);
    upstream.on(Match::get(&digest).times(1), Fault::status(404));
    let mirror = TestMirror::of(&upstream).await;
    let mut short = mirror.stream(&path(&digest)).await;
    short.take(CUT).await;
    upstream.release();
    assert!(!short.rest().await.complete);
    let stopped = mirror.stop().await;
    let partial = partial_file(&stopped.cache_dir(), &digest);
    let mut bytes = fs::read(&partial).unwrap();
    bytes[100] ^= 1;
    fs::write(&partial, bytes).unwrap();
    upstream.forget_requests();

    let mirror = stopped.start().await;
    let url = path(&digest);
    let (whole, tail) = tokio::join!(mirror.get(&url), mirror.get_with(&url, &[("range", "bytes=-1000")]));
    assert!(!whole.complete && whole.body.len() <= SIZE - TAIL, "{} bytes", whole.body.len());
    assert_eq!(tail.expect(206).body, blob.slice(SIZE - 1000..), "who has none of it gets the right bytes");
    mirror.kept(&digest).await;
    assert_eq!(mirror.get(&url).await.expect(200).body, blob);
    assert_eq!(ranges(&upstream, &digest), ["bytes=199999-", "all"]);
}

/// How much of it there is is known from the books when the upstream is asked, and what there is is seen when it has said yes.
#[tokio::test]
async fn a_partial_file_of_which_the_books_are_wrong_is_gone_on_with_as_far_as_both_go() {
    /// What becomes of it, and how the upstream is then asked.
    type Change = (&'static str, fn(&Path), &'static [&'static str]);
    let shorter = |path: &Path| fs::File::options().write(true).open(path).unwrap().set_len(100_000).unwrap();
    let longer = |path: &Path| fs::write(path, [fs::read(path).unwrap(), vec![7; 50_000]].concat()).unwrap();
    let gone = |path: &Path| fs::remove_file(path).unwrap();
    let changes: [Change; 4] = [
        ("as it was", |_| (), &["bytes=199999-"]),
        ("shorter", shorter, &["bytes=199999-", "bytes=100000-"]),
        ("longer", longer, &["bytes=199999-"]),
        ("gone", gone, &["bytes=199999-", "bytes=0-"]),
    ];
    for (what, change, asked) in changes {
        for counted in [false, true] {
            let (upstream, blob, digest) = with_blob(SIZE).await;
            upstream.on(Match::get(&digest).times(1), vec![Fault::Gate { after: CUT }, Fault::Cut { after: CUT }]);
            upstream.on(Match::get(&digest).times(1), Fault::status(404));
            let mut mirror = TestMirror::of(&upstream).await;
            let mut short = mirror.stream(&path(&digest)).await;
            short.take(CUT).await;
            upstream.release();
            assert!(!short.rest().await.complete);
            mirror.metric_is("larder_fills_total{outcome=\"given_up\"}", 1).await;
            let partial = partial_file(&mirror.cache_dir(), &digest);
            if counted {
                mirror = mirror.stop().await.start().await;
            } else {
                // It is left when its length is what has come, and nothing is set aside behind that.
                until("it is left", || mirror.used() < SIZE as u64).await;
            }
            change(&partial);
            upstream.forget_requests();
            let answer = mirror.get(&path(&digest)).await.expect(200);
            assert!(answer.complete && answer.body == blob, "{what}: {} bytes", answer.body.len());
            assert_eq!(ranges(&upstream, &digest), asked, "{what}");
            mirror.kept(&digest).await;
            assert_booked(&mirror).await;
        }
    }
}

/// The upstream is asked before the file is read again, and waits until that is done, or does not.
#[tokio::test]
async fn an_upstream_that_breaks_off_while_a_partial_file_is_read_again_is_asked_for_the_rest() {
    let (upstream, blob, digest) = with_blob(SIZE).await;
    upstream.on(Match::get(&digest).times(1), vec![Fault::Gate { after: 1000 }, Fault::Reset { after: 1000 }]);
    let stopped = TestMirror::of(&upstream).await.stop().await;
    let partial = partial_file(&stopped.cache_dir(), &digest);
    fs::write(&partial, &blob[..CUT]).unwrap();
    let mirror = stopped.start().await;
    mirror.faults().each(move |operation, path: &Path| operation == Operation::Read && path == partial, faults::Fault::Hang);
    let url = path(&digest);
    let (answer, ()) = tokio::join!(mirror.get(&url), async {
        until("it is read again", || mirror.faults().hanging() == 1).await;
        upstream.held(1).await;
        upstream.release();
        until("the upstream has broken off", || upstream.held_now() == 0).await;
        mirror.faults().heal();
    });
    assert!(answer.expect(200).body == blob);
    let asked = ranges(&upstream, &digest);
    assert!(asked.len() == 2 && asked[0] == "bytes=199999-", "{asked:?}");
    mirror.kept(&digest).await;
    assert_booked(&mirror).await;
}

/// A directory of blobs whose digests begin alike.
fn is_shard(path: &Path) -> bool {
    path.parent().is_some_and(|algorithm| algorithm.ends_with("blobs/sha256"))
}

/// Who was cut off by a kill is back at once: all of it was fetched again, and not kept.
#[tokio::test]
async fn who_is_back_before_the_cache_is_counted_has_the_rest_alone_fetched() {
    let (upstream, blob, digest) = with_blob(SIZE).await;
    let other = upstream.put_blob(REPOSITORY, noise(2, 1000));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.patience = \"1m\"").start().await;
    mirror.get(&path(&other)).await.expect(200);
    mirror.kept(&other).await;
    let stopped = mirror.stop().await;
    upstream.forget_requests();
    fs::remove_file(stopped.cache_dir().join("clean")).unwrap();
    fs::write(partial_file(&stopped.cache_dir(), &digest), &blob[..CUT]).unwrap();
    stopped.faults().each(|operation, path| operation == Operation::List && is_shard(path), faults::Fault::Hang);
    let Ok(mirror) = stopped.try_start().await else { panic!("it serves at once") };
    let url = path(&digest);
    let (answer, ()) = tokio::join!(mirror.get(&url), async {
        // It has time to go on without waiting.
        for _ in 0..50 {
            mirror.get("/v2/").await.expect(200);
        }
        assert_eq!((mirror.faults().hanging(), upstream.requests().len()), (1, 0));
        mirror.faults().heal();
    });
    assert!(answer.expect(200).body == blob);
    mirror.kept(&digest).await;
    assert_eq!(ranges(&upstream, &digest), ["bytes=199999-"]);
    assert_booked(&mirror).await;
}

/// Nobody had synced it. After a stop that was clean it was gone on with all the same: zeros went out, and then a short end.
#[tokio::test]
async fn a_partial_file_is_not_gone_on_with_after_a_restart_of_the_machine_which_may_have_cost_it_bytes() {
    for (after, outcome) in [("a fill that nobody wanted", "stopped"), ("a fill without an upstream", "given_up")] {
        let (upstream, blob, digest) = with_blob(SIZE).await;
        upstream.on(Match::get(&digest).times(1), vec![Fault::Gate { after: CUT }, Fault::Cut { after: CUT }]);
        upstream.on(Match::get(&digest).times(1), Fault::status(404));
        let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.orphan_bytes = \"0B\"").start().await;
        let mut client = mirror.stream(&path(&digest)).await;
        assert_eq!(client.take(CUT).await, blob.slice(..CUT), "{after}");
        if outcome == "given_up" {
            upstream.release();
            assert!(!client.rest().await.complete, "{after}");
        } else {
            drop(client);
        }
        mirror.metric_is(&format!("larder_fills_total{{outcome={outcome:?}}}"), 1).await;
        let faults = mirror.faults().clone();
        let stopped = mirror.stop().await;
        let partial = partial_file(&stopped.cache_dir(), &digest);
        assert!(stopped.cache_dir().join("clean").exists() && fs::read(&partial).unwrap() == blob[..CUT], "{after}");
        faults.lose_power(Loss::Zeroed);
        reboot(&stopped.cache_dir());
        assert_eq!(fs::read(&partial).unwrap(), vec![0; CUT], "{after}");
        upstream.heal();
        upstream.forget_requests();

        let mirror = stopped.start().await;
        assert!(!partial.exists(), "{after}");
        assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob, "{after}");
        mirror.kept(&digest).await;
        assert_eq!(ranges(&upstream, &digest), ["all"], "{after}");
        assert_booked(&mirror).await;
    }
}
