//! Going on with a stream on another replica, after the one that it came from is lost.
//!
//! The request waits in its own class before all that have not begun, and gets an endpoint as any
//! other one does. The replica is asked for the text of the last tokens, which must be what the client
//! has. Then it is sent the ids of all tokens so far, and its answer is joined to the stream
//! (`answer/token_record.rs`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_telemetry::context::TraceContext;
use http::{StatusCode, Uri};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::answer::failure::{Cause, Failure};
use crate::answer::judge::is_failure;
use crate::answer::not_continued::NotContinued;
use crate::answer::plain::is_event_stream;
use crate::answer::refusal::Refusal;
use crate::answer::shown_text::{Compared, MOST_BACK, ShownTail};
use crate::answer::stream_memory::StreamMemory;
use crate::answer::token_record::TokenRecord;
use crate::exchange::misfit::MisfitCheck;
use crate::exchange::move_rules::{longest_move, may_move_after, too_slow};
use crate::exchange::no_reply::NoReply;
use crate::exchange::outgoing::{Outgoing, OutgoingHead, Rights};
use crate::exchange::send::{send, stalled};
use crate::exchange::steps::{RequestStep, RequestSteps};
use crate::exchange::upstream::UpstreamBody;
use crate::net::clock;
use crate::pool::{End, Pool, Slot, Ticket, UnderWay};
use crate::read::continuable::{Allowed, ContinuableBody, ContinuationEdits, Stops};
use crate::read::head::ClientHead;
use crate::wire::head::ResponseHead;

/// The most bytes of a plain answer that are read.
const LONGEST_PLAIN: usize = 256 << 10;

/// The way that a request took to its answer.
pub(crate) struct Way {
    pub(crate) pool: Arc<Pool>,
    pub(crate) settings: Arc<forebay_config::Pool>,
    pub(crate) rights: Rights,
    pub(crate) misfit: MisfitCheck,
    /// The model's name that the replicas got, if it is another one than the client's.
    pub(crate) served: Option<Arc<str>>,
    pub(crate) ticket: Ticket,
    pub(crate) deadline: Instant,
}

impl Way {
    /// Takes the pool's key as it is now: it may have changed since the last try.
    fn take_key(&mut self) {
        self.rights.authorization = self.pool.key.get();
        self.misfit.key = self.rights.key_owner();
    }
}

/// Everything that another replica needs to go on with an answer.
pub(crate) struct Continuation {
    head: Box<ClientHead>,
    body: ContinuableBody,
    way: Way,
    /// The holds and tries of the present search; `None` if the request is not traced.
    steps: Option<Box<RequestSteps>>,
}

/// A place where an answer was cut, for the replica that goes on with it.
pub(crate) struct CutAnswer {
    /// The prompt's ids, and the answer's behind them.
    ids: Vec<u32>,
    /// The number of ids of the answer.
    answered: usize,
    stops: Stops,
    /// The text that the client has, if it must be shown that it is the text of the ids.
    shown: Option<ShownTail>,
    _memory: StreamMemory,
}

/// The rest of an answer behind a cut.
pub(crate) enum Onward {
    /// Nothing but its end, which the gateway writes.
    End,
    Tokens(CutAnswer),
}

/// A replica that goes on with an answer.
pub(crate) struct NextReplica {
    pub(crate) slot: Box<Slot>,
    pub(crate) upstream: UpstreamBody,
    pub(crate) start: Start,
}

/// Where a replica goes on, as compared with the cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Start {
    /// The number of tokens before the cut, of whose text the client has nothing.
    pub(crate) back: usize,
    /// Text of the tokens before it that the client does not have yet.
    pub(crate) rest: String,
}

/// No replica goes on with an answer.
pub(crate) struct NoReplica {
    pub(crate) refusal: Refusal,
    pub(crate) why: NotContinued,
    /// A stream that stays at its replica may try again to leave it.
    pub(crate) again: bool,
}

impl From<Refusal> for NoReplica {
    fn from(refusal: Refusal) -> Self {
        let why = reason(&refusal);
        Self { refusal, why, again: false }
    }
}

/// The search for a replica that goes on. The continuation comes back for the next time.
pub(crate) type Search =
    Pin<Box<dyn Future<Output = (Box<Continuation>, Result<NextReplica, NoReplica>)> + Send>>;

impl Continuation {
    pub(crate) fn new(head: Box<ClientHead>, body: ContinuableBody, mut way: Way) -> Self {
        way.ticket.compares(body.is_parsed());
        let steps = RequestSteps::of(&head.own.trace);
        Self { head, body, way, steps }
    }

