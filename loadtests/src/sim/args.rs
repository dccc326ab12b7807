//! The simulator's options: vLLM's own flags where they exist, and its bad habits.

use super::scheduler::Limits;
use crate::timing::Timing;
use anyhow::ensure;
use clap::{Parser, ValueEnum};
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// What one simulated vLLM serves, how fast, and how it misbehaves.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// The model, as `vllm serve` takes it. It is the served name unless one is given
    pub model: Option<String>,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port to listen on; 0 takes any free one
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Names the model is served under; the first one is what replies and metrics carry
    #[arg(long, num_args = 1..)]
    pub served_model_name: Vec<String>,
    /// Keys that open /v1; without one everybody may come in
    #[arg(long, num_args = 1..)]
    pub api_key: Vec<String>,
    /// What the server runs: text generation, or embeddings and their like
    #[arg(long, value_enum, default_value_t = Runner::Generate)]
    pub runner: Runner,
    /// LoRA adapters, NAME=PATH
    #[arg(long, num_args = 1.., value_name = "NAME=PATH")]
    pub lora_modules: Vec<LoraModule>,

    /// Sequences that run at once
    #[arg(long, default_value_t = 256)]
    pub max_num_seqs: usize,
    /// Tokens of prompt and output together
    #[arg(long, default_value_t = 32_768)]
    pub max_model_len: u32,
    /// Tokens worked on in one engine step
    #[arg(long, default_value_t = 8192)]
    pub max_num_batched_tokens: u32,
    /// Blocks of the KV cache
    #[arg(long, default_value_t = 16_384)]
    pub num_gpu_blocks_override: usize,
    /// Tokens in a KV cache block
    #[arg(long, default_value_t = 16)]
    pub block_size: u32,
    /// Sequences that may wait for a seat; more are refused with 503. No limit by default
    #[arg(long)]
    pub max_num_queued_reqs: Option<usize>,
    /// Seconds to let requests end after SIGTERM; 0 aborts them
    #[arg(long, default_value_t = 0)]
    pub shutdown_timeout: u64,
    /// Seconds between comments in a silent event stream; 0 sends none
    #[arg(long, default_value_t = 0)]
    pub sse_keep_alive_interval: u64,
    /// Put x-request-id on every reply
    #[arg(long)]
    pub enable_request_id_headers: bool,
    /// Tell cached prompt tokens in usage
    #[arg(long)]
    pub enable_prompt_tokens_details: bool,
    /// Send usage to everybody, on every chunk of a stream
    #[arg(long)]
    pub enable_force_include_usage: bool,
    /// Count open requests in /load
    #[arg(long)]
    pub enable_server_load_tracking: bool,
    /// The development routes: /pause, /resume, /sleep, /wake_up, /abort_requests and others
    #[arg(long)]
    pub dev: bool,

    /// Time until the server listens; connections are refused until then
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub cold_start: Duration,
    /// Prompt tokens computed per second; 0 makes prompts free
    #[arg(long, default_value_t = 20_000.0)]
    pub prefill_tokens_per_second: f64,
    /// Milliseconds of a decode step, whatever is in it
    #[arg(long, default_value_t = 8.0, value_name = "MS")]
    pub decode_step_ms: f64,
    /// Milliseconds that each decoding sequence adds to a step
    #[arg(long, default_value_t = 0.05, value_name = "MS")]
    pub decode_step_ms_per_seq: f64,
    /// Fewest tokens after which a reply may end by itself
    #[arg(long, default_value_t = 50)]
    pub min_reply_tokens: u32,
    /// Most tokens after which a reply ends by itself
    #[arg(long, default_value_t = 300)]
    pub max_reply_tokens: u32,
    /// Texts, lengths and misfortunes follow from this and the requests alone
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// What in-flight requests are told when SIGTERM aborts them
    #[arg(long, value_enum, default_value_t = SigtermOutcome::Seeded)]
    pub sigterm_outcome: SigtermOutcome,
    /// Time the process takes to end after its engine has
    #[arg(long, default_value = "800ms", value_parser = duration)]
    pub stop_delay: Duration,
    /// Hang the engine this long after the start; /health stays 200
    #[arg(long, value_parser = duration)]
    pub hang_after: Option<Duration>,
    /// Kill the engine this long after the start
    #[arg(long, value_parser = duration)]
    pub crash_after: Option<Duration>,
    /// Share of requests that fail in the middle of their reply, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    pub fail_rate: f64,
    /// Share of requests refused as if the queue were full, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    pub reject_rate: f64,
}

/// What the server runs.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    /// Chat, completions, messages, responses.
    Generate,
    /// Embeddings, scores, ranks, classes.
    Pooling,
}

