//! `/v1/chat/completions`.

use super::{chat_template, content, conversation, final_usage, numbers, prompt_of_ids, usage};
use crate::sim::api::events::{Dialect, Sink, Step, Tally};
use crate::sim::api::fault::Fault;
use crate::sim::api::form::{Offer, ReplyForm, Talk, ToolChoice};
use crate::sim::api::json::Check;
use crate::sim::api::plan::{Completion, DefaultLength, Params, Plan};
use crate::sim::shared::Shared;
use crate::sim::text::{Prompt, Reason, Script, quoted};
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
    params.length.max_tokens =
        check.int(body, "max_completion_tokens").or(params.length.max_tokens);
    let alternatives = check.int(body, "top_logprobs").unwrap_or(0);
    if check.flag(body, "logprobs") {
        params.output.logprobs = Some(u32::try_from(alternatives).unwrap_or(0));
    }
    check.ok()?;
    stream_options(body, &params)?;
    if shared.args.replies.enable_force_include_usage && params.output.stream {
        (params.output.include_usage, params.output.continuous_usage) = (true, true);
    }
    params.output.continuous_usage &= params.output.include_usage;
    params.request_id = request_id.or(params.request_id);
    let offer = offer(body)?;
    shared.resolve(params.model.as_deref())?;
    offer.check(&shared.args.replies)?;
    params.output.parsed = offer.is_parsed().then_some("chat_completions");
    if messages.is_empty() {
        return Err(Fault::bad_request(
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
        ));
    }
    if messages.iter().any(has_media) {
        let model = &shared.names[0];
        return Err(Fault::bad_request(format!("{model} is not a multimodal model")));
    }
    params.output.form = match offer.next(&talk(messages)) {
        Some(tool) => ReplyForm::Call(tool),
        None => ReplyForm::of(body),
    };
    let prompt = match given_ids(shared, body)? {
        Some(ids) => ids,
        None => {
            let tools = body.get("tools").map(Value::to_string).unwrap_or_default();
            Prompt::text(&(tools + &chat_template(messages)))
        }
    };
    let prompts = vec![prompt];
    Plan::new(shared, params, prompts, DefaultLength::Context, "chatcmpl-")
}

/// The prompt's ids, if the request has them: they take the place of its messages.
fn given_ids(shared: &Shared, body: &Map<String, Value>) -> Result<Option<Prompt>, Fault> {
    let params = body.get("kv_transfer_params");
    let Some(ids) = params.and_then(|params| params.get("prompt_token_ids")) else {
        return Ok(None);
    };
    if shared.args.replies.ignore_prompt_token_ids {
        return Ok(None);
    }
    let list = ids.as_array().filter(|list| !list.is_empty() && list.iter().all(Value::is_u64));
    let Some(list) = list else {
        let message = "`kv_transfer_params['prompt_token_ids']` must be a non-empty list of \
                       non-negative integers.";
        return Err(Fault::bad_parameter(message, "kv_transfer_params.prompt_token_ids", None));
    };
    let (given, most) = (list.len(), shared.args.capacity.max_model_len as usize);
    if given > most {
        return Err(Fault::bad_request(format!(
            "Input length ({given}) exceeds model's maximum context length ({most})."
        )));
    }
    Ok(Some(prompt_of_ids(list)))
}

/// Refuses `stream_options` without a stream.
pub(crate) fn stream_options(body: &Map<String, Value>, params: &Params) -> Result<(), Fault> {
    let given = body.get("stream_options").is_some_and(|options| !options.is_null());
    if given && !params.output.stream {
        let message = "Stream options can only be defined when `stream=True`.";
        return Err(Fault::bad_parameter(message, "stream_options", None));
    }
    Ok(())
}

