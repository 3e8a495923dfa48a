//! What larder tells of itself to Prometheus: that it is true, and that those who read of it find it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use larder::metrics::Metrics;
use serde_json::Value;

use crate::support::{Auth, Content, Fault, Image, Match, PutImage, Registry, Setup, TestMirror, get, get_with};

const MIB: usize = 1 << 20;

/// Asks for a blob and waits until that is counted.
async fn get_blob(mirror: &TestMirror, image: &PutImage, blob: &Content, served: &str) {
    let counted = format!("larder_answers_total{{served=\"{served}\"}}");
    let before = mirror.metric(&counted);
    assert_eq!(mirror.get(&image.blob_path(blob)).await.expect(200).body, blob.bytes);
    mirror.metric_is(&counted, before + 1).await;
}

/// In a bucket, in all of them, or whatever follows the name.
fn time(what: &str, labels: &str) -> String {
    format!("larder_{what}{{{labels}}}")
}

// === what is counted ===

#[tokio::test]
async fn what_is_saved_is_what_was_sent_and_not_fetched() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[3 * MIB]).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let (tag, layer) = (image.tag_path("latest"), &image.layers[0]);
    for served in ["miss", "hit", "hit"] {
        assert_eq!(mirror.get(&tag).await.expect(200).body, image.manifest);
        get_blob(&mirror, &image, layer, served).await;
        mirror.kept(&layer.digest).await;
    }
    let fetched = |kind| mirror.metric(&format!("larder_upstream_bytes_total{{upstream=\"docker.io\",kind=\"{kind}\"}}"));
    let sent = |served| mirror.metric(&format!("larder_answer_bytes_total{{served=\"{served}\"}}"));
    let (manifest, blob) = (image.manifest.len() as u64, 3 * MIB as u64);
    assert_eq!([fetched("manifest"), fetched("blob"), fetched("list")], [manifest, blob, 0]);
    mirror.metric_is("larder_answers_total{served=\"hit\"}", 4).await;
    assert_eq!([sent("miss"), sent("hit")], [manifest + blob, 2 * (manifest + blob)]);
}

/// A token is asked for as well, a transfer that breaks has cost what came of it, and a list is no manifest.
#[tokio::test]
async fn whatever_comes_from_an_upstream_is_counted_as_it_comes() {
    let upstream = Registry::with(Setup { auth: Auth::Bearer { user: None, expires_in: Some(300) }, ..Setup::default() }).await;
    let image = Image::new(2).layers(&[2 * MIB]).put(&upstream, "library/app", "latest");
    let layer = &image.layers[0];
    upstream.on(Match::get(&layer.digest).times(1), [Fault::Cut { after: MIB }]);
    let host = upstream.token_url().replace("http://", "");
    let builder = TestMirror::builder().upstream("docker.io", &upstream);
    let mirror = builder.set(&format!("upstream.\"docker.io\".token_hosts = [{host:?}]")).start().await;
    get_blob(&mirror, &image, layer, "miss").await;
    let tags = mirror.get("/v2/library/app/tags/list").await.expect(200);
    let fetched = |kind| mirror.metric(&format!("larder_upstream_bytes_total{{upstream=\"docker.io\",kind=\"{kind}\"}}"));
    assert_eq!(fetched("blob"), 2 * MIB as u64, "what was there is not asked for again");
    assert!(fetched("list") >= tags.body.len() as u64 / 2 && fetched("token") > 0, "{} {}", fetched("list"), fetched("token"));
    assert_eq!(mirror.metric("larder_fill_resumes_total"), 1);
}

#[tokio::test]
async fn how_long_answers_take_is_told_by_what_was_asked_for_and_how_it_was_served() {
    let upstream = Registry::start().await;
    let image = Image::new(3).layers(&[2 * MIB, 100]).put(&upstream, "library/app", "latest");
    let [large, small] = [&image.layers[0], &image.layers[1]];
    upstream.on(Match::get(&small.digest), Fault::Latency(Duration::from_millis(300)));
    upstream.on(Match::get(&large.digest), Fault::Gate { after: MIB });
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&image.tag_path("latest")).await.expect(200);
    get_blob(&mirror, &image, small, "miss").await;
    mirror.kept(&small.digest).await;
    get_blob(&mirror, &image, small, "hit").await;
    let of = |what: &str, labels: &str| mirror.metric(&time(what, labels));
    for what in ["answer_first_byte_seconds", "answer_seconds"] {
        assert_eq!(of(&format!("{what}_count"), "kind=\"manifest\",served=\"miss\""), 1, "{what}");
        for served in ["miss", "hit"] {
            let labels = format!("kind=\"blob\",served=\"{served}\"");
            assert_eq!(of(&format!("{what}_count"), &labels), 1, "{what}");
            let quick = of(&format!("{what}_bucket"), &format!("le=\"0.25\",{labels}"));
            assert_eq!(quick, u64::from(served == "hit"), "{what}: the upstream let wait for 0.3 s");
        }
    }
    let waited = "upstream=\"docker.io\",kind=\"blob\"";
    assert_eq!(of("upstream_header_seconds_bucket", &format!("le=\"0.25\",{waited}")), 0);
    assert_eq!(of("upstream_header_seconds_count", waited), 1);

    // Who leaves has had a first byte, and no end.
    let mut leaves = mirror.stream(&image.blob_path(large)).await;
    leaves.take(1000).await;
    drop(leaves);
    mirror.metric_is("larder_client_aborts_total{phase=\"body\"}", 1).await;
    let blobs = "kind=\"blob\",served=\"miss\"";
    assert_eq!([of("answer_first_byte_seconds_count", blobs), of("answer_seconds_count", blobs)], [2, 1]);
}

