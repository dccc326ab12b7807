//! The routes of a pooling server: embeddings, pooled vectors, scores, ranks and classes.
//!
//! Vectors follow from the seed and the input; they have 64 numbers and the length 1.

use super::completions::prompts;
use crate::mix::{mix, unit};
use crate::sim::api::fault::Fault;
use crate::sim::api::json::Check;
use crate::sim::api::plan::{fits, strings};
use crate::sim::engine::{Job, Output, Refused, Ticket};
use crate::sim::shared::Shared;
use crate::sim::text::{Prompt, quoted};
use crate::sim::wall;
use serde_json::{Map, Value};
use std::fmt::Write;
use tokio::sync::mpsc::Receiver;

const DIMENSIONS: u64 = 64;

/// One of the pooling routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Embeddings,
    Pooling,
    Classify,
    Score,
    Rerank,
}

/// A valid request.
#[derive(Debug)]
pub(crate) struct PoolingRequest {
    kind: Kind,
    model: String,
    prompts: Vec<Prompt>,
    /// For ranks: the texts, and how many of them to return.
    documents: Vec<String>,
    top: usize,
    base64: bool,
    seed: u64,
}

impl PoolingRequest {
    pub(crate) fn new(
        shared: &Shared,
        kind: Kind,
        body: &Map<String, Value>,
    ) -> Result<Self, Fault> {
        let mut check = Check::new();
        let model = check.text(body, "model");
        let base64 = check.text(body, "encoding_format").is_some_and(|format| format == "base64");
        let (mut texts, mut documents) = (Vec::new(), Vec::new());
        match kind {
            Kind::Embeddings | Kind::Pooling | Kind::Classify => match body.get("input") {
                Some(Value::String(_) | Value::Array(_)) => {
                    texts = prompts(body.get("input"), &mut check);
                }
                Some(other) => bad_input(&mut check, body, other),
                None => check.missing(body, "input"),
            },
            Kind::Score | Kind::Rerank => {
                let (one, many) =
                    if kind == Kind::Score { ("text_1", "text_2") } else { ("query", "documents") };
                for field in [one, many] {
                    if !body.contains_key(field) {
                        check.missing(body, field);
                    }
                }
                let query = strings(body.get(one));
                documents = strings(body.get(many));
                let pair = |text: &String| {
                    let query = query.first().map_or("", String::as_str);
                    Prompt::text(&format!("{query}{text}"))
                };
                texts.extend(documents.iter().map(pair));
            }
        }
        let top = check.int(body, "top_n").and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        check.ok()?;
        let (model, _) = shared.resolve(model.as_deref())?;
        let dimensions = body.get("dimensions").filter(|value| !value.is_null());
        if let (Kind::Embeddings, Some(wanted)) = (kind, dimensions) {
            return Err(Fault::bad_request(format!(
                "Model '{model}' does not support Matryoshka embeddings; dimensions must be unset \
                 (received dimensions={wanted})."
            )));
        }
        for prompt in &texts {
            if prompt.tokens() == 0 {
                return Err(Fault::bad_request("The decoder prompt cannot be empty"));
            }
            fits(shared, prompt, None)?;
        }
        let top = if top == 0 { documents.len() } else { top };
        let seed = shared.args.speed.seed;
        Ok(Self { kind, model, prompts: texts, documents, top, base64, seed })
    }

    pub(crate) fn submit(&self, shared: &Shared) -> Result<(Ticket, Receiver<Output>), Refused> {
        let job = |prompt: &Prompt| Job {
            prompt_tokens: prompt.tokens(),
            prefix: prompt.blocks(shared.args.capacity.block_size, 0),
            output_tokens: 0,
            max_tokens: 0,
            reason: "stop",
        };
        shared.engine.submit(self.prompts.iter().map(job).collect(), 1, None)
    }

    /// The number of outputs that make the reply complete.
    pub(crate) fn parts(&self) -> usize {
        self.prompts.len()
    }

