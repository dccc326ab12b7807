//! A request's way, step by step: read, scan, route, edit; then `exchange` and `respond`.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use forebay_config::{ANONYMOUS, SplitBy};
use http::request::Parts;
use http::{HeaderMap, Request, Response, header};

use crate::answer::api::{Api, ErrorShape};
use crate::answer::refusal::Refusal;
use crate::exchange::answer_body::Body;
use crate::exchange::cutoff::Gone;
use crate::exchange::fallback::Asked;
use crate::exchange::heartbeat::{Exchanging, Held};
use crate::exchange::record::Record;
use crate::exchange::respond::{local_response, refuse, respond};
use crate::net::bounds::Bounds;
use crate::net::drain::Drain;
use crate::net::upload::Upload;
use crate::pool::Pool;
use crate::pool::cold_wait;
use crate::pool::queue;
use crate::read::body;
use crate::read::body_memory::{self, Bodies, Source};
use crate::read::context::{Client, RequestContext};
use crate::read::multipart::scan_form;
use crate::read::scan::{Scan, scan};
use crate::route::local_answers;
use crate::route::{Routes, Way};
use crate::tenant::Tenant;
use crate::tenant::registry::Tenants;

/// Tokens expected of an answer whose request sets no limit.
const ANSWER_TOKENS: u64 = 256;

/// What every request needs.
pub(crate) struct Proxy {
    pub(crate) routes: ArcSwap<Routes>,
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) limits: ArcSwap<forebay_config::Limits>,
    pub(crate) bounds: ArcSwap<Bounds>,
    pub(crate) bodies: Bodies,
    pub(crate) drain: Drain,
}

impl Proxy {
    /// Answers one request, whatever it is.
    pub(crate) async fn serve(&self, request: Request<Upload>, client: Client) -> Response<Body> {
        let (parts, incoming) = request.into_parts();
        let mut record = Record::begin(RequestContext::new(&parts, client));
        let shape = record.context.api.map_or(ErrorShape::OpenAi, Api::errors);
        if let Some(answer) = local_answers::answer(&self.routes.load(), &self.tenants, &parts) {
            return match answer {
                Ok(response) => local_response(response.map(Body::full), record),
                Err(refusal) => refuse(&refusal, record, shape),
            };
        }
        let (asked, way) = match self.route(parts, incoming, &mut record).await {
            Ok(routed) => routed,
            Err(refusal) => return refuse(&refusal, record, shape),
        };
        let api = asked.api;
        let beat = heartbeat(&record, &way.first.pool);
        let accepted = record.context.accepted;
        let mut told = HeaderMap::new();
        if !beat.is_zero() {
            record.tell(&mut told);
        }
        let mut exchange: Exchanging = Box::pin(asked.answered(way, record));
        let mut gone: Gone = Box::pin(client_left(client));
        tokio::select! {
            // The answer first: it is there, whatever the socket says.
            biased;
            outcome = &mut exchange => return respond(outcome, shape, gone, &self.drain),
            // Nobody is left to read it.
            () = &mut gone => return Refusal::ClientLeft.response(shape).map(Body::full),
            () = tokio::time::sleep(beat), if !beat.is_zero() => {}
        }
        Held::respond(api, (exchange, gone), self.drain.ending(), beat, told, accepted)
            .map(|held| Body::Held(Box::new(held)))
    }

