//! What of a request is the gateway's and the pool's own, so that a replica that refuses those refuses
//! the gateway, and not the client. Pure.

use http::StatusCode;
use serde_json::Value;

use crate::answer::failure::{Cause, Failure};

/// What the client has no part in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ours {
    pub(crate) key: Key,
    /// The model's name as it is sent, where the pool is known to serve it.
    pub(crate) model: Option<String>,
}

/// Whose key a replica is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Key {
    /// The client's, if it gave one.
    #[default]
    Clients,
    /// The pool's.
    Pools,
    /// None: the client's was for the gateway.
    Withheld,
}

impl Ours {
    /// The failure of a replica whose refusal, with this status and body, is not the client's fault.
    pub(crate) fn failure(&self, status: StatusCode, body: &[u8]) -> Option<Failure> {
        let code = status.as_u16();
        let (cause, message) = match (status, self.key) {
            (
                StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::PROXY_AUTHENTICATION_REQUIRED,
                key,
            ) => match key {
                Key::Clients => return None,
                Key::Pools => (
                    Cause::KeyRefused,
                    format!("The replica refused the key of its pool's `apiKeyFile` with {code}."),
                ),
                Key::Withheld => (
                    Cause::KeyRefused,
                    format!(
                        "The replica asked for a key with {code}, and its pool has no `apiKeyFile`."
                    ),
                ),
            },
            (StatusCode::NOT_FOUND, _) => {
                let model = self.model.as_ref().filter(|model| misses(body, model))?;
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
}

/// Whether the body of a 404 says that there is no such model, and not that the path or something
/// else is unknown: by the field or the code that it names, or by the name in its text.
fn misses(body: &[u8], model: &str) -> bool {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &body["error"];
    if error["param"] == "model" || error["code"] == "model_not_found" {
        return true;
    }
    let texts = [error, &error["message"], &body["message"], &body["detail"]];
    texts.into_iter().filter_map(Value::as_str).any(|text| names(text, model))
}

/// Whether `model` stands in `text` by itself, not as a part of another name.
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

    fn cause(key: Key, model: Option<&str>, status: u16, body: &str) -> Option<Cause> {
        let ours = Ours { key, model: model.map(str::to_owned) };
        let status = StatusCode::from_u16(status).expect("a status");
        ours.failure(status, body.as_bytes()).map(|failure| failure.cause)
    }

    #[test]
    fn a_key_is_the_clients_only_where_the_client_sent_it() {
        for status in [401, 403, 407] {
            let of = |key| cause(key, None, status, r#"{"error":"Unauthorized"}"#);
            assert_eq!(of(Key::Clients), None, "{status}");
            assert_eq!(of(Key::Pools), Some(Cause::KeyRefused), "{status}");
            assert_eq!(of(Key::Withheld), Some(Cause::KeyRefused), "{status}");
        }
    }

    #[test]
    fn a_model_that_the_pool_serves_is_missed_by_the_replica() {
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
            // Others.
            (r#"{"error":{"message":"No such model.","code":"model_not_found"}}"#, missing),
            (
                r#"{"type":"error","error":{"type":"not_found_error","message":"model: m"}}"#,
                missing,
            ),
            (r#"{"error":"model 'm' not found"}"#, missing),
            // Another thing is unknown.
            (r#"{"detail":"Not Found"}"#, None),
            (
                r#"{"error":{"message":"Response with id 'm-1' not found.","param":"response_id","code":404}}"#,
                None,
            ),
            (r#"{"error":{"message":"The model `org/m` does not exist."}}"#, None),
            ("", None),
            ("<h1>m</h1>", None),
        ] {
            assert_eq!(cause(Key::Clients, Some("m"), 404, body), want, "{body}");
            assert_eq!(cause(Key::Pools, None, 404, body), None, "nobody knows it: {body}");
        }
    }

    #[test]
    fn a_path_that_is_refused_is_the_replicas_fault_and_what_is_asked_the_clients() {
        for status in [405, 421] {
            assert_eq!(cause(Key::Clients, None, status, ""), Some(Cause::NotServed), "{status}");
        }
        for status in [400, 402, 409, 413, 415, 422, 429, 451] {
            assert_eq!(cause(Key::Pools, Some("m"), status, "`m`"), None, "{status}");
        }
    }
}
