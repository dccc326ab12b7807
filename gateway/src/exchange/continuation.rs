//! Going on with a stream on another replica, after the one that it came from is lost.
//!
//! The request waits in its own class before all that have not begun, and gets an endpoint as any
//! other one does. The replica is sent the ids of all tokens so far, and its answer is joined to the
//! stream (`answer/token_record.rs`).

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, header};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::answer::failure::{Cause, Failure};
use crate::answer::judge::is_failure;
use crate::answer::not_continued::NotContinued;
use crate::answer::refusal::Refusal;
use crate::answer::token_record::TokenRecord;
use crate::exchange::outgoing::{Outgoing, Rights};
use crate::exchange::send::{send, stalled};
use crate::exchange::steps::{RequestStep, RequestSteps};
use crate::exchange::upstream::UpstreamBody;
use crate::net::clock;
use crate::pool::{End, Pool, Room, Slot, Ticket};
use crate::read::continuable::{ContinuableBody, ContinuationEdits, NextRequest};
use crate::read::head::ClientHead;

/// The most bytes of a replica's error that are read.
const LONGEST_ERROR: usize = 64 << 10;

/// The longest pause that a move may cost. Then the old replica goes on.
pub(crate) const LONGEST_MOVE: Duration = Duration::from_secs(10);

/// The way that a request took to its answer.
pub(crate) struct Way {
    pub(crate) pool: Arc<Pool>,
    pub(crate) settings: Arc<forebay_config::Pool>,
    pub(crate) rights: Rights,
    /// The model's name that the replicas got, if it is another one than the client's.
    pub(crate) served: Option<Arc<str>>,
    pub(crate) ticket: Ticket,
    pub(crate) deadline: Instant,
}

/// Everything that another replica needs to go on with an answer.
pub(crate) struct Continuation {
    head: Box<ClientHead>,
    body: ContinuableBody,
    way: Way,
    /// The holds and tries of the present search; `None` if the request is not traced.
    steps: Option<Box<RequestSteps>>,
}

/// A replica that goes on with an answer.
pub(crate) struct NextReplica {
    pub(crate) slot: Slot,
    pub(crate) upstream: UpstreamBody,
}

/// The search for a replica that goes on. The continuation comes back for the next time.
pub(crate) type Search =
    Pin<Box<dyn Future<Output = (Box<Continuation>, Result<NextReplica, Refusal>)> + Send>>;

impl Continuation {
    pub(crate) fn new(head: Box<ClientHead>, body: ContinuableBody, way: Way) -> Self {
        let steps = RequestSteps::of(&head.own.trace);
        Self { head, body, way, steps }
    }

    /// The request that goes on behind the recorded tokens.
    ///
    /// # Errors
    /// The client's request does not allow it.
    pub(crate) fn next(&self, token_record: &TokenRecord) -> Result<NextRequest, NotContinued> {
        let ids = token_record.ids();
        let edits = ContinuationEdits {
            model: self.way.served.as_deref(),
            drop_priority: !self.way.settings.allow_priority,
        };
        self.body.next(ids.all(), ids.answer_tokens() as u64, edits)
    }

    /// Gives up the place at the replica that failed. `progressed`: a part of the answer came since
    /// the last failure.
    ///
    /// # Errors
    /// No other replica may be tried.
    pub(crate) fn leave(
        &mut self,
        slot: Slot,
        failure: Failure,
        progressed: bool,
    ) -> Result<(), Refusal> {
        if progressed {
            self.way.ticket.progressed();
        }
        slot.decide_retry(&mut self.way.ticket, failure)
    }

    /// Takes the holds and tries of the last search.
    pub(crate) fn take_steps(&mut self) -> Vec<RequestStep> {
        self.steps.as_mut().map(|steps| steps.take()).unwrap_or_default()
    }

    /// Looks for a replica and sends it the request with this `body`.
    pub(crate) fn search(mut self: Box<Self>, body: Bytes) -> Search {
        Box::pin(async move {
            let found = self.find(body).await;
            (self, found)
        })
    }

    /// How long a replica drains before the stream leaves it; `None` if it stays.
    pub(crate) fn move_after(&self) -> Option<Duration> {
        self.way.settings.move_after()
    }

    /// Waits for a place elsewhere for a stream that should leave the replica in `slot`.
    pub(crate) fn room_elsewhere(&self, slot: &Slot) -> oneshot::Receiver<Room> {
        slot.room_elsewhere(&self.way.ticket)
    }

