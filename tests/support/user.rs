//! A client that brings its own credentials, as docker and podman do: it logs in, then shows the token that it got.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Method;

use super::{Answer, Client, TestMirror};

/// Speaks to a larder under one host name, as the proxy with TLS before it passes on what clients send.
pub struct User {
    client: Client,
    url: String,
    host: String,
    pub authorization: Option<String>,
}

/// `Authorization` of a user with a password.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

// === impl User ===

impl User {
    /// One that shows nothing yet.
    pub fn at(mirror: &TestMirror, host: &str) -> Self {
        Self { client: Client::h1(), url: mirror.url(""), host: host.to_owned(), authorization: None }
    }

    /// The same client, showing this.
    pub fn showing(mut self, authorization: &str) -> Self {
        self.authorization = Some(authorization.to_owned());
        self
    }

    /// One that has got a token for this user and password.
    pub async fn login(mirror: &TestMirror, host: &str, user: &str, password: &str) -> Self {
        Self::at(mirror, host).showing(&basic(user, password)).with_token().await
    }

    /// One that has got a token for nobody.
    pub async fn nobody(mirror: &TestMirror, host: &str) -> Self {
        Self::at(mirror, host).with_token().await
    }

    /// Exchanges what it shows for a token, which it shows from now on.
    pub async fn with_token(self) -> Self {
        let token = self.get("/token").await.expect(200).json();
        let token = token["token"].as_str().expect("a token").to_owned();
        self.showing(&format!("Bearer {token}"))
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path).await
    }

    pub async fn head(&self, path: &str) -> Answer {
        self.request(Method::HEAD, path).await
    }

    pub async fn request(&self, method: Method, path: &str) -> Answer {
        let mut headers = vec![("host", self.host.as_str())];
        headers.extend(self.authorization.as_ref().map(|shown| ("authorization", shown.as_str())));
        self.client.request(method, format!("{}{path}", self.url), &headers).await
    }
}
