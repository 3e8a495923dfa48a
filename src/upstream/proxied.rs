//! What is asked by way of a proxy, whose address is then the one that is dialled.

use std::sync::Arc;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

/// The rule for one upstream.
#[derive(Clone)]
pub(super) enum Proxied {
    Nothing,
    All,
    AsTheEnvironmentSays(Arc<Matcher>),
}

// === impl Proxied ===

impl Proxied {
    /// `proxy`: the option of the upstream.
    pub(super) fn by(proxy: &str) -> Self {
        match proxy {
            "" => Self::AsTheEnvironmentSays(Arc::new(Matcher::from_system())),
            "none" => Self::Nothing,
            _ => Self::All,
        }
    }

    pub(super) fn is(&self, url: &Url) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::AsTheEnvironmentSays(matcher) => url.as_str().parse::<Uri>().is_ok_and(|url| matcher.intercept(&url).is_some()),
        }
    }
}
