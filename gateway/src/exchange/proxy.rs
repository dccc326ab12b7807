//! A request's way, step by step: admitted, read, scanned and routed here; then `dispatch` and
//! `respond`.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use forebay_config::{ANONYMOUS, Limits, SplitBy};
use forebay_scheduling::queue::Entry;
use http::request::Parts;
use http::{HeaderMap, Response, header};
use tokio::time::{Instant, sleep_until};

use crate::answer::api::{Api, ErrorShape};
use crate::answer::refusal::Refusal;
use crate::exchange::answer_body::AnswerBody;
use crate::exchange::attempt::InferenceRequest;
use crate::exchange::cutoff::ClientGone;
use crate::exchange::dispatch::{Dispatch, RequestKind};
use crate::exchange::heartbeat::{HeldAnswer, HeldBeats, HeldForm, RunningDispatch};
use crate::exchange::late::{self, late};
use crate::exchange::record::Record;
use crate::exchange::respond::{local_response, refuse, respond};
use crate::net::clock;
use crate::net::drain::Drain;
use crate::net::machine_limits::MachineLimits;
use crate::net::upload::Upload;
use crate::pool::{ExpectedStart, Pool};
use crate::read::body;
use crate::read::body_memory::{self, BodyMemory, MemoryOwner};
use crate::read::client_timeout::client_timeout;
use crate::read::context::{Client, RequestContext};
use crate::read::head::ClientHead;
use crate::read::known_headers::{KnownHeader, SESSION};
use crate::read::multipart::scan_form;
use crate::read::scan::{Scan, scan, scan_contents};
use crate::route::local_answers;
use crate::route::{RoutePlan, Routes};
use crate::tenant::Tenant;
use crate::tenant::registry::Tenants;

/// Tokens expected of an answer whose request sets no limit.
const ANSWER_TOKENS: u64 = 256;
/// The number of a prompt's bytes that distinguish one conversation from another.
const LEAD: usize = 1024;
/// How long the rest of an unwanted body may take.
const UNWANTED_TIME: Duration = Duration::from_secs(5);
/// The form and the interval of heartbeats.
type Heartbeats = (HeldForm, Duration);

/// The state that all requests share.
pub(crate) struct Proxy {
    pub(crate) routes: ArcSwap<Routes>,
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) bounds: ArcSwap<MachineLimits>,
    pub(crate) body_memory: BodyMemory,
    pub(crate) drain: Drain,
}

/// The estimated size of a request, for the queue and the tenant's limits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Estimate {
    bytes: u64,
    prompt: u64,
    /// A usual answer's tokens, or the client's limit if that is lower.
    answer: u64,
    /// The tokens of the longest answer that the client allows.
    longest_answer: u64,
}

impl Estimate {
    fn of(scan: &Scan, body_len: usize) -> Self {
        let answers = scan.n.unwrap_or(1).clamp(1, 1 << 10);
        let limit = scan.max_tokens.unwrap_or(ANSWER_TOKENS);
        Self {
            bytes: body_len as u64,
            prompt: scan.prompt_tokens(body_len),
            answer: limit.min(ANSWER_TOKENS).saturating_mul(answers),
            // A client may allow far more than any model generates.
            longest_answer: limit.min(1 << 20).saturating_mul(answers),
        }
    }

    fn longest(&self) -> u64 {
        self.prompt + self.longest_answer
    }
}

