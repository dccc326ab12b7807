//! The part of a request's body that did not come with its head.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::io::poll_read;
use crate::net::upload::UploadWriter;
use crate::wire::WireError;
use crate::wire::body::MessageBody;
use crate::wire::inbox::Inbox;

/// From so many bytes on, the rest of a body is read in place, so many at once.
const LEAST_PLACED: usize = 8 << 10;
const MOST_PLACED: usize = 64 << 10;

/// A body that is arriving, and its request's end of it.
pub(super) struct ArrivingBody {
    pub(super) body: MessageBody,
    pub(super) writer: UploadWriter,
    /// The client waits for an answer with status 100.
    pub(super) expects_continue: bool,
}

/// The part of a body that has come.
pub(super) enum Arrived {
    Part,
    /// The last part.
    End,
    /// Its end can't be found.
    Broken,
}

impl ArrivingBody {
    /// Gives the request the next piece of its body.
    pub(super) fn poll_piece<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        inbox: &mut Inbox,
        cx: &mut Context<'_>,
    ) -> Poll<Arrived> {
        let Self { body, writer, .. } = self;
        loop {
            let piece = body.take().unwrap_or_default();
            let end = match body.take_error() {
                Some(error) => Some(Err(error.into())),
                None => body.is_complete().then_some(Ok(())),
            };
            let arrived = match &end {
                None if piece.is_empty() => {
                    if inbox.is_empty() {
                        ready!(poll_feed(io, body, inbox, cx));
                    } else {
                        inbox.feed(body);
                    }
                    continue;
                }
                None => Arrived::Part,
                Some(Ok(())) => Arrived::End,
                Some(Err(_)) => Arrived::Broken,
            };
            writer.give(piece, end);
            return Poll::Ready(arrived);
        }
    }

    /// Reads what has come of a body that is not wanted. Returns whether that was the rest.
    pub(super) fn discard<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        inbox: &mut Inbox,
        cx: &mut Context<'_>,
    ) -> bool {
        let body = &mut self.body;
        if body.is_sound() {
            body.take();
            inbox.feed(body);
        }
        if body.is_sound() && !body.is_complete() {
            body.take();
            let _ = poll_feed(io, body, inbox, cx);
        }
        body.is_sound() && body.is_complete()
    }
}

/// Reads once for a body. What comes behind it goes into the inbox.
fn poll_feed<I: AsyncRead + Unpin>(
    io: &mut I,
    body: &mut MessageBody,
    inbox: &mut Inbox,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let placeable = usize::try_from(body.placeable()).unwrap_or(usize::MAX);
    let read = if placeable < LEAST_PLACED {
        ready!(poll_read(io, cx, |bytes| match bytes {
            [] => body.close(None),
            bytes => inbox.push(body.feed_part(bytes)),
        }))
    } else {
        // A long body is not copied on its way.
        let most = placeable.min(MOST_PLACED);
        let mut piece = Vec::with_capacity(most);
        // What comes behind the body is not read.
        let mut room = (&mut piece).limit(most);
        ready!(pin!(io.read_buf(&mut room)).poll(cx)).map(|count| match count {
            0 => body.close(None),
            // The room for what has not come would be kept with it.
            count if count < piece.capacity() / 2 => body.place(Bytes::copy_from_slice(&piece)),
            _ => body.place(piece.into()),
        })
    };
    if let Err(error) = read {
        body.close(Some(WireError::Io(error)));
    }
    Poll::Ready(())
}
