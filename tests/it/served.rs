//! What was served over time: it is counted, survives what happens to larder, and is no reason not to start.

use std::fs;
use std::time::Duration;

use larder::clock::Clock;
use serde_json::Value;

use crate::support::{Image, Log, PutImage, Registry, StoppedMirror, TestMirror, get};

async fn world() -> (Registry, PutImage, TestMirror) {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[100_000]).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    (upstream, image, mirror)
}

async fn history(mirror: &TestMirror, span: &str) -> Value {
    get(mirror.admin_url(&format!("/api/history?span={span}"))).await.expect(200).json()
}

/// What was served within a span, all together.
async fn sum(mirror: &TestMirror, span: &str, of: &str) -> u64 {
    let told = history(mirror, span).await;
    told["pieces"].as_array().unwrap().iter().map(|piece| piece[of].as_u64().unwrap()).sum()
}

async fn answers(mirror: &TestMirror, span: &str) -> [u64; 3] {
    [
        sum(mirror, span, "fetched_answers").await,
        sum(mirror, span, "here_answers").await,
        sum(mirror, span, "refused_answers").await,
    ]
}

#[tokio::test]
async fn what_clients_got_is_told_by_whence_it_came_and_what_was_saved() {
    let (_upstream, image, mirror) = world().await;
    let layer = image.blob_path(&image.layers[0]);
    mirror.get(&layer).await.expect(200);
    mirror.kept(&image.layers[0].digest).await;
    mirror.get(&layer).await.expect(200);
    mirror.get(&layer).await.expect(200);
    mirror.get("/v2/library/missing/manifests/latest").await.expect(404);
    mirror.metric_is("larder_answers_total{served=\"refused\"}", 1).await;
    mirror.metric_is("larder_answers_total{served=\"hit\"}", 2).await;
    for span in ["hour", "day", "month"] {
        assert_eq!(answers(&mirror, span).await, [1, 2, 1], "{span}");
        assert_eq!(
            [sum(&mirror, span, "here_bytes").await, sum(&mirror, span, "fetched_bytes").await],
            [200_000, 100_000],
            "{span}"
        );
        assert_eq!(sum(&mirror, span, "upstream_bytes").await, 100_000, "{span}");
    }
    let now = get(mirror.admin_url("/api/now")).await.expect(200).json();
    assert_eq!((&now["served"]["hour"]["here_answers"], &now["served"]["month"]["here_bytes"]), (&2.into(), &200_000.into()));
    get(mirror.admin_url("/api/history?span=year")).await.expect(400);
    get(mirror.admin_url("/api/history")).await.expect(400);
}

/// The page said that nearly all of a cold image was saved.
#[tokio::test]
async fn what_is_fetched_ahead_of_the_first_client_is_no_less_fetched() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[100_000; 4]).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("mirror.prefetch = 4").start().await;
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
    for blob in image.blobs() {
        mirror.kept(&blob.digest).await;
    }
    for blob in image.blobs().filter(|blob| blob.digest != image.layers[0].digest) {
        assert_eq!(mirror.get(&image.blob_path(blob)).await.expect(200).header("cache-status"), Some("larder; hit"));
    }
    mirror.metric_is("larder_answers_total{served=\"hit\"}", 4).await;
    let mut sent = 0;
    for of in ["here_bytes", "fetched_bytes", "past_bytes"] {
        sent += sum(&mirror, "month", of).await;
    }
    assert_eq!(sum(&mirror, "month", "upstream_bytes").await, sent, "none of it is saved");
}

#[tokio::test]
async fn what_is_past_leaves_the_hour_before_the_day_and_the_day_before_the_month() {
    let (_upstream, image, mirror) = world().await;
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.metric_is("larder_answers_total{served=\"miss\"}", 1).await;
    assert_eq!(answers(&mirror, "hour").await, [1, 0, 0]);
    for (hours, left) in [(2, [0, 1, 1]), (26, [0, 0, 1]), (32 * 24, [0, 0, 0])] {
        mirror.clock().advance(Duration::from_hours(hours));
        let mut found = Vec::new();
        for span in ["hour", "day", "month"] {
            found.push(answers(&mirror, span).await[0]);
        }
        assert_eq!(found, left, "after {hours} hours more");
    }
}

