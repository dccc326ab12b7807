//! The figures of the engine and the HTTP layer, for `/metrics`.
//!
//! As with the real server, a request whose client left counts only by the tokens that it made; one
//! that the server aborted counts as an abort.

use std::collections::BTreeMap;
use std::time::Duration;

/// A histogram with vLLM's buckets.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    pub(crate) bounds: Vec<f64>,
    counts: Vec<u64>,
    pub(crate) sum: f64,
    pub(crate) count: u64,
}

impl Histogram {
    pub(crate) fn new(bounds: Vec<f64>) -> Self {
        Self { counts: vec![0; bounds.len()], bounds, sum: 0.0, count: 0 }
    }

    pub(crate) fn observe(&mut self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.sum += value;
        self.count += 1;
    }

    /// The cumulative counts, without the one for +Inf.
    pub(crate) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let counts = self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        self.bounds.iter().copied().zip(counts)
    }
}

/// 1, 2, 5, 10, … up to `most`: the buckets of token counts follow the model's length.
pub(crate) fn one_two_five(most: u32) -> Vec<f64> {
    let decades = (0..9).map(|exponent| 10f64.powi(exponent));
    decades
        .flat_map(|ten| [ten, 2.0 * ten, 5.0 * ten])
        .take_while(|bound| *bound <= f64::from(most))
        .collect()
}

/// A finished sequence, as the histograms record it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FinishedSequence {
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) produced: u32,
    pub(crate) max_tokens: u32,
    pub(crate) n: u32,
    pub(crate) preemptions: u32,
    pub(crate) arrived: Duration,
    pub(crate) admitted: Duration,
    pub(crate) first_token: Duration,
}

/// A text that a parser of tool calls was given: a whole reply, or a part of a streamed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Parsed {
    pub(crate) streaming: bool,
    pub(crate) call: bool,
    /// The API.
    pub(crate) kind: &'static str,
}

impl Parsed {
    /// Whether these labels are its series'.
    pub(crate) fn has(&self, labels: &str) -> bool {
        let mode = if self.streaming { "streaming" } else { "non_streaming" };
        let outcome = if self.call { "tool_call" } else { "no_tool_call" };
        [("mode", mode), ("outcome", outcome), ("request_type", self.kind)]
            .iter()
            .all(|(name, value)| labels.contains(&format!("{name}=\"{value}\"")))
    }
}

/// The engine's counters and histograms.
#[derive(Debug)]
pub(crate) struct Stats {
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) generation_tokens: u64,
    pub(crate) rejections: u64,
    pub(crate) success: BTreeMap<&'static str, u64>,
    /// Texts that a parser of tool calls was given.
    pub(crate) parsed: BTreeMap<Parsed, u64>,
    pub(crate) histograms: BTreeMap<String, Histogram>,
}

impl Stats {
    pub(crate) fn new(histograms: BTreeMap<String, Histogram>) -> Self {
        Self {
            prompt_tokens: 0,
            cached_tokens: 0,
            generation_tokens: 0,
            rejections: 0,
            success: BTreeMap::new(),
            parsed: BTreeMap::new(),
            histograms,
        }
    }

    pub(crate) fn observe(&mut self, name: &str, value: f64) {
        if let Some(histogram) = self.histograms.get_mut(name) {
            histogram.observe(value);
        }
    }

    /// Counts a prompt that has been computed.
    pub(crate) fn prompt_done(&mut self, tokens: u32, cached: u32) {
        self.prompt_tokens += u64::from(tokens);
        self.cached_tokens += u64::from(cached);
    }

    pub(crate) fn ended(&mut self, label: &'static str, ended: &FinishedSequence, now: Duration) {
        *self.success.entry(label).or_default() += 1;
        let since = |from: Duration| now.saturating_sub(from).as_secs_f64();
        let between = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64();
        self.observe("vllm:e2e_request_latency_seconds", since(ended.arrived));
        if ended.produced > 0 {
            let decode = since(ended.first_token);
            let queued = between(ended.arrived, ended.admitted);
            self.observe("vllm:request_queue_time_seconds", queued);
            let prefill = between(ended.admitted, ended.first_token);
            self.observe("vllm:request_prefill_time_seconds", prefill);
            self.observe("vllm:request_decode_time_seconds", decode);
            self.observe("vllm:request_inference_time_seconds", since(ended.admitted));
            if ended.produced > 1 {
                let each = decode / f64::from(ended.produced - 1);
                self.observe("vllm:request_time_per_output_token_seconds", each);
            }
        }
        for (name, value) in [
            ("vllm:request_prompt_tokens", ended.prompt_tokens),
            ("vllm:request_generation_tokens", ended.produced),
            ("vllm:request_params_max_tokens", ended.max_tokens),
            ("vllm:request_max_num_generation_tokens", ended.produced),
            ("vllm:request_params_n", ended.n),
            ("vllm:request_num_preemptions", ended.preemptions),
            (
                "vllm:request_prefill_kv_computed_tokens",
                ended.prompt_tokens.saturating_sub(ended.cached_tokens),
            ),
        ] {
            self.observe(name, f64::from(value));
        }
    }
}

/// Requests of one handler and method.
#[derive(Debug, Clone)]
pub(crate) struct Handler {
    pub(crate) name: &'static str,
    pub(crate) method: String,
    /// By status class: `2xx` and so on, in order of appearance.
    pub(crate) statuses: Vec<(&'static str, u64)>,
    pub(crate) count: u64,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) seconds: Histogram,
}

/// The figures of the HTTP layer, without /health, /metrics and similar paths.
#[derive(Debug, Default)]
pub(crate) struct HttpStats {
    pub(crate) handlers: Vec<Handler>,
}

/// One answered request.
#[derive(Debug, Clone)]
pub(crate) struct HttpAnswer {
    pub(crate) handler: &'static str,
    pub(crate) method: String,
    pub(crate) status: u16,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
}

impl HttpStats {
    pub(crate) fn count(&mut self, answered: &HttpAnswer, took: Duration) {
        let found = self
            .handlers
            .iter()
            .position(|h| h.name == answered.handler && h.method == answered.method);
        let at = found.unwrap_or_else(|| {
            self.handlers.push(Handler {
                name: answered.handler,
                method: answered.method.clone(),
                statuses: Vec::new(),
                count: 0,
                request_bytes: 0,
                response_bytes: 0,
                seconds: Histogram::new(vec![0.1, 0.5, 1.0]),
            });
            self.handlers.len() - 1
        });
        let handler = &mut self.handlers[at];
        let class = match answered.status / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        match handler.statuses.iter_mut().find(|(status, _)| *status == class) {
            Some((_, count)) => *count += 1,
            None => handler.statuses.push((class, 1)),
        }
        handler.count += 1;
        handler.request_bytes += answered.request_bytes;
        handler.response_bytes += answered.response_bytes;
        handler.seconds.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_is_in_its_bucket() {
        let mut histogram = Histogram::new(vec![1.0, 2.0, 5.0]);
        for value in [1.0, 1.5, 5.0, 9.0] {
            histogram.observe(value);
        }
        let counts: Vec<u64> = histogram.cumulative().map(|(_, count)| count).collect();
        assert_eq!((counts, histogram.count, histogram.sum), (vec![1, 2, 3], 4, 16.5));
        assert_eq!(one_two_five(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
    }
}
