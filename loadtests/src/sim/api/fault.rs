//! Every error that a client can get, with the real server's texts and shapes.
//!
//! Before a reply has begun, an error is a status and a compact JSON body. In a stream, it is an event
//! whose JSON has Python's spaces, as `json.dumps` writes them.

use crate::sim::engine::Refused;
use crate::sim::text::{quoted, quoted_or_null};
use hyper::StatusCode;

/// One error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    shape: ErrorShape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorShape {
    OpenAi,
    /// `{"detail": …}`: the framework's own.
    Detail,
    /// `{"error": "…"}`: from the check of the key.
    Bare,
    /// From outside the cross-origin layer, and so without its `vary`.
    Outermost,
}

impl Fault {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, shape: ErrorShape::OpenAi }
    }

    /// A request whose fields are valid and make no sense together.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message)
    }

    /// The same, with the parameter and its value in the message, as vLLM writes it.
    pub(crate) fn bad_parameter(message: &str, param: &str, value: Option<&str>) -> Self {
        let value = value.map(|value| format!(", value={value}")).unwrap_or_default();
        let fault = Self::bad_request(format!("{message} (parameter={param}{value})"));
        Self { param: Some(param.into()), ..fault }
    }

    /// Fields of the wrong type, or missing.
    pub(crate) fn validation(message: String, param: Option<String>) -> Self {
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, "Bad Request", message) }
    }

    pub(crate) fn media_type() -> Self {
        let message =
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed";
        Self::validation(message.into(), None)
    }

    pub(crate) fn unreadable() -> Self {
        let fault = Self::bad_request("There was an error parsing the body");
        Self { shape: ErrorShape::Detail, ..fault }
    }

    pub(crate) fn not_found() -> Self {
        let fault = Self::new(StatusCode::NOT_FOUND, "", "Not Found");
        Self { shape: ErrorShape::Detail, ..fault }
    }

    pub(crate) fn method_not_allowed() -> Self {
        let fault = Self::new(StatusCode::METHOD_NOT_ALLOWED, "", "Method Not Allowed");
        Self { shape: ErrorShape::Detail, ..fault }
    }

    pub(crate) fn unauthorized() -> Self {
        let fault = Self::new(StatusCode::UNAUTHORIZED, "", "Unauthorized");
        Self { shape: ErrorShape::Bare, ..fault }
    }

    /// An unknown model. The generate runner names the known ones; the pooling runner does not.
    pub(crate) fn unknown_model(model: &str, aliases: Option<&[String]>) -> Self {
        let message = format!("The model `{model}` does not exist.");
        let Some(aliases) = aliases else {
            return Self::new(StatusCode::NOT_FOUND, "NotFoundError", message);
        };
        let message = format!("{message} Valid aliases: {}.", aliases.join(", "));
        let fault = Self::new(StatusCode::NOT_FOUND, "NotFoundError", message);
        Self { param: Some("model".into()), ..fault }
    }

    pub(crate) fn no_response(id: &str) -> Self {
        let message = format!("Response with id '{id}' not found.");
        let fault = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        Self { param: Some("response_id".into()), ..fault }
    }

    pub(crate) fn lora(status: StatusCode, kind: &'static str, message: String) -> Self {
        Self::new(status, kind, message)
    }

    /// The engine's refusal.
    pub(crate) fn refused(refused: Refused) -> Self {
        match refused {
            Refused::QueueFull => Self::queue_full(),
            Refused::Dead => Self::engine_dead(),
        }
    }

    pub(crate) fn queue_full() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "Service Unavailable",
            "The engine is currently busy and cannot accept new requests. Please try again later \
             or on a different instance.",
        )
    }

    pub(crate) fn engine_dead() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        )
    }

    /// A draining server's reply to a new request.
    pub(crate) fn draining() -> Self {
        let fault = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            "cannot schedule new futures after shutdown",
        );
        Self { shape: ErrorShape::Outermost, ..fault }
    }

    /// Whether the reply carries `vary: Origin`.
    pub(crate) fn varies(&self) -> bool {
        matches!(self.shape, ErrorShape::OpenAi | ErrorShape::Detail)
    }

    /// The body of a plain reply.
    pub(crate) fn body(&self) -> String {
        let message = quoted(&self.message);
        match self.shape {
            ErrorShape::Detail => format!(r#"{{"detail":{message}}}"#),
            ErrorShape::Bare => format!(r#"{{"error":{message}}}"#),
            ErrorShape::OpenAi | ErrorShape::Outermost => format!(
                r#"{{"error":{{"message":{message},"type":"{}","param":{},"code":{}}}}}"#,
                self.kind,
                quoted_or_null(self.param.as_deref()),
                self.status.as_u16()
            ),
        }
    }

    /// The body in Anthropic's shape, for errors that /v1/messages finds itself.
    pub(crate) fn anthropic(&self) -> String {
        format!(
            r#"{{"type":"error","error":{{"type":"{}","message":{}}}}}"#,
            self.kind,
            quoted(&self.message)
        )
    }

    /// The event's data in a stream that has begun.
    pub(crate) fn event(&self) -> String {
        format!(
            r#"{{"error": {{"message": {}, "type": "{}", "param": {}, "code": {}}}}}"#,
            quoted(&self.message),
            self.kind,
            quoted_or_null(self.param.as_deref()),
            self.status.as_u16()
        )
    }
}
