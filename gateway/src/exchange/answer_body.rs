//! The body of every answer to a client: whole, a replica's as it comes, or a stream that is held.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::exchange::heartbeat::Held;
use crate::exchange::relay::{Broken, Relay};
use crate::text::rope::Pieces;

/// What a client is sent.
pub(crate) enum Body {
    /// All there is.
    Whole(Pieces),
    /// A replica's answer as it comes.
    Relay(Box<Relay>),
    /// A stream of which nothing has come yet.
    Held(Box<Held>),
}

impl Body {
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self::Whole(bytes.into())
    }

    pub(crate) fn whole(pieces: Pieces) -> Self {
        Self::Whole(pieces)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(pieces) => Poll::Ready(pieces.pop().map(|piece| Ok(Frame::data(piece)))),
            Self::Relay(relay) => relay.poll_frame(cx).map(|next| Some(next?.map(Frame::data))),
            Self::Held(held) => held.poll_frame(cx).map(|next| Some(next?.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(pieces) => pieces.is_empty(),
            Self::Relay(relay) => relay.is_over(),
            Self::Held(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(pieces) => SizeHint::with_exact(pieces.len() as u64),
            Self::Relay(relay) => relay.size_hint(),
            Self::Held(_) => SizeHint::new(),
        }
    }
}
