//! From what came of a request to what its client is sent.

use http::header::{self, HeaderMap};
use http::{Response, response};

use crate::answer::api::ErrorShape;
use crate::answer::outcome::Outcome as Ended;
use crate::answer::refusal::Refusal;
use crate::exchange::answer_body::Body;
use crate::exchange::answered_by::AnsweredBy;
use crate::exchange::attempt::{Begun, Committed, Outcome};
use crate::exchange::cutoff::{Gone, Watch};
use crate::exchange::record::Record;
use crate::exchange::relay::{Form, Relay};
use crate::net::drain::Drain;
use crate::pool::End;

/// The answer of a replica, or why there is none.
pub(crate) fn respond(
    outcome: Outcome,
    shape: ErrorShape,
    gone: Gone,
    drain: &Drain,
) -> Response<Body> {
    let Outcome { result, mut record, pool, deadline } = outcome;
    let Committed { mut head, mut slot, answer } = match result {
        Ok(committed) => committed,
        Err(refusal) => return refuse(&refusal, record, shape),
    };
    head.extensions.insert(AnsweredBy(slot.address));
    record.committed(head.status.as_u16());
    record.tell(&mut head.headers);
    let stall = pool.settings().upstream.stall_timeout;
    let relay = match answer {
        Begun::Whole(body, tokens) => {
            slot.generated(tokens.generated);
            slot.ended(End::Complete);
            record.tokens(tokens, None);
            record.ended(Ended::Completed, None);
            return whole(head, Body::whole(body));
        }
        Begun::Refused(body) => {
            slot.without_engine();
            slot.ended(End::Complete);
            record.ended(Ended::ClientError, None);
            return whole(head, Body::whole(body));
        }
        Begun::Long(out, upstream, plain) => (out, upstream, Form::Plain(Some(plain))),
        Begun::Stream(out, upstream, stream) => {
            // What is taken out of it or ends it may be ours.
            head.headers.remove(header::CONTENT_LENGTH);
            (out, upstream, Form::Stream(stream))
        }
    };
    let watch = Watch::new(gone, slot.lost(), drain.ending());
    let relay = Relay::new(relay, slot, record, (stall, deadline), watch);
    Response::from_parts(head, Body::Relay(Box::new(relay)))
}

fn whole(mut head: response::Parts, body: Body) -> Response<Body> {
    // The server says it anew, from the body itself.
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, body)
}

/// What the gateway itself has to say.
pub(crate) fn refuse(refusal: &Refusal, record: Record, shape: ErrorShape) -> Response<Body> {
    let mut response = refusal.response(shape).map(Body::full);
    record.tell(response.headers_mut());
    record.refused(refusal);
    response
}

/// One of the gateway's own answers.
pub(crate) fn local_response(mut response: Response<Body>, mut record: Record) -> Response<Body> {
    record.committed(response.status().as_u16());
    let headers: &mut HeaderMap = response.headers_mut();
    record.tell(headers);
    record.ended(Ended::Completed, None);
    response
}
