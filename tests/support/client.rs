//! A client that follows nothing, repeats nothing and hides nothing: it tells what came and how it ended.

use std::net::{IpAddr, SocketAddr};
use std::{io, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Version};
use reqwest::redirect;
use tokio::{net::TcpStream, time::timeout};

use super::{PATIENCE, images::digest_of, secrets};

/// Keeps its connections for the next request, as the clients of registries do.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
}

/// An answer that has ended.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub version: Version,
    pub headers: HeaderMap,
    /// All that arrived.
    pub body: Bytes,
    /// Whether the body ended as it should; if not, the connection broke after `body`.
    pub complete: bool,
}

/// An answer whose body is still to come. Dropped, it is a client that leaves: over HTTP/1.1 the
/// connection closes.
pub struct Streaming {
    pub status: u16,
    pub headers: HeaderMap,
    response: reqwest::Response,
    /// What arrived beyond what was asked for.
    ahead: BytesMut,
    ended: Option<Ended>,
    /// With what the stream was reset.
    reset: Option<h2::Reason>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Ended {
    Cleanly,
    Short,
}

/// GET on a connection of its own.
pub async fn get(url: impl AsRef<str>) -> Answer {
    Client::h1().get(url).await
}

/// HEAD on a connection of its own.
pub async fn head(url: impl AsRef<str>) -> Answer {
    Client::h1().head(url).await
}

/// GET with headers on a connection of its own.
pub async fn get_with(url: impl AsRef<str>, headers: &[(&str, &str)]) -> Answer {
    Client::h1().get_with(url, headers).await
}

/// GET on a connection of its own, whose body is read at the test's pace.
pub async fn stream(url: impl AsRef<str>) -> Streaming {
    Client::h1().stream(url).await
}

/// What such a client stands on, for who looks at what comes himself.
pub fn http(protocol: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> reqwest::Client {
    // Never used, as all is cleartext here. Given so that reqwest neither asks for a provider of the
    // whole process nor reads the system's certificates.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default protocol versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never());
    protocol(builder).build().expect("a client")
}

/// Sends these very bytes and returns all that comes until the other side closes, with FIN or RST. It
/// waits for that and panics in the end, so ask for `Connection: close`.
pub async fn raw(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut received = Vec::new();
    let exchanged = timeout(PATIENCE, exchange(address, bytes.as_ref(), &mut received)).await;
    secrets::search_heard(address, &received);
    match exchanged {
        Ok(Ok(())) => received,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => received,
        Ok(Err(error)) => panic!("{address}: {error}"),
        Err(_) => panic!("{address} did not close after {:?}", String::from_utf8_lossy(&received)),
    }
}

async fn exchange(address: SocketAddr, bytes: &[u8], received: &mut Vec<u8>) -> io::Result<()> {
    let stream = TcpStream::connect(address).await?;
    let mut rest = bytes;
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The other side may refuse before it has read all: what it says is then still to be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(error),
        }
    }
    let mut buffer = [0; 8192];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => received.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

// === impl Client ===

impl Client {
    /// HTTP/1.1, as almost every client pulls.
    pub fn h1() -> Self {
        Self::build(reqwest::ClientBuilder::http1_only)
    }

    /// HTTP/2 in cleartext, known beforehand.
    pub fn h2() -> Self {
        Self::build(reqwest::ClientBuilder::http2_prior_knowledge)
    }

    /// HTTP/1.1, from this address of the machine.
    pub fn from(address: &str) -> Self {
        let address: IpAddr = address.parse().expect("an address");
        Self::build(|builder| builder.http1_only().local_address(address))
    }

    /// By TLS, and by the protocol that is agreed on in it.
    pub fn tls(config: rustls::ClientConfig) -> Self {
        let builder = reqwest::Client::builder().tls_backend_preconfigured(config).no_proxy();
        let builder = builder.redirect(redirect::Policy::none()).retry(reqwest::retry::never());
        Self { http: builder.build().expect("a client") }
    }

