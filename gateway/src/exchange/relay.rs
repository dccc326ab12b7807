//! A committed answer on its way to the client: each chunk is passed on and metered as it comes.

use std::future;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::SizeHint;
use tokio::time::Instant;

use crate::answer::failure::{Cause, Failure};
use crate::answer::meter::Tokens;
use crate::answer::not_continued::NotContinued;
use crate::answer::outcome::{Outcome, SHUTTING_DOWN, TOO_LONG};
use crate::answer::plain::{PlainAnswer, PlainEnd};
use crate::answer::refusal::Refusal;
use crate::answer::stream::{AnswerStream, Step, StreamEnd};
use crate::answer::token_record::TokenRecord;
use crate::exchange::client_pace::ClientPace;
use crate::exchange::cutoff::{Cut, Cutoff};
use crate::exchange::record::Record;
use crate::exchange::successor::{Move, Successor};
use crate::exchange::upstream::UpstreamBody;
use crate::net::alarm::Alarm;
use crate::net::clock;
use crate::pool::{End, Slot};
use crate::text::rope::Rope;

mod going_on;
mod moving;
#[cfg(test)]
mod tests;

/// How often a long stream's ITLs reach the pool's figures.
const MERGE: Duration = Duration::from_secs(1);
/// How long a choice's last chunk waits for the event behind it. That event comes at once, or the
/// server hangs.
const LAST_CHUNK_WAIT: Duration = Duration::from_secs(1);

/// The answer broke off after it had begun, in a form that has no error event. The connection to
/// the client is cut, so that the client can't take a part for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off: {0}")]
pub(crate) struct BrokenOff(String);

impl BrokenOff {
    pub(crate) fn client_left() -> Self {
        Self("the client left".to_owned())
    }

    pub(crate) fn refused() -> Self {
        Self("the request was refused after a heartbeat".to_owned())
    }
}

/// The form of an answer that was committed before all of it had come.
pub(crate) enum AnswerForm {
    Stream(Box<AnswerStream>),
    /// `None` after its end.
    Plain(Option<PlainAnswer>),
}

/// A streamed answer, or a plain one that is too long to be kept back. Dropping it before its end
/// means that the client left: the connection to the replica closes with it.
pub(crate) struct Relay {
    /// Bytes for the client that are not passed on yet.
    out: Rope,
    upstream: Option<UpstreamBody>,
    form: AnswerForm,
    slot: Option<Box<Slot>>,
    record: Option<Box<Record>>,
    stall: Duration,
    deadline: Instant,
    moments: Moments,
    pace: ClientPace,
    alarm: Alarm,
    cutoff: Cutoff,
    successor: Successor,
}

/// Moments of an answer.
struct Moments {
    /// When it last made progress.
    last: Instant,
    /// When tokens and gaps are merged into the figures next.
    merge: Instant,
}

impl Relay {
    pub(crate) fn new(
        (out, upstream, form): (Rope, UpstreamBody, AnswerForm),
        slot: Box<Slot>,
        record: Box<Record>,
        (stall, deadline): (Duration, Instant),
        (cutoff, successor): (Cutoff, Successor),
    ) -> Self {
        let now = clock::now();
        let mut relay = Self {
            out,
            upstream: Some(upstream),
            form,
            slot: Some(slot),
            record: Some(record),
            stall,
            deadline,
            moments: Moments { last: now, merge: now + MERGE },
            pace: ClientPace::new(now),
            alarm: Alarm::at(deadline.min(now + stall)),
            cutoff,
            successor,
        };
        relay.watch_hang();
        relay.watch_drain();
        relay.note_first_token();
        relay.progressed(now);
        // It may have failed within its first bytes.
        if let AnswerForm::Stream(stream) = &relay.form
            && let Some(failure) = stream.failure()
        {
            relay.broke(failure.clone());
        }
        relay
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        loop {
            if let Some(bytes) = self.out.pop() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if self.successor.is_searching() {
                ready!(self.poll_search(cx))?;
                continue;
            }
            let Some(upstream) = &mut self.upstream else { return Poll::Ready(None) };
            match upstream.poll_data(cx) {
                Poll::Ready(Some(Ok(bytes))) => {
                    let over = upstream.is_over();
                    let second_over = self.data(bytes);
                    // Over HTTP/1, nothing is polled once there are as many bytes as the length
                    // says, not even for the end.
                    if over && self.upstream.is_some() {
                        self.end(None)?;
                    } else if second_over {
                        self.poll_cuts(cx)?;
                    }
                }
                Poll::Ready(Some(Err(failure))) => self.end(Some(failure))?,
                Poll::Ready(None) => self.end(None)?,
                Poll::Pending => {
                    self.pace.waits();
                    if let Poll::Ready(cut) = self.cutoff.poll(cx) {
                        self.cut(cut)?;
                        continue;
                    }
                    ready!(self.poll_alarm(cx));
                    if self.send_heartbeat(clock::now()) {
                        continue;
                    }
                    if self.keeps_last_chunk() {
                        self.take_last_chunk();
                        continue;
                    }
                    if clock::now() >= self.deadline {
                        self.too_late()?;
                    } else {
                        self.end(Some(self.silence()))?;
                    }
                }
            }
        }
    }

