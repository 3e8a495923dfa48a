//! Where an archive goes. A file has its name only when all of it is on the disk.
//!
//! The disk is waited for once, at the end: meanwhile nobody would listen to the larder that gives out the archive, and it takes an
//! order back when that lasts.
#![expect(
    clippy::disallowed_methods,
    reason = "they are files of the user's, not of the cache, and a command has nothing else to do"
)]

use std::fs::{self, File, TryLockError};
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::oci::{Algorithm, Hasher};
use crate::orders::BLOCK;

use super::super::split::numbered;
use super::directory::Directory;

/// A file that was written: its name, its size in bytes, and its SHA-256 in hex.
pub(super) type Written = (String, u64, String);

pub(super) struct Output {
    to: To,
    /// The largest that a file may become.
    split: u64,
    current: Option<Part>,
    written: Vec<Part>,
}

enum To {
    Stdout,
    /// What is no regular file: a tape, a pipe. It is written as the bytes come.
    Device(PathBuf),
    File(PathBuf),
    Parts(PathBuf),
    Directory(Directory),
}

/// A file that is being written under a name of its own, and locked until it has its name for good. Dropped before that, it is
/// removed.
pub(super) struct Part {
    path: PathBuf,
    temporary: PathBuf,
    /// `None`: standard output, or what is closed until it has its name.
    file: Option<File>,
    hasher: Hasher,
    bytes: u64,
    kept: bool,
}

/// Parts are often meant to be so large, for FAT, which takes a byte less.
const FAT: u64 = 4 << 30;
const MOMENT: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(10);

// === impl Output ===

impl Output {
    pub(super) fn new(path: &Path, split: Option<u64>) -> io::Result<Self> {
        let to = if path.as_os_str() == "-" {
            To::Stdout
        } else if path.is_dir() {
            To::Directory(Directory::new(path)?)
        } else if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(io::Error::other("there is no such directory"));
        } else if fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
            To::Device(path.to_owned())
        } else if split.is_some() {
            To::Parts(path.to_owned())
        } else {
            To::File(path.to_owned())
        };
        if matches!(to, To::Stdout) && io::stdout().is_terminal() {
            return Err(io::Error::other("standard output is a terminal; say where the archive is to go"));
        }
        match (&to, split) {
            (_, Some(0)) => return Err(io::Error::other("files of no size hold nothing")),
            (To::Stdout | To::Device(_) | To::Directory(_), Some(_)) => {
                return Err(io::Error::other("only what goes into a file can be split"));
            }
            _ => {}
        }
        Ok(Self { to, split: split.map_or(u64::MAX, largest), current: None, written: Vec::new() })
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if let To::Directory(directory) = &mut self.to {
                bytes = directory.take(bytes, &mut self.current, &mut self.written)?;
                continue;
            }
            if self.current.as_ref().is_some_and(|part| part.bytes == self.split) {
                self.written.extend(self.current.take());
            }
            let part = match &mut self.current {
                Some(part) => part,
                none => none.insert(match &self.to {
                    To::File(path) => Part::create(path)?,
                    To::Parts(path) => Part::create(&numbered(path, self.written.len())?)?,
                    To::Device(path) => Part::device(path)?,
                    To::Stdout | To::Directory(_) => Part::stdout(),
                }),
            };
            let room = usize::try_from(self.split - part.bytes).unwrap_or(usize::MAX).min(bytes.len());
            part.write(&bytes[..room])?;
            bytes = &bytes[room..];
        }
        Ok(())
    }

    /// All bytes have come: gives the files their names.
    pub(super) fn finish(mut self) -> io::Result<Vec<Written>> {
        self.written.extend(self.current.take());
        self.written.iter().try_for_each(Part::sync)?;
        match &self.to {
            // Those of a directory mean nothing before its index is there, which has come first.
            To::Directory(directory) => {
                directory.sync()?;
                self.written.reverse();
            }
            // Behind the last one there is not to be what an earlier export has left, which would be taken for more of it.
            To::Parts(path) => {
                for n in self.written.len().. {
                    let Ok(path) = numbered(path, n) else { break };
                    let partial = Part::create(&path).map(drop);
                    match (fs::remove_file(&path), partial) {
                        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => break,
                        (removed, partial) => removed.and(partial)?,
                    }
                }
            }
            To::Stdout | To::Device(_) | To::File(_) => {}
        }
        let written = self.written.into_iter().map(Part::publish).collect::<io::Result<_>>()?;
        if let To::Directory(directory) = self.to {
            directory.keep();
        }
        Ok(written)
    }
}

fn largest(split: u64) -> u64 {
    if split == FAT { FAT - BLOCK as u64 } else { split }
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })?.sync_all()
}

// === impl Part ===

