//! The gateway's own refusals: their statuses, messages and headers, in vLLM's shape.
//!
//! `docs/answers.md` lists them for clients; a test holds that table against this file.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;

use crate::answer::api::{ErrorShape, anthropic_error, openai_error};
use crate::answer::failure::{Cause, Failure};
use crate::answer::limit::Limit;
use crate::answer::outcome::{Outcome, SHUTTING_DOWN, TOO_LONG};

/// The reason why no replica answers a request.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("The path `{0}` is not served here.")]
    UnknownPath(String),
    /// `gateway.paths` does not list the path. `hint`: the path that was probably meant, in a
    /// sentence; may be empty.
    #[error("The path `{path}` is not served here.{hint}")]
    NotExposed { path: String, hint: String },
    #[error("The path `{path}` takes {allowed} requests, not {method}.")]
    WrongMethod { path: String, method: String, allowed: &'static str },
    #[error("The request's head is not valid: {0}.")]
    BadHead(&'static str),
    #[error(
        "The host `{0}` is neither this machine's nor listed in `gateway.allowedHosts` of the \
         configuration (`--allowed-host` of `forebay dev`). Without an API key the gateway serves \
         only requests for its own hosts."
    )]
    ForeignHost(String),
    #[error(
        "The origin `{0}` is neither this gateway's own nor listed in `gateway.cors` of the \
         configuration. Without an API key, pages of other sites may not send requests."
    )]
    ForeignOrigin(String),
    #[error("The request body must be marked as JSON: send `content-type: application/json`.")]
    NotJson,
    #[error(
        "The request body is compressed (`content-encoding: {0}`), which the gateway does not read. \
         Send it uncompressed."
    )]
    Compressed(String),
    #[error("The header `expect` may only be `100-continue`.")]
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
        "The requests in the gateway's memory have reached `gateway.limits.bodiesSize`. Try again \
         in 1 s."
    )]
    BodiesFull,
    #[error(
        "The requests of {0} use their whole share of the gateway's memory \
         (`gateway.limits.bodiesSize`). Try again in 1 s."
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
    #[error("The API key is unknown.")]
    WrongKey,
    #[error("The tenant `{tenant}` may not use the model `{model}`.")]
    ForbiddenModel { tenant: Arc<str>, model: String },
    #[error(
        "The limit of tenant `{tenant}` is {limit}. Try again in {} s.",
        whole_seconds(*.retry_after)
    )]
    Limited { tenant: Arc<str>, limit: Limit, retry_after: Duration },
    #[error(
        "The queue is full: it holds {held} requests{why}. Try again in {} s.",
        whole_seconds(*.retry_after)
    )]
    QueueFull { held: usize, retry_after: Duration, why: String },
    #[error(
        "No replica had room within {waited:.0?}{why}. Try again in {} s.",
        whole_seconds(*.retry_after)
    )]
    HoldExpired { waited: Duration, retry_after: Duration, why: String },
    /// `expected`: when it would start.
    #[error("The request can't start in time{}. Try again in {} s.", expected_in(*.expected), whole_seconds(*.retry_after))]
    CannotStartInTime { expected: Option<Duration>, retry_after: Duration },
    /// `why`: the reason, as far as clients may read it.
    #[error("No replica can be started{why}. Try again in {} s.", whole_seconds(*.retry_after))]
    StartFailed { why: String, retry_after: Duration },
    /// `counted_tries`: the tries at which a replica may have worked on the request. The access log
    /// counts the others as well.
    #[error("All tries failed ({counted_tries} counted). The last failure: {last}")]
    Exhausted { counted_tries: u32, last: Failure },
    #[error(
        "The request was in flight when several replicas died, so it is not sent to another one."
    )]
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
    /// No client reads it; it is for logs.
    #[error("The client closed the connection.")]
    ClientLeft,
}

impl Refusal {
    /// The error's status, type and parameter.
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
            | Self::CannotStartInTime { .. }
            | Self::StartFailed { .. }
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
            // No client sees it: the status is for logs.
            Self::ClientLeft => (StatusCode::REQUEST_TIMEOUT, "ClientClosedRequest", None),
        }
    }

    /// The error's status and type.
    pub(crate) fn status(&self) -> (StatusCode, &'static str) {
        let (status, kind, _) = self.kind();
        (status, kind)
    }

    /// Its label in metrics and logs, which others read: a changed name breaks their queries.
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
            Self::CannotStartInTime { .. } => "in_vain",
            Self::StartFailed { .. } => "start_failed",
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

    /// When the client may try again, for `retry-after`: every 429 and 503 says so.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. }
            | Self::HoldExpired { retry_after, .. }
            | Self::CannotStartInTime { retry_after, .. }
            | Self::StartFailed { retry_after, .. }
            | Self::Limited { retry_after, .. } => Some(*retry_after),
            Self::BodiesFull
            | Self::ClientBodiesFull(_)
            | Self::Shortage(_)
            | Self::PoolRemoved
            | Self::ShuttingDown
            | Self::Exhausted { last: Failure { cause: Cause::QueueFull, .. }, .. } => {
                Some(Duration::from_secs(1))
            }
            Self::UnknownPath(_)
            | Self::NotExposed { .. }
            | Self::WrongMethod { .. }
            | Self::BadHead(_)
            | Self::ForeignHost(_)
            | Self::ForeignOrigin(_)
            | Self::NotJson
            | Self::Compressed(_)
            | Self::Expectation
            | Self::UpgradeRequired
            | Self::TooManyHeaders(_)
            | Self::BadBody(_)
            | Self::BadRequest { .. }
            | Self::BodyTooLarge(_)
            | Self::BodyTooSlow(_)
            | Self::LongModel(_)
            | Self::UnknownModel { .. }
            | Self::NoModel { .. }
            | Self::NoKey
            | Self::WrongKey
            | Self::ForbiddenModel { .. }
            | Self::Exhausted { .. }
            | Self::Poison
            | Self::Failed(_)
            | Self::TooLong(_)
            | Self::ClientLeft => None,
        }
    }

    /// Whether this pool lacks room, so that another pool may serve the request.
    pub(crate) fn is_lack_of_room(&self) -> bool {
        matches!(
            self,
            Self::QueueFull { .. }
                | Self::HoldExpired { .. }
                | Self::CannotStartInTime { .. }
                | Self::StartFailed { .. }
        )
    }

    /// The outcome of a request that ends with it.
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

    pub(crate) fn response(&self, shape: ErrorShape) -> Response<Bytes> {
        let (status, ..) = self.kind();
        let body = Bytes::from(self.body(shape).to_string());
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(retry_after) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, whole_seconds(retry_after).into());
        }
        match self {
            Self::NoKey | Self::WrongKey => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::UpgradeRequired => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            }
            Self::WrongMethod { allowed, .. } => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
            }
            Self::ShuttingDown => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Compressed(_) => {
                headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            }
            // The rest of the body is not read, or the body's end is not known, so the connection
            // can't carry another request.
            Self::BadHead(_)
            | Self::BodyTooLarge(_)
            | Self::BodyTooSlow(_)
            | Self::BodiesFull
            | Self::ClientBodiesFull(_) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// The expected wait in a sentence.
fn expected_in(expected: Option<Duration>) -> String {
    let text = |wait| format!(": it would wait about {} s", whole_seconds(wait));
    expected.map_or_else(String::new, text)
}

/// Whole seconds for `retry-after`, rounded up: any earlier would be too early.
fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_nanos().div_ceil(1_000_000_000) as u64).max(1)
}

#[cfg(test)]
mod tests;
