//! What an order brings, finds or gives out stays until it has ended; and what it brought for nothing goes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};

use larder::orders::{header, padding};

use crate::support::{
    Ended, Image, Process, PutImage, Registry, TestMirror, archive, assert_sound, assert_whole, blob_path, coming, entries,
    files, larder, noise, refused, sealed, told, until,
};

const MIB: usize = 1 << 20;
/// A cache with room for some 14 MiB.
const SMALL: [&str; 2] = ["cache.max_size=16MiB", "cache.min_free=0%"];

fn from(upstream: &Registry) -> String {
    format!("upstream.\"docker.io\".url={}", upstream.url())
}

async fn small(dir: &Path, upstream: &Registry, arguments: &[&str]) -> Ended {
    Process::order(dir, arguments, &[&from(upstream), SMALL[0], SMALL[1]]).await
}

/// An archive with one image, blobs in the order of the image and the index last.
fn bundle(image: &PutImage) -> Vec<u8> {
    let index = serde_json::json!({ "manifests": [{ "mediaType": image.media_type, "digest": image.digest,
        "annotations": { "io.containerd.image.name": format!("docker.io/{}:new", image.repository) } }] });
    let index = index.to_string();
    let paths: Vec<String> = image.layers.iter().chain([&image.config]).map(|blob| blob_path(&blob.digest)).collect();
    let mut files: Vec<(&str, &[u8])> =
        paths.iter().zip(image.layers.iter().chain([&image.config])).map(|(path, blob)| (&**path, &blob.bytes[..])).collect();
    let manifest = blob_path(&image.digest);
    files.push((&manifest, &image.manifest));
    files.push(("index.json", index.as_bytes()));
    archive(&files)
}

fn in_archive(size: usize) -> usize {
    512 + size + padding(size as u64)
}

/// An import that has read so much of its archive, up to the middle of this blob.
async fn begun(dir: &Path, bundle: &[u8], sent: usize, within: &str, more: &[&str]) -> Child {
    let mut import = larder(dir, &[&["import", "-", "--no-pin"], more].concat()).stderr(Stdio::piped()).spawn().unwrap();
    import.stdin.as_mut().unwrap().write_all(&bundle[..sent]).unwrap();
    coming(&dir.join("cache"), within, MIB as u64).await;
    import
}

fn goes_on(mut import: Child, rest: &[u8]) -> bool {
    // Where it is refused before its end, the rest is not read.
    let _ = import.stdin.take().unwrap().write_all(rest);
    import.wait().unwrap().success()
}

/// How a command ended that had not come to the end of its input, and what it said.
fn ended(mut import: Child) -> (Option<i32>, String) {
    // To wait for it would close that.
    let stdin = import.stdin.take();
    let ended = import.wait_with_output().unwrap();
    drop(stdin);
    (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
}

/// What a command says that is to fail, with what it warns of.
async fn refused_in(dir: &Path, arguments: &[&str]) -> String {
    let ended = Process::order(dir, arguments, &[]).await;
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    ended.log
}

fn has(dir: &Path, digest: &str) -> bool {
    dir.join("cache/blobs/sha256").join(&digest[7..9]).join(&digest[7..]).exists()
}

#[tokio::test]
async fn an_image_that_does_not_fit_beside_itself_is_no_image_that_is_here() {
    let upstream = Registry::start().await;
    let large = Image::new(1).layers(&[MIB; 24]).put(&upstream, "library/large", "v1");
    let fits = Image::new(2).layers(&[3 * MIB; 4]).put(&upstream, "library/fits", "v1");
    let dir = tempfile::tempdir().unwrap();
    let ended = small(dir.path(), &upstream, &["pull", "--pin", "large:v1"]).await;
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(1), ""));
    assert!(ended.log.contains("it is not kept: there is no room"), "{}", ended.log);
    let records = fs::read_to_string(dir.path().join("cache/records")).unwrap();
    assert!(records.lines().all(|line| !line.starts_with("pin ") || line.contains(&large.digest)), "{records}");
    assert!(small(dir.path(), &upstream, &["unpin", "large:v1"]).await.status.success());
    // It has let go of what came.
    let ended = small(dir.path(), &upstream, &["pull", "--pin", "fits:v1"]).await;
    assert!(ended.status.success(), "{}", ended.log);
    let larder = sealed(dir.path());
    assert_whole(&larder, &fits).await;
}

