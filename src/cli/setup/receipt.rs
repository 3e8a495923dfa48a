//! Files of others that are changed so that it can be undone: what was there is kept in a copy beside each, and what was done is noted
//! before it is. A file has its new text whole or not at all, and a copy that goes back brings every byte, with owner and mode.
#![expect(clippy::disallowed_methods, reason = "they are files of the machine's, not of the cache")]

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::oci::{Algorithm, Hasher};
use crate::setup::Edit;

/// What was done for a client, as it lies beside the client's configuration.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Receipt {
    files: Vec<Changed>,
    /// Directories that were made for them, the outer before the inner.
    dirs: Vec<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Changed {
    path: PathBuf,
    /// Where what was there before is; `None`: there was nothing.
    copy: Option<PathBuf>,
    /// The SHA-256 of that, as an undo that was cut short has moved it already,
    #[serde(default)]
    before: Option<String>,
    /// of what was written,
    written: String,
    /// and of what larder had written before that, which is there still where a write was cut short.
    #[serde(default)]
    earlier: Option<String>,
}

/// What became of a file.
#[derive(Debug)]
pub(super) enum Outcome {
    Wrote {
        path: PathBuf,
        copy: Option<PathBuf>,
    },
    /// It says that already.
    Same {
        path: PathBuf,
    },
    Restored {
        path: PathBuf,
    },
    Removed {
        path: PathBuf,
    },
    /// Somebody has changed it since.
    Left {
        path: PathBuf,
        copy: Option<PathBuf>,
    },
}

/// A file that is to be written, and what stands there.
struct Planned {
    path: PathBuf,
    text: String,
    now: Option<String>,
    /// It is larder's own work, as it was noted.
    ours: Option<Changed>,
}

const COPY: &str = "before-larder";
const MODE: u32 = 0o644;

/// Writes them, or none of them: `note` is where it is noted what was done.
///
/// # Errors
/// One line that names the file.
pub(super) fn write(note: &Path, edits: Vec<Edit>) -> Result<Vec<Outcome>, String> {
    let old = read_note(note)?;
    let mut planned = Vec::new();
    for Edit { path, merge } in edits {
        // What a link leads to is what is meant.
        let path = if path.is_symlink() { fs::canonicalize(&path).map_err(|error| at(&path, &error))? } else { path };
        let now = read(&path)?;
        let ours = old.files.iter().find(|file| file.path == path && file.is_larders(now.as_deref())).cloned();
        let base = match &ours {
            None => now.clone(),
            Some(Changed { copy, .. }) => copy.as_deref().map(read).transpose()?.flatten(),
        };
        let text = merge(base.as_deref()).map_err(|why| format!("{}: {why}", path.display()))?;
        planned.push(Planned { path, text, now, ours });
    }
    let (same, planned): (Vec<_>, Vec<_>) = planned.into_iter().partition(|file| file.now.as_deref() == Some(&file.text));
    let mut outcomes: Vec<_> = same.iter().map(|Planned { path, .. }| Outcome::Same { path: path.clone() }).collect();
    if planned.is_empty() {
        return Ok(outcomes);
    }
    for Planned { path, now, .. } in planned.iter().filter(|file| file.ours.is_none()) {
        // What larder has kept there before, or somebody else.
        let copy = beside(path, COPY);
        if let (Some(now), Some(kept)) = (now, read(&copy)?)
            && kept != *now
        {
            let (path, copy) = (path.display(), copy.display());
            return Err(format!("{copy} is there already, and is not what {path} is now; move it away first"));
        }
    }
    let mut receipt = Receipt { files: Vec::new(), dirs: old.dirs };
    // What was done before and is not done now stays noted, so that it is undone with the rest.
    let again = |file: &&Changed| planned.iter().all(|now| now.path != file.path);
    receipt.files.extend(old.files.iter().filter(again).cloned());
    for Planned { path, text, now, ours } in &planned {
        let (copy, before) = match (ours, now) {
            (Some(ours), _) => (ours.copy.clone(), ours.before.clone()),
            (None, None) => (None, None),
            (None, Some(now)) => {
                let copy = beside(path, COPY);
                put(&copy, now, Some(path)).map_err(|error| at(&copy, &error))?;
                (Some(copy), Some(sum(now)))
            }
        };
        let earlier = ours.as_ref().and(now.as_deref()).map(sum);
        receipt.files.push(Changed { path: path.clone(), copy, before, written: sum(text), earlier });
        let missing =
            path.ancestors().skip(1).take_while(|dir| !dir.exists()).filter(|dir| !receipt.dirs.contains(&dir.to_path_buf()));
        let missing: Vec<_> = missing.map(Path::to_owned).collect();
        receipt.dirs.extend(missing.into_iter().rev());
    }
    // Noted first: what is half done when the machine dies can be undone.
    make_dirs(note, &receipt.dirs).and_then(|()| put(note, &receipt.text(), None)).map_err(|error| at(note, &error))?;
    for Planned { path, text, .. } in &planned {
        let written = make_dirs(path, &receipt.dirs).and_then(|()| put(path, text, path.exists().then_some(path.as_path())));
        if let Err(error) = written {
            let why = at(path, &error);
            let undone = undo(note)
                .map_or_else(|why| format!("and it cannot be undone: {why}"), |_| "all is as it was without larder".into());
            return Err(format!("{why}; {undone}"));
        }
        let copy = receipt.files.iter().find(|file| file.path == *path).and_then(|file| file.copy.clone());
        outcomes.push(Outcome::Wrote { path: path.clone(), copy });
    }
    Ok(outcomes)
}

