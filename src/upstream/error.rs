//! How an upstream fails, by what the caller does next.

use std::error::Error as StdError;
use std::io;

use rustix::io::Errno;

use crate::clock::Timestamp;
use crate::flight::Lost;

/// Why an upstream gave no answer that could be used. Cheap to clone: everyone who waited is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It has answered that there is no such thing.
    #[error("not found upstream")]
    NotFound,
    /// It does not do what was asked, and says so with this status.
    #[error("the upstream answers {0}")]
    Unsupported(u16),
    /// It has answered, with a fresh token where it wants one, that we may not.
    #[error("denied by the upstream")]
    Denied,
    /// The upstream refuses larder's own credentials, or they cannot be had. That says nothing about what was asked for.
    #[error("larder's credentials cannot be used: {0}")]
    Credentials(String),
    /// It wants to be left alone until then.
    #[error("the upstream limits the rate of requests")]
    RateLimited { until: Timestamp },
    /// The operator lets no more bytes be fetched from it until then.
    #[error("the byte_quota of the upstream is used up")]
    QuotaSpent { until: Timestamp },
    /// It could not be reached, or failed, or made no sense.
    #[error("the upstream is unavailable: {why}")]
    Unavailable { why: String, timed_out: bool },
    /// larder has no socket to ask it with, for want of descriptors or ports. That says nothing about the upstream.
    #[error("larder has no socket left to ask the upstream with: {0}")]
    NoSocket(String),
    /// As much is asked of it at this time as may be, and whoever wanted to know did not wait until it was less.
    #[error("too much is being asked of the upstream at this moment")]
    Busy,
    /// Nobody waited any more when it was its turn, so that it was not asked.
    #[error("it was not asked, as nobody waited for it any more")]
    Left,
    /// What was asked has come round to one who had asked it already.
    #[error("the upstream leads back to larder itself; its url must be the registry's own")]
    Loop,
    /// larder is sealed and asks nobody.
    #[error("larder is offline")]
    Offline,
}

impl Error {
    pub(super) fn unavailable(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into(), timed_out: false }
    }

    /// A body that was announced to be longer.
    #[must_use]
    pub fn ended_early() -> Self {
        Self::unavailable("the body ended early")
    }

    /// What is answered is not what was asked for, and no error either: a page in place of a no.
    #[must_use]
    pub fn something_else() -> Self {
        Self::unavailable("it answers with something else than what it was asked for")
    }

    pub(super) fn timed_out(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into(), timed_out: true }
    }

    /// True if the upstream has answered what was asked: the answer is no.
    #[must_use]
    pub fn is_definitive(&self) -> bool {
        matches!(self, Self::NotFound | Self::Denied)
    }
}

impl From<Lost> for Error {
    fn from(lost: Lost) -> Self {
        Self::unavailable(lost.to_string())
    }
}

impl From<reqwest::Error> for Error {
    /// The URL is left out: it may be signed.
    fn from(error: reqwest::Error) -> Self {
        if let Some(error) = no_socket(&error) {
            return Self::NoSocket(error.to_string());
        }
        // Whom no connection leads to is not there; that it takes time to find out makes no difference.
        let timed_out = error.is_timeout() && !error.is_connect();
        let error = error.without_url();
        let mut why = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !why.contains(&cause_text) {
                why = format!("{why}: {cause_text}");
            }
            source = cause.source();
        }
        Self::Unavailable { why, timed_out }
    }
}

/// The cause, if it is that the process or the machine has no sockets left.
fn no_socket(error: &reqwest::Error) -> Option<&io::Error> {
    let first: &(dyn StdError + 'static) = error;
    let mut causes = std::iter::successors(Some(first), |&error| error.source());
    let io = causes.find_map(|cause| cause.downcast_ref::<io::Error>().filter(|error| error.raw_os_error().is_some()))?;
    let used_up = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];
    (error.is_connect() && used_up.iter().any(|errno| io.raw_os_error() == Some(errno.raw_os_error()))).then_some(io)
}
