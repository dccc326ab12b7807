//! HTTP/1 with a client: reads a request, lets it be answered, writes the answer, and begins again.
//!
//! One request is served at a time, and the next one is not read before the answer has gone out. A
//! connection keeps no buffers between two requests: each thread has one for reading and one for
//! writing. The bytes that a request consists of are copied once, into exactly their size, so a
//! request that is held keeps nothing else in memory. `wire` knows the format.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::net::activity::Activity;
use crate::net::http_date;
use crate::net::upgrade::{OnUpgrade, Upgraded};
use crate::net::upload::{Upload, UploadWriter};
use crate::wire::inbox::Inbox;
use crate::wire::lines::{BringsLines, HeaderLines};
use crate::wire::outbox::{Outbox, RequestLine, ResponseFraming};
use crate::wire::request::{HeadError, HeadLimits, RequestStart};

mod arriving;
#[cfg(any(test, fuzzing))]
pub(crate) mod echo;
mod io;
#[cfg(test)]
mod tests;

use arriving::{Arrived, ArrivingBody};
use io::{poll_flush, poll_read, write_buffer};

/// The steps that a connection takes before the other ones of its thread have their turn.
const STEPS: usize = 32;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The reason why a connection ended other than in good order.
pub(crate) type ConnectionError = Box<dyn Error + Send + Sync>;

/// How a connection is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Http1Settings {
    pub(crate) limits: HeadLimits,
    /// Whether it is read while a request is answered, to notice that the client leaves. Otherwise
    /// each request watches the socket for that.
    pub(crate) watches: bool,
}

/// One client's connection. `S` begins a request, whose future is `F`, and `B` is an answer's body.
pub(crate) struct Http1<I, S, F, B> {
    io: I,
    serve: S,
    settings: Http1Settings,
    activity: Arc<Activity>,
    phase: Phase<F, B>,
    inbox: Inbox,
    out: Outbox,
    /// Whether another request may follow the present one.
    keep_alive: bool,
    /// No request follows the present one: the gateway ends the connection.
    ends: bool,
    /// Takes the connection if the present request's answer switches to another protocol.
    upgrade: Option<oneshot::Sender<Upgraded>>,
}

enum Phase<F, B> {
    Head,
    Request(RunningRequest<F>),
    Answer(B, ResponseFraming),
    /// The whole answer is in `out`. Its request counts as one until it is written.
    Written {
        _body: B,
    },
    /// The rest of `out` is written, and then the gateway's side is closed.
    Closing(Option<HeadError>),
    /// The protocol is another one from now on.
    Switched,
}

struct RunningRequest<F> {
    future: Pin<Box<F>>,
    asked: RequestLine,
    /// The part of its body that has not come.
    arriving: Option<Box<ArrivingBody>>,
}

