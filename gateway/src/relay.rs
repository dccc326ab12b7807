//! A committed answer on its way to the client: each chunk passed on when it came, metered inline.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::SizeHint;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::answer::{Answer, End as StreamEnd, Step, Usage};
use crate::paths::Api;
use crate::pool::{End, Outcome, Pool, Slot, Ticket};
use crate::upstream;
use std::sync::Arc;

/// How often a long stream's ITLs reach the pool's books.
const MERGE: Duration = Duration::from_secs(1);

/// The answer broke off after it had begun, in a form that has no error event: the connection to
/// the client is cut, so that nobody takes a part for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off: {0}")]
pub(crate) struct Broken(String);

/// One request's figures; dropped without a word, its client left.
pub(crate) struct Record {
    pool: Arc<Pool>,
    started: Instant,
    pub(crate) released: Instant,
    pub(crate) held: Duration,
    pub(crate) cold: Duration,
    pub(crate) tries: u32,
    seq: u64,
    outcome: Outcome,
    usage: Usage,
    ttft: Option<Duration>,
}

impl Record {
    pub(crate) fn begin(pool: Arc<Pool>, started: Instant) -> Self {
        Self {
            pool,
            started,
            released: started,
            held: Duration::ZERO,
            cold: Duration::ZERO,
            tries: 0,
            seq: 0,
            outcome: Outcome::ClientLeft,
            usage: Usage::default(),
            ttft: None,
        }
    }

    /// Released to an endpoint, for the first time or again.
    pub(crate) fn released(&mut self, ticket: &Ticket) {
        self.tries += 1;
        self.released = Instant::now();
        self.held = ticket.held;
        self.cold = ticket.cold;
        self.seq = ticket.seq();
    }

    pub(crate) fn first_token(&mut self, at: Instant) {
        if self.ttft.is_none() {
            let ttft = at - self.started;
            self.ttft = Some(ttft);
            self.pool.first_token(ttft, self.cold, at.saturating_duration_since(self.released));
        }
    }

    pub(crate) fn ended(mut self, outcome: Outcome, usage: Usage) {
        self.outcome = outcome;
        self.usage = usage;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        if self.tries > 0 {
            self.pool.held_for(self.held);
        }
        self.pool.ended(self.outcome, self.tries, self.usage, took);
        tracing::info!(
            target: "forebay::access",
            pool = %self.pool.name,
            outcome = ?self.outcome,
            seq = self.seq,
            tries = self.tries,
            hold_ms = self.held.as_millis() as u64,
            ttft_ms = self.ttft.map(|ttft| ttft.as_millis() as u64),
            took_ms = took.as_millis() as u64,
            prompt_tokens = self.usage.prompt_tokens,
            generated_tokens = self.usage.completion_tokens,
        );
    }
}

/// A streamed answer, or a plain one too long to be kept back.
pub(crate) struct Relay {
    api: Api,
    /// Taken from the replica, not yet passed on.
    out: VecDeque<Bytes>,
    upstream: Option<upstream::Answer>,
    /// `None` for a plain answer.
    answer: Option<Answer>,
    slot: Option<Slot>,
    record: Option<Record>,
    stall: Duration,
    deadline: Instant,
    last: Instant,
    merged: Instant,
    alarm: Pin<Box<Sleep>>,
}

/// What a relay is made of, once an answer is committed.
pub(crate) struct Committed {
    pub(crate) api: Api,
    pub(crate) out: VecDeque<Bytes>,
    pub(crate) upstream: upstream::Answer,
    pub(crate) answer: Option<Answer>,
}

