//! An answer before it is sent: still whole in memory, so that a rule can change it.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header, response};

pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Headers that are left out in the end.
    without: &'static [&'static str],
}

// === impl Reply ===

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        let status = StatusCode::from_u16(status).expect("a status code");
        Self { status, headers: HeaderMap::new(), body: Bytes::new(), without: &[] }
    }

    pub(super) fn ok(media_type: &str, body: impl Into<Bytes>) -> Self {
        let reply = Self::new(200).header("content-type", media_type);
        reply.body(body)
    }

    /// An error as the distribution spec words it.
    pub(super) fn error(status: u16, code: &str) -> Self {
        let message = code.to_lowercase().replace('_', " ");
        let errors = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
        let reply = Self::new(status).header("content-type", "application/json");
        reply.body(errors.to_string())
    }

    pub(super) fn text(status: u16, text: &'static str) -> Self {
        let reply = Self::new(status).header("content-type", "text/plain; charset=utf-8");
        reply.body(text)
    }

    pub(super) fn redirect(status: u16, location: &str) -> Self {
        Self::new(status).header("location", location)
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Self {
        let value = value.parse().expect("a header's value");
        self.headers.insert(name, value);
        self
    }

    pub(super) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Leaves these headers out if it is a good answer.
    pub(super) fn without(self, headers: &'static [&'static str]) -> Self {
        if self.status == StatusCode::OK { Self { without: headers, ..self } } else { self }
    }

    /// The part that `Range` asks for, if this is a whole blob: 206 or 416. What is not understood, more
    /// than one range too, is ignored, and so is any range of an empty blob.
    pub(super) fn ranged(self, range: &str) -> Self {
        let size = self.body.len();
        let takes_ranges = self.headers.contains_key(header::ACCEPT_RANGES);
        if self.status != StatusCode::OK || !takes_ranges || size == 0 {
            return self;
        }
        match parse_range(range, size) {
            None => self,
            Some((first, last)) if first < size && first <= last => {
                let part = self.body.slice(first..=last);
                let content_range = format!("bytes {first}-{last}/{size}");
                let mut reply = self.header("content-range", &content_range).body(part);
                reply.status = StatusCode::PARTIAL_CONTENT;
                reply
            }
            Some(_) => {
                let content_range = format!("bytes */{size}");
                Self::error(416, "RANGE_INVALID").header("content-range", &content_range)
            }
        }
    }

    /// The head to send, with or without the length of the body, and the body.
    pub(super) fn into_parts(mut self, with_length: bool) -> (response::Parts, Bytes) {
        if with_length && !self.headers.contains_key(header::CONTENT_LENGTH) {
            let length = self.body.len().into();
            self.headers.insert(header::CONTENT_LENGTH, length);
        }
        for name in self.without {
            self.headers.remove(*name);
        }
        let (mut head, ()) = Response::new(()).into_parts();
        head.status = self.status;
        head.headers = self.headers;
        (head, self.body)
    }
}

/// First and last byte of `bytes=a-b`, `bytes=a-` or `bytes=-n`; the last is within the size.
fn parse_range(range: &str, size: usize) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    match (first, last) {
        ("", suffix) => Some((size.saturating_sub(suffix.parse().ok()?), size - 1)),
        (first, "") => Some((first.parse().ok()?, size - 1)),
        (first, last) => Some((first.parse().ok()?, last.parse::<usize>().ok()?.min(size - 1))),
    }
}
