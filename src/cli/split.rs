//! What the files are called that an archive is split into: FILE.000, FILE.001 …

use std::io;
use std::path::{Path, PathBuf};

/// Of three digits each, or they would not be in order where they are listed.
const MOST: usize = 1000;
const FIRST: &str = ".000";

/// The name of one of them.
///
/// # Errors
/// When there are no more names.
pub(super) fn numbered(whole: &Path, n: usize) -> io::Result<PathBuf> {
    if n >= MOST {
        return Err(io::Error::other(format!("it would be more than {MOST} files; let it be larger files")));
    }
    let mut name = whole.as_os_str().to_owned();
    name.push(format!(".{n:03}"));
    Ok(name.into())
}

/// The name that they have in common, by that of the first.
pub(super) fn whole(first: &Path) -> Option<PathBuf> {
    first.as_os_str().to_string_lossy().strip_suffix(FIRST).map(PathBuf::from)
}