/// How an abort by SIGTERM shows; the real server does one or the other.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigtermOutcome {
    /// An error, in the stream or as a 500.
    Error,
    /// A reply that was cut, with finish_reason "abort".
    Abort,
    /// One of the two, by the seed.
    Seeded,
    /// Nothing: the listener closes, and connections stay open in silence until their clients leave.
    Mute,
}

/// A LoRA adapter: the model name it is asked for by, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraModule {
    /// The name in `model`.
    pub name: String,
    /// The adapter's folder, shown in /v1/models.
    pub path: String,
}

impl FromStr for LoraModule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() => {
                Ok(Self { name: name.into(), path: path.into() })
            }
            _ => Err("expected NAME=PATH".into()),
        }
    }
}

#[derive(Parser)]
#[command(name = "vllm-sim", no_binary_name = true, args_override_self = true)]
struct Line {
    #[command(flatten)]
    args: Args,
}

impl Default for Args {
    fn default() -> Self {
        Line::parse_from(std::iter::empty::<&str>()).args
    }
}

impl Args {
    /// Parses flags as on a command line, without a program's name. Of a flag given twice the
    /// last one counts, as with vLLM.
    ///
    /// # Errors
    /// clap's, if a flag is unknown or has a wrong value.
    pub fn from_flags<'a>(flags: impl IntoIterator<Item = &'a str>) -> Result<Self, clap::Error> {
        Ok(Line::try_parse_from(flags)?.args)
    }

    /// The cost of the engine's work.
    #[must_use]
    pub fn timing(&self) -> Timing {
        let millis = |ms: f64| Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default();
        Timing {
            cold_start: self.cold_start,
            prefill_tokens_per_second: self.prefill_tokens_per_second,
            decode_base: millis(self.decode_step_ms),
            decode_per_sequence: millis(self.decode_step_ms_per_seq),
        }
    }

    /// The names of the base model, the main one first.
    pub(crate) fn names(&self) -> Vec<String> {
        if self.served_model_name.is_empty() {
            vec![self.model.clone().unwrap_or_else(|| "sim".into())]
        } else {
            self.served_model_name.clone()
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            seats: self.max_num_seqs,
            tokens_per_step: self.max_num_batched_tokens,
            blocks: self.num_gpu_blocks_override,
            block_size: self.block_size,
        }
    }

    /// What the real server would refuse to start with.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(self.max_num_seqs > 0, "--max-num-seqs must be at least 1");
        ensure!(self.block_size > 0, "--block-size must be at least 1");
        ensure!(self.max_model_len > 1, "--max-model-len must be at least 2");
        ensure!(
            self.max_num_batched_tokens as usize > self.max_num_seqs,
            "--max-num-batched-tokens must be larger than --max-num-seqs"
        );
        let tokens = self.num_gpu_blocks_override as u64 * u64::from(self.block_size);
        ensure!(
            tokens > u64::from(self.max_model_len),
            "the model's max seq len ({}) is larger than the maximum number of tokens that can be \
             stored in the KV cache ({tokens})",
            self.max_model_len
        );
        ensure!(
            (1..=self.max_reply_tokens).contains(&self.min_reply_tokens),
            "--min-reply-tokens must be at least 1 and at most --max-reply-tokens"
        );
        for (flag, rate) in [("fail", self.fail_rate), ("reject", self.reject_rate)] {
            ensure!((0.0..=1.0).contains(&rate), "--{flag}-rate must be between 0 and 1");
        }
        let speeds =
            [self.prefill_tokens_per_second, self.decode_step_ms, self.decode_step_ms_per_seq];
        let sane = speeds.iter().all(|speed| speed.is_finite() && *speed >= 0.0);
        ensure!(sane, "speeds and step times must not be negative");
        Ok(())
    }
}

fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllm_s_own_flags_are_understood() {
        let args = Args::from_flags([
            "Qwen/Qwen3",
            "--port",
            "0",
            "--served-model-name",
            "a",
            "b",
            "--lora-modules",
            "ad1=/adapters/one",
            "--cold-start",
            "2s",
            "--runner",
            "pooling",
        ])
        .expect("valid flags");
        assert_eq!(args.names(), ["a", "b"]);
        assert_eq!(args.lora_modules[0].path, "/adapters/one");
        assert_eq!(args.timing().cold_start, Duration::from_secs(2));
        assert_eq!(args.runner, Runner::Pooling);
        assert!(args.check().is_ok());
        assert_eq!(Args::default().names(), ["sim"]);
    }

    #[test]
    fn impossible_settings_are_refused() {
        for (case, flags) in [
            ("no seats", "--max-num-seqs=0"),
            ("cache smaller than one request", "--num-gpu-blocks-override=4"),
            ("negative speed", "--decode-step-ms=-1"),
            ("a rate over 1", "--fail-rate=2"),
        ] {
            let args = Args::from_flags([flags]).expect("parses");
            assert!(args.check().is_err(), "{case}");
        }
    }
}
