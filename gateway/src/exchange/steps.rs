//! The holds and tries of a traced request, in their order. Pure.
//!
//! Only traced requests keep them: all others keep sums ([`progress`](super::progress)).

use std::net::SocketAddr;

use forebay_telemetry::context::{SpanId, TraceContext};
use tokio::time::Instant;

use crate::answer::failure::Cause;
use crate::read::trace::RequestTrace;

/// The most steps that are kept of one request. A stream may be continued often.
const MOST: usize = 64;

/// The steps of one request.
#[derive(Clone, Debug)]
pub(crate) struct RequestSteps {
    /// The request's own span.
    parent: TraceContext,
    all: Vec<RequestStep>,
}

/// One step, with the place of its span.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RequestStep {
    pub(crate) context: TraceContext,
    pub(crate) began: Instant,
    /// `None` if it lasted to the request's end.
    pub(crate) ended: Option<Instant>,
    pub(crate) kind: RequestStepKind,
}

/// The kinds of steps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RequestStepKind {
    /// The request waits for an endpoint.
    Hold,
    /// A replica has the request.
    Try { endpoint: SocketAddr, failure: Option<Cause> },
}

impl RequestSteps {
    /// For a request that is traced; `None` for any other.
    pub(crate) fn of(trace: &RequestTrace) -> Option<Box<Self>> {
        trace.tracer()?;
        Some(Box::new(Self { parent: trace.context, all: Vec::new() }))
    }

    /// Notes that the request waits for an endpoint from `now` on.
    pub(crate) fn hold_began(&mut self, now: Instant) {
        self.begin(now, RequestStepKind::Hold);
    }

    /// Notes that a replica gets the request. Returns the parent of the replica's own spans.
    pub(crate) fn try_began(&mut self, now: Instant, endpoint: SocketAddr) -> TraceContext {
        self.begin(now, RequestStepKind::Try { endpoint, failure: None })
    }

    /// Notes that the present try has failed.
    pub(crate) fn failed(&mut self, now: Instant, cause: Cause) {
        if let Some(step) = self.all.last_mut()
            && let RequestStepKind::Try { failure: failure @ None, .. } = &mut step.kind
        {
            (*failure, step.ended) = (Some(cause), Some(now));
        }
    }

    /// Adds later steps of the same request.
    pub(crate) fn append(&mut self, mut later: Vec<RequestStep>) {
        if let Some(next) = later.first() {
            self.end(next.began);
        }
        later.truncate(MOST.saturating_sub(self.all.len()));
        self.all.append(&mut later);
    }

    /// Takes the steps so far.
    pub(crate) fn take(&mut self) -> Vec<RequestStep> {
        std::mem::take(&mut self.all)
    }

    pub(crate) fn all(&self) -> &[RequestStep] {
        &self.all
    }

    fn begin(&mut self, now: Instant, kind: RequestStepKind) -> TraceContext {
        self.end(now);
        let context = TraceContext { span: SpanId::random(), ..self.parent };
        if self.all.len() < MOST {
            self.all.push(RequestStep { context, began: now, ended: None, kind });
        }
        context
    }

    fn end(&mut self, now: Instant) {
        if let Some(step) = self.all.last_mut() {
            step.ended.get_or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_step_ends_when_the_next_one_begins_and_a_failed_try_when_it_fails() {
        let parent = TraceContext::random(true);
        let mut steps = RequestSteps { parent, all: Vec::new() };
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 8000));
        steps.hold_began(at(1));
        let first = steps.try_began(at(2), endpoint);
        steps.failed(at(3), Cause::Connect);
        steps.hold_began(at(4));
        steps.failed(at(5), Cause::Connect);
        let second = steps.try_began(at(6), endpoint);
        let hold = RequestStep {
            context: TraceContext { span: SpanId::random(), ..parent },
            began: at(7),
            ended: None,
            kind: RequestStepKind::Hold,
        };
        steps.append(vec![hold]);
        let shown: Vec<_> = steps
            .all()
            .iter()
            .map(|step| {
                let millis = |at: Instant| (at - start).as_millis();
                let failure = match step.kind {
                    RequestStepKind::Hold => None,
                    RequestStepKind::Try { failure, .. } => Some(failure),
                };
                (millis(step.began), step.ended.map(millis), failure)
            })
            .collect();
        let want = [
            (1, Some(2), None),
            (2, Some(3), Some(Some(Cause::Connect))),
            (4, Some(6), None),
            (6, Some(7), Some(None)),
            (7, None, None),
        ];
        assert_eq!(shown, want);
        assert_eq!((first.trace, first.sampled), (parent.trace, true));
        assert!(first.span != second.span && first.span != parent.span);
    }

    #[test]
    fn a_bounded_number_of_steps_is_kept() {
        let mut steps = RequestSteps { parent: TraceContext::random(true), all: Vec::new() };
        let now = Instant::now();
        (0..2 * MOST).for_each(|_| steps.hold_began(now));
        let later = steps.all().to_vec();
        steps.append(later);
        assert_eq!(steps.all().len(), MOST);
    }
}