impl Part {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let shown = path;
        // What a link leads to is what is meant, wherever that lies.
        let target = if path.is_symlink() { Some(fs::canonicalize(path)?) } else { None };
        let path = target.as_deref().unwrap_or(path);
        if fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
            return Err(io::Error::other(format!("{} is no regular file", shown.display())));
        }
        // Always the same one, so that what was killed is written over, and does not lie there for ever.
        let temporary = temporary(path).ok_or_else(|| io::Error::other("it is no name of a file"))?;
        let file = File::options().write(true).create(true).truncate(false).open(&temporary)?;
        lock(&file).map_err(|_| io::Error::other("another export writes this file"))?;
        file.set_len(0)?;
        let mut part = Self::new(path, Some(file));
        (part.temporary, part.kept) = (temporary, false);
        Ok(part)
    }

    fn device(path: &Path) -> io::Result<Self> {
        Ok(Self::new(path, Some(File::options().write(true).open(path)?)))
    }

    fn stdout() -> Self {
        Self::new(Path::new("-"), None)
    }

    /// It has its name already.
    fn new(path: &Path, file: Option<File>) -> Self {
        let (path, hasher) = (path.to_owned(), Hasher::new(Algorithm::Sha256));
        Self { temporary: path.clone(), path, file, hasher, bytes: 0, kept: true }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes)?,
            None => io::stdout().write_all(bytes)?,
        }
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// All of it is written. From now on another export may write a file of this name.
    pub(super) fn close(&mut self) {
        self.file = None;
    }

    /// All of it is on the disk.
    fn sync(&self) -> io::Result<()> {
        match &self.file {
            None if self.kept => io::stdout().flush(),
            None => File::open(&self.temporary)?.sync_all(),
            Some(file) => match file.sync_all() {
                // A pipe has no disk.
                Err(error) if self.kept && error.kind() == io::ErrorKind::InvalidInput => Ok(()),
                synced => synced,
            },
        }
    }

    fn publish(mut self) -> io::Result<Written> {
        if !self.kept {
            fs::rename(&self.temporary, &self.path)?;
            self.kept = true;
            sync_dir(self.path.parent().unwrap_or(Path::new("")))?;
        }
        Ok((self.path.display().to_string(), self.bytes, self.hasher.clone().finish().hex()))
    }
}

/// Locks a file that another export may write. Who was killed just now holds it for a moment still.
pub(super) fn lock(file: &File) -> Result<(), TryLockError> {
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if since.elapsed() < MOMENT => thread::sleep(AGAIN),
            locked => return locked,
        }
    }
}

/// What a file is called until it is whole.
pub(super) fn temporary(path: &Path) -> Option<PathBuf> {
    Some(path.with_file_name(format!(".{}.partial", path.file_name()?.to_string_lossy())))
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The first one gave its name, and the checksum of what it had written, to what the second had begun.
    #[test]
    fn nobody_else_writes_a_part_that_is_written_before_it_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.tar");
        let mut one = Output::new(&path, Some(4)).unwrap();
        one.write(b"0123456789").unwrap();
        let mut other = Output::new(&path, Some(4)).unwrap();
        assert_eq!(other.write(b"abcdef").unwrap_err().to_string(), "another export writes this file");
        drop(other);
        let written: Vec<u64> = one.finish().unwrap().into_iter().map(|(_, bytes, _)| bytes).collect();
        assert_eq!((written, fs::read(dir.path().join("b.tar.001")).unwrap()), (vec![4, 4, 2], b"4567".to_vec()));
    }

    #[test]
    fn what_an_earlier_export_left_behind_the_last_part_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.tar");
        let export = |bytes: &[u8]| {
            let mut output = Output::new(&path, Some(4)).unwrap();
            output.write(bytes).unwrap();
            output.finish().unwrap();
        };
        export(b"0123456789");
        fs::write(dir.path().join(".b.tar.001.partial"), "of one that was killed").unwrap();
        export(b"0123");
        assert_eq!(names(dir.path()), ["b.tar.000"]);
        let mut many = Output::new(&path, Some(1)).unwrap();
        let why = many.write(&[0; 1001]).unwrap_err().to_string();
        assert!(why.contains("larger files"), "{why}");
        drop(many);
        assert_eq!(names(dir.path()), ["b.tar.000"]);
    }

    #[test]
    fn parts_of_four_gibibytes_fit_where_files_may_be_a_byte_smaller() {
        assert_eq!([largest(FAT), largest(FAT - 1), largest(FAT + 1)], [FAT - 512, FAT - 1, FAT + 1]);
    }

    /// A file took the place of the device, or of the link to another disk.
    #[test]
    fn what_is_no_file_stays_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let [stick, link, pipe] = ["stick", "b.tar", "pipe"].map(|name| dir.path().join(name));
        fs::create_dir(&stick).unwrap();
        fs::write(stick.join("on.tar"), "old").unwrap();
        std::os::unix::fs::symlink("stick/on.tar", &link).unwrap();
        let mut output = Output::new(&link, None).unwrap();
        output.write(b"new").unwrap();
        assert_eq!(fs::read(&link).unwrap(), b"old");
        output.finish().unwrap();
        assert!(link.is_symlink() && fs::read(stick.join("on.tar")).unwrap() == b"new");
        assert_eq!(names(&stick), ["on.tar"]);
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0).unwrap();
        let from = pipe.clone();
        let reader = std::thread::spawn(move || fs::read(from).unwrap());
        let mut output = Output::new(&pipe, None).unwrap();
        output.write(b"bytes").unwrap();
        output.finish().unwrap();
        assert_eq!(reader.join().unwrap(), b"bytes");
        assert_eq!(names(dir.path()), ["b.tar", "pipe", "stick"]);
    }
}
