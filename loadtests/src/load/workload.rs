//! A scenario that was checked: settings with their defaults, ready to run.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Uri};

use super::arrivals::Arrivals;
use super::settings::{
    Api, ArrivalSettings, ConnectionSettings, EndpointSettings, RequestSettings, Settings,
};
use super::units::{ExtraFields, TokenLength};
use crate::replay::trace::Trace;

const DURATION: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_mins(5);
const CONNECTIONS: u32 = 10_000;
const MOST_CLIENTS: u32 = 100_000;

/// Everything that a run does.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) endpoint: Endpoint,
    pub(crate) arrivals: Arrivals,
    /// How long requests are sent, warm-up included.
    pub(crate) length: Duration,
    pub(crate) warmup: Duration,
    pub(crate) seed: u64,
    pub(crate) requests: RequestShape,
    pub(crate) connections: ConnectionUse,
}

#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Scheme, host, port, and the path before `/v1`.
    pub(crate) base: Uri,
    pub(crate) api: Api,
    pub(crate) model: Option<String>,
    pub(crate) headers: HeaderMap,
}

#[derive(Debug)]
pub(crate) struct RequestShape {
    /// `None`: the lengths of the trace, or the default.
    pub(crate) prompt: Option<TokenLength>,
    pub(crate) output: Option<TokenLength>,
    pub(crate) shared_prefix: u32,
    pub(crate) stream_share: f64,
    pub(crate) extra: ExtraFields,
    pub(crate) numbered: bool,
}

#[derive(Debug)]
pub(crate) struct ConnectionUse {
    pub(crate) most: u32,
    pub(crate) keep_alive: bool,
    pub(crate) timeout: Duration,
}

impl Workload {
    /// # Errors
    /// A setting is missing or wrong, or a file that it names can't be read.
    pub(crate) fn new(settings: Settings) -> anyhow::Result<Self> {
        let Settings { endpoint, arrivals, requests, connections } = settings;
        let connections = ConnectionUse::new(&connections)?;
        let endpoint = Endpoint::new(endpoint, connections.keep_alive)?;
        let seed = arrivals.seed.unwrap_or(1);
        let (kind, length) = kind(&arrivals, seed)?;
        let warmup = arrivals.warmup.unwrap_or_default();
        ensure!(
            warmup < length,
            "arrivals.warmup (--warmup): {warmup:?} leaves nothing to measure of a run of \
             {length:?}; shorten it, or lengthen arrivals.duration (--duration)"
        );
        let requests = RequestShape::new(requests)?;
        Ok(Self { endpoint, arrivals: kind, length, warmup, seed, requests, connections })
    }
}

