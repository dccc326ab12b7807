//! A session from its handshake to its end, and the sessions of one client connection.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use forebay_config::Limits;
use http::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::handshake::{Handshake, HandshakeAnswer, UpgradeRequest, model};
use super::relay::{SessionEnd, relay};
use super::usage::Tally;
use crate::answer::api::ErrorShape;
use crate::answer::failure::{Cause, Failure};
use crate::answer::outcome::{Outcome, SHUTTING_DOWN};
use crate::answer::refusal::Refusal;
use crate::exchange::answer_body::AnswerBody;
use crate::exchange::cutoff::ClientGone;
use crate::exchange::dispatch::{Dispatch, DispatchResult};
use crate::exchange::proxy::{Estimate, Proxy, client_left};
use crate::exchange::record::Record;
use crate::exchange::respond::{refuse, respond};
use crate::pool::End;
use crate::read::context::{Client, RequestContext};
use crate::read::head::ClientHead;
use crate::route::RoutePlan;

/// The sessions of a connection. They go on after its HTTP has ended, and the connection's task
/// drives them.
#[derive(Clone, Default)]
pub(crate) struct ConnectionSessions(Arc<Mutex<Vec<Session>>>);

type Session = Pin<Box<dyn Future<Output = ()> + Send>>;

impl ConnectionSessions {
    /// Drives each session to its end.
    pub(crate) async fn run(self) {
        loop {
            let Some(session) = self.0.lock().pop() else { return };
            session.await;
        }
    }
}

impl Proxy {
    /// Answers a handshake. If a replica agrees, the session is added to `sessions`.
    pub(crate) async fn session(
        &self,
        head: Box<ClientHead>,
        upgrade: Option<UpgradeRequest>,
        client: Client,
        limits: Arc<Limits>,
        sessions: &ConnectionSessions,
    ) -> Response<AnswerBody> {
        let shape = ErrorShape::OpenAi;
        let mut record = Record::begin(RequestContext::new(&head, client));
        let Some(UpgradeRequest(upgrade)) = upgrade else {
            return refuse(&Refusal::UpgradeRequired, record, shape);
        };
        let (dispatch, plan) = match self.accept_handshake(head, &mut record) {
            Ok(accepted) => accepted,
            Err(refusal) => return refuse(&refusal, record, shape),
        };
        let mut client_gone: ClientGone = Box::pin(client_left(client, Instant::now()));
        let dispatched = tokio::select! {
            biased;
            dispatched = dispatch.run(plan, record) => dispatched,
            () = &mut client_gone => {
                return Refusal::ClientLeft.response(shape).map(AnswerBody::full);
            }
        };
        let DispatchResult { result, mut record, pool, deadline, continuation } = dispatched;
        let (headers, replica, place, mut slot) = match result {
            Ok((HandshakeAnswer::Agreed(headers, replica, place), slot)) => {
                (headers, replica, place, slot)
            }
            Ok((HandshakeAnswer::Refused(committed), slot)) => {
                let result = Ok((committed, slot));
                let refused = DispatchResult { result, record, pool, deadline, continuation };
                return respond(refused, shape, client_gone, &self.drain);
            }
            Err(refusal) => return refuse(&refusal, record, shape),
        };
        let mut response = Response::new(AnswerBody::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = headers;
        response.body_mut().answered_by = Some(slot.address);
        record.head_sent(101);
        record.write_headers(response.headers_mut());
        slot.session_began();
        let drain = self.drain.clone();
        sessions.0.lock().push(Box::pin(async move {
            let _place = place;
            let Some(client) = upgrade.await else { return };
            let replica = TokioIo::new(replica);
            let (traffic, mut tally) = (record.session_began(), Tally::default());
            let on_text = |text: &[u8]| {
                slot.pulse(Instant::now());
                if tally.add(text) {
                    record.tokens(tally.tokens(), None);
                }
            };
            let bounds = (&*limits, &drain, &*traffic);
            let ended = relay(client, replica, bounds, on_text, slot.given_up()).await;
            slot.generated(tally.tokens().generated);
            let (end, outcome, reason) = conclude(ended);
            slot.ended(end);
            record.ended(outcome, reason);
        }));
        response
    }

    /// Admits a handshake and finds its pool. The session counts as one of its tenant's requests
    /// while it lasts. Its tokens are counted as they come.
    fn accept_handshake(
        &self,
        head: Box<ClientHead>,
        record: &mut Record,
    ) -> Result<(Box<Dispatch<Handshake>>, RoutePlan), Refusal> {
        let tenant = self.admit(&head.parts.headers, record)?;
        let model = model(head.parts.uri.query().unwrap_or_default())?;
        record.context.set_model(model.map(Arc::from))?;
        let plan = self.plan(record, &tenant, &head.parts.headers, b"")?;
        let handshake = Handshake { head };
        let dispatch = self.dispatch(handshake, record, &tenant, Estimate::default(), None);
        Ok((dispatch, plan))
    }
}

/// A session's end as its endpoint and its record count it.
fn conclude(ended: SessionEnd) -> (End, Outcome, Option<&'static str>) {
    let failed = |cause: Cause, message: &str| {
        (End::Failed(Failure::new(cause, message)), Outcome::Failed, Some(cause.name()))
    };
    match ended {
        SessionEnd::Closed => (End::Complete, Outcome::Completed, None),
        SessionEnd::Idle => (End::Complete, Outcome::Completed, Some("session_idle")),
        SessionEnd::TooLong => (End::Complete, Outcome::Completed, Some("session_too_long")),
        SessionEnd::Drained => (End::Complete, Outcome::Completed, Some(SHUTTING_DOWN)),
        SessionEnd::CutOff => (End::Dropped, Outcome::Failed, Some(SHUTTING_DOWN)),
        SessionEnd::Broken => failed(Cause::Connection, "The session ended without a close."),
        SessionEnd::Lost => {
            failed(Cause::Stalled, "The replica does not answer, not even a probe.")
        }
    }
}
