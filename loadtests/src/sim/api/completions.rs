//! `/v1/completions`.

use super::chat::{escaped, stream_options};
use super::{final_usage, numbers, prompt_of_ids, usage};
use crate::sim::api::events::{Dialect, Sink, Step, Tally};
use crate::sim::api::fault::Fault;
use crate::sim::api::form::ReplyForm;
use crate::sim::api::json::Check;
use crate::sim::api::plan::{Completion, DefaultLength, Params, Plan};
use crate::sim::shared::Shared;
use crate::sim::text::{Prompt, Reason, Script, quoted};
use serde_json::{Map, Value};

/// The API's own default for `max_tokens`.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Reads a request. The flag is true if the reply echoes the prompt.
pub(crate) fn plan(
    shared: &Shared,
    body: &Map<String, Value>,
    request_id: Option<String>,
) -> Result<(Plan, bool), Fault> {
    let mut check = Check::new();
    let mut params = Params::sampling(body, &mut check);
    params.output.logprobs = check.int(body, "logprobs").map(|n| u32::try_from(n).unwrap_or(0));
    let echo = check.flag(body, "echo");
    let prompts = prompts(body.get("prompt"), &mut check);
    check.ok()?;
    stream_options(body, &params)?;
    if shared.args.replies.enable_force_include_usage && params.output.stream {
        (params.output.include_usage, params.output.continuous_usage) = (true, true);
    }
    params.output.continuous_usage &= params.output.include_usage;
    params.request_id = request_id.or(params.request_id);
    params.output.form = ReplyForm::of(body);
    if prompts.is_empty() {
        return Err(Fault::bad_request(
            "Either prompt or prompt_embeds must be provided and non-empty.",
        ));
    }
    let length = DefaultLength::Tokens(DEFAULT_MAX_TOKENS);
    let plan = Plan::new(shared, params, prompts, length, "cmpl-")?;
    Ok((plan, echo))
}

/// A text, a list of texts, token ids, or a list of those.
pub(crate) fn prompts(value: Option<&Value>, check: &mut Check) -> Vec<Prompt> {
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => vec![Prompt::text(text)],
        Some(Value::Array(list)) if list.iter().all(Value::is_u64) && !list.is_empty() => {
            vec![prompt_of_ids(list)]
        }
        Some(Value::Array(list)) => {
            let one = |item: &Value| match item {
                Value::String(text) => Some(Prompt::text(text)),
                Value::Array(list) if list.iter().all(Value::is_u64) => Some(prompt_of_ids(list)),
                _ => None,
            };
            let prompts: Option<Vec<Prompt>> = list.iter().map(one).collect();
            prompts.unwrap_or_else(|| {
                let first = list.first().unwrap_or(&Value::Null);
                check.wrong("prompt", "string_type", "Input should be a valid string", first);
                Vec::new()
            })
        }
        Some(other) => {
            check.wrong("prompt", "string_type", "Input should be a valid string", other);
            Vec::new()
        }
    }
}

/// A plain reply.
pub(crate) fn whole(plan: &Plan, completion: &Completion, echo: bool) -> String {
    let mut choices = Vec::with_capacity(plan.scripts.len());
    for (index, script) in plan.scripts.iter().enumerate() {
        let reason = completion.reasons[index].as_ref().unwrap_or(&Reason::Abort);
        let mut text = completion.texts[index].clone();
        if echo {
            text.insert_str(0, &plan.prompts[index / plan.n].detokenize());
        }
        let all: Vec<u32> = script.generated(completion.tokens[index]).collect();
        choices.push(format!(
            r#"{{"index":{index},"text":{},"logprobs":{},"finish_reason":"{}","stop_reason":{},"token_ids":{},"prompt_logprobs":null,"prompt_token_ids":{},"routed_experts":null}}"#,
            quoted(&text),
            logprobs(plan, script, &all, 0),
            reason.openai(),
            reason.stop_reason(),
            token_ids(plan, script, &all),
            prompt_ids(plan, index),
        ));
    }
    format!(
        r#"{{"id":"{}","object":"text_completion","created":{},"model":{},"choices":[{}],"service_tier":null,"system_fingerprint":"{}",{},"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#,
        escaped(&plan.id),
        plan.created,
        quoted(&plan.model),
        choices.join(","),
        plan.server.fingerprint,
        usage(plan, completion.completion_tokens(), completion.cached, "null"),
    )
}

