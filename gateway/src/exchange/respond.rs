//! Responses to clients: a replica's answer, a refusal, or another answer of the gateway's own.

use http::Response;

use crate::answer::api::ErrorShape;
use crate::answer::outcome::Outcome;
use crate::answer::refusal::Refusal;
use crate::exchange::answer_body::AnswerBody;
use crate::exchange::attempt::Committed;
use crate::exchange::cutoff::ClientGone;
use crate::exchange::dispatch::DispatchResult;
use crate::exchange::finish::{RelayLimits, finish};
use crate::exchange::record::Record;
use crate::net::drain::Drain;
use crate::wire::head::ResponseHead;

/// The answer of a replica, or the reason why there is none.
pub(crate) fn respond(
    dispatched: DispatchResult<Box<Committed>>,
    shape: ErrorShape,
    client_gone: ClientGone,
    drain: &Drain,
) -> Response<AnswerBody> {
    let DispatchResult { result, mut record, pool, deadline, continuation } = dispatched;
    let (committed, slot) = match result {
        Ok(committed) => committed,
        Err(refusal) => return refuse(&refusal, record, shape),
    };
    let (Committed { head, start }, replica) = (*committed, slot.address);
    let ResponseHead { status, reason, headers: mut lines, .. } = head;
    record.head_sent(status.as_u16());
    record.write_lines(&mut lines);
    let limits = || {
        let stall = pool.settings().upstream.stall_timeout;
        let (ending, heartbeat) = (drain.ending(), pool.heartbeat(true));
        RelayLimits { stall, deadline, client_gone, ending, continuation, heartbeat }
    };
    let answer = finish(start, slot, record, limits);
    let mut response = Response::new(AnswerBody::of_replica(answer, lines, replica));
    *response.status_mut() = status;
    if let Some(reason) = reason {
        response.extensions_mut().insert(reason);
    }
    response
}

/// Refuses a request with an error of the gateway's own.
pub(crate) fn refuse(
    refusal: &Refusal,
    record: Box<Record>,
    shape: ErrorShape,
) -> Response<AnswerBody> {
    let mut response = refusal.response(shape).map(AnswerBody::full);
    record.write_headers(response.headers_mut());
    record.refused(refusal);
    response
}

/// Sends an answer of the gateway's own that is not an error.
pub(crate) fn local_response(
    mut response: Response<AnswerBody>,
    mut record: Box<Record>,
) -> Response<AnswerBody> {
    record.head_sent(response.status().as_u16());
    record.write_headers(response.headers_mut());
    record.ended(Outcome::Completed, None);
    response
}
