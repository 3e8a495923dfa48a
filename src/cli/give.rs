//! Giving an order: to the larder that holds the cache, by the socket in its directory; or where none does, to the cache itself.

use std::io::ErrorKind;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use hyper::body::{Body, Frame};
use indicatif::ProgressDrawTarget;
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{Alone, LogLevel, StartError};
use crate::clock::Clock;
use crate::config::Config;
use crate::orders::{Input, ORDERS_PATH, Order, Report, Reports};
use crate::store::{self, OpenError, SocketPath};

use super::said::{BARS, warn};
use super::{Configured, log};

/// For so long a larder may hold the cache and not answer: it is starting, or stopping.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(50);
/// Within this time a signal is the one before.
const SAME: Duration = Duration::from_millis(500);
/// As a shell says of what was interrupted.
const INTERRUPTED: u8 = 130;

/// What is to be done with each report but those of failures, which are told of here.
struct Reader<F> {
    show: F,
    failed: bool,
    ended: bool,
}

/// An order and what comes behind it, as the body of a request.
struct Sent(Input);

/// What has become of the input, as whoever sends it says no more than that it was not sent.
#[derive(Default)]
struct Watched {
    /// Why it cannot be read.
    unread: Mutex<Option<String>>,
    /// Some of it has been taken.
    begun: AtomicBool,
}

