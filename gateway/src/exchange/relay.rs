//! A committed answer on its way to the client: each chunk passed on when it came, metered inline.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::SizeHint;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::answer::failure::{Cause, Failure};
use crate::answer::meter::Tokens;
use crate::answer::outcome::{Outcome, SHUTTING_DOWN, TOO_LONG};
use crate::answer::plain::{Plain, PlainAnswer};
use crate::answer::refusal::Refusal;
use crate::answer::stream::{AnswerStream, End as StreamEnd, Step};
use crate::exchange::cutoff::{Cut, Watch};
use crate::exchange::record::Record;
use crate::exchange::upstream;
use crate::net::alarm::poll_alarm;
use crate::pool::{End, Slot};
use crate::text::rope::Pieces;

/// How often a long stream's ITLs reach the pool's books.
const MERGE: Duration = Duration::from_secs(1);
/// A choice's last chunk goes out without the event that it waits for if that takes longer: it comes
/// in the same breath, or its server hangs.
const LAST_WAITS: Duration = Duration::from_secs(1);

/// The answer broke off after it had begun, in a form that has no error event: the connection to
/// the client is cut, so that nobody takes a part for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off: {0}")]
pub(crate) struct Broken(pub(crate) String);

/// An answer of which not all had come when it was committed.
pub(crate) enum Form {
    Stream(Box<AnswerStream>),
    /// `None` once it has ended.
    Plain(Option<PlainAnswer>),
}

/// A streamed answer, or a plain one too long to be kept back. Dropped before its end, the client
/// left: the connection to the replica closes with it.
pub(crate) struct Relay {
    /// Taken from the replica, not yet passed on.
    out: Pieces,
    upstream: Option<upstream::Answer>,
    form: Form,
    slot: Option<Slot>,
    record: Option<Record>,
    stall: Duration,
    deadline: Instant,
    last: Instant,
    merged: Instant,
    alarm: Pin<Box<Sleep>>,
    watch: Watch,
}

