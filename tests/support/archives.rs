//! Archives as `larder import` takes them, made by hand; and the commands that read and write them, as processes of their own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use larder::orders::{header, padding};

use super::until;

/// The files of a plain archive, in its order.
pub fn entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut at) = (Vec::new(), 0);
    let text = |field: &[u8]| String::from_utf8(field.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap();
    while archive[at] != 0 {
        let header = &archive[at..at + 512];
        assert_eq!((text(&header[108..116]), text(&header[136..148])), ("0000000".into(), "00000000000".into()));
        let size = usize::from_str_radix(&text(&header[124..136]), 8).unwrap();
        found.push((text(&header[..100]), archive[at + 512..at + 512 + size].to_vec()));
        at += 512 + size.next_multiple_of(512);
    }
    assert!(archive.len() == at + 1024 && archive[at..].iter().all(|byte| *byte == 0));
    found
}

/// An archive of these files.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (path, bytes) in files {
        archive.extend(header(path, bytes.len() as u64));
        archive.extend_from_slice(bytes);
        archive.resize(archive.len() + padding(bytes.len() as u64), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// A header, changed, and with a checksum that is right again.
pub fn changed(path: &str, size: u64, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut header = header(path, size);
    change(&mut header);
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Where a blob lies in an archive.
pub fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// A command on the cache in `dir`, that reads from a pipe and whose words nobody hears.
pub fn larder(dir: &Path, arguments: &[&str]) -> Command {
    // Who runs the tests in the background has them ignore Ctrl-C, and so would what they start.
    let mut larder = Command::new("/usr/bin/env");
    larder
        .args(["--default-signal=INT", env!("CARGO_BIN_EXE_larder")])
        .args(arguments)
        .args(["--set", &format!("cache.dir={}", dir.join("cache").display())])
        .env_clear()
        .current_dir(dir);
    larder.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    larder
}

/// Waits until so many bytes of a blob have come into a cache.
pub async fn coming(cache: &Path, digest: &str, bytes: u64) {
    let file = cache.join("partial").join(digest.replace(':', "-"));
    until("its bytes come", || fs::metadata(&file).is_ok_and(|meta| meta.len() >= bytes)).await;
}
