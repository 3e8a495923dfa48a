//! `larder serve`

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use crate::app::{App, Drained, Reloaded, Running};
use crate::background;
use crate::clock::Clock;
use crate::config::Config;
use crate::metrics;

use super::{Configured, log, notify};

/// Run the mirror.
#[derive(Args)]
pub(super) struct Serve {
    #[command(flatten)]
    configured: Configured,
}

// === impl Serve ===

impl Serve {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let mut config = self.configured.load()?;
        let (level, _log) = log::begin(&config.log)?;
        tell_of_panics();
        let wanted = config.server.max_connections;
        allow_many_files(&mut config);
        let failed = |error: std::io::Error| error.to_string();
        let background = threads().thread_name("background").build().map_err(failed)?;
        let runtime = threads().on_thread_start(background::behind(&background)).build().map_err(failed)?;
        // One to resolve names with is there also when later there are no threads to be had.
        background.spawn_blocking(|| {});
        let outcome = runtime.block_on(serve(config, wanted, &self.configured, level));
        // A hung disk or a resolver that does not answer must not hold the process.
        runtime.shutdown_background();
        background.shutdown_background();
        outcome
    }
}

fn threads() -> Builder {
    let mut threads = Builder::new_multi_thread();
    threads.enable_all().max_blocking_threads(BLOCKING_THREADS).thread_keep_alive(FOR_EVER);
    threads
}

async fn serve(
    config: Config,
    wanted_connections: usize,
    configured: &Configured,
    level: log::Level,
) -> Result<ExitCode, String> {
    let level = Arc::new(level);
    let failed = |error: std::io::Error| error.to_string();
    let mut stop = Stop {
        terminate: signal(SignalKind::terminate()).map_err(failed)?,
        interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
    };
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    // Of itself, it ends a process that writes beyond its largest file. Where it is received, the write fails.
    let _too_large = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map_err(failed)?;
    let greeting = Greeting::of(&config);
    let (max_connections, max_files) = (config.server.max_connections, config.server.max_files);
    let app = tokio::select! {
        app = App::start(config, Clock::system()) => app.map_err(|error| error.to_string())?,
        // A disk that hangs would let wait for ever.
        () = stop.told() => {
            tracing::warn!("stopped before the cache could be used");
            return Ok(ExitCode::FAILURE);
        }
    };
    greeting.print(&app);
    notify::tell(notify::READY);
    if max_connections < wanted_connections {
        tracing::info!(
            max_connections,
            wanted_connections,
            max_files,
            "of max_connections, as many as the limit of open files has room for"
        );
    }
    loop {
        tokio::select! {
            () = stop.told() => break,
            _ = hangup.recv() => {
                let (running, configured, level) = (app.running(), configured.clone(), Arc::clone(&level));
                // Whatever disk it waits for, a stop does not.
                tokio::task::spawn_blocking(move || reload(&running, &configured, &level));
            }
        }
    }
    notify::tell(notify::STOPPING);
    tracing::info!("stopping; a second signal stops at once");
    let drained = tokio::select! {
        drained = app.stop() => drained,
        () = stop.told() => return Ok(ExitCode::FAILURE),
    };
    if drained == Drained::default() {
        return Ok(ExitCode::SUCCESS);
    }
    let Drained { connections, fills } = drained;
    tracing::warn!(connections, fills, "stopped before these had ended");
    Ok(ExitCode::FAILURE)
}

/// Reads the configuration anew and takes it up.
fn reload(running: &Running, configured: &Configured, level: &log::Level) {
    running.open_audit_log_anew();
    let reloaded = running.reload(|| {
        let mut config = configured.load_anew()?;
        allow_many_files(&mut config);
        Ok(config)
    });
    match reloaded {
        Ok(Reloaded { level: now, waits, lifted }) => {
            level.set(now);
            if !lifted.is_empty() {
                tracing::warn!("these bounded something, and do so no more: {}", lifted.join(", "));
            }
            if waits.is_empty() {
                tracing::info!("the configuration has been read anew");
            } else {
                let waits = waits.join(", ");
                tracing::warn!(
                    "the configuration has been read anew; what has changed in these waits for the next start: {waits}"
                );
            }
        }
        Err(why) => tracing::error!("the configuration cannot be used, and what it was stays: {why}"),
    }
}

/// For names that are being resolved and helpers that are asked for credentials: a few, however long they take.
const BLOCKING_THREADS: usize = 128;
const FOR_EVER: Duration = Duration::from_hours(24 * 365);

/// Sockets that listen, the log, what the runtime needs.
const FILES_OF_OUR_OWN: u64 = 32;

/// The signals that ask it to stop.
struct Stop {
    terminate: Signals,
    interrupt: Signals,
}

/// What an operator wants to see first.
struct Greeting {
    dir: PathBuf,
    max_size: String,
    upstreams: String,
}

// === impl Stop ===

impl Stop {
    /// Waits for one of them.
    ///
    /// Cancel safe.
    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

// === impl Greeting ===

impl Greeting {
    fn of(config: &Config) -> Self {
        let default = &config.mirror.default_upstream;
        let others = config.upstream.keys().filter(|name| *name != default);
        let upstreams: Vec<&str> = std::iter::once(default).chain(others).map(String::as_str).collect();
        Self { dir: config.cache.dir.clone(), max_size: config.cache.max_size.to_string(), upstreams: upstreams.join(", ") }
    }

    fn print(&self, app: &App) {
        let places: Vec<String> = app.listening().iter().map(ToString::to_string).collect();
        let admin = app.admin_address();
        let admin = admin.map_or_else(String::new, |admin| format!("Metrics: http://{admin}\n"));
        let docker = app.listening().iter().find_map(|listening| {
            let address = listening.address()?;
            let host = if address.ip().is_unspecified() { "THIS-HOST".to_owned() } else { address.ip().to_string() };
            let url = listening.to_string().replace(&address.ip().to_string(), &host);
            Some(format!("Docker: put {{\"registry-mirrors\": [\"{url}\"]}} into /etc/docker/daemon.json\n"))
        });
        let docker = docker.unwrap_or_default();
        let text = format!(
            "larder listens on {} and caches up to {} in {}\n\
             It mirrors {}\n\
             {admin}\
             {docker}",
            places.join(" and "),
            self.max_size,
            self.dir.display(),
            self.upstreams
        );
        // Nobody need be there to read it.
        let _ = std::io::stdout().write_all(text.as_bytes());
    }
}

/// A panic ends one task, and nothing else says why.
fn tell_of_panics() {
    std::panic::set_hook(Box::new(|panic| {
        metrics::panicked();
        let place = panic.location().map(ToString::to_string);
        let what = panic.payload_as_str().unwrap_or("it does not say why");
        tracing::error!(place, what, "a task panicked");
    }));
}

/// Every connection and every open blob is a descriptor; the usual limit of 1,024 is a heritage of `select`. Connections take
/// no more than half of what there are, and files that are read beside others over the same connection a quarter: upstreams and what is
/// read alone need some as well.
fn allow_many_files(config: &mut Config) {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    let Some(files) = getrlimit(Resource::Nofile).current else { return };
    // A connection, and the file of what is asked over it; what is left of them is for upstreams and what comes from them.
    let files = files.saturating_sub(FILES_OF_OUR_OWN);
    let possible = usize::try_from(files / 3).unwrap_or(usize::MAX).max(1);
    config.server.max_files = (files / 8).max(1);
    config.cache.max_recent = usize::try_from(files / 16).unwrap_or(usize::MAX).clamp(1, config.cache.max_recent);
    if possible < config.server.max_connections {
        config.server.max_connections = possible;
    }
}
