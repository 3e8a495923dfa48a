//! `larder refresh`

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use super::Configured;

/// Ask for tags upstream now, however fresh they are: after a push, say. Exit code 1 if one could not be asked for.
#[derive(Args)]
pub(super) struct Refresh {
    /// Images as for `docker pull`: nginx:1.27, ghcr.io/org/app.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Where the running larder listens for its operator; without it, as the configuration says.
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    #[command(flatten)]
    configured: Configured,
}

#[derive(Deserialize)]
struct Refreshed {
    image: String,
    digest: String,
    moved: bool,
}

#[derive(Deserialize)]
struct Refused {
    errors: Vec<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    message: String,
}

/// Longer than larder waits for any upstream.
const TIMEOUT: Duration = Duration::from_mins(2);

// === impl Refresh ===

impl Refresh {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let admin = match &self.admin {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => self.configured.admin_url()?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        runtime.block_on(async {
            let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build().map_err(|error| error.to_string())?;
            let mut code = ExitCode::SUCCESS;
            for image in &self.images {
                match refresh(&client, &admin, image).await {
                    Ok(line) => _ = writeln!(std::io::stdout(), "{line}"),
                    Err(why) => {
                        eprintln!("larder: {image}: {why}");
                        code = ExitCode::FAILURE;
                    }
                }
            }
            Ok(code)
        })
    }
}

async fn refresh(client: &reqwest::Client, admin: &str, image: &str) -> Result<String, String> {
    let image: String = form_urlencoded::byte_serialize(image.as_bytes()).collect();
    let request = client.post(format!("{admin}/api/refresh?image={image}")).header("x-larder", "1");
    let unanswered = |error: reqwest::Error| format!("{admin} does not answer: {}", error.without_url());
    let response = request.send().await.map_err(unanswered)?;
    let status = response.status();
    let body = response.bytes().await.map_err(unanswered)?;
    if let Ok(Refreshed { image, digest, moved }) = serde_json::from_slice(&body) {
        return Ok(if moved { format!("{image} moved to {digest}") } else { format!("{image} has not moved") });
    }
    // The listener for clients refuses every POST.
    let refused = serde_json::from_slice::<Refused>(&body).ok().filter(|_| status != reqwest::StatusCode::METHOD_NOT_ALLOWED);
    let reason = refused.and_then(|refused| refused.errors.into_iter().next());
    Err(reason.map_or_else(|| format!("{admin} answers {status}; is it larder's admin.listen?"), |reason| reason.message))
}
