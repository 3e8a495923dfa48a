//! `larder pull`: images come in by the ways that clients take, before any client asks.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Ended, Fault, Image, Match, MultiArch, PATIENCE, Process, PutImage, Registry, TestMirror, assert_whole, get, noise,
    partial_file, sealed,
};

fn settings(upstream: &Registry) -> String {
    format!("upstream.\"docker.io\".url={}", upstream.url())
}

async fn pull(dir: &Path, upstream: &Registry, arguments: &[&str]) -> Ended {
    Process::order(dir, &[&["pull"], arguments].concat(), &[&settings(upstream)]).await
}

async fn pulled(dir: &Path, upstream: &Registry, arguments: &[&str]) -> String {
    let ended = pull(dir, upstream, arguments).await;
    assert!(ended.status.success(), "{}", ended.log);
    ended.stdout
}

#[tokio::test]
async fn what_is_pulled_is_served_by_a_sealed_larder_and_pulled_again_for_nothing() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[70_000, 3_000]).put(&upstream, "library/app", "v1");
    let dir = tempfile::tempdir().unwrap();
    let said = pulled(dir.path(), &upstream, &["app:v1"]).await;
    let short = &image.digest["sha256:".len()..][..12];
    assert!(
        said.starts_with(&format!("docker.io/library/app:v1  {short}  fetched ")) && said.ends_with(" in 4 parts\n"),
        "{said}"
    );
    upstream.forget_requests();
    let said = pulled(dir.path(), &upstream, &["app:v1"]).await;
    assert_eq!(said, format!("docker.io/library/app:v1  {short}  was here already\n"));
    assert_eq!(upstream.requests().len(), 0, "the tag is fresh");
    let larder = sealed(dir.path());
    assert_eq!(get(larder.url(&image.tag_path("v1"))).await.expect(200).body, image.manifest);
    assert_whole(&larder, &image).await;
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn the_platforms_that_are_asked_for_are_here_and_the_index_as_it_was() {
    let upstream = Registry::start().await;
    let index = MultiArch::new(2).put(&upstream, "library/multi", "v1");
    let dir = tempfile::tempdir().unwrap();
    pulled(dir.path(), &upstream, &["multi:v1", "--platform", "linux/arm64"]).await;
    let [amd64, arm64] = &index.images[..] else { unreachable!() };
    assert_eq!([upstream.count("GET", &amd64.digest), upstream.count("GET", &arm64.digest)], [0, 1]);
    let larder = sealed(dir.path());
    assert_eq!(get(larder.url(&index.tag_path("v1"))).await.expect(200).body, index.manifest);
    assert_whole(&larder, arm64).await;
    get(larder.url(&amd64.manifest_path())).await.expect(404);
    larder.terminate();

    let none = pull(dir.path(), &upstream, &["multi:v1", "--platform", "windows/amd64"]).await;
    assert!(none.status.code() == Some(1) && none.log.contains("it has no image for windows/amd64"), "{}", none.log);
    let wrong = pull(dir.path(), &upstream, &["multi:v1", "--platform", "arm64"]).await;
    assert!(wrong.status.code() == Some(1) && wrong.log.contains("\"arm64\" is no platform"), "{}", wrong.log);
    upstream.forget_requests();
    pulled(dir.path(), &upstream, &["multi:v1", "--platform", "all"]).await;
    assert_eq!([upstream.count("GET", &amd64.digest), upstream.count("GET", &arm64.digest)], [1, 0], "only what is missing");
    assert_whole(&sealed(dir.path()), amd64).await;
}

#[tokio::test]
async fn one_that_cannot_be_had_does_not_keep_the_others() {
    let upstream = Registry::start().await;
    let image = Image::new(3).layers(&[2_000]).put(&upstream, "library/app", "v1");
    let broken = Image::new(4).layers(&[70_000, 1_000]).put(&upstream, "library/broken", "v1");
    upstream.on(Match::get(&broken.layers[0].digest), Fault::Corrupt { at: 500 });
    let dir = tempfile::tempdir().unwrap();
    let Ended { status, stdout, log } =
        pull(dir.path(), &upstream, &["missing", "broken:v1", "No Image", "app:v1", "evil.example/x"]).await;
    assert_eq!((status.code(), stdout.lines().count()), (Some(1), 1), "{stdout}");
    assert!(stdout.starts_with("docker.io/library/app:v1"), "{stdout}");
    for line in [
        "larder: missing: not found upstream",
        &format!("larder: broken:v1: {}: ", broken.layers[0].digest),
        "larder: No Image: \"No Image\" is no image such as",
        "larder: evil.example/x: evil.example is not among the upstreams that are configured",
    ] {
        assert!(log.lines().any(|said| said.starts_with(line)), "{line}: {log}");
    }
    upstream.heal();
    upstream.forget_requests();
    pulled(dir.path(), &upstream, &["broken:v1"]).await;
    assert_eq!([&broken.layers[0], &broken.layers[1]].map(|layer| upstream.count("GET", &layer.digest)), [1, 0]);
    let larder = sealed(dir.path());
    assert_whole(&larder, &image).await;
    assert_whole(&larder, &broken).await;
}

