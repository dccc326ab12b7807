//! A request's way to a replica's answer: it is held, tried, tried again, and taken to the fallback
//! pool if its own pool can't serve it in time.
//!
//! Requests and WebSocket sessions take this way alike. A [`RequestKind`] has their differences:
//! the request that is sent, and the course of one try. Nothing goes out to the client before a try
//! has succeeded. Dropping the future takes the request out of the queue or off its endpoint.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use forebay_scheduling::prompt::Prompt;
use forebay_scheduling::queue::Entry;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::answer::failure::Failure;
use crate::answer::not_continued::NotContinued;
use crate::answer::refusal::Refusal;
use crate::exchange::continuation::{Continuation, Way};
use crate::exchange::late::{self, late};
use crate::exchange::misfit::MisfitCheck;
use crate::exchange::outgoing::{Outgoing, OutgoingHead, Rights};
use crate::exchange::record::Record;
use crate::net::clock;
use crate::pool::{ExpectedStart, Fallback, Pool, Slot, Ticket};
use crate::read::prompt::Owner;
use crate::route::{Destination, FallbackRoute, RoutePlan};
use crate::text::rope::Rope;

/// One kind of request: how it is sent, and how one try runs.
pub(crate) trait RequestKind: Send + Sync {
    /// An answer of which something can go out to the client.
    type Answer: Send;

    /// Whether an answer shows that the replica's engine works, and not only the server before it.
    fn shows_engine(&self) -> bool;

    /// The request for the replicas of this destination.
    fn edited(
        &self,
        destination: &Destination,
        settings: &forebay_config::Pool,
    ) -> EditedRequest<'_>;

    /// The prompt as a policy sees it that reads prompts; `None` if there is none.
    fn prompt(&self, owner: Owner<'_>) -> Option<Prompt>;

    /// Everything that another replica needs to go on with an answer that came on this way.
    fn continuation(self, _way: Way) -> Result<Box<Continuation>, NotContinued>
    where
        Self: Sized,
    {
        Err(NotContinued::Api)
    }

    /// One try at one replica, up to the point where something can go out to the client.
    fn attempt(
        &self,
        delivery: &Delivery<'_>,
        slot: &Slot,
    ) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;
}

/// A request after the edits that its pool asks for.
pub(crate) struct EditedRequest<'a> {
    pub(crate) head: OutgoingHead<'a>,
    pub(crate) body: Rope,
    /// The gateway alone asked for usage, so the client must not see it.
    pub(crate) strip_usage: bool,
    /// Whether the ids of the answer's tokens were asked for, by the gateway alone or by the client
    /// too; or else why another replica could not go on with the answer.
    pub(crate) token_ids: Result<Strip, NotContinued>,
}

/// Whether what was asked for is taken out of the answer again, since the client did not ask for it.
pub(crate) type Strip = bool;

/// A request on its way to the replicas of one pool.
pub(crate) struct Delivery<'a> {
    pub(crate) pool: Arc<Pool>,
    /// The pool's settings when the request came to it.
    pub(crate) settings: Arc<forebay_config::Pool>,
    pub(crate) outgoing: Outgoing<'a>,
    pub(crate) misfit: MisfitCheck,
    /// The deadline for the complete answer.
    pub(crate) deadline: Instant,
    /// The gateway alone asked for usage, so the client must not see it.
    pub(crate) strip_usage: bool,
    /// As in [`EditedRequest`].
    pub(crate) token_ids: Result<Strip, NotContinued>,
    /// The model's name for the replicas, if it is another one than the client's.
    pub(crate) served: Option<Arc<str>>,
}

impl Delivery<'_> {
    /// Takes the pool's key as it is now: it may have changed while the request was held.
    fn take_key(&mut self) {
        self.misfit.key = self.outgoing.set_authorization(self.pool.key.get());
    }
}

/// A request to be dispatched, complete enough to be sent to a second pool as well.
pub(crate) struct Dispatch<K> {
    pub(crate) kind: K,
    pub(crate) entry: Entry,
    /// When the client stops waiting, if it says so.
    pub(crate) client_deadline: Option<Instant>,
    /// Cancelled when a shutdown stops waiting.
    pub(crate) ending: CancellationToken,
    /// Shows when the request will start, to a client that gets heartbeats.
    pub(crate) expected: Option<Arc<ExpectedStart>>,
}

/// The result of a dispatch, and the record that goes on with the answer.
pub(crate) struct DispatchResult<A> {
    pub(crate) result: Result<(A, Box<Slot>), Refusal>,
    pub(crate) record: Box<Record>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) deadline: Instant,
    /// Everything that another replica needs to go on with the answer, or why none can.
    pub(crate) continuation: Result<Box<Continuation>, NotContinued>,
}

impl<K: RequestKind> Dispatch<K> {
    /// Dispatches the request to its pool, and to the fallback if that has no room in time.
    pub(crate) fn run(
        self: Box<Self>,
        plan: RoutePlan,
        record: Box<Record>,
    ) -> impl Future<Output = DispatchResult<K::Answer>> {
        let RoutePlan { first, fallback, .. } = plan;
        // Not an `async fn`: a held request would keep the plan twice.
        async move {
            let (mut dispatched, mut way) = self.try_pool(&first, fallback.as_ref(), record).await;
            if let Some(fallback) = &fallback
                && let Some(refusal) = dispatched.result.as_ref().err()
                && refusal.is_lack_of_room()
            {
                let (pool, other) = (&first.pool.name, &fallback.to.pool.name);
                tracing::debug!(%pool, %refusal, "sent to the fallback pool {other}");
                first.pool.figures.fell_back();
                // Boxed, like the tries: a request that is held keeps room for neither.
                let tried = Box::pin(self.try_pool(&fallback.to, None, dispatched.record));
                (dispatched, way) = tried.await;
            }
            if let (Ok(_), Some(way)) = (&dispatched.result, way) {
                dispatched.continuation = self.kind.continuation(*way);
            }
            dispatched
        }
    }

