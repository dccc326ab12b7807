//! Asks endpoints whether they answer, from the moment they have an address.
//!
//! Every 100 ms while one starts: vLLM refuses connections until it is up, and what is held waits
//! for this. Once a second while it serves, where its behaviour tells more. One that its behaviour
//! took out is asked for a real token: `/health` is 200 also while vLLM drains, hangs or sleeps.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_system::Resource;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::pool::Pool;
use crate::pool::endpoint::{Probe, Probed};
use crate::pool::model_registry::{self, ServedModel};

const TICK: Duration = Duration::from_millis(100);
const HEALTH_PATIENCE: Duration = Duration::from_secs(2);
/// A one-token request waits its turn among others.
const TOKEN_PATIENCE: Duration = Duration::from_secs(5);
/// Adapters come and go while a replica runs.
const ASK_AGAIN: Duration = Duration::from_secs(30);
const MAX_ANSWER: usize = 4 << 20;

/// Probes one endpoint until it is dropped, or the pool has it no longer.
pub(crate) async fn probe(pool: Arc<Pool>, address: SocketAddr) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Option<(Instant, Vec<ServedModel>)> = None;
    loop {
        ticks.tick().await;
        let Some(due) = pool.probe_due(address) else { return };
        let Some(probe) = due else { continue };
        let replica = Replica { address, key: pool.key.get() };
        let word = match probe {
            Probe::Health => health(&replica).await,
            Probe::Token => {
                let model = told.as_ref().and_then(|(_, models)| models.first());
                token(&replica, model.map(|model| &model.id)).await
            }
        };
        let answers = word == Probed::Answered;
        if !answers && probe == Probe::Health && !matches!(word, Probed::NotAsked(_)) {
            told = None;
        }
        if pool.probed(address, probe, word) {
            tracing::debug!(pool = %pool.name, %address, answers, "probed");
        }
        if answers
            && told.as_ref().is_none_or(|(at, _)| at.elapsed() >= ASK_AGAIN)
            && let Some(models) = served_models(&replica).await
        {
            pool.serves(address, models.clone());
            told = Some((Instant::now(), models));
        }
    }
}

async fn served_models(replica: &Replica) -> Option<Vec<ServedModel>> {
    let (_, body) = replica.ask(get("/v1/models"), HEALTH_PATIENCE).await.ok()?;
    model_registry::parse(&body)
}

async fn health(replica: &Replica) -> Probed {
    judge("/health", replica.ask(get("/health"), HEALTH_PATIENCE).await, |status| {
        status.is_success()
    })
}

/// Whether the engine works: one token of whatever it makes. Where many requests wait, that one
/// waits its turn; an engine whose own counters go on meanwhile works all the same.
async fn token(replica: &Replica, model: Option<&String>) -> Probed {
    let (before, answer) = tokio::join!(progress(replica), one_token(replica, model));
    match (before, answer) {
        (Some(before), Probed::Silent(reason)) => match progress(replica).await {
            Some(after) if after != before => Probed::Answered,
            _ => Probed::Silent(reason),
        },
        (_, answer) => answer,
    }
}

/// What only an engine that works changes in vLLM's `/metrics`. Its server shows them frozen while
/// the engine hangs.
const PROGRESS: [&[u8]; 4] = [
    b"vllm:generation_tokens_total",
    b"vllm:prompt_tokens_total",
    b"vllm:kv_cache_usage_perc",
    b"vllm:num_requests_running",
];

/// How far the engine has come by its server's own figures; `None` where it shows none.
async fn progress(replica: &Replica) -> Option<Vec<Bytes>> {
    let (_, page) = replica.ask(get("/metrics"), HEALTH_PATIENCE).await.ok()?;
    let lines = page.split(|byte| *byte == b'\n');
    let told = lines.filter(|line| PROGRESS.iter().any(|series| line.starts_with(series)));
    let told: Vec<_> = told.map(|line| page.slice_ref(line)).collect();
    (!told.is_empty()).then_some(told)
}

