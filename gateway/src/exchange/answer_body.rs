//! An answer on its way to a client: its body, and the replica that gave it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::exchange::finish::FinishedAnswer;
use crate::exchange::heartbeat::{HeldAnswer, HeldStep};
use crate::exchange::relay::{BrokenOff, Relay};
use crate::text::rope::Rope;
use crate::wire::lines::{BringsLines, HeaderLines};

/// The body of an answer to a client.
pub(crate) struct AnswerBody {
    content: Content,
    /// Headers beside those of the response, beginning with the replica's.
    pub(crate) lines: HeaderLines,
    /// The replica that gave the answer: the edge may name it in a header.
    pub(crate) answered_by: Option<SocketAddr>,
}

enum Content {
    Whole(Rope),
    /// A replica's answer as it comes.
    Relay(Box<Relay>),
    /// An answer that has not begun.
    Held(Box<HeldAnswer>),
    /// An error in place of an answer, after which the connection is cut.
    Cut(CutBody),
}

/// The end of an answer that a client must not take for a whole one.
struct CutBody {
    last: FinishedAnswer,
    /// Whether the last bytes had time to be written.
    flushed: bool,
}

impl CutBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, BrokenOff>> {
        let piece = match &mut self.last {
            FinishedAnswer::Whole(rope) => rope.pop(),
            FinishedAnswer::Relayed(relay) => ready!(relay.poll_frame(cx)).transpose()?,
        };
        if let Some(piece) = piece {
            return Poll::Ready(Ok(piece));
        }
        // What is not written is dropped when a body fails, and written when a body is pending.
        if !std::mem::replace(&mut self.flushed, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Err(BrokenOff::refused()))
    }
}

impl AnswerBody {
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self::of(Content::Whole(bytes.into()))
    }

    pub(crate) fn empty() -> Self {
        Self::of(Content::Whole(Rope::default()))
    }

    pub(crate) fn held(answer: HeldAnswer) -> Self {
        Self::of(Content::Held(Box::new(answer)))
    }

    /// The answer of a replica.
    pub(crate) fn of_replica(
        answer: FinishedAnswer,
        lines: HeaderLines,
        replica: SocketAddr,
    ) -> Self {
        let content = match answer {
            FinishedAnswer::Whole(rope) => Content::Whole(rope),
            FinishedAnswer::Relayed(relay) => Content::Relay(relay),
        };
        Self { content, lines, answered_by: Some(replica) }
    }

    /// The same without its bytes.
    pub(crate) fn without_content(self) -> Self {
        Self { content: Content::Whole(Rope::default()), ..self }
    }

    fn of(content: Content) -> Self {
        Self { content, lines: HeaderLines::default(), answered_by: None }
    }
}

impl BringsLines for AnswerBody {
    fn take_lines(&mut self) -> HeaderLines {
        std::mem::take(&mut self.lines)
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let content = &mut self.get_mut().content;
        loop {
            match content {
                Content::Whole(rope) => {
                    return Poll::Ready(rope.pop().map(|piece| Ok(Frame::data(piece))));
                }
                Content::Relay(relay) => {
                    return relay.poll_frame(cx).map(|next| Some(next?.map(Frame::data)));
                }
                Content::Cut(cut) => {
                    return cut.poll(cx).map(|piece| Some(piece.map(Frame::data)));
                }
                // The held request is dropped with the old value.
                Content::Held(held) => match ready!(held.poll(cx)) {
                    HeldStep::Heartbeat(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                    HeldStep::Answer(relay) => *content = Content::Relay(relay),
                    HeldStep::Whole(rope) => *content = Content::Whole(rope),
                    HeldStep::Error(event) => *content = Content::Whole(event.into()),
                    HeldStep::Cut(last) => {
                        *content = Content::Cut(CutBody { last, flushed: false })
                    }
                    HeldStep::ClientLeft => {
                        *content = Content::Whole(Rope::default());
                        return Poll::Ready(Some(Err(BrokenOff::client_left())));
                    }
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(rope) => rope.is_empty(),
            Content::Relay(relay) => relay.is_over(),
            Content::Held(_) | Content::Cut(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(rope) => SizeHint::with_exact(rope.len() as u64),
            Content::Relay(relay) => relay.size_hint(),
            Content::Held(_) | Content::Cut(_) => SizeHint::new(),
        }
    }
}