#[tokio::test]
async fn an_archive_that_does_not_fit_leaves_nothing_and_takes_nothing_from_those_that_are_here() {
    let upstream = Registry::start().await;
    let large = Image::new(3).layers(&[MIB; 24]).put(&upstream, "library/large", "v1");
    let fits = Image::new(4).layers(&[3 * MIB; 4]).put(&upstream, "library/fits", "v1");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("large.tar"), bundle(&large)).unwrap();
    let ended = small(dir.path(), &upstream, &["import", "large.tar"]).await;
    assert!(ended.status.code() == Some(1) && ended.log.contains("there is no room"), "{}", ended.log);
    assert_eq!(files(&dir.path().join("cache/blobs")).len(), 0);
    fs::write(dir.path().join("fits.tar"), bundle(&fits)).unwrap();
    let ended = small(dir.path(), &upstream, &["import", "fits.tar"]).await;
    assert!(ended.status.success() && ended.stdout.contains(", pinned"), "{}", ended.log);
    assert_whole(&sealed(dir.path()), &fits).await;
}

/// It was found here, and then removed with the image that had brought it.
#[tokio::test]
async fn what_an_import_has_found_here_is_not_removed_with_another_image() {
    let upstream = Registry::start().await;
    let shared = noise(1, 300_000);
    let old = Image::new(5).layer(shared.clone()).put(&upstream, "library/app", "old");
    let new = Image::new(6).layer(shared).layers(&[3 * MIB]).put(&upstream, "library/app", "new");
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&from(&upstream)], &[]);
    told(dir.path(), &["pull", "app:old"]).await;
    let bundle = bundle(&new);
    let sent = in_archive(300_000) + 2 * MIB;
    let import = begun(dir.path(), &bundle, sent, &new.layers[1].digest, &[]).await;
    told(dir.path(), &["rm", "app:old"]).await;
    assert!(has(dir.path(), &old.layers[0].digest) && !has(dir.path(), &old.digest));
    assert!(goes_on(import, &bundle[sent..]));
    upstream.stop().await;
    assert_whole(&larder, &new).await;
}

#[tokio::test]
async fn what_one_import_brought_and_another_found_outlives_the_refusal_of_the_first() {
    let upstream = Registry::start().await;
    let shared = noise(2, 300_000);
    let of = |seed| Image::new(seed).layer(shared.clone()).layers(&[3 * MIB]).put(&upstream, "library/app", "new");
    let (first, second) = (of(7), of(8));
    let dir = tempfile::tempdir().unwrap();
    let larder = sealed(dir.path());
    let bundles = [bundle(&first), bundle(&second)];
    let sent = in_archive(300_000) + 2 * MIB;
    let one = begun(dir.path(), &bundles[0], sent, &first.layers[1].digest, &[]).await;
    let other = begun(dir.path(), &bundles[1], sent, &second.layers[1].digest, &[]).await;
    assert!(!goes_on(one, &noise(3, 2 * MIB)), "its bytes are not what they should be");
    assert!(has(dir.path(), &second.layers[0].digest));
    assert!(goes_on(other, &bundles[1][sent..]));
    assert_whole(&larder, &second).await;
    assert_eq!(files(&dir.path().join("cache/blobs")).len(), 4, "of the first nothing is left");
    assert_sound(&dir.path().join("cache"));
}