/// Text, an embedding, a score, a class. One that knows none of these, or asks for more than we know,
/// has only its health to show.
async fn one_token(replica: &Replica, model: Option<&String>) -> Probed {
    let requests = [
        ("/v1/completions", json!({"model": model, "prompt": "a", "max_tokens": 1})),
        ("/v1/embeddings", json!({"model": model, "input": "a"})),
        ("/v1/score", json!({"model": model, "text_1": "a", "text_2": "a"})),
        ("/classify", json!({"model": model, "input": "a"})),
        ("/pooling", json!({"model": model, "input": "a"})),
    ];
    for (path, body) in requests {
        let answer = replica.ask(post(path, &body), TOKEN_PATIENCE).await;
        match answer {
            // With a wrong key it does no work for us.
            Ok((StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _)) if replica.key.is_some() => {
                return judge(path, answer, |_| false);
            }
            Ok((status, _))
                if status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED => {}
            answer => return judge(path, answer, |status| status.is_success()),
        }
    }
    health(replica).await
}

/// A try's failure: no connection, or nothing for too long, or an end too early.
enum Failure {
    Unreachable(String),
    Silent(String),
    Broken(String),
    /// It was not asked.
    Shortage(Resource),
}

fn judge(
    path: &str,
    answer: Result<(StatusCode, Bytes), Failure>,
    good: impl Fn(StatusCode) -> bool,
) -> Probed {
    match answer {
        // A plain 200 may carry an abort.
        Ok((_, body)) if memchr::memmem::find(&body, b"\"finish_reason\":\"abort\"").is_some() => {
            Probed::Failed(format!("{path} was aborted"))
        }
        Ok((status, _)) if good(status) => Probed::Answered,
        Ok((status, _)) => Probed::Failed(format!("{path} answered {status}")),
        Err(Failure::Unreachable(reason)) => Probed::Unreachable(reason),
        Err(Failure::Silent(reason)) => Probed::Silent(reason),
        Err(Failure::Broken(reason)) => Probed::Failed(reason),
        Err(Failure::Shortage(resource)) => Probed::NotAsked(resource),
    }
}

fn get(path: &str) -> Request<Full<Bytes>> {
    request(Method::GET, path, Bytes::new())
}

fn post(path: &str, body: &Value) -> Request<Full<Bytes>> {
    request(Method::POST, path, body.to_string().into())
}

fn request(method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap_or_default();
    let json = header::HeaderValue::from_static("application/json");
    request.headers_mut().insert(header::CONTENT_TYPE, json);
    let close = header::HeaderValue::from_static("close");
    request.headers_mut().insert(header::CONNECTION, close);
    request
}

/// Whom to ask, and with which key.
struct Replica {
    address: SocketAddr,
    key: Option<HeaderValue>,
}

impl Replica {
    async fn ask(
        &self,
        mut request: Request<Full<Bytes>>,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let path = request.uri().path().to_owned();
        if let Some(key) = &self.key {
            request.headers_mut().insert(header::AUTHORIZATION, key.clone());
        }
        let stream = match timeout(patience, TcpStream::connect(self.address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.unconnected(&error)),
            Err(_) => {
                return Err(Failure::Unreachable(format!("no connection within {patience:?}")));
            }
        };
        let answer = timeout(patience, exchange(stream, self.address, request)).await;
        let silent = |_| Failure::Silent(format!("no answer to {path} within {patience:?}"));
        answer.map_err(silent)?.map_err(Failure::Broken)
    }

    fn unconnected(&self, error: &io::Error) -> Failure {
        let Some(resource) = Resource::of(error) else {
            return Failure::Unreachable(error.to_string());
        };
        let during = format_args!("cannot probe {}: {error}", self.address);
        forebay_system::report(resource, &during);
        Failure::Shortage(resource)
    }
}

async fn exchange(
    stream: TcpStream,
    address: SocketAddr,
    mut request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), String> {
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    if let Ok(host) = header::HeaderValue::from_str(&address.to_string()) {
        request.headers_mut().insert(header::HOST, host);
    }
    let exchange = async {
        let response = sender.send_request(request).await.map_err(text)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        body.map(|body| (status, body.to_bytes())).map_err(|error| error.to_string())
    };
    // Both in one future: dropped together.
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = exchange.as_mut() => answer,
        _ = connection => exchange.await,
    }
}