    async fn route(
        &self,
        parts: Parts,
        incoming: Upload,
        record: &mut Record,
    ) -> Result<(Asked, Way), Refusal> {
        if self.drain.has_begun() {
            return Err(Refusal::ShuttingDown);
        }
        let api =
            record.context.api.ok_or_else(|| Refusal::UnknownPath(parts.uri.path().to_owned()))?;
        let limits = self.limits.load_full();
        let limit = limits.body_size.bytes();
        let tenant = match self.tenants.of(&parts.headers) {
            Ok(tenant) => tenant,
            Err(refusal) => {
                body::discard(incoming, limit, UNWANTED).await;
                return Err(refusal);
            }
        };
        record.identified(&tenant);
        record.context.keyed = self.tenants.checks_keys();
        // Before the body takes any memory.
        if let Err(refusal) = record.admit() {
            body::discard(incoming, limit, UNWANTED).await;
            return Err(refusal);
        }
        let share = self.bodies.share(source(&tenant, record), **self.bounds.load());
        let head = body_memory::without_body(&parts);
        let body = body::read(incoming, limit, limits.body_timeout, share, head).await?;
        let scan = read(api, &parts, &body)?;
        record.context.asks_for(scan.model.as_ref().map(|model| model.name.clone()))?;
        record.context.stream = scan.stream && api.streams();
        let way = self.way(record, &tenant, &parts.headers, scan.lead(&body, LEAD))?;
        record.reserve(scan.prompt_tokens(body.len()), expected_tokens(&scan, body.len()))?;
        let accepted = record.context.accepted;
        let kept_alive = !heartbeat(record, &way.first.pool).is_zero();
        let gives_up = cold_wait::told_by(&parts.headers, kept_alive).map(|it| accepted + it);
        let request = queue::Request {
            tenant: Arc::clone(&tenant.name),
            class: tenant.class(),
            since: accepted,
            deadline: accepted,
            bytes: body.len() as u64,
            tokens: expected_tokens(&scan, body.len()),
            cost: scan.prompt_tokens(body.len()) + usual_answer(&scan),
            answer: usual_answer(&scan),
        };
        let ending = self.drain.ending();
        Ok((Asked { api, parts, body, scan, request, gives_up, ending }, way))
    }

    /// Where a request for the record's model goes, if its tenant may use it. Without a name the
    /// replica takes its own, so that one must be allowed. `lead` is how the prompt begins.
    pub(crate) fn way(
        &self,
        record: &mut Record,
        tenant: &Tenant,
        headers: &HeaderMap,
        lead: &[u8],
    ) -> Result<Way, Refusal> {
        let key = |by| split_key(by, tenant, headers, lead);
        let name = record.context.model.as_deref();
        let way = self.routes.load().way(name, key, |name| tenant.may_use(name))?;
        let own = way.model.as_deref().unwrap_or_default();
        if !tenant.may_use(own) {
            let (tenant, model) = (Arc::clone(&tenant.name), own.to_owned());
            return Err(Refusal::ForbiddenModel { tenant, model });
        }
        record.routed(&way.first.pool);
        Ok(way)
    }
}

/// Whose share of the memory a request takes.
fn source(tenant: &Tenant, record: &Record) -> Source {
    match record.context.client.address {
        Some(address) if *tenant.name == *ANONYMOUS => Source::address(address),
        _ => Source::Tenant(Arc::clone(&tenant.name)),
    }
}

/// How often a client that waits hears from us; zero for one that is told nothing before the answer.
fn heartbeat(record: &Record, pool: &Pool) -> Duration {
    if record.context.stream { pool.settings().hold.heartbeat } else { Duration::ZERO }
}

/// So much of a prompt tells one conversation from another.
const LEAD: usize = 1024;

/// What a split keeps together.
fn split_key(by: SplitBy, tenant: &Tenant, headers: &HeaderMap, lead: &[u8]) -> Option<String> {
    let session = || match headers.get("x-session-id") {
        Some(id) => String::from_utf8_lossy(id.as_bytes()).into_owned(),
        None => String::from_utf8_lossy(lead).into_owned(),
    };
    match by {
        SplitBy::Request => None,
        SplitBy::Session => Some(format!("{}\0{}", tenant.name, session())),
        SplitBy::Tenant => Some(tenant.name.to_string()),
    }
}

/// How long an unwanted body may take.
const UNWANTED: Duration = Duration::from_secs(5);

fn read(api: Api, parts: &Parts, body: &Bytes) -> Result<Scan, Refusal> {
    if !api.multipart() {
        return Ok(scan(body)?);
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    Ok(scan_form(body, kind.unwrap_or_default())?)
}

/// Tokens of an answer as most are, or the client's own limit where that is less.
fn usual_answer(scan: &Scan) -> u64 {
    let answer = scan.max_tokens.unwrap_or(ANSWER_TOKENS).min(ANSWER_TOKENS);
    answer.saturating_mul(scan.n.unwrap_or(1).clamp(1, 1 << 10))
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
