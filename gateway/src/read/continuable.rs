//! The answers that may be continued on another replica, as far as the request decides it, and the
//! request that does it.
//!
//! The choice is an explicit list: a field that is not on it forbids a continuation, because nothing
//! is known about its effect. `docs/continue.md` has the table.
//!
//! vLLM takes the ids in place of a chat's messages. So the messages are not kept while the answer is
//! streamed, which for a long prompt would take as much memory as the ids.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::answer::api::Api;
use crate::answer::not_continued::NotContinued;
use crate::answer::stream_memory::StreamMemory;
use crate::read::scan::{Layout, Scan};
use crate::text::json::{Cursor, JsonError, JsonKind};

/// The default of `max_tokens` in `/v1/completions`.
const COMPLETION_TOKENS: u64 = 16;
/// The most bytes of a body beside its prompt that are kept.
const LONGEST_REST: usize = 256 << 10;
/// Requests with longer stop strings are not continued.
const LONGEST_STOP: usize = 128;
/// A stand-in for a chat's messages, which a replica checks and does not use.
const NO_MESSAGES: &[u8] = br#"[{"role":"user","content":""}]"#;
/// A stand-in for a prompt.
const NO_PROMPT: &[u8] = br#""""#;

/// A request's body without its prompt, and whether the prompt allows a continuation.
#[derive(Debug)]
pub(crate) struct ContinuableBody {
    api: Api,
    body: Bytes,
    prompt: Result<(), NotContinued>,
    _memory: StreamMemory,
}

/// The settings of a continuation that are the gateway's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ContinuationEdits<'a> {
    /// The name by which the replicas know the model.
    pub(crate) model: Option<&'a str>,
    /// Take out `priority`.
    pub(crate) drop_priority: bool,
}

/// The stop strings of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stops {
    strings: Vec<String>,
    /// An answer may end with one of them.
    included: bool,
}

/// A continuation of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// More tokens, unless the text ends with the beginning of a stop string.
    Tokens(Stops),
    /// No token is left of the limit that the client set.
    NothingLeft,
}

impl ContinuableBody {
    /// Takes over what a continuation needs of a body. Its bytes are copied, so that the memory of a
    /// long prompt is given back. `head`: the bytes of the request's head, which is kept as well.
    pub(crate) fn of(api: Api, body: &Bytes, scan: &Scan, head: usize) -> Self {
        let mut memory = StreamMemory::default();
        let (Layout::Json { .. }, Some(at), stub) = (
            scan.layout,
            scan.prompt.clone(),
            if api == Api::ChatCompletions { NO_MESSAGES } else { NO_PROMPT },
        ) else {
            let prompt = Err(NotContinued::Unreadable);
            return Self { api, body: Bytes::new(), prompt, _memory: memory };
        };
        let prompt = match api {
            Api::ChatCompletions => check_messages(&body[at.clone()]),
            Api::Completions if has_several_prompts(&body[at.clone()]) => {
                Ok(Err(NotContinued::Choices))
            }
            Api::Completions => Ok(Ok(())),
            _ => Ok(Err(NotContinued::Api)),
        };
        let prompt = prompt.unwrap_or(Err(NotContinued::Unreadable));
        let rest = body.len() - at.len();
        if rest > LONGEST_REST || !memory.reach(rest + head) {
            memory.give_back();
            let prompt = Err(NotContinued::Memory);
            return Self { api, body: Bytes::new(), prompt, _memory: memory };
        }
        let body = [&body[..at.start], stub, &body[at.end..]].concat();
        Self { api, body: body.into(), prompt, _memory: memory }
    }

