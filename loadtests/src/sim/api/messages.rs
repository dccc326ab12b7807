//! `/v1/messages` and its token count, in Anthropic's shapes.
//!
//! A stream has named events and no `[DONE]`; an aborted reply has `stop_reason: null`.

use super::chat::escaped;
use super::{content, conversation, template};
use crate::sim::api::events::{Dialect, Sink, Step, Tally};
use crate::sim::api::fault::Fault;
use crate::sim::api::form::{Offer, ReplyForm, Talk, ToolChoice};
use crate::sim::api::json::Check;
use crate::sim::api::plan::{Completion, DefaultLength, Params, Plan, strings};
use crate::sim::shared::Shared;
use crate::sim::text::{Prompt, Reason, quoted, quoted_or_null};
use serde_json::{Map, Value};

/// Reads a request.
pub(crate) fn plan(
    shared: &Shared,
    body: &Map<String, Value>,
    request_id: Option<String>,
) -> Result<Plan, Fault> {
    let mut check = Check::new();
    let messages = conversation(body, &mut check);
    let mut params = Params::sampling(body, &mut check);
    if !body.contains_key("max_tokens") {
        check.missing(body, "max_tokens");
    }
    check.ok()?;
    params.length.stop = strings(body.get("stop_sequences"));
    params.request_id = request_id;
    shared.resolve(params.model.as_deref())?;
    let offer = offer(body);
    if let Some(name) = offer.unknown() {
        let message = format!("The tool with name '{name}' is not found in the tools list.");
        return Err(Fault::bad_request(message));
    }
    offer.check(&shared.args.replies)?;
    params.output.parsed = offer.is_parsed().then_some("chat_completions");
    params.output.form = match offer.next(&talk(messages)) {
        Some(tool) => ReplyForm::Call(tool),
        None => {
            let format = body.get("output_config").and_then(|config| config.get("format"));
            ReplyForm::formatted(format, format.and_then(|format| format.get("schema")))
        }
    };
    let prompts = vec![prompt(body, messages)];
    Plan::new(shared, params, prompts, DefaultLength::Context, "chatcmpl-")
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
    let tools = body.get("tools").map(Value::to_string).unwrap_or_default();
    let turns = system.into_iter().map(|text| ("system", text)).chain(turns);
    Prompt::text(&(tools + &template(turns)))
}

/// The request's tools and its choice of one.
fn offer(body: &Map<String, Value>) -> Offer {
    let tools = body.get("tools").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let tool = |tool: &Value| {
        let name = tool.get("name")?.as_str()?.to_owned();
        Some((name, tool.get("input_schema").cloned().unwrap_or(Value::Bool(true))))
    };
    let choice = body.get("tool_choice");
    let named = choice.and_then(|choice| choice.get("name")).and_then(Value::as_str);
    let choice = match choice.and_then(|choice| choice.get("type")).and_then(Value::as_str) {
        Some("none") => ToolChoice::Never,
        Some("any") => ToolChoice::Required,
        Some("tool") => ToolChoice::Named(named.unwrap_or_default().to_owned()),
        _ => ToolChoice::Auto,
    };
    Offer { tools: tools.iter().filter_map(tool).collect(), choice }
}

/// The conversation since the user's last message. Results of tools come in messages of the user's, too.
fn talk(messages: &[Value]) -> Talk {
    let mut talk = Talk::default();
    for message in messages {
        let parts = message.get("content").and_then(Value::as_array);
        let parts = parts.map(Vec::as_slice).unwrap_or_default();
        let of = |kind: &str| {
            let kind = Value::from(kind);
            parts.iter().filter(move |part| part.get("type") == Some(&kind))
        };
        let from_user = message.get("role").is_some_and(|role| role == "user");
        if from_user && of("tool_result").next().is_none() {
            talk.user(content(message));
        }
        of("tool_use").for_each(|part| talk.called(part.get("name")));
    }
    talk
}

