//! Whether an upstream is there and knows larder: for its operator, who asks for nothing else.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};
use tokio::time::Instant;

use crate::room::Askers;

use super::Upstream;
use super::auth::Login;
use super::behalf::ClientCredential;
use super::endpoint::Endpoint;
use super::error::Error;

/// What came of asking one address as one account.
pub struct Ping {
    /// The address, and as whom it was asked.
    pub what: String,
    pub outcome: Result<(), Error>,
    pub took: Duration,
    /// The time by its clock.
    pub date: Option<SystemTime>,
}

// === impl Upstream ===

impl Upstream {
    /// Asks each of its addresses as each account that may be shown there; none where larder is offline.
    ///
    /// Cancel safe.
    pub async fn ping(&self) -> Vec<Ping> {
        let mut pings = Vec::new();
        for endpoint in &self.endpoints {
            let date = date(endpoint).await;
            let host = endpoint.client.host();
            let accounts = self.accounts.get();
            for account in accounts.iter().filter(|_| endpoint.trusted) {
                let begun = Instant::now();
                let outcome = match account.login().await {
                    Ok(login) => endpoint.auth.check(&login, &Askers::default()).await.flatten(),
                    Err(error) => Err(error),
                };
                pings.push(Ping { what: format!("{host} as {}", account.label()), outcome, took: begun.elapsed(), date });
            }
            if !endpoint.trusted {
                let begun = Instant::now();
                let outcome = endpoint.auth.check(&Login::of(&ClientCredential::nobody()), &Askers::default()).await.flatten();
                pings.push(Ping { what: format!("{host} as anonymous"), outcome, took: begun.elapsed(), date });
            }
        }
        pings
    }
}

async fn date(endpoint: &Endpoint) -> Option<SystemTime> {
    let answer = endpoint.client.get(endpoint.client.base(), HeaderMap::new(), &Askers::default()).await.ok()?;
    httpdate::parse_http_date(answer.headers().get(header::DATE)?.to_str().ok()?).ok()
}
