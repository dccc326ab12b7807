//! All that a client can be told by the gateway itself, in vLLM's shape.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;

use crate::answer::api::{ErrorShape, anthropic_error, openai_error};
use crate::answer::failure::{Cause, Failure};
use crate::answer::limit::Limit;
use crate::answer::outcome::{Outcome, SHUTTING_DOWN, TOO_LONG};

/// Why a request is not answered by a replica.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("The path `{0}` is not served here.")]
    UnknownPath(String),
    #[error(
        "The path `{path}` is not exposed. The gateway exposes only what `gateway.paths` of its \
         configuration lists: {exposed}."
    )]
    NotExposed { path: String, exposed: Arc<str> },
    #[error("The path `{path}` takes {allowed} requests, not {method}.")]
    WrongMethod { path: String, method: String, allowed: &'static str },
    #[error("The request's head is not valid: {0}.")]
    BadHead(&'static str),
    #[error(
        "The host `{0}` is not this machine's, and `gateway.allowedHosts` of the configuration \
         (`--allowed-host` of `forebay dev`) does not list it. Without an API key the gateway serves \
         only requests for hosts that are its own."
    )]
    ForeignHost(String),
    #[error(
        "The origin `{0}` is not this gateway's own, and `gateway.cors` of the configuration does not \
         list it. Without an API key, pages of other sites may not send requests."
    )]
    ForeignOrigin(String),
    #[error("The request body must be JSON that says so: send `content-type: application/json`.")]
    NotJson,
    #[error(
        "The request body is compressed (`content-encoding: {0}`), which the gateway does not read. \
         Send it uncompressed."
    )]
    Compressed(String),
    #[error("The only expectation that can be met is `100-continue`.")]
    Expectation,
    #[error("This path is a WebSocket: it takes an HTTP/1.1 request with `upgrade: websocket`.")]
    UpgradeRequired,
    #[error("The request has more than {0} headers.")]
    TooManyHeaders(u16),
    #[error("{0}")]
    BadBody(String),
    #[error("{message}")]
    BadRequest { message: String, param: Option<&'static str> },
    #[error("The request body is larger than the limit of {0} bytes.")]
    BodyTooLarge(u64),
    #[error("The request body did not arrive within {0:?}.")]
    BodyTooSlow(Duration),
    #[error(
        "The gateway has as many bytes of requests in memory as gateway.limits.bodiesSize allows. \
         Try again in 1 s."
    )]
    BodiesFull,
    #[error(
        "The requests of {0} take as much of the gateway's memory (gateway.limits.bodiesSize) as one \
         may while others need some, too. Try again in 1 s."
    )]
    ClientBodiesFull(String),
    #[error("{0}")]
    Shortage(String),
    #[error("The name in the field `model` is longer than {0} bytes.")]
    LongModel(usize),
    #[error("The model `{model}` does not exist. Known models: {known}.")]
    UnknownModel { model: String, known: String },
    #[error("The field `model` is missing. Known models: {known}.")]
    NoModel { known: String },
    #[error("No API key was given. Send it as `authorization: Bearer KEY` or as `x-api-key: KEY`.")]
    NoKey,
    #[error("The API key is not known.")]
    WrongKey,
    #[error("The tenant `{tenant}` may not use the model `{model}`.")]
    ForbiddenModel { tenant: Arc<str>, model: String },
    #[error(
        "The limit of tenant `{tenant}` is {limit}. Try again in {} s.",
        whole_seconds(*.retry_after)
    )]
    Limited { tenant: Arc<str>, limit: Limit, retry_after: Duration },
    #[error("The queue is full: {held} requests are held already{why}.")]
    QueueFull { held: usize, retry_after: Duration, why: String },
    #[error("No replica had room within {waited:.0?}{why}.")]
    HoldExpired { waited: Duration, retry_after: Duration, why: String },
    #[error(
        "No replica is ready, and none will be in time. Try again in {} s.",
        whole_seconds(*.retry_after)
    )]
    InVain { retry_after: Duration },
    #[error("The request failed {tries} times; the last time: {last}")]
    Exhausted { tries: u32, last: Failure },
    #[error("The request was in flight when three replicas died. It is not given to another.")]
    Poison,
    /// The replicas' own error.
    #[error("{0}")]
    Failed(Failure),
    #[error("The answer was not complete within {0:?}.")]
    TooLong(Duration),
    #[error("The model is no longer served here.")]
    PoolRemoved,
    #[error("The gateway is shutting down.")]
    ShuttingDown,
    /// Nobody is left to read it.
    #[error("The client closed the connection.")]
    ClientLeft,
}

