//! `/v1/chat/completions`.

use super::super::events::{Dialect, Sink, Tally, Told};
use super::super::fault::Fault;
use super::super::json::{Check, quoted};
use super::super::plan::{Ask, DefaultLength, Outcome, Plan};
use super::super::shared::Shared;
use super::super::text::{Prompt, Reason, Script};
use super::{chat_template, conversation, final_usage, numbers, usage};
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
    ask.max_tokens = check.int(body, "max_completion_tokens").or(ask.max_tokens);
    let alternatives = check.int(body, "top_logprobs").unwrap_or(0);
    if check.flag(body, "logprobs") {
        ask.logprobs = Some(u32::try_from(alternatives).unwrap_or(0));
    }
    check.ok()?;
    stream_options(body, &ask)?;
    if shared.args.enable_force_include_usage && ask.stream {
        (ask.include_usage, ask.continuous_usage) = (true, true);
    }
    ask.continuous_usage &= ask.include_usage;
    ask.request_id = request_id.or(ask.request_id);
    shared.resolve(ask.model.as_deref())?;
    tools(body)?;
    if messages.is_empty() {
        return Err(Fault::bad_request(
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
        ));
    }
    if messages.iter().any(has_media) {
        let model = &shared.names[0];
        return Err(Fault::bad_request(format!("{model} is not a multimodal model")));
    }
    let prompts = vec![Prompt::text(&chat_template(messages))];
    Plan::new(shared, ask, prompts, DefaultLength::Context, "chatcmpl-")
}

/// `stream_options` is for streams.
pub(crate) fn stream_options(body: &Map<String, Value>, ask: &Ask) -> Result<(), Fault> {
    let given = body.get("stream_options").is_some_and(|options| !options.is_null());
    if given && !ask.stream {
        let message = "Stream options can only be defined when `stream=True`.";
        return Err(Fault::bad_parameter(message, "stream_options", None));
    }
    Ok(())
}

/// The simulated server has no tool-call parser.
fn tools(body: &Map<String, Value>) -> Result<(), Fault> {
    let offered = body.get("tools").and_then(Value::as_array).is_some_and(|t| !t.is_empty());
    let choice = body.get("tool_choice").filter(|choice| !choice.is_null());
    let refused = match choice {
        Some(Value::String(choice)) if choice == "none" => return Ok(()),
        Some(Value::String(choice)) if choice == "required" => {
            "tool_choice=\"required\" requires --tool-call-parser to be set".into()
        }
        Some(Value::Object(named)) => {
            let name = named.get("function").and_then(|f| f.get("name")).and_then(Value::as_str);
            let name = name.unwrap_or_default();
            format!("tool_choice=function \"{name}\" requires --tool-call-parser to be set")
        }
        _ if offered => "\"auto\" tool choice requires --enable-auto-tool-choice and \
                         --tool-call-parser to be set"
            .into(),
        _ => return Ok(()),
    };
    Err(Fault::bad_request(refused))
}

fn has_media(message: &Value) -> bool {
    let parts = message.get("content").and_then(Value::as_array);
    parts.into_iter().flatten().any(|part| {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
        kind != "text" && kind != "refusal"
    })
}

/// A plain reply.
pub(crate) fn whole(plan: &Plan, outcome: &Outcome) -> String {
    let mut choices = Vec::with_capacity(plan.scripts.len());
    for (index, script) in plan.scripts.iter().enumerate() {
        let reason = outcome.reasons[index].as_ref().unwrap_or(&Reason::Abort);
        let all: Vec<u32> = (0..outcome.tokens[index]).collect();
        choices.push(format!(
            r#"{{"index":{index},"message":{{"role":"assistant","content":{},"refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},"logprobs":{},"finish_reason":"{}","stop_reason":{},"token_ids":{},"routed_experts":null}}"#,
            quoted(&outcome.texts[index]),
            logprobs(plan, script, &all),
            reason.openai(),
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
        plan.fingerprint,
        usage(plan, outcome.completion_tokens(), outcome.cached),
        prompt_ids(plan),
    )
}

/// An id within quotes: clients choose ids, so they may need escaping.
pub(crate) fn escaped(id: &str) -> String {
    let quoted = quoted(id);
    quoted[1..quoted.len() - 1].to_owned()
}

fn prompt_ids(plan: &Plan) -> String {
    if plan.ask.token_ids { numbers(&plan.prompts[0].token_ids()) } else { "null".into() }
}

fn token_ids(plan: &Plan, script: &Script, tokens: &[u32]) -> String {
    if !plan.ask.token_ids {
        return "null".into();
    }
    numbers(&tokens.iter().map(|at| script.token_id(*at)).collect::<Vec<_>>())
}

fn logprobs(plan: &Plan, script: &Script, tokens: &[u32]) -> String {
    let Some(alternatives) = plan.ask.logprobs else { return "null".into() };
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
pub(crate) struct Stream {
    /// What every event begins with.
    head: String,
}

impl Stream {
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
    if !plan.ask.continuous_usage {
        return String::new();
    }
    format!(
        r#","usage":{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{tokens},"completion_tokens_details":null}}"#,
        prompt + tokens
    )
}

impl Dialect for Stream {
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

    fn token(&mut self, plan: &Plan, told: &Told<'_>, out: &mut Sink) {
        let script = &plan.scripts[told.index];
        let token: Vec<u32> = told.at.into_iter().collect();
        let usage = running_usage(plan, plan.prompt_tokens(), told.tokens);
        let (finish, fingerprint) = match told.reason {
            None => ("null".to_owned(), String::new()),
            Some(reason) => {
                let finish =
                    format!("\"{}\",\"stop_reason\":{}", reason.openai(), reason.stop_reason());
                let fingerprint = if plan.usage_chunk() {
                    String::new()
                } else {
                    format!(r#","system_fingerprint":"{}""#, plan.fingerprint)
                };
                (finish, fingerprint)
            }
        };
        out.raw(format!(
            "{}{{\"index\":{},\"delta\":{{\"content\":{}}},\"logprobs\":{},\"finish_reason\":{finish},\"token_ids\":{}}}]{usage}{fingerprint}}}\n\n",
            self.head,
            told.index,
            quoted(told.piece),
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
                plan.fingerprint,
            ));
        }
        out.done();
    }
}