#[tokio::test]
async fn images_are_read_from_lists_and_from_what_kubernetes_is_given() {
    let upstream = Registry::start().await;
    for name in ["a", "b", "c"] {
        Image::new(5).put(&upstream, &format!("library/{name}"), "v1");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("list"), "# three\na:v1\nb:v1  # the second\n").unwrap();
    fs::write(dir.path().join("pod.yaml"), "kind: Pod\nspec:\n  containers:\n  - name: x\n    image: c:v1\n  - image: a:v1\n")
        .unwrap();
    let said = pulled(dir.path(), &upstream, &["--from", "list", "--from", "pod.yaml"]).await;
    let names: Vec<&str> = said.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["docker.io/library/a:v1", "docker.io/library/b:v1", "docker.io/library/c:v1"]);
    fs::write(dir.path().join("empty"), "kind: Pod\n").unwrap();
    for (arguments, says) in [
        (&["--from", "none"][..], "none: No such file"),
        (&["--from", "empty"], "empty: it names no image"),
        (&[], "say which images, or by --from FILE"),
    ] {
        let ended = pull(dir.path(), &upstream, arguments).await;
        assert!(ended.status.code() == Some(1) && ended.log.contains(says), "{}", ended.log);
    }
}

#[tokio::test]
async fn beside_a_running_larder_that_one_pulls() {
    let upstream = Registry::start().await;
    let image = Image::new(6).layers(&[2_000]).put(&upstream, "library/app", "v1");
    let mirror = TestMirror::of(&upstream).await;
    let dir = mirror.dir().to_path_buf();
    let said = pulled(&dir, &upstream, &["app:v1", "--json"]).await;
    assert!(image.blobs().all(|blob| mirror.holds(&blob.digest)) && mirror.holds(&image.digest));
    let reports: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let bytes = image.manifest.len() + image.blobs().map(|blob| blob.bytes.len()).sum::<usize>();
    let whole = json!({ "report": "pulled", "image": "docker.io/library/app:v1", "digest": image.digest, "present": 0,
                        "fetched": 3, "bytes": bytes, "referrers": 0, "pinned": false });
    assert_eq!(*reports.last().unwrap(), whole);
    let done = reports.iter().filter(|report| report["report"] == "layer" && report["done"] == true);
    assert_eq!(done.count(), 2, "{said}");
}

