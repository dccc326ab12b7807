//! The paths that clients may use, and what is special about each API.

use serde_json::json;

/// One API of the server, known by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    ChatCompletions,
    Completions,
    Responses,
    Messages,
    /// Answered whole, and without tokens of its own: embeddings, scores, tokenizer.
    Plain,
}

impl Api {
    /// The API at `path`; `None` for all that is not exposed. vLLM leaves some of its paths open
    /// even with a key (`/invocations`, `/metrics`, `/load`), so nothing is passed on unasked.
    pub(crate) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::ChatCompletions,
            "/v1/completions" => Self::Completions,
            "/v1/responses" => Self::Responses,
            "/v1/messages" => Self::Messages,
            "/v1/messages/count_tokens"
            | "/v1/embeddings"
            | "/v1/rerank"
            | "/v2/rerank"
            | "/rerank"
            | "/v1/score"
            | "/score"
            | "/pooling"
            | "/classify"
            | "/tokenize"
            | "/detokenize" => Self::Plain,
            _ => return None,
        })
    }

    /// An error as an event of a stream that has begun, with the end that this API's clients
    /// wait for.
    pub(crate) fn error_event(self, code: u16, kind: &str, message: &str) -> String {
        match self {
            Self::Messages => {
                let body =
                    json!({"type": "error", "error": {"type": "api_error", "message": message}});
                format!("event: error\ndata: {body}\n\n")
            }
            Self::Responses => {
                let body =
                    json!({"type": "error", "code": kind, "message": message, "param": null});
                format!("event: error\ndata: {body}\n\n")
            }
            Self::ChatCompletions | Self::Completions | Self::Plain => {
                let body = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
                format!("data: {body}\n\ndata: [DONE]\n\n")
            }
        }
    }
}