#[tokio::test]
async fn an_import_that_is_taken_back_leaves_nothing_in_a_sealed_larder() {
    let upstream = Registry::start().await;
    let image = Image::new(9).layers(&[2 * MIB, 3 * MIB]).put(&upstream, "library/app", "new");
    let bundle = bundle(&image);
    let sent = in_archive(2 * MIB) + 2 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("cache/blobs");
    let larder = sealed(dir.path());
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let import = begun(dir.path(), &bundle, sent, &image.layers[1].digest, &[]).await;
        until("the first layer is kept", || has(dir.path(), &image.layers[0].digest)).await;
        rustix::process::kill_process(rustix::process::Pid::from_child(&import), signal).unwrap();
        ended(import);
        until("what came is gone", || files(&blobs).is_empty()).await;
    }
    // As when it stops itself.
    let import = begun(dir.path(), &bundle, sent, &image.layers[1].digest, &[]).await;
    assert!(larder.terminate().status.success());
    ended(import);
    assert_eq!(files(&blobs).len(), 0);
    // And without one.
    let import = begun(dir.path(), &bundle, sent, &image.layers[1].digest, &[]).await;
    rustix::process::kill_process(rustix::process::Pid::from_child(&import), rustix::process::Signal::INT).unwrap();
    assert_eq!(ended(import), (Some(130), String::new()));
    assert_eq!(files(&blobs).len(), 0);
}

/// Nobody can ask for it, and nothing that nobody can ask for keeps the next delivery out.
#[tokio::test]
async fn what_a_killed_import_left_makes_room_also_where_nothing_is_evicted() {
    let upstream = Registry::start().await;
    let killed = Image::new(10).layers(&[6 * MIB, 3 * MIB]).put(&upstream, "library/app", "new");
    let next = Image::new(11).layers(&[4 * MIB; 3]).put(&upstream, "library/next", "new");
    let dir = tempfile::tempdir().unwrap();
    let settings = ["--set", "mirror.offline=true", "--set", SMALL[0], "--set", SMALL[1]];
    let sent = in_archive(6 * MIB) + 2 * MIB;
    let mut import = begun(dir.path(), &bundle(&killed), sent, &killed.layers[1].digest, &settings).await;
    until("the first layer is kept", || has(dir.path(), &killed.layers[0].digest)).await;
    import.kill().unwrap();
    import.wait().unwrap();
    fs::write(dir.path().join("next.tar"), bundle(&next)).unwrap();
    told(dir.path(), &[&["import", "next.tar"], &settings[..]].concat()).await;
    assert!(!has(dir.path(), &killed.layers[0].digest));
    fs::write(dir.path().join("killed.tar"), bundle(&killed)).unwrap();
    let said = refused(dir.path(), &[&["import", "killed.tar"], &settings[..]].concat()).await;
    assert!(said.contains("there is no room"), "{said}");
    assert_whole(&sealed(dir.path()), &next).await;
}

/// A record that cannot be read may be what says whose it is.
#[tokio::test]
async fn what_nobody_seems_to_have_makes_no_room_where_not_all_records_can_be_read() {
    let upstream = Registry::start().await;
    let here = Image::new(20).layers(&[6 * MIB]).put(&upstream, "library/app", "new");
    let next = Image::new(21).layers(&[4 * MIB; 3]).put(&upstream, "library/next", "new");
    let dir = tempfile::tempdir().unwrap();
    let settings = ["--set", "mirror.offline=true", "--set", SMALL[0], "--set", SMALL[1]];
    fs::write(dir.path().join("here.tar"), bundle(&here)).unwrap();
    fs::write(dir.path().join("next.tar"), bundle(&next)).unwrap();
    told(dir.path(), &[&["import", "here.tar", "--no-pin"], &settings[..]].concat()).await;
    let records = dir.path().join("cache/records");
    let text = fs::read_to_string(&records).unwrap();
    let torn: Vec<&str> = text.lines().map(|line| if line.contains("library/app") { "torn" } else { line }).collect();
    assert!(torn.contains(&"torn"), "{text}");
    fs::write(&records, torn.join("\n") + "\n").unwrap();
    let said = refused_in(dir.path(), &[&["import", "next.tar"], &settings[..]].concat()).await;
    assert!(said.contains("there is no room"), "{said}");
    assert!(has(dir.path(), &here.layers[0].digest));
}