#[tokio::test]
async fn errors_are_told_by_their_code_and_status() {
    let upstream = Registry::start().await;
    let denies = "upstream.\"docker.io\".deny = [\"library/secret\"]";
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set(denies).start().await;
    let zero = format!("sha256:{}", "0".repeat(64));
    upstream.on(Match::get("/manifests/down"), Fault::status(500));
    for (path, status, code) in [
        ("/v2/library/app/manifests/none".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/library/app/blobs/{zero}"), 404, "BLOB_UNKNOWN"),
        ("/v2/library/secret/manifests/latest".to_owned(), 403, "DENIED"),
        ("/v2/library/app/manifests/down".to_owned(), 502, "UNAVAILABLE"),
        ("/v2/library/app/blobs/sha256:0".to_owned(), 400, "DIGEST_INVALID"),
    ] {
        mirror.get(&path).await.expect(status);
        mirror.metric_is(&format!("larder_errors_total{{code=\"{code}\",status=\"{status}\"}}"), 1).await;
    }
    mirror.get("/v2/").await.expect(200);
    mirror.metric_is("larder_answers_total{served=\"local\"}", 2).await;
    let page = get(mirror.admin_url("/metrics")).await.expect(200).text();
    assert_eq!(page.lines().filter(|line| line.starts_with("larder_errors_total{")).count(), 5, "{page}");
}

#[tokio::test]
async fn what_is_fetched_and_for_how_many_is_told_while_it_lasts() {
    let upstream = Registry::start().await;
    let image = Image::new(4).layers(&[2 * MIB]).put(&upstream, "library/app", "latest");
    let layer = &image.layers[0];
    upstream.on(Match::get(&layer.digest), Fault::Gate { after: MIB });
    let mirror = TestMirror::of(&upstream).await;
    let [first, second] = [mirror.stream(&image.blob_path(layer)).await, mirror.stream(&image.blob_path(layer)).await];
    assert_eq!([mirror.metric("larder_fills_running"), mirror.metric("larder_fill_clients")], [1, 2]);
    upstream.release();
    for client in [first, second] {
        assert_eq!(client.rest().await.expect(200).body, layer.bytes);
    }
    mirror.metric_is("larder_fills_running", 0).await;
    mirror.metric_is("larder_fill_clients", 0).await;
    mirror.metric_is("larder_answers_total{served=\"joined\"}", 1).await;
}

#[tokio::test]
async fn what_goes_to_make_room_is_told_and_how_old_the_oldest_is() {
    let upstream = Registry::start().await;
    let builder = TestMirror::builder().upstream("docker.io", &upstream);
    let mirror = builder.set("cache.max_size = \"32MiB\"").set("cache.min_free = \"0%\"").start().await;
    let most = mirror.metric("larder_cache_max_bytes");
    assert!((28 * MIB as u64..32 * MIB as u64).contains(&most), "records take some of it: {most}");
    let images: Vec<_> =
        (0..4).map(|n| Image::new(n).layers(&[12 * MIB]).put(&upstream, &format!("library/i{n}"), "a")).collect();
    for image in &images[..2] {
        mirror.pull(image, "a").await;
        mirror.clock().advance(Duration::from_mins(1));
    }
    let oldest = mirror.metric("larder_cache_oldest_use_seconds");
    assert!((120..180).contains(&oldest), "{oldest}");
    assert_eq!(mirror.metric("larder_evictions_total{what=\"blob\"}"), 0);
    for image in &images[2..] {
        mirror.pull(image, "a").await;
    }
    let [gone, bytes] =
        ["larder_evictions_total{what=\"blob\"}", "larder_evicted_bytes_total{what=\"blob\"}"].map(|name| mirror.metric(name));
    // Each is a manifest, a config and a layer, and takes whole blocks.
    let left: u64 = images
        .iter()
        .flat_map(|image| image.blobs().map(|blob| &blob.digest).chain([&image.digest]))
        .fold(0, |left, digest| left + u64::from(mirror.holds(digest)));
    assert_eq!((gone, mirror.metric("larder_cache_blobs")), (12 - left, left));
    let whole: u64 = images
        .iter()
        .flat_map(|image| image.blobs().map(|blob| blob.bytes.len()).chain([image.manifest.len()]))
        .map(|size| size.next_multiple_of(4096) as u64)
        .sum();
    assert_eq!(bytes, whole - mirror.used(), "what went is what came and is not here");
    let oldest = mirror.metric("larder_cache_oldest_use_seconds");
    assert!(oldest < 60, "the first two have gone: {oldest}");
}

// === what is looked up ===

#[tokio::test]
async fn the_disk_and_the_process_are_looked_at_when_someone_reads() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("cache.min_free = \"5%\"").start().await;
    let page = get(mirror.admin_url("/metrics")).await.expect(200).text();
    let of = |name: &str| {
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("{name}: {page}"))
    };
    let (free, size) = (of("larder_disk_free_bytes"), of("larder_disk_size_bytes"));
    assert!(free > 0.0 && free < size, "{free} of {size}");
    assert!((of("larder_disk_floor_bytes") / size - 0.05).abs() < 0.001);
    assert!(of("process_cpu_seconds_total") > 0.0 && of("process_resident_memory_bytes") > 1e6);
    assert!(of("process_open_fds") > 3.0 && of("process_max_fds") > of("process_open_fds") && of("process_threads") > 1.0);
    assert!(of("process_start_time_seconds") > 1.7e9);
    assert!((of(&format!("larder_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))) - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn the_page_is_in_the_format_that_is_asked_for() {
    let mirror = TestMirror::builder().start().await;
    let text = get(mirror.admin_url("/metrics")).await.expect(200);
    assert_eq!(text.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(text.text().contains("# TYPE larder_answers_total counter\n") && !text.text().contains("# EOF"));
    let accept = [("accept", "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3")];
    let open = get_with(mirror.admin_url("/metrics"), &accept).await.expect(200);
    assert_eq!(open.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(open.text().contains("# TYPE larder_answers counter\n") && open.text().ends_with("# EOF\n"));
}

// === who reads of it ===

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Words that are names of metrics: they begin as one does.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.starts_with("larder_") || word.starts_with("process_")).collect()
}

#[test]
fn the_readme_lists_every_metric_and_no_other() {
    let readme = file("README.md");
    let section = readme.split("## Watch").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let rows: Vec<&str> = rows.map(|name| name.split('{').next().unwrap()).collect();
    let metrics = Metrics::new();
    let mut there: Vec<&str> = metrics.described().iter().map(|of| of.name.as_str()).collect();
    let mut listed = rows;
    there.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, there);
}

/// The names that a query may use, and of which labels it may speak.
fn known(name: &str) -> bool {
    let metrics = Metrics::new();
    metrics.described().iter().any(|of| match of.kind {
        "histogram" => ["_bucket", "_sum", "_count"].iter().any(|suffix| name.strip_suffix(suffix) == Some(&of.name)),
        _ => of.name == name,
    })
}

fn queries<'a>(json: &'a Value, found: &mut Vec<&'a str>) {
    match json {
        Value::Object(fields) => {
            for (key, value) in fields {
                match (key.as_str(), value) {
                    ("expr" | "query", Value::String(query)) => found.push(query),
                    _ => queries(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_nothing_that_is_not_there() {
    let text = file("config/grafana/larder.json");
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut asked = Vec::new();
    queries(&dashboard, &mut asked);
    assert!(asked.len() > 20, "{asked:?}");
    for query in asked {
        let used = names(query);
        assert!(!used.is_empty() || query == "prometheus", "{query}");
        assert!(used.iter().all(|name| known(name)), "{query}");
    }
    // Whoever brings it in says which Prometheus it is for.
    let panels = dashboard["panels"].as_array().unwrap();
    let of_variable = |panel: &&Value| panel["type"] == "row" || panel["datasource"]["uid"] == "${datasource}";
    assert!(panels.iter().all(|panel| of_variable(&panel)), "{text}");
    assert_eq!(dashboard["templating"]["list"][0]["name"], "datasource");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
}

#[test]
fn alerts_ask_for_nothing_that_is_not_there() {
    let rules = file("config/prometheus/larder.yml");
    let asked: Vec<&str> = rules.lines().filter(|line| line.trim_start().starts_with("expr:")).collect();
    assert!(asked.len() >= 6, "{rules}");
    for query in asked {
        let used = names(query);
        assert!(!used.is_empty() && used.iter().all(|name| known(name)), "{query}");
    }
}
