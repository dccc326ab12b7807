//! One request's books, from its acceptance to its last byte: figures, access log, `server-timing`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use forebay_signals::Histogram;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::answer::failure::Cause;
use crate::answer::judge::Finish;
use crate::answer::meter::Tokens;
use crate::answer::outcome::{Aborter, Ended, FirstToken, Outcome, SHUTTING_DOWN, TOO_LONG};
use crate::answer::refusal::Refusal;
use crate::answer::traffic::Traffic;
use crate::figures;
use crate::figures::arrivals::Arrival;
use crate::pool::{Pool, Ticket};
use crate::read::context::RequestContext;
use crate::tenant::{Budget, Grant, Tenant};

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
    /// Since when it is held, for the first time or again.
    holding: Option<Instant>,
    held: Option<Duration>,
    cold: Duration,
    tries: u32,
    seq: u64,
    /// Prompt tokens by the body's length, where the replica tells none.
    estimated: u64,
    first_token: Option<Instant>,
    tokens: Tokens,
    /// The mean time for each token after the first.
    per_token: Option<Duration>,
    session: Option<Arc<Traffic>>,
    outcome: Outcome,
    status: Option<u16>,
    /// Why it was refused or failed.
    reason: Option<&'static str>,
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
            holding: None,
            held: None,
            cold: Duration::ZERO,
            tries: 0,
            seq: 0,
            estimated: 0,
            first_token: None,
            tokens: Tokens::default(),
            per_token: None,
            session: None,
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

    /// Counts it as one of its tenant's requests, within the limits on these, for as long as this
    /// record. Its tokens are not known yet.
    pub(crate) fn admit(&mut self) -> Result<(), Refusal> {
        let Some(tenant) = &self.tenant else { return Ok(()) };
        let now = Instant::now();
        let granted = tenant.admit(now);
        self.budget = tenant.budget(now);
        self.grant = Some(granted.map_err(|limited| limited.refusal(&tenant.name))?);
        Ok(())
    }

    /// Takes `tokens`, `prompt` of them for the prompt, within the tenant's limits.
    pub(crate) fn reserve(&mut self, prompt: u64, tokens: u64) -> Result<(), Refusal> {
        let (Some(tenant), Some(grant)) = (&self.tenant, &mut self.grant) else { return Ok(()) };
        let now = Instant::now();
        self.prompt = prompt;
        let reserved = grant.reserve(tokens, now);
        self.budget = tenant.budget(now);
        reserved.map_err(|limited| limited.refusal(&tenant.name))
    }

    pub(crate) fn routed(&mut self, pool: &Arc<Pool>) {
        self.pool = Some(Arc::clone(pool));
    }

    /// It waits in the queue from now on.
    pub(crate) fn holds(&mut self) {
        self.holding = Some(Instant::now());
    }

    /// The time held so far; `None` for what never came into the queue.
    fn held(&self) -> Option<Duration> {
        let now = self.holding.map(|since| since.elapsed());
        now.or(self.held).map(|_| now.unwrap_or_default() + self.held.unwrap_or_default())
    }

    /// Released to an endpoint, for the first time or again.
    pub(crate) fn released(&mut self, ticket: &Ticket, endpoint: SocketAddr) {
        self.tries += 1;
        self.endpoint = Some(endpoint);
        self.released = Some(Instant::now());
        self.holding = None;
        self.held = Some(ticket.held);
        self.cold = ticket.cold;
        self.seq = ticket.seq();
        self.estimated = ticket.request.bytes / 4;
    }

    /// The status that the client is sent.
    pub(crate) fn committed(&mut self, status: u16) {
        self.status = Some(status);
        self.committed = Some(Instant::now());
    }

    /// It is a session from now on, which carries what is counted in this.
    pub(crate) fn carries(&mut self) -> Arc<Traffic> {
        Arc::clone(self.session.get_or_insert_default())
    }

    /// The first event of a stream that carries a token.
    pub(crate) fn first_token(&mut self, at: Instant) {
        if self.first_token.is_some() {
            return;
        }
        self.first_token = Some(at);
        if let (Some(pool), Some(released), Some(endpoint)) =
            (&self.pool, self.released, self.endpoint)
        {
            pool.first_token(&FirstToken {
                endpoint,
                ttft: at.saturating_duration_since(self.context.accepted),
                cold: self.cold,
                upstream: at.saturating_duration_since(released),
            });
        }
    }

    /// Gaps between a stream's tokens since the last call.
    pub(crate) fn gaps(&self, gaps: &Histogram) {
        if let (Some(pool), Some(endpoint)) = (&self.pool, self.endpoint) {
            pool.gaps(endpoint, gaps);
        }
        if let Some(tenant) = &self.tenant {
            tenant.metrics.gaps(gaps);
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

    /// For a rehearsal: when it came, and how long it was.
    fn arrived(&self, took: Duration) {
        let Some(pool) = &self.pool else { return };
        let Some(recorder) = pool.recorder.get() else { return };
        recorder.tell(&Arrival {
            at: SystemTime::now() - took,
            pool: Arc::clone(&pool.name),
            prompt_tokens: self.tokens.prompt.unwrap_or(self.estimated),
            generated_tokens: self.tokens.generated,
        });
    }

    /// What the client is told beside the answer: how its limits stand, and the times so far in
    /// milliseconds, held, and from release to the answer's first byte.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        self.budget.write(headers);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let mut text = format!("hold;dur={:.1}", ms(self.held().unwrap_or_default()));
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
        // A replica had it: its prompt was read, or is being read, for nobody.
        if self.outcome == Outcome::ClientLeft
            && self.released.is_some()
            && self.holding.is_none()
            && let Some(grant) = &mut self.grant
        {
            grant.used_at_least(self.prompt, Instant::now());
        }
        let aborted = match self.outcome {
            Outcome::ClientLeft if self.tries > 0 => Some(Aborter::Client),
            Outcome::Failed if self.reason == Some(Cause::Aborted.name()) => Some(Aborter::Replica),
            Outcome::Failed if matches!(self.reason, Some(TOO_LONG | SHUTTING_DOWN)) => {
                Some(Aborter::Gateway)
            }
            _ => None,
        };
        let ended = Ended {
            endpoint: self.endpoint,
            outcome: self.outcome,
            reason: self.reason,
            aborted,
            held: self.held(),
            took,
            tries: self.tries,
            tokens: &self.tokens,
            session: self.session.as_deref().map(|traffic| {
                (self.committed.map_or(Duration::ZERO, |since| since.elapsed()), traffic)
            }),
        };
        match &self.pool {
            Some(pool) => pool.ended(&ended),
            None => figures::unrouted(&ended),
        }
        if let Some(tenant) = &self.tenant {
            let accepted = self.context.accepted;
            let ttft = self.first_token.map(|at| at.saturating_duration_since(accepted));
            tenant.metrics.ended(&ended, ttft);
        }
        self.arrived(took);
        let ms = |time: Duration| time.as_millis() as u64;
        let since =
            |from: Instant| self.first_token.map(|at| ms(at.saturating_duration_since(from)));
        let (context, session) = (&self.context, self.session.as_deref());
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
            hold_ms = ms(self.held().unwrap_or_default()),
            ttft_ms = since(context.accepted),
            upstream_ttft_ms = self.released.and_then(since),
            itl_ms = self.per_token.map(|time| time.as_secs_f64() * 1e3),
            took_ms = ms(took),
            prompt_tokens = self.tokens.prompt,
            cached_tokens = self.tokens.cached,
            generated_tokens = self.tokens.generated,
            finish = (!finishes.is_empty()).then(|| finishes.join(",")),
            client_messages = session.map(|it| it.client.messages()),
            client_bytes = session.map(|it| it.client.bytes()),
            replica_messages = session.map(|it| it.replica.messages()),
            replica_bytes = session.map(|it| it.replica.bytes()),
        );
    }
}