    /// Whether the request allows a continuation behind `answered` tokens of the answer.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn allows(&self, answered: u64) -> Result<Allowed, NotContinued> {
        let mut body = self.read(answered)?;
        if !lower_limits(self.api, &mut body, answered)? {
            return Ok(Allowed::NothingLeft);
        }
        // Without an answer, nothing can lag behind it.
        Ok(Allowed::Tokens(if answered == 0 { Stops::default() } else { Stops::of(&body)? }))
    }

    /// Whether a parser may be between the tokens and the chunks.
    pub(crate) fn is_parsed(&self) -> bool {
        self.api == Api::ChatCompletions
    }

    fn read(&self, answered: u64) -> Result<Map<String, Value>, NotContinued> {
        self.prompt?;
        let read = serde_json::from_slice(&self.body).map_err(|_| NotContinued::Unreadable)?;
        let Value::Object(body) = read else { return Err(NotContinued::Unreadable) };
        body.iter().try_for_each(|(field, value)| {
            match check_field(self.api, field, value) {
                // Nothing has been generated that could be forgotten.
                Err(why) if answered == 0 && why.is_about_the_beginning() => Ok(()),
                result => result,
            }
        })?;
        Ok(body)
    }

    /// The request that goes on behind `ids`: the prompt's, and `answered` of the answer.
    ///
    /// # Errors
    /// The request does not allow a continuation.
    pub(crate) fn next(
        &self,
        ids: &[u32],
        answered: u64,
        edits: ContinuationEdits<'_>,
    ) -> Result<Bytes, NotContinued> {
        let mut body = self.read(answered)?;
        lower_limits(self.api, &mut body, answered)?;
        match self.api {
            Api::ChatCompletions => {
                if body.get("messages") != serde_json::from_slice(NO_MESSAGES).ok().as_ref() {
                    return Err(NotContinued::Unreadable);
                }
                body.insert("kv_transfer_params".into(), json!({ "prompt_token_ids": ids }));
            }
            _ => {
                body.insert("prompt".into(), json!(ids));
            }
        }
        body.insert("return_token_ids".into(), true.into());
        let options = body.entry("stream_options").or_insert(Value::Null);
        if options.is_null() {
            *options = json!({});
        }
        let options = options.as_object_mut().ok_or(NotContinued::Unreadable)?;
        let wanted = options.get("include_usage").is_some_and(|usage| *usage == true);
        if !wanted {
            // Without `include_usage` this flag has no effect.
            options.remove("continuous_usage_stats");
            options.insert("include_usage".into(), true.into());
        }
        if let Some(model) = edits.model {
            body.insert("model".into(), model.into());
        }
        if edits.drop_priority {
            body.remove("priority");
        }
        let body = serde_json::to_vec(&body).map_err(|_| NotContinued::Unreadable)?;
        Ok(body.into())
    }

    /// The request for the text of tokens.
    ///
    /// # Errors
    /// The request does not allow a continuation.
    pub(crate) fn detokenize(
        &self,
        ids: &[u32],
        edits: ContinuationEdits<'_>,
    ) -> Result<Bytes, NotContinued> {
        self.prompt?;
        let body: Value =
            serde_json::from_slice(&self.body).map_err(|_| NotContinued::Unreadable)?;
        let model = edits.model.map_or_else(|| body["model"].clone(), Value::from);
        Ok(json!({ "model": model, "tokens": ids }).to_string().into())
    }
}

impl Stops {
    fn of(body: &Map<String, Value>) -> Result<Self, NotContinued> {
        let list = match body.get("stop") {
            None | Some(Value::Null) => &[][..],
            Some(Value::Array(list)) => list,
            Some(one) => std::slice::from_ref(one),
        };
        let strings = list.iter().map(|stop| stop.as_str().map(str::to_owned));
        let mut strings: Vec<_> = strings.collect::<Option<_>>().ok_or(NotContinued::Unreadable)?;
        strings.retain(|stop| !stop.is_empty());
        if strings.iter().any(|stop| stop.chars().count() > LONGEST_STOP) {
            return Err(NotContinued::Stop);
        }
        let included = body.get("include_stop_str_in_output").is_some_and(|value| *value == true);
        Ok(Self { strings, included })
    }

    /// The number of characters by which the text of chunks lags behind their tokens: vLLM keeps as
    /// much back as may be the beginning of a stop string.
    pub(crate) fn lag(&self) -> usize {
        let longest = self.strings.iter().map(|stop| stop.chars().count()).max();
        if self.included { 0 } else { longest.unwrap_or(1) - 1 }
    }

