//! The operators' port: metrics, health, the feeds, decisions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
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

/// Serves until dropped. `metrics` writes out `/metrics`.
pub(crate) async fn serve(
    listener: TcpListener,
    routes: Router,
    metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
    token: Option<String>,
) {
    let guarded = match &token {
        Some(token) => {
            routes.layer(from_fn_with_state(Arc::<str>::from(token.as_str()), authorize))
        }
        None => routes,
    };
    let metrics = get(move || {
        let text = metrics();
        async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text) }
    });
    let app = Router::new()
        .route("/metrics", metrics)
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .merge(guarded);
    // Events are small and each is waited for.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    if let Err(error) =
        axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await
    {
        tracing::error!("the admin port is gone: {error}");
    }
}

async fn authorize(State(token): State<Arc<str>>, request: Request, next: Next) -> Response {
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let sent = sent.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if same(sent.as_bytes(), token.as_bytes()) || drains_itself(&request) {
        next.run(request).await
    } else {
        (
            StatusCode::UNAUTHORIZED,
            "send the token of admin.tokenFile as `authorization: Bearer …`\n",
        )
            .into_response()
    }
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

/// In a time that tells nothing about where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
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
