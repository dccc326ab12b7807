//! From a request to its reply: the table of paths, the checks before any handler, and the short
//! handlers.

use crate::sim::api::events::{self, Dialect, EventBody, Sink};
use crate::sim::api::fault::Fault;
use crate::sim::api::json;
use crate::sim::api::plan::{Completion, Plan};
use crate::sim::api::pooling::{Kind, PoolingRequest};
use crate::sim::api::{audio, chat, completions, messages, pooling, responses, tokens};
use crate::sim::args::Runner;
use crate::sim::http::dev;
use crate::sim::http::realtime;
use crate::sim::http::reply::{Body, ConnState, OpenRequest, Reply};
use crate::sim::metrics::stats::HttpAnswer;
use crate::sim::shared::{Phase, Shared, VERSION};
use crate::sim::text;
use crate::sim::wall;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// More than any model's context; the real server has no limit.
const MOST_BODY_BYTES: usize = 256 << 20;

/// A path's handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Health,
    Version,
    Load,
    Metrics,
    MetricsSlash,
    Models,
    KvEventSources,
    Chat,
    Completions,
    Responses,
    ResponseById,
    Messages,
    CountTokens,
    Tokenize,
    Detokenize,
    Audio(&'static str),
    Pooling(Kind),
    LoadLora,
    UnloadLora,
    Dev(dev::Command),
}

/// The handler of a path, its name in the metrics, and the method it takes.
fn find(shared: &Shared, path: &str) -> Option<(Route, &'static str, &'static str)> {
    let generate = shared.args.runner == Runner::Generate;
    let loras = !shared.args.lora_modules.is_empty() || shared.args.replies.dev;
    let open = match path {
        "/health" => (Route::Health, "/health", "GET"),
        "/ping" => (Route::Health, "/ping", "GET"),
        "/version" => (Route::Version, "/version", "GET"),
        "/load" => (Route::Load, "/load", "GET"),
        "/metrics" => (Route::Metrics, "/metrics", "GET"),
        "/metrics/" => (Route::MetricsSlash, "/metrics", "GET"),
        "/kv_event_sources" => (Route::KvEventSources, "/kv_event_sources", "GET"),
        "/v1/models" => (Route::Models, "/v1/models", "GET"),
        "/tokenize" => (Route::Tokenize, "/tokenize", "POST"),
        "/detokenize" => (Route::Detokenize, "/detokenize", "POST"),
        "/v1/load_lora_adapter" if loras => (Route::LoadLora, "/v1/load_lora_adapter", "POST"),
        "/v1/unload_lora_adapter" if loras => {
            (Route::UnloadLora, "/v1/unload_lora_adapter", "POST")
        }
        _ => {
            let found = if generate { find_generating(path) } else { find_pooling(path) };
            return found.or_else(|| {
                let (command, name, method) =
                    dev::find(path).filter(|_| shared.args.replies.dev)?;
                Some((Route::Dev(command), name, method))
            });
        }
    };
    Some(open)
}

fn find_generating(path: &str) -> Option<(Route, &'static str, &'static str)> {
    let (route, name) = match path {
        "/v1/chat/completions" => (Route::Chat, "/v1/chat/completions"),
        "/v1/completions" => (Route::Completions, "/v1/completions"),
        "/v1/responses" => (Route::Responses, "/v1/responses"),
        "/v1/messages" => (Route::Messages, "/v1/messages"),
        "/v1/messages/count_tokens" => (Route::CountTokens, "/v1/messages/count_tokens"),
        "/v1/audio/transcriptions" => (Route::Audio("transcription"), "/v1/audio/transcriptions"),
        "/v1/audio/translations" => (Route::Audio("translation"), "/v1/audio/translations"),
        _ => {
            let id = path.strip_prefix("/v1/responses/")?;
            let one = !id.is_empty() && !id.contains('/');
            return one.then_some((Route::ResponseById, "/v1/responses/{response_id}", "GET"));
        }
    };
    Some((route, name, "POST"))
}

fn find_pooling(path: &str) -> Option<(Route, &'static str, &'static str)> {
    let (kind, name) = match path {
        "/v1/embeddings" => (Kind::Embeddings, "/v1/embeddings"),
        "/pooling" => (Kind::Pooling, "/pooling"),
        "/classify" => (Kind::Classify, "/classify"),
        "/score" => (Kind::Score, "/score"),
        "/v1/score" => (Kind::Score, "/v1/score"),
        "/rerank" => (Kind::Rerank, "/rerank"),
        "/v1/rerank" => (Kind::Rerank, "/v1/rerank"),
        "/v2/rerank" => (Kind::Rerank, "/v2/rerank"),
        _ => return None,
    };
    Some((Route::Pooling(kind), name, "POST"))
}