    /// Whether the text ends with the beginning of one, which the next replica would not recognize.
    pub(crate) fn may_begin_in(&self, text: &str) -> bool {
        let begins = |stop: &String| {
            let cuts = stop.char_indices().skip(1);
            cuts.map(|(at, _)| &stop[..at]).any(|beginning| text.ends_with(beginning))
        };
        self.strings.iter().any(begins)
    }

    pub(crate) fn are_none(&self) -> bool {
        self.strings.is_empty()
    }
}

/// Lowers the limits by the tokens that the client has; false if none is left.
fn lower_limits(
    api: Api,
    body: &mut Map<String, Value>,
    answered: u64,
) -> Result<bool, NotContinued> {
    if api == Api::Completions && body.get("max_tokens").is_none_or(Value::is_null) {
        body.insert("max_tokens".into(), COMPLETION_TOKENS.into());
    }
    let (mut most, mut left) = (None, true);
    // A completion has no `max_completion_tokens`: vLLM ignores it.
    let limits: &[&str] = match api {
        Api::ChatCompletions => &["max_completion_tokens", "max_tokens", "min_tokens"],
        _ => &["max_tokens", "min_tokens"],
    };
    for name in limits.iter().copied() {
        let Some(limit) = body.get_mut(name).filter(|limit| !limit.is_null()) else { continue };
        let count = limit.as_u64().ok_or(NotContinued::Unreadable)?;
        let rest = count.saturating_sub(answered);
        if name == "min_tokens" {
            *limit = rest.into();
            continue;
        }
        // Of the two, vLLM takes the first one that is there.
        if most.is_none() {
            (most, left) = (Some(name), rest > 0);
        }
        *limit = rest.max(1).into();
    }
    Ok(left)
}

/// Whether a field of the body allows a continuation.
fn check_field(api: Api, field: &str, value: &Value) -> Result<(), NotContinued> {
    let refuse = |allowed: bool, why| if allowed { Ok(()) } else { Err(why) };
    if value.is_null() {
        return Ok(());
    }
    let empty = || match value {
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    };
    let is_zero = || value.as_f64() == Some(0.0);
    let is_false = || *value == false;
    match field {
        "model"
        | "messages"
        | "prompt"
        | "stream"
        | "stream_options"
        | "max_tokens"
        | "max_completion_tokens"
        | "min_tokens" => Ok(()),
        // Each token is chosen by these from the model's probabilities alone.
        "temperature" | "top_p" | "top_k" | "min_p" | "logit_bias" | "allowed_token_ids"
        | "stop_token_ids" | "ignore_eos" => Ok(()),
        // This one counts the prompt's tokens as well as the answer's.
        "repetition_penalty" => Ok(()),
        "presence_penalty" | "frequency_penalty" => refuse(is_zero(), NotContinued::Penalties),
        // What is reported of each token.
        "logprobs"
        | "top_logprobs"
        | "return_token_ids"
        | "return_tokens_as_token_ids"
        | "skip_special_tokens"
        | "spaces_between_special_tokens"
        | "include_stop_str_in_output"
        | "include_reasoning" => Ok(()),
        // These shape the prompt, of which the ids are known.
        "add_generation_prompt"
        | "continue_final_message"
        | "add_special_tokens"
        | "chat_template"
        | "chat_template_kwargs"
        | "documents"
        | "reasoning_effort"
        | "cache_salt" => Ok(()),
        // These say who asks, and what for.
        "user"
        | "metadata"
        | "store"
        | "service_tier"
        | "safety_identifier"
        | "prompt_cache_key"
        | "prompt_cache_retention"
        | "priority"
        | "request_id" => Ok(()),
        "n" | "best_of" => refuse(value.as_u64() == Some(1), NotContinued::Choices),
        "use_beam_search" => refuse(is_false(), NotContinued::BeamSearch),
        "echo" => refuse(is_false(), NotContinued::Echo),
        "prompt_logprobs" => Err(NotContinued::PromptLogprobs),
        "response_format" => refuse(value["type"] == "text", NotContinued::StructuredOutput),
        "structured_outputs" | "guided_json" | "guided_regex" | "guided_choice"
        | "guided_grammar" | "structural_tag" => refuse(empty(), NotContinued::StructuredOutput),
        "modalities" => refuse(*value == json!(["text"]), NotContinued::Media),
        "audio" | "mm_processor_kwargs" | "media_io_kwargs" | "prompt_embeds" => {
            refuse(empty(), NotContinued::Media)
        }
        // A call that has not been passed on begins anew. For one of these, vLLM makes a grammar.
        "tools" if api == Api::ChatCompletions => refuse(!has_strict(value), NotContinued::Tools),
        "parallel_tool_calls" if api == Api::ChatCompletions => {
            refuse(*value != false, NotContinued::Tools)
        }
        "tools" | "functions" => refuse(empty(), NotContinued::Tools),
        "tool_choice" | "function_call" => {
            refuse(*value == "none" || *value == "auto", NotContinued::Tools)
        }
        "parallel_tool_calls" => Ok(()),
        // The continuation looks at these.
        "stop" => Ok(()),
        "seed" => Err(NotContinued::Seed),
        "kv_transfer_params" => Err(NotContinued::KvTransferParams),
        "bad_words" | "suffix" | "logits_processors" | "vllm_xargs" => {
            refuse(empty(), NotContinued::UnknownField)
        }
        _ => Err(NotContinued::UnknownField),
    }
}

