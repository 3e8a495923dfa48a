//! `larder setup`

mod receipt;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::app::offer;
use crate::setup::{Client, Plan, Way};

use super::Configured;
use super::said::{put, say};

use receipt::Outcome;

/// Tell what leads a client to this larder: what to put where. With --write, put it there, beside what stands there.
#[derive(Args)]
pub(super) struct Setup {
    client: Client,
    /// Write the files of this machine. What was there is kept in copies.
    #[arg(long)]
    write: bool,
    /// Put back what was there before.
    #[arg(long, conflicts_with = "write")]
    undo: bool,
    /// How clients reach larder, such as `https://mirror.example:5443`; without it, as clients on the same machine do.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The authority (PEM) that has signed larder's certificate, where the system does not know it.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Where the client's file system is.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    #[command(flatten)]
    configured: Configured,
}

// === impl Setup ===

impl Setup {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let note = self.client.note(&self.root);
        if self.undo {
            return Ok(told(&receipt::undo(&note)?));
        }
        let config = self.configured.load()?;
        let offer = offer(&config, self.url.as_deref())?;
        let ca = self.ca.as_deref().map(authority).transpose()?;
        if ca.is_some() && !offer.tls {
            return Err(format!("--ca is for https, and larder is at {}", offer.url()));
        }
        let way = Way { offer: &offer, ca, root: &self.root, here: true };
        let Plan { edits, words, then, notes } = self.client.plan(&way)?;
        let client = self.client.word();
        let mut code = ExitCode::SUCCESS;
        if self.write && edits.is_empty() {
            return Err(format!("{client} reads no file; give it what `larder setup {client}` shows"));
        }
        if self.write {
            let outcomes = receipt::write(&note, edits)?;
            let written = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Wrote { .. }));
            code = told(&outcomes);
            let root = if self.root == Path::new("/") { String::new() } else { format!(" --root {}", self.root.display()) };
            then.filter(|_| written).into_iter().for_each(|then| say(&format!("then: {then}")));
            say(&format!("undo: larder setup {client} --undo{root}"));
        } else {
            for edit in &edits {
                say(&format!("# {}", edit.path.display()));
                put(&(edit.merge)(None)?);
                say("");
            }
            words.iter().for_each(|word| say(word));
            then.into_iter().for_each(|then| say(&format!("# then: {then}")));
        }
        notes.iter().for_each(|note| say(&format!("# {note}")));
        if self.url.is_none() {
            say("# this is for clients on larder's own machine; for others, give --url");
        }
        Ok(code)
    }
}

/// Says what became of each file. Exit code 1 if one was left as it is.
fn told(outcomes: &[Outcome]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for outcome in outcomes {
        say(&match outcome {
            Outcome::Wrote { path, copy: Some(copy) } => {
                format!("wrote {}; what was there is {}", path.display(), copy.display())
            }
            Outcome::Wrote { path, copy: None } => format!("wrote {}; there was nothing", path.display()),
            Outcome::Same { path } => format!("{} says so already", path.display()),
            Outcome::Restored { path } => format!("{} is what it was", path.display()),
            Outcome::Removed { path } => format!("removed {}", path.display()),
            Outcome::Left { path, copy } => {
                code = ExitCode::FAILURE;
                let before =
                    copy.as_ref().map_or("there was nothing before".into(), |copy| format!("before it was {}", copy.display()));
                format!("left {}: it has been changed since larder wrote it; {before}", path.display())
            }
        });
    }
    code
}

/// The file, as it is found from anywhere, and what it says.
fn authority(file: &Path) -> Result<(String, String), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    let text = std::fs::read_to_string(file).map_err(failed)?;
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(format!("{}: there is no certificate in it (PEM)", file.display()));
    }
    Ok((std::path::absolute(file).map_err(failed)?.display().to_string(), text))
}
