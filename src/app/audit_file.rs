//! The file of the audit log: appended to by one thread, and opened anew when it was moved away.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
        let anew = Arc::new(AtomicBool::new(false));
        if path.as_os_str().is_empty() {
            return Ok((Self { anew, _ending: None }, Audit::default()));
        }
        let mut out = Out::open(path).map_err(|error| cannot_be_written(path, &error))?;
        let (told, metrics) = (Arc::clone(&anew), metrics.clone());
        let write = move |text: &[u8], lost: u64| {
            if told.swap(false, Ordering::Relaxed) {
                out.open_anew();
            }
            metrics.audit_lost(lost + out.write(text));
        };
        let (lines, ending) =
            Lines::to("larder-audit", write).map_err(|error| format!("there is no thread for log.audit_file: {error}"))?;
        Ok((Self { anew, _ending: Some(ending) }, Audit::to(lines)))
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
    let writable = match OpenOptions::new().append(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).map_err(io::Error::from)
        }
        opened => opened.map(drop),
    };
    if path.as_os_str().is_empty() || path == Path::new(STDOUT) {
        return Ok(());
    }
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
    OpenOptions::new().append(true).create(true).mode(MODE).open(path)
}
