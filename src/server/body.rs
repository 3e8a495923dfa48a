//! Response bodies: nothing, bytes, or a stream; whoever drops one has told the log how much of it went out.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use crate::mirror::{Broken, ByteStream, Piece, Pieces};

use super::buffers::Count;
use super::data::Data;
use super::files::OpenFile;
use super::log::{AccessLine, End};
use super::passage::{Appetite, LEAST, Passage};
use super::shares::Share;

/// The body of a response. Apart, as an answer is handed on from one to the next a dozen times.
pub(super) struct Body(Box<Inner>);

struct Inner {
    content: Content,
    /// Whether the last byte goes on its own, so that a stream of HTTP/2 is watched until its client has taken all before it.
    last_apart: bool,
    last: Option<Bytes>,
    /// How much is still to come, where that is known.
    left: Option<u64>,
    /// What was given to hyper last, in HTTP/2.
    given: usize,
    appetite: Appetite,
    /// No more is given before what was given is written.
    held_back: bool,
    passage: Option<Passage>,
    /// Who takes it; `None`: the operator.
    client: Option<IpAddr>,
    /// What its client may take of it.
    share: Option<Share>,
    /// What its request takes as long as it is answered.
    count: Option<Count>,
    /// The file that it is read from, where that counts.
    file: Option<OpenFile>,
    line: Option<Box<AccessLine>>,
}

enum Content {
    Bytes(Bytes),
    Stream(ByteStream),
    /// Not all of it can be had.
    Breaking,
    End,
}

/// Of an answer no larger than this, all may be left in memory for a stream of HTTP/2 that nobody reads.
const SMALL: u64 = 16 << 10;

// === impl Body ===

impl Body {
    pub(super) fn empty() -> Self {
        Self::new(Content::End, Appetite::new())
    }

    pub(super) fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let left = Some(bytes.len() as u64);
        let content = if bytes.is_empty() { Content::End } else { Content::Bytes(bytes) };
        let mut body = Self::new(content, Appetite::new());
        body.0.left = left;
        body
    }

    /// A stream, made so that its pieces have the size that the client takes.
    pub(super) fn streamed(stream: impl FnOnce(&Pieces) -> ByteStream) -> Self {
        let appetite = Appetite::new();
        Self::new(Content::Stream(stream(&appetite.pieces)), appetite)
    }

    fn new(content: Content, appetite: Appetite) -> Self {
        Self(Box::new(Inner {
            content,
            last_apart: false,
            last: None,
            left: None,
            given: 0,
            appetite,
            held_back: false,
            passage: None,
            client: None,
            share: None,
            count: None,
            file: None,
            line: None,
        }))
    }

    /// Writes `line` when the body is done with.
    pub(super) fn logged(mut self, mut line: Box<AccessLine>) -> Self {
        if matches!(self.0.content, Content::End) {
            line.ended(End::Complete);
        }
        self.0.line = Some(line);
        self
    }

    /// Is for this client, and goes no faster than that may take it.
    pub(super) fn taken_by(mut self, client: IpAddr, share: Option<Share>, count: Option<Count>) -> Self {
        (self.0.client, self.0.share, self.0.count) = (Some(client), share, count);
        self
    }

    /// Is read from this file.
    pub(super) fn reading(mut self, file: Option<OpenFile>) -> Self {
        self.0.file = file;
        self
    }

    /// How much of it is at hand, all of it.
    pub(super) fn at_hand(&self) -> usize {
        if let Content::Bytes(bytes) = &self.0.content { bytes.len() } else { 0 }
    }

    /// Sends it over this way. `length`: how much it is, where that is known.
    pub(super) fn over(mut self, passage: Passage, length: Option<u64>) -> Self {
        let this = &mut *self.0;
        this.left = this.left.or(length);
        if let Content::Bytes(bytes) = &mut this.content {
            *bytes = passage.buffers.hold_whole(std::mem::take(bytes), this.client);
        }
        this.last_apart = passage.stream.is_some() && this.left.is_some_and(|left| left > SMALL);
        if passage.stream.is_some() {
            // There may be a hundred that nobody reads; hyper takes the first piece of each all the same.
            this.appetite.pieces.set(LEAST);
        } else if this.left.is_some()
            && let Some(outlet) = passage.line.outlet()
        {
            // hyper cuts what has no length into chunks, which it would write around nothing.
            this.appetite.pieces.go_out_by(outlet);
        }
        // The head.
        passage.gives();
        this.passage = Some(passage);
        self
    }
}

