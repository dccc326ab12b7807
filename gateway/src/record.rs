//! One request's books, from its acceptance to its last byte: figures, access log, `server-timing`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_signals::Histogram;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::context::RequestContext;
use crate::judge::Finish;
use crate::meter::Tokens;
use crate::pool::{Pool, Ticket};
use crate::refusal::Refusal;
use crate::tenant::{Budget, Grant, Tenant};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered to the end.
    Completed,
    /// Answered with a replica's refusal (4xx).
    ClientError,
    /// By our side's fault: no replica answered, or an answer broke off.
    Failed,
    /// The client was gone first.
    ClientLeft,
    /// By the gateway itself.
    Refused,
}

/// Dropped without a word, its client left.
pub(crate) struct Record {
    pub(crate) context: RequestContext,
    tenant: Option<Arc<Tenant>>,
    grant: Option<Grant>,
    budget: Budget,
    /// Estimated tokens of the prompt, until the server tells.
    prompt: u64,
    pool: Option<Arc<Pool>>,
    /// The last that it was released to.
    endpoint: Option<SocketAddr>,
    released: Option<Instant>,
    committed: Option<Instant>,
    held: Duration,
    cold: Duration,
    tries: u32,
    seq: u64,
    first_token: Option<Instant>,
    tokens: Tokens,
    /// The mean time for each token after the first.
    per_token: Option<Duration>,
    outcome: Outcome,
    status: Option<u16>,
    /// Why it was refused or failed.
    reason: Option<&'static str>,
}

impl Outcome {
    /// The word for it in figures and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::ClientError => "client_error",
            Self::Failed => "failed",
            Self::ClientLeft => "client_left",
            Self::Refused => "refused",
        }
    }
}

impl Record {
    pub(crate) fn begin(context: RequestContext) -> Self {
        Self {
            context,
            tenant: None,
            grant: None,
            budget: Budget::default(),
            prompt: 0,
            pool: None,
            endpoint: None,
            released: None,
            committed: None,
            held: Duration::ZERO,
            cold: Duration::ZERO,
            tries: 0,
            seq: 0,
            first_token: None,
            tokens: Tokens::default(),
            per_token: None,
            outcome: Outcome::ClientLeft,
            status: None,
            reason: None,
        }
    }

    /// Whose request it is.
    pub(crate) fn identified(&mut self, tenant: &Arc<Tenant>) {
        self.context.tenant = Arc::clone(&tenant.name);
        self.tenant = Some(Arc::clone(tenant));
    }

    /// Asks for `tokens`, `prompt` of them for the prompt, within the tenant's limits. What is
    /// granted is held for as long as this record.
    pub(crate) fn admit(&mut self, prompt: u64, tokens: u64) -> Result<(), Refusal> {
        let Some(tenant) = &self.tenant else { return Ok(()) };
        let now = Instant::now();
        let granted = tenant.admit(tokens, now);
        self.budget = tenant.budget(now);
        self.prompt = prompt;
        self.grant = Some(granted.map_err(|limited| Refusal::Limited {
            tenant: Arc::clone(&tenant.name),
            limit: limited.limit,
            retry_after: limited.retry_after,
        })?);
        Ok(())
    }

    pub(crate) fn routed(&mut self, pool: &Arc<Pool>) {
        self.pool = Some(Arc::clone(pool));
    }

    /// Released to an endpoint, for the first time or again.
    pub(crate) fn released(&mut self, ticket: &Ticket, endpoint: SocketAddr) {
        self.tries += 1;
        self.endpoint = Some(endpoint);
        self.released = Some(Instant::now());
        self.held = ticket.held;
        self.cold = ticket.cold;
        self.seq = ticket.seq();
    }

    /// The status that the client is sent.
    pub(crate) fn committed(&mut self, status: u16) {
        self.status = Some(status);
        self.committed = Some(Instant::now());
    }

