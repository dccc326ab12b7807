//! `/v1/messages` and its token count, in Anthropic's shapes.
//!
//! A stream has named events and no `[DONE]`; a reply that was cut has `stop_reason: null`.

use super::super::events::{Dialect, Sink, Tally, Told};
use super::super::fault::Fault;
use super::super::json::{Check, quoted, quoted_or_null};
use super::super::plan::{Ask, DefaultLength, Outcome, Plan, strings};
use super::super::shared::Shared;
use super::super::text::{Prompt, Reason};
use super::chat::escaped;
use super::{content, conversation, template};
use serde_json::{Map, Value};

/// Reads a request.
pub(crate) fn plan(
    shared: &Shared,
    body: &Map<String, Value>,
    request_id: Option<String>,
) -> Result<Plan, Fault> {
    let mut check = Check::new();
    let messages = conversation(body, &mut check);
    let mut ask = Ask::sampling(body, &mut check);
    if !body.contains_key("max_tokens") {
        check.missing(body, "max_tokens");
    }
    check.ok()?;
    ask.stop = strings(body.get("stop_sequences"));
    ask.request_id = request_id;
    let prompts = vec![prompt(body, messages)];
    Plan::new(shared, ask, prompts, DefaultLength::Context, "chatcmpl-")
}

/// `/v1/messages/count_tokens`.
pub(crate) fn count_tokens(shared: &Shared, body: &Map<String, Value>) -> Result<String, Fault> {
    let mut check = Check::new();
    let messages = conversation(body, &mut check);
    let model = check.text(body, "model");
    check.ok()?;
    shared.resolve(model.as_deref())?;
    let count = prompt(body, messages).tokens();
    Ok(format!(
        r#"{{"input_tokens":{count},"context_management":{{"original_input_tokens":{count}}}}}"#
    ))
}

fn prompt(body: &Map<String, Value>, messages: &[Value]) -> Prompt {
    let system = match body.get("system") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => {
            Some(parts.iter().filter_map(|part| part.get("text")?.as_str()).collect())
        }
        _ => None,
    };
    let turns = messages.iter().map(|message| {
        let role = message.get("role").and_then(Value::as_str).unwrap_or("user");
        (role, content(message))
    });
    Prompt::text(&template(system.into_iter().map(|text| ("system", text)).chain(turns)))
}

fn stop_reason(reason: &Reason) -> Option<&'static str> {
    match reason {
        Reason::Length => Some("max_tokens"),
        Reason::Stop => Some("end_turn"),
        Reason::StopString(_) => Some("stop_sequence"),
        Reason::Abort => None,
    }
}

fn stop_sequence(reason: &Reason) -> Option<&str> {
    match reason {
        Reason::StopString(stop) => Some(stop),
        _ => None,
    }
}

/// A plain reply. Fields without a value are left out.
pub(crate) fn whole(plan: &Plan, outcome: &Outcome) -> String {
    let reason = outcome.reasons[0].as_ref().unwrap_or(&Reason::Abort);
    let mut stop = String::new();
    if let Some(why) = stop_reason(reason) {
        stop = format!(r#","stop_reason":"{why}""#);
    }
    if let Some(text) = stop_sequence(reason) {
        stop += &format!(r#","stop_sequence":{}"#, quoted(text));
    }
    format!(
        r#"{{"id":"{}","type":"message","role":"assistant","content":[{{"type":"text","text":{}}}],"model":{}{stop},"usage":{{"input_tokens":{},"output_tokens":{}}}}}"#,
        escaped(&plan.id),
        quoted(&outcome.texts[0]),
        quoted(&plan.model),
        plan.prompt_tokens(),
        outcome.completion_tokens(),
    )
}

/// A streamed reply.
#[derive(Default)]
pub(crate) struct Stream {
    ended: Option<Reason>,
}

impl Dialect for Stream {
    fn open(&mut self, plan: &Plan, out: &mut Sink) {
        let start = format!(
            r#"{{"type":"message_start","message":{{"id":"{}","type":"message","role":"assistant","content":[],"model":{},"stop_reason":null,"stop_sequence":null,"usage":{{"input_tokens":{},"output_tokens":0}}}}}}"#,
            escaped(&plan.id),
            quoted(&plan.model),
            plan.prompt_tokens(),
        );
        out.named("message_start", &start);
        out.named(
            "content_block_start",
            r#"{"type":"content_block_start","content_block":{"type":"text","text":""},"index":0}"#,
        );
    }

    fn token(&mut self, _: &Plan, told: &Told<'_>, out: &mut Sink) {
        if !told.piece.is_empty() {
            let text = quoted(told.piece);
            let data = format!(
                r#"{{"type":"content_block_delta","delta":{{"type":"text_delta","text":{text}}},"index":0}}"#
            );
            out.named("content_block_delta", &data);
        }
        self.ended = told.reason.cloned();
    }

    fn close(&mut self, plan: &Plan, tally: Tally, out: &mut Sink) {
        out.named("content_block_stop", r#"{"type":"content_block_stop","index":0}"#);
        let ended = self.ended.as_ref().unwrap_or(&Reason::Abort);
        let data = format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":{},"stop_sequence":{}}},"usage":{{"input_tokens":{},"output_tokens":{}}}}}"#,
            quoted_or_null(stop_reason(ended)),
            quoted_or_null(stop_sequence(ended)),
            plan.prompt_tokens(),
            tally.completion_tokens,
        );
        out.named("message_delta", &data);
        out.named("message_stop", r#"{"type":"message_stop"}"#);
    }

    // Not recorded from a real server: the API's own shape for an error in a stream.
    fn fail(&mut self, fault: &Fault, out: &mut Sink) {
        out.named("error", &fault.anthropic());
    }
}