impl Relay {
    pub(crate) fn new(
        (out, upstream, form): (Pieces, upstream::Answer, Form),
        slot: Slot,
        record: Record,
        (stall, deadline): (Duration, Instant),
        watch: Watch,
    ) -> Self {
        let now = Instant::now();
        let mut relay = Self {
            out,
            upstream: Some(upstream),
            form,
            slot: Some(slot),
            record: Some(record),
            stall,
            deadline,
            last: now,
            merged: now,
            alarm: Box::pin(sleep_until(deadline.min(now + stall))),
            watch,
        };
        relay.note_first_token();
        relay.progressed(now);
        // It may have failed in the same breath in which it began.
        if let Form::Stream(stream) = &relay.form
            && let Some(failure) = stream.failure()
        {
            relay.tell(failure.clone());
        }
        relay
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            if let Some(bytes) = self.out.pop() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            let Some(upstream) = &mut self.upstream else { return Poll::Ready(None) };
            match upstream.poll_data(cx) {
                Poll::Ready(Some(Ok(bytes))) => {
                    let over = upstream.is_over();
                    self.data(bytes);
                    // A server of HTTP/1 that has written as many bytes as the length says asks for
                    // nothing more, not even for the end.
                    if over && self.upstream.is_some() {
                        self.end(None)?;
                    }
                }
                Poll::Ready(Some(Err(failure))) => self.end(Some(failure))?,
                Poll::Ready(None) => self.end(None)?,
                Poll::Pending => {
                    if let Poll::Ready(cut) = self.watch.poll(cx) {
                        self.cut(cut)?;
                        continue;
                    }
                    ready!(self.poll_alarm(cx));
                    if self.waits() {
                        self.take_last();
                        continue;
                    }
                    if Instant::now() >= self.deadline {
                        self.too_late()?;
                    } else {
                        let message = format!("Nothing came for {:?}.", self.stall);
                        self.end(Some(Failure::new(Cause::Stalled, message)))?;
                    }
                }
            }
        }
    }

    /// One timer a stream, moved only when it rings or a last chunk waits: others cost no timer
    /// operation.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let patience = if self.waits() { self.stall.min(LAST_WAITS) } else { self.stall };
        let due = self.deadline.min(self.last + patience);
        if due < self.alarm.deadline() {
            self.alarm.as_mut().reset(due);
        }
        loop {
            ready!(poll_alarm(self.alarm.as_mut(), cx));
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.alarm.as_mut().reset(due);
        }
    }

    fn data(&mut self, bytes: Bytes) {
        let now = Instant::now();
        let stream = match &mut self.form {
            Form::Stream(stream) => stream,
            Form::Plain(Some(answer)) => {
                self.out = answer.feed(bytes);
                self.progressed(now);
                return;
            }
            Form::Plain(None) => return,
        };
        let step = stream.feed(bytes, now);
        if stream.progressed() {
            self.progressed(now);
        }
        self.note_first_token();
        match step {
            Step::Hold => {}
            Step::Pass(out) => self.out = out,
            Step::Failed(out, failure) => {
                self.out = out;
                self.tell(failure);
            }
            // It is committed; were it not, the client would still have to be told.
            Step::Retry(failure) => self.tell(failure),
        }
        if now - self.merged >= MERGE {
            self.merged = now;
            self.merge();
        }
    }

    /// Whether a choice's last chunk is kept back.
    fn waits(&self) -> bool {
        matches!(&self.form, Form::Stream(stream) if stream.waits())
    }

    fn take_last(&mut self) {
        if let Form::Stream(stream) = &mut self.form {
            stream.take_last(&mut self.out);
        }
    }

    /// Something of the answer came.
    fn progressed(&mut self, now: Instant) {
        self.last = now;
        if let Some(slot) = &self.slot {
            slot.pulse(now);
        }
    }

    fn note_first_token(&mut self) {
        if let (Form::Stream(stream), Some(record)) = (&self.form, &mut self.record)
            && let Some(first) = stream.meter.first_token()
        {
            record.first_token(first);
        }
    }

    /// What a long stream has come to so far, for the books.
    fn merge(&mut self) {
        self.merge_gaps();
        if let (Form::Stream(stream), Some(record)) = (&self.form, &mut self.record) {
            let tokens: Tokens = stream.meter.tokens();
            if let Some(slot) = &mut self.slot {
                slot.generated(tokens.generated);
            }
            record.tokens(tokens, stream.meter.per_token());
        }
    }

    fn merge_gaps(&mut self) {
        if let (Form::Stream(stream), Some(record)) = (&mut self.form, &self.record)
            && stream.meter.itl.count() > 0
        {
            record.gaps(&std::mem::take(&mut stream.meter.itl));
        }
    }

    /// The replica's end of the answer, by `failure` or as its framing says. What came with it is
    /// still to go out.
    fn end(&mut self, failure: Option<Failure>) -> Result<(), Broken> {
        let plain = match &mut self.form {
            Form::Stream(stream) => {
                let (out, end) = stream.end(Instant::now());
                out.for_each(|piece| self.out.push(piece));
                match end {
                    // An end mark without the connection's proper end is an end all the same.
                    StreamEnd::Complete => self.finish(End::Complete, Outcome::Completed, None),
                    StreamEnd::Client(_) => self.finish(End::Complete, Outcome::ClientError, None),
                    StreamEnd::Failed(own) => self.tell(failure.unwrap_or(own)),
                }
                return Ok(());
            }
            Form::Plain(answer) => answer.take(),
        };
        let plain = match failure {
            Some(failure) => Some(Plain::Retry(failure)),
            None => plain.map(PlainAnswer::end),
        };
        match plain {
            Some(Plain::Retry(failure)) => {
                let message = failure.message.clone();
                self.fail(failure);
                return Err(Broken(message));
            }
            Some(Plain::Client(_)) => self.finish(End::Complete, Outcome::ClientError, None),
            Some(Plain::Answered(_, tokens)) => {
                if let Some(slot) = &mut self.slot {
                    slot.generated(tokens.generated);
                }
                if let Some(record) = &mut self.record {
                    record.tokens(tokens, None);
                }
                self.finish(End::Complete, Outcome::Completed, None);
            }
            None => {}
        }
        Ok(())
    }

    /// The request's own time is over, which is no fault of the replica.
    fn too_late(&mut self) -> Result<(), Broken> {
        let message = "The time for one request is over.";
        self.break_off(504, "GatewayTimeoutError", message, TOO_LONG)
    }

    /// From outside, before its end.
    fn cut(&mut self, cut: Cut) -> Result<(), Broken> {
        match cut {
            Cut::ShuttingDown => {
                let message = Refusal::ShuttingDown.to_string();
                self.break_off(503, "ServiceUnavailableError", &message, SHUTTING_DOWN)
            }
            Cut::Lost => self.end(Some(Failure::unreachable())),
            Cut::ClientLeft => {
                self.left();
                Err(Broken("the client left".to_owned()))
            }
        }
    }

    /// The client left. A stream's client may do so with the end mark: it has all there is.
    fn left(&mut self) {
        let had_all = match &self.form {
            Form::Stream(stream) => stream.is_complete() && self.out.is_empty(),
            Form::Plain(_) => false,
        };
        if had_all && self.record.is_some() {
            // It broke off or ended as it came: the mark says how.
            let _ = self.end(None);
            return;
        }
        // What it got until then was generated all the same.
        self.merge();
        (self.upstream, self.slot, self.record) = (None, None, None);
    }

    /// Ends it by no fault of the replica.
    fn break_off(
        &mut self,
        status: u16,
        kind: &str,
        message: &str,
        reason: &'static str,
    ) -> Result<(), Broken> {
        self.take_last();
        if let Form::Stream(stream) = &self.form {
            self.out.push(stream.error_event(status, kind, message));
        }
        self.finish(End::Dropped, Outcome::Failed, Some(reason));
        match self.form {
            Form::Stream(_) => Ok(()),
            Form::Plain(_) => Err(Broken(message.to_owned())),
        }
    }

    /// The stream can't go on: an error event in its API's own form, and its end.
    fn tell(&mut self, failure: Failure) {
        if let Form::Stream(stream) = &self.form {
            let event = stream.error_event(failure.status, failure.kind(), &failure.message);
            self.out.push(event);
        }
        self.fail(failure);
    }

    fn fail(&mut self, failure: Failure) {
        let cause = failure.cause.name();
        self.finish(End::Failed(failure), Outcome::Failed, Some(cause));
    }

    fn finish(&mut self, end: End, outcome: Outcome, reason: Option<&'static str>) {
        self.upstream = None;
        self.merge();
        if let Some(slot) = self.slot.take() {
            if let Form::Stream(stream) = &self.form
                && let Some(fingerprint) = stream.fingerprint()
            {
                slot.known_by(fingerprint);
            }
            slot.ended(end);
        }
        if let Some(record) = self.record.take() {
            record.ended(outcome, reason);
        }
    }

    /// Whether all has been passed on.
    pub(crate) fn is_over(&self) -> bool {
        self.upstream.is_none() && self.out.is_empty()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match (&self.form, &self.upstream) {
            (Form::Plain(_), Some(upstream)) => {
                let kept = self.out.len() as u64;
                let rest = upstream.size_hint().exact();
                rest.map_or_else(SizeHint::new, |rest| SizeHint::with_exact(rest + kept))
            }
            _ => SizeHint::new(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.left();
    }
}