    /// The rest of the answer behind the recorded tokens.
    ///
    /// # Errors
    /// The client's request does not allow another replica to go on, or the text of the tokens can't
    /// be compared with what the client has.
    pub(crate) fn onward(&self, token_record: &TokenRecord) -> Result<Onward, NotContinued> {
        let ids = token_record.ids();
        let answered = ids.answer_tokens();
        let stops = match self.body.allows(answered as u64)? {
            Allowed::NothingLeft => return Ok(Onward::End),
            Allowed::Tokens(stops) => stops,
        };
        // A chunk of one token with text has all its text, if nothing is between.
        let plain = !self.body.is_parsed() && stops.are_none() && !ids.ends_with_several();
        let shown = match answered == 0 || plain {
            true => None,
            false => Some(token_record.shown().shown().ok_or(NotContinued::TextHeld)?),
        };
        let mut memory = StreamMemory::default();
        if !memory.reach(size_of_val(ids.all())) {
            return Err(NotContinued::Memory);
        }
        let ids = ids.all().to_vec();
        Ok(Onward::Tokens(CutAnswer { ids, answered, stops, shown, _memory: memory }))
    }

    /// Gives up the place at the replica that failed. `progress`: the tokens that it generated, if a
    /// part of the answer came from it.
    ///
    /// # Errors
    /// No other replica may be tried.
    pub(crate) fn leave(
        &mut self,
        slot: Box<Slot>,
        failure: Failure,
        progress: Option<u64>,
    ) -> Result<(), Refusal> {
        if let Some(tokens) = progress {
            self.way.ticket.progressed(tokens);
        }
        slot.decide_retry(&mut self.way.ticket, failure)
    }

    /// The time that the pool has held the request since the stream broke.
    pub(crate) fn held(&self) -> Duration {
        self.way.ticket.hold_time.all
    }

    /// Takes the holds and tries of the last search.
    pub(crate) fn take_steps(&mut self) -> Vec<RequestStep> {
        self.steps.as_mut().map(|steps| steps.take()).unwrap_or_default()
    }

    /// Looks for a replica that goes on behind the cut.
    pub(crate) fn search(mut self: Box<Self>, cut: CutAnswer) -> Search {
        Box::pin(async move {
            let found = self.find(&cut).await;
            (self, found)
        })
    }

    /// How long a replica drains before the stream leaves it; `None` if it stays.
    pub(crate) fn move_after(&self) -> Option<Duration> {
        self.way.settings.move_after()
    }

    /// Waits for room elsewhere for a stream that should leave the replica in `slot`.
    pub(crate) fn room_elsewhere(&self, slot: &Slot) -> oneshot::Receiver<UnderWay> {
        slot.room_elsewhere(&self.way.ticket)
    }

    /// Takes a place elsewhere for a stream that leaves the replica in `slot`.
    pub(crate) fn place_elsewhere(&self, slot: &Slot) -> Option<Box<Slot>> {
        slot.place_elsewhere(&self.way.ticket)
    }

    /// Has the replica in `slot` go on behind the cut, and no other one.
    pub(crate) fn move_to(mut self: Box<Self>, slot: Box<Slot>, cut: CutAnswer) -> Search {
        Box::pin(async move {
            let moved = self.try_slot(slot, &cut).await;
            (self, moved)
        })
    }

    async fn try_slot(
        &mut self,
        mut slot: Box<Slot>,
        cut: &CutAnswer,
    ) -> Result<NextReplica, NoReplica> {
        let Self { head, body, way, steps } = self;
        slot.goes_on();
        let now = clock::now();
        let parent = steps.as_mut().map(|steps| steps.try_began(now, slot.address));
        way.take_key();
        let mut start = None;
        let longest = longest_move(cut.ids.len());
        let attempt = Resumption { head, body, way, slot: &slot, cut, parent };
        let reply = tokio::select! {
            biased;
            reply = attempt.run(&mut start) => reply,
            failure = slot.evicted() => Err(NoReply::Failed(failure)),
            () = sleep(longest) => Err(NoReply::Failed(too_slow(longest))),
        };
        let no_reply = match reply {
            Ok(upstream) => {
                let start = start.unwrap_or_default();
                return Ok(NextReplica { slot, upstream, start });
            }
            Err(no_reply) => no_reply,
        };
        let (failure, again) = match no_reply.failure(&slot) {
            Ok(failure) => {
                if failure.cause.is_misfit() {
                    way.ticket.refused_by(&slot);
                }
                let again = may_move_after(failure.cause);
                (failure, again)
            }
            Err((message, why)) => (Failure::new(Cause::Moved, message), why.may_pass()),
        };
        let (pool, endpoint, cause) = (&way.pool.name, slot.address, failure.cause.name());
        tracing::debug!(%pool, %endpoint, cause, %failure, again, "move failed");
        slot.failed(failure.clone());
        if let Some(steps) = steps {
            steps.failed(clock::now(), failure.cause);
        }
        Err(NoReplica { again, ..Refusal::Failed(failure).into() })
    }