    /// One timer for each stream. It is moved only when it rings, or when a last chunk waits: other
    /// chunks cost no timer operation.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let silence = self.longest_silence();
        let wait = if self.keeps_last_chunk() { silence.min(LAST_CHUNK_WAIT) } else { silence };
        let mut due = self.deadline.min(self.moments.last + wait);
        if let Some(heartbeat) = self.successor.next_heartbeat() {
            due = due.min(heartbeat);
        }
        if due < self.alarm.due() {
            self.alarm.set(due);
        }
        let now = clock::now();
        loop {
            ready!(self.alarm.poll(cx, now));
            if now >= due {
                return Poll::Ready(());
            }
            self.alarm.set(due);
        }
    }

    /// Ends an answer whose client reads so slowly that the replica is never waited for, if it is time.
    fn poll_cuts(&mut self, cx: &mut Context<'_>) -> Result<(), BrokenOff> {
        while self.upstream.is_some() {
            if clock::now() >= self.deadline {
                return self.too_late();
            }
            match self.cutoff.poll(cx) {
                // What the replica has sent already still counts.
                Poll::Ready(Cut::ReplicaLost) => {
                    self.cutoff.watch(future::ready(Cut::ReplicaLost));
                    break;
                }
                Poll::Ready(cut) => self.cut(cut)?,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Takes bytes of the replica; true once a second.
    fn data(&mut self, bytes: Bytes) -> bool {
        let now = clock::now();
        self.pace.came(now);
        let stream = match &mut self.form {
            AnswerForm::Stream(stream) => stream,
            AnswerForm::Plain(Some(answer)) => {
                self.out = answer.feed(bytes);
                self.progressed(now);
                return self.second_over(now);
            }
            AnswerForm::Plain(None) => return false,
        };
        let step = stream.feed(bytes, now);
        if stream.progressed() {
            self.progressed(now);
        }
        self.note_first_token();
        self.note_continuation(now);
        match step {
            Step::Hold => {}
            Step::Pass(out) => self.out = out,
            Step::Failed(out, failure) => {
                self.out = out;
                self.broke(failure);
            }
            Step::Retry(failure) => self.broke(failure),
        }
        if matches!(self.successor.moving, Move::Ready(_)) {
            self.begin_move();
        }
        self.second_over(now)
    }

    /// Merges what is new into the figures, once a second.
    fn second_over(&mut self, now: Instant) -> bool {
        let over = now >= self.moments.merge;
        if over {
            self.moments.merge = now + MERGE;
            self.merge();
        }
        over
    }

    /// Whether a choice's last chunk is kept back.
    fn keeps_last_chunk(&self) -> bool {
        matches!(&self.form, AnswerForm::Stream(stream) if stream.keeps_last_chunk())
    }

    fn take_last_chunk(&mut self) {
        if let AnswerForm::Stream(stream) = &mut self.form {
            stream.take_last_chunk(&mut self.out);
        }
    }

    /// Notes that a part of the answer came.
    fn progressed(&mut self, now: Instant) {
        self.moments.last = now;
        if let Some(slot) = &self.slot {
            slot.pulse(now);
        }
    }

    fn note_first_token(&mut self) {
        if let (AnswerForm::Stream(stream), Some(record)) = (&self.form, &mut self.record)
            && let Some(first) = stream.meter.first_token()
        {
            record.first_token(first);
            let first_replica = !stream.token_record().is_some_and(TokenRecord::has_seam);
            if let (Some(slot), true) = (&mut self.slot, first_replica) {
                slot.first_token(first);
            }
        }
    }

    /// Merges a stream's tokens and gaps so far into the figures.
    fn merge(&mut self) {
        self.merge_gaps();
        if let (AnswerForm::Stream(stream), Some(record)) = (&self.form, &mut self.record) {
            let tokens: Tokens = stream.meter.tokens();
            if let Some(slot) = &mut self.slot {
                match stream.token_record().map_or(0, TokenRecord::carried) {
                    0 => slot.tokens(&tokens),
                    // For this replica, the beginning of the answer is a part of the prompt.
                    carried => slot.tokens(&Tokens {
                        prompt: tokens.prompt.map(|prompt| prompt + carried),
                        generated: tokens.generated.saturating_sub(carried),
                        ..tokens.clone()
                    }),
                }
            }
            record.tokens(tokens, stream.meter.per_token());
        }
    }

    fn merge_gaps(&mut self) {
        if let (AnswerForm::Stream(stream), Some(record)) = (&mut self.form, &self.record)
            && stream.meter.itl.count() > 0
        {
            record.gaps(&std::mem::take(&mut stream.meter.itl));
        }
    }

    /// Ends the answer as the replica did: by `failure`, or as its framing says. Bytes that are not
    /// passed on yet still go out.
    fn end(&mut self, failure: Option<Failure>) -> Result<(), BrokenOff> {
        let plain = match &mut self.form {
            AnswerForm::Stream(stream) => {
                let (out, end) = stream.end(clock::now());
                out.for_each(|piece| self.out.push(piece));
                match end {
                    // After the end mark, a broken connection does not matter.
                    StreamEnd::Complete => self.finish(End::Complete, Outcome::Completed, None),
                    StreamEnd::Client(_) => self.finish(End::Complete, Outcome::ClientError, None),
                    StreamEnd::Failed(own) => self.broke(failure.unwrap_or(own)),
                }
                return Ok(());
            }
            AnswerForm::Plain(answer) => answer.take(),
        };
        let plain = match failure {
            Some(failure) => Some(PlainEnd::Retry(failure)),
            None => plain.map(PlainAnswer::end),
        };
        match plain {
            Some(PlainEnd::Retry(failure)) => {
                let message = failure.message.clone();
                self.fail(failure);
                return Err(BrokenOff(message));
            }
            Some(PlainEnd::Client(_)) => self.finish(End::Complete, Outcome::ClientError, None),
            Some(PlainEnd::Answered(_, tokens)) => {
                if let Some(slot) = &mut self.slot {
                    slot.tokens(&tokens);
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

    /// Ends the answer at its deadline. The replica is not at fault.
    fn too_late(&mut self) -> Result<(), BrokenOff> {
        let message = "The time for one request is over.";
        self.break_off(504, "GatewayTimeoutError", message, TOO_LONG)
    }

    /// Ends the answer before its own end, or its part from the present replica.
    fn cut(&mut self, cut: Cut) -> Result<(), BrokenOff> {
        match cut {
            Cut::ShuttingDown => {
                let message = Refusal::ShuttingDown.to_string();
                self.break_off(503, "ServiceUnavailableError", &message, SHUTTING_DOWN)
            }
            Cut::ReplicaLost => self.end(Some(Failure::unreachable())),
            Cut::ReplicaHangs => self.leave_hung(),
            Cut::ClientLeft => {
                self.client_left();
                Err(BrokenOff::client_left())
            }
            Cut::Drains => {
                self.ask_for_room();
                Ok(())
            }
            Cut::Room(room) => {
                self.take_room(room);
                Ok(())
            }
        }
    }

    /// Ends the answer because its client left. A client that leaves after the end mark has the
    /// whole stream.
    fn client_left(&mut self) {
        let had_all = match &self.form {
            AnswerForm::Stream(stream) => stream.is_complete() && self.out.is_empty(),
            AnswerForm::Plain(_) => false,
        };
        if had_all && self.record.is_some() {
            // This ends as the end mark says.
            let _ = self.end(None);
            return;
        }
        // The tokens until then were generated, so they count.
        self.merge();
        self.successor.stop();
        self.successor.moving = Move::None;
        (self.upstream, self.slot, self.record) = (None, None, None);
    }

    /// Breaks off an answer for a reason that is not the replica's fault.
    fn break_off(
        &mut self,
        status: u16,
        kind: &str,
        message: &str,
        reason: &'static str,
    ) -> Result<(), BrokenOff> {
        self.take_last_chunk();
        // In a move, the old replica would have gone on.
        if let (Some(cause), Some(record)) = (self.successor.broke_by(), &self.record)
            && cause != Cause::Moved
        {
            record.not_continued(cause, NotContinued::NoTime);
        }
        if let AnswerForm::Stream(stream) = &self.form {
            self.out.push(stream.error_event(status, kind, message));
        }
        self.finish(End::Dropped, Outcome::Failed, Some(reason));
        match self.form {
            AnswerForm::Stream(_) => Ok(()),
            AnswerForm::Plain(_) => Err(BrokenOff(message.to_owned())),
        }
    }

    /// Ends a stream with an error event in the form of its API.
    fn fail_with_event(&mut self, failure: Failure) {
        if let AnswerForm::Stream(stream) = &self.form {
            let event = stream.error_event(failure.status, failure.kind(), &failure.message);
            self.out.push(event);
        }
        self.fail(failure);
    }

    fn fail(&mut self, failure: Failure) {
        if let Some(record) = &mut self.record {
            record.try_failed(failure.cause);
        }
        let cause = failure.cause.name();
        self.finish(End::of(failure), Outcome::Failed, Some(cause));
    }

    fn finish(&mut self, end: End, outcome: Outcome, reason: Option<&'static str>) {
        self.upstream = None;
        self.successor.stop();
        self.merge();
        self.end_move();
        if let Some(mut slot) = self.slot.take() {
            slot.client_was_slow(self.pace.slow());
            if let AnswerForm::Stream(stream) = &self.form
                && let Some(fingerprint) = stream.fingerprint()
            {
                slot.set_fingerprint(fingerprint);
            }
            slot.ended(end);
        }
        if let Some(record) = self.record.take() {
            record.ended(outcome, reason);
        }
    }

    /// Whether everything has been passed on.
    pub(crate) fn is_over(&self) -> bool {
        self.upstream.is_none() && self.out.is_empty() && !self.successor.is_searching()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match (&self.form, &self.upstream) {
            (AnswerForm::Plain(_), Some(upstream)) => {
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
        self.client_left();
    }
}
