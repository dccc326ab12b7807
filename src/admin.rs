//! The operators' port: metrics, health, the feeds, decisions.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use forebay_gateway::Draining;
use forebay_scaler::Readiness;
use forebay_signals::Token;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::time::interval;

/// Every figure of this process.
pub(crate) fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new();
    for (name, buckets) in forebay_gateway::BUCKETS.iter().chain(forebay_scaler::BUCKETS) {
        builder = builder
            .set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
            .with_context(|| format!("buckets of {name}"))?;
    }
    let handle = builder.install_recorder().context("metrics")?;
    forebay_gateway::describe();
    forebay_scaler::describe();
    Ok(handle)
}

/// Histograms are folded also when nobody scrapes; without it they grow.
pub(crate) async fn upkeep(handle: PrometheusHandle) {
    let mut ticks = interval(Duration::from_secs(5));
    loop {
        ticks.tick().await;
        handle.run_upkeep();
    }
}

/// Who may ask what: DESIGN's "admin access" in one place.
#[derive(Clone)]
pub(crate) struct Access {
    /// `None`: whoever reaches the port, which is allowed on loopback alone.
    pub(crate) token: Option<Token>,
    pub(crate) loopback: bool,
}

/// What of the gateway the port can change and tell; `None` where no gateway runs.
pub(crate) type Drain = Option<Draining>;

/// Serves until dropped. `scaler` is there where nothing but a scaler runs: a gateway's readiness
/// does not depend on one.
pub(crate) async fn serve(
    listener: TcpListener,
    routes: Router,
    metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
    access: Access,
    drain: Drain,
    scaler: Option<Readiness>,
) {
    // Events are small and each is waited for.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let app = router(routes, metrics, access, drain, scaler);
    if let Err(error) =
        axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await
    {
        tracing::error!("the admin port is gone: {error}");
    }
}

fn router(
    routes: Router,
    metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
    access: Access,
    drain: Drain,
    scaler: Option<Readiness>,
) -> Router {
    let metrics = get(move || {
        let text = metrics();
        async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text) }
    });
    let ready = {
        let drain = drain.clone();
        get(move || {
            let draining =
                drain.as_ref().filter(|it| it.has_begun()).map(|_| "draining".to_owned());
            let lack = draining.or_else(|| scaler.as_ref()?.lack());
            async move {
                match lack {
                    Some(lack) => (StatusCode::SERVICE_UNAVAILABLE, format!("{lack}\n")),
                    None => (StatusCode::OK, "ok\n".to_owned()),
                }
            }
        })
    };
    // The scaler has a /drain of its own, for replicas; without a query it is this gateway's.
    let routes = if drain.is_some() {
        routes.fallback(not_found).layer(from_fn_with_state(drain, drain_gateway))
    } else {
        routes.fallback(not_found)
    };
    let guarded = routes.layer(from_fn_with_state(access.clone(), authorize));
    Router::new()
        .route("/metrics", metrics)
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", ready)
        .merge(guarded)
        .layer(from_fn_with_state(access, same_site))
}

async fn not_found() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "nothing is served here\n")
}

/// `POST /drain`: answers when nothing is held or in flight any more.
async fn drain_gateway(State(drain): State<Drain>, request: Request, next: Next) -> Response {
    let ours = request.uri().path() == "/drain" && request.uri().query().is_none();
    let Some(drain) = drain.filter(|_| ours) else { return next.run(request).await };
    if request.method() != Method::POST {
        let allow = [(header::ALLOW, "POST")];
        let usage = "POST it: it stops this gateway from taking work\n";
        return (StatusCode::METHOD_NOT_ALLOWED, allow, usage).into_response();
    }
    tracing::info!("draining: asked to on the admin port");
    drain.begin();
    drain.idle().await;
    "drained\n".into_response()
}

async fn authorize(State(access): State<Access>, request: Request, next: Next) -> Response {
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let sent = sent.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let allowed = match &access.token {
        Some(token) => token.is(sent),
        None => access.loopback,
    };
    if allowed || drains_itself(&request) {
        return next.run(request).await;
    }
    let headers = [(header::WWW_AUTHENTICATE, "Bearer")];
    let why = "send the token of admin.tokenFile as `authorization: Bearer …`\n";
    (StatusCode::UNAUTHORIZED, headers, why).into_response()
}

/// On loopback, what a page of another site makes a browser on this machine ask is refused: by a
/// name of its own that it let point here, or across sites.
async fn same_site(State(access): State<Access>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).or(request.uri().authority().map(|it| it.as_str()));
    let origin = text(header::ORIGIN);
    let foreign = host.is_some_and(|host| !is_local(host))
        || origin.is_some_and(|origin| {
            origin.split_once("://").is_none_or(|(_, authority)| !is_local(authority))
        });
    if access.loopback && foreign {
        let why = "this port answers to localhost and to pages from there alone\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    next.run(request).await
}

/// Whether an authority, `HOST[:PORT]`, can only be this machine.
fn is_local(authority: &str) -> bool {
    let port = |rest: &str| rest.strip_prefix(':').is_none_or(|port| port.parse::<u16>().is_ok());
    let (host, rest) = match authority.strip_prefix('[').and_then(|it| it.split_once(']')) {
        Some((host, rest)) => (host, rest),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    (rest.is_empty() || rest.starts_with(':') && port(rest))
        && (loopback || host.eq_ignore_ascii_case("localhost"))
}

/// A pod may drain itself without the token, which no model's pod holds: its address is its proof.
fn drains_itself(request: &Request) -> bool {
    let asked = request.uri().query().unwrap_or_default();
    let endpoint = asked.strip_prefix("endpoint=").and_then(|it| it.parse::<SocketAddr>().ok());
    let caller = request.extensions().get::<ConnectInfo<SocketAddr>>();
    request.method() == Method::POST
        && request.uri().path() == "/drain"
        && endpoint.zip(caller).is_some_and(|(endpoint, ConnectInfo(caller))| {
            endpoint.ip().to_canonical() == caller.ip().to_canonical()
        })
}

/// How this process reaches its own admin port.
pub(crate) fn own_url(address: SocketAddr) -> String {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_local() {
        for (authority, want) in [
            ("localhost", true),
            ("LOCALHOST:9900", true),
            ("127.0.0.1:9900", true),
            ("127.9.9.9", true),
            ("[::1]:9900", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("localhost.evil.example:9900", false),
            ("evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1:9900", false),
            ("[::2]:9900", false),
            ("localhost:9900@evil.example", false),
            ("[::1]evil", false),
            ("", false),
            ("?", false),
        ] {
            assert_eq!(is_local(authority), want, "{authority}");
        }
    }
}
