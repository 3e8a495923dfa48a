//! What hyper is given to write. Of bytes that have gone out already it needs to know only how many there were; it passes them
//! on as it passes on bytes, by where they are, and the wire below knows the place that stands for them.

use std::io::IoSlice;

use bytes::Buf;

use crate::mirror::Piece;

/// A part of a body.
pub(super) struct Data(pub(super) Piece);

/// Nobody reads it, so that it takes no memory.
static STAND_IN: [u8; 256 << 10] = [0; 256 << 10];

/// Bytes are shown in slices of so many. rustls copies each on its own into a record, to where nothing is aligned; what is larger the C
/// library copies with `rep movsb`, which takes AMD's processors several times as long there.
const SLICE: usize = 2 << 10;

/// How many bytes at the beginning of `parts` are none, but stand for as many that have gone out.
pub(super) fn gone(parts: &[IoSlice<'_>]) -> usize {
    parts.iter().take_while(|part| is_stand_in(part)).map(|part| part.len()).sum()
}

pub(super) fn is_stand_in(bytes: &[u8]) -> bool {
    !bytes.is_empty() && STAND_IN.as_ptr_range().contains(&bytes.as_ptr())
}

impl Buf for Data {
    fn remaining(&self) -> usize {
        self.0.len()
    }

    /// # Panics
    /// Of what has gone out: whoever asks for one chunk wants to copy it. The wire is written to by `chunks_vectored`.
    fn chunk(&self) -> &[u8] {
        match &self.0 {
            Piece::Bytes(bytes) => bytes,
            Piece::Sent(0) => &[],
            Piece::Sent(_) => panic!("the bytes have gone out"),
        }
    }

    fn chunks_vectored<'a>(&'a self, parts: &mut [IoSlice<'a>]) -> usize {
        match &self.0 {
            Piece::Bytes(bytes) => {
                let slices = bytes.chunks(SLICE).map(IoSlice::new);
                parts.iter_mut().zip(slices).map(|(part, slice)| *part = slice).count()
            }
            Piece::Sent(length) => {
                let Some(first) = parts.first_mut().filter(|_| *length > 0) else { return 0 };
                *first = IoSlice::new(&STAND_IN[..STAND_IN.len().min(*length)]);
                1
            }
        }
    }

    fn advance(&mut self, count: usize) {
        match &mut self.0 {
            Piece::Bytes(bytes) => bytes.advance(count),
            Piece::Sent(length) => *length -= count,
        }
    }
}