/// Each of these is a blob in the middle of its transfer.
#[tokio::test]
async fn what_was_killed_goes_on_where_it_was() {
    let upstream = Registry::start().await;
    let image = Image::new(7).layers(&[4_000_000, 1_000]).put(&upstream, "library/app", "v1");
    let layer = &image.layers[0];
    upstream.on(Match::get(&layer.digest).times(1), Fault::Stall { after: 3_000_000 });
    let dir = tempfile::tempdir().unwrap();
    let mut killed = Command::new(env!("CARGO_BIN_EXE_larder"));
    killed.args(["pull", "app:v1", "--pin", "--set", &settings(&upstream), "--set"]).env_clear().current_dir(dir.path());
    killed.arg(format!("cache.dir={}", dir.path().join("cache").display())).stdout(Stdio::null()).stderr(Stdio::null());
    let mut killed = killed.spawn().unwrap();
    upstream.held(1).await;
    let partial = partial_file(&dir.path().join("cache"), &layer.digest);
    let deadline = Instant::now() + PATIENCE;
    while fs::metadata(&partial).map_or(0, |meta| meta.len()) < 1_000_000 {
        assert!(Instant::now() < deadline, "nothing is written");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    upstream.heal();
    upstream.forget_requests();
    pulled(dir.path(), &upstream, &["app:v1", "--pin"]).await;
    let ranges: Vec<_> = upstream.requests().into_iter().filter(|request| request.path.contains(&layer.digest)).collect();
    assert!(ranges.len() == 1 && ranges[0].header("range").is_some(), "{ranges:#?}");
    let larder = sealed(dir.path());
    assert_whole(&larder, &image).await;
    let listed = Process::order(dir.path(), &["ls"], &[]).await.stdout;
    assert!(listed.lines().nth(1).unwrap().ends_with("yes"), "{listed}");
}

#[tokio::test]
async fn a_cache_that_is_too_small_is_told_of_and_the_rest_is_here() {
    let upstream = Registry::start().await;
    let image = Image::new(8).layers(&[24 << 20]).put(&upstream, "library/large", "v1");
    Image::new(9).put(&upstream, "library/app", "v1");
    let dir = tempfile::tempdir().unwrap();
    let ended =
        Process::order(dir.path(), &["pull", "large:v1", "app:v1"], &[&settings(&upstream), "cache.max_size=16MiB"]).await;
    assert_eq!((ended.status.code(), ended.stdout.lines().count()), (Some(1), 1));
    assert!(ended.log.contains(&image.layers[0].digest) && ended.log.contains("not kept"), "{}", ended.log);
}

/// A delivery that lacks the newest is worse than one that says so.
#[tokio::test]
async fn that_a_tag_could_not_be_asked_for_is_told() {
    let upstream = Registry::start().await;
    Image::new(10).put(&upstream, "library/app", "v1");
    let dir = tempfile::tempdir().unwrap();
    let ttl = "mirror.tag_ttl=0s";
    let pull = async || Process::order(dir.path(), &["pull", "app:v1"], &[&settings(&upstream), ttl]).await;
    assert!(pull().await.status.success());
    upstream.on(Match::any(""), Fault::status(503));
    let ended = pull().await;
    assert!(ended.status.code() == Some(1) && ended.log.contains("whether it is the newest could not be asked"), "{}", ended.log);
}

// === referrers ===

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Puts what refers to an image beside it; returns its descriptor.
fn put_referrer(upstream: &Registry, image: &PutImage, seed: u64, artifact_type: &str) -> Value {
    let referrer = Image::new(seed).layer(noise(seed, 500)).put_untagged(upstream, &image.repository);
    json!({ "mediaType": referrer.media_type, "digest": referrer.digest, "size": referrer.manifest.len(), "artifactType": artifact_type })
}

#[tokio::test]
async fn signatures_come_along_and_are_served_when_nobody_can_be_asked() {
    let upstream = Registry::start().await;
    let image = Image::new(11).layers(&[2_000]).put(&upstream, "library/app", "v1");
    let signature = put_referrer(&upstream, &image, 100, "application/signature");
    let sbom = put_referrer(&upstream, &image, 101, "application/sbom");
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [signature, sbom] }).to_string();
    upstream.put_referrers("library/app", &image.digest, Some(index.clone().into()));
    let hex = &image.digest["sha256:".len()..];
    let cosigned = Image::new(102).layers(&[700]).put(&upstream, "library/app", &format!("sha256-{hex}.sig"));
    let dir = tempfile::tempdir().unwrap();
    let said = pulled(dir.path(), &upstream, &["app:v1", "--referrers", "--pin"]).await;
    assert!(said.trim_end().ends_with(", with 2 that refer to it, pinned"), "{said}");
    let larder = sealed(dir.path());
    let path = format!("/v2/library/app/referrers/{}", image.digest);
    let answer = get(larder.url(&path)).await.expect(200);
    assert_eq!((answer.text(), answer.header("content-type")), (index, Some(INDEX)));
    let filtered = get(larder.url(&format!("{path}?artifactType=application/sbom"))).await.expect(200).json();
    assert_eq!(filtered["manifests"], json!([sbom]));
    for referrer in [&signature, &sbom] {
        let digest = referrer["digest"].as_str().unwrap();
        let manifest = get(larder.url(&format!("/v2/library/app/manifests/{digest}"))).await.expect(200).json();
        for blob in manifest["layers"].as_array().unwrap() {
            get(larder.url(&format!("/v2/library/app/blobs/{}", blob["digest"].as_str().unwrap()))).await.expect(200);
        }
    }
    assert_eq!(get(larder.url(&format!("/v2/library/app/manifests/sha256-{hex}.sig"))).await.expect(200).body, cosigned.manifest);
    assert_whole(&larder, &cosigned).await;
    let listed = Process::order(dir.path(), &["ls"], &[]).await.stdout;
    assert!(listed.lines().skip(1).all(|line| line.ends_with("yes")), "all of it is pinned: {listed}");
}

#[tokio::test]
async fn without_the_api_referrers_are_found_by_their_tag() {
    let upstream = Registry::start().await;
    let image = Image::new(12).put(&upstream, "library/app", "v1");
    let signature = put_referrer(&upstream, &image, 103, "application/signature");
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [signature] }).to_string();
    let hex = &image.digest["sha256:".len()..];
    upstream.put_manifest("library/app", Some(&format!("sha256-{hex}")), INDEX, index.clone());
    let dir = tempfile::tempdir().unwrap();
    pulled(dir.path(), &upstream, &["app:v1", "--referrers"]).await;
    let larder = sealed(dir.path());
    assert_eq!(get(larder.url(&format!("/v2/library/app/referrers/{}", image.digest))).await.expect(200).text(), index);
    let digest = signature["digest"].as_str().unwrap();
    get(larder.url(&format!("/v2/library/app/manifests/{digest}"))).await.expect(200);
}
