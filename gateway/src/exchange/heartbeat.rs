//! A streaming client that waits long: kept alive until there is an answer, then given it.
//!
//! Status 200 has gone out by then, so whatever goes wrong is told as an event, in the API's own
//! form. Tries go on as before: a heartbeat is nothing of an answer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::answer::api::Api;
use crate::answer::failure::{Cause, Failure};
use crate::answer::outcome::Outcome as Ended;
use crate::answer::refusal::Refusal;
use crate::exchange::attempt::{Begun, Outcome};
use crate::exchange::cutoff::{Gone, Watch};
use crate::exchange::record::Record;
use crate::exchange::relay::{Broken, Form, Relay};
use crate::pool::End;
use crate::text::rope::Pieces;

/// What comes of a request, whenever it comes.
pub(crate) type Exchanging = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Dropped, the client left: the request leaves the queue or the endpoint at once.
pub(crate) struct Held {
    api: Api,
    waiting: Option<(Exchanging, Gone)>,
    ending: CancellationToken,
    every: Duration,
    next: Pin<Box<Sleep>>,
    out: Pieces,
    relay: Option<Box<Relay>>,
}

impl Held {
    /// The answer's beginning: a stream with the headers `told`, and a first heartbeat in it.
    pub(crate) fn respond(
        api: Api,
        (exchange, gone): (Exchanging, Gone),
        ending: CancellationToken,
        every: Duration,
        told: HeaderMap,
        accepted: Instant,
    ) -> Response<Self> {
        let held = Self {
            api,
            waiting: Some((exchange, gone)),
            ending,
            every,
            next: Box::pin(sleep(every)),
            out: api.heartbeat().into(),
            relay: None,
        };
        let mut response = Response::new(held);
        let headers = response.headers_mut();
        *headers = told;
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, kind);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let total = accepted.elapsed().as_secs_f64() * 1e3;
        if let Ok(timing) = HeaderValue::from_str(&format!("total;dur={total:.1}")) {
            headers.insert("server-timing", timing);
        }
        response
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            if let Some(bytes) = self.out.pop() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if let Some(relay) = &mut self.relay {
                return relay.poll_frame(cx);
            }
            let Some((exchange, gone)) = &mut self.waiting else { return Poll::Ready(None) };
            if let Poll::Ready(outcome) = exchange.as_mut().poll(cx) {
                if let Some((_, gone)) = self.waiting.take() {
                    self.answered(outcome, gone);
                }
                continue;
            }
            if gone.as_mut().poll(cx).is_ready() {
                self.waiting = None;
                return Poll::Ready(Some(Err(Broken("the client left".to_owned()))));
            }
            ready!(self.next.as_mut().poll(cx));
            self.next.as_mut().reset(Instant::now() + self.every);
            self.out.push(self.api.heartbeat());
        }
    }

    fn answered(&mut self, outcome: Outcome, gone: Gone) {
        let Outcome { result, mut record, pool, deadline } = outcome;
        record.committed(200);
        let committed = match result {
            Ok(committed) => committed,
            Err(refusal) => return self.refused(&refusal, record),
        };
        let mut slot = committed.slot;
        match committed.answer {
            Begun::Stream(out, upstream, stream) => {
                let stall = pool.settings().upstream.stall_timeout;
                let parts = (out, upstream, Form::Stream(stream));
                let watch = Watch::new(gone, slot.lost(), self.ending.clone());
                let relay = Relay::new(parts, slot, record, (stall, deadline), watch);
                self.relay = Some(Box::new(relay));
            }
            Begun::Refused(body) => {
                slot.without_engine();
                slot.ended(End::Complete);
                record.ended(Ended::ClientError, None);
                let body: Vec<u8> = body.flatten().collect();
                self.out.push(self.api.plain_error_event(committed.head.status.as_u16(), &body));
            }
            Begun::Whole(..) | Begun::Long(..) => {
                let failure =
                    Failure::new(Cause::Server, "The replica did not answer with a stream.");
                record.ended(Ended::Failed, Some(failure.cause.name()));
                let (status, kind) = (failure.status, failure.kind());
                self.out.push(self.api.error_event(status, kind, &failure.message, 0));
                slot.ended(End::Failed(failure));
            }
        }
    }

    fn refused(&mut self, refusal: &Refusal, record: Record) {
        let (status, kind) = refusal.status();
        let message = refusal.to_string();
        self.out.push(self.api.error_event(status.as_u16(), kind, &message, 0));
        record.refused(refusal);
    }
}
