//! The store under many orders of events: the real one, its threads and its files included.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use shuttle::future::{JoinHandle, block_on, spawn, yield_now};

use super::growing::TAIL;
use super::*;
use crate::oci::Hasher;
use crate::sync::in_many_orders;

/// A block of the file system.
const BLOCK: u64 = 4096;

/// A store of `max_size` in a directory of its own, which goes with it. In memory where there is such a place: a thousand
/// orders sync some ten thousand files.
pub(crate) struct Scratch {
    pub(crate) store: Store,
    dir: tempfile::TempDir,
}

impl Scratch {
    /// On a disk that everyone waits for.
    pub(crate) async fn new(max_size: u64) -> Self {
        Self::with_patience(max_size, Duration::MAX).await
    }

    async fn with_patience(max_size: u64, patience: Duration) -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let dir = tempfile::tempdir_in(parent).unwrap();
        let options = Options {
            dir: dir.path().into(),
            max_size: bytesize::ByteSize(max_size),
            min_free: Floor::Bytes(0),
            patience,
            ..Options::default()
        };
        let store = Store::open(&options, Clock::system(), Metrics::new()).await.unwrap();
        Self { store, dir }
    }

    /// That the books are in order now, whatever goes on.
    fn check(&self) {
        let books = lock(&self.store.0.books);
        assert!(books.used() <= books.budget(), "{:?} of {}", books.gauges(), books.budget());
    }

    /// That the books say what is on the disk, now that nothing goes on.
    pub(crate) async fn check_at_rest(&self) {
        let idle = lock(&self.store.0.books).forget_recent();
        drop(idle);
        // What is left to do in the background takes its turns. A thread must not be in the middle of something when the test
        // ends, as shuttle then drops it there.
        for _ in 0..10_000 {
            let books = lock(&self.store.0.books).gauges();
            let threads_rest = self.store.0.reads.is_at_rest() && self.store.0.writes.is_at_rest();
            if threads_rest && (books.reserved, books.leaving) == (0, 0) {
                break;
            }
            yield_now().await;
        }
        let books = lock(&self.store.0.books).gauges();
        assert_eq!((books.reserved, books.leaving), (0, 0), "{books:?}");
        let blobs = files(&self.dir.path().join("blobs"));
        // Of a file that was left in the middle, also what is set aside behind its end.
        let taken = |meta: Metadata| lru::charge(meta.len()).max(meta.blocks() * 512);
        let charged = |files: &[PathBuf]| files.iter().map(|file| taken(file.metadata().unwrap())).sum::<u64>();
        assert_eq!((books.committed, books.blobs), (charged(&blobs), blobs.len() as u64));
        assert_eq!(books.partial, charged(&files(&self.dir.path().join("partial"))));
        for file in blobs {
            let name = file.file_name().unwrap().to_str().unwrap();
            assert_eq!(Digest::sha256(&std::fs::read(&file).unwrap()).hex(), name);
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let inside = std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    inside.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Bytes that are different everywhere.
pub(crate) fn content(seed: u8, len: u64) -> Bytes {
    let words = (0..len / 8).flat_map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(seed)).to_le_bytes());
    words.collect()
}

/// Brings in `chunks`; the writer is left where they end.
async fn push(writer: &mut BlobWriter, bytes: &Bytes, chunk: usize) {
    push_until(writer, bytes, chunk, |_| false).await;
}

/// Likewise, as long as it goes to the disk: what goes past the cache waits for who reads. Returns whether all of it went there.
async fn push_to_disk(writer: &mut BlobWriter, bytes: &Bytes, chunk: usize) -> bool {
    push_until(writer, bytes, chunk, |writer| writer.bypassed().is_some()).await;
    writer.bypassed().is_none()
}

async fn push_until(writer: &mut BlobWriter, bytes: &Bytes, chunk: usize, ends: impl Fn(&BlobWriter) -> bool) {
    let mut rest = bytes.slice(usize::try_from(writer.accepted()).unwrap()..);
    while !rest.is_empty() && !ends(writer) {
        writer.push(rest.split_to(chunk.min(rest.len())));
        while writer.is_busy() && !ends(writer) {
            writer.progress().await;
        }
    }
}

/// Reads `growth` from `start` and checks all that a reader may rely on. Returns how it ended and where.
async fn follow(growth: Growth, start: u64, blob: Bytes) -> (u64, Option<ReadError>) {
    let size = blob.len() as u64;
    let mut reader = growth.read(start, Some(size));
    loop {
        let at = reader.position();
        match reader.next().await {
            None => return (at, None),
            Some(Err(error)) => return (at, Some(error)),
            Some(Ok(bytes)) => {
                assert!(!bytes.is_empty());
                let end = at + bytes.len() as u64;
                assert_eq!(bytes, blob[usize::try_from(at).unwrap()..usize::try_from(end).unwrap()], "at {at}");
                let verified = growth.0.subscribe().borrow().end == Some(growing::End::Verified);
                assert!(verified || end <= size - TAIL, "the tail is withheld");
            }
        }
    }
}