    async fn find(&mut self, cut: &CutAnswer) -> Result<NextReplica, NoReplica> {
        let Self { head, body, way, steps } = self;
        let mut start = None;
        loop {
            if let Some(steps) = steps {
                steps.hold_began(clock::now());
            }
            let mut slot = way.pool.hold(&mut way.ticket).await?;
            slot.goes_on();
            let now = clock::now();
            let parent = steps.as_mut().map(|steps| steps.try_began(now, slot.address));
            way.take_key();
            let attempt = Resumption { head, body, way, slot: &slot, cut, parent };
            let attempt = async {
                tokio::select! {
                    biased;
                    reply = attempt.run(&mut start) => reply,
                    failure = slot.evicted() => Err(NoReply::Failed(failure)),
                }
            };
            let no_reply = match attempt.await {
                Ok(upstream) => {
                    let start = start.unwrap_or_default();
                    return Ok(NextReplica { slot, upstream, start });
                }
                Err(no_reply) => no_reply,
            };
            let failure = match no_reply.failure(&slot) {
                Ok(failure) => failure,
                Err((message, why)) => {
                    slot.ended(End::Unused);
                    let message = format!("The answer can't go on on another replica: {message}");
                    let failure = Failure::new(Cause::NotContinued, message);
                    if let Some(steps) = steps {
                        steps.failed(clock::now(), failure.cause);
                    }
                    let refusal = Refusal::Failed(failure);
                    return Err(NoReplica { refusal, why, again: false });
                }
            };
            let (pool, endpoint) = (&way.pool.name, slot.address);
            let cause = failure.cause.name();
            tracing::debug!(%pool, %endpoint, cause, %failure, "continuation failed");
            if let Some(steps) = steps {
                steps.failed(clock::now(), failure.cause);
            }
            slot.decide_retry(&mut way.ticket, failure)?;
        }
    }
}

/// One try to go on at one replica.
struct Resumption<'a> {
    head: &'a ClientHead,
    body: &'a ContinuableBody,
    way: &'a Way,
    slot: &'a Slot,
    cut: &'a CutAnswer,
    /// The span of this try, if the request is traced.
    parent: Option<TraceContext>,
}