/// Answers one request.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    conn: Arc<ConnState>,
    request: Request<Incoming>,
) -> Response<Body> {
    let mut done = OpenRequest::begin(&shared, &conn);
    let headers = request.headers();
    let close = shared.phase() != Phase::Serving || wants_close(headers, &conn);
    let given_id = headers.get("x-request-id").cloned();
    let request_bytes = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok());
    let request_bytes = request_bytes.and_then(|text| text.parse().ok()).unwrap_or(0);
    let method = request.method().clone();
    if let Some(key) = handshake(&shared, &request) {
        conn.upgraded.store(true, Relaxed);
        return Reply::websocket(key, done);
    }
    let found = find(&shared, request.uri().path());
    let reply =
        handle(&shared, request, found.map(|(route, _, allowed)| (route, allowed)), &mut done)
            .await
            .unwrap_or_else(|fault| Reply::fault(&fault));
    let handler = match found {
        Some((Route::Health | Route::Version | Route::Load, ..)) => None,
        Some((Route::Metrics | Route::MetricsSlash, ..)) => None,
        Some((_, name, _)) => Some(name),
        None => Some("none"),
    };
    if let Some(handler) = handler {
        done.answered(HttpAnswer {
            handler,
            method: method.to_string(),
            status: reply.status.as_u16(),
            request_bytes,
            response_bytes: reply.length(),
        });
    }
    let id = shared
        .args
        .replies
        .enable_request_id_headers
        .then(|| given_id.or_else(|| HeaderValue::from_str(&wall::id32()).ok()));
    reply.into_response(id.flatten(), close, done)
}

/// The key of a valid handshake for a realtime session.
fn handshake<'a>(shared: &Shared, request: &'a Request<Incoming>) -> Option<&'a str> {
    let key = realtime::key(request.headers())?;
    let here = request.uri().path() == "/v1/realtime" && request.method() == Method::GET;
    let serves = here && shared.args.runner == Runner::Generate;
    (serves && authorized(shared, "/v1/realtime", request.headers())).then_some(key)
}

/// Whether the connection ends with this reply: the client asks for it, or speaks HTTP/1.0.
fn wants_close(headers: &HeaderMap, conn: &ConnState) -> bool {
    let has_token = |token: &str| {
        let values = headers.get_all(header::CONNECTION).iter();
        let mut words = values.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
        words.any(|word| word.trim().eq_ignore_ascii_case(token))
    };
    has_token("close") || (conn.http10.load(Relaxed) && !has_token("keep-alive"))
}

