//! The one place where a committed answer is finished: counted at once if it is complete, or handed
//! to a relay, which counts it at its end.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::failure::{Cause, Failure};
use crate::answer::not_continued::NotContinued;
use crate::answer::outcome::Outcome;
use crate::exchange::attempt::AnswerStart;
use crate::exchange::continuation::Continuation;
use crate::exchange::cutoff::{ClientGone, Cutoff};
use crate::exchange::record::Record;
use crate::exchange::relay::{AnswerForm, Relay};
use crate::exchange::successor::Successor;
use crate::net::clock;
use crate::pool::{End, Slot};
use crate::text::rope::Rope;

/// The limits of an answer that is relayed, and the events that may cut it off.
pub(crate) struct RelayLimits {
    /// How long the replica may be silent.
    pub(crate) stall: Duration,
    /// The deadline for the complete answer.
    pub(crate) deadline: Instant,
    pub(crate) client_gone: ClientGone,
    /// Cancelled when a shutdown stops waiting.
    pub(crate) ending: CancellationToken,
    /// Everything that another replica needs to go on with the answer, or why none can.
    pub(crate) continuation: Result<Box<Continuation>, NotContinued>,
    /// The interval of heartbeats while the answer pauses; zero for none.
    pub(crate) heartbeat: Duration,
}

/// The rest of an answer, for the client.
pub(crate) enum FinishedAnswer {
    /// A complete answer, or the replica's refusal of the client's request.
    Whole(Rope),
    Relayed(Box<Relay>),
}

/// Finishes an answer that the replica in `slot` has begun. `limits` is called only for an answer
/// that is relayed.
pub(crate) fn finish(
    start: AnswerStart,
    mut slot: Box<Slot>,
    mut record: Box<Record>,
    limits: impl FnOnce() -> RelayLimits,
) -> FinishedAnswer {
    let (out, upstream, form) = match start {
        AnswerStart::Refused(body) => {
            // The server in front of the engine refuses on its own.
            slot.without_engine();
            slot.ended(End::Complete);
            record.ended(Outcome::ClientError, None);
            return FinishedAnswer::Whole(body);
        }
        AnswerStart::Whole(body, tokens) => {
            slot.tokens(&tokens);
            slot.ended(End::Complete);
            record.tokens(tokens, None);
            record.ended(Outcome::Completed, None);
            return FinishedAnswer::Whole(body);
        }
        AnswerStart::Long(out, upstream, plain) => {
            if plain.is_refusal() {
                slot.without_engine();
            }
            (out, upstream, AnswerForm::Plain(Some(plain)))
        }
        AnswerStart::Stream(out, upstream, stream) => (out, upstream, AnswerForm::Stream(stream)),
    };
    let RelayLimits { stall, deadline, client_gone, ending, continuation, heartbeat } = limits();
    let cutoff = Cutoff::new(client_gone, slot.lost(), ending);
    let successor = Successor::new(continuation, heartbeat, clock::now());
    let events = (cutoff, successor);
    let relay = Relay::new((out, upstream, form), slot, record, (stall, deadline), events);
    FinishedAnswer::Relayed(Box::new(relay))
}

/// Finishes an answer to a client that already has the head of an event stream. A refusal that is
/// too long for an event becomes an empty one.
///
/// # Errors
/// The replica has answered with something else than a stream or a refusal.
pub(crate) fn finish_stream(
    start: AnswerStart,
    slot: Box<Slot>,
    record: Box<Record>,
    limits: impl FnOnce() -> RelayLimits,
) -> Result<FinishedAnswer, Failure> {
    match start {
        AnswerStart::Stream(..) | AnswerStart::Refused(_) => {
            Ok(finish(start, slot, record, limits))
        }
        AnswerStart::Long(_, _, plain) if plain.is_refusal() => {
            Ok(finish(AnswerStart::Refused(Rope::default()), slot, record, limits))
        }
        AnswerStart::Long(..) | AnswerStart::Whole(..) => {
            Err(misplaced("The replica did not answer with a stream.", slot, record))
        }
    }
}

/// Finishes an answer to a client that already has the head of a JSON text. `json` is whether the
/// replica's head announces one.
///
/// # Errors
/// The replica has answered with something else than JSON or a refusal.
pub(crate) fn finish_json(
    start: AnswerStart,
    json: bool,
    slot: Box<Slot>,
    record: Box<Record>,
    limits: impl FnOnce() -> RelayLimits,
) -> Result<FinishedAnswer, Failure> {
    let fits = match &start {
        AnswerStart::Refused(_) => true,
        AnswerStart::Whole(..) => json,
        AnswerStart::Long(_, _, plain) => json || plain.is_refusal(),
        AnswerStart::Stream(..) => false,
    };
    match fits {
        true => Ok(finish(start, slot, record, limits)),
        false => Err(misplaced("The replica did not answer with JSON.", slot, record)),
    }
}

/// The failure of a replica whose answer does not fit the head that the client has.
fn misplaced(message: &str, slot: Box<Slot>, record: Box<Record>) -> Failure {
    let failure = Failure::new(Cause::Server, message);
    record.ended(Outcome::Failed, Some(failure.cause.name()));
    slot.ended(End::Failed(failure.clone()));
    failure
}