#[tokio::test]
async fn it_survives_a_restart() {
    let (_upstream, image, mirror) = world().await;
    mirror.pull(&image, "latest").await;
    let before = answers(&mirror, "month").await;
    assert!(before[0] >= 2);
    let mirror = mirror.stop().await.start().await;
    assert_eq!(answers(&mirror, "month").await, before);
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.metric_is("larder_answers_total{served=\"hit\"}", 1).await;
    assert_eq!(answers(&mirror, "hour").await[1], before[1] + 1);
    let told = get(mirror.admin_url("/api/images")).await.expect(200).json();
    assert_eq!(told["images"][0]["pulls"], 2, "how often it was pulled is not forgotten either");
}

/// What is written once a minute is what there is after a kill.
#[tokio::test]
async fn after_a_kill_it_lacks_what_was_not_written_yet_and_no_more() {
    let (_upstream, image, mirror) = world().await;
    mirror.pull(&image, "latest").await;
    mirror.keep_history().await;
    let written = answers(&mirror, "day").await;
    let file = mirror.cache_dir().join("history");
    let as_written = fs::read(&file).unwrap();
    mirror.get(&image.tag_path("latest")).await.expect(200);
    let stopped = mirror.stop().await;
    assert_ne!(fs::read(&file).unwrap(), as_written, "at the end it is written again");
    // A kill leaves what was there before, and perhaps the beginning of what was to take its place.
    fs::write(&file, &as_written).unwrap();
    fs::write(stopped.cache_dir().join("history.new"), &as_written[..20]).unwrap();
    let mirror = stopped.into_killed().start().await;
    assert_eq!(answers(&mirror, "day").await, written);
}

#[tokio::test]
async fn what_is_damaged_or_anothers_is_set_aside() {
    let (_upstream, image, mirror) = world().await;
    mirror.pull(&image, "latest").await;
    let mut stopped: StoppedMirror = mirror.stop().await;
    let file = stopped.cache_dir().join("history");
    let aside = stopped.cache_dir().join("history.damaged");
    let good = fs::read(&file).unwrap();
    let torn = good[..good.len() - 3].to_vec();
    for damaged in [torn, b"larder history 9\n".to_vec(), vec![0xff; 5000], Vec::new(), b"a diary\n".to_vec()] {
        fs::write(&file, &damaged).unwrap();
        let log = Log::from_here();
        let mirror = stopped.start().await;
        log.will_say(&["`history`", "set aside"]).await;
        assert_eq!(fs::read(&aside).unwrap(), damaged);
        assert_eq!(answers(&mirror, "month").await, [0, 0, 0]);
        mirror.get(&image.tag_path("latest")).await.expect(200);
        stopped = mirror.stop().await;
        assert!(fs::read(&file).unwrap().starts_with(b"larder history 1\n"), "it begins anew");
    }
    // Not even a directory is in its way.
    fs::remove_file(&file).unwrap();
    fs::remove_file(&aside).unwrap();
    fs::create_dir(&file).unwrap();
    let mirror = stopped.start().await;
    assert!(aside.is_dir());
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.keep_history().await;
    assert!(file.is_file());
}

/// A board without a battery begins in 1970, and is told the time by the network when larder runs already.
#[tokio::test]
async fn a_start_with_a_wrong_clock_forgets_nothing() {
    const YEAR: Duration = Duration::from_hours(24 * 365);
    let after = |years: u32| {
        let clock = Clock::system();
        clock.advance(YEAR * years);
        clock
    };
    let (_upstream, image, mirror) = world().await;
    mirror.clock().advance(YEAR);
    mirror.pull(&image, "latest").await;
    let mut before = answers(&mirror, "month").await;
    assert!(before[0] > 0, "{before:?}");
    let mut stopped = mirror.stop().await;
    // A year behind, a year ahead, and right again.
    for (years, known) in [(0, [0; 3]), (2, [0; 3]), (1, before)] {
        let mirror = stopped.clock(after(years)).start().await;
        assert_eq!(answers(&mirror, "month").await, known, "after {years} years");
        mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
        mirror.metric_is("larder_answers_total{served=\"hit\"}", 1).await;
        assert_eq!(answers(&mirror, "month").await[1], known[1] + 1);
        stopped = mirror.stop().await;
    }
    before[1] += 1;
    assert_eq!(answers(&stopped.clock(after(1)).start().await, "month").await, before);
}

/// Where nobody asked for anything, there is nothing to write.
#[tokio::test]
async fn nothing_is_written_where_nothing_has_changed() {
    let (_upstream, image, mirror) = world().await;
    mirror.pull(&image, "latest").await;
    mirror.keep_history().await;
    let file = mirror.cache_dir().join("history");
    fs::remove_file(&file).unwrap();
    mirror.keep_history().await;
    assert!(!file.exists());
    assert!(!file.with_extension("new").exists());
}