// === impl Inner ===

impl Inner {
    /// The next bytes, as they come from where they come from.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, Broken>>> {
        match &mut self.content {
            Content::End => Poll::Ready(None),
            Content::Breaking => Poll::Ready(Some(Err(Broken))),
            Content::Bytes(bytes) => {
                // What is shared with others need not be cut for the sake of memory.
                let bytes = std::mem::take(bytes);
                self.content = Content::End;
                Poll::Ready(Some(Ok(bytes.into())))
            }
            Content::Stream(stream) => {
                if let Some(share) = &mut self.share {
                    ready!(share.poll_turn(cx));
                }
                if let Some(passage) = &self.passage {
                    // hyper would gather several of the small pieces that there are in a crowd.
                    if self.held_back || passage.is_crowded() {
                        self.held_back = true;
                        ready!(passage.poll_written(cx));
                        self.held_back = false;
                    }
                    self.appetite.asks(passage.most(self.client));
                }
                // A panic in there is this answer's alone.
                let polled = catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll_next(cx)));
                let next = ready!(polled.unwrap_or(Poll::Ready(Some(Err(Broken)))));
                if let (Some(share), Some(Ok(piece))) = (&mut self.share, &next) {
                    share.took(piece.len());
                }
                match &next {
                    Some(Ok(Piece::Bytes(_))) => self.appetite.gives(),
                    Some(Ok(Piece::Sent(_))) => {}
                    Some(Err(Broken)) => self.content = Content::Breaking,
                    None => self.content = Content::End,
                }
                let counted = |piece| match (piece, &self.passage) {
                    (Piece::Bytes(bytes), Some(passage)) => passage.hold(bytes, self.client).into(),
                    (piece, _) => piece,
                };
                Poll::Ready(next.map(|next| next.map(counted)))
            }
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Data>, Broken>>> {
        let pace = self.passage.as_ref().and_then(|passage| passage.stream.clone());
        if let Some(pace) = &pace {
            // hyper asks for more when it has sent what it had.
            pace.took(std::mem::take(&mut self.given));
        }
        let next = match self.last.take() {
            Some(last) => Some(Ok(last.into())),
            None => ready!(self.poll_next(cx)),
        };
        let mut piece = match next {
            Some(Ok(piece)) => piece,
            Some(Err(Broken)) => {
                self.line.iter_mut().for_each(|line| line.ended(End::Broken));
                // The client is to have all that came before, and hyper throws away what it has not written yet.
                if let Some(passage) = &self.passage {
                    ready!(passage.poll_written(cx));
                }
                self.content = Content::End;
                return Poll::Ready(Some(Err(Broken)));
            }
            None => {
                self.line.iter_mut().for_each(|line| line.ended(End::Complete));
                return Poll::Ready(None);
            }
        };
        if let Piece::Bytes(bytes) = &mut piece {
            if self.last_apart && bytes.len() > 1 && self.left == Some(bytes.len() as u64) {
                self.last = Some(bytes.split_off(bytes.len() - 1));
            }
            self.passage.iter().for_each(Passage::gives);
        }
        let length = piece.len();
        self.left = self.left.map(|left| left.saturating_sub(length as u64));
        if let Some(line) = &mut self.line {
            line.sent(length);
            if self.left == Some(0) {
                line.ended(End::Complete);
            }
        }
        if let Some(pace) = pace {
            self.given = length;
            pace.waits();
        }
        Poll::Ready(Some(Ok(Frame::data(Data(piece)))))
    }
}

impl hyper::body::Body for Body {
    type Data = Data;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Data>, Broken>>> {
        self.0.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0.content, Content::End) && self.0.last.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0.content {
            Content::End => SizeHint::with_exact(0),
            Content::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Stream(_) | Content::Breaking => SizeHint::default(),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let (Some(line), Some(passage)) = (&mut self.line, &self.passage) {
            if passage.is_lost() {
                line.ended(End::Slow);
            } else if passage.line.is_cut() {
                line.ended(End::Stopped);
            }
        }
    }
}
