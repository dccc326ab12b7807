//! A routed request's way to an answer: held, tried, tried again, until something can go out.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{StatusCode, header, response};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::answer::api::Api;
use crate::answer::failure::{Cause, Failure};
use crate::answer::meter::Tokens;
use crate::answer::plain::{Head, Plain, PlainAnswer};
use crate::answer::refusal::Refusal;
use crate::answer::stream::{AnswerStream, Step};
use crate::exchange::ours::Ours;
use crate::exchange::outgoing::{Outgoing, strip_hop_by_hop};
use crate::exchange::record::Record;
use crate::exchange::upstream::{Answer, Connection, NoAnswer};
use crate::pool::{End, Pool, Slot, Ticket};
use crate::text::rope::Pieces;

/// All that is needed to have one request answered.
pub(crate) struct Exchange {
    pub(crate) pool: Arc<Pool>,
    pub(crate) api: Api,
    pub(crate) outgoing: Outgoing,
    pub(crate) ours: Ours,
    pub(crate) ticket: Ticket,
    pub(crate) record: Record,
    /// Usage was asked for by us alone.
    pub(crate) strip_usage: bool,
    /// Cancelled when the gateway waits no longer.
    pub(crate) ending: CancellationToken,
}

/// An answer of which something can go out to the client.
pub(crate) struct Committed {
    pub(crate) head: response::Parts,
    pub(crate) slot: Slot,
    pub(crate) answer: Begun,
}

/// An answer as far as it is known.
pub(crate) enum Begun {
    /// A plain one, complete.
    Whole(Pieces, Tokens),
    /// A plain one, refused by the replica for the client's own error.
    Refused(Pieces),
    /// A plain one too long to be kept back.
    Long(Pieces, Answer, PlainAnswer),
    Stream(Pieces, Answer, Box<AnswerStream>),
}

/// What came of it, and the books that go on.
pub(crate) struct Outcome {
    pub(crate) result: Result<Committed, Refusal>,
    pub(crate) record: Record,
    pub(crate) pool: Arc<Pool>,
    pub(crate) deadline: Instant,
}

impl Exchange {
    /// Dropping it leaves the queue or the endpoint at once.
    pub(crate) async fn run(mut self) -> Outcome {
        let deadline = self.ticket.request.deadline;
        let ending = self.ending.clone();
        let result = tokio::select! {
            biased;
            result = timeout_at(deadline, self.until_committed()) => result,
            () = ending.cancelled() => Ok(Err(Refusal::ShuttingDown)),
        };
        let too_long = Refusal::TooLong(self.pool.settings().upstream.request_timeout);
        let result = result.unwrap_or(Err(too_long));
        Outcome { result, record: self.record, pool: self.pool, deadline }
    }

    async fn until_committed(&mut self) -> Result<Committed, Refusal> {
        loop {
            self.record.holds();
            let mut slot = self.pool.hold(&mut self.ticket).await?;
            if !self.api.takes_engine() {
                slot.without_engine();
            }
            self.record.released(&self.ticket, slot.address);
            let attempt = async {
                tokio::select! {
                    biased;
                    answer = self.attempt(slot.address) => answer,
                    failure = slot.evicted() => Err(failure),
                }
            };
            match attempt.await {
                Ok((head, answer)) => return Ok(Committed { head, slot, answer }),
                Err(failure) => {
                    let (pool, endpoint) = (&self.pool.name, slot.address);
                    tracing::debug!(%pool, %endpoint, cause = failure.cause.name(), %failure, "try failed");
                    let again = self.pool.try_again(&mut self.ticket, &slot, &failure);
                    slot.ended(End::of(failure));
                    again?;
                }
            }
        }
    }

    /// One try at one endpoint, up to the point where something can go out to the client.
    async fn attempt(&self, address: SocketAddr) -> Result<(response::Parts, Begun), Failure> {
        let stall = self.pool.settings().upstream.stall_timeout;
        let dispatched = Instant::now();
        let (mut head, upstream) = self.send(address, dispatched + stall).await?;
        let framing = Head::of(&head);
        strip_hop_by_hop(&mut head.headers);
        let kind = head.headers.get(header::CONTENT_TYPE);
        let streamed = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let begun = if streamed && head.status == StatusCode::OK {
            // One time for all of it: a server keeps a connection alive also while its engine
            // hangs. Where nobody expected a stream, it begins with the head.
            let since = if self.record.context.stream { dispatched } else { Instant::now() };
            self.stream(upstream, address, since + stall).await?
        } else {
            self.plain(framing, upstream).await?
        };
        Ok((head, begun))
    }

