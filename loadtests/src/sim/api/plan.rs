//! From a request's fields to the engine's work: the checks that all generating APIs share.

use crate::mix::mix;
use crate::sim::api::fault::Fault;
use crate::sim::api::form::{Call, ReplyForm};
use crate::sim::api::json::Check;
use crate::sim::engine::Job;
use crate::sim::metrics::stats::Parsed;
use crate::sim::shared::Shared;
use crate::sim::text::{LengthRule, Prompt, Reason, Script};
use crate::sim::wall;
use serde_json::{Map, Value};

/// Characters per token beyond which the real server refuses a prompt without counting tokens.
const MOST_CHARS_PER_TOKEN: usize = 36;

/// The fields of a request that the generating APIs share.
#[derive(Debug, Default)]
pub(crate) struct Params {
    pub(crate) model: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) n: Option<i64>,
    pub(crate) temperature: Option<f64>,
    pub(crate) seed: i64,
    pub(crate) length: LengthParams,
    pub(crate) output: OutputParams,
}

/// The fields that bound a reply's length.
#[derive(Debug, Default)]
pub(crate) struct LengthParams {
    pub(crate) max_tokens: Option<i64>,
    pub(crate) min_tokens: i64,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_eos: bool,
    /// `logit_bias` makes the end of the reply its first token.
    pub(crate) eos_first: bool,
}

/// The fields that choose what a reply contains.
#[derive(Debug, Default)]
pub(crate) struct OutputParams {
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) continuous_usage: bool,
    pub(crate) token_ids: bool,
    /// Number of alternatives beside each token; `None` returns no probabilities.
    pub(crate) logprobs: Option<u32>,
    pub(crate) form: ReplyForm,
    /// The API's name for the parser of tool calls, if it is given the replies.
    pub(crate) parsed: Option<&'static str>,
}

/// A valid request, with every reply decided.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) created: u64,
    /// The model name in replies.
    pub(crate) model: String,
    pub(crate) params: Params,
    pub(crate) prompts: Vec<Prompt>,
    /// One reply for each of `n` of each prompt.
    pub(crate) scripts: Vec<Script>,
    /// The call that each reply is.
    pub(crate) call: Option<Call>,
    pub(crate) n: usize,
    pub(crate) max_tokens: u32,
    pub(crate) lora: Option<String>,
    pub(crate) server: ServerTraits,
}

/// Traits of the server that show in its replies.
#[derive(Debug, Clone)]
pub(crate) struct ServerTraits {
    pub(crate) fingerprint: String,
    /// Usage reports cached tokens.
    pub(crate) details: bool,
    /// A parser looks for calls of tools. It sends no chunks without text.
    pub(crate) parser: bool,
}

/// The length limit of a reply whose request sets none.
#[derive(Debug, Clone, Copy)]
pub(crate) enum DefaultLength {
    /// As long as the context allows.
    Context,
    Tokens(u32),
}

impl Params {
    /// Reads the fields that chat and completions share.
    pub(crate) fn sampling(body: &Map<String, Value>, check: &mut Check) -> Self {
        let options = body.get("stream_options").and_then(Value::as_object);
        let option = |name: &str| options.and_then(|o| o.get(name)).and_then(Value::as_bool);
        let bias = body.get("logit_bias").and_then(Value::as_object);
        // In this order, since errors are reported in the order in which fields are read.
        let (model, request_id) = (check.text(body, "model"), check.text(body, "request_id"));
        let stream = check.flag(body, "stream");
        let n = check.int(body, "n");
        let max_tokens = check.int(body, "max_tokens");
        let min_tokens = check.int(body, "min_tokens").unwrap_or(0);
        let temperature = check.float(body, "temperature");
        let ignore_eos = check.flag(body, "ignore_eos");
        let seed = check.int(body, "seed").unwrap_or(0);
        let token_ids = check.flag(body, "return_token_ids");
        let length = LengthParams {
            max_tokens,
            min_tokens,
            stop: strings(body.get("stop")),
            ignore_eos,
            eos_first: bias.and_then(|b| b.get("2")).and_then(Value::as_f64) >= Some(100.0),
        };
        let output = OutputParams {
            stream,
            include_usage: option("include_usage").unwrap_or(false),
            continuous_usage: option("continuous_usage_stats").unwrap_or(false),
            token_ids,
            logprobs: None,
            form: ReplyForm::Words,
            parsed: None,
        };
        Self { model, request_id, n, temperature, seed, length, output }
    }

