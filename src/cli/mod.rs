//! The command line; one file a subcommand.

mod bars;
mod check;
mod explain;
mod export;
mod give;
mod health;
mod images;
mod import;
mod lists;
mod log;
mod missing;
mod notify;
mod pull;
mod refresh;
mod said;
mod serve;
mod setup;
mod shell;
mod split;
mod table;
mod top;
mod usage;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::config::{self, Config};

/// A pull-through caching mirror for container registries.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Serve),
    Check(check::Check),
    Health(health::Health),
    Setup(setup::Setup),
    Refresh(refresh::Refresh),
    Ls(images::Ls),
    Pin(images::Pin),
    Unpin(images::Unpin),
    Rm(images::Rm),
    Du(usage::Du),
    Pull(pull::Pull),
    Missing(missing::Missing),
    Verify(verify::Verify),
    Explain(explain::Explain),
    Export(export::Export),
    Import(import::Import),
    Top(top::Top),
    Completions(shell::Completions),
    Man(shell::Man),
}

/// Where the configuration comes from.
#[derive(Args, Clone)]
struct Configured {
    /// The configuration file; without it, everything is at its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One option, over the file and the environment: `server.listen=0.0.0.0:5000`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs the command that the process was started with.
#[must_use]
pub fn run() -> ExitCode {
    // No core file of it, nor another process of the same user, is to show the secrets that it holds.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        said::warn(&format!("its memory cannot be kept from core files: {error}"));
    }
    // Whatever makes a TLS connection without saying by which implementation uses this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let outcome = match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Check(check) => check.run(),
        Command::Health(health) => health.run(),
        Command::Setup(setup) => setup.run(),
        Command::Refresh(refresh) => refresh.run(),
        Command::Ls(ls) => ls.run(),
        Command::Pin(pin) => pin.run(),
        Command::Unpin(unpin) => unpin.run(),
        Command::Rm(rm) => rm.run(),
        Command::Du(du) => du.run(),
        Command::Pull(pull) => pull.run(),
        Command::Missing(missing) => missing.run(),
        Command::Verify(verify) => verify.run(),
        Command::Explain(explain) => explain.run(),
        Command::Export(export) => export.run(),
        Command::Import(import) => import.run(),
        Command::Top(top) => top.run(),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            said::warn(&message);
            ExitCode::FAILURE
        }
    }
}

/// Whether a value is a URL that names a user, as `http://user:password@host` does.
fn has_password(setting: &str) -> bool {
    setting
        .split("://")
        .skip(1)
        .any(|url| url.split(['/', ',', '?', '#']).next().is_some_and(|authority| authority.contains('@')))
}

// === impl Configured ===

impl Configured {
    fn load(&self) -> Result<Config, String> {
        if let Some(seen) = self.set.iter().find(|setting| has_password(setting)) {
            let key = seen.split('=').next().unwrap_or_default();
            return Err(format!(
                "--set {key}: every user of this machine can see a password on the command line; give it in the file or the environment"
            ));
        }
        // What is not UTF-8 is none of ours.
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Config::load(self.config.as_deref(), environment, &self.set).map_err(|error| error.to_string())
    }

    /// The same for a larder that runs by it. A file that says nothing any more is one that is being written, or for which the disk
    /// had no room, and would lift all limits.
    fn load_anew(&self) -> Result<Config, String> {
        let config = self.load()?;
        match &self.config {
            Some(file) if config::says_nothing(file).map_err(|error| error.to_string())? => {
                Err(format!("{} has no option in it", file.display()))
            }
            _ => Ok(config),
        }
    }
}