impl Proxy {
    /// Answers one request.
    pub(crate) async fn serve(
        &self,
        head: Box<ClientHead>,
        incoming: Upload,
        client: Client,
        limits: &Limits,
    ) -> Response<AnswerBody> {
        let mut record = Record::begin(RequestContext::new(&head, client));
        let shape = record.context.api.map_or(ErrorShape::OpenAi, Api::errors);
        let asking = || {
            let tenant = self.tenants.of(&head.parts.headers)?;
            record.context.tenant = Arc::clone(&tenant.name);
            Ok(tenant)
        };
        if record.context.api.is_none()
            && let Some(answer) = local_answers::answer(&self.routes.load(), asking, &head.parts)
        {
            return match answer {
                Ok(response) => local_response(response.map(AnswerBody::full), record),
                Err(refusal) => refuse(&refusal, record, shape),
            };
        }
        let (mut dispatch, plan, heartbeats) =
            match self.accept(head, incoming, limits, &mut record).await {
                Ok(accepted) => accepted,
                Err(refusal) => return refuse(&refusal, record, shape),
            };
        let accepted = record.context.accepted;
        // A plain answer's heartbeat says nothing.
        let expected = heartbeats.is_some_and(|(form, _)| form.is_stream());
        let expected = expected.then(|| Arc::new(ExpectedStart::unknown(accepted)));
        dispatch.expected.clone_from(&expected);
        let begins = accepted + late::AFTER;
        let mut headers = HeaderMap::new();
        if heartbeats.is_some() {
            record.write_headers(&mut headers);
        }
        let now = clock::now();
        let first_heartbeat = async {
            match heartbeats {
                Some((form, interval)) => {
                    sleep_until(now + interval).await;
                    (form, interval)
                }
                None => pending().await,
            }
        };
        let mut dispatch: RunningDispatch = Box::pin(dispatch.run(plan, record));
        let mut client_gone: ClientGone = Box::pin(client_left(client, now));
        let (form, interval) = tokio::select! {
            // An answer that has come goes out, even if the socket has closed.
            biased;
            dispatched = &mut dispatch => {
                return respond(dispatched, shape, client_gone, &self.drain);
            }
            () = &mut client_gone => {
                return Refusal::ClientLeft.response(shape).map(AnswerBody::full);
            }
            heartbeat = late(begins, now, first_heartbeat) => heartbeat,
        };
        let beats = HeldBeats { form, every: interval, expected };
        let ending = self.drain.ending();
        HeldAnswer::respond(beats, (dispatch, client_gone), ending, headers, accepted)
            .map(AnswerBody::held)
    }

    /// Admits a request, reads it whole, and finds its pool.
    async fn accept(
        &self,
        head: Box<ClientHead>,
        incoming: Upload,
        limits: &Limits,
        record: &mut Record,
    ) -> Result<(Box<Dispatch<InferenceRequest>>, RoutePlan, Option<Heartbeats>), Refusal> {
        let parts = &head.parts;
        let api =
            record.context.api.ok_or_else(|| Refusal::UnknownPath(parts.uri.path().to_owned()))?;
        let body_limit = limits.body_size.bytes();
        // Before the body takes up memory.
        let tenant = match self.admit(&parts.headers, record) {
            Ok(tenant) => tenant,
            Err(Refusal::ShuttingDown) => return Err(Refusal::ShuttingDown),
            Err(refusal) => {
                Box::pin(body::discard(incoming, body_limit, UNWANTED_TIME)).await;
                return Err(refusal);
            }
        };
        let share = self.body_memory.share(memory_owner(&tenant, record), **self.bounds.load());
        let head_size = body_memory::without_body(parts);
        let body = body::read(incoming, body_limit, limits.body_timeout, share, head_size).await?;
        let contents = api.has_prompt() && self.routes.load().read_prompts;
        let scan = scan_body(api, parts, &body, contents)?;
        record.context.set_model(scan.model.as_ref().map(|model| Arc::from(&*model.name)))?;
        record.context.stream = scan.stream && api.streams();
        let plan = self.plan(record, &tenant, &parts.headers, scan.lead(&body, LEAD))?;
        let estimate = Estimate::of(&scan, body.len());
        record.reserve(estimate.prompt, estimate.longest())?;
        let heartbeats = heartbeats(record, &scan, &plan.first.pool);
        let client_limit = match head.known.has(KnownHeader::Timeout) {
            true => client_timeout(&parts.headers, heartbeats.is_some()),
            false => None,
        };
        let stream = record.context.stream;
        let kind = InferenceRequest { api, head, body, scan, stream };
        Ok((self.dispatch(kind, record, &tenant, estimate, client_limit), plan, heartbeats))
    }

