//! The page: one document with all that it needs in it, so that nothing else is asked for, and nothing else can be.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

/// The document, and what of it a browser may run.
pub(in crate::server) struct Page {
    pub(in crate::server) html: String,
    pub(in crate::server) policy: String,
}

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
/// In the order in which they need each other.
const SCRIPTS: [&str; 7] = [
    include_str!("page/tools.js"),
    include_str!("page/charts.js"),
    include_str!("page/overview.js"),
    include_str!("page/images.js"),
    include_str!("page/upstreams.js"),
    include_str!("page/setup.js"),
    include_str!("page/main.js"),
];

pub(super) fn page() -> &'static Page {
    static PAGE: LazyLock<Page> = LazyLock::new(Page::assembled);
    &PAGE
}

// === impl Page ===

impl Page {
    fn assembled() -> Self {
        let script = format!("\n\"use strict\";\n{}", SCRIPTS.concat());
        let (style, script) = (format!("\n{CSS}"), script);
        let html = HTML.replacen("/* page.css */", &style, 1).replacen("/* page.js */", &script, 1);
        let policy = format!(
            "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash(&style),
            hash(&script)
        );
        Self { html, policy }
    }
}

/// By which the policy names a text (<https://www.w3.org/TR/CSP3/#grammardef-hash-source>).
fn hash(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text.as_bytes())))
}