/// Puts back what was there before. What somebody has changed since is left, as is its copy.
///
/// # Errors
/// One line: there is nothing to undo, or a file cannot be written.
pub(super) fn undo(note: &Path) -> Result<Vec<Outcome>, String> {
    let receipt = read_note(note)?;
    if receipt.files.is_empty() {
        return Err(format!("there is no {}: nothing is to be undone", note.display()));
    }
    let (mut outcomes, mut left) = (Vec::new(), Vec::new());
    for file in receipt.files {
        let Changed { path, copy, before, .. } = file.clone();
        let (now, kept) = (read(&path)?, copy.as_deref().map(read).transpose()?.flatten());
        if file.is_larders(now.as_deref()) {
            match &copy {
                Some(copy) => fs::rename(copy, &path),
                None => fs::remove_file(&path),
            }
            .and_then(|()| sync_dir(&path))
            .map_err(|error| at(&path, &error))?;
            outcomes.push(if copy.is_some() { Outcome::Restored { path } } else { Outcome::Removed { path } });
        } else if now == kept || before.is_some() && before == now.as_deref().map(sum) {
            // It was not written yet, or somebody has put it back.
            if let Some(copy) = copy.filter(|copy| copy.exists()) {
                fs::remove_file(&copy).map_err(|error| at(&copy, &error))?;
            }
            outcomes.push(Outcome::Restored { path });
        } else {
            outcomes.push(Outcome::Left { path, copy });
            left.push(file);
        }
    }
    // What is not empty holds something of others.
    if left.is_empty() {
        fs::remove_file(note).map_err(|error| at(note, &error))?;
        receipt.dirs.iter().rev().for_each(|dir| _ = fs::remove_dir(dir));
    } else {
        let rest = Receipt { files: left, dirs: receipt.dirs };
        put(note, &rest.text(), None).map_err(|error| at(note, &error))?;
    }
    Ok(outcomes)
}

fn read_note(note: &Path) -> Result<Receipt, String> {
    match read(note)? {
        None => Ok(Receipt::default()),
        Some(text) => serde_json::from_str(&text).map_err(|error| format!("{}: {error}", note.display())),
    }
}

fn read(path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path, &error)),
    }
}

/// Puts `text` into a file whole, in place of what is there, with owner and mode of `like`.
fn put(path: &Path, text: &str, like: Option<&Path>) -> io::Result<()> {
    let temporary = beside(path, "larder-writes");
    let written = (|| {
        let mode = like.map(fs::metadata).transpose()?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        if let Some(meta) = &mode {
            fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode.map_or(MODE, |meta| meta.mode() & 0o7777)))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| sync_dir(path))
}

