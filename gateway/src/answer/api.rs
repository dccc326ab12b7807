//! The inference APIs, known by their paths, and the peculiarities of each.
//!
//! vLLM serves some paths without checking its key (`/invocations`, `/metrics`, `/load`), so the
//! gateway passes on only the paths that are listed here.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

/// The path of WebSocket sessions, which no [`Api`] has.
pub(crate) const REALTIME: &str = "/v1/realtime";

/// One API of the server. All take `POST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Api {
    ChatCompletions,
    Completions,
    Embeddings,
    Responses,
    Messages,
    CountTokens,
    AudioTranscriptions,
    AudioTranslations,
    Rerank,
    Score,
    Pooling,
    Classify,
    Tokenize,
    Detokenize,
}

/// The end mark of a stream. It shows that the stream is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndMark {
    /// `data: [DONE]`.
    Done,
    /// `event: message_stop`.
    MessageStop,
    /// `event: response.completed`, `response.incomplete` or `response.failed`.
    Response,
}

/// The shape of an API's errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorShape {
    OpenAi,
    Anthropic,
}

impl ErrorShape {
    /// The shape of the errors about `path`, which may be one that no API has.
    pub(crate) fn of(path: &str) -> Self {
        let anthropic = path
            .strip_prefix("/v1/messages")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if anthropic { Self::Anthropic } else { Self::OpenAi }
    }
}

