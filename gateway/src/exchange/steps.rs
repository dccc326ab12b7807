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

/// The steps of one request. One after the other; but a stream that moves is at two replicas, until the
/// new one has shown that it goes on.
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

    /// Notes that the present try has failed; of two, the later one.
    pub(crate) fn failed(&mut self, now: Instant, cause: Cause) {
        if let Some(step) = self.present()
            && let RequestStepKind::Try { failure, .. } = &mut step.kind
        {
            (*failure, step.ended) = (Some(cause), Some(now));
        }
    }

    /// Adds later steps of the same request.
    pub(crate) fn append(&mut self, later: Vec<RequestStep>) {
        if let Some(next) = later.first() {
            self.end(next.began);
        }
        self.append_beside(later);
    }

    /// Adds the try at a replica that a stream moves to, while the present one goes on.
    pub(crate) fn append_beside(&mut self, mut later: Vec<RequestStep>) {
        later.truncate(MOST.saturating_sub(self.all.len()));
        self.all.append(&mut later);
    }

    /// Notes that a stream has moved: its old replica has it no longer.
    pub(crate) fn moved(&mut self, now: Instant) {
        // If there was no place for the later try, there was none for any since.
        if let Some(old) = self.all.iter_mut().find(|step| step.ended.is_none()) {
            old.ended = Some(now);
        }
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
        if let Some(step) = self.present() {
            step.ended = Some(now);
        }
    }

    /// The last step that has not ended.
    fn present(&mut self) -> Option<&mut RequestStep> {
        self.all.iter_mut().rfind(|step| step.ended.is_none())
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
    fn a_stream_that_moves_is_at_two_replicas_and_stays_at_the_old_one_if_the_new_one_fails() {
        let parent = TraceContext::random(true);
        let mut steps = RequestSteps { parent, all: Vec::new() };
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let [old, second, third] = [1, 2, 3].map(|last| SocketAddr::from(([10, 0, 0, last], 80)));
        let moves_to = |steps: &mut RequestSteps, endpoint, millis, failure: Option<u64>| {
            let mut later = RequestSteps { parent, all: Vec::new() };
            later.try_began(at(millis), endpoint);
            if let Some(millis) = failure {
                later.failed(at(millis), Cause::Connect);
            }
            steps.append_beside(later.take());
        };
        steps.try_began(at(1), old);
        // One fails before its answer has begun, and one after.
        moves_to(&mut steps, second, 2, Some(3));
        moves_to(&mut steps, second, 4, None);
        steps.failed(at(5), Cause::Connection);
        moves_to(&mut steps, third, 6, None);
        steps.moved(at(7));
        steps.failed(at(8), Cause::Connection);
        let millis = |at: Instant| (at - start).as_millis();
        let shown = steps.all().iter().map(|step| {
            let RequestStepKind::Try { endpoint, failure } = &step.kind else { unreachable!() };
            (*endpoint, millis(step.began), step.ended.map(millis), *failure)
        });
        let shown: Vec<_> = shown.collect();
        let want = [
            (old, 1, Some(7), None),
            (second, 2, Some(3), Some(Cause::Connect)),
            (second, 4, Some(5), Some(Cause::Connection)),
            (third, 6, Some(8), Some(Cause::Connection)),
        ];
        assert_eq!(shown, want);
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