impl<I, S, F, B> Http1<I, S, F, B>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: FnMut(Request<Upload>) -> F,
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body<Data = Bytes> + BringsLines + Unpin,
    B::Error: Into<ConnectionError>,
{
    /// A connection of which the bytes in `read` have been read.
    pub(crate) fn new(
        io: I,
        read: Bytes,
        settings: Http1Settings,
        activity: Arc<Activity>,
        serve: S,
    ) -> Self {
        Self {
            io,
            serve,
            settings,
            activity,
            phase: Phase::Head,
            inbox: Inbox::new(read.into()),
            out: Outbox::default(),
            keep_alive: true,
            ends: false,
            upgrade: None,
        }
    }

    /// Lets the connection end with the next answer that can say so, or with the next poll if no request
    /// has come by then.
    pub(crate) fn end(&mut self) {
        self.ends = true;
    }

    /// The connection, the bytes that came behind the last request, and the place where both are
    /// expected, if the protocol is another one from now on.
    pub(crate) fn into_switched(mut self) -> Option<(oneshot::Sender<Upgraded>, I, Bytes)> {
        let upgrade = self.upgrade.filter(|_| matches!(self.phase, Phase::Switched))?;
        Some((upgrade, self.io, self.inbox.take().into()))
    }

    /// Serves the connection. Ready when it is closed, or the protocol is another one.
    ///
    /// # Errors
    /// The client left within a request or an answer, its request was not valid, or an answer broke
    /// off.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        for _ in 0..STEPS {
            let stepped = match &self.phase {
                Phase::Head => self.poll_head(cx),
                Phase::Request(_) => self.poll_request(cx),
                Phase::Answer(..) => self.poll_answer(cx),
                Phase::Written { .. } => self.poll_written(cx),
                Phase::Closing(_) => return self.poll_close(cx),
                Phase::Switched => return Poll::Ready(Ok(())),
            };
            ready!(stepped)?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads a head and begins its request.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let Self { io, inbox, settings, ends, .. } = self;
        let start = loop {
            let read = if inbox.is_unseen() {
                inbox.read_head(&[], settings.limits)
            } else {
                let read = poll_read(io, cx, |bytes| {
                    (!bytes.is_empty()).then(|| inbox.read_head(bytes, settings.limits))
                })?;
                match read {
                    Poll::Ready(Some(read)) => read,
                    Poll::Ready(None) if !inbox.is_blank() => {
                        return Poll::Ready(Err("the client left within a head".into()));
                    }
                    Poll::Pending if !*ends || !inbox.is_blank() => return Poll::Pending,
                    // One side ends it, and no request is on it.
                    Poll::Ready(None) | Poll::Pending => {
                        self.phase = Phase::Closing(None);
                        return Poll::Ready(Ok(()));
                    }
                }
            };
            match read {
                Ok(Some(start)) => break start,
                Ok(None) => {}
                Err(error) => {
                    self.refuse(error);
                    return Poll::Ready(Ok(()));
                }
            }
        };
        self.begin(start);
        Poll::Ready(Ok(()))
    }

    /// Begins a request.
    fn begin(&mut self, start: Box<RequestStart>) {
        let RequestStart { mut parts, mut body, keep_alive, expects_continue, upgrade, .. } =
            *start;
        self.keep_alive = keep_alive;
        // The other protocol begins behind the whole request (RFC 9110, 7.8).
        self.upgrade = (upgrade && body.is_complete()).then(|| {
            let (sender, on_upgrade) = OnUpgrade::new();
            parts.extensions.insert(on_upgrade);
            sender
        });
        let asked = RequestLine { method: parts.method.clone(), version: parts.version };
        let activity = Arc::clone(&self.activity);
        let (upload, arriving) = if body.is_complete() {
            (Upload::whole(body.take().unwrap_or_default(), activity), None)
        } else {
            let (writer, reader) = UploadWriter::new(body.left());
            let arriving = ArrivingBody { body, writer, expects_continue };
            (Upload::pieces(reader, activity), Some(Box::new(arriving)))
        };
        let future = Box::pin((self.serve)(Request::from_parts(parts, upload)));
        self.phase = Phase::Request(RunningRequest { future, asked, arriving });
    }

    /// Answers a head that is not valid, and closes.
    fn refuse(&mut self, error: HeadError) {
        let (mut head, ()) = Response::new(()).into_parts();
        head.status = error.status();
        let asked = RequestLine { method: Method::GET, version: Version::HTTP_11 };
        let lines = HeaderLines::default();
        self.out.push_head(&head, &lines, &asked, None, false, http_date::now);
        self.phase = Phase::Closing(Some(error));
        // Bytes behind it are not read, and would turn the end into a reset.
        self.activity.left_unread();
    }

    /// Lets the present request be answered, and reads its body as far as that is asked for.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        loop {
            let Phase::Request(request) = &mut self.phase else { return Poll::Ready(Ok(())) };
            if let Poll::Ready(Ok(response)) = request.future.as_mut().poll(cx) {
                self.answer(response, cx);
                return Poll::Ready(Ok(()));
            }
            let Some(arriving) = &mut request.arriving else { break };
            if arriving.writer.is_dropped() {
                let read = arriving.discard(&mut self.io, &mut self.inbox, cx);
                self.keep_alive &= read;
                request.arriving = None;
                break;
            }
            if !arriving.writer.is_wanted() {
                break;
            }
            if mem::take(&mut arriving.expects_continue) {
                self.out.push(CONTINUE);
            }
            let _ = poll_flush(&mut self.io, &mut self.out, cx)?;
            let Self { io, inbox, keep_alive, .. } = self;
            let piece = arriving.poll_piece(io, inbox, cx);
            match piece {
                Poll::Ready(Arrived::Part) => {}
                Poll::Ready(Arrived::End) => request.arriving = None,
                Poll::Ready(Arrived::Broken) => {
                    *keep_alive = false;
                    request.arriving = None;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        self.poll_left(cx)
    }

    /// Notices that the client leaves, where the settings ask for that. Never ready without an error.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        if let Phase::Request(RunningRequest { arriving: Some(_), .. }) = &self.phase {
            // The rest of the body comes first.
            return Poll::Pending;
        }
        while self.settings.watches && self.inbox.is_empty() {
            let Self { io, inbox, .. } = self;
            let left = ready!(poll_read(io, cx, |bytes| {
                inbox.push(bytes);
                bytes.is_empty()
            }))?;
            if left {
                return Poll::Ready(Err("the client left".into()));
            }
        }
        Poll::Pending
    }

    /// Begins the answer to the present request.
    fn answer(&mut self, response: Response<B>, cx: &mut Context<'_>) {
        let Phase::Request(RunningRequest { asked, arriving, .. }) =
            mem::replace(&mut self.phase, Phase::Head)
        else {
            return;
        };
        if let Some(mut arriving) = arriving {
            // What the client still sends would have to be read before the next request.
            self.keep_alive &= arriving.discard(&mut self.io, &mut self.inbox, cx);
        }
        let (head, mut body) = response.into_parts();
        if head.status != StatusCode::SWITCHING_PROTOCOLS {
            self.upgrade = None;
        }
        if self.out.is_empty() {
            self.out = Outbox::with_buffer(write_buffer());
        }
        let size = (!body.is_end_stream()).then(|| body.size_hint());
        let keep_alive = self.keep_alive && !self.ends;
        let lines = body.take_lines();
        let (framing, keep_alive) =
            self.out.push_head(&head, &lines, &asked, size, keep_alive, http_date::now);
        self.keep_alive = keep_alive;
        self.activity.set_unframed(framing == ResponseFraming::Close);
        self.phase = match framing {
            ResponseFraming::Length(0) => Phase::Written { _body: body },
            framing => Phase::Answer(body, framing),
        };
    }

    /// Writes the body of the present answer.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        loop {
            let Phase::Answer(body, framing) = &mut self.phase else { return Poll::Ready(Ok(())) };
            if !self.out.has_room() {
                ready!(poll_flush(&mut self.io, &mut self.out, cx))?;
            }
            let (piece, last) = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(frame)) => match frame.map_err(Into::into)?.into_data() {
                    Ok(data) => (data, body.is_end_stream()),
                    // There are no trailers.
                    Err(_) => continue,
                },
                Poll::Ready(None) => (Bytes::new(), true),
                Poll::Pending => {
                    let _ = poll_flush(&mut self.io, &mut self.out, cx)?;
                    return self.poll_left(cx);
                }
            };
            if self.out.is_empty() {
                self.out = Outbox::with_buffer(write_buffer());
            }
            self.out.push_piece(framing, piece, last)?;
            if last || *framing == ResponseFraming::Length(0) {
                if let Phase::Answer(body, _) = mem::replace(&mut self.phase, Phase::Head) {
                    self.phase = Phase::Written { _body: body };
                }
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Writes the rest of an answer.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        ready!(poll_flush(&mut self.io, &mut self.out, cx))?;
        self.activity.set_unframed(false);
        if self.upgrade.is_some() {
            self.phase = Phase::Switched;
        } else if self.keep_alive {
            // Even if the gateway ends the connection, which it does there: this answer promised that
            // another request may follow.
            self.phase = Phase::Head;
            if !self.inbox.is_blank() {
                // The next head has begun. Until now there was a request, which has other limits.
                self.activity.received();
            }
        } else {
            let Self { io, inbox, .. } = self;
            let _ = poll_read(io, cx, |bytes| inbox.push(bytes));
            if !inbox.is_empty() {
                // Another request, which would turn the end into a reset.
                self.activity.left_unread();
            }
            self.phase = Phase::Closing(None);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        ready!(poll_flush(&mut self.io, &mut self.out, cx))?;
        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        Poll::Ready(match &self.phase {
            Phase::Closing(Some(error)) => Err((*error).into()),
            _ => Ok(()),
        })
    }
}