    /// `due`: when a stream's first event has to be there, and so its head.
    async fn send(
        &self,
        address: SocketAddr,
        due: Instant,
    ) -> Result<(response::Parts, Answer), Failure> {
        let settings = self.pool.settings();
        let settings = &settings.upstream;
        let mut stale = None;
        loop {
            let (fresh, patience) = (stale.is_some(), settings.connect_timeout);
            let deadline = self.ticket.request.deadline;
            let connection = Connection::get(address, fresh, patience, deadline).await.map_err(
                |NoAnswer { failure, .. }| match failure.cause {
                    Cause::Shortage => failure,
                    // Nothing listens any more: it died, and perhaps of this request.
                    _ => stale.take().unwrap_or(failure),
                },
            )?;
            let sending = connection.send(self.outgoing.to(address));
            // A stream's head comes at once. A plain answer's comes only when all of it is there,
            // however long that takes: the request's own time is its limit.
            let sent = if self.record.context.stream {
                timeout_at(due, sending).await.map_err(|_| self.stalled())?
            } else {
                sending.await
            };
            match sent {
                Ok(response) => return Ok(response.into_parts()),
                // A keep-alive gone stale: nobody's fault, and once is enough.
                Err(no_answer) if no_answer.stale && stale.is_none() => {
                    stale = Some(no_answer.failure);
                }
                Err(no_answer) => return Err(no_answer.failure),
            }
        }
    }

    /// The first event that is one decides, if it is there when `due`.
    async fn stream(
        &self,
        mut upstream: Answer,
        address: SocketAddr,
        due: Instant,
    ) -> Result<Begun, Failure> {
        let known = self.strip_usage.then(|| self.pool.fingerprint(address)).flatten();
        let mut stream = AnswerStream::new(self.api, self.strip_usage, known);
        loop {
            let data = timeout_at(due, upstream.data()).await.map_err(|_| self.stalled())?;
            let Some(bytes) = data.transpose()? else {
                let message = "The stream ended before its first event.";
                return Err(Failure::new(Cause::Truncated, message));
            };
            match stream.feed(bytes, Instant::now()) {
                Step::Hold => {}
                Step::Retry(failure) => return Err(failure),
                // What failed in the same breath is the relay's to tell.
                Step::Pass(out) | Step::Failed(out, _) => {
                    return Ok(Begun::Stream(out, upstream, Box::new(stream)));
                }
            }
        }
    }

    /// Kept back until it is complete, up to a bound; a replica's failure is never passed on.
    async fn plain(&self, head: Head, mut upstream: Answer) -> Result<Begun, Failure> {
        let settings = self.pool.settings();
        let settings = &settings.upstream;
        let bound = usize::try_from(settings.commit_size.bytes()).unwrap_or(usize::MAX);
        let refused = |body: &[u8]| self.ours.failure(head.status, body);
        let mut answer = PlainAnswer::new(self.api, head, bound);
        let stall = settings.stall_timeout;
        while let Some(data) = timeout(stall, upstream.data()).await.map_err(|_| self.stalled())? {
            answer.feed(data?);
            // What has come whole can still be judged.
            if answer.is_long() && !upstream.is_over() {
                if let Some(failure) = refused(b"") {
                    return Err(failure);
                }
                if answer.is_failure() {
                    break;
                }
                return Ok(Begun::Long(answer.commit(), upstream, answer));
            }
        }
        match answer.end() {
            Plain::Answered(body, tokens) => Ok(Begun::Whole(body.into(), tokens)),
            Plain::Client(body) => match refused(&body) {
                Some(failure) => Err(failure),
                None => Ok(Begun::Refused(body.into())),
            },
            Plain::Retry(failure) => Err(failure),
        }
    }

    fn stalled(&self) -> Failure {
        let stall = self.pool.settings().upstream.stall_timeout;
        Failure::new(Cause::Stalled, format!("Nothing came for {stall:?}."))
    }
}
