//! What `larder export` writes to: too small, broken off in the middle, of no use to wait for. What has the name of an archive is one.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use larder::store::Operation;
use larder::store::faults::Fault;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Image, PutImage, Registry, TestMirror, assert_booked, entries, is_of, larder, refused, told, until};

/// An order that is kept within this limit of the kernel's. How it ended, and what it said.
async fn limited(dir: &Path, limit: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new("prlimit");
    command.args([limit, env!("CARGO_BIN_EXE_larder")]).args(arguments).env_clear().current_dir(dir);
    command.args(["--set", &format!("cache.dir={}", dir.join("cache").display())]);
    let ended = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
}

/// A larder with one image, and an empty directory to export to.
async fn with_image(layers: &[usize]) -> (TestMirror, PutImage) {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(layers).put(&upstream, "library/app", "v1");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    fs::create_dir(mirror.dir().join("layout")).unwrap();
    (mirror, image)
}

/// What lies in a directory, but for the cache and what keeps it.
fn left(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.contains("out") || name.contains("oci") || name.contains("json") || name.contains("blobs"));
    names.sort();
    names
}

fn assert_layout(dir: &Path, archive: &[u8]) {
    for (name, bytes) in entries(archive) {
        assert!(fs::read(dir.join(&name)).unwrap() == bytes, "{name}");
    }
    assert_eq!(left(dir), ["blobs", "index.json", "manifest.json", "oci-layout"]);
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// The kernel ends who writes beyond the largest file that he may write, unless told otherwise; and of a directory that did not take
/// all of it, what was there stayed, so that it was never empty again.
#[tokio::test]
async fn where_no_more_can_be_written_nothing_stays_and_the_next_export_is_whole() {
    let (mirror, _) = with_image(&[700_000, 700_000, 900_000]).await;
    told(mirror.dir(), &["export", "app:v1", "-o", "whole.tar"]).await;
    let whole = fs::read(mirror.dir().join("whole.tar")).unwrap();
    let export = async |dir: &Path| {
        for (arguments, says) in [
            (&["-o", "out.tar"][..], "out.tar: File too large (os error 27); --split 4GiB writes several files"),
            (&["-o", "out.tar", "--split", "800001B"], "out.tar: File too large (os error 27)"),
            (&["-o", "layout"], "layout: File too large (os error 27); --split 4GiB writes several files"),
        ] {
            let export = [&["export", "app:v1"], arguments].concat();
            let limit = if arguments[1] == "layout" { "--fsize=800000" } else { "--fsize=1000000" };
            let limit = if arguments.len() > 2 { "--fsize=800000" } else { limit };
            let (code, said) = limited(dir, limit, &export).await;
            assert_eq!((code, said), (Some(1), format!("larder: {says}\n")), "{arguments:?}");
            assert_eq!((left(dir), left(&dir.join("layout"))), (vec!["layout".into()], vec![]), "{arguments:?}");
            told(dir, &export).await;
            if arguments[1] == "layout" {
                assert_layout(&dir.join("layout"), &whole);
                fs::remove_dir_all(dir.join("layout")).unwrap();
                fs::create_dir(dir.join("layout")).unwrap();
            } else {
                let parts: Vec<String> = left(dir).into_iter().filter(|name| name.starts_with("out")).collect();
                let bytes: Vec<u8> = parts.iter().flat_map(|name| fs::read(dir.join(name)).unwrap()).collect();
                assert!(bytes == whole, "{arguments:?}");
                parts.iter().for_each(|name| fs::remove_file(dir.join(name)).unwrap());
            }
        }
    };
    export(mirror.dir()).await;
    assert_booked(&mirror).await;
    let mirror = mirror.stop().await;
    export(mirror.dir()).await;
    assert_booked(&mirror.start().await).await;
}

#[tokio::test]
async fn a_device_that_is_full_and_a_directory_that_is_not_there_are_told_of_in_a_line() {
    let (mirror, _) = with_image(&[70_000]).await;
    let said = refused(mirror.dir(), &["export", "app:v1", "-o", "/dev/full"]).await;
    assert_eq!(said, "/dev/full: No space left on device (os error 28)");
    // A file had been written first.
    let said = refused(mirror.dir(), &["export", "app:v1", "-o", "out/"]).await;
    assert_eq!((said.as_str(), left(mirror.dir())), ("out/: there is no such directory", vec!["layout".into()]));
}

#[tokio::test]
async fn a_directory_takes_an_export_of_more_blobs_than_a_process_may_have_files_open() {
    let (mirror, _) = with_image(&[1_000; 120]).await;
    told(mirror.dir(), &["export", "app:v1", "-o", "whole.tar"]).await;
    let ended = limited(mirror.dir(), "--nofile=64", &["export", "app:v1", "-o", "layout"]).await;
    assert_eq!(ended, (Some(0), String::new()));
    assert_layout(&mirror.dir().join("layout"), &fs::read(mirror.dir().join("whole.tar")).unwrap());
}

/// An order that was killed could not be given again, as the directory was not empty any more.
#[tokio::test]
async fn a_directory_that_an_export_has_left_in_the_middle_takes_the_next_one() {
    let (mirror, image) = with_image(&[3_000_000]).await;
    let layout = mirror.dir().join("layout");
    told(mirror.dir(), &["export", "app:v1", "-o", "whole.tar"]).await;
    let whole = fs::read(mirror.dir().join("whole.tar")).unwrap();
    let begun = async || {
        let digest = image.layers[0].digest.clone();
        let reads = |operation| matches!(operation, Operation::Read | Operation::ReadCached);
        mirror.faults().each(move |operation, path| reads(operation) && is_of(path, &digest), Fault::Hang);
        let export = larder(mirror.dir(), &["export", "app:v1", "-o", "layout"]).spawn().unwrap();
        let blobs = layout.join("blobs/sha256");
        until("a blob is begun", || fs::read_dir(&blobs).is_ok_and(|mut entries| entries.next().is_some())).await;
        export
    };
    let mut export = begun().await;
    let said = refused(mirror.dir(), &["export", "app:v1", "-o", "layout"]).await;
    assert_eq!(said, "layout: another export writes into this directory");
    signal(&export, Signal::INT);
    assert_eq!(export.wait().unwrap().code(), Some(130));
    assert_eq!(left(&layout), [""; 0]);
    mirror.faults().heal();

    let mut export = begun().await;
    // Who is killed holds what it had locked until the kernel is done with it, and the next one may be quicker.
    let mark = File::open(layout.join(".oci-layout.partial")).unwrap();
    export.kill().unwrap();
    export.wait().unwrap();
    mirror.faults().heal();
    assert_eq!(left(&layout), [".index.json.partial", ".manifest.json.partial", ".oci-layout.partial", "blobs"]);
    // Killed between the first and the last that gets its name.
    fs::rename(layout.join(".index.json.partial"), layout.join("index.json")).unwrap();
    fs::write(layout.join("blobs/of-another-image"), "").unwrap();
    mark.lock().unwrap();
    let mut again = larder(mirror.dir(), &["export", "app:v1", "-o", "layout"]).spawn().unwrap();
    let since = Instant::now();
    until("it has found that locked", || since.elapsed() > Duration::from_millis(300)).await;
    drop(mark);
    assert!(tokio::task::spawn_blocking(move || again.wait()).await.unwrap().unwrap().success());
    assert_layout(&layout, &whole);
    assert!(!layout.join("blobs/of-another-image").exists());
    // What has something else in it is nobody's to empty.
    fs::rename(layout.join("oci-layout"), layout.join(".oci-layout.partial")).unwrap();
    fs::write(layout.join("mine"), "").unwrap();
    let said = refused(mirror.dir(), &["export", "app:v1", "-o", "layout"]).await;
    assert_eq!(said, "layout: the directory is not empty");
    assert_eq!(fs::read_dir(layout.join("blobs/sha256")).unwrap().count(), 3);
}

/// It waited for ever for whoever should read the pipe, and only `kill -9` ended it.
#[tokio::test]
async fn who_asks_twice_does_not_wait_for_a_pipe_that_nobody_reads() {
    let (mirror, _) = with_image(&[3_000_000]).await;
    let path = mirror.dir().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0)
        .unwrap();
    let pipe = File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(&path).unwrap();
    let mut export = larder(mirror.dir(), &["export", "app:v1", "-o", "pipe"]).spawn().unwrap();
    let before = Cell::new(0);
    until("it waits", || {
        let now = rustix::io::ioctl_fionread(&pipe).unwrap();
        before.replace(now) == now && now > 30_000
    })
    .await;
    let pid = Pid::from_child(&export);
    let ended = tokio::task::spawn_blocking(move || export.wait().unwrap());
    until("it ends", || {
        let _ = kill_process(pid, Signal::INT);
        ended.is_finished()
    })
    .await;
    assert_eq!(ended.await.unwrap().code(), Some(130));
}