/// The request's tools and its choice of one.
fn offer(body: &Map<String, Value>) -> Result<Offer, Fault> {
    let tools = match body.get("tools") {
        Some(Value::Array(tools)) if tools.is_empty() => {
            let message = "`tools` must not be an empty array. Either provide at least one tool or \
                           omit the field entirely.";
            return Err(Fault::bad_parameter(message, "tools", None));
        }
        Some(Value::Array(tools)) => tools.as_slice(),
        _ => &[],
    };
    let function = |tool: &Value| {
        let function = tool.get("function")?;
        let name = function.get("name")?.as_str()?.to_owned();
        Some((name, function.get("parameters").cloned().unwrap_or(Value::Bool(true))))
    };
    let given = body.get("tool_choice").filter(|choice| !choice.is_null());
    let choice = match given {
        Some(Value::String(choice)) if choice == "none" => ToolChoice::Never,
        Some(_) if tools.is_empty() => {
            let message = "When using `tool_choice`, `tools` must be set.";
            return Err(Fault::bad_parameter(message, "tool_choice", None));
        }
        Some(Value::String(choice)) if choice == "required" => ToolChoice::Required,
        Some(Value::Object(named)) => {
            let name = named.get("function").and_then(|function| function.get("name"));
            ToolChoice::Named(name.and_then(Value::as_str).unwrap_or_default().to_owned())
        }
        Some(Value::String(choice)) if choice != "auto" => {
            let message = format!(
                "Invalid value for `tool_choice`: {choice}! Only named tools, \"none\", \"auto\" or \
                 \"required\" are supported."
            );
            return Err(Fault::bad_parameter(&message, "tool_choice", None));
        }
        _ => ToolChoice::Auto,
    };
    let offer = Offer { tools: tools.iter().filter_map(function).collect(), choice };
    if offer.unknown().is_some() {
        let message =
            "The tool specified in `tool_choice` does not match any of the specified `tools`";
        return Err(Fault::bad_parameter(message, "tool_choice", None));
    }
    Ok(offer)
}

/// The conversation since the user's last message.
fn talk(messages: &[Value]) -> Talk {
    let mut talk = Talk::default();
    for message in messages {
        if message.get("role").is_some_and(|role| role == "user") {
            talk.user(content(message));
        }
        let calls = message.get("tool_calls").and_then(Value::as_array);
        for call in calls.into_iter().flatten() {
            talk.called(call.get("function").and_then(|function| function.get("name")));
        }
    }
    talk
}

fn has_media(message: &Value) -> bool {
    let parts = message.get("content").and_then(Value::as_array);
    parts.into_iter().flatten().any(|part| {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
        kind != "text" && kind != "refusal"
    })
}

