//! `/v1/responses`: named events, numbered, and no `[DONE]`. A reply stopped by its length is a
//! `response.completed` with status "incomplete"; one that was cut is plainly "completed".

use super::super::events::{Dialect, Sink, Tally, Told};
use super::super::fault::Fault;
use super::super::json::{Check, quoted, quoted_or_null};
use super::super::plan::{Ask, DefaultLength, Outcome, Plan};
use super::super::shared::Shared;
use super::super::text::{Prompt, Reason};
use super::super::wall;
use super::chat::escaped;
use super::{content, template};
use serde_json::{Map, Value};

/// Fields that a reply repeats from its request.
#[derive(Debug, Clone)]
pub(crate) struct Echoed {
    instructions: Option<String>,
    temperature: f64,
    top_p: f64,
    max_output_tokens: u32,
    message_id: String,
}

/// Reads a request.
pub(crate) fn plan(
    shared: &Shared,
    body: &Map<String, Value>,
    request_id: Option<String>,
) -> Result<(Plan, Echoed), Fault> {
    let mut check = Check::new();
    let mut ask = Ask::sampling(body, &mut check);
    ask.max_tokens = check.int(body, "max_output_tokens");
    let instructions = check.text(body, "instructions");
    let top_p = check.float(body, "top_p").unwrap_or(1.0);
    let mut turns: Vec<(String, String)> = Vec::new();
    turns.extend(instructions.iter().map(|text| ("system".to_owned(), text.clone())));
    match body.get("input") {
        Some(Value::String(text)) => turns.push(("user".into(), text.clone())),
        Some(Value::Array(items)) => turns.extend(items.iter().map(|item| {
            let role = item.get("role").and_then(Value::as_str).unwrap_or("user");
            (role.to_owned(), content(item))
        })),
        Some(other) => check.wrong("input", "string_type", "Input should be a valid string", other),
        None => check.missing(body, "input"),
    }
    check.ok()?;
    ask.request_id = request_id;
    let temperature = ask.temperature.unwrap_or(1.0);
    let text = template(turns.iter().map(|(role, text)| (role.as_str(), text.clone())));
    let prompts = vec![Prompt::text(&text)];
    let plan = Plan::new(shared, ask, prompts, DefaultLength::Context, "resp_")?;
    let message_id = format!("msg_{}", wall::id16());
    let max_output_tokens = plan.max_tokens;
    Ok((plan, Echoed { instructions, temperature, top_p, max_output_tokens, message_id }))
}

/// How far the reply is.
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
            (incomplete, item(echoed, Some(text)), status, usage)
        }
    };
    format!(
        r#"{{"id":"{}","created_at":{},"incomplete_details":{incomplete},"instructions":{},"metadata":null,"model":{},"object":"response","output":[{output}],"parallel_tool_calls":true,"temperature":{:?},"tool_choice":"none","tools":[],"top_p":{:?},"background":false,"max_output_tokens":{},"max_tool_calls":null,"previous_response_id":null,"prompt":null,"reasoning":null,"service_tier":"auto","status":"{status}","text":null,"top_logprobs":null,"truncation":"disabled","usage":{usage},"user":null,"presence_penalty":0.0,"frequency_penalty":0.0,"kv_transfer_params":null,"ec_transfer_params":null,"input_messages":null,"output_messages":null}}"#,
        escaped(&plan.id),
        plan.created,
        quoted_or_null(echoed.instructions.as_deref()),
        quoted(&plan.model),
        echoed.temperature,
        echoed.top_p,
        echoed.max_output_tokens,
    )
}

fn item(echoed: &Echoed, text: Option<&str>) -> String {
    let (content, status) = match text {
        Some(text) => (part(text, "null"), "completed"),
        None => (String::new(), "in_progress"),
    };
    format!(
        r#"{{"id":"{}","content":[{content}],"role":"assistant","status":"{status}","type":"message","phase":null}}"#,
        echoed.message_id
    )
}

fn part(text: &str, logprobs: &str) -> String {
    let text = quoted(text);
    format!(r#"{{"annotations":[],"text":{text},"type":"output_text","logprobs":{logprobs}}}"#)
}

/// A plain reply.
pub(crate) fn whole(plan: &Plan, echoed: &Echoed, outcome: &Outcome) -> String {
    let stage = Stage::Ended {
        reason: outcome.reasons[0].as_ref().unwrap_or(&Reason::Abort),
        text: &outcome.texts[0],
        tokens: outcome.completion_tokens(),
        cached: outcome.cached,
    };
    response(plan, echoed, &stage)
}

/// A streamed reply.
pub(crate) struct Stream {
    echoed: Echoed,
    text: String,
    number: u32,
    ended: Option<Reason>,
}

impl Stream {
    pub(crate) fn new(echoed: Echoed) -> Self {
        Self { echoed, text: String::new(), number: 0, ended: None }
    }

    /// One event; `before` and `after` are the fields around its number.
    fn tell(&mut self, out: &mut Sink, name: &str, before: &str, after: &str) {
        let number = self.number;
        self.number += 1;
        let data = format!(r#"{{{before},"sequence_number":{number}{after},"type":"{name}"}}"#);
        out.named(name, &data);
    }
}

impl Dialect for Stream {
    fn open(&mut self, plan: &Plan, out: &mut Sink) {
        let begun = format!(r#""response":{}"#, response(plan, &self.echoed, &Stage::Begun));
        self.tell(out, "response.created", &begun, "");
        self.tell(out, "response.in_progress", &begun, "");
        let added = format!(r#""item":{},"output_index":0"#, item(&self.echoed, None));
        self.tell(out, "response.output_item.added", &added, "");
        let added = format!(
            r#""content_index":0,"item_id":"{}","output_index":0,"part":{}"#,
            self.echoed.message_id,
            part("", "[]")
        );
        self.tell(out, "response.content_part.added", &added, "");
    }

    fn token(&mut self, _: &Plan, told: &Told<'_>, out: &mut Sink) {
        if !told.piece.is_empty() {
            self.text.push_str(told.piece);
            let delta = format!(
                r#""content_index":0,"delta":{},"item_id":"{}","logprobs":[],"output_index":0"#,
                quoted(told.piece),
                self.echoed.message_id
            );
            self.tell(out, "response.output_text.delta", &delta, "");
        }
        self.ended = told.reason.cloned();
    }

    fn close(&mut self, plan: &Plan, tally: Tally, out: &mut Sink) {
        let id = self.echoed.message_id.clone();
        let done = format!(r#""content_index":0,"item_id":"{id}","logprobs":[],"output_index":0"#);
        let text = format!(r#","text":{}"#, quoted(&self.text));
        self.tell(out, "response.output_text.done", &done, &text);
        let done = format!(
            r#""content_index":0,"item_id":"{id}","output_index":0,"part":{}"#,
            part(&self.text, "null")
        );
        self.tell(out, "response.content_part.done", &done, "");
        let done = format!(r#""item":{},"output_index":0"#, item(&self.echoed, Some(&self.text)));
        self.tell(out, "response.output_item.done", &done, "");
        let stage = Stage::Ended {
            reason: self.ended.as_ref().unwrap_or(&Reason::Abort),
            text: &self.text,
            tokens: tally.completion_tokens,
            cached: tally.cached,
        };
        let ended = format!(r#""response":{}"#, response(plan, &self.echoed, &stage));
        self.tell(out, "response.completed", &ended, "");
    }

    // Not recorded from a real server: vLLM's error with this API's framing.
    fn fail(&mut self, fault: &Fault, out: &mut Sink) {
        out.named("error", &fault.event());
    }
}