    fn build(protocol: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> Self {
        Self { http: http(protocol) }
    }

    pub async fn get(&self, url: impl AsRef<str>) -> Answer {
        self.get_with(url, &[]).await
    }

    pub async fn get_with(&self, url: impl AsRef<str>, headers: &[(&str, &str)]) -> Answer {
        self.request(Method::GET, url, headers).await
    }

    pub async fn head(&self, url: impl AsRef<str>) -> Answer {
        self.request(Method::HEAD, url, &[]).await
    }

    /// Panics if no headers come; see [`try_get`](Self::try_get) where that is what is tested.
    pub async fn request(&self, method: Method, url: impl AsRef<str>, headers: &[(&str, &str)]) -> Answer {
        self.open(method, url, headers).await.rest().await
    }

    /// The answer, or why there was none: refused, or closed before the headers.
    pub async fn try_get(&self, url: impl AsRef<str>) -> Result<Answer, reqwest::Error> {
        let sent = self.send(Method::GET, url.as_ref(), &[]).await?;
        Ok(Streaming::new(sent).rest().await)
    }

    pub async fn stream(&self, url: impl AsRef<str>) -> Streaming {
        self.stream_with(url, &[]).await
    }

    pub async fn stream_with(&self, url: impl AsRef<str>, headers: &[(&str, &str)]) -> Streaming {
        self.open(Method::GET, url, headers).await
    }

    async fn open(&self, method: Method, url: impl AsRef<str>, headers: &[(&str, &str)]) -> Streaming {
        let url = url.as_ref();
        match self.send(method.clone(), url, headers).await {
            Ok(response) => Streaming::new(response),
            Err(error) => panic!("{method} {url} had no answer: {error:?}"),
        }
    }

    async fn send(&self, method: Method, url: &str, headers: &[(&str, &str)]) -> Result<reqwest::Response, reqwest::Error> {
        let mut request = self.http.request(method.clone(), url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match timeout(PATIENCE, request.send()).await {
            Ok(sent) => sent,
            Err(_) => panic!("{method} {url} had no answer in {PATIENCE:?}"),
        }
    }
}

// === impl Answer ===

impl Answer {
    /// The header's value, if there is one and it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{error} in {:?}", self.text()),
        }
    }

    /// The code of the first error in a body as the distribution spec words it.
    pub fn error_code(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        body["errors"][0]["code"].as_str().map(str::to_owned)
    }

    /// The digest of what arrived.
    pub fn digest(&self) -> String {
        digest_of(&self.body)
    }

    /// The same answer, if it came whole and with this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        let shown: String = self.text().chars().take(500).collect();
        assert_eq!(self.status, status, "{:?} {shown:?}", self.headers);
        assert!(self.complete, "ended after {} bytes: {:?}", self.body.len(), self.headers);
        self
    }
}

// === impl Streaming ===

impl Streaming {
    fn new(response: reqwest::Response) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            response,
            ahead: BytesMut::new(),
            ended: None,
            reset: None,
        }
    }

    /// The next bytes as they come; `None` at the end, of either kind.
    pub async fn next(&mut self) -> Option<Bytes> {
        if !self.ahead.is_empty() {
            return Some(self.ahead.split().freeze());
        }
        self.receive().await
    }

    /// The next `len` bytes, however they are cut on the wire; fewer only where the body ends.
    pub async fn take(&mut self, len: usize) -> Bytes {
        while self.ahead.len() < len
            && let Some(chunk) = self.receive().await
        {
            self.ahead.extend_from_slice(&chunk);
        }
        let len = len.min(self.ahead.len());
        self.ahead.split_to(len).freeze()
    }

    /// Reads to the end; the body of the answer is what was not taken before.
    pub async fn rest(mut self) -> Answer {
        while let Some(chunk) = self.receive().await {
            self.ahead.extend_from_slice(&chunk);
        }
        let answer = Answer {
            status: self.status,
            version: self.response.version(),
            headers: self.headers,
            body: self.ahead.freeze(),
            complete: self.ended == Some(Ended::Cleanly),
        };
        secrets::search_answer(self.response.url().port(), &answer);
        answer
    }

    /// Whether the body has ended cleanly: known only after `next` gave `None` or `take` gave less.
    pub fn complete(&self) -> bool {
        self.ended == Some(Ended::Cleanly)
    }

    /// With what the stream of HTTP/2 was reset, once it has been read to there.
    pub fn reset(&self) -> Option<h2::Reason> {
        self.reset
    }

    async fn receive(&mut self) -> Option<Bytes> {
        if self.ended.is_some() {
            return None;
        }
        let Ok(received) = timeout(PATIENCE, self.response.chunk()).await else {
            panic!("{} was silent for {PATIENCE:?}", self.response.url());
        };
        match received {
            Ok(Some(chunk)) => return Some(chunk),
            Ok(None) => self.ended = Some(Ended::Cleanly),
            Err(error) => {
                self.ended = Some(Ended::Short);
                let mut causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
                self.reset = causes.find_map(|cause| cause.downcast_ref::<h2::Error>()?.reason());
            }
        }
        None
    }
}
