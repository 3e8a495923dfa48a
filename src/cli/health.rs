//! `larder health`: for a container without a shell.

use std::error::Error as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

/// Ask a running larder whether it answers; exit code 0 if so.
#[derive(Args)]
pub(super) struct Health {
    /// Where it listens.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5000")]
    url: String,
    /// Where it listens for its operator: to be told besides what keeps it from doing all its work.
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// The authority (PEM) that has signed its certificate, where the system does not know it.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

const TIMEOUT: Duration = Duration::from_secs(5);

// === impl Health ===

impl Health {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        runtime.block_on(async {
            let url = format!("{}/v2/", self.url.trim_end_matches('/'));
            let by_tls = [Some(&self.url), self.admin.as_ref()].into_iter().flatten().any(|url| url.starts_with("https:"));
            let client = client(self.ca.as_deref(), by_tls)?;
            let response = client.get(&url).send().await.map_err(|error| format!("{url} does not answer: {error}"))?;
            match response.status().as_u16() {
                // Where clients bring their own credentials, it answers with a challenge.
                200 | 401 => {}
                status => return Err(format!("{url} answers {status}")),
            }
            if let Some(admin) = self.admin {
                let url = format!("{}/readyz", admin.trim_end_matches('/'));
                let asked = client.get(&url).send().await.and_then(reqwest::Response::error_for_status);
                let health = asked.map_err(|error| format!("{url} does not answer: {error}"))?.text().await.unwrap_or_default();
                // Nobody need be there to read it.
                let _ = writeln!(std::io::stdout(), "{health}");
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// Trusts what the system does, or this authority alone; in cleartext nobody, as a system may trust nobody.
fn client(ca: Option<&Path>, by_tls: bool) -> Result<reqwest::Client, String> {
    let mut client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT);
    if let Some(file) = ca {
        let wrong = |error: &dyn std::fmt::Display| format!("--ca {}: {error}", file.display());
        let text = std::fs::read(file).map_err(|error| wrong(&error))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&text).map_err(|error| wrong(&error))?;
        client = client.tls_certs_only(certificates);
    } else if !by_tls {
        client = client.tls_certs_only([]);
    }
    let why = |error: reqwest::Error| error.source().map_or_else(|| error.to_string(), ToString::to_string);
    client.build().map_err(|error| format!("{}; say by --ca FILE who is to be trusted", why(error)))
}
