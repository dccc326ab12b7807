//! `POST /drain?endpoint=IP:PORT`: for a `preStop` hook. It answers when every gateway has nothing in
//! flight at the pod that is about to stop.
//!
//! A pod needs no token to drain itself: its address is its proof. So only a pod that Kubernetes
//! reported may drain itself, and the drain ends when the pod is gone.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use axum::{Extension, Router};
use forebay_base::dial::dial;
use forebay_base::http1;
use forebay_signals::Token;
use http::Request;
use http_body_util::Empty;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::act::HttpAnswer;
use crate::lead::leader::Leadership;

/// Limit for a drain that is never reported done. The kubelet ends a hook with the grace period.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Marks a request without the token (in its extensions): its sender has the endpoint's address.
#[derive(Clone, Copy, Debug)]
pub struct FromEndpoint;

/// One replica to drain. `done` gets the result, or is dropped.
pub(crate) struct DrainRequest {
    pub(crate) endpoint: SocketAddr,
    /// Only its address allows it.
    pub(crate) from_endpoint: bool,
    pub(crate) done: oneshot::Sender<Result<(), NotAPod>>,
}

/// The endpoint is not a pod's, or not one that Kubernetes reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAPod;

#[derive(Clone)]
struct DrainRoute {
    requests: mpsc::Sender<DrainRequest>,
    leadership: Option<watch::Receiver<Leadership>>,
    token: Option<Token>,
}

#[derive(Deserialize)]
struct DrainQuery {
    endpoint: Option<String>,
    /// Set if a scaler that does not lead forwards the request of a pod.
    #[serde(default, rename = "by_itself")]
    from_endpoint: bool,
}

/// The route. A scaler that does not lead forwards the request to the leader.
pub(crate) fn route(
    requests: mpsc::Sender<DrainRequest>,
    leadership: Option<watch::Receiver<Leadership>>,
    token: Option<Token>,
) -> Router {
    let state = DrainRoute { requests, leadership, token };
    Router::new().route("/drain", post(drain)).with_state(state)
}

async fn drain(
    State(route): State<DrainRoute>,
    Query(query): Query<DrainQuery>,
    from_endpoint: Option<Extension<FromEndpoint>>,
    headers: HeaderMap,
) -> HttpAnswer {
    let from_endpoint = from_endpoint.is_some() || query.from_endpoint;
    let endpoint = query.endpoint.as_deref().and_then(|text| text.parse::<SocketAddr>().ok());
    let Some(endpoint) = endpoint else {
        let usage = "which endpoint? POST /drain?endpoint=IP:PORT\n".to_owned();
        return (StatusCode::BAD_REQUEST, usage);
    };
    let leadership = route.leadership.as_ref().map(|leadership| leadership.borrow().clone());
    // Forwarded once only: two scalers that take each other for the leader must not form a loop.
    let forwarded = headers.contains_key(header::VIA);
    match leadership {
        Some(Leadership::Theirs(url)) if !forwarded => {
            let forwarded = forward(&url, endpoint, from_endpoint, route.token.as_ref());
            return match timeout(TIMEOUT, forwarded).await {
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
    if route.requests.send(DrainRequest { endpoint, from_endpoint, done }).await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n".to_owned());
    }
    match timeout(TIMEOUT, drained).await {
        Ok(Ok(Ok(()))) => (StatusCode::OK, "drained\n".to_owned()),
        Ok(Ok(Err(NotAPod))) => {
            let why = "only a pod may drain itself without the token of admin.tokenFile\n";
            (StatusCode::FORBIDDEN, why.to_owned())
        }
        Ok(Err(_)) => (StatusCode::SERVICE_UNAVAILABLE, "no longer the leader\n".to_owned()),
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, "not drained in time\n".to_owned()),
    }
}

async fn forward(
    url: &str,
    endpoint: SocketAddr,
    from_endpoint: bool,
    token: Option<&Token>,
) -> Result<StatusCode, String> {
    let authority = url.strip_prefix("http://").unwrap_or(url);
    let stream = dial(authority, TIMEOUT).await.map_err(|error| error.to_string())?;
    let mut request =
        Request::post(format!("/drain?endpoint={endpoint}&by_itself={from_endpoint}"))
            .header(header::HOST, authority)
            .header(header::VIA, "1.1 forebay");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.current()));
    }
    let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|error| error.to_string())?;
    let response = http1::send(stream, request).await;
    response.map(|response| response.status()).map_err(|error| error.to_string())
}
