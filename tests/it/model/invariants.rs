//! What holds after each step, whatever has happened.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::world::World;
use crate::support::{PATIENCE, digest_of, get, partial_file};

/// What larder says that it takes of the disk, in bytes.
#[derive(Debug)]
pub(super) struct Books {
    committed: u64,
    partial: u64,
    reserved: u64,
    quarantined: u64,
    leaving: u64,
}

pub(super) async fn check(world: &mut World) {
    let dir = world.mirror().cache_dir();
    if world.is_quiet() {
        quiet(world).await;
        if !world.disk_errs && world.damaged.is_empty() {
            check_books(world, &dir).await;
        }
        check_partials(world, &dir);
    } else {
        read_books(world).await;
    }
    check_blobs(world, &dir);
}

/// Waits until no fill goes on and nothing is on its way out.
pub(super) async fn quiet(world: &World) -> Books {
    let began = Instant::now();
    loop {
        let books = read_books(world).await;
        if (books.reserved, books.leaving) == (0, 0) {
            return books;
        }
        assert!(began.elapsed() < PATIENCE, "something never ends: {books:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What larder takes never exceeds what it may.
async fn read_books(world: &World) -> Books {
    let page = get(world.mirror().admin_url("/metrics")).await.expect(200).text();
    let bytes = |what: &str| -> u64 {
        let name = format!("larder_cache_bytes{{for=\"{what}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)).and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let books = Books {
        committed: bytes("committed"),
        partial: bytes("partial"),
        reserved: bytes("reserved"),
        quarantined: bytes("quarantined"),
        leaving: bytes("leaving"),
    };
    let used = books.committed + books.partial + books.reserved + books.quarantined + books.leaving;
    assert!(used <= world.max_size, "{books:?}");
    books
}

/// At rest, what larder takes is what is there, and what it holds can be opened. What an answer has left behind, such as a
/// manifest that is still to be kept, may take its moment.
async fn check_books(world: &World, dir: &Path) {
    let began = Instant::now();
    while let Err(wrong) = compare_books(world, dir, &quiet(world).await) {
        assert!(began.elapsed() < PATIENCE, "{wrong}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn compare_books(world: &World, dir: &Path, books: &Books) -> Result<(), String> {
    let sum = |name: &str, of: fn(&Path) -> u64| files(&dir.join(name)).iter().map(|path| of(path)).sum::<u64>();
    let (committed, quarantined, partial) = (sum("blobs", charge), sum("quarantine", charge), sum("partial", charge));
    // A partial file may have space before it has bytes.
    let right = (books.committed, books.quarantined) == (committed, quarantined)
        && books.partial >= partial
        && (books.partial > 0) == (partial + sum("partial", allocated) > 0);
    if !right {
        let listing = listing(dir);
        return Err(format!("{books:?}, but {committed}, {partial} and {quarantined} in the directory: {listing:?}"));
    }
    match world.digests().find(|digest| world.mirror().holds(digest) != blob_file(dir, digest).exists()) {
        None => Ok(()),
        Some(digest) => Err(format!("{digest} is held or there, but not both")),
    }
}

/// What is visible hashes to its name.
fn check_blobs(world: &mut World, dir: &Path) {
    let is_there = |digest: &String| world.mirror().holds(digest) || blob_file(dir, digest).exists();
    let gone: Vec<String> = world.damaged.iter().filter(|digest| !is_there(digest)).cloned().collect();
    for digest in gone {
        world.damaged.remove(&digest);
        world.flipped.remove(&digest);
    }
    for path in files(&dir.join("blobs")) {
        let digest = format!("sha256:{}", path.file_name().unwrap().to_string_lossy());
        let right = digest_of(&fs::read(&path).unwrap_or_default()) == digest;
        // It may have gone meanwhile.
        assert!(right || !path.exists() || world.damaged.contains(&digest), "{digest} is visible and wrong");
        if right {
            world.damaged.remove(&digest);
            world.flipped.remove(&digest);
        }
    }
}

/// What is left of transfers can be gone on with.
fn check_partials(world: &World, dir: &Path) {
    for path in files(&dir.join("partial")) {
        let mut contents = world.contents();
        // A manifest, which comes whole, gathers under its own digest.
        let gathers = |digest: &str| path == partial_file(dir, digest) || path.ends_with(digest.replace(':', "-"));
        let content = contents.find_map(|(digest, content)| gathers(digest).then_some(content));
        let content = content.unwrap_or_else(|| panic!("{} is of nothing", path.display()));
        let begun = fs::read(&path).unwrap_or_default();
        assert!(world.ever_corrupt || content.starts_with(&begun), "{} is no beginning of its blob", path.display());
    }
}

// === the directory ===

pub(super) fn blob_file(dir: &Path, digest: &str) -> PathBuf {
    let (algorithm, hex) = digest.split_once(':').unwrap();
    dir.join("blobs").join(algorithm).join(&hex[..2]).join(hex)
}

/// The files of blobs that are held and right.
pub(super) fn sound_blobs(dir: &Path, is_held: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let sound = |path: &PathBuf| {
        let digest = format!("sha256:{}", path.file_name().unwrap().to_string_lossy());
        is_held(&digest) && digest_of(&fs::read(path).unwrap_or_default()) == digest
    };
    files(&dir.join("blobs")).into_iter().filter(sound).collect()
}

/// Every file of blobs, whole or not, and its length.
pub(super) fn listing(dir: &Path) -> Vec<(PathBuf, u64)> {
    let both = ["blobs", "partial"].into_iter().flat_map(|name| files(&dir.join(name)));
    let mut listing: Vec<_> = both.map(|path| (path.clone(), fs::metadata(path).map_or(0, |meta| meta.len()))).collect();
    listing.sort();
    listing
}

/// What the bytes of a file take of the disk: whole blocks.
fn charge(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len().next_multiple_of(4096))
}

/// What a file takes of it now.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
