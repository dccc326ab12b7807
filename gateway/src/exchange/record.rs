//! One request's record, from its acceptance to its last byte: figures, access log,
//! `server-timing`.
//!
//! The record accompanies the request to its end. Dropping it counts the request and writes its
//! line in the access log, so no way to end a request can forget either.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use forebay_signals::{Histogram, estimated_tokens};
use forebay_telemetry::context::TraceContext;
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use crate::answer::failure::Cause;
use crate::answer::meter::Tokens;
use crate::answer::not_continued::NotContinued;
use crate::answer::outcome::{Aborter, Outcome, Pause, RequestEnd, SHUTTING_DOWN, TOO_LONG};
use crate::answer::refusal::Refusal;
use crate::answer::traffic::Traffic;
use crate::exchange::access_log::Line;
use crate::exchange::allowance::Allowance;
use crate::exchange::progress::{Conclusion, RequestProgress};
use crate::exchange::spans::EndedRequest;
use crate::exchange::steps::{RequestStep, RequestSteps};
use crate::figures;
use crate::figures::arrivals::Arrival;
use crate::figures::gen_ai::GenAiRequest;
use crate::net::clock;
use crate::pool::{Pool, Slot, Ticket};
use crate::read::context::RequestContext;
use crate::read::request_id::RequestId;
use crate::tenant::Tenant;
use crate::wire::lines::HeaderLines;

const SERVER_TIMING: &str = "server-timing";

/// A request's record. Dropping it before its end is noted means that its client left.
pub(crate) struct Record {
    pub(crate) context: RequestContext,
    progress: RequestProgress,
    /// The holds and tries; `None` if the request is not traced.
    steps: Option<Box<RequestSteps>>,
    allowance: Allowance,
    pool: Option<Arc<Pool>>,
    /// Prompt tokens estimated from the body's length, for replicas that report none.
    estimated_prompt: u64,
    tokens: Tokens,
    /// The mean time for each token after the first.
    per_token: Option<Duration>,
    /// The traffic of a WebSocket session.
    session: Option<Arc<Traffic>>,
    conclusion: Conclusion,
    /// The status of the gateway's refusal, which a client that has a head already does not get.
    refused_with: Option<u16>,
    /// The model's name as the replicas know it.
    served: Option<Arc<str>>,
}

impl Record {
    /// Boxed, because it is moved through many futures.
    pub(crate) fn begin(context: RequestContext) -> Box<Self> {
        Box::new(Self {
            steps: RequestSteps::of(&context.trace),
            context,
            progress: RequestProgress::default(),
            allowance: Allowance::default(),
            pool: None,
            estimated_prompt: 0,
            tokens: Tokens::default(),
            per_token: None,
            session: None,
            conclusion: Conclusion { outcome: Outcome::ClientLeft, status: None, reason: None },
            refused_with: None,
            served: None,
        })
    }

    /// Counts the request as one of the tenant's, while the record lives. Its tokens are not known
    /// yet.
    pub(crate) fn admit(&mut self, tenant: &Arc<Tenant>) -> Result<(), Refusal> {
        self.context.tenant = Arc::clone(&tenant.name);
        self.allowance.admit(tenant)
    }

    /// Takes `tokens`, of which `prompt` are the prompt's, within the tenant's limits.
    pub(crate) fn reserve(&mut self, prompt: u64, tokens: u64) -> Result<(), Refusal> {
        self.allowance.reserve(prompt, tokens)
    }

    pub(crate) fn routed(&mut self, pool: &Arc<Pool>) {
        self.pool = Some(Arc::clone(pool));
    }

    /// Notes the model's name as the replicas know it; `None` if the pool does not know the model.
    pub(crate) fn served(&mut self, model: Option<&Arc<str>>) {
        self.served = model.cloned();
    }

    /// Notes that the request waits in the queue from now on.
    pub(crate) fn hold_began(&mut self) {
        let now = self.progress.hold_began();
        if let Some(steps) = &mut self.steps {
            steps.hold_began(now);
        }
    }

    /// Notes a release to an endpoint, the first or another. Returns the present time, and for a traced
    /// request the parent of the replica's own spans.
    pub(crate) fn released(
        &mut self,
        ticket: &Ticket,
        slot: &Slot,
    ) -> (Instant, Option<TraceContext>) {
        self.estimated_prompt = estimated_tokens(ticket.entry.bytes);
        let now = self.progress.released(ticket, slot);
        (now, self.steps.as_mut().map(|steps| steps.try_began(now, slot.address)))
    }

    /// Notes that the present try has failed.
    pub(crate) fn try_failed(&mut self, cause: Cause) {
        if let Some(steps) = &mut self.steps {
            steps.failed(clock::now(), cause);
        }
    }