impl Resumption<'_> {
    /// Sends the request, and waits for the head of its answer. `start` is found if it is not known
    /// yet.
    async fn run(&self, start: &mut Option<Start>) -> Result<UpstreamBody, NoReply> {
        let start = match start {
            Some(start) => &*start,
            None => {
                let found = self.find_start().await?;
                start.insert(found)
            }
        };
        let CutAnswer { ids, answered, .. } = self.cut;
        let ids = &ids[..ids.len() - start.back];
        let body = self.body.next(ids, (answered - start.back) as u64, self.edits());
        let body = body.map_err(|why| NoReply::Refused(why.name().to_owned(), why))?;
        let (head, upstream) = self.send(OutgoingHead::Client(self.head), body).await?;
        if is_event_stream(head.content_type()) && head.status == StatusCode::OK {
            return Ok(upstream);
        }
        let body = self.whole(upstream).await?;
        Err(self.refusal(head.status, &body))
    }

    /// Finds the last token of which the client has all text, with nothing of the next one, by asking
    /// the replica for the text of the last tokens.
    async fn find_start(&self) -> Result<Start, NoReply> {
        let CutAnswer { ids, answered, stops, shown, .. } = self.cut;
        let Some(shown) = shown else { return Ok(Start::default()) };
        for back in 0..=MOST_BACK.min(*answered) {
            let end = ids.len() - back;
            if end <= shown.start {
                break;
            }
            match self.compare(shown, end).await? {
                Compared::AllBut(rest) if stops.may_begin_in(&shown.with(&rest)) => {
                    let message = "its text may end with the beginning of a stop string";
                    return Err(NoReply::Refused(message.to_owned(), NotContinued::Stop));
                }
                Compared::AllBut(rest) => return Ok(Start { back, rest }),
                Compared::More => {}
                Compared::Other => break,
            }
        }
        let message = "the client does not have all text of the tokens, or other text";
        Err(NoReply::Refused(message.to_owned(), NotContinued::TextHeld))
    }

    /// Compares the text that the client has with that of the tokens up to `end`. A token before it
    /// may have the first part of its first character.
    async fn compare(&self, shown: &ShownTail, end: usize) -> Result<Compared, NoReply> {
        let CutAnswer { ids, answered, stops, .. } = self.cut;
        let first = (ids.len() - answered).max(shown.start.saturating_sub(MOST_BACK - 1));
        for from in (first..=shown.start).rev() {
            let text = self.text_of(&ids[from..end]).await?;
            let compared = shown.compare(&text, stops.lag());
            if compared != Compared::Other || !text.starts_with('\u{fffd}') {
                return Ok(compared);
            }
        }
        Ok(Compared::Other)
    }

    /// The text of these tokens, as the replica reports it.
    async fn text_of(&self, ids: &[u32]) -> Result<String, NoReply> {
        let body = self.body.detokenize(ids, self.edits());
        let body = body.map_err(|why| NoReply::Refused(why.name().to_owned(), why))?;
        let mut head = self.head.clone();
        head.parts.uri = Uri::from_static("/detokenize");
        let (head, upstream) = self.send(OutgoingHead::own(head), body).await?;
        let body = self.whole(upstream).await?;
        let read: Value = serde_json::from_slice(&body).unwrap_or_default();
        match (head.status, read["prompt"].as_str()) {
            (StatusCode::OK, Some(text)) => Ok(text.to_owned()),
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT, _) => {
                Err(self.refusal(head.status, &body))
            }
            (status, _) if is_failure(status.as_u16()) => Err(self.refusal(status, &body)),
            (status, _) => {
                let message = format!("The replica did not turn tokens into text ({status}).");
                let failure = Failure::new(Cause::NotContinued, message);
                // It may take this request for another model, or with another key.
                let for_now = matches!(status.as_u16(), 400 | 401 | 403 | 407 | 413 | 422)
                    || self.way.misfit.missed_model(status, &body).is_some();
                Err(if for_now { NoReply::Failed(failure) } else { NoReply::NoText(failure) })
            }
        }
    }

    fn edits(&self) -> ContinuationEdits<'_> {
        let model = self.way.served.as_deref();
        ContinuationEdits { model, drop_priority: !self.way.settings.allow_priority }
    }

    async fn send(
        &self,
        head: OutgoingHead<'_>,
        body: Bytes,
    ) -> Result<(ResponseHead, UpstreamBody), Failure> {
        let Way { settings, rights, deadline, .. } = self.way;
        let mut outgoing = Outgoing::new(head, body.into(), rights.clone());
        if let Some(parent) = &self.parent {
            outgoing.set_parent(parent);
        }
        let due = clock::now() + settings.upstream.stall_timeout;
        send(&outgoing, self.slot.address, &settings.upstream, Some(due), *deadline).await
    }

    /// A plain body, up to a bound.
    async fn whole(&self, mut upstream: UpstreamBody) -> Result<Vec<u8>, Failure> {
        let stall = self.way.settings.upstream.stall_timeout;
        let mut body = Vec::new();
        while body.len() < LONGEST_PLAIN {
            let next = timeout(stall, upstream.data()).await.map_err(|_| stalled(stall))?;
            let Some(bytes) = next else { break };
            body.extend_from_slice(&bytes?);
        }
        Ok(body)
    }

    /// The meaning of an answer that is not a stream.
    fn refusal(&self, status: StatusCode, body: &[u8]) -> NoReply {
        let read: Value = serde_json::from_slice(body).unwrap_or_default();
        let reported = read["error"]["message"].as_str();
        let message = match reported {
            Some(message) => message.to_owned(),
            None => format!("The replica answered with {status}."),
        };
        if is_failure(status.as_u16()) {
            return NoReply::Failed(Failure::of(status.as_u16(), message));
        }
        if let Some(failure) = self.way.misfit.failure(status, body) {
            return NoReply::Failed(failure);
        }
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
            return NoReply::Failed(Failure::new(Cause::QueueFull, message));
        }
        let names = |field: &str| memchr::memmem::find(body, field.as_bytes()).is_some();
        if names("kv_transfer_params.prompt_token_ids") {
            // It knows the field, and not these ids: they are of another model with the same name.
            return NoReply::Failed(Failure::new(Cause::NotContinued, message));
        }
        if names("kv_transfer_params") || names("return_token_ids") {
            return NoReply::BeginsAnew(Failure::new(Cause::NotContinued, message));
        }
        NoReply::Refused(message, NotContinued::Refused)
    }
}

/// Why an answer ends when this refusal ends the search for another replica.
fn reason(refusal: &Refusal) -> NotContinued {
    match refusal {
        Refusal::Poison => NotContinued::Poison,
        Refusal::Exhausted { .. } => NotContinued::Exhausted,
        Refusal::Failed(failure) if failure.cause == Cause::NotContinued => NotContinued::Refused,
        Refusal::Failed(_) => NotContinued::Exhausted,
        _ => NotContinued::NoRoom,
    }
}
