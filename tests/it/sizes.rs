//! Upstreams that say too little or the wrong thing about the size of a blob.

use std::time::Duration;

use bytes::Bytes;
use larder::store::{Operation, faults};

use crate::support::{Fault, Match, Registry, TestMirror, assert_booked, noise, raw};

const MIB: usize = 1 << 20;

fn path(digest: &str) -> String {
    format!("/v2/library/app/blobs/{digest}")
}

/// An answer to a ranged request that goes on and on.
fn endless(offset: usize, size: usize, body: Bytes) -> Fault {
    Fault::answer(206, &[("content-range", &format!("bytes {offset}-{}/{size}", size - 1))], body)
}

/// The space for a blob is set aside once, when its size is told. What came beyond it went to the disk uncounted.
#[tokio::test]
async fn a_body_longer_than_announced_takes_no_more_than_announced() {
    let upstream = Registry::start().await;
    let blob = noise(1, 4 * MIB);
    let digest = upstream.put_blob("library/app", blob.clone());
    upstream.on(Match::get(&digest).times(1), Fault::Cut { after: 2 * MIB });
    upstream.on(Match::get(&digest).ranged().times(1), endless(2 * MIB, 4 * MIB, noise(2, 40 * MIB)));
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.max_size = \"32MiB\"").start().await;
    assert!(!mirror.get(&path(&digest)).await.complete);
    assert!(mirror.used() <= 4 << 20, "{}", mirror.used());
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
}

/// Its end, and with it its size, comes only while someone reads; the reader waited for the size.
#[tokio::test]
async fn a_range_of_a_blob_that_is_neither_kept_nor_of_known_size_is_answered_whole() {
    let upstream = Registry::start().await;
    let blob = noise(3, 24 * MIB);
    let digest = upstream.put_blob("library/app", blob.clone());
    upstream.on(Match::get(&digest), Fault::NoLength);
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.max_size = \"16MiB\"").start().await;
    let answer = mirror.get_with(&path(&digest), &[("range", "bytes=0-9")]).await;
    match answer.status {
        // The disk has taken it, or has not: both are right.
        206 => assert_eq!(answer.body, blob[..10]),
        _ => assert_eq!(answer.expect(200).body, blob),
    }
}

/// The end of the connection is the end of an HTTP/1.0 body: a short one looked whole.
#[tokio::test]
async fn to_http_1_0_a_body_is_never_sent_without_a_length() {
    let upstream = Registry::start().await;
    let blob = noise(4, 300_000);
    let digest = upstream.put_blob("library/app", blob.clone());
    upstream.on(Match::get(&digest).times(1), vec![Fault::NoLength, Fault::Corrupt { at: 150_000 }]);
    upstream.on(Match::get(&digest), Fault::NoLength);
    let mirror = TestMirror::of(&upstream).await;
    let request = format!("GET {} HTTP/1.0\r\n\r\n", path(&digest));
    let wrong = String::from_utf8_lossy(&raw(mirror.address(), request.clone()).await).into_owned();
    assert!(wrong.starts_with("HTTP/1.0 502"), "{}", &wrong[..wrong.len().min(200)]);
    let right = raw(mirror.address(), request).await;
    let head = String::from_utf8_lossy(&right[..right.len() - blob.len()]).to_ascii_lowercase();
    assert!(head.starts_with("http/1.0 200") && head.contains("content-length: 300000\r\n"), "{head}");
    assert_eq!(right[right.len() - blob.len()..], blob);
}

#[tokio::test]
async fn a_size_that_no_disk_has_is_no_reason_to_fall() {
    let upstream = Registry::start().await;
    let blob = noise(5, 50_000);
    let digest = upstream.put_blob("library/app", blob.clone());
    let huge = [("content-range", "bytes 0-18446744073709551614/18446744073709551615")];
    upstream.on(Match::get(&digest).times(1), Fault::Cut { after: 20_000 });
    upstream.on(Match::get(&digest).times(1), Fault::answer(206, &huge, blob.clone()));
    let mirror = TestMirror::of(&upstream).await;
    let _ = mirror.get(&path(&digest)).await;
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
}

/// Such sizes were believed, and added up.
#[tokio::test]
async fn a_size_that_no_blob_has_is_not_passed_on() {
    let upstream = Registry::start().await;
    let blob = noise(6, 50_000);
    let digest = upstream.put_blob("library/app", blob.clone());
    let huge = [("content-length", "1152921504606846977")];
    let announces = vec![Fault::answer(200, &huge, blob.clone()), Fault::Stall { after: 10_000 }];
    upstream.on(Match::get(&digest).times(3), announces);
    let mirror = TestMirror::of(&upstream).await;
    let refused = mirror.get(&path(&digest)).await.expect(502);
    assert!(refused.text().contains("it announces a size that no blob has"), "{}", refused.text());
    assert_eq!((upstream.count("GET", &digest), mirror.used()), (3, 0), "it is asked again, as if it had not answered");
    mirror.metric_is("larder_fills_total{outcome=\"failed\"}", 1).await;
    assert_eq!(mirror.head(&path(&digest)).await.expect(200).header("content-length"), Some("50000"));
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
}

/// With each chunk that came while room was being made, it was made anew, and what had been evicted for that was gone.
#[tokio::test]
async fn for_a_blob_whose_size_nobody_says_room_is_made_once() {
    let upstream = Registry::start().await;
    let blob = noise(3, MIB);
    let digest = upstream.put_blob("library/app", blob.clone());
    upstream.on(Match::get(&digest), vec![Fault::NoLength, Fault::Bandwidth(2 * MIB as u64)]);
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.min_free = \"0%\"").start().await;
    let looks_for_room = |operation| operation == Operation::Space;
    mirror.faults().each(move |operation, _| looks_for_room(operation), faults::Fault::Slow(Duration::from_millis(200)));
    let before = mirror.faults().count();
    assert_eq!(mirror.get(&path(&digest)).await.expect(200).body, blob);
    mirror.kept(&digest).await;
    let times = mirror.faults().since(before).into_iter().filter(|(operation, _)| looks_for_room(*operation)).count();
    assert_eq!(times, 1);
    mirror.faults().heal();
    assert_booked(&mirror).await;
}