    /// Dispatches the request to one pool. If there is a `fallback`, this pool may hold the request
    /// only for the time that the fallback allows.
    async fn try_pool(
        &self,
        destination: &Destination,
        fallback: Option<&FallbackRoute>,
        mut record: Box<Record>,
    ) -> (DispatchResult<K::Answer>, Option<Box<Way>>) {
        let pool = Arc::clone(&destination.pool);
        let settings = pool.settings();
        let request_timeout = settings.upstream.request_timeout;
        let accepted = record.context.accepted;
        let deadline = accepted + request_timeout;
        record.routed(&pool);
        let mut ticket = Ticket::new(self.entry.clone(), accepted, deadline);
        let model = destination.served.as_ref().or(record.context.model.as_ref());
        if settings.pick.reads_prompts() {
            let model = model.map_or("", |name| name);
            let user_is_session = settings.user_is_session;
            let owner = Owner { tenant: &self.entry.tenant, model, user_is_session };
            ticket.prompt(self.kind.prompt(owner));
        }
        ticket.model(model.cloned());
        let mut delivery = self.delivery(destination, settings, &record, deadline);
        record.served(delivery.misfit.model.as_ref());
        ticket.streams(record.context.stream);
        ticket.gives_up(self.client_deadline);
        ticket.shows(self.expected.clone());
        let trace = &record.context.trace;
        ticket.traced(trace.tracer().map(|_| trace.context));
        ticket.set_fallback(match fallback {
            None => Fallback::None,
            Some(route) => route.after.map_or(Fallback::Pool, Fallback::PoolAfter),
        });
        let result = {
            let mut tries = pin!(self.until_answered(&mut delivery, &mut ticket, &mut record));
            let cut_off = async {
                tokio::select! {
                    biased;
                    () = sleep_until(deadline) => Refusal::TooLong(request_timeout),
                    () = self.ending.cancelled() => Refusal::ShuttingDown,
                }
            };
            let mut cut_off = pin!(late(accepted + late::AFTER, clock::now(), cut_off));
            poll_fn(|cx| match tries.as_mut().poll(cx) {
                Poll::Ready(result) => Poll::Ready(result),
                Poll::Pending => cut_off.as_mut().poll(cx).map(Err),
            })
            .await
        };
        let Delivery { settings, outgoing, misfit, token_ids, served, .. } = delivery;
        let (continuation, way) = match token_ids {
            Ok(_) => {
                let (pool, rights) = (Arc::clone(&pool), outgoing.into_rights());
                let way = Way { pool, settings, rights, misfit, served, ticket, deadline };
                (Err(NotContinued::NoTokenIds), Some(Box::new(way)))
            }
            Err(why) => (Err(why), None),
        };
        (DispatchResult { result, record, pool, deadline, continuation }, way)
    }

    fn delivery(
        &self,
        to: &Destination,
        settings: Arc<forebay_config::Pool>,
        record: &Record,
        deadline: Instant,
    ) -> Delivery<'_> {
        let pool = Arc::clone(&to.pool);
        let EditedRequest { head, body, strip_usage, token_ids } = self.kind.edited(to, &settings);
        // Each try takes the key.
        let rights = Rights {
            priority: settings.allow_priority,
            keyed: record.context.keyed,
            authorization: None,
        };
        let model = to.known_name(record.context.model.as_ref()).cloned();
        let misfit = MisfitCheck { key: rights.key_owner(), model };
        let outgoing = Outgoing::new(head, body, rights);
        let served = to.served.clone();
        Delivery { pool, settings, outgoing, misfit, deadline, strip_usage, token_ids, served }
    }

    /// Holds the request and tries the endpoint that it gets, until there is an answer or the
    /// request may not be tried again.
    async fn until_answered(
        &self,
        delivery: &mut Delivery<'_>,
        ticket: &mut Ticket,
        record: &mut Record,
    ) -> Result<(K::Answer, Box<Slot>), Refusal> {
        let pool = Arc::clone(&delivery.pool);
        loop {
            record.hold_began();
            let mut slot = pool.hold(ticket).await?;
            if !self.kind.shows_engine() {
                slot.without_engine();
            }
            delivery.take_key();
            let (released, parent) = record.released(ticket, &slot);
            if let Some(parent) = parent {
                delivery.outgoing.set_parent(&parent);
            }
            // Boxed: a request that is held keeps no room for its try.
            let answer = Box::pin(async {
                let mut attempt = pin!(self.kind.attempt(delivery, &slot));
                let begins = record.context.accepted + late::AFTER;
                let mut evicted = pin!(late(begins, released, slot.evicted()));
                poll_fn(|cx| match attempt.as_mut().poll(cx) {
                    Poll::Ready(answer) => Poll::Ready(answer),
                    Poll::Pending => evicted.as_mut().poll(cx).map(Err),
                })
                .await
            });
            let answer = answer.await;
            match answer {
                Ok(answer) => return Ok((answer, slot)),
                Err(failure) => {
                    let (pool_name, endpoint) = (&pool.name, slot.address);
                    tracing::debug!(
                        pool = %pool_name, %endpoint, cause = failure.cause.name(), %failure,
                        "try failed"
                    );
                    record.try_failed(failure.cause);
                    slot.decide_retry(ticket, failure)?;
                }
            }
        }
    }
}