async fn handle(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    found: Option<(Route, &'static str)>,
    done: &mut OpenRequest,
) -> Result<Reply, Fault> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let preflight = head.method == Method::OPTIONS
        && head.headers.contains_key(header::ORIGIN)
        && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if preflight {
        return Ok(Reply::foreign_origin());
    }
    if head.method != Method::OPTIONS && !authorized(shared, path, &head.headers) {
        return Err(Fault::unauthorized());
    }
    let Some((route, allowed)) = found else {
        let bare = path.strip_suffix('/').unwrap_or_default();
        if find(shared, bare).is_none() {
            return Err(Fault::not_found());
        }
        let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        return Ok(Reply::redirect(format!("http://{}{bare}{query}", host.unwrap_or_default())));
    };
    if head.method.as_str() != allowed {
        return Ok(Reply::not_allowed(allowed));
    }
    let query = head.uri.query().unwrap_or_default();
    match route {
        Route::Health if shared.phase() == Phase::Dying => {
            Ok(Reply::empty(StatusCode::SERVICE_UNAVAILABLE))
        }
        Route::Health => Ok(Reply::empty(StatusCode::OK)),
        Route::Version => Ok(Reply::json(format!(r#"{{"version":"{VERSION}"}}"#))),
        Route::Load => Ok(Reply::json(format!(r#"{{"server_load":{}}}"#, shared.server_load()))),
        Route::Metrics => {
            Ok(Reply::text(shared.metrics(), Some("text/plain; version=1.0.0; charset=utf-8")))
        }
        Route::MetricsSlash => {
            let mut page = Sink::default();
            page.raw(shared.metrics());
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            Ok(Reply::chunked(EventBody::fixed(page), kind))
        }
        Route::Models => Ok(Reply::json(models(shared))),
        Route::KvEventSources => Ok(Reply::json("{}")),
        Route::ResponseById => {
            let id = path.rsplit('/').next().unwrap_or_default();
            Err(Fault::no_response(id))
        }
        Route::Dev(command) => dev::run(shared, command, query).await,
        _ => {
            done.load();
            let body = read(body).await?;
            post(shared, route, &head.headers, &body).await
        }
    }
}

async fn read(body: Incoming) -> Result<Bytes, Fault> {
    let limited = Limited::new(body, MOST_BODY_BYTES);
    Ok(limited.collect().await.map_err(|_| Fault::unreadable())?.to_bytes())
}

/// The routes that take a body.
async fn post(
    shared: &Arc<Shared>,
    route: Route,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Reply, Fault> {
    let id = headers.get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let content_type = content_type.unwrap_or_default();
    if let Route::Audio(task) = route {
        let form = audio::Form::parse(content_type, body)?;
        let plan = form.plan(shared, id)?;
        if plan.params.output.stream {
            return stream(shared, plan, Box::new(audio::AudioStream { task }));
        }
        let completion = whole(shared, &plan).await?;
        let (text, kind) = form.whole(&completion);
        return Ok(Reply::text(text, Some(kind)));
    }
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(Fault::media_type());
    }
    let body = json::object(body)?;
    match route {
        Route::Chat => {
            let plan = chat::plan(shared, &body, id)?;
            if plan.params.output.stream {
                let dialect = Box::new(chat::ChatStream::new(&plan));
                return stream(shared, plan, dialect);
            }
            let completion = whole(shared, &plan).await?;
            Ok(with_load(shared, headers, Reply::json(chat::whole(&plan, &completion))))
        }
        Route::Completions => {
            let (plan, echo) = completions::plan(shared, &body, id)?;
            if plan.params.output.stream {
                let dialect = Box::new(completions::CompletionStream::new(&plan, echo));
                return stream(shared, plan, dialect);
            }
            let completion = whole(shared, &plan).await?;
            let reply = Reply::json(completions::whole(&plan, &completion, echo));
            Ok(with_load(shared, headers, reply))
        }
        Route::Responses => {
            let (plan, echoed) = responses::plan(shared, &body, id)?;
            if plan.params.output.stream {
                return stream(shared, plan, Box::new(responses::ResponseStream::new(echoed)));
            }
            let completion = whole(shared, &plan).await?;
            Ok(Reply::json(responses::whole(&plan, &echoed, &completion)))
        }
        Route::Messages => {
            let plan = match messages::plan(shared, &body, id) {
                Ok(plan) => plan,
                // Errors of the field checks alone have OpenAI's shape.
                Err(fault) if fault.kind == "Bad Request" => return Err(fault),
                Err(fault) => return Ok(Reply::anthropic(&fault)),
            };
            if plan.params.output.stream {
                return stream(shared, plan, Box::new(messages::MessageStream::default()));
            }
            let completion = whole(shared, &plan).await?;
            Ok(Reply::json(messages::whole(&plan, &completion)))
        }
        Route::CountTokens => match messages::count_tokens(shared, &body) {
            Err(fault) if fault.kind != "Bad Request" => Ok(Reply::anthropic(&fault)),
            counted => counted.map(Reply::json),
        },
        Route::Tokenize => tokens::tokenize(shared, &body).map(Reply::json),
        Route::Detokenize => tokens::detokenize(shared, &body).map(Reply::json),
        Route::Pooling(kind) => pool(shared, &PoolingRequest::new(shared, kind, &body)?).await,
        Route::LoadLora => dev::load_lora(shared, &body),
        Route::UnloadLora => dev::unload_lora(shared, &body),
        _ => Err(Fault::not_found()),
    }
}

/// Refuses new requests while the server drains.
fn open_for_work(shared: &Shared) -> Result<(), Fault> {
    if shared.phase() == Phase::Draining { Err(Fault::draining()) } else { Ok(()) }
}

/// Replies with 200 and the headers at once, before there is a seat or a token.
fn stream(shared: &Arc<Shared>, plan: Plan, dialect: Box<dyn Dialect>) -> Result<Reply, Fault> {
    open_for_work(shared)?;
    let n = u32::try_from(plan.n).unwrap_or(u32::MAX);
    let body = match shared.engine.submit(plan.jobs(shared), n, plan.lora.as_deref()) {
        Ok(running) => {
            let keep_alive = Duration::from_secs(shared.args.replies.sse_keep_alive_interval);
            EventBody::new(plan, dialect, running, keep_alive)
        }
        Err(why) => EventBody::failed(dialect, &Fault::refused(why)),
    };
    Ok(Reply::events(body))
}

async fn whole(shared: &Arc<Shared>, plan: &Plan) -> Result<Completion, Fault> {
    open_for_work(shared)?;
    let n = u32::try_from(plan.n).unwrap_or(u32::MAX);
    let submitted = shared.engine.submit(plan.jobs(shared), n, plan.lora.as_deref());
    let (ticket, mut out) = submitted.map_err(Fault::refused)?;
    let completion = events::whole(plan, &mut out).await?;
    for parsed in plan.scripts.iter().filter_map(|_| plan.parsed(false)) {
        ticket.engine().parsed(parsed);
    }
    Ok(completion)
}

async fn pool(shared: &Arc<Shared>, pool: &pooling::PoolingRequest) -> Result<Reply, Fault> {
    open_for_work(shared)?;
    let (_ticket, mut out) = pool.submit(shared).map_err(Fault::refused)?;
    for _ in 0..pool.parts() {
        match out.recv().await.map(|out| out.event) {
            Some(crate::sim::engine::SeqEvent::Pooled) => {}
            _ => return Err(Fault::engine_dead()),
        }
    }
    Ok(Reply::json(pool.body()))
}

fn authorized(shared: &Shared, path: &str, headers: &HeaderMap) -> bool {
    let guarded = ["/v1", "/v2", "/inference", "/cohere"].iter().any(|p| path.starts_with(p));
    if shared.args.api_key.is_empty() || !guarded {
        return true;
    }
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    given.and_then(|value| value.split_once(' ')).is_some_and(|(scheme, key)| {
        scheme.eq_ignore_ascii_case("bearer") && shared.args.api_key.iter().any(|k| k == key)
    })
}

/// Adds the engine's load to the reply's head, for clients that params for it.
fn with_load(shared: &Shared, headers: &HeaderMap, reply: Reply) -> Reply {
    let format = headers.get("endpoint-load-metrics-format").and_then(|v| v.to_str().ok());
    let gauges = shared.engine.gauges();
    let (waiting, usage) = (gauges.waiting as f64, gauges.kv_usage);
    let value = match format {
        Some(format) if format.eq_ignore_ascii_case("text") => format!(
            "TEXT named_metrics.num_requests_waiting={waiting:?}, \
             named_metrics.kv_cache_usage_perc={usage:?}"
        ),
        Some(format) if format.eq_ignore_ascii_case("json") => format!(
            "JSON {{\"named_metrics\": {{\"num_requests_waiting\": {waiting:?}, \
             \"kv_cache_usage_perc\": {usage:?}}}}}"
        ),
        _ => return reply,
    };
    reply.with(hyper::header::HeaderName::from_static("endpoint-load-metrics"), value)
}

fn models(shared: &Shared) -> String {
    let created = wall::now().as_secs();
    let root = shared.args.model.as_ref().unwrap_or(&shared.names[0]);
    let length = shared.args.capacity.max_model_len.to_string();
    let one = |id: &str, root: &str, parent: Option<&str>, length: &str| {
        format!(
            r#"{{"id":{},"object":"model","created":{created},"owned_by":"vllm","root":{},"parent":{},"max_model_len":{length},"permission":[{{"id":"modelperm-{}","object":"model_permission","created":{created},"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}}]}}"#,
            text::quoted(id),
            text::quoted(root),
            text::quoted_or_null(parent),
            wall::id16(),
        )
    };
    let base = shared.names.iter().map(|name| one(name, root, None, &length));
    let main = &shared.names[0];
    let loras = shared.loras();
    let adapters = loras.iter().map(|lora| one(&lora.name, &lora.path, Some(main), "null"));
    let data: Vec<String> = base.chain(adapters).collect();
    format!(r#"{{"object":"list","data":[{}]}}"#, data.join(","))
}
