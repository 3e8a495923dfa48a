//! Commands beside a larder, where one of the two fails the other.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use larder::store::Operation;
use larder::store::faults::Fault;
use rustix::io::Errno;

use crate::support::{Image, Registry, TestMirror, archive, assert_whole, blob_path, coming, larder, refused, sealed, told};

const MIB: usize = 1 << 20;

/// An archive with one image.
async fn bundle(dir: &Path, seed: u64, layers: &[usize]) -> (crate::support::PutImage, Vec<u8>) {
    let upstream = Registry::start().await;
    let image = Image::new(seed).layers(layers).put(&upstream, "library/app", "v1");
    let outside = TestMirror::of(&upstream).await;
    assert_eq!(outside.warm("app:v1", &[]).await.failed, []);
    let path = dir.join("bundle.tar");
    told(outside.dir(), &["export", "app:v1", "-o", path.to_str().unwrap()]).await;
    (image, fs::read(path).unwrap())
}

#[tokio::test]
async fn an_archive_that_cannot_be_read_is_what_is_said_to_be_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (_, bundle) = bundle(dir.path(), 1, &[300_000]).await;
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&bundle).unwrap();
    let gz = gz.finish().unwrap();
    fs::write(dir.path().join("torn.tar.gz"), &gz[..gz.len() / 2]).unwrap();
    let larder = sealed(dir.path());
    let said = refused(dir.path(), &["import", "torn.tar.gz"]).await;
    assert!(said.starts_with("the archive ") && said.contains("cannot be read: "), "{said}");
    assert!(!said.contains("the larder that serves"), "{said}");
    assert!(larder.terminate().status.success());
    for n in [0, 2] {
        fs::write(dir.path().join(format!("split.tar.{n:03}")), &bundle[n * 1000..n * 1000 + 1000]).unwrap();
    }
    let said = refused(dir.path(), &["import", "split.tar.000"]).await;
    assert!(said.ends_with("split.tar.001 is missing"), "{said}");
    fs::create_dir(dir.path().join("layout")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("layout/index.json")).unwrap();
    let said = refused(dir.path(), &["import", "layout"]).await;
    assert!(said.ends_with("layout/index.json is a link; a directory is read as it is"), "{said}");
}

/// A command that says something to nobody had panicked, with the cache open.
#[tokio::test]
async fn nobody_need_hear_what_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut pull = larder(dir.path(), &["pull", "evil.example/x"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(pull.stderr.take());
    assert_eq!(pull.wait().unwrap().code(), Some(1));
    assert!(dir.path().join("cache/clean").exists());
}

/// That a blob is there is not said while its name may be gone with the power.
#[tokio::test]
async fn an_image_whose_names_are_not_on_the_disk_is_not_said_to_be_here() {
    let mirror = TestMirror::builder().set("mirror.offline = true").start().await;
    bundle(mirror.dir(), 2, &[300_000]).await;
    let of_blobs = |operation: Operation, path: &Path| {
        operation == Operation::SyncDir && path.parent().is_some_and(|dir| dir.ends_with("blobs/sha256"))
    };
    mirror.faults().each(of_blobs, Fault::Errno(Errno::IO.raw_os_error()));
    let said = refused(mirror.dir(), &["import", "bundle.tar"]).await;
    assert!(said.starts_with("docker.io/library/app:v1: it is"), "{said}");
    assert!(said.contains("until larder ends, and not beyond: "), "{said}");
    mirror.faults().heal();
    let said = told(mirror.dir(), &["import", "bundle.tar"]).await;
    assert!(said.ends_with("was here already, pinned\n"), "{said}");
}

#[tokio::test]
async fn who_comes_when_too_many_orders_are_carried_out_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let _larder = sealed(dir.path());
    let busy: Vec<UnixStream> = (0..32).map(|_| UnixStream::connect(dir.path().join("cache/socket")).unwrap()).collect();
    let said = refused(dir.path(), &["ls"]).await;
    assert!(said.ends_with("carries out 32 orders already; give this one again when some of them have ended"), "{said}");
    drop(busy);
    crate::support::until("there is room again", || larder(dir.path(), &["ls"]).status().unwrap().success()).await;
}

/// Nobody is asked by TLS, and still no command worked in a system without certificates.
#[tokio::test]
async fn a_command_reaches_the_larder_beside_it_where_the_system_trusts_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let beside = sealed(dir.path());
    let url = beside.url("");
    for arguments in [&["ls"][..], &["health", "--url", &url]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(arguments).env("SSL_CERT_FILE", "/nowhere").env("SSL_CERT_DIR", "/nowhere");
        if arguments[0] == "ls" {
            command.args(["--set", &format!("cache.dir={}", dir.path().join("cache").display())]);
        }
        let ended = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
    }
}

/// It had waited for a minute, and then refused all of the archive.
#[tokio::test]
async fn what_another_brings_just_now_is_waited_for_and_brought_if_that_fails() {
    let dir = tempfile::tempdir().unwrap();
    let (image, bundle) = bundle(dir.path(), 3, &[3 * MIB]).await;
    let larder_here = sealed(dir.path());
    let mut one = larder(dir.path(), &["import", "-"]).spawn().unwrap();
    one.stdin.as_mut().unwrap().write_all(&bundle[..2 * MIB]).unwrap();
    coming(&dir.path().join("cache"), &image.layers[0].digest, MIB as u64).await;
    let mut other = larder(dir.path(), &["import", "bundle.tar"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = std::io::BufReader::new(other.stderr.take().unwrap());
    let waits = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        line
    });
    assert_eq!(waits.await.unwrap(), format!("larder: {} is being brought by another just now\n", image.layers[0].digest));
    one.kill().unwrap();
    one.wait().unwrap();
    let ended = tokio::task::spawn_blocking(move || other.wait().unwrap().success());
    assert!(ended.await.unwrap());
    assert_whole(&larder_here, &image).await;
}

/// Each value takes many times its length.
#[tokio::test]
async fn a_list_of_images_of_millions_of_values_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob_path(&crate::support::digest_of(b"x"));
    let list = format!("{{\"manifests\":[{}0]}}", "0,".repeat(400_000));
    for name in ["index.json", "manifest.json"] {
        fs::write(dir.path().join("bad.tar"), archive(&[(&blob, b"x"), (name, list.as_bytes())])).unwrap();
        let said = refused(dir.path(), &["import", "bad.tar"]).await;
        assert!(said.ends_with(&format!("its {name} has more than 300000 values")), "{said}");
    }
}