impl Api {
    /// The API at `path`, which must match to the byte: vLLM serves none of these with a doubled
    /// slash, and redirects a path that ends with a slash.
    pub(crate) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::ChatCompletions,
            "/v1/completions" => Self::Completions,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/responses" => Self::Responses,
            "/v1/messages" => Self::Messages,
            "/v1/messages/count_tokens" => Self::CountTokens,
            "/v1/audio/transcriptions" => Self::AudioTranscriptions,
            "/v1/audio/translations" => Self::AudioTranslations,
            "/v1/rerank" | "/v2/rerank" | "/rerank" => Self::Rerank,
            "/v1/score" | "/score" => Self::Score,
            "/pooling" => Self::Pooling,
            "/classify" => Self::Classify,
            "/tokenize" => Self::Tokenize,
            "/detokenize" => Self::Detokenize,
            _ => return None,
        })
    }

    /// Its name by OpenTelemetry's conventions for generative AI, as far as they have one.
    pub(crate) fn operation(self) -> &'static str {
        match self {
            Self::ChatCompletions | Self::Responses | Self::Messages => "chat",
            Self::Completions => "text_completion",
            Self::Embeddings => "embeddings",
            Self::CountTokens => "count_tokens",
            Self::AudioTranscriptions => "transcribe",
            Self::AudioTranslations => "translate",
            Self::Rerank => "rerank",
            Self::Score => "score",
            Self::Pooling => "pool",
            Self::Classify => "classify",
            Self::Tokenize => "tokenize",
            Self::Detokenize => "detokenize",
        }
    }

    /// The end mark of its streams; `None` where there are none.
    pub(crate) fn end_mark(self) -> Option<EndMark> {
        match self {
            Self::ChatCompletions
            | Self::Completions
            | Self::AudioTranscriptions
            | Self::AudioTranslations => Some(EndMark::Done),
            Self::Messages => Some(EndMark::MessageStop),
            Self::Responses => Some(EndMark::Response),
            Self::Embeddings
            | Self::CountTokens
            | Self::Rerank
            | Self::Score
            | Self::Pooling
            | Self::Classify
            | Self::Tokenize
            | Self::Detokenize => None,
        }
    }

    /// Whether the server reports the ids of tokens on request.
    pub(crate) fn reports_token_ids(self) -> bool {
        matches!(self, Self::ChatCompletions | Self::Completions)
    }

    /// Whether `"stream": true` means an event stream.
    pub(crate) fn streams(self) -> bool {
        self.end_mark().is_some()
    }

    /// Whether an answer needs the engine. The server in front of it counts tokens on its own.
    pub(crate) fn takes_engine(self) -> bool {
        !matches!(self, Self::CountTokens | Self::Tokenize | Self::Detokenize)
    }

    /// Whether its streams report usage only where `stream_options.include_usage` asks for it.
    pub(crate) fn usage_on_request(self) -> bool {
        matches!(self, Self::ChatCompletions | Self::Completions)
    }

    /// Whether replicas keep the beginnings of its prompts in their caches.
    pub(crate) fn has_prompt(self) -> bool {
        matches!(self, Self::ChatCompletions | Self::Completions | Self::Responses | Self::Messages)
    }

    /// Whether its bodies are forms with files, not JSON.
    pub(crate) fn multipart(self) -> bool {
        matches!(self, Self::AudioTranscriptions | Self::AudioTranslations)
    }

    /// The shape of its errors.
    pub(crate) fn errors(self) -> ErrorShape {
        match self {
            Self::Messages | Self::CountTokens => ErrorShape::Anthropic,
            _ => ErrorShape::OpenAi,
        }
    }

    /// A heartbeat, which keeps a waiting stream's connection open and which clients ignore: a
    /// comment, or the API's own event for this. `expected`: how long it takes until the request
    /// starts, for a comment.
    pub(crate) fn heartbeat(self, expected: Option<Duration>) -> Bytes {
        let event: &'static [u8] = match self.end_mark() {
            Some(EndMark::MessageStop) => b"event: ping\ndata: {\"type\":\"ping\"}\n\n",
            Some(EndMark::Done | EndMark::Response) | None => b": waiting\n\n",
        };
        let Some(expected) = expected else { return Bytes::from_static(event) };
        let comment = format!(
            ": waiting, the request starts in about {:.0} s\n",
            expected.as_secs_f64().ceil()
        );
        let event = event.strip_prefix(b": waiting\n").unwrap_or(event);
        Bytes::from([comment.as_bytes(), event].concat())
    }

    /// A plain error as the last event of a stream: unchanged where the API's events have the same
    /// form.
    pub(crate) fn plain_error_event(self, status: u16, body: &[u8]) -> Bytes {
        let same_form = matches!(self.end_mark(), Some(EndMark::Done))
            && body.starts_with(b"{")
            && !body.iter().any(|byte| matches!(byte, b'\n' | b'\r'));
        if same_form {
            return Bytes::from([b"data: ", body, b"\n\ndata: [DONE]\n\n"].concat());
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| body["error"][name].as_str();
        let message = text("message").unwrap_or("The replica refused the request.");
        self.error_event(status, text("type").unwrap_or("BadRequestError"), message, 0)
    }

    /// An error as the last event of a stream, with the end mark that this API's clients wait for.
    /// `sequence` numbers the events of `/v1/responses`; other APIs have no such number.
    pub(crate) fn error_event(
        self,
        status: u16,
        kind: &str,
        message: &str,
        sequence: u64,
    ) -> Bytes {
        let text = match self.end_mark() {
            Some(EndMark::MessageStop) => {
                format!("event: error\ndata: {}\n\n", anthropic_error(status, message))
            }
            Some(EndMark::Response) => {
                let body = json!({
                    "type": "error", "code": kind, "message": message, "param": null,
                    "sequence_number": sequence,
                });
                format!("event: error\ndata: {body}\n\n")
            }
            Some(EndMark::Done) | None => {
                let body = openai_error(status, kind, message, None);
                format!("data: {body}\n\ndata: [DONE]\n\n")
            }
        };
        Bytes::from(text)
    }
}

/// An error in OpenAI's shape; `code` is an integer, as in vLLM.
pub(crate) fn openai_error(status: u16, kind: &str, message: &str, param: Option<&str>) -> Value {
    json!({"error": {"message": message, "type": kind, "param": param, "code": status}})
}