    /// Counts a request as one of its tenant's, unless the gateway drains or a limit is reached.
    pub(crate) fn admit(
        &self,
        headers: &HeaderMap,
        record: &mut Record,
    ) -> Result<Arc<Tenant>, Refusal> {
        if self.drain.has_begun() {
            return Err(Refusal::ShuttingDown);
        }
        let tenant = self.tenants.of(headers)?;
        record.context.keyed = self.tenants.checks_keys();
        record.admit(&tenant)?;
        Ok(tenant)
    }

    /// Finds the destinations of a request for the record's model, if its tenant may use that. A
    /// request that names no model gets the replica's own, so the tenant must be allowed to use
    /// that one. `lead` is the beginning of the prompt.
    pub(crate) fn plan(
        &self,
        record: &mut Record,
        tenant: &Tenant,
        headers: &HeaderMap,
        lead: &[u8],
    ) -> Result<RoutePlan, Refusal> {
        let key = |by| split_key(by, tenant, headers, lead);
        let name = record.context.model.as_deref();
        let plan = self.routes.load().plan(name, key, |name| tenant.may_use(name))?;
        let own = name.or(plan.model.as_deref()).unwrap_or_default();
        if !tenant.may_use(own) {
            let (tenant, model) = (Arc::clone(&tenant.name), own.to_owned());
            return Err(Refusal::ForbiddenModel { tenant, model });
        }
        record.routed(&plan.first.pool);
        Ok(plan)
    }

    /// Prepares the dispatch of an admitted request of either kind. `client_limit` is how long the
    /// client waits, if it says so.
    pub(crate) fn dispatch<K: RequestKind>(
        &self,
        kind: K,
        record: &Record,
        tenant: &Tenant,
        estimate: Estimate,
        client_limit: Option<Duration>,
    ) -> Box<Dispatch<K>> {
        let entry = Entry {
            tenant: Arc::clone(&tenant.name),
            class: tenant.class(),
            bytes: estimate.bytes,
            tokens: estimate.longest(),
            cost: estimate.prompt + estimate.answer,
            answer: estimate.answer,
            late_from: None,
            kind: 0,
        };
        let client_deadline = client_limit.map(|limit| record.context.accepted + limit);
        let ending = self.drain.ending();
        Box::new(Dispatch { kind, entry, client_deadline, ending, expected: None })
    }
}

/// The owner of the memory for a request.
fn memory_owner(tenant: &Tenant, record: &Record) -> MemoryOwner {
    match record.context.client.address {
        Some(address) if *tenant.name == *ANONYMOUS => MemoryOwner::address(address),
        _ => MemoryOwner::Tenant(Arc::clone(&tenant.name)),
    }
}

/// A waiting client's heartbeats; `None` for a client that gets none.
fn heartbeats(record: &Record, scan: &Scan, pool: &Pool) -> Option<Heartbeats> {
    let form = HeldForm::of(record.context.api?, scan)?;
    let interval = pool.heartbeat(record.context.stream);
    (!interval.is_zero()).then_some((form, interval))
}

/// The key by which a split keeps requests together; `None` for a choice by chance.
fn split_key(by: SplitBy, tenant: &Tenant, headers: &HeaderMap, lead: &[u8]) -> Option<String> {
    let session = || match headers.get(SESSION) {
        Some(id) => String::from_utf8_lossy(id.as_bytes()).into_owned(),
        None => String::from_utf8_lossy(lead).into_owned(),
    };
    match by {
        SplitBy::Request => None,
        SplitBy::Session => Some(format!("{}\0{}", tenant.name, session())),
        SplitBy::Tenant => Some(tenant.name.to_string()),
    }
}

/// Reads the fields of a body, and the contents that the model will see if a policy needs them.
fn scan_body(api: Api, parts: &Parts, body: &Bytes, contents: bool) -> Result<Scan, Refusal> {
    if !api.multipart() {
        return Ok(if contents { scan_contents(body)? } else { scan(body)? });
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    Ok(scan_form(body, kind.unwrap_or_default())?)
}

/// Resolves when the client of a request that begins `now` has closed its connection. It is the alarm of the request's late waits.
pub(crate) async fn client_left(client: Client, now: Instant) {
    late::alarm(now).await;
    client.socket.closed().await;
}
