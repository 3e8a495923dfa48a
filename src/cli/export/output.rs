//! Where an archive goes. A file has its name only when all of it is on the disk.
#![expect(clippy::disallowed_methods, reason = "they are files of the user's, not of the cache")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::oci::{Algorithm, Hasher};
use crate::orders::{BLOCK, own_header};

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
    File(PathBuf),
    Parts(PathBuf),
    Directory(Directory),
}

/// A file that is being written under a name of its own. Dropped before it has its name for good, it is removed.
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
        } else if split.is_some() {
            To::Parts(path.to_owned())
        } else {
            To::File(path.to_owned())
        };
        match (&to, split) {
            (_, Some(0)) => return Err(io::Error::other("files of no size hold nothing")),
            (To::Stdout | To::Directory(_), Some(_)) => return Err(io::Error::other("only what goes into a file can be split")),
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
                    To::Parts(path) => Part::create(&numbered(path, self.written.len()))?,
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
        // Those of a directory mean nothing before its index is there, which has come first.
        if let To::Directory(_) = self.to {
            self.written.reverse();
        }
        for part in self.written {
            written.push(part.publish()?);
        }
        Ok(written)
    }
}

fn numbered(path: &Path, n: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n:03}"));
    name.into()
}

// === impl Part ===

impl Part {
    fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::other("it is no name of a file"))?.to_string_lossy().into_owned();
        // Always the same one, so that what was killed is written over, and does not lie there for ever.
        let temporary = path.with_file_name(format!(".{name}.partial"));
        let file = File::options().write(true).create(true).truncate(false).open(&temporary)?;
        file.try_lock().map_err(|_| io::Error::other("another export writes this file"))?;
        file.set_len(0)?;
        Ok(Self {
            path: path.to_owned(),
            temporary,
            file: Some(file),
            hasher: Hasher::new(Algorithm::Sha256),
            bytes: 0,
            kept: false,
        })
    }

    fn stdout() -> Self {
        let path = PathBuf::from("-");
        Self { temporary: path.clone(), path, file: None, hasher: Hasher::new(Algorithm::Sha256), bytes: 0, kept: true }
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
    fn closed(mut self) -> io::Result<Self> {
        match self.file.take() {
            Some(file) => file.sync_all()?,
            None => io::stdout().flush()?,
        }
        Ok(self)
    }

    fn publish(mut self) -> io::Result<Written> {
        if self.path != self.temporary {
            fs::rename(&self.temporary, &self.path)?;
            self.kept = true;
            let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(dir)?.sync_all()?;
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