    /// The first event of a stream that carries a token.
    pub(crate) fn first_token(&mut self, at: Instant) {
        if self.first_token.is_some() {
            return;
        }
        self.first_token = Some(at);
        if let (Some(pool), Some(released)) = (&self.pool, self.released) {
            let ttft = at.saturating_duration_since(self.context.accepted);
            pool.first_token(ttft, self.cold, at.saturating_duration_since(released));
        }
    }

    /// Gaps between a stream's tokens since the last call.
    pub(crate) fn gaps(&self, gaps: &Histogram) {
        if let Some(pool) = &self.pool {
            pool.itl(gaps);
        }
    }

    /// Tokens as far as they are known, with the mean time for each after the first.
    pub(crate) fn tokens(&mut self, tokens: Tokens, per_token: Option<Duration>) {
        if let Some(grant) = &mut self.grant {
            let prompt = tokens.prompt.unwrap_or(self.prompt);
            grant.used(prompt + tokens.generated, Instant::now());
        }
        self.tokens = tokens;
        self.per_token = per_token;
    }

    pub(crate) fn ended(mut self, outcome: Outcome, reason: Option<&'static str>) {
        self.outcome = outcome;
        self.reason = reason;
    }

    pub(crate) fn refused(mut self, refusal: &Refusal) {
        let (status, _) = refusal.status();
        self.status.get_or_insert(status.as_u16());
        self.ended(refusal.outcome(), Some(refusal.reason()));
    }

    /// What the client is told beside the answer: how its limits stand, and the times so far in
    /// milliseconds, held, and from release to the answer's first byte.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        self.budget.write(headers);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let mut text = format!("hold;dur={:.1}", ms(self.held));
        if let (Some(released), Some(committed)) = (self.released, self.committed) {
            text += &format!(", upstream;dur={:.1}", ms(committed - released));
        }
        text += &format!(", total;dur={:.1}", ms(self.context.accepted.elapsed()));
        if let Ok(text) = HeaderValue::from_str(&text) {
            headers.insert(HeaderName::from_static("server-timing"), text);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.context.accepted.elapsed();
        if let Some(pool) = &self.pool {
            if self.tries > 0 {
                pool.held_for(self.held);
            }
            pool.ended(self.outcome, self.tries, &self.tokens, took);
        }
        if let Some(tenant) = &self.tenant {
            let accepted = self.context.accepted;
            let ttft = self.first_token.map(|at| at.saturating_duration_since(accepted));
            let tokens = (self.tokens.prompt.unwrap_or(0), self.tokens.generated);
            let hold = (self.tries > 0).then_some(self.held);
            tenant.metrics.ended(self.outcome, tokens, hold, ttft);
        }
        let ms = |time: Duration| time.as_millis() as u64;
        let since =
            |from: Instant| self.first_token.map(|at| ms(at.saturating_duration_since(from)));
        let context = &self.context;
        let finishes: Vec<_> =
            self.tokens.finishes.iter().map(|finish| Finish::name(*finish)).collect();
        tracing::info!(
            target: "forebay::access",
            request_id = %context.id,
            client = context.client.address.map(tracing::field::display),
            method = %context.method,
            path = %context.path,
            tenant = %context.tenant,
            pool = self.pool.as_ref().map(|pool| &*pool.name),
            model = context.model.as_deref(),
            endpoint = self.endpoint.map(tracing::field::display),
            status = self.status,
            outcome = self.outcome.name(),
            reason = self.reason,
            stream = context.stream,
            seq = self.seq,
            tries = self.tries,
            hold_ms = ms(self.held),
            ttft_ms = since(context.accepted),
            upstream_ttft_ms = self.released.and_then(since),
            itl_ms = self.per_token.map(|time| time.as_secs_f64() * 1e3),
            took_ms = ms(took),
            prompt_tokens = self.tokens.prompt,
            cached_tokens = self.tokens.cached,
            generated_tokens = self.tokens.generated,
            finish = (!finishes.is_empty()).then(|| finishes.join(",")),
        );
    }
}
