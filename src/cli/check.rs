//! `larder check`

use std::process::ExitCode;

use clap::Args;

use crate::app;

use super::Configured;
use super::said::say;

/// See whether larder could do its work here: configuration, files, disk, upstreams and clock, a line each. Exit code 1 if
/// something is to be done, and not if something is only to be thought about. Changes nothing, and may be asked beside a larder that runs.
#[derive(Args)]
pub(super) struct Check {
    #[command(flatten)]
    configured: Configured,
}

// === impl Check ===

impl Check {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let config = self.configured.load()?;
        say("ok    configuration: it can be read");
        config.doubts().iter().for_each(|doubt| say(&format!("doubt {doubt}")));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| error.to_string())?;
        let findings = runtime.block_on(app::check(&config));
        // A resolver that does not answer must not hold the process.
        runtime.shutdown_background();
        for finding in &findings {
            match &finding.outcome {
                Ok(found) => say(&format!("ok    {}: {found}", finding.what)),
                Err(why) => say(&format!("wrong {}: {why}", finding.what)),
            }
        }
        let well = findings.iter().all(|finding| finding.outcome.is_ok());
        Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
