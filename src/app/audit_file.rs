//! The file of the audit log: appended to by one thread, and opened anew when it was moved away.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;

use crate::lines::{Ending, Lines};
use crate::metrics::Metrics;
use crate::server::Audit;

/// What is held as long as larder runs.
pub(super) struct AuditFile {
    anew: Arc<AtomicBool>,
    _ending: Option<Ending>,
}

/// Whither lines go.
struct Out {
    /// `None`: standard output.
    path: Option<PathBuf>,
    to: Box<dyn io::Write + Send>,
    /// The last line is not whole.
    torn: bool,
    /// It is known that it fails.
    failing: bool,
}

/// The program's own standard output.
const STDOUT: &str = "-";
/// Others than the owner's group have no business with who pulls what.
const MODE: u32 = 0o640;

// === impl AuditFile ===

impl AuditFile {
    /// `path`: empty for none, `-` for standard output.
    ///
    /// # Errors
    /// One line that says what to do.
    pub(super) fn open(path: &Path, metrics: &Metrics) -> Result<(Self, Audit), String> {
        if path.as_os_str().is_empty() {
            return Ok((Self { anew: Arc::default(), _ending: None }, Audit::default()));
        }
        let (file, lines) = Self::lines(path, metrics)?;
        Ok((file, Audit::to(lines)))
    }

    fn lines(path: &Path, metrics: &Metrics) -> Result<(Self, Lines), String> {
        let anew = Arc::new(AtomicBool::new(false));
        let mut out = Out::open(path).map_err(|error| cannot_be_written(path, &error))?;
        let (told, counted, metrics) = (Arc::clone(&anew), metrics.clone(), metrics.clone());
        // Those for which there was no room are counted by then.
        let write = move |text: &[u8], _| {
            if told.swap(false, Ordering::Relaxed) {
                out.open_anew();
            }
            counted.audit_lost(out.write(text));
        };
        let lost = move |before| {
            metrics.audit_lost(1);
            if before == 0 {
                tracing::error!("nobody takes the lines of the audit log, and there is no room for more: some are lost");
            }
        };
        let (lines, ending) =
            Lines::to("larder-audit", write, lost).map_err(|error| format!("there is no thread for log.audit_file: {error}"))?;
        Ok((Self { anew, _ending: Some(ending) }, lines))
    }

    /// Before the next line the file is looked for under its name again: it may have been moved away.
    pub(super) fn open_anew(&self) {
        self.anew.store(true, Ordering::Relaxed);
    }
}

/// Whether it can be written, for who only wants to know. One that is not there is not made.
///
/// # Errors
/// It cannot; says what to do.
pub(super) fn try_out(path: &Path) -> Result<(), String> {
    if path == Path::new(STDOUT) {
        return Ok(());
    }
    let writable = match appending().open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).map_err(io::Error::from)
        }
        opened => opened.map(drop),
    };
    writable.map_err(|error| cannot_be_written(path, &error))
}

fn cannot_be_written(path: &Path, error: &io::Error) -> String {
    format!("log.audit_file {} cannot be written: {error}; make its directory, and give it to larder's user", path.display())
}

// === impl Out ===

impl Out {
    fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new(STDOUT) {
            return Ok(Self { path: None, to: Box::new(io::stdout()), torn: false, failing: false });
        }
        Ok(Self { path: Some(path.into()), to: Box::new(append(path)?), torn: false, failing: false })
    }

    fn open_anew(&mut self) {
        let Some(path) = &self.path else { return };
        match append(path) {
            Ok(file) => (self.to, self.torn) = (Box::new(file), false),
            Err(error) => tracing::error!("{}; what was open is written on", cannot_be_written(path, &error)),
        }
    }

    /// Returns how many lines are lost.
    fn write(&mut self, text: &[u8]) -> u64 {
        let (mut left, mut trouble) = (text, None);
        if self.torn && self.to.write_all(b"\n").is_ok() {
            self.torn = false;
        }
        while !left.is_empty() && !self.torn {
            match self.to.write(left) {
                Ok(0) => {
                    trouble = Some(io::ErrorKind::WriteZero.into());
                    break;
                }
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    trouble = Some(error);
                    break;
                }
            }
        }
        let _ = self.to.flush();
        let written = &text[..text.len() - left.len()];
        self.torn |= !written.is_empty() && !written.ends_with(b"\n");
        if let Some(error) = trouble.filter(|_| !std::mem::replace(&mut self.failing, true)) {
            tracing::error!(%error, "the audit log cannot be written, and lines of it are lost");
        } else if left.is_empty() && std::mem::take(&mut self.failing) {
            tracing::warn!("the audit log is written again");
        }
        left.split(|byte| *byte == b'\n').skip(1).count() as u64
    }
}

fn append(path: &Path) -> io::Result<File> {
    let file = appending().create(true).mode(MODE).open(path)?;
    // Its thread may wait for who reads it, where that is no file.
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

/// A pipe that nobody reads is refused, and not waited for until somebody does.
fn appending() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Format;

    fn lost(metrics: &Metrics) -> bool {
        !metrics.page(Format::Text).contains("\nlarder_audit_lost_total 0\n")
    }

    /// It may hang for ever, and nobody would know.
    #[test]
    fn what_is_lost_is_counted_while_nobody_reads() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, metrics) = (dir.path().join("pipe"), Metrics::new());
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(AuditFile::lines(&pipe, &metrics).is_err() && try_out(&pipe).is_err(), "and nobody waits for a reader");
        let reader = OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
        let (file, lines) = AuditFile::lines(&pipe, &metrics).unwrap();
        let line = [b"x".repeat(1023).as_slice(), b"\n"].concat();
        (0..4000).for_each(|_| (&lines).write_all(&line).unwrap());
        assert!(!lost(&metrics), "there is room for these");
        (0..9000).for_each(|_| (&lines).write_all(&line).unwrap());
        assert!(lost(&metrics));
        drop((reader, file));
    }
}