    /// Sends the request with this `body` to the replica in `slot`, and to no other one.
    pub(crate) fn move_to(mut self: Box<Self>, slot: Slot, body: Bytes) -> Search {
        Box::pin(async move {
            let moved = self.try_slot(slot, body).await;
            (self, moved)
        })
    }

    async fn try_slot(&mut self, slot: Slot, body: Bytes) -> Result<NextReplica, Refusal> {
        let Self { head, way, steps, .. } = self;
        let mut outgoing = Outgoing::new(Cow::Borrowed(&**head), body.into(), way.rights.clone());
        if let Some(steps) = steps {
            outgoing.set_parent(&steps.try_began(clock::now(), slot.address));
        }
        let reply = tokio::select! {
            biased;
            reply = attempt(&outgoing, &slot, &way.settings.upstream, way.deadline) => reply,
            failure = slot.evicted() => Err(failure),
            () = sleep(LONGEST_MOVE) => Err(stalled(LONGEST_MOVE)),
        };
        let failure = match reply {
            Ok(FirstReply::Stream(upstream)) => return Ok(NextReplica { slot, upstream }),
            Ok(FirstReply::Refused(failure)) => {
                slot.ended(End::Complete);
                failure
            }
            Err(failure) => {
                slot.failed(failure.clone());
                failure
            }
        };
        if let Some(steps) = steps {
            steps.failed(clock::now(), failure.cause);
        }
        Err(Refusal::Failed(failure))
    }

    async fn find(&mut self, body: Bytes) -> Result<NextReplica, Refusal> {
        let Self { head, way, steps, .. } = self;
        let mut outgoing = Outgoing::new(Cow::Borrowed(&**head), body.into(), way.rights.clone());
        loop {
            if let Some(steps) = steps {
                steps.hold_began(clock::now());
            }
            let slot = way.pool.hold(&mut way.ticket).await?;
            if let Some(steps) = steps {
                outgoing.set_parent(&steps.try_began(clock::now(), slot.address));
            }
            let attempt = async {
                tokio::select! {
                    biased;
                    answer = attempt(&outgoing, &slot, &way.settings.upstream, way.deadline) => answer,
                    failure = slot.evicted() => Err(failure),
                }
            };
            match attempt.await {
                Ok(FirstReply::Stream(upstream)) => return Ok(NextReplica { slot, upstream }),
                Ok(FirstReply::Refused(failure)) => {
                    if let Some(steps) = steps {
                        steps.failed(clock::now(), failure.cause);
                    }
                    slot.ended(End::Complete);
                    return Err(Refusal::Failed(failure));
                }
                Err(failure) => {
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
    }
}

/// A replica's answer to a continuation.
enum FirstReply {
    Stream(UpstreamBody),
    Refused(Failure),
}

/// One try, up to the head of the answer.
async fn attempt(
    outgoing: &Outgoing<'_>,
    slot: &Slot,
    settings: &forebay_config::Upstream,
    deadline: Instant,
) -> Result<FirstReply, Failure> {
    let due = clock::now() + settings.stall_timeout;
    let (head, mut upstream) = send(outgoing, slot.address, settings, Some(due), deadline).await?;
    let kind = head.headers.get(header::CONTENT_TYPE);
    let streamed = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    if streamed && head.status == StatusCode::OK {
        return Ok(FirstReply::Stream(upstream));
    }
    let mut body = Vec::new();
    while body.len() < LONGEST_ERROR {
        let next = timeout(settings.stall_timeout, upstream.data());
        let Some(bytes) = next.await.map_err(|_| stalled(settings.stall_timeout))? else { break };
        body.extend_from_slice(&bytes?);
    }
    let status = head.status.as_u16();
    let read: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let reported = read["error"]["message"].as_str();
    let message = match reported {
        Some(message) => message.to_owned(),
        None => format!("The replica answered with {status}."),
    };
    if is_failure(status) {
        return Err(Failure::of(status, message));
    }
    let message = format!("The replica refused to go on with the answer: {message}");
    Ok(FirstReply::Refused(Failure::new(Cause::NotContinued, message)))
}

/// Why an answer ends when this refusal ends the search for another replica.
pub(crate) fn reason(refusal: &Refusal) -> NotContinued {
    match refusal {
        Refusal::Poison => NotContinued::Poison,
        Refusal::Exhausted { .. } => NotContinued::Exhausted,
        Refusal::Failed(failure) if failure.cause == Cause::NotContinued => NotContinued::Refused,
        Refusal::Failed(_) => NotContinued::Exhausted,
        _ => NotContinued::NoRoom,
    }
}
