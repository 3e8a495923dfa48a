//! Where an archive goes. A file has its name only when all of it is on the disk.
#![expect(clippy::disallowed_methods, reason = "they are files of the user's, not of the cache")]

use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use crate::oci::{Algorithm, Hasher};
use crate::orders::{BLOCK, own_header};

use super::super::split::numbered;

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
struct Part {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<File>,
    hasher: Hasher,
    bytes: u64,
    kept: bool,
}

/// The files of an archive, each by itself.
struct Directory {
    path: PathBuf,
    /// What of a header has come.
    header: Vec<u8>,
    /// How much of the current file is still to come, and of the zeros behind it.
    missing: u64,
    padding: u64,
}

// === impl Output ===

impl Output {
    pub(super) fn new(path: &Path, split: Option<u64>) -> io::Result<Self> {
        let to = if path.as_os_str() == "-" {
            To::Stdout
        } else if path.is_dir() {
            if fs::read_dir(path)?.next().is_some() {
                return Err(io::Error::other("the directory is not empty"));
            }
            To::Directory(Directory { path: path.to_owned(), header: Vec::new(), missing: 0, padding: 0 })
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
        Ok(Self { to, split: split.unwrap_or(u64::MAX), current: None, written: Vec::new() })
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if let To::Directory(directory) = &mut self.to {
                bytes = directory.take(bytes, &mut self.current, &mut self.written)?;
                continue;
            }
            if self.current.as_ref().is_some_and(|part| part.bytes == self.split)
                && let Some(part) = self.current.take()
            {
                self.written.push(part.closed()?);
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
        if let Some(part) = self.current.take() {
            self.written.push(part.closed()?);
        }
        let mut written = Vec::new();
        match &self.to {
            // Those of a directory mean nothing before its index is there, which has come first.
            To::Directory(directory) => {
                sync_dir(&directory.path.join("blobs"))?;
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
        for part in self.written {
            written.push(part.publish()?);
        }
        Ok(written)
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })?.sync_all()
}

// === impl Part ===

impl Part {
    fn create(path: &Path) -> io::Result<Self> {
        let shown = path;
        // What a link leads to is what is meant, wherever that lies.
        let target = if path.is_symlink() { Some(fs::canonicalize(path)?) } else { None };
        let path = target.as_deref().unwrap_or(path);
        if fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
            return Err(io::Error::other(format!("{} is no regular file", shown.display())));
        }
        let name = path.file_name().ok_or_else(|| io::Error::other("it is no name of a file"))?.to_string_lossy().into_owned();
        // Always the same one, so that what was killed is written over, and does not lie there for ever.
        let temporary = path.with_file_name(format!(".{name}.partial"));
        let file = File::options().write(true).create(true).truncate(false).open(&temporary)?;
        file.try_lock().map_err(|_| io::Error::other("another export writes this file"))?;
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

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes)?,
            None => io::stdout().write_all(bytes)?,
        }
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// All of it is on the disk.
    fn closed(self) -> io::Result<Self> {
        match &self.file {
            None => io::stdout().flush()?,
            Some(file) => match file.sync_all() {
                // A pipe has no disk.
                Err(error) if self.kept && error.kind() == io::ErrorKind::InvalidInput => {}
                synced => synced?,
            },
        }
        Ok(self)
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

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

// === impl Directory ===

impl Directory {
    /// Takes some of `bytes` and returns the rest. They are larder's own: names are short and of regular files.
    fn take<'a>(&mut self, bytes: &'a [u8], current: &mut Option<Part>, written: &mut Vec<Part>) -> io::Result<&'a [u8]> {
        let at_most = |most: u64| usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
        if self.missing > 0 {
            let (taken, rest) = bytes.split_at(at_most(self.missing));
            if let Some(part) = current {
                part.write(taken)?;
            }
            self.missing -= taken.len() as u64;
            self.close(current, written)?;
            return Ok(rest);
        }
        if self.padding > 0 {
            let taken = at_most(self.padding);
            self.padding -= taken as u64;
            return Ok(&bytes[taken..]);
        }
        let (taken, rest) = bytes.split_at(at_most((BLOCK - self.header.len()) as u64));
        self.header.extend_from_slice(taken);
        if self.header.len() == BLOCK {
            let header = std::mem::take(&mut self.header);
            if header[0] != 0 {
                let (path, size) = own_header(&header).ok_or_else(|| io::Error::other("it is no archive"))?;
                let path = self.path.join(path);
                if let Some(dir) = path.parent() {
                    fs::create_dir_all(dir)?;
                }
                *current = Some(Part::create(&path)?);
                self.missing = size;
                self.padding = size.next_multiple_of(BLOCK as u64) - size;
                self.close(current, written)?;
            }
        }
        Ok(rest)
    }

    fn close(&self, current: &mut Option<Part>, written: &mut Vec<Part>) -> io::Result<()> {
        if self.missing == 0
            && let Some(part) = current.take()
        {
            written.push(part.closed()?);
        }
        Ok(())
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
