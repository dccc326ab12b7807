//! A request's body while it arrives. It notes whether it was read to its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;

use crate::net::activity::Activity;
use crate::wire::WireError;

/// The reason why a body can't be read to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error(transparent)]
    Http2(#[from] hyper::Error),
    #[error(transparent)]
    Http1(#[from] WireError),
    /// The connection is served no longer.
    #[error("the connection is gone")]
    Gone,
}

impl UploadError {
    /// Whether the client has left, and no answer would reach it.
    pub(crate) fn is_client_gone(&self) -> bool {
        match self {
            Self::Http2(error) => error.is_incomplete_message() || error.is_closed(),
            // A client that has only closed its own side reads on.
            Self::Http1(error) => matches!(error, WireError::Io(_)),
            Self::Gone => true,
        }
    }
}

/// A body while it arrives. If it is dropped before its end, it reports to the connection that the
/// client may still be sending.
pub(crate) struct Upload {
    source: UploadSource,
    ended: bool,
    /// It can't be read to its end.
    failed: bool,
    activity: Arc<Activity>,
}

enum UploadSource {
    Http2(Incoming),
    /// A body that came whole with its head.
    Whole(Bytes),
    Pieces(UploadReader),
}

impl Upload {
    pub(crate) fn http2(body: Incoming, activity: Arc<Activity>) -> Self {
        Self { source: UploadSource::Http2(body), ended: false, failed: false, activity }
    }

    pub(crate) fn whole(body: Bytes, activity: Arc<Activity>) -> Self {
        Self { source: UploadSource::Whole(body), ended: true, failed: false, activity }
    }

    pub(crate) fn pieces(body: UploadReader, activity: Arc<Activity>) -> Self {
        Self { source: UploadSource::Pieces(body), ended: false, failed: false, activity }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let frame = match &mut self.source {
            UploadSource::Http2(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| Ok(frame?))
            }
            UploadSource::Whole(body) => {
                let data = std::mem::take(body);
                (!data.is_empty()).then(|| Ok(Frame::data(data)))
            }
            UploadSource::Pieces(body) => {
                ready!(body.poll(cx)).map(|piece| Ok(Frame::data(piece?)))
            }
        };
        self.ended |= frame.is_none();
        self.failed |= matches!(frame, Some(Err(_)));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            UploadSource::Http2(body) => body.is_end_stream(),
            UploadSource::Whole(body) => body.is_empty(),
            UploadSource::Pieces(body) => body.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            UploadSource::Http2(body) => body.size_hint(),
            UploadSource::Whole(body) => SizeHint::with_exact(body.len() as u64),
            UploadSource::Pieces(body) => {
                body.left.map_or_else(SizeHint::new, SizeHint::with_exact)
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.failed || (!self.ended && !self.is_end_stream()) {
            self.activity.left_unread();
        }
    }
}

/// A body between the connection that it comes on and the request that reads it. Both are polled by
/// the connection's task.
#[derive(Default)]
struct Transfer {
    piece: Option<Bytes>,
    /// The end behind the piece.
    end: Option<Result<(), UploadError>>,
    /// The request has asked for a piece and has not got it.
    wanted: bool,
    /// The request reads no further.
    dropped: bool,
    waker: Option<Waker>,
}

impl Transfer {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The request's end of a body. One piece is kept for it at most.
pub(crate) struct UploadReader {
    transfer: Arc<Mutex<Transfer>>,
    /// The number of bytes that are left, if the head says how many there are.
    left: Option<u64>,
}

impl UploadReader {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UploadError>>> {
        let mut transfer = self.transfer.lock();
        if let Some(piece) = transfer.piece.take() {
            self.left = self.left.map(|left| left.saturating_sub(piece.len() as u64));
            return Poll::Ready(Some(Ok(piece)));
        }
        match &mut transfer.end {
            None => {
                transfer.wanted = true;
                transfer.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(end) => {
                let end = std::mem::replace(end, Ok(()));
                Poll::Ready(end.err().map(Err))
            }
        }
    }

    fn is_over(&self) -> bool {
        let transfer = self.transfer.lock();
        transfer.piece.is_none() && matches!(transfer.end, Some(Ok(())))
    }
}

impl Drop for UploadReader {
    fn drop(&mut self) {
        self.transfer.lock().dropped = true;
    }
}

/// The connection's end of a body.
pub(crate) struct UploadWriter(Arc<Mutex<Transfer>>);

impl UploadWriter {
    /// Both ends of a body with `length` bytes, if that is known.
    pub(crate) fn new(length: Option<u64>) -> (Self, UploadReader) {
        let transfer = Arc::<Mutex<Transfer>>::default();
        let reader = UploadReader { transfer: Arc::clone(&transfer), left: length };
        (Self(transfer), reader)
    }

    /// Whether the request waits for a piece.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.lock().wanted
    }

    /// Whether the request reads no further.
    pub(crate) fn is_dropped(&self) -> bool {
        self.0.lock().dropped
    }

    /// Gives the request a piece that it waits for, which may be empty, and the end if there is one.
    pub(crate) fn give(&self, piece: Bytes, end: Option<Result<(), UploadError>>) {
        let mut transfer = self.0.lock();
        debug_assert!(transfer.piece.is_none() && transfer.end.is_none(), "it was not wanted");
        transfer.wanted = piece.is_empty() && end.is_none();
        transfer.piece = (!piece.is_empty()).then_some(piece);
        transfer.end = end;
        transfer.wake();
    }
}

impl Drop for UploadWriter {
    fn drop(&mut self) {
        let mut transfer = self.0.lock();
        if transfer.end.is_none() {
            transfer.end = Some(Err(UploadError::Gone));
            transfer.wake();
        }
    }
}
