//! Response bodies: nothing, bytes, or a stream; whoever drops one has told the log how much of it went out.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use crate::mirror::{Broken, ByteStream};

use super::log::AccessLine;

/// The body of a response.
pub(super) struct Body {
    content: Content,
    line: Option<AccessLine>,
}

enum Content {
    Bytes(Bytes),
    Stream(ByteStream),
    End,
}

// === impl Body ===

impl Body {
    pub(super) fn empty() -> Self {
        Self { content: Content::End, line: None }
    }

    pub(super) fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { content: if bytes.is_empty() { Content::End } else { Content::Bytes(bytes) }, line: None }
    }

    pub(super) fn stream(stream: ByteStream) -> Self {
        Self { content: Content::Stream(stream), line: None }
    }

    /// Writes `line` when the body is done with.
    pub(super) fn logged(mut self, line: AccessLine) -> Self {
        self.line = Some(line);
        self
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let next = match &mut self.content {
            Content::End => None,
            Content::Bytes(bytes) => Some(Ok(std::mem::take(bytes))),
            Content::Stream(stream) => match stream.as_mut().poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(next) => next,
            },
        };
        if !matches!((&self.content, &next), (Content::Stream(_), Some(Ok(_)))) {
            self.content = Content::End;
        }
        if let Some(line) = &mut self.line {
            match &next {
                Some(Ok(bytes)) => line.sent(bytes.len()),
                Some(Err(Broken)) => line.broke(),
                None => {}
            }
        }
        Poll::Ready(next.map(|next| next.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::End)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::End => SizeHint::with_exact(0),
            Content::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Stream(_) => SizeHint::default(),
        }
    }
}
