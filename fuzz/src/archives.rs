//! Archives of images, which come from anywhere.

use larder::orders::{Archive, BLOCK, Entry, Input};
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().build().expect("a runtime");
}

/// What an archive was read as, to its end or to what is wrong with it.
type Outcome = (Vec<(Entry, Vec<u8>)>, Result<(), String>);

/// However it comes in pieces an archive means the same, no file has another size than it says, and no path leads out. The first byte
/// says whether checksums are made right, which nobody guesses, and how long the pieces are.
pub(crate) fn archive(bytes: &[u8]) {
    let Some((&how, bytes)) = bytes.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if how & 1 == 0 {
        for block in bytes.chunks_exact_mut(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0)) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let (files, end) = read(&bytes, bytes.len().max(1));
    let (in_pieces, its_end) = read(&bytes, usize::from(how >> 1) + 1);
    assert_eq!((files.len(), &end), (in_pieces.len(), &its_end));
    // Of the last file, how much was there before an early end depends on the pieces.
    let whole = files.len().saturating_sub(usize::from(end.is_err()));
    assert_eq!(files[..whole], in_pieces[..whole]);
    for (entry, content) in &files {
        for path in [&entry.path].into_iter().chain(&entry.link) {
            assert!(!path.starts_with('/') && path.split('/').all(|part| part != ".."), "{entry:?}");
        }
        assert!(content.len() as u64 == entry.size || end.is_err(), "{entry:?}");
    }
    if let Err(why) = end {
        assert!(why.len() < 1_000 && !why.contains(char::is_control), "{why}");
    }
}

fn read(bytes: &[u8], piece: usize) -> Outcome {
    let pieces: Vec<_> = bytes.chunks(piece).map(|piece| Ok(bytes::Bytes::copy_from_slice(piece))).collect();
    let mut input: Input = Box::pin(futures_util::stream::iter(pieces));
    let (mut archive, mut files) = (Archive::new(&mut input), Vec::new());
    let mut all = async || -> Result<(), String> {
        while let Some(entry) = archive.next().await? {
            files.push((entry, Vec::new()));
            while let Some(more) = archive.data().await? {
                files.last_mut().expect("the one before").1.extend_from_slice(&more);
            }
        }
        Ok(())
    };
    let end = RUNTIME.with(|runtime| runtime.block_on(all()));
    (files, end)
}
