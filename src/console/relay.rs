//! `POST /try/v1/chat/completions`: one chat with a model from the page, through a gateway.
//!
//! The page may only speak to its own origin, and clients use another port. So the request is passed on
//! as it is, with the person's own API key, and the gateway's limits apply to it as to any other. Its id
//! marks it: the page asks for its replica and hold time by that, which clients don't learn.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use forebay_base::{dial::dial, http1};
use forebay_config::Config;
use forebay_gateway::TRY_PREFIX;

use crate::addresses::url;
use crate::admin::own_url;

const CHAT: &str = "/v1/chat/completions";
const CONNECT: Duration = Duration::from_secs(2);
/// The person's API key. Not in `authorization`, which may hold the admin port's token: that stays here.
const KEY: HeaderName = HeaderName::from_static("x-forebay-key");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Headers that pass back.
const BACK: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::RETRY_AFTER,
    REQUEST_ID,
    HeaderName::from_static("server-timing"),
];

/// The way to a gateway: its address for clients, or the reason why there is none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Way {
    Through(Arc<str>),
    None(&'static str),
}

impl Way {
    /// The way of this configuration. `own` is the address for clients of the gateway in this process.
    pub(crate) fn of(config: &Config, own: Option<SocketAddr>) -> anyhow::Result<Self> {
        let url = match (&config.scaler.gateway_address, own) {
            (Some(address), _) => url(address)?,
            (None, Some(own)) if config.gateway.tls.is_none() => own_url(own),
            (None, Some(_)) => {
                return Ok(Self::None(
                    "the gateway speaks TLS with clients, and this page speaks plain HTTP with it; name another \
                     gateway in scaler.gatewayAddress",
                ));
            }
            (None, None) => {
                return Ok(Self::None(
                    "the gateways run in other processes; name their address for clients in \
                     scaler.gatewayAddress (plain HTTP)",
                ));
            }
        };
        Ok(Self::Through(url.trim_start_matches("http://").into()))
    }
}

/// The routes. `GET /try` shows the page whether they lead anywhere.
pub(crate) fn routes(way: Way) -> Router {
    Router::new()
        .route(
            "/try",
            get(async |State(way): State<Way>| match way {
                Way::Through(_) => StatusCode::NO_CONTENT.into_response(),
                Way::None(why) => unavailable(why),
            }),
        )
        .route(&format!("/try{CHAT}"), post(relay))
        .with_state(way)
}

fn unavailable(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

async fn relay(State(way): State<Way>, request: Request) -> Response {
    let authority = match &way {
        Way::Through(authority) => authority,
        Way::None(why) => return unavailable(why),
    };
    match exchange(authority, request).await {
        Ok(response) => response,
        Err(error) => {
            let why = format!("the gateway at {authority} does not answer: {error}\n");
            (StatusCode::BAD_GATEWAY, why).into_response()
        }
    }
}

async fn exchange(authority: &str, request: Request) -> anyhow::Result<Response> {
    let stream = dial(authority, CONNECT).await?;
    let (head, body) = request.into_parts();
    let mut onward = Request::post(CHAT)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(REQUEST_ID, format!("{TRY_PREFIX}{:032x}", rand::random::<u128>()));
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
    let answer = answer.header(header::CACHE_CONTROL, "no-store").header("x-accel-buffering", "no");
    Ok(answer.body(Body::new(body))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_the_configured_one_or_to_the_gateway_in_this_process_unless_it_speaks_tls() {
        let own = Some(SocketAddr::from(([0, 0, 0, 0], 8080)));
        let way = |config: &Config, own| Way::of(config, own).expect("valid");
        let through = |authority: &str| Way::Through(authority.into());
        let mut config = Config::default();
        assert_eq!(way(&config, own), through("127.0.0.1:8080"));
        assert!(
            matches!(way(&config, None), Way::None(why) if why.contains("scaler.gatewayAddress"))
        );
        config.gateway.tls = serde_saphyr::from_str("{certFile: c, keyFile: k}").expect("TLS");
        assert!(matches!(way(&config, own), Way::None(why) if why.contains("TLS")));
        config.scaler.gateway_address = Some("http://forebay:80".to_owned());
        for own in [own, None] {
            assert_eq!(way(&config, own), through("forebay:80"));
        }
    }
}