/// By whatever order they were held, a layer was not to go before its image.
#[tokio::test]
async fn what_an_order_lets_go_of_goes_as_it_would_have_gone() {
    let upstream = Registry::start().await;
    let image = Image::new(22).layers(&[3_000; 6]).put(&upstream, "library/app", "v1");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    told(mirror.dir(), &["export", "app:v1", "-o", "bundle.tar"]).await;
    let usage: serde_json::Value = serde_json::from_str(&told(mirror.dir(), &["du", "--json"]).await).unwrap();
    assert_eq!(usage["next_to_leave"][0]["digest"], image.digest, "{usage}");
}

/// It was looked at whether all is here, and hours later it was not.
#[tokio::test]
async fn what_an_export_has_begun_with_is_here_until_it_is_written() {
    let upstream = Registry::start().await;
    let image = Image::new(12).layers(&[30_000; 200]).put(&upstream, "library/app", "v1");
    let builder = TestMirror::builder().upstream("docker.io", &upstream);
    let mirror = builder.set("cache.max_size = \"16MiB\"").set("cache.min_free = \"0%\"").start().await;
    assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    let mut export = larder(mirror.dir(), &["export", "app:v1", "-o", "-"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = export.stdout.take().unwrap();
    let begun = tokio::task::spawn_blocking(move || {
        let mut archive = vec![0; 512];
        out.read_exact(&mut archive).unwrap();
        (out, archive)
    });
    let (mut out, mut archive) = begun.await.unwrap();
    for n in 0..10 {
        let image = Image::new(100 + n).layers(&[2 * MIB]).put(&upstream, "library/other", &n.to_string());
        mirror.pull(&image, &n.to_string()).await;
    }
    let ended = tokio::task::spawn_blocking(move || {
        out.read_to_end(&mut archive).unwrap();
        (export.wait().unwrap().success(), archive)
    });
    let (whole, archive) = ended.await.unwrap();
    assert!(whole);
    let names: Vec<String> = entries(&archive).into_iter().map(|(name, _)| name).collect();
    assert!(image.layers.iter().all(|layer| names.contains(&blob_path(&layer.digest))));
    // From then on it may go.
    for n in 10..20 {
        let image = Image::new(100 + n).layers(&[2 * MIB]).put(&upstream, "library/other", &n.to_string());
        mirror.pull(&image, &n.to_string()).await;
    }
    assert!(!image.layers.iter().all(|layer| mirror.holds(&layer.digest)));
}

/// Only its length was looked at, and where nobody can be asked an import is the one way to have it again.
#[tokio::test]
async fn what_is_damaged_here_comes_anew_from_an_archive() {
    let upstream = Registry::start().await;
    let image = Image::new(13).layers(&[300_000]).put(&upstream, "library/app", "new");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("bundle.tar"), bundle(&image)).unwrap();
    told(dir.path(), &["import", "bundle.tar"]).await;
    let larder = sealed(dir.path());
    let hex = &image.layers[0].digest[7..];
    fs::write(dir.path().join("cache/blobs/sha256").join(&hex[..2]).join(hex), noise(77, 300_000)).unwrap();
    let said = told(dir.path(), &["import", "bundle.tar"]).await;
    assert!(said.contains("added 293.0 KiB in 1 parts, 2 were here already"), "{said}");
    assert_whole(&larder, &image).await;
}

#[tokio::test]
async fn a_file_of_another_length_than_what_is_here_is_refused_before_it_is_read() {
    let upstream = Registry::start().await;
    let image = Image::new(14).layers(&[3_000]).put(&upstream, "library/app", "new");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("bundle.tar"), bundle(&image)).unwrap();
    told(dir.path(), &["import", "bundle.tar"]).await;
    fs::write(dir.path().join("endless.tar"), header(&blob_path(&image.layers[0].digest), 1 << 40)).unwrap();
    let said = refused(dir.path(), &["import", "endless.tar"]).await;
    assert!(said.ends_with("its bytes are not those that its name promises"), "{said}");
    assert!(has(dir.path(), &image.layers[0].digest), "it stays");
}
