//! `larder completions` and `larder man`: for whoever packages larder.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use super::said::put;

/// Print what completes larder's commands in a shell.
#[derive(Args)]
pub(super) struct Completions {
    shell: Shell,
}

/// Print the manual of larder, or of one of its commands, for man.
#[derive(Args)]
pub(super) struct Man {
    command: Option<String>,
}

// === impl Completions ===

impl Completions {
    #[expect(clippy::unnecessary_wraps, reason = "as of all commands")]
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "larder", &mut text);
        put(&String::from_utf8_lossy(&text));
        Ok(ExitCode::SUCCESS)
    }
}

// === impl Man ===

impl Man {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let mut larder = Cli::command();
        larder.build();
        let page = match &self.command {
            None => larder,
            Some(name) => {
                let command = larder.find_subcommand(name).ok_or_else(|| format!("there is no command {name}"))?.clone();
                command.display_name(format!("larder-{name}"))
            }
        };
        let mut text = Vec::new();
        clap_mangen::Man::new(page).render(&mut text).map_err(|error| error.to_string())?;
        put(&String::from_utf8_lossy(&text));
        Ok(ExitCode::SUCCESS)
    }
}