    /// Checks that need no prompt.
    fn check(&self, shared: &Shared) -> Result<(), Fault> {
        if let Some(temperature) = self.temperature.filter(|t| *t < 0.0) {
            let value = format!("{temperature:?}");
            let message = format!("temperature must be non-negative, got {value}.");
            return Err(Fault::bad_parameter(&message, "temperature", Some(&value)));
        }
        if let Some(n) = self.n.filter(|n| *n < 1) {
            return Err(Fault::bad_request(format!("n must be at least 1, got {n}.")));
        }
        if let Some(wanted) = self.output.logprobs.filter(|wanted| *wanted > 20) {
            let message = format!(
                "Requested sample logprobs of {wanted}, which is greater than max allowed: 20"
            );
            return Err(Fault::bad_parameter(&message, "logprobs", Some(&wanted.to_string())));
        }
        let Some(most) = self.length.max_tokens else { return Ok(()) };
        let value = most.to_string();
        if most < 1 {
            let message = format!("max_tokens must be at least 1, got {most}.");
            return Err(Fault::bad_parameter(&message, "max_tokens", Some(&value)));
        }
        let length = shared.args.capacity.max_model_len;
        if most > i64::from(length) {
            let message = format!(
                "max_tokens={most} cannot be greater than max_model_len={length}. Please request \
                 fewer output tokens."
            );
            return Err(Fault::bad_parameter(&message, "max_tokens", Some(&value)));
        }
        Ok(())
    }
}

impl Plan {
    /// Checks the rest and decides every reply. `prefix` is the id's, `chatcmpl-` for example.
    pub(crate) fn new(
        shared: &Shared,
        params: Params,
        prompts: Vec<Prompt>,
        default: DefaultLength,
        prefix: &str,
    ) -> Result<Self, Fault> {
        let (model, lora) = shared.resolve(params.model.as_deref())?;
        params.check(shared)?;
        for prompt in &prompts {
            fits(shared, prompt, params.length.max_tokens)?;
        }
        let n = usize::try_from(params.n.unwrap_or(1)).unwrap_or(1);
        let mut scripts = Vec::with_capacity(n * prompts.len());
        let mut longest = 0;
        for prompt in &prompts {
            let room = shared.args.capacity.max_model_len - prompt.tokens();
            let max_tokens = match (params.length.max_tokens, default) {
                (Some(most), _) => u32::try_from(most).unwrap_or(room).min(room),
                (None, DefaultLength::Context) => room,
                (None, DefaultLength::Tokens(tokens)) => tokens.min(room),
            };
            longest = longest.max(max_tokens);
            let eos = (shared.args.speed.min_reply_tokens, shared.args.speed.max_reply_tokens);
            let min_tokens = u32::try_from(params.length.min_tokens).unwrap_or(0).min(max_tokens);
            let rule = LengthRule {
                max_tokens,
                min_tokens,
                stop: &params.length.stop,
                eos: match (params.length.eos_first, params.length.ignore_eos) {
                    (_, true) => None,
                    (true, false) => Some((1, 1)),
                    (false, false) => Some(eos),
                },
            };
            let replies = |prompt: &Prompt, rule: &LengthRule<'_>| {
                let key = mix(prompt.hash(shared.args.speed.seed), params.seed as u64);
                let keys = (0..n as u64).map(|choice| mix(key, choice));
                params.output.form.scripts(keys, rule)
            };
            // A prompt of ids may end with the beginning of this model's own reply to the rest of it.
            let go_on = || {
                prompt.with_reply().find_map(|(start, given)| {
                    let count = u32::try_from(given.len()).ok()?;
                    let (max_tokens, min_tokens) = (max_tokens + count, min_tokens + count);
                    let rule = LengthRule { max_tokens, min_tokens, ..rule.clone() };
                    let whole = replies(&start, &rule).into_iter();
                    whole.map(|script| script.after(&start, &given)).collect::<Option<Vec<_>>>()
                })
            };
            scripts.extend(go_on().unwrap_or_else(|| replies(prompt, &rule)));
        }
        let call = params.output.form.call(scripts.len());
        let id = params.request_id.clone().unwrap_or_else(wall::id16);
        Ok(Self {
            id: format!("{prefix}{id}"),
            created: wall::now().as_secs(),
            model,
            params,
            prompts,
            scripts,
            call,
            n,
            max_tokens: longest,
            lora,
            server: ServerTraits {
                fingerprint: shared.fingerprint.clone(),
                details: shared.args.replies.enable_prompt_tokens_details,
                parser: shared.args.replies.tool_call_parser.is_some(),
            },
        })
    }

    /// The sequences that the engine runs for this request.
    pub(crate) fn jobs(&self, shared: &Shared) -> Vec<Job> {
        let salt = self.lora.as_deref().map_or(0, |name| Prompt::text(name).hash(0));
        let job = |(at, script): (usize, &Script)| {
            let prompt = &self.prompts[at / self.n];
            Job {
                prompt_tokens: prompt.tokens(),
                prefix: prompt.blocks(shared.args.capacity.block_size, salt),
                output_tokens: script.to_generate(),
                max_tokens: self.max_tokens,
                reason: script.reason.openai(),
            }
        };
        self.scripts.iter().enumerate().map(job).collect()
    }

    /// Tokens of all prompts.
    pub(crate) fn prompt_tokens(&self) -> u32 {
        self.prompts.iter().map(Prompt::tokens).sum()
    }

    /// The count of the texts that the parser of tool calls is given, if it is.
    pub(crate) fn parsed(&self, streaming: bool) -> Option<Parsed> {
        let kind = self.params.output.parsed?;
        Some(Parsed { streaming, call: self.call.is_some(), kind })
    }

    /// `finish_reason` of a reply that ended like this.
    pub(crate) fn finish_reason(&self, reason: &Reason) -> &'static str {
        match (&self.call, reason) {
            (Some(call), Reason::Stop) => call.finish_reason(),
            _ => reason.openai(),
        }
    }

    /// Whether a stream ends with a chunk of usage.
    pub(crate) fn usage_chunk(&self) -> bool {
        self.params.output.include_usage
    }
}

