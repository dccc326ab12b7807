//! The simulator's flags: vLLM's own where they exist, then speed and faults.

use crate::sim::engine::scheduler::Limits;
use crate::timing::Timing;
use anyhow::ensure;
use clap::{Parser, ValueEnum};
use forebay_config::parse_duration;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// The flags of one simulated vLLM: its models, its speed, and its faults.
#[derive(clap::Args, Debug, Clone)]
pub struct SimArgs {
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
    /// Keys that open /v1; without any, every client has access
    #[arg(long, num_args = 1..)]
    pub api_key: Vec<String>,
    /// Kind of model: one that generates text, or one for embeddings and scores
    #[arg(long, value_enum, default_value_t = Runner::Generate)]
    pub runner: Runner,
    /// LoRA adapters, NAME=PATH
    #[arg(long, num_args = 1.., value_name = "NAME=PATH")]
    pub lora_modules: Vec<LoraModule>,

    #[command(flatten)]
    pub(crate) capacity: CapacityArgs,
    #[command(flatten)]
    pub(crate) replies: ReplyArgs,
    #[command(flatten)]
    pub(crate) speed: SpeedArgs,
    #[command(flatten)]
    pub(crate) faults: FaultArgs,
}

// No doc comments on these: clap would take them for the command's own help.

// The capacity of the engine.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct CapacityArgs {
    /// Sequences that run at once
    #[arg(long, default_value_t = 256)]
    pub(crate) max_num_seqs: usize,
    /// Longest prompt and output together, in tokens
    #[arg(long, default_value_t = 32_768)]
    pub(crate) max_model_len: u32,
    /// Tokens computed in one engine step
    #[arg(long, default_value_t = 8192)]
    pub(crate) max_num_batched_tokens: u32,
    /// Blocks of the KV cache
    #[arg(long, default_value_t = 16_384)]
    pub(crate) num_gpu_blocks_override: usize,
    /// Tokens in a KV cache block
    #[arg(long, default_value_t = 16)]
    pub(crate) block_size: u32,
    /// Sequences that may wait; more are refused with 503. No limit by default
    #[arg(long)]
    pub(crate) max_num_queued_reqs: Option<usize>,
    /// Seconds to let requests end after SIGTERM; 0 aborts them
    #[arg(long, default_value_t = 0)]
    pub(crate) shutdown_timeout: u64,
}

// The form of replies, and the routes.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct ReplyArgs {
    /// Seconds between comments in a silent event stream; 0 sends none
    #[arg(long, default_value_t = 0)]
    pub(crate) sse_keep_alive_interval: u64,
    /// Put x-request-id on every reply
    #[arg(long)]
    pub(crate) enable_request_id_headers: bool,
    /// Report cached prompt tokens in usage
    #[arg(long)]
    pub(crate) enable_prompt_tokens_details: bool,
    /// Send usage to every client, on every chunk of a stream
    #[arg(long)]
    pub(crate) enable_force_include_usage: bool,
    /// Let requests leave it to the model whether it calls a tool; needs a parser
    #[arg(long)]
    pub(crate) enable_auto_tool_choice: bool,
    /// Parser of tool calls, without which requests for calls are refused; any name will do
    #[arg(long, value_name = "NAME")]
    pub(crate) tool_call_parser: Option<String>,
    /// Ignore the ids of a prompt in `kv_transfer_params`, as older servers do
    #[arg(long)]
    pub(crate) ignore_prompt_token_ids: bool,
    /// Count open requests in /load
    #[arg(long)]
    pub(crate) enable_server_load_tracking: bool,
    /// The development routes: /pause, /resume, /sleep, /wake_up, /abort_requests and others
    #[arg(long)]
    pub(crate) dev: bool,
}

// The timing model, and the length of replies.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct SpeedArgs {
    /// Time until the server listens; connections are refused until then
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    pub(crate) cold_start: Duration,
    /// Prompt tokens computed per second; 0 makes prompts free
    #[arg(long, default_value_t = 20_000.0)]
    pub(crate) prefill_tokens_per_second: f64,
    /// Milliseconds of a decode step without sequences
    #[arg(long, default_value_t = 8.0, value_name = "MS")]
    pub(crate) decode_step_ms: f64,
    /// Milliseconds that each decoding sequence adds to a step
    #[arg(long, default_value_t = 0.05, value_name = "MS")]
    pub(crate) decode_step_ms_per_seq: f64,
    /// Fewest tokens of a reply that ends on its own
    #[arg(long, default_value_t = 50)]
    pub(crate) min_reply_tokens: u32,
    /// Most tokens of a reply that ends on its own
    #[arg(long, default_value_t = 300)]
    pub(crate) max_reply_tokens: u32,
    /// Seed: the same seed and requests give the same texts, lengths and faults
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

