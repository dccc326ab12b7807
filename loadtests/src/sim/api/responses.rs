//! `/v1/responses`: named and numbered events, and no `[DONE]`. A reply that ends by its length is a
//! `response.completed` with status "incomplete"; an aborted one has status "completed".

use super::chat::escaped;
use super::{content, template};
use crate::sim::api::events::{Dialect, Sink, Step, Tally};
use crate::sim::api::fault::Fault;
use crate::sim::api::form::{Offer, ReplyForm, Talk, ToolChoice};
use crate::sim::api::json::Check;
use crate::sim::api::plan::{Completion, DefaultLength, Params, Plan};
use crate::sim::shared::Shared;
use crate::sim::text::{Prompt, Reason, quoted, quoted_or_null};
use crate::sim::wall;
use serde_json::{Map, Value};

/// Fields that a reply repeats from its request.
#[derive(Debug, Clone)]
pub(crate) struct Echoed {
    instructions: Option<String>,
    temperature: f64,
    top_p: f64,
    max_output_tokens: u32,
    tool_choice: String,
    tools: String,
    text: String,
    item_id: String,
}

/// Reads a request.
pub(crate) fn plan(
    shared: &Shared,
    body: &Map<String, Value>,
    request_id: Option<String>,
) -> Result<(Plan, Echoed), Fault> {
    let mut check = Check::new();
    let mut params = Params::sampling(body, &mut check);
    params.length.max_tokens = check.int(body, "max_output_tokens");
    let instructions = check.text(body, "instructions");
    let top_p = check.float(body, "top_p").unwrap_or(1.0);
    let mut turns: Vec<(String, String)> = Vec::new();
    let mut talk = Talk::default();
    turns.extend(instructions.iter().map(|text| ("system".to_owned(), text.clone())));
    match body.get("input") {
        Some(Value::String(text)) => {
            talk.user(text.clone());
            turns.push(("user".into(), text.clone()));
        }
        Some(Value::Array(items)) => {
            for item in items {
                let kind = item.get("type").and_then(Value::as_str).unwrap_or("message");
                let role = item.get("role").and_then(Value::as_str).unwrap_or("user");
                match kind {
                    "message" if role == "user" => talk.user(content(item)),
                    "function_call" => talk.called(item.get("name")),
                    _ => {}
                }
                turns.push((role.to_owned(), content(item)));
            }
        }
        Some(other) => check.wrong("input", "string_type", "Input should be a valid string", other),
        None => check.missing(body, "input"),
    }
    check.ok()?;
    params.request_id = request_id;
    shared.resolve(params.model.as_deref())?;
    let offer = offer(body);
    let refused = match offer.choice {
        ToolChoice::Required if offer.tools.is_empty() => {
            Some("Tool choice 'required' must be specified with 'tools' parameter.")
        }
        _ => offer.unknown().map(|_| "Tool choice 'function' not found in 'tools' parameter."),
    };
    if let Some(message) = refused {
        return Err(Fault::bad_parameter(message, "tool_choice", None));
    }
    offer.check(&shared.args.replies)?;
    params.output.parsed = offer.is_parsed().then_some("responses");
    let format = body.get("text").and_then(|text| text.get("format"));
    params.output.form = match offer.next(&talk) {
        Some(tool) => ReplyForm::Call(tool),
        None => ReplyForm::formatted(format, format.and_then(|format| format.get("schema"))),
    };
    let temperature = params.temperature.unwrap_or(1.0);
    let text = template(turns.iter().map(|(role, text)| (role.as_str(), text.clone())));
    let tools = body.get("tools").map(Value::to_string).unwrap_or_default();
    let prompts = vec![Prompt::text(&(tools + &text))];
    let plan = Plan::new(shared, params, prompts, DefaultLength::Context, "resp_")?;
    let echoed = Echoed {
        instructions,
        temperature,
        top_p,
        max_output_tokens: plan.max_tokens,
        tool_choice: match body.get("tool_choice") {
            Some(choice) if !offer.tools.is_empty() => choice.to_string(),
            _ if offer.tools.is_empty() => r#""none""#.to_owned(),
            _ => r#""auto""#.to_owned(),
        },
        tools: echoed_tools(body),
        text: format.map_or_else(|| "null".to_owned(), echoed_format),
        item_id: format!("{}_{}", if plan.call.is_some() { "fc" } else { "msg" }, wall::id16()),
    };
    Ok((plan, echoed))
}