/// Ctrl-C, and its like; and what of itself ends a process that writes beyond its largest file. Where it is received, the write fails.
struct Interrupt(Signal, Signal, #[expect(dead_code, reason = "it is received as long as this is there")] Signal);

/// Why an order was not carried out by the larder that was asked.
enum Unheard {
    /// There is none.
    Nobody,
    Why(String),
}

/// Has an order carried out and gives its reports to `show`, each as it comes. Exit code 1 if a part of it failed.
pub(super) fn give(configured: &Configured, order: &Order, mut show: impl FnMut(Report)) -> Result<ExitCode, String> {
    give_with(configured, order, &|| Box::pin(stream::empty()), |report| {
        show(report);
        Ok(())
    })
}

/// Likewise with `input` behind the order, of which nothing is read before it is wanted; and until `show` fails: then the order is
/// taken back.
pub(super) fn give_with(
    configured: &Configured,
    order: &Order,
    input: &dyn Fn() -> Input,
    show: impl FnMut(Report) -> Result<(), String>,
) -> Result<ExitCode, String> {
    let mut config = configured.load()?;
    config.log.level = LogLevel::Warn;
    let (_, _log) = log::begin(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| error.to_string())?;
    let outcome = runtime.block_on(carried_out(config, order, input, Reader { show, failed: false, ended: false }));
    // A hung disk or a resolver that does not answer must not hold the process.
    runtime.shutdown_background();
    let _ = BARS.clear();
    // Who reads the input may not have heard that it has ended.
    BARS.set_draw_target(ProgressDrawTarget::hidden());
    outcome
}

async fn carried_out<F: FnMut(Report) -> Result<(), String>>(
    config: Config,
    order: &Order,
    input: &dyn Fn() -> Input,
    mut reader: Reader<F>,
) -> Result<ExitCode, String> {
    let dir = config.cache.dir.clone();
    let mut new = false;
    match std::fs::metadata(dir.join("layout")) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound && !order.needs_a_cache() => new = true,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(format!(
                "there is no cache in {}; say where it is by --config FILE or --set cache.dir=DIR",
                dir.display()
            ));
        }
        Err(error) => {
            return Err(format!("{}: {error}; give this order as the user that larder runs as", dir.display()));
        }
    }
    let signals = || Interrupt::new().map_err(|error| error.to_string());
    let mut interrupt = signals()?;
    tokio::spawn(signals()?.ends_when_asked_again());
    let reached = reach(&config, order, input, &mut reader);
    let alone = tokio::select! {
        reached = reached => reached?,
        // The larder that was asked takes it back.
        () = interrupt.comes() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    if let Some(alone) = alone {
        // Whoever says where it is knows that.
        if new && dir == store::Options::default().dir {
            warn(&format!("there is no cache yet; a new one is made in {}, as no --config says where one is", dir.display()));
        }
        if let Some(interrupted) = alone_with(alone, order, input(), &mut reader, &mut interrupt).await? {
            return Ok(interrupted);
        }
    }
    Ok(if reader.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Has the larder that serves the cache carry out the order; where there is none, opens the cache.
async fn reach<F: FnMut(Report) -> Result<(), String>>(
    config: &Config,
    order: &Order,
    input: &dyn Fn() -> Input,
    reader: &mut Reader<F>,
) -> Result<Option<Alone>, String> {
    let since = Instant::now();
    loop {
        match ask(config, order, input(), reader).await {
            Ok(()) => return Ok(None),
            Err(Unheard::Why(why)) => return Err(why),
            Err(Unheard::Nobody) if order.needs_a_server() => {
                return Err(format!("no larder serves {}; there is nothing to see", config.cache.dir.display()));
            }
            Err(Unheard::Nobody) => {}
        }
        match Alone::open(config.clone(), Clock::system()).await {
            Ok(alone) => return Ok(Some(alone)),
            // It may just be starting, and about to listen; or stopping, and about to let go.
            Err(StartError::Cache(OpenError::Held { .. })) if since.elapsed() < PATIENCE => tokio::time::sleep(AGAIN).await,
            Err(error @ StartError::Cache(OpenError::Held { .. })) => {
                return Err(format!(
                    "{error}, and does not take orders; if that is another command, try again when it has ended"
                ));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Gives the order to the larder that listens in the cache directory.
async fn ask<F: FnMut(Report) -> Result<(), String>>(
    config: &Config,
    order: &Order,
    input: Input,
    reader: &mut Reader<F>,
) -> Result<(), Unheard> {
    let dir = &config.cache.dir;
    let (input, watched) = Watched::over(input);
    // Where what is to be sent cannot be read, the larder that hears no more of it is not to blame.
    let failed = |why: String| match watched.unread().take() {
        Some(error) => Unheard::Why(format!("the archive cannot be read: {error}")),
        None => Unheard::Why(format!("the larder that serves {} {why}", dir.display())),
    };
    let socket = match SocketPath::of(dir) {
        Ok(socket) => socket,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(Unheard::Nobody),
        Err(error) => return Err(failed(format!("cannot be reached: {error}"))),
    };
    match UnixStream::connect(socket.path()).await {
        Ok(_) => {}
        // What a larder left that is no more.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Err(Unheard::Nobody),
        Err(error) => return Err(failed(format!("cannot be reached: {error}; give this order as the user that it runs as"))),
    }
    // Nothing is asked by TLS: a system may trust nobody, and to read whom it trusts takes longer than most orders.
    let client = reqwest::Client::builder().unix_socket(socket.path()).no_proxy().tls_certs_only([]).build();
    let client = client.map_err(|error| failed(error.to_string()))?;
    let mut line = serde_json::to_vec(order).map_err(|error| Unheard::Why(error.to_string()))?;
    line.push(b'\n');
    let body = reqwest::Body::wrap(Sent(Box::pin(stream::iter([Ok(line.into())]).chain(input))));
    let mut answer = match client.post(format!("http://larder{ORDERS_PATH}")).body(body).send().await {
        Ok(answer) => answer,
        // It has gone in this moment. If it had heard the order, it took it back.
        Err(_) if watched.is_whole() => return Err(Unheard::Nobody),
        Err(error) => return Err(failed(format!("does not answer: {error}"))),
    };
    let status = answer.status();
    if !status.is_success() {
        let why = answer.text().await.unwrap_or_default();
        if status != StatusCode::BAD_REQUEST {
            return Err(failed(why));
        }
        return Err(failed(format!("does not take this order; is it of another version? It says: {why}")));
    }
    let (mut lines, mut told) = (Vec::new(), false);
    loop {
        match answer.chunk().await {
            Ok(Some(bytes)) => lines.extend_from_slice(&bytes),
            // What it has told nothing of, and done nothing of, can be done here.
            Ok(None) | Err(_) if !told && order.only_tells() => return Err(Unheard::Nobody),
            Ok(None) | Err(_) => {
                return Err(failed("has stopped in the middle of it; what is done is done, give the order again".into()));
            }
        }
        while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
            let mut report: Report = serde_json::from_slice(&lines[..end])
                .map_err(|_| failed("says what cannot be understood; is it of another version?".into()))?;
            let mut taken = end + 1;
            if let Report::Piece { length, bytes } = &mut report {
                // They follow the line, and may not have come yet.
                let Some(brought) = lines.get(taken..taken.saturating_add(*length)) else { break };
                *bytes = Bytes::copy_from_slice(brought);
                taken += *length;
            }
            lines.drain(..taken);
            if matches!(report, Report::Failed { .. }) && watched.unread().is_some() {
                // What the larder makes of it is not what is wrong.
                return Err(failed("hears no more of it".into()));
            }
            told = true;
            reader.take(report).map_err(Unheard::Why)?;
            if reader.ended {
                return Ok(());
            }
        }
    }
}

// === impl Watched ===

impl Watched {
    fn over(input: Input) -> (Input, Arc<Self>) {
        let watched = Arc::<Self>::default();
        let aside = Arc::clone(&watched);
        let input = input.inspect(move |read| match read {
            Ok(_) => aside.begun.store(true, Ordering::Relaxed),
            Err(error) => *aside.unread() = Some(error.to_string()),
        });
        (Box::pin(input), watched)
    }

    fn unread(&self) -> MutexGuard<'_, Option<String>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing of it has been taken, so it can be taken from its beginning.
    fn is_whole(&self) -> bool {
        !self.begun.load(Ordering::Relaxed) && self.unread().is_none()
    }
}

/// Carries the order out here. Returns how the process ends if it was interrupted.
async fn alone_with<F: FnMut(Report) -> Result<(), String>>(
    alone: Alone,
    order: &Order,
    mut input: Input,
    reader: &mut Reader<F>,
    interrupt: &mut Interrupt,
) -> Result<Option<ExitCode>, String> {
    let (send, mut reports) = Reports::channel();
    let interrupted = {
        let work = alone.orders().carry_out(order.clone(), &mut input, &send);
        tokio::pin!(work);
        let mut done = false;
        loop {
            tokio::select! {
                () = &mut work, if !done => done = true,
                Some(report) = reports.recv() => if let Err(why) = reader.take(report) {
                    break Err(why);
                },
                () = interrupt.comes() => break Ok(true),
            }
            if reader.ended {
                break Ok(false);
            }
        }
    };
    alone.close().await;
    interrupted.map(|interrupted| interrupted.then(|| ExitCode::from(INTERRUPTED)))
}

// === impl Sent ===

impl Body for Sent {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.as_mut().poll_next(cx).map(|next| next.map(|bytes| bytes.map(Frame::data)))
    }
}

// === impl Interrupt ===

impl Interrupt {
    fn new() -> std::io::Result<Self> {
        let too_large = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
        Ok(Self(signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, too_large))
    }

    /// Ends the process where it is asked for a second time: what is to be done at the first one may wait for a disk that hangs, or
    /// for whoever is to read what is written. Some tell of the same Ctrl-C twice.
    #[expect(clippy::disallowed_methods, reason = "main may be what waits")]
    async fn ends_when_asked_again(mut self) {
        self.comes().await;
        let since = Instant::now();
        loop {
            self.comes().await;
            if since.elapsed() > SAME {
                break;
            }
        }
        std::process::exit(INTERRUPTED.into())
    }

    async fn comes(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

// === impl Reader ===

impl<F: FnMut(Report) -> Result<(), String>> Reader<F> {
    fn take(&mut self, report: Report) -> Result<(), String> {
        match &report {
            Report::End => {
                self.ended = true;
                return Ok(());
            }
            Report::Failed { what, why } => {
                self.failed = true;
                warn(&format!("{what}: {why}"));
            }
            Report::Waiting { why } => {
                warn(why);
                return Ok(());
            }
            _ => {}
        }
        (self.show)(report)
    }
}
