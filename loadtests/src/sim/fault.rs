//! Everything a client can be told went wrong, in the real server's words and shapes.
//!
//! A reply that has not begun is a status and a compact JSON body; in a stream that has, the same
//! thing is an event whose JSON has Python's spaces, as `json.dumps` writes it.

use super::quote::{quoted, quoted_or_null};
use hyper::StatusCode;

/// One failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    OpenAi,
    /// `{"detail": …}`, the framework's own.
    Detail,
    /// `{"error": "…"}`, the key check's.
    Bare,
    /// Outside the cross-origin layer, so without its `vary`.
    Outermost,
}

impl Fault {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, shape: Shape::OpenAi }
    }

    /// A request that makes no sense, found after its fields were checked.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message)
    }

    /// The same, with the parameter and its value told in the message, as vLLM does.
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
        Self { shape: Shape::Detail, ..fault }
    }

    pub(crate) fn not_found() -> Self {
        let fault = Self::new(StatusCode::NOT_FOUND, "", "Not Found");
        Self { shape: Shape::Detail, ..fault }
    }

    pub(crate) fn method_not_allowed() -> Self {
        let fault = Self::new(StatusCode::METHOD_NOT_ALLOWED, "", "Method Not Allowed");
        Self { shape: Shape::Detail, ..fault }
    }

    pub(crate) fn unauthorized() -> Self {
        let fault = Self::new(StatusCode::UNAUTHORIZED, "", "Unauthorized");
        Self { shape: Shape::Bare, ..fault }
    }

    /// No such model. The generate runner names those there are; the pooling one does not.
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

    /// What a draining server answers to new work.
    pub(crate) fn draining() -> Self {
        let fault = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            "cannot schedule new futures after shutdown",
        );
        Self { shape: Shape::Outermost, ..fault }
    }

    /// Whether the reply carries `vary: Origin`.
    pub(crate) fn varies(&self) -> bool {
        matches!(self.shape, Shape::OpenAi | Shape::Detail)
    }

    /// The body of a plain reply.
    pub(crate) fn body(&self) -> String {
        let message = quoted(&self.message);
        match self.shape {
            Shape::Detail => format!(r#"{{"detail":{message}}}"#),
            Shape::Bare => format!(r#"{{"error":{message}}}"#),
            Shape::OpenAi | Shape::Outermost => format!(
                r#"{{"error":{{"message":{message},"type":"{}","param":{},"code":{}}}}}"#,
                self.kind,
                quoted_or_null(self.param.as_deref()),
                self.status.as_u16()
            ),
        }
    }

    /// The body in Anthropic's shape, for what /v1/messages finds out itself.
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
