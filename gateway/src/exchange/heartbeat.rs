//! A client that waits long: kept alive by heartbeats until there is an answer.
//!
//! The first heartbeat sends status 200. So every later error of a stream is an event, in the form of
//! its API. A plain answer's heartbeats are line feeds before its JSON; a later error is the usual JSON,
//! after which the connection is cut, since clients take any JSON with status 200 for an answer. The
//! request is still tried again as before: a heartbeat commits nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::answer::api::Api;
use crate::answer::plain::AnswerHead;
use crate::answer::refusal::Refusal;
use crate::exchange::attempt::Committed;
use crate::exchange::cutoff::ClientGone;
use crate::exchange::dispatch::DispatchResult;
use crate::exchange::finish::{FinishedAnswer, RelayLimits, finish_json, finish_stream};
use crate::exchange::record::Record;
use crate::exchange::relay::Relay;
use crate::pool::ExpectedStart;
use crate::read::scan::Scan;
use crate::text::rope::Rope;

/// A dispatch that is under way.
pub(crate) type RunningDispatch =
    Pin<Box<dyn Future<Output = DispatchResult<Box<Committed>>> + Send>>;

/// The body of an answer that has not begun. Dropping it when the client leaves takes the request
/// out of the queue or off its endpoint at once.
pub(crate) struct HeldAnswer {
    beats: HeldBeats,
    dispatch: RunningDispatch,
    /// `None` after the answer has begun.
    client_gone: Option<ClientGone>,
    ending: CancellationToken,
    /// The first heartbeat, which goes out with the head.
    first: Option<Bytes>,
    next: Pin<Box<Sleep>>,
}

/// The form of a held answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldForm {
    Stream(Api),
    /// One JSON text, with errors of this API.
    Plain(Api),
}

impl HeldForm {
    /// The form of the answer to a request with this `scan`; `None` if nothing may come before it.
    pub(crate) fn of(api: Api, scan: &Scan) -> Option<Self> {
        if scan.stream && api.streams() {
            return Some(Self::Stream(api));
        }
        // An answer to a form may be plain text, in which a line feed means something. So it does in
        // an answer of bytes.
        (!api.multipart() && !scan.wants_bytes).then_some(Self::Plain(api))
    }

    /// Whether it is a stream, whose heartbeats say when the request will start.
    pub(crate) fn is_stream(self) -> bool {
        matches!(self, Self::Stream(_))
    }
}

/// The heartbeats of one client.
pub(crate) struct HeldBeats {
    pub(crate) form: HeldForm,
    pub(crate) every: Duration,
    /// Shows when the request will start.
    pub(crate) expected: Option<Arc<ExpectedStart>>,
}

impl HeldBeats {
    fn next(&self, now: Instant) -> Bytes {
        match self.form {
            HeldForm::Stream(api) => {
                api.heartbeat(self.expected.as_ref().and_then(|expected| expected.wait(now)))
            }
            HeldForm::Plain(_) => Bytes::from_static(b"\n"),
        }
    }
}

/// The next part of a held answer.
pub(crate) enum HeldStep {
    Heartbeat(Bytes),
    /// The answer has begun: its relay takes over.
    Answer(Box<Relay>),
    /// The whole answer.
    Whole(Rope),
    /// The only event: an error.
    Error(Bytes),
    /// An error, after which the connection is cut.
    Cut(FinishedAnswer),
    ClientLeft,
}