impl Relay {
    pub(crate) fn new(
        committed: Committed,
        slot: Slot,
        mut record: Record,
        stall: Duration,
        deadline: Instant,
    ) -> Self {
        let now = Instant::now();
        let Committed { api, out, upstream, answer } = committed;
        if let Some(first) = answer.as_ref().and_then(Answer::first_token) {
            record.first_token(first);
        }
        Self {
            api,
            out,
            upstream: Some(upstream),
            answer,
            slot: Some(slot),
            record: Some(record),
            stall,
            deadline,
            last: now,
            merged: now,
            alarm: Box::pin(sleep_until(deadline.min(now + stall))),
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            if let Some(bytes) = self.out.pop_front() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            let Some(upstream) = &mut self.upstream else { return Poll::Ready(None) };
            match upstream.poll_data(cx) {
                Poll::Ready(Some(Ok(bytes))) => self.data(bytes),
                Poll::Ready(Some(Err(reason))) => {
                    self.broken(reason.clone(), End::Failed(reason))?
                }
                Poll::Ready(None) => self.end()?,
                Poll::Pending => {
                    ready!(self.poll_alarm(cx));
                    // Its own time being over is no fault of the replica.
                    let (reason, end) = if Instant::now() >= self.deadline {
                        ("the time for one request is over".to_owned(), End::Dropped)
                    } else {
                        let reason = format!("nothing came for {:?}", self.stall);
                        (reason.clone(), End::Failed(reason))
                    };
                    self.broken(reason, end)?;
                }
            }
        }
    }

    /// One timer a stream, moved only when it rings: a chunk costs no timer operation.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.alarm.as_mut().poll(cx));
            let due = self.deadline.min(self.last + self.stall);
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.alarm.as_mut().reset(due);
        }
    }

    fn data(&mut self, bytes: Bytes) {
        let now = Instant::now();
        self.last = now;
        if let Some(answer) = &mut self.answer {
            // Its failures are the end's to tell: the replica has told the client already.
            let _: Step = answer.feed(&bytes, now);
            if let (Some(record), Some(first)) = (&mut self.record, answer.first_token()) {
                record.first_token(first);
            }
            if now - self.merged >= MERGE {
                self.merged = now;
                self.merge_itl();
            }
        }
        self.out.push_back(bytes);
    }

    fn merge_itl(&mut self) {
        if let (Some(answer), Some(record)) = (&mut self.answer, &self.record)
            && answer.itl.count() > 0
        {
            record.pool.itl(&std::mem::take(&mut answer.itl));
        }
    }

    /// The replica's end of the answer.
    fn end(&mut self) -> Result<(), Broken> {
        match self.answer.as_ref().map_or(StreamEnd::Complete, Answer::end) {
            StreamEnd::Complete => {
                self.finish(End::Complete, Outcome::Completed);
                Ok(())
            }
            StreamEnd::Truncated => {
                let reason = "the stream ended before its end mark".to_owned();
                self.broken(reason.clone(), End::Failed(reason))
            }
            StreamEnd::Failed(reason) => {
                // Told by the replica's own event, and ended properly.
                self.finish(End::Failed(reason), Outcome::Failed);
                Ok(())
            }
        }
    }

    /// The answer can't go on: an error event where the API has one.
    fn broken(&mut self, reason: String, end: End) -> Result<(), Broken> {
        // An end mark without the connection's proper end is an end all the same.
        if self.answer.as_ref().is_some_and(|answer| answer.end() == StreamEnd::Complete) {
            self.finish(End::Complete, Outcome::Completed);
            return Ok(());
        }
        let streamed = self.answer.is_some();
        self.finish(end, Outcome::Failed);
        if !streamed {
            return Err(Broken(reason));
        }
        let message = format!("The replica's answer broke off: {reason}.");
        let event = self.api.error_event(502, "BadGatewayError", &message);
        self.out.push_back(event.into());
        Ok(())
    }

    fn finish(&mut self, end: End, outcome: Outcome) {
        self.merge_itl();
        self.upstream = None;
        let usage = self.answer.as_ref().map(Answer::usage).unwrap_or_default();
        if let Some(mut slot) = self.slot.take() {
            slot.generated(usage.completion_tokens);
            slot.ended(end);
        }
        if let Some(record) = self.record.take() {
            record.ended(outcome, usage);
        }
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match (&self.answer, &self.upstream) {
            (None, Some(upstream)) => {
                let kept: u64 = self.out.iter().map(|bytes| bytes.len() as u64).sum();
                upstream
                    .size_hint()
                    .exact()
                    .map_or_else(SizeHint::new, |rest| SizeHint::with_exact(rest + kept))
            }
            _ => SizeHint::new(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.merge_itl();
        // The client left: what it got until then was still generated.
        if let (Some(answer), Some(mut record)) = (&self.answer, self.record.take()) {
            record.usage = answer.usage();
        }
    }
}