#[test]
fn readers_of_a_growing_blob_get_all_of_it_and_the_tail_only_when_it_is_verified() {
    in_many_orders(|| {
        block_on(async {
            let scratch = Scratch::new(1 << 20).await;
            let blob = content(1, 3 * TAIL);
            let mut writer = scratch.store.begin(Digest::sha256(&blob)).await;
            writer.expect(blob.len() as u64).await;
            let growth = writer.growth();
            let readers = [0, TAIL, 3 * TAIL - 1].map(|start| spawn(follow(growth.clone(), start, blob.clone())));
            let leaves = spawn(follow(growth.clone(), 0, blob.clone()));
            let verified = spawn(async move { growth.verified().await });
            push(&mut writer, &blob, 1300).await;
            leaves.abort();
            assert_eq!(writer.finish().await, Finished::Kept);
            for reader in readers {
                let (end, error) = reader.await.unwrap();
                assert!(error.is_none() && end == blob.len() as u64);
            }
            assert!(verified.await.unwrap());
            scratch.check_at_rest().await;
        });
    });
}

#[test]
fn readers_of_a_blob_that_is_wrong_or_left_all_end_short_of_the_tail() {
    in_many_orders(|| {
        block_on(async {
            let scratch = Scratch::new(1 << 20).await;
            let (blob, promised) = (content(1, 3 * TAIL), content(2, 3 * TAIL));
            for wrong in [true, false] {
                let mut writer = scratch.store.begin(Digest::sha256(&promised)).await;
                writer.expect(blob.len() as u64).await;
                let growth = writer.growth();
                let readers = [0, 2 * TAIL].map(|start| spawn(follow(growth.clone(), start, blob.clone())));
                let verified = spawn(async move { growth.verified().await });
                push(&mut writer, &blob, 2000).await;
                if wrong {
                    assert_eq!(writer.finish().await, Finished::Mismatch);
                } else {
                    drop(writer);
                }
                for reader in readers {
                    let (end, error) = reader.await.unwrap();
                    assert!(matches!(error, Some(ReadError::Ended)) && end <= 2 * TAIL, "{end}");
                }
                assert!(!verified.await.unwrap());
            }
            scratch.check_at_rest().await;
        });
    });
}

/// A reader who was not given all of `blob` knows how to go on at `at`.
fn assert_lacks_nothing(at: u64, error: Option<ReadError>, blob: &Bytes) {
    match error {
        None => assert_eq!(at, blob.len() as u64),
        Some(ReadError::Lagged(cut)) => {
            assert!(cut.from <= at, "no byte between {at} and {}", cut.from);
            let mut hasher: Hasher = cut.hasher;
            hasher.update(&blob[usize::try_from(cut.from).unwrap()..]);
            assert_eq!(hasher.finish(), Digest::sha256(blob), "the hash goes on from where the bytes do");
        }
        Some(ReadError::Disk(error)) => assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}"),
        Some(ReadError::Ended) => panic!("lost at {at}"),
    }
}

/// Past the cache, in a window of memory: who keeps up gets everything, who falls behind is told where and how to go on.
#[test]
fn readers_of_a_window_of_memory_get_every_byte_or_are_told_where_to_go_on() {
    in_many_orders(|| {
        block_on(async {
            let scratch = Scratch::new(4 * BLOCK).await;
            let blob = content(3, 12 * TAIL);
            let digest = Digest::sha256(&blob);
            let mut writer = scratch.store.begin(digest.clone()).await;
            writer.expect(blob.len() as u64).await;
            assert!(matches!(writer.bypassed(), Some(Bypass::TooLarge)));
            let growth = writer.growth();
            let readers: Vec<JoinHandle<_>> =
                [0, 0, 5 * TAIL].into_iter().map(|start| spawn(follow(growth.clone(), start, blob.clone()))).collect();
            let late = spawn({
                let (growth, blob) = (growth.clone(), blob.clone());
                async move {
                    yield_now().await;
                    yield_now().await;
                    follow(growth, 0, blob).await
                }
            });
            push(&mut writer, &blob, 700).await;
            assert!(matches!(writer.finish().await, Finished::Passed(Bypass::TooLarge)));
            for reader in readers.into_iter().chain([late]) {
                let (at, error) = reader.await.unwrap();
                assert_lacks_nothing(at, error, &blob);
            }
            scratch.check_at_rest().await;
        });
    });
}