/// Whether a tool asks for calls that keep strictly to its schema.
fn has_strict(tools: &Value) -> bool {
    let tools = tools.as_array().map(Vec::as_slice).unwrap_or_default();
    tools.iter().any(|tool| tool["function"]["strict"] == true || tool["strict"] == true)
}

/// Whether a chat's messages have nothing but text.
fn check_messages(messages: &[u8]) -> Result<Result<(), NotContinued>, JsonError> {
    let mut cursor = Cursor::new(messages);
    let mut first = true;
    if !cursor.enter_array()? {
        return Ok(Err(NotContinued::Unreadable));
    }
    while cursor.next_element(&mut first)? {
        let mut first = true;
        if !cursor.enter_object()? {
            return Ok(Err(NotContinued::Unreadable));
        }
        while let Some(key) = cursor.next_key(&mut first)? {
            let content = key.text.decode().is_some_and(|key| key == "content");
            if !content || cursor.kind()? != JsonKind::Array {
                cursor.skip()?;
            } else if !has_only_text(&mut cursor)? {
                return Ok(Err(NotContinued::Media));
            }
        }
    }
    Ok(Ok(()))
}

/// Whether all parts of a message's content are text.
fn has_only_text(cursor: &mut Cursor<'_>) -> Result<bool, JsonError> {
    let (mut first, mut only) = (true, true);
    cursor.enter_array()?;
    while cursor.next_element(&mut first)? {
        if cursor.kind()? == JsonKind::String {
            cursor.skip()?;
            continue;
        }
        let mut first = true;
        if !cursor.enter_object()? {
            return Ok(false);
        }
        while let Some(key) = cursor.next_key(&mut first)? {
            // vLLM also takes parts without a type, such as `{"image_url": …}`.
            match key.text.decode().as_deref() {
                Some("type") => {
                    let kind = cursor.text()?.and_then(|kind| kind.decode());
                    only &= matches!(kind.as_deref(), Some("text" | "refusal"));
                }
                Some("text" | "refusal" | "cache_control") => cursor.skip()?,
                _ => {
                    only = false;
                    cursor.skip()?;
                }
            }
        }
    }
    Ok(only)
}

/// Whether a completion's prompt is a list of several: of texts, or of lists of ids.
pub(crate) fn has_several_prompts(prompt: &[u8]) -> bool {
    let mut cursor = Cursor::new(prompt);
    let mut several = || -> Result<bool, JsonError> {
        let mut first = true;
        if !cursor.enter_array()? || !cursor.next_element(&mut first)? {
            return Ok(false);
        }
        if !matches!(cursor.kind()?, JsonKind::String | JsonKind::Array) {
            return Ok(false);
        }
        cursor.skip()?;
        cursor.next_element(&mut first)
    };
    several().unwrap_or(false)
}

#[cfg(test)]
mod tests;