impl Refusal {
    fn kind(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        match self {
            Self::UnknownPath(_) | Self::NotExposed { .. } => {
                (StatusCode::NOT_FOUND, "NotFoundError", None)
            }
            Self::WrongMethod { .. } => {
                (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowedError", None)
            }
            Self::BadHead(_) | Self::NotJson => (StatusCode::BAD_REQUEST, "BadRequestError", None),
            Self::ForeignHost(_) | Self::ForeignOrigin(_) => {
                (StatusCode::FORBIDDEN, "PermissionDeniedError", None)
            }
            Self::Compressed(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaTypeError", None)
            }
            Self::Expectation => (StatusCode::EXPECTATION_FAILED, "BadRequestError", None),
            Self::UpgradeRequired => (StatusCode::UPGRADE_REQUIRED, "BadRequestError", None),
            Self::TooManyHeaders(_) => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "BadRequestError", None)
            }
            Self::BadBody(_) => (StatusCode::BAD_REQUEST, "BadRequestError", None),
            Self::BadRequest { param, .. } => (StatusCode::BAD_REQUEST, "BadRequestError", *param),
            Self::BodyTooLarge(_) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLargeError", None)
            }
            Self::BodyTooSlow(_) => (StatusCode::REQUEST_TIMEOUT, "RequestTimeoutError", None),
            Self::LongModel(_) => (StatusCode::BAD_REQUEST, "BadRequestError", Some("model")),
            Self::UnknownModel { .. } => (StatusCode::NOT_FOUND, "NotFoundError", Some("model")),
            Self::NoModel { .. } => (StatusCode::BAD_REQUEST, "BadRequestError", Some("model")),
            Self::NoKey | Self::WrongKey => (StatusCode::UNAUTHORIZED, "AuthenticationError", None),
            Self::ForbiddenModel { .. } => {
                (StatusCode::FORBIDDEN, "PermissionDeniedError", Some("model"))
            }
            Self::Limited { .. } => (StatusCode::TOO_MANY_REQUESTS, "RateLimitError", None),
            Self::QueueFull { .. } | Self::ClientBodiesFull(_) => {
                (StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsError", None)
            }
            Self::HoldExpired { .. }
            | Self::InVain { .. }
            | Self::ShuttingDown
            | Self::PoolRemoved
            | Self::BodiesFull
            | Self::Shortage(_)
            | Self::Exhausted { last: Failure { cause: Cause::QueueFull, .. }, .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableError", None)
            }
            Self::Exhausted { .. } => (StatusCode::BAD_GATEWAY, "BadGatewayError", None),
            Self::Poison => (StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", None),
            Self::Failed(failure) => {
                let status = StatusCode::from_u16(failure.status);
                (status.unwrap_or(StatusCode::BAD_GATEWAY), failure.kind(), None)
            }
            Self::TooLong(_) => (StatusCode::GATEWAY_TIMEOUT, "GatewayTimeoutError", None),
            // Never seen by anyone; the status that access logs use for it.
            Self::ClientLeft => (StatusCode::REQUEST_TIMEOUT, "ClientClosedRequest", None),
        }
    }

    /// Status and type, as the API's error names them.
    pub(crate) fn status(&self) -> (StatusCode, &'static str) {
        let (status, kind, _) = self.kind();
        (status, kind)
    }

    /// The word for it in figures and logs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::UnknownPath(_) => "unknown_path",
            Self::NotExposed { .. } => "not_exposed",
            Self::BadHead(_) => "bad_head",
            Self::ForeignHost(_) => "foreign_host",
            Self::ForeignOrigin(_) => "foreign_origin",
            Self::NotJson => "not_json",
            Self::Compressed(_) => "compressed",
            Self::Expectation => "expectation",
            Self::WrongMethod { .. } => "wrong_method",
            Self::UpgradeRequired => "upgrade_required",
            Self::TooManyHeaders(_) => "too_many_headers",
            Self::BadBody(_) | Self::BadRequest { .. } | Self::LongModel(_) => "bad_request",
            Self::BodyTooLarge(_) => "body_too_large",
            Self::BodyTooSlow(_) => "body_too_slow",
            Self::BodiesFull => "bodies_full",
            Self::ClientBodiesFull(_) => "client_bodies_full",
            Self::Shortage(_) => "shortage",
            Self::UnknownModel { .. } => "unknown_model",
            Self::NoModel { .. } => "no_model",
            Self::NoKey => "no_key",
            Self::WrongKey => "wrong_key",
            Self::ForbiddenModel { .. } => "forbidden_model",
            Self::Limited { .. } => "limited",
            Self::QueueFull { .. } => "queue_full",
            Self::InVain { .. } => "in_vain",
            Self::HoldExpired { .. } => "hold_expired",
            Self::Exhausted { .. } => "exhausted",
            Self::Poison => "poison",
            Self::Failed(_) => "replica_error",
            Self::TooLong(_) => TOO_LONG,
            Self::PoolRemoved => "pool_removed",
            Self::ShuttingDown => SHUTTING_DOWN,
            Self::ClientLeft => "client_left",
        }
    }

    /// Another pool may have what this one lacks.
    pub(crate) fn for_want_of_room(&self) -> bool {
        matches!(self, Self::QueueFull { .. } | Self::HoldExpired { .. } | Self::InVain { .. })
    }

    /// How a request that ends with it is counted.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::ClientLeft => Outcome::ClientLeft,
            Self::Exhausted { .. } | Self::Poison | Self::Failed(_) | Self::TooLong(_) => {
                Outcome::Failed
            }
            _ => Outcome::Refused,
        }
    }

    fn body(&self, shape: ErrorShape) -> Value {
        let (status, kind, param) = self.kind();
        match shape {
            ErrorShape::Anthropic => anthropic_error(status.as_u16(), &self.to_string()),
            ErrorShape::OpenAi => openai_error(status.as_u16(), kind, &self.to_string(), param),
        }
    }

    /// The whole answer.
    pub(crate) fn response(&self, shape: ErrorShape) -> Response<Bytes> {
        let (status, ..) = self.kind();
        let body = Bytes::from(self.body(shape).to_string());
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self {
            Self::QueueFull { retry_after, .. }
            | Self::HoldExpired { retry_after, .. }
            | Self::InVain { retry_after }
            | Self::Limited { retry_after, .. } => {
                headers.insert(header::RETRY_AFTER, whole_seconds(*retry_after).into());
            }
            Self::NoKey | Self::WrongKey => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Exhausted { .. } if status == StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(1));
            }
            Self::PoolRemoved | Self::Shortage(_) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(1));
            }
            Self::ShuttingDown => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(1));
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Self::UpgradeRequired => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            }
            Self::WrongMethod { allowed, .. } => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
            }
            Self::BodiesFull | Self::ClientBodiesFull(_) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(1));
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Compressed(_) => {
                headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            }
            // What is left of the body is not read, or where it ends is not sure, so the connection
            // can't go on.
            Self::BadHead(_) | Self::BodyTooLarge(_) | Self::BodyTooSlow(_) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// What `retry-after` can say: after less than this it would be too early.
fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_nanos().div_ceil(1_000_000_000) as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_vllms_shape_and_its_own_status() {
        let second = Duration::from_secs(1);
        for (refusal, status) in [
            (Refusal::UnknownPath("/x".into()), 404),
            (Refusal::NotExposed { path: "/x".into(), exposed: "/y".into() }, 404),
            (Refusal::BadHead("no host"), 400),
            (Refusal::ForeignHost("evil.example".into()), 403),
            (Refusal::ForeignOrigin("null".into()), 403),
            (Refusal::NotJson, 400),
            (Refusal::Compressed("gzip".into()), 415),
            (Refusal::Expectation, 417),
            (Refusal::UpgradeRequired, 426),
            (Refusal::TooManyHeaders(100), 431),
            (Refusal::BadBody("broken".into()), 400),
            (Refusal::BodyTooLarge(1), 413),
            (Refusal::BodyTooSlow(second), 408),
            (Refusal::BodiesFull, 503),
            (Refusal::ClientBodiesFull("tenant `a`".into()), 429),
            (Refusal::Shortage("no more files".into()), 503),
            (Refusal::LongModel(256), 400),
            (Refusal::UnknownModel { model: "x".into(), known: "`a`".into() }, 404),
            (Refusal::NoModel { known: "`a`".into() }, 400),
            (Refusal::NoKey, 401),
            (Refusal::WrongKey, 401),
            (Refusal::ForbiddenModel { tenant: "a".into(), model: "m".into() }, 403),
            (
                Refusal::Limited {
                    tenant: "a".into(),
                    limit: Limit::Requests(60),
                    retry_after: second,
                },
                429,
            ),
            (Refusal::QueueFull { held: 1, retry_after: second, why: String::new() }, 429),
            (Refusal::HoldExpired { waited: second, retry_after: second, why: String::new() }, 503),
            (Refusal::InVain { retry_after: second }, 503),
            (Refusal::BadRequest { message: "twice".into(), param: Some("model") }, 400),
            (Refusal::Exhausted { tries: 2, last: Failure::new(Cause::Connect, "reset") }, 502),
            (Refusal::Exhausted { tries: 2, last: Failure::new(Cause::QueueFull, "full") }, 503),
            (Refusal::Failed(Failure::of(500, "a bug".into())), 500),
            (Refusal::Poison, 500),
            (Refusal::TooLong(second), 504),
            (Refusal::PoolRemoved, 503),
            (Refusal::ShuttingDown, 503),
        ] {
            let body = refusal.body(ErrorShape::OpenAi);
            assert_eq!(body["error"]["code"], status, "{refusal}");
            assert_eq!(body["error"]["message"], refusal.to_string());
            assert!(body["error"]["type"].is_string());
            let anthropic = refusal.body(ErrorShape::Anthropic);
            assert_eq!(anthropic["error"]["message"], refusal.to_string());
            let response = refusal.response(ErrorShape::OpenAi);
            assert_eq!(response.status(), status);
            let retry = response.headers().contains_key(header::RETRY_AFTER);
            assert_eq!(retry, matches!(status, 429 | 503), "{refusal}: retry-after");
        }
    }
}