/// The complete output of a request, for a plain reply.
#[derive(Debug, Clone, Default)]
pub(crate) struct Completion {
    pub(crate) texts: Vec<String>,
    pub(crate) reasons: Vec<Option<Reason>>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) cached: u32,
}

impl Completion {
    pub(crate) fn completion_tokens(&self) -> u32 {
        self.tokens.iter().sum()
    }
}

/// Refuses a prompt that leaves no room for output.
pub(crate) fn fits(shared: &Shared, prompt: &Prompt, wanted: Option<i64>) -> Result<(), Fault> {
    let length = shared.args.capacity.max_model_len;
    let chars = prompt.chars();
    let most_chars = length as usize * MOST_CHARS_PER_TOKEN;
    let head = format!("This model's maximum context length is {length} tokens. However, ");
    if chars > most_chars {
        let message = format!(
            "{head}your prompt contains {chars} characters (more than {most_chars} characters, \
             which is the upper bound for {length} input tokens). Please reduce the length of the \
             input prompt."
        );
        return Err(Fault::bad_parameter(&message, "input_text", Some(&chars.to_string())));
    }
    let tokens = prompt.tokens();
    if tokens >= length {
        // Counting stops one past the limit.
        let least = length + 1;
        let message = format!(
            "{head}your prompt contains at least {least} input tokens, which exceeds this limit \
             even without any output tokens. Please reduce the length of the input prompt."
        );
        return Err(Fault::bad_parameter(&message, "input_tokens", Some(&least.to_string())));
    }
    let wanted = wanted.unwrap_or(0);
    let total = i64::from(tokens) + wanted;
    if total > i64::from(length) {
        let message = format!(
            "{head}you requested {wanted} output tokens and your prompt contains at least {tokens} \
             input tokens, for a total of at least {total} tokens. Please reduce the length of the \
             input prompt or the number of requested output tokens."
        );
        return Err(Fault::bad_parameter(&message, "input_tokens", Some(&tokens.to_string())));
    }
    Ok(())
}

/// A string, or those in a list.
pub(crate) fn strings(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => {
            list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}