impl Endpoint {
    fn new(settings: EndpointSettings, keep_alive: bool) -> anyhow::Result<Self> {
        let url = settings.url.context(
            "endpoint.url is missing: name the endpoint as the first argument or in the scenario, \
             such as http://127.0.0.1:8080",
        )?;
        let base = base(&url).with_context(|| {
            format!("endpoint.url: `{url}` is not a URL; write one such as http://127.0.0.1:8080")
        })?;
        let mut headers = HeaderMap::new();
        let host = base.authority().map_or("", |authority| authority.as_str());
        headers.insert(HOST, host.rsplit('@').next().unwrap_or_default().parse()?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static("forebay-load"));
        if !keep_alive {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(file) = &settings.api_key_file {
            headers.insert(AUTHORIZATION, authorization(file)?);
        }
        headers.extend(settings.headers.into_iter().map(|header| (header.name, header.value)));
        let api = settings.api.unwrap_or_default();
        Ok(Self { base, api, model: settings.model, headers })
    }

    /// The path of `/v1/…`.
    pub(crate) fn path(&self, rest: &str) -> anyhow::Result<Uri> {
        Ok(format!("{}/v1/{rest}", self.base.path().trim_end_matches('/')).parse()?)
    }
}

fn base(url: &str) -> Option<Uri> {
    let url = url.trim_end_matches('/');
    let uri: Uri = url.strip_suffix("/v1").unwrap_or(url).parse().ok()?;
    let scheme = uri.scheme_str().is_some_and(|scheme| matches!(scheme, "http" | "https"));
    (scheme && uri.authority().is_some()).then_some(uri)
}

fn authorization(file: &Path) -> anyhow::Result<HeaderValue> {
    let name = file.display();
    let key = std::fs::read_to_string(file)
        .with_context(|| format!("endpoint.apiKeyFile (--api-key-file): cannot read {name}"))?;
    let mut value =
        HeaderValue::from_str(&format!("Bearer {}", key.trim())).with_context(|| {
            format!(
                "endpoint.apiKeyFile (--api-key-file): {name} must hold one key and nothing else"
            )
        })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The arrivals, and how long they last.
fn kind(settings: &ArrivalSettings, seed: u64) -> anyhow::Result<(Arrivals, Duration)> {
    if settings.kinds() != 1 {
        bail!(
            "arrivals: give exactly one of poisson, constant, ramp, trace and clients, such as \
             `poisson: 20` or --poisson 20"
        );
    }
    if let Some(text) = &settings.trace {
        let pool = settings.pool.as_deref().unwrap_or_default();
        let trace = Trace::read(text, pool, seed).with_context(|| {
            let hint = "arrivals.pool (--pool) picks one pool of a recording";
            format!("arrivals.trace (--trace): `{text}` ({hint})")
        })?;
        let trace = trace.faster(settings.speed_up.unwrap_or(1.0))?;
        let length = Duration::from_micros(trace.length);
        let length = settings.duration.map_or(length, |duration| duration.min(length));
        return Ok((Arrivals::Trace(trace), length));
    }
    ensure!(
        settings.speed_up.is_none() && settings.pool.is_none(),
        "arrivals: speedUp (--speed-up) and pool (--pool) belong to a trace; remove them, or name \
         one as arrivals.trace (--trace)"
    );
    let length = settings.duration.unwrap_or(DURATION);
    ensure!(!length.is_zero(), "arrivals.duration (--duration): must be longer than 0s");
    let arrivals = if let Some(rate) = settings.poisson {
        Arrivals::Poisson(rate.0)
    } else if let Some(rate) = settings.constant {
        Arrivals::Constant(rate.0)
    } else if let Some(range) = settings.ramp {
        Arrivals::Ramp(range)
    } else {
        let clients = settings.clients.unwrap_or_default();
        ensure!(
            (1..=MOST_CLIENTS).contains(&clients),
            "arrivals.clients (--clients): {clients} must be from 1 to {MOST_CLIENTS}"
        );
        Arrivals::Clients(clients)
    };
    Ok((arrivals, length))
}

impl RequestShape {
    fn new(settings: RequestSettings) -> anyhow::Result<Self> {
        let stream_share = settings.stream_share.unwrap_or(1.0);
        ensure!(
            (0.0..=1.0).contains(&stream_share),
            "requests.streamShare (--stream-share): {stream_share} is not a share; write a number \
             from 0 (no request streams) to 1 (all do)"
        );
        let extra = settings.body.unwrap_or_default();
        let ours = ["model", "stream", "max_tokens", "messages", "prompt"];
        if let Some(name) = ours.iter().find(|name| extra.0.contains_key(**name)) {
            bail!("requests.body (--body): `{name}` is set by other settings; remove it");
        }
        Ok(Self {
            prompt: settings.prompt_tokens,
            output: settings.output_tokens,
            shared_prefix: settings.shared_prefix_tokens.unwrap_or(0),
            stream_share,
            extra,
            numbered: settings.numbered.unwrap_or(false),
        })
    }
}

impl ConnectionUse {
    fn new(settings: &ConnectionSettings) -> anyhow::Result<Self> {
        let most = settings.most.unwrap_or(CONNECTIONS);
        ensure!(most > 0, "connections.most (--connections): must be at least 1");
        let timeout = settings.timeout.unwrap_or(TIMEOUT);
        ensure!(!timeout.is_zero(), "connections.timeout (--timeout): must be longer than 0s");
        Ok(Self { most, keep_alive: settings.keep_alive.unwrap_or(true), timeout })
    }
}