fn stop_reason(plan: &Plan, reason: &Reason) -> Option<&'static str> {
    match reason {
        Reason::Stop if plan.call.is_some() => Some("tool_use"),
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
pub(crate) fn whole(plan: &Plan, completion: &Completion) -> String {
    let reason = completion.reasons[0].as_ref().unwrap_or(&Reason::Abort);
    let mut stop = String::new();
    if let Some(why) = stop_reason(plan, reason) {
        stop = format!(r#","stop_reason":"{why}""#);
    }
    if let Some(text) = stop_sequence(reason) {
        stop += &format!(r#","stop_sequence":{}"#, quoted(text));
    }
    let text = &completion.texts[0];
    let block = match &plan.call {
        Some(call) if *reason == Reason::Stop => format!(
            r#"{{"type":"tool_use","id":"{}","name":{},"input":{text}}}"#,
            call.ids[0],
            quoted(&call.name)
        ),
        Some(call) => format!(r#"{{"type":"text","text":{}}}"#, quoted(&call.unparsed(text))),
        None => format!(r#"{{"type":"text","text":{}}}"#, quoted(text)),
    };
    format!(
        r#"{{"id":"{}","type":"message","role":"assistant","content":[{block}],"model":{}{stop},{}}}"#,
        escaped(&plan.id),
        quoted(&plan.model),
        usage(plan, completion.completion_tokens(), completion.cached),
    )
}

/// `"usage":{…}`. Cached tokens count apart, where they are reported.
fn usage(plan: &Plan, output: u32, cached: u32) -> String {
    let (input, details) = if plan.server.details {
        let details =
            format!(r#","cache_creation_input_tokens":0,"cache_read_input_tokens":{cached}"#);
        (plan.prompt_tokens() - cached, details)
    } else {
        (plan.prompt_tokens(), String::new())
    };
    format!(r#""usage":{{"input_tokens":{input},"output_tokens":{output}{details}}}"#)
}

/// A streamed reply.
#[derive(Default)]
pub(crate) struct MessageStream {
    ended: Option<Reason>,
}

impl Dialect for MessageStream {
    fn open(&mut self, plan: &Plan, out: &mut Sink) {
        let start = format!(
            r#"{{"type":"message_start","message":{{"id":"{}","type":"message","role":"assistant","content":[],"model":{},"stop_reason":null,"stop_sequence":null,"usage":{{"input_tokens":{},"output_tokens":0}}}}}}"#,
            escaped(&plan.id),
            quoted(&plan.model),
            plan.prompt_tokens(),
        );
        out.named("message_start", &start);
        let block = match &plan.call {
            Some(call) => format!(
                r#"{{"type":"tool_use","id":"{}","name":{},"input":{{}}}}"#,
                call.ids[0],
                quoted(&call.name)
            ),
            None => r#"{"type":"text","text":""}"#.to_owned(),
        };
        let data = format!(r#"{{"type":"content_block_start","content_block":{block},"index":0}}"#);
        out.named("content_block_start", &data);
    }

    fn token(&mut self, plan: &Plan, step: &Step<'_>, out: &mut Sink) {
        if !step.piece.is_empty() {
            let text = quoted(step.piece);
            let delta = match &plan.call {
                Some(_) => format!(r#"{{"type":"input_json_delta","partial_json":{text}}}"#),
                None => format!(r#"{{"type":"text_delta","text":{text}}}"#),
            };
            let data = format!(r#"{{"type":"content_block_delta","delta":{delta},"index":0}}"#);
            out.named("content_block_delta", &data);
        }
        self.ended = step.reason.cloned();
    }

    fn close(&mut self, plan: &Plan, tally: Tally, out: &mut Sink) {
        out.named("content_block_stop", r#"{"type":"content_block_stop","index":0}"#);
        let ended = self.ended.as_ref().unwrap_or(&Reason::Abort);
        let data = format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":{},"stop_sequence":{}}},{}}}"#,
            quoted_or_null(stop_reason(plan, ended)),
            quoted_or_null(stop_sequence(ended)),
            usage(plan, tally.completion_tokens, tally.cached),
        );
        out.named("message_delta", &data);
        out.named("message_stop", r#"{"type":"message_stop"}"#);
    }

    // Not recorded from a real server: the API's own shape for an error in a stream.
    fn fail(&mut self, fault: &Fault, out: &mut Sink) {
        out.named("error", &fault.anthropic());
    }
}
