//! Misfits: replicas that are not set up for their pool.
//!
//! The gateway may send its pool's key, and the name of a model that the pool serves. A replica
//! that refuses one of these is at fault itself: another is tried, and the client does not see the
//! refusal. Pure.

use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;

use crate::answer::failure::{Cause, Failure};

/// The parts of a request that every replica of its pool must accept.
#[derive(Clone, Debug, Default)]
pub(crate) struct MisfitCheck {
    pub(crate) key: KeyOwner,
    /// The model's name as it is sent, if the pool is known to serve it.
    pub(crate) model: Option<Arc<str>>,
}

/// The owner of the key that a replica receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KeyOwner {
    /// The client, if it sent one.
    #[default]
    Client,
    Pool,
    /// No key is sent: the client's key was for the gateway.
    Withheld,
}

impl MisfitCheck {
    /// The replica's failure, if its refusal with this status and body is not the client's fault.
    pub(crate) fn failure(&self, status: StatusCode, body: &[u8]) -> Option<Failure> {
        let code = status.as_u16();
        let (cause, message) = match (status, self.key) {
            (
                StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::PROXY_AUTHENTICATION_REQUIRED,
                key,
            ) => match key {
                KeyOwner::Client => return None,
                KeyOwner::Pool => (
                    Cause::KeyRefused,
                    format!("The replica refused the key of its pool's `apiKeyFile` with {code}."),
                ),
                KeyOwner::Withheld => (
                    Cause::KeyRefused,
                    format!(
                        "The replica requires a key (it answered {code}), and its pool has no \
                         `apiKeyFile`."
                    ),
                ),
            },
            (StatusCode::NOT_FOUND, _) => {
                let model = self.missed_model(status, body)?;
                let message =
                    format!("The replica does not know `{model}`, which its pool serves.");
                (Cause::NotServed, message)
            }
            (StatusCode::METHOD_NOT_ALLOWED | StatusCode::MISDIRECTED_REQUEST, _) => (
                Cause::NotServed,
                format!("The replica does not serve the API: it answered {code}."),
            ),
            _ => return None,
        };
        Some(Failure::new(cause, message))
    }

    /// The model that its pool serves and that the replica does not know, if this is its answer.
    pub(crate) fn missed_model(&self, status: StatusCode, body: &[u8]) -> Option<&str> {
        let model = self.model.as_deref().filter(|_| status == StatusCode::NOT_FOUND)?;
        misses(body, model).then_some(model)
    }
}

/// Whether the body of a 404 says that the model is unknown, and not the path or something else.
/// The error's `param` or `code` says so, or its text has the model's name.
fn misses(body: &[u8], model: &str) -> bool {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &body["error"];
    if error["param"] == "model" || error["code"] == "model_not_found" {
        return true;
    }
    let texts = [error, &error["message"], &body["message"], &body["detail"]];
    texts.into_iter().filter_map(Value::as_str).any(|text| names(text, model))
}

/// Whether `text` has `model` as a whole name, and not as a part of another.
fn names(text: &str, model: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '/');
    text.match_indices(model).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + model.len()..]);
        !before.ends_with(part) && !after.starts_with(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(key: KeyOwner, model: Option<&str>, status: u16, body: &str) -> Option<Cause> {
        let check = MisfitCheck { key, model: model.map(Arc::from) };
        let status = StatusCode::from_u16(status).expect("a status");
        check.failure(status, body.as_bytes()).map(|failure| failure.cause)
    }

    #[test]
    fn a_refused_key_is_the_clients_fault_only_if_the_client_sent_it() {
        for status in [401, 403, 407] {
            let of = |key| cause(key, None, status, r#"{"error":"Unauthorized"}"#);
            assert_eq!(of(KeyOwner::Client), None, "{status}");
            assert_eq!(of(KeyOwner::Pool), Some(Cause::KeyRefused), "{status}");
            assert_eq!(of(KeyOwner::Withheld), Some(Cause::KeyRefused), "{status}");
        }
    }

    #[test]
    fn a_404_for_a_model_that_the_pool_serves_is_the_replicas_fault() {
        let missing = Some(Cause::NotServed);
        for (body, want) in [
            // vLLM: chats, embeddings, messages.
            (
                r#"{"error":{"message":"The model `m` does not exist. Valid aliases: tiny.","type":"NotFoundError","param":"model","code":404}}"#,
                missing,
            ),
            (
                r#"{"error":{"message":"The model `m` does not exist.","type":"NotFoundError","param":null,"code":404}}"#,
                missing,
            ),
            (
                r#"{"type":"error","error":{"type":"NotFoundError","message":"The model `m` does not exist."}}"#,
                missing,
            ),
            // Other servers.
            (r#"{"error":{"message":"No such model.","code":"model_not_found"}}"#, missing),
            (
                r#"{"type":"error","error":{"type":"not_found_error","message":"model: m"}}"#,
                missing,
            ),
            (r#"{"error":"model 'm' not found"}"#, missing),
            // The path, or something else, is unknown.
            (r#"{"detail":"Not Found"}"#, None),
            (
                r#"{"error":{"message":"Response with id 'm-1' not found.","param":"response_id","code":404}}"#,
                None,
            ),
            (r#"{"error":{"message":"The model `org/m` does not exist."}}"#, None),
            ("", None),
            ("<h1>m</h1>", None),
        ] {
            assert_eq!(cause(KeyOwner::Client, Some("m"), 404, body), want, "{body}");
            assert_eq!(
                cause(KeyOwner::Pool, None, 404, body),
                None,
                "the pool does not know it either: {body}"
            );
        }
    }

    #[test]
    fn a_refused_method_is_the_replicas_fault_and_a_refused_request_the_clients() {
        for status in [405, 421] {
            assert_eq!(
                cause(KeyOwner::Client, None, status, ""),
                Some(Cause::NotServed),
                "{status}"
            );
        }
        for status in [400, 402, 409, 413, 415, 422, 429, 451] {
            assert_eq!(cause(KeyOwner::Pool, Some("m"), status, "`m`"), None, "{status}");
        }
    }
}
