//! The APIs, one file each: the fields that it reads, and the form of its replies.
//!
//! Shared by them: `json` checks fields as pydantic does, `form` decides whether a reply is words, JSON or
//! the call of a tool, `plan` turns fields into work for the engine, `events` turns the engine's output into
//! a stream, `fault` has all errors. Knows nothing of sockets and connections.

pub(crate) mod audio;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod events;
pub(crate) mod fault;
pub(crate) mod form;
pub(crate) mod json;
pub(crate) mod messages;
pub(crate) mod plan;
pub(crate) mod pooling;
pub(crate) mod realtime;
pub(crate) mod responses;
pub(crate) mod tokens;

use crate::sim::text::Prompt;
use json::Check;
use plan::Plan;
use serde_json::{Map, Value};
use std::fmt::Write;

/// `"usage":{…}` of a plain reply. `created`: tokens that were added to the cache; `null` in completions.
fn usage(plan: &Plan, completion_tokens: u32, cached: u32, created: &str) -> String {
    let prompt = plan.prompt_tokens();
    let details = if plan.server.details {
        format!(
            r#"{{"cached_tokens":{cached},"created_cache_tokens":{created},"multimodal_tokens":null}}"#
        )
    } else {
        "null".into()
    };
    format!(
        r#""usage":{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{completion_tokens},"prompt_tokens_details":{details},"completion_tokens_details":null}}"#,
        prompt + completion_tokens,
    )
}

/// `"usage":{…}` of a stream's last chunk.
fn final_usage(plan: &Plan, completion_tokens: u32, cached: u32) -> String {
    let prompt = plan.prompt_tokens();
    let details = if plan.server.details {
        format!(r#","prompt_tokens_details":{{"cached_tokens":{cached},"created_cache_tokens":0}}"#)
    } else {
        String::new()
    };
    format!(
        r#""usage":{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{completion_tokens}{details}}}"#,
        prompt + completion_tokens
    )
}

/// A list of numbers as JSON.
fn numbers(numbers: &[u32]) -> String {
    let mut out = String::from("[");
    for (at, number) in numbers.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        let _ = write!(out, "{comma}{number}");
    }
    out.push(']');
    out
}

/// A prompt of token ids.
fn prompt_of_ids(list: &[Value]) -> Prompt {
    let id = |value: &Value| u32::try_from(value.as_u64().unwrap_or(0)).unwrap_or(u32::MAX);
    Prompt::ids(&list.iter().map(id).collect::<Vec<_>>())
}

/// The messages of a conversation, checked to be a list.
fn conversation<'a>(body: &'a Map<String, Value>, check: &mut Check) -> &'a [Value] {
    match body.get("messages") {
        Some(Value::Array(list)) => list,
        Some(other) => {
            check.wrong("messages", "list_type", "Input should be a valid list", other);
            &[]
        }
        None => {
            check.missing(body, "messages");
            &[]
        }
    }
}

/// A message's text: a string, or the text parts of a list.
fn content(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text")?.as_str()).collect()
        }
        _ => String::new(),
    }
}

/// The conversation as the model reads it.
fn template<'a>(messages: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut text = String::new();
    for (role, content) in messages {
        let _ = write!(text, "<|im_start|>{role}\n{content}<|im_end|>\n");
    }
    text.push_str("<|im_start|>assistant\n");
    text
}

/// `messages` by the template, as OpenAI's chat has them.
fn chat_template(messages: &[Value]) -> String {
    let role = |message: &'_ Value| -> String {
        message.get("role").and_then(Value::as_str).unwrap_or("user").to_owned()
    };
    let turns: Vec<(String, String)> = messages.iter().map(|m| (role(m), content(m))).collect();
    template(turns.iter().map(|(role, content)| (role.as_str(), content.clone())))
}
