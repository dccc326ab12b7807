//! `POST /try/v1/chat/completions`: one chat with a model from the page, through this process's gateway.
//!
//! The page may only speak to its own origin, and clients use another port. So the request is passed on
//! as it is, with the person's own API key, and the gateway's limits apply to it as to any other.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use forebay_base::{dial::dial, http1};

use crate::admin::own_url;

const CHAT: &str = "/v1/chat/completions";
const CONNECT: Duration = Duration::from_secs(2);
/// The person's API key. Not in `authorization`, which may hold the admin port's token: that stays here.
const KEY: HeaderName = HeaderName::from_static("x-forebay-key");
/// Headers that pass back.
const BACK: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::RETRY_AFTER,
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("server-timing"),
    HeaderName::from_static("x-forebay-endpoint"),
];

/// The routes, for a gateway that serves plain HTTP at this address. `GET /try` shows the page that they
/// are there.
pub(crate) fn routes(clients: SocketAddr) -> Router {
    Router::new()
        .route("/try", get(async || StatusCode::NO_CONTENT))
        .route(&format!("/try{CHAT}"), post(relay))
        .with_state(clients)
}

async fn relay(State(clients): State<SocketAddr>, request: Request) -> Response {
    match exchange(clients, request).await {
        Ok(response) => response,
        Err(error) => {
            let why = format!("the gateway does not answer: {error}\n");
            (StatusCode::BAD_GATEWAY, why).into_response()
        }
    }
}

async fn exchange(clients: SocketAddr, request: Request) -> anyhow::Result<Response> {
    let url = own_url(clients);
    let authority = url.trim_start_matches("http://");
    let stream = dial(authority, CONNECT).await?;
    let (head, body) = request.into_parts();
    let mut onward = Request::post(CHAT)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(key) = head.headers.get(KEY).and_then(|key| key.to_str().ok()) {
        onward = onward.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    let (head, body) = http1::send(stream, onward.body(body)?).await?.into_parts();
    let mut answer = Response::builder().status(head.status);
    for name in BACK {
        if let Some(value) = head.headers.get(&name) {
            answer = answer.header(name, value);
        }
    }
    Ok(answer.header(header::CACHE_CONTROL, "no-store").body(Body::new(body))?)
}