/// A plain reply.
pub(crate) fn whole(plan: &Plan, completion: &Completion) -> String {
    let mut choices = Vec::with_capacity(plan.scripts.len());
    for (index, script) in plan.scripts.iter().enumerate() {
        let reason = completion.reasons[index].as_ref().unwrap_or(&Reason::Abort);
        let all: Vec<u32> = script.generated(completion.tokens[index]).collect();
        let text = &completion.texts[index];
        let (content, calls) = match &plan.call {
            Some(call) if *reason == Reason::Stop => {
                let one = format!(
                    r#"{{"id":"{}","type":"function","function":{{"name":{},"arguments":{}}}}}"#,
                    call.ids[index],
                    quoted(&call.name),
                    quoted(text),
                );
                (call.content().to_owned(), format!(r#","tool_calls":[{one}]"#))
            }
            Some(call) => (quoted(&call.unparsed(text)), String::new()),
            None => (quoted(text), String::new()),
        };
        choices.push(format!(
            r#"{{"index":{index},"message":{{"role":"assistant","content":{content},"refusal":null,"annotations":null,"audio":null,"function_call":null{calls},"reasoning":null}},"logprobs":{},"finish_reason":"{}","stop_reason":{},"token_ids":{},"routed_experts":null}}"#,
            logprobs(plan, script, &all),
            plan.finish_reason(reason),
            reason.stop_reason(),
            token_ids(plan, script, &all),
        ));
    }
    format!(
        r#"{{"id":"{}","object":"chat.completion","created":{},"model":{},"choices":[{}],"service_tier":null,"system_fingerprint":"{}",{},"prompt_logprobs":null,"prompt_token_ids":{},"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#,
        escaped(&plan.id),
        plan.created,
        quoted(&plan.model),
        choices.join(","),
        plan.server.fingerprint,
        usage(plan, completion.completion_tokens(), completion.cached, "0"),
        prompt_ids(plan),
    )
}

/// An id, escaped for use within quotes: clients choose ids.
pub(crate) fn escaped(id: &str) -> String {
    let quoted = quoted(id);
    quoted[1..quoted.len() - 1].to_owned()
}

fn prompt_ids(plan: &Plan) -> String {
    if plan.params.output.token_ids { numbers(&plan.prompts[0].token_ids()) } else { "null".into() }
}

fn token_ids(plan: &Plan, script: &Script, tokens: &[u32]) -> String {
    if !plan.params.output.token_ids {
        return "null".into();
    }
    numbers(&tokens.iter().map(|at| script.token_id(*at)).collect::<Vec<_>>())
}

fn logprobs(plan: &Plan, script: &Script, tokens: &[u32]) -> String {
    let Some(alternatives) = plan.params.output.logprobs else { return "null".into() };
    if tokens.is_empty() {
        return "null".into();
    }
    let one = |at: u32, rank: u32| {
        let (word, logprob) = script.logprob(at, rank);
        let bytes: Vec<u32> = word.bytes().map(u32::from).collect();
        format!(r#""token":{},"logprob":{logprob},"bytes":{}"#, quoted(word), numbers(&bytes))
    };
    let content: Vec<String> = tokens
        .iter()
        .map(|at| {
            let top: Vec<String> =
                (0..alternatives).map(|rank| format!("{{{}}}", one(*at, rank))).collect();
            format!(r#"{{{},"top_logprobs":[{}]}}"#, one(*at, 0), top.join(","))
        })
        .collect();
    format!(r#"{{"content":[{}]}}"#, content.join(","))
}

/// A streamed reply.
pub(crate) struct ChatStream {
    /// The beginning of every event.
    head: String,
}

impl ChatStream {
    pub(crate) fn new(plan: &Plan) -> Self {
        let head = format!(
            r#"data: {{"id":"{}","object":"chat.completion.chunk","created":{},"model":{},"choices":["#,
            escaped(&plan.id),
            plan.created,
            quoted(&plan.model),
        );
        Self { head }
    }
}

fn running_usage(plan: &Plan, prompt: u32, tokens: u32) -> String {
    if !plan.params.output.continuous_usage {
        return String::new();
    }
    format!(
        r#","usage":{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{tokens},"completion_tokens_details":null}}"#,
        prompt + tokens
    )
}

/// The fields of a step's `delta`; `None` if the step shows nothing.
fn delta(plan: &Plan, step: &Step<'_>) -> Option<String> {
    let (id, function) = match &plan.call {
        Some(call) if step.at == Some(0) => {
            let id = format!(r#""id":"{}","type":"function","#, call.ids[step.index]);
            (id, format!(r#""name":{}"#, quoted(&call.name)))
        }
        // A chunk without text is sent if something else in it was asked for.
        _ if plan.server.parser && step.piece.is_empty() => {
            let output = &plan.params.output;
            let wanted = step.reason.is_some() || output.token_ids || output.logprobs.is_some();
            return wanted.then(String::new);
        }
        Some(_) => (String::new(), format!(r#""arguments":{}"#, quoted(step.piece))),
        None => return Some(format!(r#""content":{}"#, quoted(step.piece))),
    };
    Some(format!(r#""content":null,"tool_calls":[{{{id}"index":0,"function":{{{function}}}}}]"#))
}

impl Dialect for ChatStream {
    fn open(&mut self, plan: &Plan, out: &mut Sink) {
        let usage = running_usage(plan, plan.prompt_tokens(), 0);
        for index in 0..plan.scripts.len() {
            out.raw(format!(
                "{}{{\"index\":{index},\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\"finish_reason\":null}}]{usage},\"prompt_token_ids\":{},\"prompt_text\":null}}\n\n",
                self.head,
                prompt_ids(plan),
            ));
        }
    }

    fn token(&mut self, plan: &Plan, step: &Step<'_>, out: &mut Sink) {
        let script = &plan.scripts[step.index];
        let token: Vec<u32> = step.at.into_iter().collect();
        let usage = running_usage(plan, plan.prompt_tokens(), step.tokens);
        let Some(delta) = delta(plan, step) else { return };
        let (finish, fingerprint) = match step.reason {
            None => ("null".to_owned(), String::new()),
            Some(reason) => {
                let why = plan.finish_reason(reason);
                let finish = format!("\"{why}\",\"stop_reason\":{}", reason.stop_reason());
                let fingerprint = if plan.usage_chunk() {
                    String::new()
                } else {
                    format!(r#","system_fingerprint":"{}""#, plan.server.fingerprint)
                };
                (finish, fingerprint)
            }
        };
        out.raw(format!(
            "{}{{\"index\":{},\"delta\":{{{delta}}},\"logprobs\":{},\"finish_reason\":{finish},\"token_ids\":{}}}]{usage}{fingerprint}}}\n\n",
            self.head,
            step.index,
            logprobs(plan, script, &token),
            token_ids(plan, script, &token),
        ));
    }

    fn close(&mut self, plan: &Plan, tally: Tally, out: &mut Sink) {
        if plan.usage_chunk() {
            out.raw(format!(
                "{}],{},\"system_fingerprint\":\"{}\"}}\n\n",
                self.head,
                final_usage(plan, tally.completion_tokens, tally.cached),
                plan.server.fingerprint,
            ));
        }
        out.done();
    }
}
