//! An archive as a directory: each of its files by itself.
//!
//! The file by which a directory is known as an image layout comes first, and has its name last: as long as it lies there under
//! another name, all else is that of an export which goes on, or was broken off.
#![expect(clippy::disallowed_methods, reason = "they are files of the user's, not of the cache")]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::orders::{BLOCK, own_header};

use super::output::{Part, lock, sync_dir, temporary};

/// Dropped before it is kept, it is empty again.
pub(super) struct Directory {
    path: PathBuf,
    /// What lies there is its own.
    begun: bool,
    /// What of a header has come.
    header: Vec<u8>,
    /// How much of the current file is still to come, and of the zeros behind it.
    missing: u64,
    padding: u64,
}

const MARK: &str = "oci-layout";
const FILES: [&str; 2] = ["index.json", "manifest.json"];
const BLOBS: &str = "blobs";

// === impl Directory ===

impl Directory {
    /// # Errors
    /// When something lies in the directory, but for what an export has left that was broken off.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let empty = Self { path: path.to_owned(), begun: false, header: Vec::new(), missing: 0, padding: 0 };
        let names = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()?;
        if names.is_empty() {
            return Ok(empty);
        }
        let left: Vec<OsString> = empty.files().filter_map(|file| Some(file.file_name()?.to_owned())).collect();
        let mark = empty.mark();
        if !mark.exists() || names.iter().any(|name| name != BLOBS && !left.contains(name)) {
            return Err(io::Error::other("the directory is not empty"));
        }
        lock(&File::open(mark)?).map_err(|_| io::Error::other("another export writes into this directory"))?;
        empty.clear()?;
        Ok(empty)
    }

    /// Takes some of `bytes` and returns the rest. They are larder's own: names are short and of regular files.
    pub(super) fn take<'a>(
        &mut self,
        bytes: &'a [u8],
        current: &mut Option<Part>,
        written: &mut Vec<Part>,
    ) -> io::Result<&'a [u8]> {
        let at_most = |most: u64| usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
        if self.missing > 0 {
            let (taken, rest) = bytes.split_at(at_most(self.missing));
            if let Some(part) = current {
                part.write(taken)?;
            }
            self.missing -= taken.len() as u64;
            self.close(current, written);
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
                self.begun = true;
                self.missing = size;
                self.padding = size.next_multiple_of(BLOCK as u64) - size;
                self.close(current, written);
            }
        }
        Ok(rest)
    }

    fn close(&self, current: &mut Option<Part>, written: &mut Vec<Part>) {
        if self.missing == 0
            && let Some(mut part) = current.take()
        {
            // There may be more of them than a process may have open. The first one keeps others out.
            if !written.is_empty() {
                part.close();
            }
            written.push(part);
        }
    }

    /// What its blobs lie in is on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        sync_dir(&self.path.join(BLOBS))
    }

    /// All files have their names.
    pub(super) fn keep(mut self) {
        self.begun = false;
    }

    fn mark(&self) -> PathBuf {
        let mark = self.path.join(MARK);
        temporary(&mark).unwrap_or(mark)
    }

    /// The names that its files may have before it is kept, the mark's first.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let files = FILES.map(|file| self.path.join(file));
        let partial: Vec<PathBuf> = files.iter().filter_map(|file| temporary(file)).collect();
        std::iter::once(self.mark()).chain(files).chain(partial)
    }

    /// Removes all but the mark.
    fn clear(&self) -> io::Result<()> {
        let absent_or = |removed: io::Result<()>| match removed {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        absent_or(fs::remove_dir_all(self.path.join(BLOBS)))?;
        self.files().skip(1).try_for_each(|file| absent_or(fs::remove_file(file)))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.begun {
            let _ = self.clear().and_then(|()| fs::remove_file(self.path.join(MARK)));
        }
    }
}