/// An error in Anthropic's shape, which has types of its own.
pub(crate) fn anthropic_error(status: u16, message: &str) -> Value {
    let kind = match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": message}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_paths_are_known() {
        for (path, want) in [
            ("/v1/chat/completions", Some(Api::ChatCompletions)),
            ("/v2/rerank", Some(Api::Rerank)),
            ("/score", Some(Api::Score)),
            ("/v1/chat/completions/", None),
            ("//v1/chat/completions", None),
            ("/v1/Chat/completions", None),
            ("/invocations", None),
            ("/metrics", None),
            ("/v1/load_lora_adapter", None),
        ] {
            assert_eq!(Api::of(path), want, "{path}");
        }
    }

    #[test]
    fn a_broken_stream_ends_with_its_apis_own_error_event() {
        let event = |api: Api| {
            let bytes = api.error_event(503, "ServiceUnavailableError", "a \"b\"\n", 7);
            String::from_utf8(bytes.to_vec()).expect("text")
        };
        let openai = "data: {\"error\":{\"code\":503,\"message\":\"a \\\"b\\\"\\n\",\"param\":null,\
                      \"type\":\"ServiceUnavailableError\"}}\n\ndata: [DONE]\n\n";
        assert_eq!(event(Api::ChatCompletions), openai);
        assert_eq!(event(Api::Completions), openai);
        assert_eq!(
            event(Api::Messages),
            "event: error\ndata: {\"error\":{\"message\":\"a \\\"b\\\"\\n\",\
             \"type\":\"overloaded_error\"},\"type\":\"error\"}\n\n"
        );
        assert_eq!(
            event(Api::Responses),
            "event: error\ndata: {\"code\":\"ServiceUnavailableError\",\
             \"message\":\"a \\\"b\\\"\\n\",\"param\":null,\"sequence_number\":7,\
             \"type\":\"error\"}\n\n"
        );
    }

    #[test]
    fn a_plain_error_becomes_an_event_of_its_apis_form() {
        let body = br#"{"error":{"message":"no","type":"BadRequestError","param":"n","code":400}}"#;
        let event = Api::Completions.plain_error_event(400, body);
        let want = [b"data: ", &body[..], b"\n\ndata: [DONE]\n\n"].concat();
        assert_eq!(event, want, "as the replica wrote it");
        let event = Api::Messages.plain_error_event(400, body);
        assert!(event.starts_with(b"event: error\ndata: {\"error\":{\"message\":\"no\""));
        for body in [&b"<html>\n"[..], b""] {
            let event = Api::ChatCompletions.plain_error_event(404, body);
            assert!(event.starts_with(b"data: {\"error\":{\"code\":404,"), "{event:?}");
        }
    }

    #[test]
    fn a_heartbeat_does_not_commit_the_answer() {
        use crate::answer::judge::{Verdict, judge_event};
        use crate::text::sse::SseEvent;
        for api in [Api::ChatCompletions, Api::Completions, Api::Messages, Api::Responses] {
            for expected in [None, Some(Duration::from_millis(41_200))] {
                let beat = api.heartbeat(expected);
                assert!(beat.ends_with(b"\n\n") && !beat.ends_with(b"\n\n\n"), "{api:?}");
                assert_eq!(
                    expected.is_some(),
                    beat.starts_with(b": waiting, the request starts in about 42 s\n")
                );
                assert_eq!(
                    judge_event(api, &SseEvent::read(&beat)).verdict,
                    Verdict::Preamble,
                    "{api:?}"
                );
            }
        }
    }

    #[test]
    fn only_apis_with_an_end_mark_stream() {
        assert!(Api::Responses.streams() && Api::AudioTranslations.streams());
        assert!(!Api::Embeddings.streams() && !Api::CountTokens.streams());
        assert!(Api::AudioTranscriptions.multipart() && !Api::Messages.multipart());
        assert!(Api::Completions.usage_on_request() && !Api::Messages.usage_on_request());
        assert_eq!(Api::CountTokens.errors(), ErrorShape::Anthropic);
        assert_eq!(Api::Responses.errors(), ErrorShape::OpenAi);
        for (path, shape) in [
            ("/v1/messages/batches", ErrorShape::Anthropic),
            ("/v1/messages", ErrorShape::Anthropic),
            ("/v1/messagesx", ErrorShape::OpenAi),
            ("/v1/completions", ErrorShape::OpenAi),
        ] {
            assert_eq!(ErrorShape::of(path), shape, "{path}");
        }
    }
}