impl HeldAnswer {
    /// The beginning of an answer: a head with `headers`, and a first heartbeat.
    pub(crate) fn respond(
        beats: HeldBeats,
        (dispatch, client_gone): (RunningDispatch, ClientGone),
        ending: CancellationToken,
        headers: HeaderMap,
        accepted: Instant,
    ) -> Response<Self> {
        let (form, every) = (beats.form, beats.every);
        let mut response = Response::new(Self {
            first: Some(beats.next(Instant::now())),
            beats,
            dispatch,
            client_gone: Some(client_gone),
            ending,
            next: Box::pin(sleep(every)),
        });
        *response.headers_mut() = headers;
        let headers = response.headers_mut();
        let kind = match form {
            HeldForm::Stream(_) => "text/event-stream; charset=utf-8",
            HeldForm::Plain(_) => "application/json",
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let total = accepted.elapsed().as_secs_f64() * 1e3;
        if let Ok(timing) = HeaderValue::from_str(&format!("total;dur={total:.1}")) {
            headers.insert("server-timing", timing);
        }
        response
    }

    /// Polls for the next part. Any part but a heartbeat is the last: it must not be polled again.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<HeldStep> {
        if let Some(heartbeat) = self.first.take() {
            return Poll::Ready(HeldStep::Heartbeat(heartbeat));
        }
        let Some(client_gone) = &mut self.client_gone else {
            return Poll::Ready(HeldStep::ClientLeft);
        };
        if let Poll::Ready(dispatched) = self.dispatch.as_mut().poll(cx) {
            let client_gone = self.client_gone.take();
            return Poll::Ready(
                client_gone.map_or(HeldStep::ClientLeft, |client_gone| {
                    self.begin(dispatched, client_gone)
                }),
            );
        }
        if client_gone.as_mut().poll(cx).is_ready() {
            return Poll::Ready(HeldStep::ClientLeft);
        }
        ready!(self.next.as_mut().poll(cx));
        let now = Instant::now();
        self.next.as_mut().reset(now + self.beats.every);
        Poll::Ready(HeldStep::Heartbeat(self.beats.next(now)))
    }

    fn begin(
        &self,
        dispatched: DispatchResult<Box<Committed>>,
        client_gone: ClientGone,
    ) -> HeldStep {
        let DispatchResult { result, mut record, pool, deadline, continuation } = dispatched;
        record.head_sent(200);
        let (committed, slot) = match result {
            Ok(committed) => committed,
            Err(refusal) => return self.refused(&refusal, record),
        };
        let Committed { head, start } = *committed;
        let limits = || {
            let stall = pool.settings().upstream.stall_timeout;
            let (ending, heartbeat) = (self.ending.clone(), self.beats.every);
            RelayLimits { stall, deadline, client_gone, ending, continuation, heartbeat }
        };
        let api = match self.beats.form {
            HeldForm::Stream(api) => api,
            HeldForm::Plain(api) => {
                let json = AnswerHead::new(&head, head.content_type()).json;
                return match finish_json(start, json, slot, record, limits) {
                    // The replica's refusal.
                    Ok(refusal) if head.status != StatusCode::OK => HeldStep::Cut(refusal),
                    Ok(FinishedAnswer::Relayed(relay)) => HeldStep::Answer(relay),
                    Ok(FinishedAnswer::Whole(body)) => HeldStep::Whole(body),
                    Err(failure) => cut(api, &Refusal::Failed(failure)),
                };
            }
        };
        match finish_stream(start, slot, record, limits) {
            Ok(FinishedAnswer::Relayed(relay)) => HeldStep::Answer(relay),
            // Not a stream, so it is the replica's refusal.
            Ok(FinishedAnswer::Whole(body)) => {
                let body: Vec<u8> = body.flatten().collect();
                HeldStep::Error(api.plain_error_event(head.status.as_u16(), &body))
            }
            Err(failure) => {
                let (status, kind) = (failure.status, failure.kind());
                HeldStep::Error(api.error_event(status, kind, &failure.message, 0))
            }
        }
    }

    fn refused(&self, refusal: &Refusal, record: Box<Record>) -> HeldStep {
        record.refused(refusal);
        let (status, kind) = refusal.status();
        match self.beats.form {
            HeldForm::Stream(api) => {
                let message = refusal.to_string();
                HeldStep::Error(api.error_event(status.as_u16(), kind, &message, 0))
            }
            HeldForm::Plain(api) => cut(api, refusal),
        }
    }
}

/// An error instead of a plain answer.
fn cut(api: Api, refusal: &Refusal) -> HeldStep {
    let body = refusal.response(api.errors()).into_body();
    HeldStep::Cut(FinishedAnswer::Whole(body.into()))
}