    /// Adds the holds and tries of a search for a replica that goes on with the answer. `moves`: the
    /// present one goes on meanwhile.
    pub(crate) fn searched(&mut self, later: Vec<RequestStep>, moves: bool) {
        match &mut self.steps {
            Some(steps) if moves => steps.append_beside(later),
            Some(steps) => steps.append(later),
            None => {}
        }
    }

    /// Notes the status that is sent to the client.
    pub(crate) fn head_sent(&mut self, status: u16) {
        self.conclusion.status = Some(status);
        self.progress.head_sent();
    }

    /// Makes this the record of a WebSocket session, and returns the counts of its traffic.
    pub(crate) fn session_began(&mut self) -> Arc<Traffic> {
        Arc::clone(self.session.get_or_insert_default())
    }

    /// Notes the first event of a stream that carries a token.
    pub(crate) fn first_token(&mut self, at: Instant) {
        let first = self.progress.first_token(at, self.context.accepted);
        let endpoint = self.progress.endpoint_totals.as_deref();
        if let (Some(pool), Some(first), Some(endpoint)) = (&self.pool, first, endpoint) {
            let objective = pool.settings().scaling.objective.ttft;
            pool.figures.first_token(&first, objective, endpoint);
            self.note_tried(pool);
        }
    }

    /// Shows the console the replica of a request of its own.
    fn note_tried(&self, pool: &Pool) {
        if let (RequestId::Client(id), Some(endpoint)) = (&self.context.id, self.progress.endpoint)
        {
            let held = self.progress.held().unwrap_or_default();
            pool.tried.note(id.as_bytes(), endpoint, held.as_secs_f64());
        }
    }

    /// Notes that the replica in `slot` goes on after a pause, behind `carried` tokens of the answer. `prompt`:
    /// the tokens of the request's prompt.
    pub(crate) fn continued(&mut self, slot: &Slot, pause: Pause, prompt: u64, carried: u64) {
        self.progress.continued(slot, pause, prompt, carried);
        if let (Some(steps), Cause::Moved) = (&mut self.steps, pause.cause) {
            steps.moved(clock::now());
        }
        if let Some(pool) = &self.pool {
            pool.figures.continued(pause);
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            tracing::debug!(
                pool = %pool.name, endpoint = %slot.address, cause = pause.cause.name(),
                paused_ms = ms(pause.all), held_ms = ms(pause.held),
                "continued"
            );
        }
    }

    /// Notes that the answer ends because of `cause`, and why no other replica goes on with it.
    pub(crate) fn not_continued(&self, cause: Cause, why: NotContinued) {
        if let Some(pool) = &self.pool {
            pool.figures.not_continued(cause, why);
        }
    }

    /// Adds the gaps between a stream's tokens since the last call.
    pub(crate) fn gaps(&self, gaps: &Histogram) {
        if let (Some(pool), Some(endpoint)) = (&self.pool, &self.progress.endpoint_totals) {
            pool.figures.gaps(gaps, endpoint);
        }
        if let Some(tenant) = self.allowance.tenant() {
            tenant.metrics.gaps(gaps);
        }
    }

    /// Sets the tokens that are known so far, with the mean time for each after the first.
    pub(crate) fn tokens(&mut self, tokens: Tokens, per_token: Option<Duration>) {
        self.allowance.used(&tokens);
        self.tokens = tokens;
        self.per_token = per_token;
    }

    pub(crate) fn ended(mut self: Box<Self>, outcome: Outcome, reason: Option<&'static str>) {
        self.conclusion.outcome = outcome;
        self.conclusion.reason = reason;
    }

    pub(crate) fn refused(mut self: Box<Self>, refusal: &Refusal) {
        let (status, _) = refusal.status();
        self.conclusion.status.get_or_insert(status.as_u16());
        self.refused_with = Some(status.as_u16());
        self.ended(refusal.outcome(), Some(refusal.reason()));
    }

    /// Writes the headers that every answer has: the rest of the tenant's limits, and the times so
    /// far.
    pub(crate) fn write_headers(&self, headers: &mut HeaderMap) {
        self.allowance.write_headers(headers);
        let timing = self.progress.server_timing(self.context.accepted);
        if let Ok(timing) = HeaderValue::from_bytes(timing.as_bytes()) {
            headers.insert(SERVER_TIMING, timing);
        }
    }