fn prompt_ids(plan: &Plan, index: usize) -> String {
    if plan.params.output.token_ids {
        numbers(&plan.prompts[index / plan.n].token_ids())
    } else {
        "null".into()
    }
}

fn token_ids(plan: &Plan, script: &Script, tokens: &[u32]) -> String {
    if !plan.params.output.token_ids {
        return "null".into();
    }
    numbers(&tokens.iter().map(|at| script.token_id(*at)).collect::<Vec<_>>())
}

fn logprobs(plan: &Plan, script: &Script, tokens: &[u32], mut offset: usize) -> String {
    let Some(alternatives) = plan.params.output.logprobs else { return "null".into() };
    if tokens.is_empty() {
        return "null".into();
    }
    let (mut offsets, mut chosen, mut words, mut tops) = (vec![], vec![], vec![], vec![]);
    for at in tokens {
        let (word, logprob) = script.logprob(*at, 0);
        offsets.push(offset.to_string());
        chosen.push(logprob.to_string());
        words.push(quoted(word));
        // An object can have each token only once.
        let mut top = Map::new();
        for rank in 0..=alternatives {
            let (word, logprob) = script.logprob(*at, rank);
            top.entry(word).or_insert_with(|| Value::from(logprob));
        }
        tops.push(Value::Object(top).to_string());
        offset += word.len();
    }
    format!(
        r#"{{"text_offset":[{}],"token_logprobs":[{}],"tokens":[{}],"top_logprobs":[{}]}}"#,
        offsets.join(","),
        chosen.join(","),
        words.join(","),
        tops.join(",")
    )
}

/// A streamed reply.
pub(crate) struct CompletionStream {
    head: String,
    /// Prompts still to be echoed, by reply.
    echo: Vec<Option<String>>,
}

impl CompletionStream {
    pub(crate) fn new(plan: &Plan, echo: bool) -> Self {
        let head = format!(
            r#"data: {{"id":"{}","object":"text_completion","created":{},"model":{},"choices":["#,
            escaped(&plan.id),
            plan.created,
            quoted(&plan.model),
        );
        let prompt = |index: usize| echo.then(|| plan.prompts[index / plan.n].detokenize());
        Self { head, echo: (0..plan.scripts.len()).map(prompt).collect() }
    }
}

impl Dialect for CompletionStream {
    fn open(&mut self, _: &Plan, _: &mut Sink) {}

    fn token(&mut self, plan: &Plan, step: &Step<'_>, out: &mut Sink) {
        let script = &plan.scripts[step.index];
        let token: Vec<u32> = step.at.into_iter().collect();
        let usage = if plan.params.output.continuous_usage {
            let prompt = plan.prompts[step.index / plan.n].tokens();
            format!(
                r#","usage":{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{}}}"#,
                prompt + step.tokens,
                step.tokens
            )
        } else {
            String::new()
        };
        let (finish, stop, fingerprint) = match step.reason {
            None => ("null".to_owned(), "null".to_owned(), String::new()),
            Some(reason) => {
                let fingerprint = if plan.usage_chunk() {
                    String::new()
                } else {
                    format!(r#","system_fingerprint":"{}""#, plan.server.fingerprint)
                };
                (format!("\"{}\"", reason.openai()), reason.stop_reason(), fingerprint)
            }
        };
        let text = match self.echo[step.index].take() {
            Some(prompt) => quoted(&(prompt + step.piece)),
            None => quoted(step.piece),
        };
        let prompt_ids =
            if step.tokens == 1 { prompt_ids(plan, step.index) } else { "null".into() };
        out.raw(format!(
            "{}{{\"index\":{},\"text\":{text},\"logprobs\":{},\"finish_reason\":{finish},\"stop_reason\":{stop},\"prompt_token_ids\":{prompt_ids},\"token_ids\":{}}}]{usage}{fingerprint}}}\n\n",
            self.head,
            step.index,
            logprobs(plan, script, &token, step.offset),
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