// Failures on purpose.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct FaultArgs {
    /// How requests in flight end when SIGTERM aborts them
    #[arg(long, value_enum, default_value_t = SigtermOutcome::Seeded)]
    pub(crate) sigterm_outcome: SigtermOutcome,
    /// Time between the end of the engine and the end of the process
    #[arg(long, default_value = "800ms", value_parser = parse_duration)]
    pub(crate) stop_delay: Duration,
    /// Hang the engine this long after the start; /health stays 200
    #[arg(long, value_parser = parse_duration)]
    pub(crate) hang_after: Option<Duration>,
    /// Kill the engine this long after the start
    #[arg(long, value_parser = parse_duration)]
    pub(crate) crash_after: Option<Duration>,
    /// Share of requests that fail in the middle of their reply, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    pub(crate) fail_rate: f64,
    /// Share of requests refused as if the queue were full, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    pub(crate) reject_rate: f64,
}

/// The kind of model that the server runs.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    /// Chat, completions, messages, responses.
    Generate,
    /// Embeddings, scores, ranks, classes.
    Pooling,
}

/// How requests that SIGTERM aborts end; the real server does one or the other.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigtermOutcome {
    /// An error, in the stream or as a 500.
    Error,
    /// A reply cut short, with finish_reason "abort".
    Abort,
    /// One of the two, by the seed.
    Seeded,
    /// No end: the listener closes, and connections stay open and silent until their clients leave.
    Mute,
}

/// A LoRA adapter: its model name, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraModule {
    /// The name in `model`.
    pub name: String,
    /// The adapter's folder, as /v1/models shows it.
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
struct CommandLine {
    #[command(flatten)]
    args: SimArgs,
}

impl Default for SimArgs {
    fn default() -> Self {
        CommandLine::parse_from(std::iter::empty::<&str>()).args
    }
}

impl SimArgs {
    /// Parses flags as on a command line, without a program's name. If a flag is given twice, the
    /// last one counts, as with vLLM.
    ///
    /// # Errors
    /// A flag is unknown or has a wrong value.
    pub fn from_flags<'a>(flags: impl IntoIterator<Item = &'a str>) -> Result<Self, clap::Error> {
        Ok(CommandLine::try_parse_from(flags)?.args)
    }

    /// The cost of the engine's work.
    #[must_use]
    pub fn timing(&self) -> Timing {
        let millis = |ms: f64| Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default();
        Timing {
            cold_start: self.speed.cold_start,
            prefill_tokens_per_second: self.speed.prefill_tokens_per_second,
            decode_base: millis(self.speed.decode_step_ms),
            decode_per_sequence: millis(self.speed.decode_step_ms_per_seq),
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
            seats: self.capacity.max_num_seqs,
            tokens_per_step: self.capacity.max_num_batched_tokens,
            blocks: self.capacity.num_gpu_blocks_override,
            block_size: self.capacity.block_size,
        }
    }

    /// Refuses settings with which the real server would not start.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.replies.enable_auto_tool_choice || self.replies.tool_call_parser.is_some(),
            "--enable-auto-tool-choice requires --tool-call-parser"
        );
        ensure!(self.capacity.max_num_seqs > 0, "--max-num-seqs must be at least 1");
        ensure!(self.capacity.block_size > 0, "--block-size must be at least 1");
        ensure!(self.capacity.max_model_len > 1, "--max-model-len must be at least 2");
        ensure!(
            self.capacity.max_num_batched_tokens as usize > self.capacity.max_num_seqs,
            "--max-num-batched-tokens must be larger than --max-num-seqs"
        );
        let tokens =
            self.capacity.num_gpu_blocks_override as u64 * u64::from(self.capacity.block_size);
        ensure!(
            tokens > u64::from(self.capacity.max_model_len),
            "the model's max seq len ({}) is larger than the maximum number of tokens that can be \
             stored in the KV cache ({tokens})",
            self.capacity.max_model_len
        );
        ensure!(
            (1..=self.speed.max_reply_tokens).contains(&self.speed.min_reply_tokens),
            "--min-reply-tokens must be at least 1 and at most --max-reply-tokens"
        );
        for (flag, rate) in [("fail", self.faults.fail_rate), ("reject", self.faults.reject_rate)] {
            ensure!((0.0..=1.0).contains(&rate), "--{flag}-rate must be between 0 and 1");
        }
        let speeds = [
            self.speed.prefill_tokens_per_second,
            self.speed.decode_step_ms,
            self.speed.decode_step_ms_per_seq,
        ];
        let sane = speeds.iter().all(|speed| speed.is_finite() && *speed >= 0.0);
        ensure!(sane, "speeds and step times must not be negative");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllm_s_own_flags_are_understood() {
        let args = SimArgs::from_flags([
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
        assert_eq!(SimArgs::default().names(), ["sim"]);
    }

    #[test]
    fn impossible_settings_are_refused() {
        for (case, flags) in [
            ("no seats", "--max-num-seqs=0"),
            ("cache smaller than one request", "--num-gpu-blocks-override=4"),
            ("negative speed", "--decode-step-ms=-1"),
            ("a rate over 1", "--fail-rate=2"),
            ("a choice without a parser", "--enable-auto-tool-choice"),
        ] {
            let args = SimArgs::from_flags([flags]).expect("parses");
            assert!(args.check().is_err(), "{case}");
        }
    }
}