/// Those of `dirs` that `path` lies in.
fn make_dirs(path: &Path, dirs: &[PathBuf]) -> io::Result<()> {
    for dir in dirs.iter().filter(|dir| path.starts_with(dir)) {
        match DirBuilder::new().mode(0o755).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync_dir(dir)?,
        }
    }
    Ok(())
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(what);
    path.with_file_name(name)
}

fn sum(text: &str) -> String {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(text.as_bytes());
    hasher.finish().to_string()
}

fn at(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

// === impl Changed ===

impl Changed {
    /// Whether larder has written what is there now.
    fn is_larders(&self, now: Option<&str>) -> bool {
        let now = now.map(sum);
        now.as_ref() == Some(&self.written) || now.is_some() && now == self.earlier
    }
}

// === impl Receipt ===

impl Receipt {
    fn text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit<'a>(path: &Path, says: &'a str) -> Edit<'a> {
        Edit { path: path.to_owned(), merge: Box::new(move |text| Ok(format!("{}{says}\n", text.unwrap_or_default()))) }
    }

    /// Every file below a directory, with what is in it and its mode.
    fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>, u32)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let mode = fs::symlink_metadata(&path).unwrap().mode();
            if path.is_dir() && !path.is_symlink() {
                found.push((path.clone(), Vec::new(), mode));
                found.extend(tree(&path));
            } else {
                found.push((path.clone(), fs::read(&path).unwrap_or_default(), mode));
            }
        }
        found.sort();
        found
    }

    #[test]
    fn what_was_there_comes_back_with_every_byte_and_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let [there, new] = ["a.conf", "d/e/b.conf"].map(|name| dir.path().join(name));
        fs::write(&there, "one\r\nno end").unwrap();
        fs::set_permissions(&there, fs::Permissions::from_mode(0o640)).unwrap();
        let (before, note) = (tree(dir.path()), dir.path().join("note"));
        for says in ["x", "x", "y"] {
            let outcomes = write(&note, vec![edit(&there, says), edit(&new, says)]).unwrap();
            assert_eq!(outcomes.len(), 2);
            assert_eq!(fs::read_to_string(&there).unwrap(), format!("one\r\nno end{says}\n"), "what larder wrote before is gone");
            assert_eq!(fs::read_to_string(&new).unwrap(), format!("{says}\n"));
            assert_eq!(fs::metadata(&there).unwrap().mode() & 0o7777, 0o640);
        }
        let same = write(&note, vec![edit(&there, "y"), edit(&new, "y")]).unwrap();
        assert!(same.iter().all(|outcome| matches!(outcome, Outcome::Same { .. })));
        undo(&note).unwrap();
        assert_eq!(tree(dir.path()), before);
        assert!(undo(&note).unwrap_err().contains("nothing is to be undone"));
    }

    #[test]
    fn what_somebody_has_changed_since_is_left_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let ([there, other], note) = (["a.conf", "b.conf"].map(|name| dir.path().join(name)), dir.path().join("note"));
        fs::write(&there, "one\n").unwrap();
        write(&note, vec![edit(&there, "x"), edit(&other, "x")]).unwrap();
        fs::write(&there, "theirs\n").unwrap();
        let outcomes = undo(&note).unwrap();
        assert!(matches!(&outcomes[0], Outcome::Left { copy: Some(copy), .. } if fs::read_to_string(copy).unwrap() == "one\n"));
        assert!(matches!(outcomes[1], Outcome::Removed { .. }) && !other.exists());
        assert_eq!(fs::read_to_string(&there).unwrap(), "theirs\n");
        // Once it is put back by hand, there is nothing left to do.
        fs::write(&there, "one\n").unwrap();
        undo(&note).unwrap();
        assert_eq!(tree(dir.path()).len(), 1);
    }

    #[test]
    fn where_one_file_cannot_be_written_none_is() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("note");
        let [there, below] = ["a.conf", "file/below"].map(|name| dir.path().join(name));
        fs::write(&there, "one\n").unwrap();
        fs::write(dir.path().join("file"), "no directory").unwrap();
        let before = tree(dir.path());
        assert!(write(&note, vec![edit(&there, "x"), edit(&below, "x")]).is_err());
        assert_eq!(tree(dir.path()), before);
        let refused = Edit { path: dir.path().join("c"), merge: Box::new(|_| Err("it is no TOML".into())) };
        let why = write(&note, vec![edit(&there, "x"), refused]).map(drop).unwrap_err();
        assert!(why.ends_with("c: it is no TOML") && tree(dir.path()) == before);
        // A directory in the place of a file is found out when the others are written.
        fs::create_dir(dir.path().join("d")).unwrap();
        let before = tree(dir.path());
        let occupied = Edit { path: dir.path().join("d").join("x"), merge: Box::new(|_| Ok("x".into())) };
        fs::create_dir(dir.path().join("d/x.larder-writes")).unwrap();
        assert!(write(&note, vec![edit(&there, "x"), occupied]).map(drop).unwrap_err().contains("as it was without larder"));
        fs::remove_dir(dir.path().join("d/x.larder-writes")).unwrap();
        assert_eq!(tree(dir.path()), before);
    }

    #[test]
    fn a_write_that_was_cut_short_can_be_undone() {
        let dir = tempfile::tempdir().unwrap();
        let ([there, new], note) = (["a.conf", "b.conf"].map(|name| dir.path().join(name)), dir.path().join("note"));
        fs::write(&there, "one\n").unwrap();
        write(&note, vec![edit(&there, "x"), edit(&new, "x")]).unwrap();
        // As if it had died behind the note.
        fs::write(&there, "one\n").unwrap();
        fs::remove_file(&new).unwrap();
        undo(&note).unwrap();
        assert_eq!(tree(dir.path()).len(), 1);
    }

    /// Each is done to the first of two files and not to the second, as if larder had died there. It said that they had been changed.
    #[test]
    fn what_was_cut_short_the_second_time_or_when_it_was_undone_can_be_undone() {
        let dir = tempfile::tempdir().unwrap();
        let ([one, other], note) = (["a.conf", "b.conf"].map(|name| dir.path().join(name)), dir.path().join("note"));
        [&one, &other].iter().for_each(|path| fs::write(path, "theirs\n").unwrap());
        let before = tree(dir.path());
        let edits = |says| vec![edit(&one, says), edit(&other, says)];
        write(&note, edits("x")).unwrap();
        let first = fs::read_to_string(&other).unwrap();
        write(&note, edits("y")).unwrap();
        fs::write(&other, first).unwrap();
        assert!(undo(&note).unwrap().iter().all(|outcome| matches!(outcome, Outcome::Restored { .. })));
        assert_eq!(tree(dir.path()), before);
        write(&note, edits("x")).unwrap();
        fs::rename(beside(&one, COPY), &one).unwrap();
        assert!(undo(&note).unwrap().iter().all(|outcome| matches!(outcome, Outcome::Restored { .. })));
        assert_eq!(tree(dir.path()), before);
    }

    /// What was there before larder was gone for good.
    #[test]
    fn no_copy_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let (path, note) = (dir.path().join("a.conf"), dir.path().join("note"));
        fs::write(&path, "theirs\n").unwrap();
        write(&note, vec![edit(&path, "x")]).unwrap();
        fs::write(&path, "theirs\nx\nand more\n").unwrap();
        let why = write(&note, vec![edit(&path, "y")]).unwrap_err();
        assert!(why.contains("a.conf.before-larder is there already") && why.lines().count() == 1, "{why}");
        assert_eq!(fs::read_to_string(beside(&path, COPY)).unwrap(), "theirs\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs\nx\nand more\n");
    }

    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let ([file, link], note) = (["real", "link"].map(|name| dir.path().join(name)), dir.path().join("note"));
        fs::write(&file, "one\n").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        write(&note, vec![edit(&link, "x")]).unwrap();
        assert!(link.is_symlink() && fs::read_to_string(&file).unwrap() == "one\nx\n");
        undo(&note).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "one\n");
    }
}
