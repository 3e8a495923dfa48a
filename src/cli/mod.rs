//! The command line; one file a subcommand.

mod health;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    Health(health::Health),
}

/// Runs the command that the process was started with.
#[must_use]
pub fn run() -> ExitCode {
    // Whatever makes a TLS connection without saying by which implementation uses this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let outcome = match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Health(health) => health.run(),
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            eprintln!("larder: {message}");
            ExitCode::FAILURE
        }
    }
}