    /// Writes the same headers to the lines of a replica's answer, in place of the replica's own.
    pub(crate) fn write_lines(&self, lines: &mut HeaderLines) {
        let mut limits = HeaderMap::new();
        self.allowance.write_headers(&mut limits);
        if !limits.is_empty() {
            lines.retain(|name| !limits.keys().any(|limit| limit.as_str().as_bytes() == name));
            for (name, value) in &limits {
                lines.push(name.as_str(), value.as_bytes());
            }
        }
        // The reader leaves out the replica's times.
        let timing = self.progress.server_timing(self.context.accepted);
        lines.push(SERVER_TIMING, timing.as_bytes());
    }

    /// Records the arrival for a later replay, if arrivals are recorded.
    fn record_arrival(&self, took: Duration) {
        let Some(pool) = &self.pool else { return };
        let Some(recorder) = pool.recorder.get() else { return };
        recorder.record(&Arrival {
            at: SystemTime::now() - took,
            pool: Arc::clone(&pool.name),
            prompt_tokens: self.tokens.prompt.unwrap_or(self.estimated_prompt),
            generated_tokens: self.tokens.generated,
        });
    }

    /// Exports the request's spans and figures, if anything is exported.
    fn export(&self, took: Duration) {
        let Some(telemetry) = &self.context.trace.telemetry else { return };
        if let (Some(tracer), Some(steps)) = (&telemetry.tracer, &self.steps) {
            let ended = EndedRequest {
                context: &self.context,
                pool: self.pool.as_ref().map(|pool| &*pool.name),
                progress: &self.progress,
                conclusion: self.conclusion,
                failed: self.has_failed(),
                served: self.served.as_deref(),
                tokens: &self.tokens,
                steps: steps.all(),
                now: (clock::now(), SystemTime::now()),
            };
            ended.export(tracer);
        }
        if let (true, Some(operation), Some(pool)) =
            (telemetry.metrics, self.context.operation(), &self.pool)
        {
            let accepted = self.context.accepted;
            let first_token = self.progress.first_token;
            let reason = self.conclusion.reason.unwrap_or(self.conclusion.outcome.name());
            let request = GenAiRequest {
                operation,
                model: self.served.clone(),
                error: self.has_failed().then_some(reason),
                took,
                ttft: first_token.map(|at| at.saturating_duration_since(accepted)),
                per_token: self.per_token,
                tokens: &self.tokens,
            };
            pool.figures.gen_ai.record(&request);
        }
    }

    /// Whether the gateway or a replica is at fault. By OpenTelemetry's conventions, a client's error
    /// is not an error of the server that it is sent to.
    fn has_failed(&self) -> bool {
        match self.conclusion.outcome {
            Outcome::Failed => true,
            Outcome::Refused => self.refused_with.is_some_and(|status| status >= 500),
            Outcome::Completed | Outcome::ClientError | Outcome::ClientLeft => false,
        }
    }

    fn aborter(&self) -> Option<Aborter> {
        let Conclusion { outcome, reason, .. } = self.conclusion;
        match outcome {
            Outcome::ClientLeft if self.progress.tries > 0 => Some(Aborter::Client),
            Outcome::Failed if reason == Some(Cause::Aborted.name()) => Some(Aborter::Replica),
            Outcome::Failed if matches!(reason, Some(TOO_LONG | SHUTTING_DOWN)) => {
                Some(Aborter::Gateway)
            }
            _ => None,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = clock::now() - self.context.accepted;
        if self.conclusion.outcome == Outcome::ClientLeft && self.progress.is_released() {
            self.allowance.used_prompt();
        }
        let ended = RequestEnd {
            outcome: self.conclusion.outcome,
            reason: self.conclusion.reason,
            aborted: self.aborter(),
            held: self.progress.held(),
            took,
            tries: self.progress.tries,
            tokens: &self.tokens,
            carried: self.progress.carried,
            session: self.session.as_deref().map(|traffic| (self.progress.since_head(), traffic)),
        };
        match &self.pool {
            Some(pool) => {
                pool.figures.ended(&ended, self.progress.endpoint_totals.as_deref());
                let (model, tenant) = (self.served.as_ref(), &self.context.tenant);
                pool.figures.models.ended(model, tenant, ended.outcome, ended.tokens);
            }
            None => figures::unrouted(&ended),
        }
        if let Some(tenant) = self.allowance.tenant() {
            let accepted = self.context.accepted;
            let first_token = self.progress.first_token;
            let ttft = first_token.map(|at| at.saturating_duration_since(accepted));
            tenant.metrics.ended(&ended, ttft);
        }
        self.record_arrival(took);
        self.export(took);
        Line {
            context: &self.context,
            pool: self.pool.as_ref().map(|pool| &*pool.name),
            progress: &self.progress,
            conclusion: self.conclusion,
            tokens: &self.tokens,
            per_token: self.per_token,
            session: self.session.as_deref(),
            took,
        }
        .write();
    }
}
