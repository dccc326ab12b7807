//! Replies as they are generated: one engine output in, server-sent events out.
//!
//! Each event is one frame, and hyper makes one HTTP chunk of each frame, as the real server does. Dropping the body drops the request's ticket, which aborts it.

use crate::sim::api::fault::Fault;
use crate::sim::api::plan::{Completion, Plan};
use crate::sim::engine::{Output, SeqEvent, Ticket};
use crate::sim::text::{Cursor, Reason};
use bytes::Bytes;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep};

/// One token of one reply, or its end.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    /// The number of the reply within its request.
    pub(crate) index: usize,
    /// The token's number in the reply, from 0. The last step of an aborted reply has none.
    pub(crate) at: Option<u32>,
    pub(crate) piece: &'a str,
    /// Bytes of text before this piece.
    pub(crate) offset: usize,
    /// Tokens that were generated so far, this one included.
    pub(crate) tokens: u32,
    /// Set on the last step.
    pub(crate) reason: Option<&'a Reason>,
}

/// The usage of a stream at its end.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) completion_tokens: u32,
    pub(crate) cached: u32,
}

/// The form in which one API writes a stream.
pub(crate) trait Dialect: Send {
    /// Called with the first token, before it.
    fn open(&mut self, plan: &Plan, out: &mut Sink);
    fn token(&mut self, plan: &Plan, step: &Step<'_>, out: &mut Sink);
    /// Called after the end of the last reply.
    fn close(&mut self, plan: &Plan, tally: Tally, out: &mut Sink);
    /// Called when the request fails after its 200.
    fn fail(&mut self, fault: &Fault, out: &mut Sink) {
        out.data(&fault.event());
        out.done();
    }
}

/// Events on their way out.
#[derive(Debug, Default)]
pub(crate) struct Sink(VecDeque<Bytes>);

impl Sink {
    /// Adds a finished event, blank line included.
    pub(crate) fn raw(&mut self, event: String) {
        self.0.push_back(event.into());
    }

    pub(crate) fn data(&mut self, data: &str) {
        self.raw(format!("data: {data}\n\n"));
    }

    /// Adds an event with a name, as Anthropic's API and the responses API have them.
    pub(crate) fn named(&mut self, name: &str, data: &str) {
        self.raw(format!("event: {name}\ndata: {data}\n\n"));
    }

    pub(crate) fn done(&mut self) {
        self.0.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
    }
}

/// A stream's body.
pub(crate) struct EventBody {
    running: Option<LiveStream>,
    queue: Sink,
    keep_alive: Option<(Duration, Pin<Box<Sleep>>)>,
}

struct LiveStream {
    plan: Plan,
    dialect: Box<dyn Dialect>,
    out: mpsc::Receiver<Output>,
    cursors: Vec<Cursor>,
    ended: usize,
    opened: bool,
    tally: Tally,
    ticket: Ticket,
}

impl EventBody {
    pub(crate) fn new(
        plan: Plan,
        dialect: Box<dyn Dialect>,
        (ticket, out): (Ticket, mpsc::Receiver<Output>),
        keep_alive: Duration,
    ) -> Self {
        let cursors = plan.scripts.iter().map(Cursor::of).collect();
        let running = LiveStream {
            plan,
            dialect,
            out,
            cursors,
            ended: 0,
            opened: false,
            tally: Tally::default(),
            ticket,
        };
        Self {
            running: Some(running),
            queue: Sink::default(),
            keep_alive: (!keep_alive.is_zero()).then(|| (keep_alive, Box::pin(sleep(keep_alive)))),
        }
    }

    /// A stream that fails before its first event.
    pub(crate) fn failed(mut dialect: Box<dyn Dialect>, fault: &Fault) -> Self {
        let mut queue = Sink::default();
        dialect.fail(fault, &mut queue);
        Self { running: None, queue, keep_alive: None }
    }

    /// A fixed run of events.
    pub(crate) fn fixed(queue: Sink) -> Self {
        Self { running: None, queue, keep_alive: None }
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(event) = self.queue.0.pop_front() {
                if let Some((interval, timer)) = &mut self.keep_alive {
                    timer.as_mut().reset(Instant::now() + *interval);
                }
                return Poll::Ready(Some(event));
            }
            let Some(running) = &mut self.running else { return Poll::Ready(None) };
            match running.out.poll_recv(cx) {
                Poll::Ready(Some(out)) => {
                    if running.advance(&out, &mut self.queue) {
                        self.running = None;
                    }
                }
                // Every sequence reports its end before its sender is dropped.
                Poll::Ready(None) => self.running = None,
                Poll::Pending => {
                    let Some((_, timer)) = &mut self.keep_alive else { return Poll::Pending };
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.queue.raw(": keep-alive\n\n".into());
                }
            }
        }
    }
}

impl LiveStream {
    /// Writes one output as events. True once the stream is complete.
    fn advance(&mut self, out: &Output, queue: &mut Sink) -> bool {
        if out.event == SeqEvent::Failed {
            self.dialect.fail(&Fault::engine_dead(), queue);
            return true;
        }
        if !self.opened {
            self.opened = true;
            self.tally.cached = out.cached;
            self.dialect.open(&self.plan, queue);
        }
        let index = out.index as usize;
        let (script, cursor) = (&self.plan.scripts[index], &mut self.cursors[index]);
        let (at, offset) = (cursor.at, cursor.offset());
        let (piece, at, reason) = match out.event {
            SeqEvent::Token { last } => {
                (cursor.next(script), Some(at), last.then_some(&script.reason))
            }
            _ => (Cow::Owned(cursor.rest()), None, Some(&Reason::Abort)),
        };
        let tokens = cursor.produced(script);
        self.tally.completion_tokens += u32::from(at.is_some());
        if let Some(parsed) = self.plan.parsed(true) {
            self.ticket.engine().parsed(parsed);
        }
        let step = Step { index, at, piece: &piece, offset, tokens, reason };
        self.dialect.token(&self.plan, &step, queue);
        self.ended += usize::from(reason.is_some());
        if self.ended < self.plan.scripts.len() {
            return false;
        }
        self.dialect.close(&self.plan, self.tally, queue);
        true
    }
}

/// Waits for a whole reply.
pub(crate) async fn whole(
    plan: &Plan,
    out: &mut mpsc::Receiver<Output>,
) -> Result<Completion, Fault> {
    let count = plan.scripts.len();
    let mut cursors: Vec<Cursor> = plan.scripts.iter().map(Cursor::of).collect();
    let mut completion = Completion {
        texts: vec![String::new(); count],
        reasons: vec![None; count],
        tokens: vec![0; count],
        cached: 0,
    };
    while let Some(output) = out.recv().await {
        let index = output.index as usize;
        let script = &plan.scripts[index];
        completion.cached = output.cached;
        match output.event {
            SeqEvent::Failed => return Err(Fault::engine_dead()),
            SeqEvent::Token { last } => {
                completion.texts[index].push_str(&cursors[index].next(script));
                completion.tokens[index] += 1;
                if last {
                    completion.reasons[index] = Some(script.reason.clone());
                }
            }
            SeqEvent::Aborted | SeqEvent::Pooled => {
                completion.texts[index].push_str(&cursors[index].rest());
                completion.reasons[index] = Some(Reason::Abort);
            }
        }
        if completion.reasons.iter().all(Option::is_some) {
            break;
        }
    }
    Ok(completion)
}