/// The functions among the request's tools, and its choice of one.
fn offer(body: &Map<String, Value>) -> Offer {
    let tools = body.get("tools").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let function = |tool: &Value| {
        let name = tool.get("name")?.as_str()?.to_owned();
        Some((name, tool.get("parameters").cloned().unwrap_or(Value::Bool(true))))
    };
    let choice = match body.get("tool_choice") {
        Some(Value::String(choice)) if choice == "none" => ToolChoice::Never,
        Some(Value::String(choice)) if choice == "required" => ToolChoice::Required,
        Some(Value::Object(named)) => {
            let name = named.get("name").and_then(Value::as_str).unwrap_or_default();
            ToolChoice::Named(name.to_owned())
        }
        _ => ToolChoice::Auto,
    };
    Offer { tools: tools.iter().filter_map(function).collect(), choice }
}

/// `text` of a reply to a request with a format.
fn echoed_format(format: &Value) -> String {
    let format = match format.get("type").and_then(Value::as_str) {
        Some("json_schema") => format!(
            r#"{{"name":{},"schema":{},"type":"json_schema","description":{},"strict":{}}}"#,
            field(format, "name"),
            field(format, "schema"),
            field(format, "description"),
            field(format, "strict"),
        ),
        _ => format!(r#"{{"type":{}}}"#, field(format, "type")),
    };
    format!(r#"{{"format":{format},"verbosity":null}}"#)
}

fn field(of: &Value, name: &str) -> String {
    of.get(name).map_or_else(|| "null".to_owned(), Value::to_string)
}

fn echoed_tools(body: &Map<String, Value>) -> String {
    let tools = body.get("tools").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let one = |tool: &Value| {
        format!(
            r#"{{"name":{},"parameters":{},"strict":{},"type":"function","allowed_callers":null,"async":null,"defer_loading":null,"description":{},"output_schema":null}}"#,
            field(tool, "name"),
            field(tool, "parameters"),
            field(tool, "strict"),
            field(tool, "description"),
        )
    };
    tools.iter().map(one).collect::<Vec<_>>().join(",")
}

/// The stage of a reply.
enum Stage<'a> {
    Begun,
    Ended { reason: &'a Reason, text: &'a str, tokens: u32, cached: u32 },
}

fn response(plan: &Plan, echoed: &Echoed, stage: &Stage<'_>) -> String {
    let (incomplete, output, status, usage) = match stage {
        Stage::Begun => ("null", String::new(), "in_progress", "null".to_owned()),
        Stage::Ended { reason, text, tokens, cached } => {
            let (incomplete, status) = match reason {
                Reason::Length => (r#"{"reason":"max_output_tokens"}"#, "incomplete"),
                _ => ("null", "completed"),
            };
            let input = plan.prompt_tokens();
            let usage = format!(
                r#"{{"input_tokens":{input},"input_tokens_details":{{"cached_tokens":{cached},"cache_write_tokens":0,"input_tokens_per_turn":[],"cached_tokens_per_turn":[]}},"output_tokens":{tokens},"output_tokens_details":{{"reasoning_tokens":0,"tool_output_tokens":0,"output_tokens_per_turn":[],"tool_output_tokens_per_turn":[]}},"total_tokens":{}}}"#,
                input + tokens
            );
            (incomplete, item(plan, echoed, Some(text)), status, usage)
        }
    };
    format!(
        r#"{{"id":"{}","created_at":{},"incomplete_details":{incomplete},"instructions":{},"metadata":null,"model":{},"object":"response","output":[{output}],"parallel_tool_calls":true,"temperature":{:?},"tool_choice":{},"tools":[{}],"top_p":{:?},"background":false,"max_output_tokens":{},"max_tool_calls":null,"previous_response_id":null,"prompt":null,"reasoning":null,"service_tier":"auto","status":"{status}","text":{},"top_logprobs":null,"truncation":"disabled","usage":{usage},"user":null,"presence_penalty":0.0,"frequency_penalty":0.0,"kv_transfer_params":null,"ec_transfer_params":null,"input_messages":null,"output_messages":null}}"#,
        escaped(&plan.id),
        plan.created,
        quoted_or_null(echoed.instructions.as_deref()),
        quoted(&plan.model),
        echoed.temperature,
        echoed.tool_choice,
        echoed.tools,
        echoed.top_p,
        echoed.max_output_tokens,
        echoed.text,
    )
}

fn item(plan: &Plan, echoed: &Echoed, text: Option<&str>) -> String {
    if let Some(call) = &plan.call {
        return format!(
            r#"{{"arguments":{},"call_id":"{}","name":{},"type":"function_call","id":"{}","async":null,"caller":null,"namespace":null,"status":"{}"}}"#,
            quoted(text.unwrap_or_default()),
            call.ids[0],
            quoted(&call.name),
            echoed.item_id,
            if text.is_some() { "completed" } else { "in_progress" },
        );
    }
    let (content, status) = match text {
        Some(text) => (part(text, "null"), "completed"),
        None => (String::new(), "in_progress"),
    };
    format!(
        r#"{{"id":"{}","content":[{content}],"role":"assistant","status":"{status}","type":"message","phase":null}}"#,
        echoed.item_id
    )
}

fn part(text: &str, logprobs: &str) -> String {
    let text = quoted(text);
    format!(r#"{{"annotations":[],"text":{text},"type":"output_text","logprobs":{logprobs}}}"#)
}

/// A plain reply.
pub(crate) fn whole(plan: &Plan, echoed: &Echoed, completion: &Completion) -> String {
    let stage = Stage::Ended {
        reason: completion.reasons[0].as_ref().unwrap_or(&Reason::Abort),
        text: &completion.texts[0],
        tokens: completion.completion_tokens(),
        cached: completion.cached,
    };
    response(plan, echoed, &stage)
}

/// A streamed reply.
pub(crate) struct ResponseStream {
    echoed: Echoed,
    text: String,
    number: u32,
    ended: Option<Reason>,
}

impl ResponseStream {
    pub(crate) fn new(echoed: Echoed) -> Self {
        Self { echoed, text: String::new(), number: 0, ended: None }
    }

    /// Writes one event; `before` and `after` are the fields around its number.
    fn emit(&mut self, out: &mut Sink, name: &str, before: &str, after: &str) {
        self.emit_with(out, name, before, after, "");
    }

    /// The same, with fields behind its type.
    fn emit_with(&mut self, out: &mut Sink, name: &str, before: &str, after: &str, last: &str) {
        let number = self.number;
        self.number += 1;
        let data =
            format!(r#"{{{before},"sequence_number":{number}{after},"type":"{name}"{last}}}"#);
        out.named(name, &data);
    }
}

impl Dialect for ResponseStream {
    fn open(&mut self, plan: &Plan, out: &mut Sink) {
        let begun = format!(r#""response":{}"#, response(plan, &self.echoed, &Stage::Begun));
        self.emit(out, "response.created", &begun, "");
        self.emit(out, "response.in_progress", &begun, "");
        let added = format!(r#""item":{},"output_index":0"#, item(plan, &self.echoed, None));
        self.emit(out, "response.output_item.added", &added, "");
        if plan.call.is_some() {
            return;
        }
        let added = format!(
            r#""content_index":0,"item_id":"{}","output_index":0,"part":{}"#,
            self.echoed.item_id,
            part("", "[]")
        );
        self.emit(out, "response.content_part.added", &added, "");
    }

    fn token(&mut self, plan: &Plan, step: &Step<'_>, out: &mut Sink) {
        if !step.piece.is_empty() {
            self.text.push_str(step.piece);
            let (text, id) = (quoted(step.piece), &self.echoed.item_id);
            if plan.call.is_some() {
                let delta = format!(r#""delta":{text},"item_id":"{id}","output_index":0"#);
                self.emit(out, "response.function_call_arguments.delta", &delta, "");
            } else {
                let delta = format!(
                    r#""content_index":0,"delta":{text},"item_id":"{id}","logprobs":[],"output_index":0"#
                );
                self.emit(out, "response.output_text.delta", &delta, "");
            }
        }
        self.ended = step.reason.cloned();
    }

    fn close(&mut self, plan: &Plan, tally: Tally, out: &mut Sink) {
        let id = self.echoed.item_id.clone();
        let text = quoted(&self.text);
        if let Some(call) = &plan.call {
            let name = format!(r#","name":{}"#, quoted(&call.name));
            let done = format!(r#""arguments":{text},"item_id":"{id}","output_index":0"#);
            self.emit_with(out, "response.function_call_arguments.done", &done, "", &name);
        } else {
            let done =
                format!(r#""content_index":0,"item_id":"{id}","logprobs":[],"output_index":0"#);
            self.emit(out, "response.output_text.done", &done, &format!(r#","text":{text}"#));
            let done = format!(
                r#""content_index":0,"item_id":"{id}","output_index":0,"part":{}"#,
                part(&self.text, "null")
            );
            self.emit(out, "response.content_part.done", &done, "");
        }
        let item = item(plan, &self.echoed, Some(&self.text));
        let done = format!(r#""item":{item},"output_index":0"#);
        self.emit(out, "response.output_item.done", &done, "");
        let stage = Stage::Ended {
            reason: self.ended.as_ref().unwrap_or(&Reason::Abort),
            text: &self.text,
            tokens: tally.completion_tokens,
            cached: tally.cached,
        };
        let ended = format!(r#""response":{}"#, response(plan, &self.echoed, &stage));
        self.emit(out, "response.completed", &ended, "");
    }

    // Not recorded from a real server: vLLM's error with this API's framing.
    fn fail(&mut self, fault: &Fault, out: &mut Sink) {
        out.named("error", &fault.event());
    }
}