/// The bytes of a write that ended just as it was given up were in the file, and came once more from memory.
#[test]
fn readers_of_a_disk_that_is_given_up_at_any_moment_get_every_byte_once_or_are_told_where_to_go_on() {
    in_many_orders(|| {
        block_on(async {
            let scratch = Scratch::with_patience(1 << 20, Duration::ZERO).await;
            let blob = content(6, 6 * TAIL);
            let mut writer = scratch.store.begin(Digest::sha256(&blob)).await;
            writer.expect(blob.len() as u64).await;
            let growth = writer.growth();
            let readers = [0, 0, 3 * TAIL].map(|start| spawn(follow(growth.clone(), start, blob.clone())));
            push(&mut writer, &blob, 1300).await;
            let finished = writer.finish().await;
            assert!(matches!(finished, Finished::Kept | Finished::Passed(Bypass::Disk(_))), "{finished:?}");
            for reader in readers {
                let (at, error) = reader.await.unwrap();
                assert_lacks_nothing(at, error, &blob);
            }
            // Its file is closed by the last who knows of it.
            drop(growth);
            scratch.check_at_rest().await;
        });
    });
}

#[test]
fn what_a_reader_is_about_to_open_is_lent_to_no_writer() {
    in_many_orders(|| {
        block_on(async {
            // Room for one of two.
            let scratch = Arc::new(Scratch::new(2 * 6 * BLOCK).await);
            let (old, new) = (content(0, 4 * BLOCK), content(1, 4 * BLOCK));
            let digest = Digest::sha256(&old);
            let mut writer = scratch.store.begin(digest.clone()).await;
            writer.expect(old.len() as u64).await;
            push(&mut writer, &old, old.len()).await;
            assert_eq!(writer.finish().await, Finished::Kept);
            // Nobody has it open.
            let idle = lock(&scratch.store.0.books).forget_recent();
            drop(idle);
            let reader = {
                let scratch = Arc::clone(&scratch);
                spawn(async move {
                    let held = scratch.store.get_unverified(&digest).await.unwrap();
                    scratch.check();
                    drop(held);
                })
            };
            let mut writer = scratch.store.begin(Digest::sha256(&new)).await;
            writer.expect(new.len() as u64).await;
            scratch.check();
            reader.await.unwrap();
            writer.discard().await;
            scratch.check_at_rest().await;
        });
    });
}

#[test]
fn writers_readers_and_evictions_together_never_exceed_the_budget_and_leave_the_books_right() {
    in_many_orders(|| {
        block_on(async {
            // Room for two of three, and a half.
            let scratch = Arc::new(Scratch::new(2 * 10 * BLOCK).await);
            let blobs: Vec<Bytes> = (0..3).map(|seed| content(seed, 4 * BLOCK)).collect();
            let tasks: Vec<_> = blobs
                .iter()
                .cloned()
                .enumerate()
                .map(|(n, blob)| {
                    let scratch = Arc::clone(&scratch);
                    spawn(async move {
                        let digest = Digest::sha256(&blob);
                        let begin = async || {
                            let left = scratch.store.left_from("docker.io", &digest);
                            scratch.store.begin_from("docker.io", digest.clone(), left).await
                        };
                        let mut writer = begin().await;
                        writer.expect(blob.len() as u64).await;
                        scratch.check();
                        if n == 2 {
                            // This one is cancelled in the middle and taken up again.
                            writer.push(blob.slice(..9000));
                            let _ = futures_util::poll!(Box::pin(writer.progress()));
                            drop(writer);
                            scratch.check();
                            writer = begin().await;
                            writer.expect(blob.len() as u64).await;
                        }
                        // Without room, then or as it comes, or while the file is still written for the one that was cancelled.
                        if !push_to_disk(&mut writer, &blob, 9000).await {
                            writer.discard().await;
                            return false;
                        }
                        scratch.check();
                        let kept = writer.finish().await == Finished::Kept;
                        if let Some(cached) = scratch.store.get_unverified(&digest).await.unwrap() {
                            let mut reader = cached.read(0..blob.len() as u64);
                            let mut at = 0;
                            while let Some(Ok(bytes)) = reader.next().await {
                                assert_eq!(bytes, blob[at..at + bytes.len()]);
                                at += bytes.len();
                                scratch.check();
                            }
                            assert_eq!(at, blob.len(), "an eviction disturbs nobody who reads");
                        }
                        kept
                    })
                })
                .collect();
            let mut kept = 0;
            for task in tasks {
                kept += u8::from(task.await.unwrap());
                scratch.check();
            }
            assert!(kept >= 1);
            scratch.check_at_rest().await;
        });
    });
}
