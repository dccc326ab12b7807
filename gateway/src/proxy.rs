//! A request's way, step by step: read, scan, route, edit; then `exchange` and `respond`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request, Response, header};
use hyper::body::Incoming;

use crate::api::{Api, ErrorShape};
use crate::body::{self, Body};
use crate::context::{Client, RequestContext};
use crate::drain::Drain;
use crate::edit::{Edits, edit};
use crate::exchange::Exchange;
use crate::held::{Exchanging, Gone, Held};
use crate::local;
use crate::multipart::scan_form;
use crate::outgoing::{Outgoing, Rights};
use crate::pool::{Pool, Ticket};
use crate::queue;
use crate::record::Record;
use crate::refusal::Refusal;
use crate::respond::{local_response, refuse, respond};
use crate::route::Routes;
use crate::scan::{Scan, scan};
use crate::tenant::Tenant;
use crate::tenants::Tenants;

/// Tokens expected of an answer whose request sets no limit.
const ANSWER_TOKENS: u64 = 256;

/// What every request needs.
pub(crate) struct Proxy {
    pub(crate) routes: Routes,
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) limits: forebay_config::Limits,
    pub(crate) drain: Drain,
    /// Seconds since the epoch at the gateway's start.
    pub(crate) started: u64,
}

/// A request that is known to be one, and where it goes.
struct Routed {
    pool: Arc<Pool>,
    api: Api,
    outgoing: Outgoing,
    ticket: Ticket,
    strip_usage: bool,
}

impl Proxy {
    /// Answers one request, whatever it is.
    pub(crate) async fn serve(&self, request: Request<Incoming>, client: Client) -> Response<Body> {
        let (parts, incoming) = request.into_parts();
        let mut record = Record::begin(RequestContext::new(&parts, client));
        let shape = record.context.api.map_or(ErrorShape::OpenAi, Api::errors);
        if let Some(answer) = local::answer(self, &parts) {
            return match answer {
                Ok(response) => local_response(response, record),
                Err(refusal) => refuse(&refusal, record, shape),
            };
        }
        let routed = match self.route(parts, incoming, &mut record).await {
            Ok(routed) => routed,
            Err(refusal) => return refuse(&refusal, record, shape),
        };
        let Routed { pool, api, outgoing, ticket, strip_usage } = routed;
        let beat = pool.settings().hold.heartbeat;
        let accepted = record.context.accepted;
        let beating = record.context.stream && !beat.is_zero();
        let mut told = HeaderMap::new();
        if beating {
            record.tell(&mut told);
        }
        let exchange = Exchange { pool, api, outgoing, ticket, record, strip_usage };
        let mut exchange: Exchanging = Box::pin(exchange.run());
        let mut gone: Gone = Box::pin(client_left(client));
        tokio::select! {
            // The answer first: it is there, whatever the socket says.
            biased;
            outcome = &mut exchange => return respond(outcome, shape),
            // Nobody is left to read it.
            () = &mut gone => return Refusal::ClientLeft.response(shape),
            () = tokio::time::sleep(beat), if beating => {}
        }
        Held::respond(api, exchange, gone, beat, told, accepted)
    }

    async fn route(
        &self,
        parts: Parts,
        incoming: Incoming,
        record: &mut Record,
    ) -> Result<Routed, Refusal> {
        if self.drain.has_begun() {
            return Err(Refusal::ShuttingDown);
        }
        let api =
            record.context.api.ok_or_else(|| Refusal::UnknownPath(parts.uri.path().to_owned()))?;
        let limit = self.limits.body_size.bytes();
        let tenant = match self.tenants.of(&parts.headers) {
            Ok(tenant) => tenant,
            Err(refusal) => {
                body::discard(incoming, limit, UNWANTED).await;
                return Err(refusal);
            }
        };
        record.identified(&tenant);
        record.context.keyed = self.tenants.checks_keys();
        let body = body::read(incoming, limit, self.limits.body_timeout).await?;
        let scan = read(api, &parts, &body)?;
        record.context.model = scan.model.as_ref().map(|model| model.name.clone());
        record.context.stream = scan.stream && api.streams();
        let pool = Arc::clone(self.routes.pool(record.context.model.as_deref())?);
        allowed(&tenant, record.context.model.as_deref(), &pool)?;
        record.routed(&pool);
        record.admit(scan.prompt_tokens(body.len()), expected_tokens(&scan, body.len()))?;
        let edits = Edits {
            model: record.context.served.as_deref(),
            ask_usage: api.usage_on_request(),
            drop_priority: !pool.settings().allow_priority,
        };
        let edited = edit(&body, &scan, &edits);
        let rights = Rights {
            priority: pool.settings().allow_priority,
            keyed: record.context.keyed,
            authorization: pool.key.get(),
        };
        let outgoing = Outgoing::new(parts, edited.body, rights);
        let accepted = record.context.accepted;
        let ticket = Ticket::new(queue::Request {
            tenant: Arc::clone(&record.context.tenant),
            class: tenant.class(),
            since: accepted,
            deadline: accepted + pool.settings().upstream.request_timeout,
            bytes: body.len() as u64,
            tokens: expected_tokens(&scan, body.len()),
            cost: usual_tokens(&scan, body.len()),
        });
        Ok(Routed { pool, api, outgoing, ticket, strip_usage: edited.strip_usage })
    }
}

/// How long an unwanted body may take.
const UNWANTED: Duration = Duration::from_secs(5);

/// Without a name the replica takes its own.
pub(crate) fn allowed(tenant: &Tenant, model: Option<&str>, pool: &Pool) -> Result<(), Refusal> {
    let own =
        model.map_or_else(|| pool.models().into_iter().next(), |model| Some(model.to_owned()));
    let model = own.unwrap_or_default();
    if tenant.may_use(&model) {
        return Ok(());
    }
    Err(Refusal::ForbiddenModel { tenant: Arc::clone(&tenant.name), model })
}

fn read(api: Api, parts: &Parts, body: &Bytes) -> Result<Scan, Refusal> {
    if !api.multipart() {
        return Ok(scan(body)?);
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    Ok(scan_form(body, kind.unwrap_or_default())?)
}

/// Of prompt and an answer as most are, or the client's own limit where that is less.
fn usual_tokens(scan: &Scan, body_len: usize) -> u64 {
    let answer = scan.max_tokens.unwrap_or(ANSWER_TOKENS).min(ANSWER_TOKENS);
    scan.prompt_tokens(body_len) + answer.saturating_mul(scan.n.unwrap_or(1).clamp(1, 1 << 10))
}

/// Of prompt and answer; what a client allows may be far more than any model gives.
fn expected_tokens(scan: &Scan, body_len: usize) -> u64 {
    let answer = scan.max_tokens.unwrap_or(ANSWER_TOKENS).min(1 << 20);
    scan.prompt_tokens(body_len) + answer.saturating_mul(scan.n.unwrap_or(1).clamp(1, 1 << 10))
}

/// Most answers come before this; only those that wait longer pay for a watch of their own.
const WATCH_AFTER: Duration = Duration::from_millis(20);

pub(crate) async fn client_left(client: Client) {
    tokio::time::sleep(WATCH_AFTER).await;
    client.socket.closed().await;
}
