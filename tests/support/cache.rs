//! What lies in a cache directory, looked at from outside.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{PATIENCE, TestMirror, images::digest_of};

/// Fails if a file among the blobs of the cache has other bytes than its name promises.
pub fn assert_sound(cache: &Path) {
    for file in files(&cache.join("blobs")) {
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        let digest = digest_of(&fs::read(&file).expect("it can be read"));
        assert_eq!(digest, format!("sha256:{name}"), "{}", file.display());
    }
}

/// Fails if a larder that nobody asks for anything comes to count other bytes than lie on its disk.
pub async fn assert_booked(mirror: &TestMirror) {
    let begun = Instant::now();
    // Files are closed and removed after the last answer.
    while begun.elapsed() < PATIENCE && mirror.used() != on_disk(&mirror.cache_dir()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let cache = mirror.cache_dir();
    assert_eq!(mirror.used(), on_disk(&cache), "{:?} {:?}", files(&cache.join("blobs")), files(&cache.join("partial")));
}

/// What blobs take of the disk, and what will become or was one.
fn on_disk(cache: &Path) -> u64 {
    let blocks = |file: &PathBuf| {
        let Ok(meta) = fs::metadata(file) else { return 0 };
        meta.len().next_multiple_of(4096).max(meta.blocks() * 512)
    };
    ["blobs", "partial", "quarantine"].iter().flat_map(|dir| files(&cache.join(dir))).map(|file| blocks(&file)).sum()
}

/// The file in which the bytes of a blob gather that Docker Hub sends.
pub fn partial_file(cache: &Path, digest: &str) -> PathBuf {
    let name = digest_of(format!("what docker.io has sent of {digest}").as_bytes());
    cache.join("partial").join(name.replace(':', "-"))
}

/// Whether a file that larder has open is this blob, or was while it came from Docker Hub.
pub fn is_of(file: &Path, digest: &str) -> bool {
    let (_, hex) = digest.split_once(':').expect("a digest");
    file.to_string_lossy().ends_with(hex) || file.file_name() == partial_file(Path::new(""), digest).file_name()
}

/// All files below `dir`.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Makes a cache look as if the machine had been restarted since its larder ended.
pub fn reboot(cache: &Path) {
    fs::write(cache.join("lock"), "1 another-boot\n").expect("the lock file can be written");
}