    /// The reply.
    pub(crate) fn body(&self) -> String {
        let tokens: u32 = self.prompts.iter().map(Prompt::tokens).sum();
        let (created, id, model) = (wall::now().as_secs(), wall::id16(), quoted(&self.model));
        if self.kind == Kind::Rerank {
            return self.ranks(&id, &model, tokens);
        }
        let prefix = match self.kind {
            Kind::Embeddings => "embd",
            Kind::Pooling => "pooling",
            Kind::Classify => "classify",
            Kind::Score | Kind::Rerank => "score",
        };
        let data: Vec<String> =
            (0..).zip(&self.prompts).map(|(index, prompt)| self.datum(index, prompt)).collect();
        format!(
            r#"{{"id":"{prefix}-{id}","object":"list","created":{created},"model":{model},"data":[{}],"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens},"completion_tokens":0,"prompt_tokens_details":null,"completion_tokens_details":null}}}}"#,
            data.join(",")
        )
    }

    fn datum(&self, index: usize, prompt: &Prompt) -> String {
        let key = prompt.hash(self.seed);
        match self.kind {
            Kind::Embeddings if self.base64 => {
                let bytes: Vec<u8> =
                    vector(key).iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
                format!(
                    r#"{{"index":{index},"object":"embedding","embedding":"{}"}}"#,
                    base64(&bytes)
                )
            }
            Kind::Embeddings => format!(
                r#"{{"index":{index},"object":"embedding","embedding":{}}}"#,
                floats(&vector(key))
            ),
            Kind::Pooling => {
                format!(r#"{{"index":{index},"object":"pooling","data":{}}}"#, floats(&vector(key)))
            }
            // Two classes; not recorded from a real server.
            Kind::Classify => {
                let first = unit(key);
                let label = if first >= 0.5 { "LABEL_0" } else { "LABEL_1" };
                format!(
                    r#"{{"index":{index},"label":"{label}","probs":{},"num_classes":2}}"#,
                    floats(&[first, 1.0 - first])
                )
            }
            Kind::Score | Kind::Rerank => {
                format!(r#"{{"index":{index},"object":"score","score":{}}}"#, score(key))
            }
        }
    }

    fn ranks(&self, id: &str, model: &str, tokens: u32) -> String {
        let mut scored: Vec<(usize, f64)> =
            self.prompts.iter().map(|prompt| score(prompt.hash(self.seed))).enumerate().collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1));
        let results: Vec<String> = scored
            .iter()
            .take(self.top)
            .map(|(index, score)| {
                let text = quoted(&self.documents[*index]);
                format!(
                    r#"{{"index":{index},"document":{{"text":{text},"multi_modal":null}},"relevance_score":{score}}}"#
                )
            })
            .collect();
        format!(
            r#"{{"id":"score-{id}","model":{model},"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}},"results":[{}]}}"#,
            results.join(",")
        )
    }
}

/// The real server tries all ten shapes of input that it knows, and reports each failure.
fn bad_input(check: &mut Check, body: &Map<String, Value>, input: &Value) {
    let list = |check: &mut Check| {
        check.wrong("input", "list_type", "Input should be a valid list", input);
    };
    list(check);
    list(check);
    check.wrong("input", "string_type", "Input should be a valid string", input);
    list(check);
    for _ in 0..3 {
        check.missing(body, "messages");
    }
    list(check);
    check.missing(body, "messages");
    check.not_a_sequence("input", input);
}

fn vector(key: u64) -> Vec<f64> {
    let raw: Vec<f64> = (0..DIMENSIONS).map(|at| unit(mix(key, at)) - 0.5).collect();
    let length = raw.iter().map(|x| x * x).sum::<f64>().sqrt();
    raw.iter().map(|x| x / length).collect()
}

fn score(key: u64) -> f64 {
    unit(key) * 2.0 - 1.0
}

fn floats(numbers: &[f64]) -> String {
    let mut out = String::from("[");
    for (at, number) in numbers.iter().enumerate() {
        let _ = write!(out, "{}{number}", if at > 0 { "," } else { "" });
    }
    out.push(']');
    out
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads_what_is_left_over() {
        for (text, want) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(text.as_bytes()), want);
        }
    }

    #[test]
    fn vectors_have_length_one_and_follow_from_the_input() {
        let of = |text: &str| vector(Prompt::text(text).hash(7));
        let length: f64 = of("a").iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-9);
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
    }
}
