//! `POST /drain?endpoint=IP:PORT`: for a `preStop` hook, which waits here until every gateway has
//! nothing in flight at the pod that is about to stop.
//!
//! A pod needs no token for itself. Its address is its proof, so what it may do ends with it: only
//! a pod that Kubernetes reported is drained so, and only for as long as it is there.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use axum::{Extension, Router};
use forebay_signals::Token;
use http::Request;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::lead::leader::Leadership;

/// As long as nobody says otherwise: the kubelet ends a hook with the grace period.
const PATIENCE: Duration = Duration::from_secs(600);

/// In the extensions of a request without the token: its sender has the endpoint's address.
#[derive(Clone, Copy, Debug)]
pub struct ByItself;

/// One replica to drain; `done` is dropped or told when it is.
pub(crate) struct Ask {
    pub(crate) endpoint: SocketAddr,
    /// Nothing else than its address allows it.
    pub(crate) by_itself: bool,
    pub(crate) done: oneshot::Sender<Result<(), NotAPod>>,
}

/// The endpoint is not a pod's, or not one that Kubernetes reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAPod;

#[derive(Clone)]
struct Desk {
    asks: mpsc::Sender<Ask>,
    leadership: Option<watch::Receiver<Leadership>>,
    token: Option<Token>,
}

#[derive(Deserialize)]
struct Asked {
    endpoint: Option<String>,
    /// Set where a scaler that does not lead passes on what a pod asked for itself.
    #[serde(default)]
    by_itself: bool,
}

type Answer = (StatusCode, String);

/// The route. Asked of one that does not lead, it asks the leader.
pub(crate) fn route(
    asks: mpsc::Sender<Ask>,
    leadership: Option<watch::Receiver<Leadership>>,
    token: Option<Token>,
) -> Router {
    Router::new().route("/drain", post(drain)).with_state(Desk { asks, leadership, token })
}

async fn drain(
    State(desk): State<Desk>,
    Query(asked): Query<Asked>,
    by_itself: Option<Extension<ByItself>>,
    headers: HeaderMap,
) -> Answer {
    let by_itself = by_itself.is_some() || asked.by_itself;
    let endpoint = asked.endpoint.as_deref().and_then(|it| it.parse::<SocketAddr>().ok());
    let Some(endpoint) = endpoint else {
        let usage = "which one? POST /drain?endpoint=IP:PORT\n".to_owned();
        return (StatusCode::BAD_REQUEST, usage);
    };
    let leadership = desk.leadership.as_ref().map(|it| it.borrow().clone());
    // Passed on once: two that take each other for the leader don't play ball with it.
    let passed = headers.contains_key(header::VIA);
    match leadership {
        Some(Leadership::Theirs(url)) if !passed => {
            let passed = pass_on(&url, endpoint, by_itself, desk.token.as_ref());
            let passed = timeout(PATIENCE, passed).await;
            return match passed {
                Ok(Ok(status)) if status.is_success() => (StatusCode::OK, "drained\n".to_owned()),
                Ok(Ok(status)) => (status, format!("the leader answered {status}\n")),
                Ok(Err(error)) => (StatusCode::BAD_GATEWAY, format!("the leader: {error}\n")),
                Err(_) => (StatusCode::GATEWAY_TIMEOUT, "not drained in time\n".to_owned()),
            };
        }
        Some(Leadership::Unknown | Leadership::Theirs(_)) => {
            let why = "no scaler leads now; try again\n".to_owned();
            return (StatusCode::SERVICE_UNAVAILABLE, why);
        }
        Some(Leadership::Ours) | None => {}
    }
    let (done, drained) = oneshot::channel();
    if desk.asks.send(Ask { endpoint, by_itself, done }).await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n".to_owned());
    }
    match timeout(PATIENCE, drained).await {
        Ok(Ok(Ok(()))) => (StatusCode::OK, "drained\n".to_owned()),
        Ok(Ok(Err(NotAPod))) => {
            let why = "only a pod may drain itself without the token of admin.tokenFile\n";
            (StatusCode::FORBIDDEN, why.to_owned())
        }
        Ok(Err(_)) => (StatusCode::SERVICE_UNAVAILABLE, "no longer the leader\n".to_owned()),
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, "not drained in time\n".to_owned()),
    }
}

async fn pass_on(
    url: &str,
    endpoint: SocketAddr,
    by_itself: bool,
    token: Option<&Token>,
) -> Result<StatusCode, String> {
    let authority = url.strip_prefix("http://").unwrap_or(url);
    let stream = TcpStream::connect(authority).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let mut request = Request::post(format!("/drain?endpoint={endpoint}&by_itself={by_itself}"))
        .header(header::HOST, authority)
        .header(header::VIA, "1.1 forebay");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.current()));
    }
    let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|error| error.to_string())?;
    let mut exchange = std::pin::pin!(sender.send_request(request));
    let response = tokio::select! {
        response = exchange.as_mut() => response,
        _ = connection => exchange.await,
    };
    response.map(|response| response.status()).map_err(|error| error.to_string())
}
