//! From where an archive comes: a file, several that are one, standard input, or a directory that is read as if it were one.
#![expect(clippy::disallowed_methods, reason = "they are files of the user's, not of the cache")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use futures_util::stream;
use indicatif::ProgressBar;
use tokio::sync::mpsc;

use crate::orders::{BLOCK, Input, header, padding};

use super::super::split::{self, numbered};

const PIECE: usize = 256 << 10;
/// How many pieces may wait to be taken.
const AHEAD: usize = 8;
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Who compresses by these has what reads them at hand.
const NOT_READ: [(&[u8], &str); 3] =
    [(&[0x28, 0xb5, 0x2f, 0xfd], "zstd"), (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"), (b"BZh", "bzip2")];
/// More directories in directories than any layout or registry has.
const DEEPEST: usize = 64;

/// The files that one archive was split into, one behind the other.
struct Parts {
    path: PathBuf,
    next: usize,
    current: File,
}

/// How many bytes are to be read, if that is known. Says early what cannot be read at all.
pub(super) fn length(path: &Path) -> io::Result<Option<u64>> {
    if path.as_os_str() == "-" {
        return if io::stdin().is_terminal() { Err(io::Error::other("standard input is a terminal")) } else { Ok(None) };
    }
    if path.is_dir() {
        return Ok(Some(length_of(path, 0)?));
    }
    let whole = split::whole(path).unwrap_or_else(|| path.to_owned());
    match fs::metadata(path) {
        // Who writes into a pipe must not see it closed.
        Ok(meta) if !meta.is_file() => return Ok(None),
        Ok(meta) if whole == path => return open(path).map(|_| Some(meta.len())),
        _ => drop(open(path)?),
    }
    let parts = (0..).map_while(|n| fs::metadata(numbered(&whole, n).ok()?).ok());
    Ok(Some(parts.map(|part| part.len()).sum()))
}

fn length_of(dir: &Path, depth: usize) -> io::Result<u64> {
    let mut length = 0;
    for entry in fs::read_dir(dir)? {
        let (entry, meta) = entry.and_then(|entry| entry.metadata().map(|meta| (entry, meta)))?;
        length += match meta.is_dir() {
            true if is_kept_to_itself(&entry.file_name()) || depth == DEEPEST => 0,
            true => length_of(&entry.path(), depth + 1)?,
            false => meta.len(),
        };
    }
    Ok(length)
}

/// The bytes of the archive. Reading begins when the first of them is wanted. `bar` shows how many were read.
pub(super) fn input(path: PathBuf, bar: ProgressBar) -> Input {
    let mut pieces = None;
    Box::pin(stream::poll_fn(move |cx| {
        let pieces = pieces.get_or_insert_with(|| {
            let (send, pieces) = mpsc::channel(AHEAD);
            let (path, bar) = (path.clone(), bar.clone());
            tokio::task::spawn_blocking(move || {
                if let Err(error) = send_all(&path, &bar, &send) {
                    let _ = send.blocking_send(Err(error));
                }
            });
            pieces
        });
        pieces.poll_recv(cx)
    }))
}

type Sender = mpsc::Sender<io::Result<Bytes>>;

fn send_all(path: &Path, bar: &ProgressBar, send: &Sender) -> io::Result<()> {
    if path.is_dir() {
        directory(path, "", 0, bar, send)?;
        return piece(vec![0; 2 * BLOCK], send);
    }
    let file: Box<dyn Read> = if path.as_os_str() == "-" { Box::new(io::stdin()) } else { open(path)? };
    let mut file = BufReader::with_capacity(PIECE, bar.wrap_read(file));
    let begins = file.fill_buf()?;
    if let Some((_, by)) = NOT_READ.iter().find(|(magic, _)| begins.starts_with(magic)) {
        let file = if path.as_os_str() == "-" { String::new() } else { format!(" {}", path.display()) };
        return Err(io::Error::other(format!("it is compressed by {by}; `{by} -dc{file} | larder import -` reads it")));
    }
    if begins.starts_with(&GZIP) { copy(MultiGzDecoder::new(file), send) } else { copy(file, send) }
}

/// The file; or if it was split, its parts, by the name of all or of the first.
fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let whole = split::whole(path).unwrap_or_else(|| path.to_owned());
    let first = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => File::open(numbered(&whole, 0)?).map_err(|_| error)?,
        Ok(file) if whole == path => return Ok(Box::new(file)),
        other => other?,
    };
    Ok(Box::new(Parts { path: whole, next: 1, current: first }))
}

fn copy(mut file: impl Read, send: &Sender) -> io::Result<()> {
    loop {
        let mut bytes = Vec::with_capacity(PIECE);
        if file.by_ref().take(PIECE as u64).read_to_end(&mut bytes)? == 0 {
            return Ok(());
        }
        piece(bytes, send)?;
    }
}

fn piece(bytes: Vec<u8>, send: &Sender) -> io::Result<()> {
    send.blocking_send(Ok(bytes.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
}

/// What a registry has that is of no use elsewhere.
fn is_kept_to_itself(name: &OsStr) -> bool {
    name == "_layers" || name == "_uploads"
}

/// All regular files of a directory, as an archive would have them. What a registry keeps for itself is left out.
fn directory(dir: &Path, within: &str, depth: usize, bar: &ProgressBar, send: &Sender) -> io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().into_string().map_err(|_| io::Error::other("the name of a file is no text"))?;
        let (kind, path) = (entry.file_type()?, format!("{within}{name}"));
        let is_too_deep = kind.is_dir() && depth == DEEPEST;
        if kind.is_symlink() || is_too_deep {
            let why = if is_too_deep { "lies too deep" } else { "is a link; a directory is read as it is" };
            return Err(io::Error::other(format!("{} {why}", entry.path().display())));
        }
        if kind.is_dir() && !is_kept_to_itself(&entry.file_name()) {
            directory(&entry.path(), &format!("{path}/"), depth + 1, bar, send)?;
        } else if kind.is_file() {
            let file = File::open(entry.path())?;
            let size = file.metadata()?.len();
            piece(header(&path, size), send)?;
            copy(bar.wrap_read(file.take(size)), send)?;
            piece(vec![0; padding(size)], send)?;
        }
    }
    Ok(())
}

// === impl Parts ===

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.current.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let Ok(next) = numbered(&self.path, self.next) else { return Ok(0) };
            self.current = match File::open(&next) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if numbered(&self.path, self.next + 1).is_ok_and(|behind| behind.exists()) {
                        return Err(io::Error::other(format!("{} is missing", next.display())));
                    }
                    return Ok(0);
                }
                other => other?,
            };
            self.next += 1;
        }
    }
}
