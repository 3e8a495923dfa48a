//! What an operator does with larder's commands, and what comes of it.

use std::path::Path;

use super::{Ended, Process, PutImage, get};

/// Runs a command that is to end well; returns what it says.
pub async fn told(dir: &Path, arguments: &[&str]) -> String {
    let Ended { status, stdout, log } = Process::order(dir, arguments, &[]).await;
    assert!(status.success(), "{arguments:?}: {log}");
    stdout
}

/// Runs a command that is to fail; returns the one line that says why.
pub async fn refused(dir: &Path, arguments: &[&str]) -> String {
    let Ended { status, stdout, log } = Process::order(dir, arguments, &[]).await;
    assert_eq!((status.code(), log.lines().count()), (Some(1), 1), "{arguments:?}: {stdout}{log}");
    log.trim_end().strip_prefix("larder: ").unwrap_or_else(|| panic!("{log}")).to_owned()
}

/// A larder that asks nobody, on the cache in `dir`.
pub fn sealed(dir: &Path) -> Process {
    Process::start(dir, &["mirror.offline=true"], &[])
}

/// All of an image can be had.
pub async fn assert_whole(larder: &Process, image: &PutImage) {
    assert_eq!(get(larder.url(&image.manifest_path())).await.expect(200).body, image.manifest);
    for blob in image.blobs() {
        assert!(get(larder.url(&image.blob_path(blob))).await.expect(200).body == blob.bytes);
    }
}
