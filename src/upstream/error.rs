//! How an upstream fails, by what the caller does next.

use std::error::Error as StdError;
use std::io;

use rustix::io::Errno;

use crate::clock::Timestamp;
use crate::flight::Lost;
use crate::room::NoSeat;

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
    /// It names a token service, at this host, to which the operator lets nobody's credentials be shown. That says nothing about them.
    #[error("the upstream names {0} as its token service; if that is right, add it to token_hosts")]
    UnlistedTokenHost(String),
    /// It wants to be left alone until then.
    #[error("the upstream limits the rate of requests")]
    RateLimited { until: Timestamp },
    /// The operator lets no more bytes be fetched from it until then.
    #[error("the byte_quota of the upstream is used up")]
    QuotaSpent { until: Timestamp },
    /// It could not be reached, or failed, or made no sense.
    #[error("the upstream is unavailable: {why}")]
    Unavailable { why: String, timed_out: bool },
    /// Where it sends on who asks has refused with this status, also by a way that it had just told anew: to ask once more is in vain.
    #[error("the upstream sends on to a place that answers {0}")]
    RefusedElsewhere(u16),
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
    /// It was not asked: this was the matter when it was, a moment ago, so that it is left alone for moments. That says nothing new.
    #[error("{0}")]
    LeftAlone(Box<Self>),
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

    /// Who was shown a login answers with a status that says neither yes nor no.
    pub(super) fn of_login(who: &str, status: u16) -> Self {
        match status {
            // So it says, or what stands in front of it, of what is asked or shown, and not of itself: of a scope that it cannot read, or a
            // password that makes too long a head. Who asks so keeps nobody else from asking.
            400 | 413 | 414 | 431 => Self::Unsupported(status),
            _ => Self::unavailable(format!("{who} answers {status}")),
        }
    }

    /// Nothing was asked: that was the matter a moment ago.
    pub(super) fn left_alone(self) -> Self {
        Self::LeftAlone(Box::new(self))
    }

    /// What is the matter, found out now or a moment ago.
    #[must_use]
    pub fn cause(&self) -> &Self {
        if let Self::LeftAlone(why) = self { why } else { self }
    }

    /// Whether it is the same however often the upstream is asked.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.is_definitive() || matches!(self, Self::RefusedElsewhere(_))
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

impl From<NoSeat> for Error {
    fn from(why: NoSeat) -> Self {
        match why {
            NoSeat::Full => Self::Busy,
            NoSeat::Left => Self::Left,
        }
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
