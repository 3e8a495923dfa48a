//! Referrers of one type, picked out of a long list.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use larder::oci::ReferrersByType;
use serde_json::{Value, json};
use tokio::runtime::Builder;
use tokio::task::spawn_blocking;

use crate::support::{Registry, TestMirror, digest_of};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn referrer(n: usize) -> Value {
    json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest_of(&n.to_le_bytes()), "size": n,
            "artifactType": format!("x/{n}") })
}

fn index_of(referrers: &[Value]) -> String {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": referrers }).to_string()
}

/// What refers to a subject, a thousand of them, where there is one thread for what goes over many bytes.
fn with_a_long_list(test: impl AsyncFnOnce(Registry, String, String)) {
    Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap().block_on(async {
        test(Registry::start().await, digest_of(b"subject"), index_of(&(0..1000).map(referrer).collect::<Vec<_>>())).await;
    });
}

fn path_of(subject: &str) -> String {
    format!("/v2/library/app/referrers/{subject}")
}

/// Asks for each of a hundred types while the only thread for what goes over many bytes is taken.
async fn pick_a_hundred(mirror: &TestMirror, path: &str) {
    let (free, taken) = mpsc::channel::<()>();
    let busy = spawn_blocking(move || taken.recv());
    for n in 0..100 {
        let path = format!("{path}?artifactType=x%2F{n}");
        let answer = mirror.get(&path).await.expect(200);
        assert_eq!(answer.json(), json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [referrer(n)] }));
    }
    drop(free);
    busy.await.unwrap().unwrap_err();
}

/// Each of many small questions had all of a list parsed anew, in one of the few turns that everyone's large manifests wait for:
/// seconds of work that cost no question upstream.
#[test]
fn a_long_list_is_parsed_once_however_often_something_is_picked_out_of_it() {
    with_a_long_list(async |upstream, subject, index| {
        let path = path_of(&subject);
        upstream.put_referrers("library/app", &subject, Some(index.clone().into()));
        let mirror = TestMirror::of(&upstream).await;
        assert_eq!(mirror.get(&path).await.expect(200).text(), index);
        pick_a_hundred(&mirror, &path).await;
        assert_eq!(upstream.count("GET", "/referrers/"), 1);
    });
}

#[test]
fn so_is_one_that_an_offline_larder_has_by_its_tag() {
    with_a_long_list(async |upstream, subject, index| {
        let path = path_of(&subject);
        upstream.put_manifest("library/app", Some(&subject.replace(':', "-")), INDEX, index.clone());
        let mirror = TestMirror::of(&upstream).await;
        assert_eq!(mirror.get(&path).await.expect(200).text(), index);
        let mirror = mirror.stop().await.set("mirror.offline = true").start().await;
        assert_eq!(mirror.get(&path).await.expect(200).text(), index);
        pick_a_hundred(&mirror, &path).await;
    });
}

/// Whatever was to be picked out of a list of 4 MiB, all others waited meanwhile.
#[tokio::test]
async fn a_long_list_is_parsed_beside_what_else_there_is_to_do() {
    let upstream = Registry::start().await;
    let descriptors: Vec<_> = (0..25_000).map(|n| json!({"artifactType": format!("x/{n}"), "n": "x".repeat(100)})).collect();
    let index = Bytes::from(index_of(&descriptors));
    let mirror = TestMirror::of(&upstream).await;
    // Others of these tests run beside it.
    let mut took = Vec::new();
    for n in 0..10_usize {
        let subject = digest_of(&n.to_le_bytes());
        upstream.put_referrers("library/app", &subject, Some(index.clone()));
        let begun = Instant::now();
        ReferrersByType::read(&index).unwrap();
        let alone = begun.elapsed();
        let path = format!("{}?artifactType=x%2F{n}", path_of(&subject));
        let answer = mirror.get(&path);
        tokio::pin!(answer);
        let (mut longest, mut last) = (Duration::ZERO, Instant::now());
        let answer = loop {
            tokio::select! {
                answer = &mut answer => break answer,
                () = tokio::task::yield_now() => {}
            }
            longest = longest.max(last.elapsed());
            last = Instant::now();
        };
        let found = answer.expect(200).json();
        assert_eq!(found["manifests"].as_array().map(Vec::len), Some(1));
        took.push((longest, alone));
        if longest < alone / 3 {
            return;
        }
    }
    panic!("all waited: {took:?}");
}
